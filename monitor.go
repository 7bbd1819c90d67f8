package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/fence"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/observer"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

const (
	registerEvery = 10 * time.Second // between two attempts of a monitor to register its node
	pruneEvery    = time.Hour        // between two looks for history that is too old
	pruneFor      = 2 * time.Second  // for one of them: what is left waits for the next
	stopLimit     = 5 * time.Second  // for the last event of a monitor that was told to stop
)

// Monitor watches the node of its configuration, for as long as [Monitor.Run]
// runs. It registers the node if it is not, records how far behind a standby
// is, and tells the notifiers what happens. It lives through restarts of every
// server, its own node's too, and may be started before any of them.
//
// A Monitor is safe for concurrent use. Run must be called only once.
type Monitor struct {
	control control // what other goroutines may ask for and be told
	outbox  *outbox.Outbox
	watch   *voters.Watch // of all voters; made by Run
	guard   *fence.Guard  // of the local server

	// Below: owned by the goroutine of Run.
	cluster *Cluster
	seat    seat
	node    observer.Node
	state   state
	tasks   tasks
	duties  duties
	kept    statefile.Keeper
	trouble trouble.Log
}

// control is what the goroutine of Run and the others tell each other.
type control struct {
	wake chan struct{} // capacity 1: a token that says "look again now"

	mu      sync.Mutex
	cfg     Config  // the one in force
	next    *Config // to be taken over
	status  MonitorStatus
	inForce atomic.Pointer[Cluster] // for the goroutines beside Run
}

// seat is the place of the node's Monitor: one acts for it, however many run.
type seat struct {
	registry.Announcement
	yielding bool // another one has it
}

// state is what was decided last.
type state struct {
	election.State
	saidReasons []election.Reason // what was logged since the phase changed
}

// duties keep the cluster ready, in every turn.
type duties struct {
	leader  reconcile.Leader
	standby reconcile.Standby
	names   namesakes.Finder
	streams streams.Trials // made by a goroutine beside Run

	mended        wal.Timeline // whose past the local server can send
	witnessSynced time.Time    // when its copy was last brought in step
	walLookedFor  time.Time    // when WAL that this standby needs was last asked for
}

// MonitorStatus is a snapshot of what a Monitor does and why.
type MonitorStatus struct {
	NodeID   NodeID         `json:"node_id"`
	Node     string         `json:"node_name"`
	Phase    election.Phase `json:"phase"`
	Reason   string         `json:"reason"`
	Since    time.Time      `json:"since,omitzero"` // of the reason
	LookedAt time.Time      `json:"looked_at,omitzero"`
	Primary  string         `json:"primary,omitempty"`    // as a standby's monitor knows it
	Lag      *Lag           `json:"lag,omitempty"`        // of a standby: the newest sample
	Error    string         `json:"last_error,omitempty"` // why the last look or act was not complete

	Health  election.Health `json:"primary_health,omitempty"` // the verdict on the primary, with failover=automatic
	Rule    election.Rule   `json:"rule,omitzero"`            // the newest; left out: none is known
	Lease   *time.Duration  `json:"lease_left_ns"`            // until this primary would fence itself; nil: it needs no lease, or its Monitor can not stop it
	RunsOut bool            `json:"lease_runs_out,omitempty"` // no majority has answered for half of silence_timeout: nothing renews the lease
	Doing   string          `json:"doing,omitempty"`          // the long action under way
}

// Lag is how far a standby is behind its primary.
type Lag struct {
	ReceivedBytes int64 `json:"replication_lag_bytes"` // WAL that the primary has and the standby has not received
	AppliedBytes  int64 `json:"apply_lag_bytes"`       // WAL that the standby has received and not applied
}

// lagOf is how far a standby is behind. The primary was read first: a standby that has what
// the primary had a moment ago is in step.
func lagOf(n *observer.Node) Lag {
	return Lag{
		ReceivedBytes: max(0, n.PrimaryLSN.Bytes(n.Status.ReceivedLSN)),
		AppliedBytes:  max(0, n.Status.ReceivedLSN.Bytes(n.Status.ReplayedLSN)),
	}
}

