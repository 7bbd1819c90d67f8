package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/wal"
)

const pruneBatch = 10_000 // rows of one DELETE, so that no transaction is long

const sampleSQL = `
INSERT INTO repmgr.standby_state AS s (standby_node_id, primary_node_id, last_monitor_time, last_apply_time, in_step_time, stale_after,
	last_wal_primary_location, last_wal_standby_location, replication_lag, apply_lag)
VALUES ($1, $2, now(), $3, CASE WHEN $4 THEN now() ELSE coalesce($3, now()) END, make_interval(secs => $5), $6, $7, $8, $9)
ON CONFLICT (standby_node_id) DO UPDATE SET
	primary_node_id = EXCLUDED.primary_node_id, last_monitor_time = now(), last_apply_time = EXCLUDED.last_apply_time,
	in_step_time = CASE WHEN $4 THEN now() ELSE greatest(s.in_step_time, $3) END, stale_after = EXCLUDED.stale_after,
	last_wal_primary_location = EXCLUDED.last_wal_primary_location, last_wal_standby_location = EXCLUDED.last_wal_standby_location,
	replication_lag = EXCLUDED.replication_lag, apply_lag = EXCLUDED.apply_lag`

const historySQL = `
INSERT INTO repmgr.monitoring_history (primary_node_id, standby_node_id, last_monitor_time, last_apply_time,
	last_wal_primary_location, last_wal_standby_location, replication_lag, apply_lag)
SELECT primary_node_id, standby_node_id, last_monitor_time, last_apply_time,
	last_wal_primary_location, last_wal_standby_location, replication_lag, apply_lag
FROM repmgr.standby_state WHERE standby_node_id = $1`

// Sample is a row of repmgr.standby_state: the positions and the lag of a standby.
type Sample struct {
	Standby, Primary        NodeID
	PrimaryLSN, ReceivedLSN wal.LSN
	ReplayedAt              *time.Time    // the time of the last commit that it has replayed; nil: none
	InStep                  bool          // it has replayed everything that the primary had
	StaleAfter              time.Duration // after this time without a new sample this one is out of date
	ReceivedLag, AppliedLag int64         // in bytes
}

// WriteSample records the state of a standby on the primary, and in the history where that
// is wanted, in one round trip and without waiting for the disk: a lost sample is replaced
// by the next one.
func (n *Server) WriteSample(ctx context.Context, s Sample, history bool) error {
	var b pgx.Batch
	b.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	b.Queue(sampleSQL, int32(s.Standby), int32(s.Primary), s.ReplayedAt, s.InStep, s.StaleAfter.Seconds(), s.PrimaryLSN, s.ReceivedLSN, s.ReceivedLag, s.AppliedLag)
	if history {
		b.Queue(historySQL, int32(s.Standby))
	}
	if err := n.Conn.SendBatch(ctx, &b).Close(); err != nil {
		return n.QueryError("record the replication lag", err)
	}
	return nil
}

// Prune deletes monitoring history and events that are too old to be kept, in short
// transactions, until limit has passed; the rest is left for the next call. Where keep is 0 or
// less a table is not touched.
func (n *Server) Prune(ctx context.Context, history, events time.Duration, limit time.Time) error {
	for _, t := range []struct {
		table, column string
		keep          time.Duration
	}{{"repmgr.monitoring_history", "last_monitor_time", history}, {"repmgr.events", "event_timestamp", events}} {
		if t.keep <= 0 {
			continue
		}
		sql := fmt.Sprintf(`DELETE FROM %[1]s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %[1]s WHERE %[2]s < now() - make_interval(secs => $1) LIMIT %[3]d))`,
			t.table, t.column, pruneBatch)
		for {
			tag, err := n.Conn.Exec(ctx, sql, t.keep.Seconds())
			if err != nil {
				return n.QueryError("prune "+t.table, err)
			}
			if tag.RowsAffected() < pruneBatch || time.Now().After(limit) {
				break
			}
		}
	}
	return nil
}
