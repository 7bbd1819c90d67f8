package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/observer"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/pgcontrol"
)

// Run watches until ctx ends, and then returns nil: that is how a monitor is
// stopped. No state of any server makes it return.
func (m *Monitor) Run(ctx context.Context) error {
	m.control.mu.Lock()
	cfg := m.control.cfg
	m.control.mu.Unlock()
	m.applyConfig(cfg)
	if keys := cfg.Ineffective(); len(keys) > 0 {
		m.cluster.log.Warn("settings without effect in this version", "keys", strings.Join(keys, ", "))
	}

	if cfg.SynchronousMode == SynchronousQuorum && cfg.Failover != FailoverAutomatic {
		m.cluster.log.Warn("synchronous_mode=quorum has no effect with failover=manual: commits on this node wait for no standby", "hint", "Set failover = automatic, or synchronous_standby_names by hand.")
	}

	var wg, background sync.WaitGroup
	ctx, stopAll := context.WithCancel(ctx)
	m.watch = m.cluster.watchVoters(context.WithoutCancel(ctx), m.lookNow)
	m.node.Watch = m.watch
	m.control.watched.Store(m.watch)
	background.Go(func() { m.guard.Run(ctx, m.watch) })
	background.Go(func() { m.tryStreams(ctx) })
	queueCtx, stopQueue := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { m.outbox.Deliver(queueCtx, cfg.Logger, cfg.EventNotificationTimeout) })
	defer func() {
		stopAll()
		background.Wait()
		m.endTask()
		m.shutdown(ctx)
		m.watch.Close()
		stopQueue()
		wg.Wait()
	}()

	for {
		m.takeReload(ctx)
		m.collectOutcome()
		now := time.Now()
		o := m.observe(ctx, now)
		if ctx.Err() != nil {
			return nil // a look that was cancelled proves nothing about what it did not see
		}
		m.prepare(ctx, o)
		d := m.decide(o)
		m.act(ctx, d.Actions)
		m.keepReady(ctx, o)
		m.publish(now)
		if m.presence.Held { // otherwise yieldToOther has tried it already
			m.announce(ctx)
		}
		m.node.Rest()
		if err := m.wait(ctx, d.Again); err != nil {
			return nil
		}
	}
}

// prepare does what must be done before anything is decided: it leaves the node to another
// Monitor that acts for it, and saves what must be known should the server be down next.
func (m *Monitor) prepare(ctx context.Context, o election.Observation) {
	m.testFence(ctx) // before the first announcement: a primary whose daemon does not say that it can stop its server counts as one that nobody would stop
	m.yieldToOther(ctx)
	m.saveState(o)
	m.resume(ctx, o)
	m.mendHistory()
	m.reportForeignDaemons(o.Peers)
}

// decide asks the policy what to do, and watches the voters as closely as that needs.
func (m *Monitor) decide(o election.Observation) election.Decision {
	d := m.policy().Step(m.state.State, o)
	m.transition(d)
	calm := m.noElectionNear(o.Rule)
	m.watch.SetDetail(calm, calm && m.state.Phase == election.AsStandby)
	m.clearResolved(d)
	return d
}

// keepReady does in each turn what a failover will need, and tells of what would prevent it.
func (m *Monitor) keepReady(ctx context.Context, o election.Observation) {
	m.tellBackground()
	m.duties.streams.Tell(m.watch.Record, m.tell)
	m.tellStart(ctx)
	m.warnTwoVoters()
	m.report("the flag of a pause", m.catchUpPause(ctx, o))
	m.report("a pause", m.checkPauseHolds(o))
	m.dropRequests(ctx, o)
	m.reportRejected(o.Peers)
	m.watchWAL(ctx)
	m.stateFile.TellPledge(m.keeperDaemon(), voters.PeerOf(m.watch.Peers(), int32(m.cluster.cfg.NodeID)))
	m.saveVote(ctx)
	m.outbox.Keep(ctx, m.outboxDaemon(), m.tasks.current.Is(election.Rejoin))
}

// tellStart tells once that this Monitor has started, as soon as its node is registered.
func (m *Monitor) tellStart(ctx context.Context) {
	if m.duties.startTold || m.node.Self.ID == 0 {
		return
	}
	m.checkAutomatic(ctx)
	runs := m.state.Role
	if m.node.Self.Role == RoleWitness {
		runs = election.Witness
	}
	m.tell(Event{Type: EventDaemonStart, Success: true, Details: fmt.Sprintf("monitoring %s, running as %s", m.node.Self, runs)})
	m.duties.startTold = true
}