// NewMonitor checks the configuration. It connects to nothing; [Monitor.Run] does.
//
// Without a NodeID, and with Failover automatic, the Monitor has no node of its
// own: it watches the cluster that Conninfo leads to and holds elections when it
// is the last one left to do so. It may run on any machine that reaches the nodes.
func NewMonitor(cfg Config) (*Monitor, error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.Validate(), cfg.requireMonitor()); err != nil {
		return nil, err
	}
	m := &Monitor{control: control{cfg: cfg, wake: make(chan struct{}, 1)}, outbox: outbox.New(), tasks: tasks{failed: map[election.Verb]error{}}}
	m.guard = fence.New(m.tellLater, m.lookNow)
	m.seat.Node = cfg.NodeID
	m.control.status = MonitorStatus{NodeID: cfg.NodeID, Node: cfg.NodeName, Reason: "not started"}
	return m, nil
}

// Status returns what the monitor does at this moment.
func (m *Monitor) Status() MonitorStatus {
	m.control.mu.Lock()
	defer m.control.mu.Unlock()
	return m.control.status
}

// Reload takes over the settings of cfg that may change while the monitor runs,
// and looks again at once. It returns the keys that changed but need a restart.
// Where cfg is not valid, the error says why and the old settings stay.
func (m *Monitor) Reload(cfg Config) (needRestart []string, err error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.Validate(), cfg.requireMonitor()); err != nil {
		return nil, err
	}
	m.control.mu.Lock()
	_, needRestart = m.control.cfg.ChangedKeys(cfg)
	merged := m.control.cfg.Reload(cfg)
	m.control.next = &merged
	m.control.mu.Unlock()
	m.lookNow()
	return needRestart, nil
}

func (m *Monitor) lookNow() {
	select {
	case m.control.wake <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends, and then returns nil: that is how a monitor is
// stopped. No state of any server makes it return.
func (m *Monitor) Run(ctx context.Context) error {
	m.control.mu.Lock()
	cfg := m.control.cfg
	m.control.mu.Unlock()
	m.use(cfg)
	if keys := cfg.Ineffective(); len(keys) > 0 {
		m.cluster.log.Warn("settings without effect in this version", "keys", strings.Join(keys, ", "))
	}

	if cfg.SynchronousMode == SynchronousQuorum && cfg.Failover != FailoverAutomatic {
		m.cluster.log.Warn("synchronous_mode=quorum has no effect with failover=manual: commits on this node wait for no standby", "hint", "Set failover = automatic, or synchronous_standby_names by hand.")
	}

	var wg, beside sync.WaitGroup
	ctx, stopAll := context.WithCancel(ctx)
	m.watch = m.cluster.watchVoters(context.WithoutCancel(ctx), m.lookNow)
	m.node.Watch = m.watch
	beside.Go(func() { m.guard.Run(ctx, m.watch) })
	beside.Go(func() { m.tryStreams(ctx) })
	queueCtx, stopQueue := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { m.outbox.Deliver(queueCtx, cfg.Logger, cfg.EventNotificationTimeout) })
	defer func() {
		stopAll()
		beside.Wait()
		m.endAction()
		m.shutdown(ctx)
		m.watch.Close()
		stopQueue()
		wg.Wait()
	}()

	started := false
	for {
		m.takeReload(ctx)
		m.takeOutcome()
		now := time.Now()
		o := m.observe(ctx, now)
		if ctx.Err() != nil {
			return nil // what a cancelled look did not see is no evidence
		}
		m.yield(ctx)
		m.keep(o)
		m.mendHistory()
		m.noteForeigners(o.Peers)
		d := m.policy().Step(m.state.State, o)
		m.transition(d)
		calm := m.calm(o.Rule)
		m.watch.Relax(calm, calm && m.state.Phase == election.AsStandby)
		m.forget(d)
		m.act(ctx, d.Actions)
		m.tellBeside()
		m.duties.streams.Tell(m.watch.Record, m.tell)
		if !started && m.node.Self.ID != 0 {
			m.checkAutomatic(ctx)
			m.tell(Event{Type: EventDaemonStart, Success: true, Details: fmt.Sprintf("monitoring %s, running as %s", m.node.Self, m.runsAs())})
			started = true
		}
		m.warnOfTwo()
		m.report("the flag of a pause", m.learnPause(ctx, o))
		m.report("a pause", m.halfPaused(o))
		m.reportRejected(o.Peers)
		m.watchWAL(ctx)
		m.proveFence(ctx)
		m.kept.TellPledge(m.keeperDaemon(), voters.PeerOf(m.watch.Peers(), int32(m.cluster.cfg.NodeID)))
		m.keepVote(ctx)
		m.outbox.Keep(ctx, m.outboxDaemon(), m.tasks.current.Is(election.Rejoin))
		m.publish(now)
		if m.seat.Held { // else that was tried before
			m.announce(ctx)
		}
		m.node.Rest()
		if err := m.wait(ctx, d.Again); err != nil {
			return nil
		}
	}
}

func (m *Monitor) runsAs() election.Role {
	if m.node.Self.Role == RoleWitness {
		return election.Witness
	}
	return m.state.Role
}

// wait rests until something is news. In an election of ours only its end is, for
// a pulse: what else changes is its own doing, and to look at it would slow it down.
// One that leaves an election to others looks after that now and then.
func (m *Monitor) wait(ctx context.Context, d time.Duration) error {
	pulse := m.cluster.pulse()
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
			if rest := pulse/8 - time.Since(begun); rest > 0 && m.aside() {
				t.Reset(min(rest, d-time.Since(begun)))
				continue
			}
		case <-t.C:
		}
		return nil
	}
}

