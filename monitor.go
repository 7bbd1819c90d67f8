package repmgr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/fence"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/internal/voters"
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
	mu     sync.Mutex
	cfg    Config // the one in force
	next   *Config
	status MonitorStatus

	wake   chan struct{}  // capacity 1: a token that says "look again now"
	outbox *outbox.Outbox // its events, for notifiers and for repmgr.events
	watch  *voters.Watch  // of all voters; made by Run
	guard  *fence.Guard   // of the local server

	streams streams.Trials          // replication logins, made by a goroutine beside Run
	inForce atomic.Pointer[Cluster] // the value of cluster, for the goroutines beside Run

	// Below: owned by the goroutine of Run.
	cluster  *Cluster
	presence registry.Announcement
	yields   bool // another Monitor acts for the node
	leader   reconcile.Leader
	standby  reconcile.Standby
	names    namesakes.Finder
	mended   wal.Timeline // whose past the local server can send
	action   *task.Task   // the long action under way; nil: none
	last     election.Outcome
	failed   map[election.Verb]error // how the newest action of each kind ended
	role     Role                    // of the newest row that the node had
	kept     statefile.Keeper        // what must be known while the server is down, and the node's vote
	synced   time.Time               // when the witness' copy was last brought in step
	goneAt   time.Time               // when WAL that this standby needs was last looked for
	hooked   int64                   // the term that follow_command was run for
	state    election.State
	local    *voters.Loan
	primary  *voters.Loan  // of a standby: the connection to its primary
	rule     election.Rule // the newest of the local server; only with failover=manual
	upstream upstream
	recs     []Record // the rows, as last read
	self     Record   // the node's row; zero: none
	sample   sample
	trouble  trouble.Log       // what does not work, and what was told of it
	said     []election.Reason // what was logged since the phase changed
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

// sample is one measurement of a standby. The primary is read first: a standby
// that has what the primary had a moment ago is in step.
type sample struct {
	primaryLSN wal.LSN
	local      NodeStatus
}

func (s sample) lag() Lag {
	return Lag{
		ReceivedBytes: max(0, s.primaryLSN.Bytes(s.local.ReceivedLSN)),
		AppliedBytes:  max(0, s.local.ReceivedLSN.Bytes(s.local.ReplayedLSN)),
	}
}

func (s sample) inStep() bool { return s.local.ReplayedLSN >= s.primaryLSN }

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
	m := &Monitor{failed: map[election.Verb]error{}, cfg: cfg, wake: make(chan struct{}, 1), outbox: outbox.New()}
	m.guard = fence.New(m.tellLater, m.lookNow)
	m.presence.Node = cfg.NodeID
	m.status = MonitorStatus{NodeID: cfg.NodeID, Node: cfg.NodeName, Reason: "not started"}
	return m, nil
}

// Status returns what the monitor does at this moment.
func (m *Monitor) Status() MonitorStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// Reload takes over the settings of cfg that may change while the monitor runs,
// and looks again at once. It returns the keys that changed but need a restart.
// Where cfg is not valid, the error says why and the old settings stay.
func (m *Monitor) Reload(cfg Config) (needRestart []string, err error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.Validate(), cfg.requireMonitor()); err != nil {
		return nil, err
	}
	m.mu.Lock()
	_, needRestart = m.cfg.ChangedKeys(cfg)
	merged := m.cfg.Reload(cfg)
	m.next = &merged
	m.mu.Unlock()
	m.lookNow()
	return needRestart, nil
}

func (m *Monitor) lookNow() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends, and then returns nil: that is how a monitor is
// stopped. No state of any server makes it return.
func (m *Monitor) Run(ctx context.Context) error {
	m.mu.Lock()
	cfg := m.cfg
	m.mu.Unlock()
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
		d := m.policy().Step(m.state, o)
		m.transition(d)
		calm := m.calm(o.Rule)
		m.watch.Relax(calm, calm && m.state.Phase == election.AsStandby)
		m.forget(d)
		m.act(ctx, d.Actions)
		m.tellBeside()
		m.streams.Tell(m.watch.Record, m.tell)
		if !started && m.self.ID != 0 {
			m.checkAutomatic(ctx)
			m.tell(Event{Type: EventDaemonStart, Success: true, Details: fmt.Sprintf("monitoring %s, running as %s", m.self, m.runsAs())})
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
		m.outbox.Keep(ctx, m.outboxDaemon(), m.action != nil && m.action.Verb == election.Rejoin)
		m.publish(now)
		if m.presence.Held { // else that was tried before
			m.announce(ctx)
		}
		m.rest()
		if err := m.wait(ctx, d.Again); err != nil {
			return nil
		}
	}
}

func (m *Monitor) runsAs() election.Role {
	if m.self.Role == RoleWitness {
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
		return m.watch.Rest(ctx, d-voters.SinceTick(pulse), m.wake)
	}
	begun := time.Now()
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.wake:
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
	return m.action.Is(election.Elect, election.Reaffirm)
}

// yield leaves the node to another Monitor that has announced itself there, or
// takes it over when that has ended: until then this one goes on as with
// failover=manual. It is asked before anything is changed.
func (m *Monitor) yield(ctx context.Context) {
	if m.presence.Overdue() { // it hung: another one may have taken its place
		m.announce(ctx)
	}
	if !m.presence.Held {
		m.announce(ctx)
	}
	now := m.presence.Yields()
	if now == m.yields {
		return
	}
	if now {
		m.endAction()
	} else {
		m.kept.Forget() // the other one has kept the vote meanwhile
	}
	m.yields = now
	m.mu.Lock()
	cfg := m.cfg
	m.mu.Unlock()
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
	if m.yields {
		cfg.Failover = FailoverManual
	}
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
	m.inForce.Store(m.cluster)
	m.guard.Use(m.cluster.fencing())
}

func (m *Monitor) takeReload(ctx context.Context) {
	m.mu.Lock()
	next := m.next
	m.next = nil
	if next != nil {
		m.cfg = *next
	}
	m.mu.Unlock()
	if next == nil {
		return
	}
	m.use(*next)
	if next.Failover != FailoverAutomatic && !m.yields {
		m.giveArchive(ctx)
	}
	m.watch.Use(m.cluster.watchSettings())
	m.drop(&m.local)
	m.drop(&m.primary)
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

// shutdown leaves word, and closes what Run opened.
func (m *Monitor) shutdown(ctx context.Context) {
	if m.self.ID != 0 {
		m.reachAgain(ctx)
		m.tell(Event{Type: EventDaemonShutdown, Success: true, Details: fmt.Sprint(context.Cause(ctx))})
	}
	if !m.yields {
		m.giveArchive(ctx)
	}
	m.outbox.Leave(m.outboxDaemon())
	m.presence.Close()
	m.drop(&m.local)
	m.drop(&m.primary)
}
