package repmgr

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/fence"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/observer"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	pruneInterval = time.Hour       // the time between two deletions of old history
	pruneLimit    = 2 * time.Second // the time limit of one deletion; the next one deletes the rest
)

// Monitor watches the node of its configuration, for as long as [Monitor.Run]
// runs. It registers the node if it is not, records how far behind a standby
// is, and tells the notifiers what happens. It lives through restarts of every
// server, its own node's too, and may be started before any of them.
//
// A Monitor is safe for concurrent use. Run must be called only once.
type Monitor struct {
	control control // what is shared with other goroutines
	outbox  *outbox.Outbox
	watch   *voters.Watch // watches all voters; Run creates it
	guard   *fence.Guard  // fences the local server

	// The fields below belong to the goroutine of Run.
	cluster   *Cluster
	presence  presence
	node      observer.Node
	state     state
	tasks     tasks
	duties    duties
	stateFile statefile.Keeper
	trouble   trouble.Log
}

// control is what the goroutine of Run shares with other goroutines.
type control struct {
	wake chan struct{} // capacity 1: a token that says "look again now"

	mu      sync.Mutex
	cfg     Config  // the configuration in force
	next    *Config // a new configuration that Run takes over in its next turn
	refused string  // why the newest configuration was not taken over; empty: it was
	status  MonitorStatus
	view    View // of the last turn, without what View adds
	watched atomic.Pointer[voters.Watch]
	inForce atomic.Pointer[Cluster] // for the goroutines beside Run
}

// presence is the announcement of this Monitor on the node's server. Several Monitors may run
// for one node; only the one that holds the announcement acts.
type presence struct {
	registry.Announcer
	yielding bool // another Monitor acts for the node, so this one only watches
}

// state is the newest decision of the election policy.
type state struct {
	election.State
	loggedReasons []election.Reason // the reasons that were logged since the phase changed
}

// duties are the tasks that keep the cluster ready for a failover. They run in every turn.
type duties struct {
	leader  reconcile.Leader
	standby reconcile.Standby
	names   namesakes.Finder
	streams streams.Trials // filled by another goroutine

	historyMended string    // the timeline and start of the server for which mendHistory is done
	witnessSynced time.Time // when the metadata was last copied to the witness
	walLookedFor  time.Time // when it was last checked that the upstream still has the WAL that this standby needs
	startTold     bool
}

// MonitorStatus is a snapshot of what a Monitor does and why.
type MonitorStatus struct {
	NodeID   NodeID         `json:"node_id"`
	Node     string         `json:"node_name"`
	Phase    election.Phase `json:"phase"`
	Reason   string         `json:"reason"`
	Since    time.Time      `json:"since,omitzero"` // of the reason
	LookedAt time.Time      `json:"looked_at,omitzero"`
	Primary  string         `json:"primary,omitempty"`                // as a standby's monitor knows it
	Lag      *Lag           `json:"lag,omitempty"`                    // of a standby: the newest sample
	Error    string         `json:"last_error,omitempty"`             // why the last look or act was not complete
	Rejected string         `json:"configuration_rejected,omitempty"` // why the last reload has changed nothing; empty: it was taken over, or there was none

	Health  election.Health `json:"primary_health,omitempty"` // the verdict on the primary, with failover=automatic
	Rule    election.Rule   `json:"rule,omitzero"`            // the newest; left out: none is known
	Lease   *time.Duration  `json:"lease_left_ns"`            // until this primary would fence itself; nil: it needs no lease, or its Monitor can not stop it
	RunsOut bool            `json:"lease_runs_out,omitempty"` // no majority has answered for half of silence_timeout: nothing renews the lease
	Doing   string          `json:"doing,omitempty"`          // the long action under way
	Settled bool            `json:"settled"`                  // no long action and no handover is under way, and this node is where the newest rule puts it
}

// Lag is how far a standby is behind its primary.
type Lag = observer.Lag

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
	m.presence.Node = cfg.NodeID
	m.control.status = MonitorStatus{NodeID: cfg.NodeID, Node: cfg.NodeName, Reason: "not started"}
	return m, nil
}

// Status returns what the monitor does at this moment.
func (m *Monitor) Status() MonitorStatus {
	m.control.mu.Lock()
	defer m.control.mu.Unlock()
	return m.control.status
}

// View is what a Monitor knows at one instant, and what it makes of that.
type View = health.View