// aside reports whether it leaves an election to others for now.
func (m *Monitor) aside() bool {
	return m.state.Reason == election.NotMyTurn || m.state.Reason == election.OthersElect
}

// electing reports whether an election of ours is under way.
func (m *Monitor) electing() bool {
	return m.tasks.current.Is(election.Elect, election.Reaffirm)
}

// yield leaves the node to another Monitor that has announced itself there, or
// takes it over when that has ended: until then this one goes on as with
// failover=manual. It is asked before anything is changed.
func (m *Monitor) yield(ctx context.Context) {
	if m.seat.Overdue() { // it hung: another one may have taken its place
		m.announce(ctx)
	}
	if !m.seat.Held {
		m.announce(ctx)
	}
	now := m.seat.Yields()
	if now == m.seat.yielding {
		return
	}
	if now {
		m.endAction()
	} else {
		m.kept.Forget() // the other one has kept the vote meanwhile
	}
	m.seat.yielding = now
	m.control.mu.Lock()
	cfg := m.control.cfg
	m.control.mu.Unlock()
	m.use(cfg)
	m.watch.Use(m.cluster.watchSettings())
	e := Event{Type: EventDaemonYield, Success: !now, Details: "no other repmgrd watches this node any more: this one acts again"}
	if now {
		e.Details = "another repmgrd watches this node: this one changes nothing until that one has ended"
	}
	m.tell(e)
}

// use puts a configuration in force.
func (m *Monitor) use(cfg Config) {
	if m.seat.yielding {
		cfg.Failover = FailoverManual
	}
	m.cluster.log = cfg.Logger
	m.trouble.Logger, m.trouble.Hint = cfg.Logger, Hint
	targets := []outbox.Notify{LogNotifier{cfg.Logger}.Notify}
	for _, n := range cfg.allNotifiers() {
		targets = append(targets, n.Notify)
	}
	queued := NotifierFunc(func(_ context.Context, e Event) error {
		m.outbox.Add(e, targets)
		return nil
	})
	m.cluster = &Cluster{cfg: cfg, log: cfg.Logger, notifiers: []Notifier{queued}}
	m.control.inForce.Store(m.cluster)
	m.guard.Use(m.cluster.fencing())
	m.node.Options = m.observerOptions()
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
	m.use(*next)
	if next.Failover != FailoverAutomatic && !m.seat.yielding {
		m.giveArchive(ctx)
	}
	m.watch.Use(m.cluster.watchSettings())
	m.node.Close()
	m.tell(Event{Type: EventDaemonReload, Success: true, Details: "configuration reloaded"})
}

func (m *Monitor) policy() election.Policy {
	p := m.cluster.policy()
	if m.cluster.cfg.MonitoringHistoryRetention > 0 || m.cluster.cfg.EventsRetention > 0 {
		p.PruneEvery = pruneEvery
	}
	return p
}

// calm reports whether there are no signs of an election.
func (m *Monitor) calm(r election.Rule) bool {
	return m.manual() || m.state.Health == election.HealthAlive && m.state.BallotFor <= r.Term
}

