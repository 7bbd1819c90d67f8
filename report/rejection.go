package report

import (
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// Rejection is the error of a node that rejects the login of a daemon; nil: it does not. primary says that it is the
// daemon's own node, and the primary.
func Rejection(p election.Peer, rec registry.Record, primary bool) error {
	if p.Answer != election.Rejects {
		return nil
	}
	why, then := "", ""
	if p.Rejection != "" {
		why = " (" + p.Rejection + ")"
	}
	if primary {
		then = ", and is its own primary: with synchronous_mode=off it is stopped where no majority answers, and with quorum it goes on as long as a majority answers or rejects the login"
	}
	return failure.WithHint(failure.Of(failure.ErrConnect, "%s rejects the login of this daemon%s%s", rec, why, then), "Compare pg_hba.conf and the passwords there with conninfo and the password file here.")
}
