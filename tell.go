package repmgr

import (
	"context"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// outboxDaemon is what the outbox needs of this Monitor.
func (m *Monitor) outboxDaemon() outbox.Daemon {
	return outbox.Daemon{
		Node: m.cluster.cfg.NodeID, Log: m.cluster.log,
		Disk: m.ownDirectory, Primary: m.onPrimary, Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// ownDirectory is the data directory of the node, where it is known, and this Monitor is
// the one that keeps files there. nil: it is not.
func (m *Monitor) ownDirectory() *postmaster.Server {
	if m.cluster.cfg.NodeID == 0 || m.seat.yielding {
		return nil
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil || m.guard.Elsewhere() {
		return nil
	}
	return &srv.Server
}

// onPrimary runs do on the primary, over a connection that is open, and is false where
// there is none.
func (m *Monitor) onPrimary(ctx context.Context, do func(context.Context, *registry.Server) error) (known bool, err error) {
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	self, ruler := m.cluster.cfg.NodeID, m.node.Ruler()
	if m.node.Primary != nil {
		return true, do(ctx, m.node.Primary.Server)
	}
	if ruler == 0 || ruler == self {
		if m.state.Role != election.Primary || m.node.Local == nil {
			return false, nil
		}
		return true, do(ctx, m.node.Local.Server)
	}
	// A witness and an observer keep no connection of their own to it.
	if p := voters.PeerOf(m.watch.Peers(), int32(ruler)); p.Answer != election.Answers || p.Running != election.Primary {
		return false, nil
	}
	return true, m.watch.Voter(int32(ruler)).Run(ctx, func(n *registry.Server) error { return do(ctx, n) })
}

// keeperDaemon is what the keeper of the state file needs of this Monitor.
func (m *Monitor) keeperDaemon() statefile.Daemon {
	return statefile.Daemon{
		Node: m.cluster.cfg.NodeID, Name: m.cluster.self(), Log: m.cluster.log,
		Dir: func() (string, error) {
			srv, err := m.cluster.localServer(m.guard.DataDirectory())
			if err != nil {
				return "", err
			}
			return srv.Dir, nil
		},
		Elsewhere: m.guard.Elsewhere, Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// keep writes what must be known of the cluster while the own server is down.
func (m *Monitor) keep(o election.Observation) {
	if len(m.node.Records) == 0 || !o.Local.Up || o.Self == 0 || m.seat.yielding {
		return
	}
	own := voters.PeerOf(o.Peers, o.Self).Rule
	if !own.Known() {
		own = m.node.Rule
	}
	now := statefile.State{Nodes: m.node.Records}
	for _, r := range []election.Rule{own, m.guard.Before()} {
		if r.Known() {
			now.Rules = append(now.Rules, r)
		}
	}
	if ruler := m.node.Ruler(); ruler != m.cluster.cfg.NodeID && m.watch.Voter(int32(ruler)) != nil {
		now.Guard = voters.GuardedOf(voters.PeerOf(m.watch.Peers(), int32(ruler)))
	}
	m.kept.Keep(m.keeperDaemon(), now)
}

// keepVote keeps the node's vote a second time, and gives it back to a server that has lost it.
func (m *Monitor) keepVote(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil || m.seat.yielding {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.kept.KeepVote(ctx, m.keeperDaemon(), m.node.Local.Server, m.node.Status)
}

// tryStreams tries whether the local server could stream from each node that may be promoted.
func (m *Monitor) tryStreams(ctx context.Context) {
	for m.pulse(ctx) == nil {
		c, n := m.control.inForce.Load(), streams.Nodes{Record: m.watch.Record}
		if c.cfg.Failover == FailoverAutomatic {
			n.Peers = m.watch.Peers()
			n.Me = voters.PeerOf(n.Peers, int32(c.cfg.NodeID))
		}
		m.duties.streams.Try(ctx, n, c.loginAsStandby, m.lookNow)
	}
}

// loginAsStandby logs in for replication as the local server would if it followed
// that node.
func (c *Cluster) loginAsStandby(ctx context.Context, r Record) error {
	conninfo, err := c.login().PrimaryConninfo(r, streams.Name)
	if err != nil {
		return err
	}
	cfg, err := c.login().Config(conninfo, "")
	if err != nil {
		return err
	}
	return streams.Login(ctx, r, cfg)
}

// noteForeigners says once that this Monitor stands aside, and when that is over.
func (m *Monitor) noteForeigners(peers []election.Peer) {
	const what = "failing over"
	if m.cluster.cfg.Failover != FailoverAutomatic || !election.Foreign(peers) {
		m.report(what, nil)
		return
	}
	err := standAside(m.watch.Foreign(peers))
	if !m.trouble.Has(what) {
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
	m.report(what, err)
}

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
