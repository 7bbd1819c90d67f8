package repmgr

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/postgres"
)

// ForeignDaemon is a repmgrd of the C repmgr 5, as the extension of that says in
// the shared memory of the server that it watches.
type ForeignDaemon struct {
	PID          int  `json:"pid"`
	Paused       bool `json:"paused"`
	UpstreamSeen int  `json:"upstream_seen_seconds_ago"` // -1: never, or it watches a primary
}

// foreignState is what is known of the extension of repmgr 5 on a connection.
type foreignState int

const (
	foreignUnknown foreignState = iota
	foreignNone                 // the extension is not there, or its library is not loaded: no daemon can run with it
	foreignLoaded
)

// foreignDaemon asks the extension of repmgr 5 for a daemon that lives. nil:
// there is none, or the extension is not there or not readable. A library is
// loaded only by a restart of the server, which ends the connection, so one no
// is enough for it.
func (n *server) foreignDaemon(ctx context.Context) (*ForeignDaemon, error) {
	if n.foreign == foreignUnknown {
		var found bool
		err := n.Conn.QueryRow(ctx, `SELECT to_regprocedure('repmgr.repmgrd_is_running()') IS NOT NULL AND to_regprocedure('repmgr.get_repmgrd_pid()') IS NOT NULL
			AND to_regprocedure('repmgr.repmgrd_is_paused()') IS NOT NULL AND to_regprocedure('repmgr.get_upstream_last_seen()') IS NOT NULL`).Scan(&found)
		if err != nil {
			return nil, n.QueryError("look for a daemon of repmgr 5", err)
		}
		if !found {
			n.foreign = foreignNone
		}
	}
	if n.foreign == foreignNone {
		return nil, nil
	}
	var running, paused *bool
	var pid, seen *int
	err := n.Conn.QueryRow(ctx, `SELECT repmgr.repmgrd_is_running(), repmgr.get_repmgrd_pid(), repmgr.repmgrd_is_paused(), repmgr.get_upstream_last_seen()`).
		Scan(&running, &pid, &paused, &seen)
	switch {
	case err != nil && postgres.SQLState(err) == "":
		return nil, n.QueryError("look for a daemon of repmgr 5", err)
	case err != nil || running == nil: // its library is gone, or not loaded; or not ours to ask
		n.foreign = foreignNone
		return nil, nil
	}
	n.foreign = foreignLoaded
	if !*running || pid == nil || *pid <= 0 {
		return nil, nil
	}
	d := ForeignDaemon{PID: *pid, Paused: paused != nil && *paused, UpstreamSeen: -1}
	if seen != nil {
		d.UpstreamSeen = *seen
	}
	return &d, nil
}

// pauseForeign tells a daemon of repmgr 5 the same as ours, where one lives.
func (n *server) pauseForeign(ctx context.Context, paused bool) error {
	d, err := n.foreignDaemon(ctx)
	if err != nil || d == nil || d.Paused == paused {
		return err
	}
	if _, err := n.Conn.Exec(ctx, `SELECT repmgr.repmgrd_pause($1)`, paused); err != nil {
		return n.QueryError("pause the daemon of repmgr 5", err)
	}
	return nil
}

// asideHint says what to do where daemons of both programs run.
const asideHint = "Daemons of both programs would make two primaries. Stop those of repmgr 5 on every node, or those of this one."

// standAside says, where a daemon of repmgr 5 lives on any of these nodes, why a
// Monitor does not act. nil: none does.
func standAside(nodes []string) error {
	if len(nodes) == 0 {
		return nil
	}
	return hint(kind(ErrRefused, "a repmgrd of repmgr 5 runs on %s: this one only watches", strings.Join(nodes, ", ")), asideHint)
}

// noteForeigners says once that this Monitor stands aside, and when that is over.
func (m *Monitor) noteForeigners(peers []election.Peer) {
	const what = "failing over"
	if m.cluster.cfg.Failover != FailoverAutomatic || !election.Foreign(peers) {
		m.report(what, nil)
		return
	}
	err := standAside(m.watch.foreigners(peers))
	if m.lastErr[what] == "" {
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
	m.report(what, err)
}

// foreigners names the voters with a daemon of repmgr 5.
func (w *watch) foreigners(peers []election.Peer) (names []string) {
	for _, p := range peers {
		if p.Foreign && p.Answer == election.Answers {
			names = append(names, w.record(p.ID).Name)
		}
	}
	return names
}

// foreigners names the nodes with a daemon of repmgr 5.
func foreigners(probes []probe) (names []string) {
	for _, p := range probes {
		if d := p.foreign; p.err == nil && d != nil {
			names = append(names, fmt.Sprintf("%s (PID %d)", p.record.Name, d.PID))
		}
	}
	return names
}
