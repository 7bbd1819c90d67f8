package registry

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/postgres"
)

const oldHistory = `repmgr.monitoring_history WHERE last_monitor_time < now() - make_interval(days => $1) AND ($2 = 0 OR standby_node_id = $2)`

// CountHistory counts the rows of the monitoring history that are older than so many days.
// of 0: of all standbys.
func (n *Server) CountHistory(ctx context.Context, days int, of NodeID) (rows int64, err error) {
	if err := n.Conn.QueryRow(ctx, `SELECT count(*) FROM `+oldHistory, days, int32(of)).Scan(&rows); err != nil {
		return 0, n.QueryError("count the monitoring history", err)
	}
	return rows, nil
}

// DeleteHistory deletes the rows that [Server.CountHistory] counts, all of them at once
// where none is kept, and says how many. It takes as long as it takes.
func (n *Server) DeleteHistory(ctx context.Context, days int, of NodeID) (rows int64, err error) {
	ctx = postgres.Unlimited(ctx)
	if days == 0 && of == 0 {
		return n.emptyHistory(ctx)
	}
	tag, err := n.Conn.Exec(ctx, `DELETE FROM `+oldHistory, days, int32(of))
	if err != nil {
		return 0, n.QueryError("delete old monitoring history", err)
	}
	if _, err := n.Conn.Exec(ctx, `VACUUM repmgr.monitoring_history`); err != nil {
		return tag.RowsAffected(), n.QueryError("vacuum repmgr.monitoring_history", err)
	}
	return tag.RowsAffected(), nil
}

func (n *Server) emptyHistory(ctx context.Context) (rows int64, err error) {
	err = pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE repmgr.monitoring_history`); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM repmgr.monitoring_history`).Scan(&rows); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `TRUNCATE repmgr.monitoring_history`)
		return err
	})
	if err != nil {
		return rows, n.QueryError("empty repmgr.monitoring_history", err)
	}
	return rows, nil
}
