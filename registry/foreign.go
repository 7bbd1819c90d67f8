package registry

import (
	"context"

	"github.com/pgrepmgr/repmgr/postgres"
)

// ForeignDaemon is a repmgrd of the C repmgr 5. Its extension keeps these values in the shared
// memory of the server that it watches.
type ForeignDaemon struct {
	PID          int  `json:"pid"`
	Paused       bool `json:"paused"`
	UpstreamSeen int  `json:"upstream_seen_seconds_ago"` // -1: never, or the server is a primary
}

// foreignState is what one connection has found out about the extension of repmgr 5.
type foreignState int

const (
	foreignUnknown foreignState = iota
	foreignNone                 // there is no extension, or its library is not loaded, so no daemon can run with it
	foreignLoaded
)

// ForeignDaemon asks the extension of repmgr 5 for a running daemon. The result is nil where
// there is none, or no readable extension. A negative answer is remembered: the library can
// be loaded only by a restart of the server, which ends the connection.
func (n *Server) ForeignDaemon(ctx context.Context) (*ForeignDaemon, error) {
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
	case err != nil || running == nil: // the library is gone or not loaded, or this login may not ask
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

// PauseForeign pauses or unpauses a daemon of repmgr 5, where one runs.
func (n *Server) PauseForeign(ctx context.Context, paused bool) error {
	d, err := n.ForeignDaemon(ctx)
	if err != nil || d == nil || d.Paused == paused {
		return err
	}
	if _, err := n.Conn.Exec(ctx, `SELECT repmgr.repmgrd_pause($1)`, paused); err != nil {
		return n.QueryError("pause the daemon of repmgr 5", err)
	}
	return nil
}
