package registry

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Event is a row of repmgr.events, with the name of its node.
type Event struct {
	NodeID  NodeID    `db:"node_id"`
	Node    string    `db:"node_name"` // empty: the node is not registered any more
	Type    string    `db:"event"`
	Success bool      `db:"successful"`
	At      time.Time `db:"event_timestamp"`
	Details string    `db:"details"`
}

// EventFilter chooses events; a zero field chooses all.
type EventFilter struct {
	NodeID NodeID
	Node   string
	Types  []string
	Limit  int
}

// Events reads the events that the server knows of, newest first.
func (n *Server) Events(ctx context.Context, f EventFilter) ([]Event, error) {
	rows, err := n.Conn.Query(ctx, `
		SELECT e.node_id, coalesce(n.node_name, '') AS node_name, e.event, e.successful, e.event_timestamp, coalesce(e.details, '') AS details
		  FROM repmgr.events e LEFT JOIN repmgr.nodes n USING (node_id)
		 WHERE ($1 = 0 OR e.node_id = $1) AND ($2 = '' OR n.node_name = $2) AND (coalesce(cardinality($3::text[]), 0) = 0 OR e.event = ANY ($3))
		 ORDER BY e.event_timestamp DESC, e.ctid DESC LIMIT nullif($4, 0)`, int32(f.NodeID), f.Node, f.Types, f.Limit)
	if err != nil {
		return nil, n.QueryError("read repmgr.events", err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByName[Event])
	if err != nil {
		return nil, n.QueryError("read repmgr.events", err)
	}
	return events, nil
}

// WriteEvent writes an event where the server is a primary, and returns the time that the
// row has: that of the event, or where it has none the server's. A standby answers with
// [pgx.ErrNoRows]; the error is the driver's own.
func (n *Server) WriteEvent(ctx context.Context, e Event) (at time.Time, err error) {
	var given *time.Time
	if !e.At.IsZero() {
		given = &e.At
	}
	err = n.Conn.QueryRow(ctx, `INSERT INTO repmgr.events (node_id, event, successful, details, event_timestamp)
		SELECT $1, $2, $3, $4, coalesce($5, now()) WHERE NOT pg_is_in_recovery() RETURNING event_timestamp`,
		int32(e.NodeID), e.Type, e.Success, e.Details, given).Scan(&at)
	return at, err
}