// transition takes the decision's state over, and logs a change of mind once.
func (m *Monitor) transition(d election.Decision) {
	from := m.state.State
	m.state.State = d.Next
	if from.Phase != d.Next.Phase {
		m.state.saidReasons = nil
	}
	// An election that is refused is tried again and again, for the same reasons in turn.
	if (from.Phase != d.Next.Phase || from.Reason != d.Next.Reason) && !slices.Contains(m.state.saidReasons, d.Reason) {
		m.state.saidReasons = append(m.state.saidReasons, d.Reason)
		m.cluster.log.Log(context.Background(), slog.LevelInfo, "phase changed", "from", cmp.Or(string(from.Phase), "start"), "to", string(d.Next.Phase), "reason", string(d.Reason))
	}
}

func (m *Monitor) publish(now time.Time) {
	m.control.mu.Lock()
	defer m.control.mu.Unlock()
	s := MonitorStatus{NodeID: m.control.cfg.NodeID, Node: m.control.cfg.NodeName, Phase: m.state.Phase, Reason: string(m.state.Reason), Since: m.state.Since, LookedAt: now}
	if m.state.Phase == election.AsStandby {
		lag := lagOf(&m.node)
		s.Lag, s.Primary = &lag, m.node.PrimaryRecord.String()
	}
	s.Health, s.Rule = m.state.Health, voters.NewestRule(m.watch.Peers())
	if s.Rule.Compare(m.node.Rule) < 0 {
		s.Rule = m.node.Rule
	}
	if m.guard.Lacks() == nil { // it would stop nothing
		s.Lease, s.RunsOut = m.guard.Lease()
	}
	if m.tasks.current != nil {
		s.Doing = string(m.tasks.current.Verb)
	}
	s.Error = m.trouble.Last()
	m.control.status = s
}

// report logs a failure when it is new, and forgets it when it is over.
func (m *Monitor) report(what string, err error) { m.trouble.Report(what, err) }

// forget drops the troubles that nothing tries again, because what they stood in
// the way of is done, or is not asked for any more.
func (m *Monitor) forget(d election.Decision) {
	phase := d.Next.Phase
	primary := phase == election.AsPrimary || phase == election.AsWitness
	settled := m.tasks.current == nil && d.Next.DisconnectedAt.IsZero() && (primary || phase == election.AsStandby)
	asked := func(v string) bool {
		return slices.ContainsFunc(d.Actions, func(a election.Action) bool { return string(a.Verb) == v })
	}
	if m.state.LostAt.IsZero() {
		m.trouble.News(string(election.Elect), "")
		m.trouble.Moot(string(election.Elect)) // whatever stood against a failover is over
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

// act does what was decided. A failure is reported, and decides nothing: the
// next look will see the same and ask again.
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
			err = m.node.Local.Prune(ctx, m.cluster.cfg.MonitoringHistoryRetention, m.cluster.cfg.EventsRetention, time.Now().Add(pruneFor))
		case election.MarkActive:
			err = m.markActive(ctx, true)
		case election.MarkInactive:
			err = m.markActive(ctx, false)
		case election.Notify:
			m.tellHappening(a)
		case election.Reconcile:
			err = m.tend(ctx)
		case election.RecordPromotion:
			err = m.takeOffice(ctx)
		case election.PrepareStandby:
			err = m.tendStandby(ctx)
			m.hookFollow(ctx)
		case election.CopyToWitness:
			err = m.syncWitness(ctx)
		case election.Interrupt:
			m.tasks.current.GiveWay()
			continue
		case election.Fence, election.Elect, election.Reaffirm, election.Follow, election.Rejoin:
			m.begin(ctx, a)
			continue
		}
		if a.Verb != election.Notify {
			m.report(string(a.Verb), err)
		}
	}
}