// wait returns after d, or earlier when something has changed. While this Monitor holds an
// election only the end of that election matters, and it waits for at most one heartbeat
// interval: other changes are made by the election itself, and looking at them would slow it
// down. A Monitor that leaves an election to others looks at it from time to time.
func (m *Monitor) wait(ctx context.Context, d time.Duration) error {
	pulse := m.cluster.heartbeatInterval()
	switch {
	case m.electing():
		d = min(d, pulse)
	case d > pulse:
		return m.watch.Rest(ctx, d-voters.SinceTick(pulse), m.control.wake)
	}
	begun := time.Now()
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.control.wake:
			if m.electing() {
				continue
			}
			if rest := pulse/8 - time.Since(begun); rest > 0 && m.leavesElectionToOthers() {
				t.Reset(min(rest, d-time.Since(begun)))
				continue
			}
		case <-t.C:
		}
		return nil
	}
}

// leavesElectionToOthers reports whether this Monitor lets other Monitors hold the election for
// now.
func (m *Monitor) leavesElectionToOthers() bool {
	return m.state.Reason == election.NotMyTurn || m.state.Reason == election.OthersElect
}

// electing reports whether this Monitor is holding an election.
func (m *Monitor) electing() bool {
	return m.tasks.current.Is(election.Elect, election.Reaffirm)
}

// yieldToOther makes sure that one Monitor acts for the node. While another Monitor has
// announced itself on the node's server, this one behaves as with failover=manual; when the
// other one has ended, it acts again. It is called before anything is changed in a turn.
func (m *Monitor) yieldToOther(ctx context.Context) {
	if m.presence.Overdue() { // this Monitor was late: another one may have announced itself meanwhile
		m.announce(ctx)
	}
	if !m.presence.Held {
		m.announce(ctx)
	}
	now := m.presence.Yields()
	if now == m.presence.yielding {
		return
	}
	if now {
		m.endTask()
	} else {
		m.stateFile.Reload() // the other Monitor has written the state file meanwhile
	}
	m.presence.yielding = now
	m.control.mu.Lock()
	cfg := m.control.cfg
	m.control.mu.Unlock()
	m.applyConfig(cfg)
	m.watch.Use(m.cluster.watchSettings())
	e := Event{Type: EventDaemonYield, Success: !now, Details: "no other repmgrd watches this node any more: this one acts again"}
	if now {
		e.Details = "another repmgrd watches this node: this one changes nothing until that one has ended"
	}
	m.tell(e)
}

func (m *Monitor) takeReload(ctx context.Context) {
	m.control.mu.Lock()
	next := m.control.next
	m.control.next = nil
	if next != nil {
		m.control.cfg = *next
	}
	m.control.mu.Unlock()
	if next == nil {
		return
	}
	m.applyConfig(*next)
	if next.Failover != FailoverAutomatic && !m.presence.yielding {
		m.giveBackArchive(ctx)
	}
	m.watch.Use(m.cluster.watchSettings())
	m.node.Close()
	m.tell(Event{Type: EventDaemonReload, Success: true, Details: "configuration reloaded"})
}

// noElectionNear reports whether nothing points to an election: the primary is alive, and no
// voter has voted for a newer term.
func (m *Monitor) noElectionNear(r election.Rule) bool {
	return m.manual() || m.state.Health == election.HealthAlive && m.state.BallotFor <= r.Term
}

// transition stores the state that was decided, and logs a new phase or reason once.
func (m *Monitor) transition(d election.Decision) {
	from := m.state.State
	m.state.State = d.Next
	if from.Phase != d.Next.Phase {
		m.state.loggedReasons = nil
	}
	// A refused election is tried again and again, for a few reasons that alternate. Each reason
	// is logged once per phase.
	if (from.Phase != d.Next.Phase || from.Reason != d.Next.Reason) && !slices.Contains(m.state.loggedReasons, d.Reason) {
		m.state.loggedReasons = append(m.state.loggedReasons, d.Reason)
		m.cluster.log.Log(context.Background(), slog.LevelInfo, "phase changed", "from", cmp.Or(string(from.Phase), "start"), "to", string(d.Next.Phase), "reason", string(d.Reason))
	}
}

