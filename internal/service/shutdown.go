package service

import (
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/wal"
)

// Shutdown says whether a server is down, and how it ended.
type Shutdown struct {
	State      string   `json:"state"`                         // UP, SHUTTING_DOWN, SHUTDOWN, UNCLEAN_SHUTDOWN, UNKNOWN
	Checkpoint *wal.LSN `json:"last_checkpoint_lsn,omitempty"` // of the shutdown; nil: it was not shut down in order
}

// ShutdownOf looks at the processes and at pg_control of a server.
func ShutdownOf(srv *postmaster.Server) Shutdown {
	switch {
	case srv.ShutsDown():
		return Shutdown{State: "SHUTTING_DOWN"}
	case srv.Runs():
		return Shutdown{State: "UP"}
	}
	control, err := pgcontrol.Read(srv.Dir)
	switch {
	case err != nil:
		return Shutdown{State: "UNKNOWN"}
	case control.State.Clean():
		return Shutdown{State: "SHUTDOWN", Checkpoint: &control.Checkpoint}
	}
	return Shutdown{State: "UNCLEAN_SHUTDOWN"}
}
