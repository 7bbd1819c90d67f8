package registry

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// EventTimeFormat is how the time of an event that is in no table is given to
// commands: as repmgr does. One that is in repmgr.events has the form that
// PostgreSQL gives it.
const EventTimeFormat = "2006-01-02 15:04:05-0700"

// EventType names what happened. The values are those of repmgr 5, byte for
// byte, because scripts dispatch on them.
type EventType string

// What each of them means is said where the library shows them.
const (
	EventClusterCreated              EventType = "cluster_created"
	EventPrimaryRegister             EventType = "primary_register"
	EventPrimaryUnregister           EventType = "primary_unregister"
	EventStandbyClone                EventType = "standby_clone"
	EventStandbyRegister             EventType = "standby_register"
	EventStandbySynced               EventType = "standby_register_sync"
	EventStandbyUnregister           EventType = "standby_unregister"
	EventStandbyPromote              EventType = "standby_promote"
	EventStandbyFollow               EventType = "standby_follow"
	EventSwitchover                  EventType = "standby_switchover"
	EventChildNodesDisconnectCommand EventType = "child_nodes_disconnect_command"
	EventNodeRestart                 EventType = "node_restart"
	EventClusterRestart              EventType = "cluster_restart"
	EventClusterCleanup              EventType = "cluster_cleanup"
	EventDaemonStart                 EventType = "repmgrd_start"
	EventDaemonShutdown              EventType = "repmgrd_shutdown"
	EventDaemonReload                EventType = "repmgrd_reload"
	EventDaemonYield                 EventType = "repmgrd_yield"
	EventLocalDisconnect             EventType = "repmgrd_local_disconnect"
	EventLocalReconnect              EventType = "repmgrd_local_reconnect"
	EventUpstreamDisconnect          EventType = "repmgrd_upstream_disconnect"
	EventUpstreamReconnect           EventType = "repmgrd_upstream_reconnect"
	EventStandbyReconnect            EventType = "repmgrd_standby_reconnect"
	EventStandbyFailure              EventType = "standby_failure"
	EventStandbyRecovery             EventType = "standby_recovery"
	EventChildDisconnect             EventType = "child_node_disconnect"
	EventChildReconnect              EventType = "child_node_reconnect"
	EventChildConnect                EventType = "child_node_new_connect"
	EventWitnessRegister             EventType = "witness_register"
	EventWitnessUnregister           EventType = "witness_unregister"
	EventNodeRejoin                  EventType = "node_rejoin"
	EventFailoverPromote             EventType = "repmgrd_failover_promote"
	EventFailoverFollow              EventType = "repmgrd_failover_follow"
	EventFailoverAbort               EventType = "repmgrd_failover_abort"

	EventFailoverRefused EventType = "repmgrd_failover_refused"
	EventFence           EventType = "repmgrd_fence"
	EventFenceAbility    EventType = "repmgrd_fence_ability"
	EventStreamAbility   EventType = "repmgrd_stream_ability"
	EventPledgeAbility   EventType = "repmgrd_pledge_ability"
	EventVoteLost        EventType = "repmgrd_vote_lost"
	EventSettingsLost    EventType = "repmgrd_settings_lost"
	EventWALGone         EventType = "repmgrd_standby_wal_gone"
	EventTermReaffirmed  EventType = "repmgrd_term_reaffirmed"
	EventSyncUnproven    EventType = "repmgrd_sync_unproven"
	EventSyncReplaced    EventType = "repmgrd_sync_replaced"
	EventEventsDropped   EventType = "repmgrd_events_dropped"
	EventDuplicateNode   EventType = "repmgrd_duplicate_node"
)

// Event is something that happened to a node. Most of it is a row of repmgr.events.
type Event struct {
	NodeID  NodeID    `json:"node_id" db:"node_id"`
	Node    string    `json:"node_name,omitempty" db:"node_name"` // empty: the node is not registered any more
	Type    EventType `json:"event" db:"event"`
	Success bool      `json:"successful" db:"successful"`
	At      time.Time `json:"event_timestamp" db:"event_timestamp"`
	Details string    `json:"details,omitempty" db:"details"`

	// The other node of the event, where it has one: the primary that a standby
	// registered with or follows, the former primary of a promotion.
	PeerID       NodeID `json:"peer_node_id,omitempty" db:"-"`
	Peer         string `json:"peer_node_name,omitempty" db:"-"`
	PeerConninfo string `json:"peer_conninfo,omitempty" db:"-"`

	// Of a failover and a switchover, to the notifiers of the Monitor that held the election: its steps, each with its
	// time, as in [FailoverRecord]. Spans of a trace are made from them. All notifiers have the same one: it is not to be changed.
	Failover *FailoverRecord `json:"failover,omitempty" db:"-"`

	// When it was told to the notifiers, by the clock of their process: At may be by that of the primary. Durations are between these.
	Told time.Time `json:"-" db:"-"`

	written bool // it is in repmgr.events
}

// Written reports whether this process has seen the event go into repmgr.events.
func Written(e Event) bool { return e.written }

// EventTime is the time of an event as a command is given it: see [EventTimeFormat].
func EventTime(e Event) string {
	if !e.written {
		return e.At.Format(EventTimeFormat)
	}
	if _, offset := e.At.Zone(); offset%3600 != 0 {
		return e.At.Format("2006-01-02 15:04:05.999999-07:00")
	}
	return e.At.Format("2006-01-02 15:04:05.999999-07")
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

// WriteEvent writes an event where the server is a primary, and returns it with the time
// that the row has: its own, or where it has none the server's. A standby answers with
// [pgx.ErrNoRows]; the error is the driver's own.
func (n *Server) WriteEvent(ctx context.Context, e Event) (Event, error) {
	var given *time.Time
	if !e.At.IsZero() {
		given = &e.At
	}
	var at time.Time
	err := n.Conn.QueryRow(ctx, `INSERT INTO repmgr.events (node_id, event, successful, details, event_timestamp)
		SELECT $1, $2, $3, $4, coalesce($5, now()) WHERE NOT pg_is_in_recovery() RETURNING event_timestamp`,
		int32(e.NodeID), string(e.Type), e.Success, e.Details, given).Scan(&at)
	if err == nil {
		e.At, e.written = at, true
	}
	return e, err
}

// An event may have been written before, and its daemon have died before it knew.
const lateEventSQL = `INSERT INTO repmgr.events (node_id, event, successful, details, event_timestamp)
	SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT FROM repmgr.events WHERE event_timestamp = $5 AND node_id = $1 AND event = $2 AND details = $4)`

// WriteLateEvents writes events on a primary in one round trip, each with the time when it
// happened. One that is there already is not written again.
func (n *Server) WriteLateEvents(ctx context.Context, events []Event) error {
	if err := n.NeedNodes(ctx); err != nil {
		return err
	}
	var b pgx.Batch
	for _, e := range events {
		b.Queue(lateEventSQL, int32(e.NodeID), string(e.Type), e.Success, strings.ReplaceAll(strings.ToValidUTF8(e.Details, "?"), "\x00", "?"), e.At)
	}
	if err := n.Conn.SendBatch(ctx, &b).Close(); err != nil {
		return n.QueryError("write the events that waited", err)
	}
	return nil
}
