package repmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/adopt"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/observer"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/restart"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// register writes the row of the node, with the role in which its server runs. Metadata of
// repmgr 5 or of an older version of this program is upgraded first.
func (m *Monitor) register(ctx context.Context, force bool) error {
	o := RegisterOptions{Force: force, WaitStart: postgres.DefaultConnectTimeout}
	status, err := m.node.LookLocal(ctx)
	if err != nil {
		return err
	}
	if m.node.Role == RoleWitness {
		return hint(kind(ErrNotRegistered, "%s was unregistered as a witness", m.cluster.self()), "Stop this repmgrd. To bring the witness back: repmgr witness register")
	}
	recs, errRecs := m.node.Local.Records(ctx)
	if errRecs != nil && !errors.Is(errRecs, ErrNotRegistered) {
		return errRecs
	}
	if err := adopt.DaemonError(adopt.Daemons(m.cluster.surveyForeign(ctx, recs))); err != nil {
		return err
	}
	self, _ := registry.ByID(recs, m.cluster.cfg.NodeID)
	switch old := m.node.Local.Level == registry.OnlyRepmgr5 || m.node.Local.Level == registry.OtherVersion; {
	case old && (status.InRecovery || self.Role == RoleWitness):
		return m.node.Local.NeedSchema(ctx) // only the primary can upgrade it
	case old:
		if err = m.cluster.refuseSecondPrimary(ctx, recs); err == nil {
			_, err = m.node.Local.CreateSchema(ctx, Schema)
		}
	case status.InRecovery:
		_, err = m.cluster.RegisterStandby(ctx, o)
	case len(status.Senders) == 0:
		return hint(kind(ErrNotRegistered, "%s is not registered, and nothing streams from it: it may be meant for a primary or for a witness", m.cluster.self()),
			"Run on it: repmgr primary register. Or, for a witness: repmgr witness register -h PRIMARY")
	default: // a server that sends WAL is not a witness
		_, err = m.cluster.RegisterPrimary(ctx, o)
	}
	if err == nil {
		m.lookNow()
	}
	return err
}

// writeSample records the standby's state on the primary.
func (m *Monitor) writeSample(ctx context.Context) error {
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	lag, s := m.node.Lag(), m.node.Status
	return m.node.Primary.WriteSample(ctx, registry.Sample{
		Standby: m.node.Self.ID, Primary: m.node.PrimaryRecord.ID, PrimaryLSN: m.node.PrimaryLSN, ReceivedLSN: s.ReceivedLSN,
		ReplayedAt: s.ReplayedAt, InStep: s.ReplayedLSN >= m.node.PrimaryLSN, StaleAfter: 3*m.cluster.cfg.MonitorInterval + time.Second,
		ReceivedLag: lag.ReceivedBytes, AppliedLag: lag.AppliedBytes,
	}, m.cluster.cfg.MonitoringHistory)
}

// markActive stores in the node's row whether its server is running.
func (m *Monitor) markActive(ctx context.Context, active bool) error {
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	if m.node.Primary == nil {
		return nil // no primary is known; it is asked for again when there is one
	}
	return m.node.Primary.MarkActive(ctx, m.cluster.cfg.NodeID, active)
}

// tellHappening sends the event of a change that was observed, with a text for people.
func (m *Monitor) tellHappening(a election.Action) {
	child, _ := registry.ByID(m.node.Records, NodeID(a.Child))
	m.tell(report.Happening(a.Event, m.cluster.self(), m.node.PrimaryRecord, child))
}

