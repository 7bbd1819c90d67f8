package registry

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
)

// Save writes the row of a node on the primary. Without force an existing row stays as it is.
// cluster is the name of the cluster that the node's configuration asks for; empty: it names none.
func (n *Server) Save(ctx context.Context, rec Record, cluster string, force bool) error {
	err := pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE repmgr.nodes IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if err := checkClusterName(ctx, tx, cluster, rec.ConfigFile); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, RecordsSQL)
		if err != nil {
			return err
		}
		recs, err := pgx.CollectRows(rows, pgx.RowToStructByName[Record])
		if err != nil {
			return err
		}
		if err := CheckTaken(recs, rec, force); err != nil {
			return err
		}
		if rec.Role == RolePrimary {
			if err := deactivatePrimaries(ctx, tx, rec.ID); err != nil {
				return err
			}
		}
		return upsert(ctx, tx, rec)
	})
	if err != nil && postgres.SQLState(err) != "" {
		return n.QueryError("write repmgr.nodes", err)
	}
	return err
}

// checkClusterName refuses a node with the configuration of another cluster. The first name
// that a node gives becomes the name of the cluster.
func checkClusterName(ctx context.Context, tx pgx.Tx, cluster, configFile string) error {
	if cluster == "" {
		return nil
	}
	var name string
	err := tx.QueryRow(ctx, `UPDATE repmgr.metadata SET cluster_name = CASE cluster_name WHEN '' THEN $1 ELSE cluster_name END RETURNING cluster_name`, cluster).Scan(&name)
	if err == nil && name != cluster {
		return failure.WithHint(failure.Of(failure.ErrConfig, "cluster %q: this is the metadata of cluster %q", cluster, name),
			"Correct cluster, or conninfo, in %s.", configFile)
	}
	return err
}

const (
	deactivatePrimariesSQL = `UPDATE repmgr.nodes SET active = false WHERE type = 'primary' AND active AND node_id <> $1`
	becomePrimarySQL       = `UPDATE repmgr.nodes SET type = 'primary', upstream_node_id = NULL, active = true WHERE node_id = $1`
)

// deactivatePrimaries marks all other primaries as inactive.
func deactivatePrimaries(ctx context.Context, tx pgx.Tx, but NodeID) error {
	_, err := tx.Exec(ctx, deactivatePrimariesSQL, int32(but))
	return err
}

func upsert(ctx context.Context, tx pgx.Tx, r Record) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO repmgr.nodes AS n (node_id, upstream_node_id, active, node_name, type, location, priority, conninfo, repluser, slot_name, config_file)
		VALUES ($1, nullif($2, 0), $3, $4, $5, $6, $7, $8, $9, nullif($10, ''), $11)
		ON CONFLICT (node_id) DO UPDATE SET (upstream_node_id, active, node_name, type, location, priority, conninfo, repluser, slot_name, config_file)
		 = (EXCLUDED.upstream_node_id, EXCLUDED.active, EXCLUDED.node_name, EXCLUDED.type, EXCLUDED.location, EXCLUDED.priority,
		    EXCLUDED.conninfo, EXCLUDED.repluser, EXCLUDED.slot_name, EXCLUDED.config_file)`,
		int32(r.ID), int32(r.UpstreamID), r.Active, r.Name, string(r.Role), r.Location, r.Priority, r.Conninfo, r.ReplicationUser, r.SlotName, r.ConfigFile)
	return err
}

// Remove deletes the row of a node if it is registered in that role; an empty role means any.
func (n *Server) Remove(ctx context.Context, id NodeID, role Role) error {
	if _, err := n.Conn.Exec(ctx, `DELETE FROM repmgr.nodes WHERE node_id = $1 AND ($2 = '' OR type = $2)`, int32(id), string(role)); err != nil {
		return n.QueryError("delete from repmgr.nodes", err)
	}
	return nil
}

// RecordPromotion makes a node the only active primary in the rows of the server. The error
// is the driver's own.
func (n *Server) RecordPromotion(ctx context.Context, id NodeID) error {
	return pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		if err := deactivatePrimaries(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, becomePrimarySQL, int32(id))
		return err
	})
}

// RecordUpstream makes a node an active standby of upstream in the rows of the server. The
// error is the driver's own.
func (n *Server) RecordUpstream(ctx context.Context, id, upstream NodeID) error {
	_, err := n.Conn.Exec(ctx, `UPDATE repmgr.nodes SET type = 'standby', upstream_node_id = $2, active = true WHERE node_id = $1`, int32(id), int32(upstream))
	return err
}

// MarkActive records in the row of a node whether its server runs.
func (n *Server) MarkActive(ctx context.Context, id NodeID, active bool) error {
	if _, err := n.Conn.Exec(ctx, `UPDATE repmgr.nodes n SET active = $2 WHERE node_id = $1 AND active <> $2
		AND NOT ($2 AND type = 'primary' AND EXISTS (SELECT FROM repmgr.nodes o WHERE o.type = 'primary' AND o.active AND o.node_id <> n.node_id))`, int32(id), active); err != nil {
		return n.QueryError("mark the node", err)
	}
	return nil
}

// InstallPrimary records the new primary in one transaction. The nodes that were below the
// former primary are then below the new one, and so are the followers.
func (n *Server) InstallPrimary(ctx context.Context, primary, former int32, followers []int32, synchronousCommit string) error {
	err := pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		var b pgx.Batch
		b.Queue(`SELECT set_config('synchronous_commit', $1, true)`, synchronousCommit)
		b.Queue(deactivatePrimariesSQL, primary)
		b.Queue(becomePrimarySQL, primary)
		b.Queue(`UPDATE repmgr.nodes SET upstream_node_id = $1 WHERE node_id <> $1 AND type <> 'primary' AND (upstream_node_id = $2 OR type = 'standby' AND node_id = ANY ($3::int[]))`, primary, former, followers)
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return n.QueryError("write who is the primary", err)
	}
	return nil
}