// View returns what the Monitor knows now, from its memory. It takes microseconds and waits for nobody.
func (m *Monitor) View() View {
	m.control.mu.Lock()
	v, c := m.control.view, m.control.cfg
	m.control.mu.Unlock()
	v.At, v.Cluster, v.NodeID, v.Node, v.Interval = time.Now(), c.ClusterName, c.NodeID, c.NodeName, c.MonitorInterval
	v.Lease, v.Silence = m.guard.LeaseNow()
	if w := m.control.watched.Load(); w != nil && v.Automatic {
		v.Peers = w.Peers()
		v.Rule = voters.NewestRule(v.Peers)
	}
	return v
}

// Reload takes over the settings of cfg that may change while the monitor runs,
// and looks again at once. It returns the keys that changed but need a restart.
// Where cfg is not valid, the error says why, the old settings stay, and [Monitor.Rejected] is called.
func (m *Monitor) Reload(cfg Config) (needRestart []string, err error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.Validate(), cfg.requireMonitor()); err != nil {
		m.Rejected(err)
		return nil, err
	}
	m.control.mu.Lock()
	_, needRestart = m.control.cfg.ChangedKeys(cfg)
	merged := m.control.cfg.Reload(cfg)
	m.control.next, m.control.refused = &merged, ""
	m.control.mu.Unlock()
	m.lookNow()
	return needRestart, nil
}

// Rejected says to everybody, until the next [Monitor.Reload] that works, why a new configuration was not
// taken over: its file can not be read, say.
func (m *Monitor) Rejected(err error) {
	m.control.mu.Lock()
	m.control.refused = strings.ReplaceAll(err.Error(), "\n", "; ")
	m.control.mu.Unlock()
	m.lookNow()
}

func (m *Monitor) lookNow() {
	select {
	case m.control.wake <- struct{}{}:
	default:
	}
}

// applyConfig puts a configuration in force.
func (m *Monitor) applyConfig(cfg Config) {
	if m.presence.yielding {
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
	m.control.inForce.Store(m.cluster)
	m.guard.Use(m.cluster.fencing())
	m.node.Options = m.observerOptions()
}

func (m *Monitor) policy() election.Policy {
	p := m.cluster.policy()
	if m.cluster.cfg.MonitoringHistoryRetention > 0 || m.cluster.cfg.EventsRetention > 0 {
		p.PruneEvery = pruneInterval
	}
	return p
}

// report logs a failure when it is new, and its end. It is called after each attempt. What fails
// because this Monitor stops its server on purpose is no trouble.
func (m *Monitor) report(what string, err error) {
	if err == nil || !m.stopsServer() {
		m.trouble.Report(what, err)
	}
}

// tell writes an event on the primary, if a connection to it is open, and hands it to the
// notifiers.
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

// stopsServer reports whether this Monitor stops its server on purpose.
func (m *Monitor) stopsServer() bool {
	return m.tasks.current.Is(election.RestartServer, election.HandOver)
}

// manual reports whether this Monitor only watches.
func (m *Monitor) manual() bool { return m.cluster.cfg.Failover != FailoverAutomatic }

// observerOptions are what package observer needs of this Monitor.
func (m *Monitor) observerOptions() observer.Options {
	c := m.cluster
	return observer.Options{
		ID: c.cfg.NodeID, Manual: m.manual(), SilenceTimeout: c.cfg.SilenceTimeout, MonitorInterval: c.cfg.MonitorInterval,
		Watch: m.watch, ConnectLocal: c.connectLocal, ConnectTo: c.connectTo, FindPrimary: c.primaryOf,
		AllRecords: c.Nodes, SavedRecords: c.savedRecords, Report: m.report,
	}
}

// Beat is what a [Monitor] tells its watchdog, at least four times in each silence_timeout.
type Beat = fence.Beat

// TellWatchdog makes the Monitor write a [Beat] to w, as a line of JSON, again
// and again while it runs. Call it before Run. A write that waits holds the
// Monitor up: give w a deadline. Errors are ignored.
func (m *Monitor) TellWatchdog(w io.Writer) { m.guard.TellWatchdog(w) }

// tellLater queues an event for the goroutine of Run, with the time at which it happened. It
// may be called from any goroutine.
func (m *Monitor) tellLater(e Event) {
	m.outbox.Later(e)
	m.lookNow()
}

// tasks are the long action that runs now, if any, and the outcomes of earlier ones.
type tasks struct {
	current *task.Task // nil: none runs
	last    election.Outcome
	failed  map[election.Verb]error // how the newest task of each kind ended

	followCommandFor int64 // the newest term for which follow_command was run or is not needed
}