// catchUpPause stores on the local server a pause or unpause that was set on the other nodes
// while this server was down.
func (m *Monitor) catchUpPause(ctx context.Context, o election.Observation) error {
	me, word := voters.PeerOf(o.Peers, o.Self), election.LastPause(o.Peers)
	if !o.Local.Up || m.node.Local == nil || me.Answer != election.Answers || me.PauseSeq >= word {
		return nil
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	by := election.PausedBy(o.Peers)
	by.Seq = word
	return m.node.Local.SetPaused(ctx, NodeID(o.Self), election.Paused(o.Peers), by)
}

// checkPauseHolds reports an error where failover is paused on too few nodes, so that the
// others could still elect a primary. The local primary then still needs its lease.
func (m *Monitor) checkPauseHolds(o election.Observation) error {
	me := voters.PeerOf(o.Peers, o.Self)
	if m.cluster.cfg.Failover != FailoverAutomatic || !m.guard.IsPrimary() || !me.Rule.Known() || !election.Paused(o.Peers) || me.Rule.PausePreventsElection(o.Self, o.Peers) {
		return nil
	}
	return hint(kind(ErrPaused, "failover is paused, but not on so many nodes that the others could elect nobody: %s keeps its lease, and is stopped where it has no contact to a majority", m.cluster.self()),
		"Run repmgr service pause where all nodes can be reached, or repmgr service unpause.")
}

// reportRejected names the nodes that reject the login of this daemon. What is known of them
// may be out of date.
func (m *Monitor) reportRejected(peers []election.Peer) {
	for _, p := range peers {
		if p.ID != election.Arbiter {
			rec := m.watch.Record(p.ID)
			m.report("the login to "+rec.Name, report.Rejection(p, rec, int32(m.cluster.cfg.NodeID) == p.ID && m.guard.IsPrimary()))
		}
	}
}

// checkAutomatic reports, when the daemon starts, what would keep an automatic failover from
// working, and how to repair it.
func (m *Monitor) checkAutomatic(ctx context.Context) {
	c := m.cluster
	if c.cfg.Failover != FailoverAutomatic || m.node.Local == nil {
		return
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	m.checkQuorum(ctx)
	if err := m.node.Local.FailoverPrivileges(ctx); err != nil {
		m.cluster.log.Error("failover=automatic can not work", "err", err, "hint", Hint(err))
	}
	if srv, err := c.localServer(m.guard.DataDirectory()); err != nil {
		m.cluster.log.Warn("this daemon can not rejoin its node", "err", err, "hint", Hint(err))
	} else if err := srv.MayControl(); err != nil {
		m.cluster.log.Warn("this daemon can not rejoin its node", "err", err, "hint", Hint(err))
	}
}

// warnTwoVoters warns once, whenever the number of voters becomes two: two voters can not fail
// over, because a majority needs both.
func (m *Monitor) warnTwoVoters() {
	two := ""
	if m.cluster.cfg.Failover == FailoverAutomatic && len(m.registered()) == 2 {
		two = "two voters"
	}
	if m.trouble.News("the voters", two) && two != "" {
		m.cluster.log.Warn("this cluster can not fail over by itself: of 2 votes a majority is 2",
			"hint", "Add a witness (repmgr witness register), a third node, or an etcd (etcd_endpoints). An operator can always promote.")
	}
}

// recordPromotion updates the rows of the nodes after a promotion, in case the coordinator of
// the election ended before it could.
func (m *Monitor) recordPromotion(ctx context.Context) error {
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	rules, err := m.node.Local.Rules(ctx)
	if err != nil || len(rules) == 0 {
		return err
	}
	var former int32
	if len(rules) > 1 {
		former = rules[1].Primary
	}
	return m.node.Local.InstallPrimary(ctx, int32(m.cluster.cfg.NodeID), former, nil, "local")
}

// syncWitness copies the metadata to the local witness every witness_sync_interval.
func (m *Monitor) syncWitness(ctx context.Context) error {
	now := time.Now()
	if now.Sub(m.duties.witnessSynced) < m.cluster.cfg.WitnessSyncInterval {
		return nil
	}
	m.duties.witnessSynced = now
	primary, ok := registry.ByID(m.node.Records, m.node.RulePrimary())
	if !ok {
		return nil
	}
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	n, err := m.node.Open(ctx, primary.ID, func(ctx context.Context) (*registry.Server, error) { return m.cluster.connectTo(ctx, primary) })
	if err != nil {
		return err
	}
	defer n.GiveBack()
	return registry.CopyMetadata(ctx, n.Server, m.node.Local.Server)
}

// announce publishes the state of this Monitor on its own server, where everybody can read it.
func (m *Monitor) announce(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil {
		m.presence.Close()
		return
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	s := m.Status()
	p := registry.Announcement{PID: os.Getpid(), Mode: m.cluster.cfg.Failover, Phase: string(s.Phase), Reason: s.Reason, Since: s.Since, Error: s.Error, Rejected: s.Rejected}
	p.CanFence, p.LostVote = m.guard.CanFence(), m.stateFile.Lost()
	p.NoStream, p.NotSeen = m.duties.streams.Failed(), voters.NotSeen(m.watch.Peers())
	if failing := m.cluster.cfg.RoutersFailing; failing != nil {
		p.Routers = failing()
	}
	if err := m.guard.Lacks(); err != nil {
		p.Unable = err.Error()
	}
	if s.Lease != nil {
		left := s.Lease.Seconds()
		p.LeaseLeft, p.RunsOut = &left, s.RunsOut
	}
	if ruler := voters.PeerOf(m.watch.Peers(), int32(m.node.RulePrimary())); m.manual() {
		p.SeenAt = m.node.PrimarySeen
	} else if int32(m.cluster.cfg.NodeID) != ruler.ID {
		p.SeenAt = ruler.SeenAt
		p.Guarded = ruler.ID != 0 && election.Unfenced(ruler, m.watch.Peers()) == ""
	}
	m.report("the announcement", m.presence.Announce(ctx, m.cluster.connectLocal, p))
}

// reconcileOptions are what package reconcile needs of this Monitor.
func (m *Monitor) reconcileOptions() reconcile.Options {
	c := m.cluster
	o := reconcile.Options{
		Self: c.cfg.NodeID, Candidate: c.candidate(), Quorum: c.cfg.SynchronousMode == SynchronousQuorum,
		SilenceTimeout: c.cfg.SilenceTimeout, AnnounceFor: 3*c.cfg.MonitorInterval + c.cfg.SilenceTimeout, ConnectTimeout: m.node.PeerTimeout(),
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
	return reconcile.Look{Server: m.node.Local.Server, Status: m.node.Status, Records: m.node.Records, Self: m.node.Self, Policy: m.policy(), DuplicateNames: m.duplicateNames}
}

// duplicateNames finds the nodes under whose name another server streams.
func (m *Monitor) duplicateNames(ctx context.Context) []int32 {
	m.duties.names.Look(ctx, namesakes.Daemon{Report: m.report, Tell: m.tell}, namesakes.Nodes{
		Self: m.cluster.cfg.NodeID, Quorum: m.cluster.cfg.SynchronousMode == SynchronousQuorum, Rows: m.node.Records, Status: m.node.Status, Peers: m.watch.Peers,
	})
	return m.duties.names.All()
}

// reconcilePrimary takes one step to bring the rule of the local primary, and the standbys that
// its commits wait for, in line with the standbys that are there.
func (m *Monitor) reconcilePrimary(ctx context.Context) error {
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	m.duties.leader.Options = m.reconcileOptions()
	return m.duties.leader.Step(ctx, m.reconcileLook())
}

// prepareStandby keeps the local standby ready for a promotion.
func (m *Monitor) prepareStandby(ctx context.Context) error {
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	m.duties.standby.Options = m.reconcileOptions()
	var alone time.Time
	if m.state.Health == election.HealthAlive {
		alone = m.state.DisconnectedAt
	}
	return m.duties.standby.Step(ctx, m.reconcileLook(), alone)
}

// registered are the ids of all voters that should be in the rule.
func (m *Monitor) registered() []int32 {
	return reconcile.Registered(m.node.Records, m.cluster.cfg.Arbiter != nil)
}

// giveBackArchive puts restore_command of the local standby back in force. The daemon takes it
// out of force while it runs.
func (m *Monitor) giveBackArchive(ctx context.Context) {
	if m.state.Role != election.Standby || m.cluster.cfg.NodeID == 0 {
		return
	}
	ctx, cancel := observer.Limit(context.WithoutCancel(ctx))
	defer cancel()
	n, err := m.cluster.connectLocal(ctx)
	if errors.Is(err, ErrConnect) {
		return // the server is down
	}
	if err == nil {
		var detached bool // it was fenced or has pledged itself; whoever makes it follow a primary gives the command back
		if err = n.Conn.QueryRow(ctx, `SELECT current_setting('primary_conninfo') = ''`).Scan(&detached); err == nil && !detached {
			err = ballot.EnableArchive(ctx, n.Conn)
		}
		n.Close()
	}
	if err != nil {
		m.cluster.log.Warn("restore_command is not given back", "err", err, "hint", "Where it is empty: ALTER SYSTEM RESET restore_command; SELECT pg_reload_conf();")
	}
}

// mendHistory makes files of earlier timelines that others may need, and puts wrong ones right, once on each timeline and line of its rule: see [rejoin.MendHistory].
func (m *Monitor) mendHistory() {
	s, me := m.node.Status, voters.PeerOf(m.watch.Peers(), int32(m.cluster.cfg.NodeID))
	at := fmt.Sprint(s.Timeline, s.StartedAt, me.Rule.Line.Timeline)
	if at == m.duties.historyMended || m.node.Self.Role == RoleWitness || m.guard.Elsewhere() || me.Answer != election.Answers || !me.Started.Equal(s.StartedAt) ||
		s.InRecovery && (s.Receiver == nil || me.Rule.Line.Timeline != s.Timeline || me.Rule.Line.Fingerprint == 0) {
		return // what is known of its rule may be of a time before a rejoin
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err == nil {
		err = rejoin.MendHistory(srv.Dir, s.InRecovery, s.Timeline, me.Rule.Line, m.cluster.log)
	}
	if m.report("mending the WAL of earlier timelines", err); err == nil {
		m.duties.historyMended = at
	}
}

// lostWALInterval is the time between two checks whether the WAL that a standby needs is gone.
const lostWALInterval = 2 * time.Second

// watchWAL reports once when this standby needs WAL that its upstream has removed. Only a new
// copy of the node brings it back then.
func (m *Monitor) watchWAL(ctx context.Context) {
	s := m.node.Status
	if m.node.Local == nil || m.node.Primary == nil || m.node.Role == RoleWitness || m.node.Self.ID == 0 || registry.NextLSN(s) == 0 || m.tasks.current != nil || time.Since(m.duties.walLookedFor) < lostWALInterval {
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
	var text string
	var err error
	if s.Receiver == nil || up == m.node.Primary.Server && registry.NextLSN(s) < m.node.PrimaryLSN {
		if lost := follow.FindLostWAL(ctx, up, of, s); lost != nil {
			probes := []report.Look{{Record: m.node.PrimaryRecord}}
			err = hint(kind(ErrWALGone, "%s can not go on: %s", m.node.Self, lost), "%s", report.Remedy(*lost, m.node.Self, probes))
			text = err.Error() + ". " + Hint(err)
		}
	}
	m.report("replication", err)
	if m.trouble.News("replication", text) && err != nil {
		m.tell(Event{Type: EventWALGone, Details: text})
	}
}

// outboxDaemon is what the outbox needs of this Monitor.
func (m *Monitor) outboxDaemon() outbox.Daemon {
	return outbox.Daemon{
		Node: m.cluster.cfg.NodeID, Log: m.cluster.log,
		Disk: m.ownDirectory, Primary: m.onPrimary, Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// ownDirectory is the data directory of the node. It is nil where the directory is not known or
// not on this machine, or where another Monitor acts for the node and keeps its files there.
func (m *Monitor) ownDirectory() *postmaster.Server {
	if m.cluster.cfg.NodeID == 0 || m.presence.yielding {
		return nil
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil || m.guard.Elsewhere() {
		return nil
	}
	return &srv.Server
}

// onPrimary runs do on the primary, over a connection that is open already. known is false
// where there is no such connection.
func (m *Monitor) onPrimary(ctx context.Context, do func(context.Context, *registry.Server) error) (known bool, err error) {
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	self, ruler := m.cluster.cfg.NodeID, m.node.RulePrimary()
	if m.node.Primary != nil {
		return true, do(ctx, m.node.Primary.Server)
	}
	if ruler == 0 || ruler == self {
		if m.state.Role != election.Primary || m.node.Local == nil {
			return false, nil
		}
		return true, do(ctx, m.node.Local.Server)
	}
	// A witness or an observer has no connection of its own to the primary, and borrows one from
	// the watch of the voters.
	if p := voters.PeerOf(m.watch.Peers(), int32(ruler)); p.Answer != election.Answers || p.Running != election.Primary {
		return false, nil
	}
	return true, m.watch.Voter(int32(ruler)).Run(ctx, func(n *registry.Server) error { return do(ctx, n) })
}

// keeperDaemon is what package statefile needs of this Monitor.
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
		Elsewhere: m.guard.Elsewhere, Here: func() bool { can := m.guard.CanFence(); return can != nil && *can },
		Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// saveState writes to the state file what must be known of the cluster while the local server
// is down.
func (m *Monitor) saveState(o election.Observation) {
	if len(m.node.Records) == 0 || !o.Local.Up || o.Self == 0 || m.presence.yielding {
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
	if ruler := m.node.RulePrimary(); ruler != m.cluster.cfg.NodeID && m.watch.Voter(int32(ruler)) != nil {
		now.Guard = voters.GuardedOf(voters.PeerOf(m.watch.Peers(), int32(ruler)))
	}
	m.stateFile.Keep(m.keeperDaemon(), now)
}

// resume completes a restart of the server that this daemon's predecessor has begun, or brings it back with a vote after a handover.
func (m *Monitor) resume(ctx context.Context, o election.Observation) {
	if o.Local.Up || o.Self == 0 || m.tasks.current != nil || m.manual() || m.presence.yielding || election.Paused(o.Peers) {
		return
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil {
		return
	}
	if _, begun := restart.LeftBehind(&srv.Server, o.Now); begun {
		m.cluster.log.Log(ctx, LevelNotice, "a restart was not completed: the server is started")
		m.startTask(ctx, election.Action{Verb: election.RestartServer})
		return
	}
	resumed, err := switchover.Resume(ctx, &srv.Server, voters.NewestRule(o.Peers).Term)
	if resumed && err == nil {
		m.cluster.log.Log(ctx, LevelNotice, "a switchover was not completed: the server is started as a standby")
	}
	m.report("resuming a switchover", err)
}

// dropRequests removes from the local server the notice of a handover that is over, because the primary could
// not take it back here, and a request for a restart that is over: whoever starts anew would take them for new.
func (m *Monitor) dropRequests(ctx context.Context, o election.Observation) {
	me := voters.PeerOf(o.Peers, o.Self)
	if m.node.Local == nil || m.presence.yielding {
		return
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	notice := o.Rule.Primary != o.Self && m.state.HandoverOver && me.Handover.ID == m.state.Handover.ID
	missed := o.Rule.Primary == o.Self && me.Handover.Hold == 0 && !me.Handover.Begun && m.tasks.current == nil && o.Now.After(me.Handover.Until)
	if me.Handover.ID != "" && (notice || missed) {
		m.report("removing a switchover that is over", m.node.Local.DropHandover(ctx, me.Handover.ID))
	}
	if m.tasks.current == nil && me.Restart.ID != "" && (!me.Restarting(o.Now, o.Rule) || me.Restart.ID == m.state.RestartBegun) {
		m.report("removing a request for a restart", m.node.Local.DropRestart(ctx, me.Restart.ID))
	}
}

// saveVote stores a second copy of the node's vote in the state file, and writes the vote back
// to a server that has lost it.
func (m *Monitor) saveVote(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil || m.presence.yielding {
		return
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	m.stateFile.KeepVote(ctx, m.keeperDaemon(), m.node.Local.Server, m.node.Status)
}

// tryStreams tests, until ctx ends, whether the local server could stream from each node that
// may be promoted.
func (m *Monitor) tryStreams(ctx context.Context) {
	for {
		c, n := m.control.inForce.Load(), streams.Nodes{Record: m.watch.Record}
		if m.watch.Rest(ctx, c.cfg.MonitorInterval, nil) != nil {
			return
		}
		if c.cfg.Failover == FailoverAutomatic {
			n.Peers = m.watch.Peers()
			n.Me = voters.PeerOf(n.Peers, int32(c.cfg.NodeID))
		}
		m.duties.streams.Try(ctx, n, c.loginAsStandby, m.lookNow)
	}
}

// loginAsStandby makes the replication login that the local server would make if it followed
// node r.
func (c *Cluster) loginAsStandby(ctx context.Context, r Record) error {
	conninfo, err := c.login().PrimaryConninfo(r, streams.Name)
	if err != nil {
		return err
	}
	cfg, err := c.login().Config(conninfo+" dbname=replication", "") // by which a WAL receiver looks its password up
	if err != nil {
		return err
	}
	return streams.Login(ctx, r, cfg)
}

// reportForeignDaemons reports once that a daemon of repmgr 5 runs in the cluster, so that this
// Monitor does not act, and once when that is over.
func (m *Monitor) reportForeignDaemons(peers []election.Peer) {
	const what = "failing over"
	if m.cluster.cfg.Failover != FailoverAutomatic || !election.Foreign(peers) {
		m.report(what, nil)
		return
	}
	err := adopt.DaemonError(m.watch.Foreign(peers))
	if !m.trouble.Has(what) {
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
	m.report(what, err)
}

// checkQuorum reports, when the daemon starts, what weakens synchronous_mode=quorum on this
// server.
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

// testFence tests, without stopping anything, whether this Monitor could stop the local server,
// and reports when the result has changed.
func (m *Monitor) testFence(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil || m.guard.DataDirectory() == "" && m.cluster.cfg.DataDirectory == "" {
		return
	}
	ctx, cancel := observer.Limit(ctx)
	defer cancel()
	tried, err := m.guard.Prove(ctx, m.node.Local.Server)
	if !tried || m.manual() || m.node.Self.Role == RoleWitness { // here no other node relies on this ability
		return
	}
	const what = "fencing"
	was := m.trouble.Has(what)
	m.report(what, err)
	if was == (err != nil) {
		return
	}
	e := Event{Type: EventFenceAbility, Success: err == nil, Details: "this daemon can stop its server"}
	if err != nil {
		e.Details = fmt.Sprintf("this daemon can not stop its server: %v", err)
	}
	m.tell(e)
}

// tellBackground reports what the background goroutines have to say.
func (m *Monitor) tellBackground() {
	for _, e := range m.outbox.Due() {
		m.tell(e)
	}
	heartbeat, device := m.guard.Trouble()
	m.tellHeartbeat(heartbeat, m.guard.IsPrimary())
	m.report("the watchdog device", device)
}

func (m *Monitor) tellHeartbeat(trouble string, inOffice bool) {
	var err error
	if trouble != "" {
		err = errors.New(trouble)
	}
	if err == nil && !inOffice { // only a primary writes a heartbeat
		m.trouble.Moot("the heartbeat")
	} else {
		m.report("the heartbeat", err)
	}
}