func (m *Monitor) publish(now time.Time) {
	m.control.mu.Lock()
	defer m.control.mu.Unlock()
	s := MonitorStatus{NodeID: m.control.cfg.NodeID, Node: m.control.cfg.NodeName, Phase: m.state.Phase, Reason: string(m.state.Reason), Since: m.state.Since, LookedAt: now, Rejected: m.control.refused}
	if m.state.Phase == election.AsStandby {
		lag := m.node.Lag()
		s.Lag, s.Primary = &lag, m.node.PrimaryRecord.String()
	}
	peers := m.watch.Peers()
	s.Health, s.Rule = m.state.Health, voters.NewestRule(peers)
	if s.Rule.Compare(m.node.Rule) < 0 {
		s.Rule = m.node.Rule
	}
	if m.guard.Lacks() == nil { // without this ability no lease ends anything
		s.Lease, s.RunsOut = m.guard.Lease()
	}
	if m.tasks.current != nil {
		s.Doing = string(m.tasks.current.Verb)
	}
	s.Error, s.Settled = m.trouble.Last(), s.Doing == "" && switchover.Settled(int32(s.NodeID), peers, now)
	m.control.status = s
	m.control.view = View{
		LookedAt: now, Automatic: !m.manual(), Phase: s.Phase, Reason: s.Reason, Rule: s.Rule, Records: m.node.Records,
		Yields: m.presence.yielding, Local: m.node.Status, LocalAnswer: m.node.LocalAnswer, LocalSeenAt: m.node.LocalSeenAt,
		Upstream: health.Upstream{ID: m.node.PrimaryRecord.ID, SeenAt: m.node.PrimarySeen, LSN: m.node.PrimaryLSN}, WALGone: m.trouble.Has("replication"),
	}
}

// clearResolved removes the reported problems of actions that are not tried any more, because
// they are done or are not asked for now. Nothing else would report that they are over.
func (m *Monitor) clearResolved(d election.Decision) {
	phase := d.Next.Phase
	primary := phase == election.AsPrimary || phase == election.AsWitness
	settled := m.tasks.current == nil && d.Next.DisconnectedAt.IsZero() && (primary || phase == election.AsStandby)
	asked := func(v string) bool {
		return slices.ContainsFunc(d.Actions, func(a election.Action) bool { return string(a.Verb) == v })
	}
	if settled && phase == election.AsStandby && m.rejoinUnfinished() { // somebody else has pointed it to the primary
		m.tasks.failed[election.Rejoin] = m.unmarkRejoin()
	}
	if m.state.LostAt.IsZero() {
		m.trouble.News(string(election.Elect), "")
		m.trouble.Moot(string(election.Elect)) // the primary is seen again, so it does not matter why a failover failed
	}
	for _, what := range m.trouble.All() {
		over := false
		switch election.Verb(what) {
		case election.Register:
			over = phase != election.Unregistered
		case election.Adopt, election.Sample, election.MarkActive, election.MarkInactive, election.RecordPromotion, election.PrepareStandby, election.CopyToWitness:
			over = !asked(what)
		case election.Reconcile:
			over = phase != election.AsPrimary
		case election.Reaffirm, election.Follow, election.Rejoin, election.Fence:
			over = settled
		case observer.TroublePrimary, reconcile.TroubleSlot:
			over = primary
		}
		if over {
			m.trouble.Moot(what)
		}
	}
}

// act carries out what was decided. A failure is only reported: the next look sees the same
// state and asks for the same action again.
func (m *Monitor) act(ctx context.Context, actions []election.Action) {
	for _, a := range actions {
		var err error
		switch a.Verb {
		case election.Register:
			err = m.register(ctx, false)
		case election.Adopt:
			err = m.register(ctx, true)
		case election.Sample:
			err = m.writeSample(ctx)
		case election.Prune:
			err = m.node.Local.Prune(ctx, m.cluster.cfg.MonitoringHistoryRetention, m.cluster.cfg.EventsRetention, time.Now().Add(pruneLimit))
		case election.MarkActive:
			err = m.markActive(ctx, true)
		case election.MarkInactive:
			err = m.markActive(ctx, false)
		case election.Notify:
			m.tellHappening(a)
		case election.Reconcile:
			err = m.reconcilePrimary(ctx)
		case election.RecordPromotion:
			err = m.recordPromotion(ctx)
		case election.PrepareStandby:
			err = m.prepareStandby(ctx)
			m.runFollowCommand(ctx)
		case election.CopyToWitness:
			err = m.syncWitness(ctx)
		case election.Interrupt:
			m.tasks.current.GiveWay()
			continue
		case election.Fence, election.Elect, election.Reaffirm, election.Follow, election.Rejoin, election.HandOver, election.RestartServer, election.RunChildrenCommand:
			m.startTask(ctx, a)
			continue
		}
		if a.Verb != election.Notify {
			m.report(string(a.Verb), err)
		}
	}
}

