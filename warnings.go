package repmgr

import (
	"context"
	"strings"

	"github.com/pgrepmgr/repmgr/postgres"
)

// checkQuorum says at the start what takes something away from the promise of
// synchronous_mode=quorum on this server.
func (m *Monitor) checkQuorum(ctx context.Context) {
	if m.cluster.cfg.SynchronousMode != SynchronousQuorum {
		return
	}
	if fixed, leaks := postgres.LeaksAtStart(m.node.Status.VersionNum); leaks {
		m.cluster.log.Warn("this PostgreSQL can acknowledge commits in the first moments after a start without waiting for a standby",
			"version", m.node.Status.Version, "hint", "Update to PostgreSQL "+fixed+" or later. What is acknowledged so is lost if this primary is lost then.")
	}
	weak, err := m.node.Local.WeakCommits(ctx)
	switch {
	case err != nil:
		m.cluster.log.Warn("whether commits wait by default is not known", "err", err, "hint", Hint(err))
	case len(weak) > 0:
		m.cluster.log.Warn("synchronous_commit is weaker than on: a failover can lose acknowledged commits of such sessions", "where", strings.Join(weak, "; "),
			"hint", "off and local wait for no standby, remote_write not for its disk. Take it away there, or accept the loss: docs/guarantees.md.")
	}
}
