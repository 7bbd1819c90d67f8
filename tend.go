package repmgr

import (
	"context"
	"errors"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// reconcileOptions are what keeps the rule and the settings of the local server in step.
func (m *Monitor) reconcileOptions() reconcile.Options {
	c := m.cluster
	o := reconcile.Options{
		Self: c.cfg.NodeID, Candidate: c.candidate(), Quorum: c.cfg.SynchronousMode == SynchronousQuorum,
		SilenceTimeout: c.cfg.SilenceTimeout, AnnounceFor: 3*c.cfg.MonitorInterval + c.cfg.SilenceTimeout, Patience: m.node.PeerPatience(),
		Watch: m.watch, Sync: c.syncWriter(m.watch), Log: m.cluster.log, Connect: c.connectLocal, ConnectTo: c.connectTo,
		Report: m.report, Wake: m.lookNow, Before: m.guard.NoteBefore,
		Unproven: func(err error) { m.tell(Event{Type: EventSyncUnproven, Details: err.Error()}) },
	}
	if c.cfg.Arbiter != nil {
		o.Arbiter = c.cfg.Arbiter
	}
	return o
}

func (m *Monitor) reconcileLook() reconcile.Look {
	return reconcile.Look{Server: m.node.Local.Server, Status: m.node.Status, Records: m.node.Records, Self: m.node.Self, Policy: m.policy(), Doubled: m.doubled}
}

// doubled finds the nodes under whose name another server streams.
func (m *Monitor) doubled(ctx context.Context) []int32 {
	m.duties.names.Look(ctx, namesakes.Daemon{Report: m.report, Tell: m.tell}, namesakes.Nodes{
		Self: m.cluster.cfg.NodeID, Quorum: m.cluster.cfg.SynchronousMode == SynchronousQuorum, Rows: m.node.Records, Status: m.node.Status, Peers: m.watch.Peers,
	})
	return m.duties.names.All()
}

// tend keeps the rule of the local primary, and whom its commits wait for, in step.
func (m *Monitor) tend(ctx context.Context) error {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.duties.leader.Options = m.reconcileOptions()
	return m.duties.leader.Step(ctx, m.reconcileLook())
}

// tendStandby keeps the local standby ready for its promotion.
func (m *Monitor) tendStandby(ctx context.Context) error {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.duties.standby.Options = m.reconcileOptions()
	var alone time.Time
	if m.state.Health == election.HealthAlive {
		alone = m.state.DisconnectedAt
	}
	return m.duties.standby.Step(ctx, m.reconcileLook(), alone)
}

// registered are the voters that should be.
func (m *Monitor) registered() []int32 {
	return reconcile.Registered(m.node.Records, m.cluster.cfg.Arbiter != nil)
}

// giveArchive leaves the local standby with its archive.
func (m *Monitor) giveArchive(ctx context.Context) {
	if m.state.Role != election.Standby || m.cluster.cfg.NodeID == 0 {
		return
	}
	ctx, cancel := m.lookLimit(context.WithoutCancel(ctx))
	defer cancel()
	n, err := m.cluster.connectLocal(ctx)
	if errors.Is(err, ErrConnect) {
		return // there is no server to give it to
	}
	if err == nil {
		var detached bool // then it was fenced or has voted, and whoever points it to a primary gives it back
		if err = n.Conn.QueryRow(ctx, `SELECT current_setting('primary_conninfo') = ''`).Scan(&detached); err == nil && !detached {
			err = ballot.GiveArchive(ctx, n.Conn)
		}
		n.Close()
	}
	if err != nil {
		m.cluster.log.Warn("restore_command is not given back", "err", err, "hint", "Where it is empty: ALTER SYSTEM RESET restore_command; SELECT pg_reload_conf();")
	}
}

// pulse lets a pulse pass; with failover=manual nothing is that urgent.
func (m *Monitor) pulse(ctx context.Context) error {
	c := m.control.inForce.Load()
	if c.cfg.Failover != FailoverAutomatic {
		return wait.Pause(ctx, c.cfg.MonitorInterval)
	}
	return m.watch.Rest(ctx, c.pulse()-voters.SinceTick(c.pulse()), nil)
}

// mendHistory makes, after each promotion, what standbys need of earlier timelines: see [rejoin.MendHistory].
func (m *Monitor) mendHistory() {
	s := m.node.Status
	if s.InRecovery || s.Timeline == m.duties.mended || m.node.Self.Role == RoleWitness || m.guard.Elsewhere() {
		return
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	var mended []string
	if err == nil {
		mended, err = rejoin.MendHistory(srv.Dir, s.Timeline)
	}
	if len(mended) > 0 {
		m.cluster.log.Info("WAL segments of earlier timelines were made anew, for standbys that have not been there yet", "segments", mended)
	}
	if m.report("mending the WAL of earlier timelines", err); err == nil {
		m.duties.mended = s.Timeline
	}
}

// goneEvery is how often a monitor asks again whether the WAL is gone.
const goneEvery = 2 * time.Second

// watchWAL tells once when this standby needs WAL that its upstream does not have
// any more: nothing else will bring it back than a new copy.
func (m *Monitor) watchWAL(ctx context.Context) {
	s := m.node.Status
	if m.node.Local == nil || m.node.Primary == nil || m.node.Role == RoleWitness || m.node.Self.ID == 0 || registry.NextLSN(s) == 0 || m.tasks.current != nil || time.Since(m.duties.walLookedFor) < goneEvery {
		return
	}
	m.duties.walLookedFor = time.Now()
	up, of := m.node.Primary.Server, m.node.PrimaryRecord
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	if r, ok := registry.ByID(m.node.Records, m.node.Self.UpstreamID); ok && r.ID != of.ID && s.Receiver == nil {
		if n, err := m.cluster.connectTo(ctx, r); err == nil {
			defer n.Close()
			up, of = n, r
		}
	}
	var err error
	if s.Receiver == nil || up == m.node.Primary.Server && registry.NextLSN(s) < m.node.PrimaryLSN {
		if lost := follow.FindLostWAL(ctx, up, of, s); lost != nil {
			probes := []probe{{record: m.node.PrimaryRecord, status: NodeStatus{}}}
			err = hint(kind(ErrWALGone, "%s can not go on: %s", m.node.Self, lost), "%s", remedy(*lost, m.node.Self, probes))
		}
	}
	m.report("replication", err)
	if m.trouble.News("replication", errText(err)) && err != nil {
		m.tell(Event{Type: EventWALGone, Details: err.Error() + ". " + Hint(err)})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