// reconnectForLastEvent opens the connection over which the event of the shutdown is written.
// The end of ctx may have broken the earlier connection in the middle of a query.
func (m *Monitor) reconnectForLastEvent(ctx context.Context) {
	ctx, cancel := m.node.PeerLimit(context.WithoutCancel(ctx))
	defer cancel()
	var err error
	switch {
	case m.state.Phase == election.AsPrimary && (m.node.Local == nil || m.node.Local.Conn.IsClosed()):
		observer.Drop(&m.node.Local)
		m.node.Local, err = voters.Own(m.cluster.connectLocal(ctx))
	case m.state.Phase == election.AsStandby && (m.node.Primary == nil || m.node.Primary.Conn.IsClosed()) && m.node.PrimaryRecord.ID != 0:
		observer.Drop(&m.node.Primary)
		m.node.Primary, err = voters.Own(m.cluster.connectTo(ctx, m.node.PrimaryRecord))
	}
	if err != nil {
		m.cluster.log.Warn("the end of the daemon is written nowhere", "err", err)
	}
}

// shutdown reports the end of this Monitor, and closes what Run has opened.
func (m *Monitor) shutdown(ctx context.Context) {
	if m.node.Self.ID != 0 {
		m.reconnectForLastEvent(ctx)
		m.tell(Event{Type: EventDaemonShutdown, Success: true, Details: fmt.Sprint(context.Cause(ctx))})
	}
	if !m.presence.yielding {
		m.giveBackArchive(ctx)
	}
	m.outbox.Leave(m.outboxDaemon())
	m.presence.Close()
	m.node.Close()
}

// observe reads the state of the local node and its primary, and adds what is known of the
// voters.
func (m *Monitor) observe(ctx context.Context, now time.Time) election.Observation {
	o := election.Observation{Now: now}
	if m.cluster.cfg.NodeID == 0 {
		m.node.LookFrom(ctx)
	} else {
		m.node.Look(ctx, m.state.Phase, &o)
	}
	m.observeVoters(&o)
	return o
}

// observeVoters adds to o what the election policy needs to know of the voters and of this
// node.
func (m *Monitor) observeVoters(o *election.Observation) {
	if m.manual() {
		m.watch.SetNodes(nil) // this Monitor decides nothing, so it watches no voters
	} else {
		m.watch.SetNodes(m.node.Records)
	}
	self := int32(m.cluster.cfg.NodeID)
	o.Self, o.Observer, o.Candidate = self, self == 0, m.cluster.candidate()
	o.Peers = m.watch.Peers()
	o.Rule = voters.NewestRule(o.Peers)
	o.Planned = m.stopsServer()
	o.Busy, o.Interruptible, o.Last, o.Diverged = m.tasks.current != nil && !m.tasks.current.Is(election.RunChildrenCommand), m.tasks.current.Interruptible(), m.tasks.last, m.diverged()
	me := voters.PeerOf(o.Peers, self)
	m.guard.NotePrimary(me)
	if o.Local.Up {
		m.guard.SetDataDirectory(m.node.Status.Settings.DataDirectory)
		m.guard.VoidMark(m.node.Status.StartedAt)
	}
	if !o.Local.Up && self != 0 {
		o.WasPrimary = m.wasPrimary()
	}
}

// wasPrimary reports whether the data directory of a local server that is down belongs to a
// former primary, or to a server whose rejoin is not complete.
func (m *Monitor) wasPrimary() bool {
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil || srv.Runs() {
		return false
	}
	if rejoin.Incomplete(srv, m.cluster.cfg.NodeID) {
		return true
	}
	_, errSignal := os.Stat(filepath.Join(srv.Dir, "standby.signal"))
	_, errMark := os.Stat(filepath.Join(srv.Dir, postmaster.RejoinMark))
	if errSignal == nil && errMark != nil && !m.rejoinUnfinished() {
		return false
	}
	_, err = pgcontrol.Read(srv.Dir)
	return err == nil
}