// register writes the row of the node, as what it runs as. What repmgr 5 or an
// older version of this program has made is brought up to date first.
func (m *Monitor) register(ctx context.Context, force bool) error {
	o := RegisterOptions{Force: force, WaitStart: postgres.DefaultConnectTimeout}
	status, _, err := m.node.LookLocal(ctx)
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
	if err := standAside(foreigners(m.cluster.survey(ctx, recs))); err != nil {
		return err
	}
	switch old := m.node.Local.Level == registry.Bare || m.node.Local.Level == registry.OtherVersion; {
	case old && status.InRecovery:
		return m.node.Local.NeedSchema(ctx) // the primary's to do
	case old:
		if err = m.cluster.refuseSecondPrimary(ctx, recs); err == nil {
			_, err = m.node.Local.CreateSchema(ctx, Schema)
		}
	case status.InRecovery:
		_, err = m.cluster.RegisterStandby(ctx, o)
	case len(status.Senders) == 0:
		return hint(kind(ErrNotRegistered, "%s is not registered, and nothing streams from it: it may be meant for a primary or for a witness", m.cluster.self()),
			"Run on it: repmgr primary register. Or, for a witness: repmgr witness register -h PRIMARY")
	default: // what sends WAL is no witness
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
	lag, s := lagOf(&m.node), m.node.Status
	return m.node.Primary.WriteSample(ctx, registry.Sample{
		Standby: m.node.Self.ID, Primary: m.node.PrimaryRecord.ID, PrimaryLSN: m.node.PrimaryLSN, ReceivedLSN: s.ReceivedLSN,
		ReplayedAt: s.ReplayedAt, InStep: s.ReplayedLSN >= m.node.PrimaryLSN, StaleAfter: 3*m.cluster.cfg.MonitorInterval + time.Second,
		ReceivedLag: lag.ReceivedBytes, AppliedLag: lag.AppliedBytes,
	}, m.cluster.cfg.MonitoringHistory)
}

// markActive says in the node's row whether its server runs.
func (m *Monitor) markActive(ctx context.Context, active bool) error {
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	if m.node.Primary == nil {
		return nil // nobody to tell; it is asked for again when there is
	}
	return m.node.Primary.MarkActive(ctx, m.cluster.cfg.NodeID, active)
}

// tellHappening fills in what an event's name alone does not say.
func (m *Monitor) tellHappening(a election.Action) {
	e := Event{Type: EventType(a.Event), Success: true}
	self := m.cluster.self()
	switch a.Event {
	case election.LocalDisconnect, election.StandbyFailure:
		e.Success, e.Details = false, fmt.Sprintf("the server of %s does not answer", self)
	case election.LocalReconnect, election.StandbyRecovery:
		e.Details = fmt.Sprintf("the server of %s answers again", self)
	case election.UpstreamDisconnect:
		e.Success, e.Details = false, fmt.Sprintf("the primary, %s, is not reachable from %s", m.node.PrimaryRecord, self)
	case election.UpstreamReconnect:
		e.Details = fmt.Sprintf("%s is reachable from %s", m.node.PrimaryRecord, self)
	case election.StandbyReconnect:
		e.Details = fmt.Sprintf("%s runs as a standby of %s now", self, m.node.PrimaryRecord)
	case election.ChildConnect, election.ChildDisconnect, election.ChildReconnect:
		child, _ := registry.ByID(m.node.Records, NodeID(a.Child))
		e.Success = a.Event != election.ChildDisconnect
		e.PeerID, e.Peer = child.ID, child.Name
		e.Details = map[election.Event]string{
			election.ChildConnect:    "%s has attached",
			election.ChildReconnect:  "%s has attached again",
			election.ChildDisconnect: "%s is not attached any more",
		}[a.Event]
		e.Details = fmt.Sprintf(e.Details, child)
	}
	m.tell(e)
}

// tell writes an event on whichever primary is at hand, and hands it to the notifiers.
func (m *Monitor) tell(e Event) {
	e.NodeID, e.Node = m.cluster.cfg.NodeID, m.cluster.cfg.NodeName
	var on *registry.Server
	switch {
	case m.node.Primary != nil:
		on = m.node.Primary.Server
	case m.node.Local != nil && m.state.Role == election.Primary:
		on = m.node.Local.Server
	}
	m.cluster.emit(context.Background(), on, e)
}

// reachAgain opens the connection that the last event is written over, where the
// end of ctx has broken it in the middle of a look.
func (m *Monitor) reachAgain(ctx context.Context) {
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

// shutdown leaves word, and closes what Run opened.
func (m *Monitor) shutdown(ctx context.Context) {
	if m.node.Self.ID != 0 {
		m.reachAgain(ctx)
		m.tell(Event{Type: EventDaemonShutdown, Success: true, Details: fmt.Sprint(context.Cause(ctx))})
	}
	if !m.seat.yielding {
		m.giveArchive(ctx)
	}
	m.outbox.Leave(m.outboxDaemon())
	m.seat.Close()
	m.node.Close()
}
