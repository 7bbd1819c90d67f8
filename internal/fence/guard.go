package fence

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// Settings are the parts of the configuration that fencing needs.
type Settings struct {
	Node      int32  // 0: this daemon has no server
	Name      string // of the node, for messages
	Conninfo  string // of its server
	Candidate string // the name under which this daemon collects pledges
	Automatic bool   // failover=automatic; otherwise nothing is stopped

	SilenceTimeout  time.Duration
	FenceTimeout    time.Duration
	HangTimeout     time.Duration
	MonitorInterval time.Duration // the time between two turns where nothing is stopped

	Device         string // the hardware watchdog, such as /dev/watchdog; empty: none
	DeviceRequired bool

	// Find finds the server of this machine by its data directory: the configured one, or dir
	// where none is configured.
	Find func(dir string) (*postmaster.Server, error)
	// At is the server of a data directory that was found before. It does not access the disk.
	At func(dir string) *postmaster.Server
	// SavedRules are the rules in the state file of a data directory, the newest first.
	SavedRules func(dir string) []election.Rule

	Logger *slog.Logger
}

// heartbeatInterval is the time between two checks of the lease, and between two heartbeats.
func (s *Settings) heartbeatInterval() time.Duration {
	return voters.HeartbeatInterval(s.SilenceTimeout)
}

// Guard fences the local server. It is safe for concurrent use. What only one of its goroutines
// needs is in a type of that goroutine: [heartbeat] and [leaseKeeper].
type Guard struct {
	BootTime func() time.Duration // CLOCK_BOOTTIME; only a test replaces it, before Run

	tell     func(registry.Event)
	wake     func()
	beats    io.Writer // leads to the watchdog process; nil: there is none
	settings atomic.Pointer[Settings]
	marks    marks

	mu           sync.Mutex // protects the fields below
	dir          string     // the data directory that the server last reported
	primarySince time.Time  // since when the local server is seen as the primary; zero: it is none
	lease        *time.Duration
	runsOut      bool         // nothing renews the lease at the moment
	checked      health.Lease // the lease as it was at checkedAt
	checkedAt    reading
	checkEvery   time.Duration       // the time between two checks then
	before       election.Rule       // the rule before the newest, while an election could miss the newest
	trouble      string              // what keeps the heartbeat from being written
	srv          *postmaster.Server  // the server as it was when the ability to stop it was last shown
	elsewhere    bool                // the server runs on another machine, so it must not be stopped here
	suspended    bool                // somebody else starts and stops the server: see Suspend
	fenced       string              // why this Guard last fenced the server
	fencedAt     time.Time           // and when
	device       error               // what keeps the watchdog device from being used
	replied      map[int32]time.Time // a moment after which each standby has sent a reply
	ability      ability
}

// New makes a Guard. It does nothing before Use and Run. tell is called with the event of a
// fence, which has no time where it happened now. wake is called when a lease begins to run
// out, or no longer does. Both must return at once.
func New(tell func(registry.Event), wake func()) *Guard {
	return &Guard{BootTime: nowait.BootTime, tell: tell, wake: wake}
}

// Use puts settings in force.
func (g *Guard) Use(s Settings) { g.settings.Store(&s) }

// Run guards the server until ctx ends. w watches the voters.
func (g *Guard) Run(ctx context.Context, w *voters.Watch) {
	r := activeGuard{g, w}
	var wg sync.WaitGroup
	wg.Go(func() { (&heartbeat{activeGuard: r}).run(ctx) })
	wg.Go(func() { r.guardHang(ctx) })
	(&leaseKeeper{activeGuard: r}).run(ctx)
	wg.Wait()
}

// activeGuard is a Guard with a watch of the voters.
type activeGuard struct {
	*Guard
	watch *voters.Watch
}

// waitHeartbeat waits for the next heartbeat. With failover=manual it waits for
// monitor_interval, because nothing is that urgent.
func (r activeGuard) waitHeartbeat(ctx context.Context) error {
	s := r.settings.Load()
	if !s.Automatic {
		return wait.Pause(ctx, s.MonitorInterval)
	}
	return r.watch.Rest(ctx, s.heartbeatInterval()-voters.SinceTick(s.heartbeatInterval()), nil)
}

// self is the newest view of the local server. A server that has rejected the login since this
// daemon started is known only from its state file: where it was the primary, and runs as one,
// it is guarded all the same, by the saved rule and the rule before that.
func (r activeGuard) self(s *Settings) (me election.Peer, before election.Rule) {
	me = voters.PeerOf(r.watch.Peers(), s.Node)
	if me.Answer != election.Rejects || !me.SeenAt.IsZero() || me.Role == election.Witness {
		return me, before
	}
	srv, err := s.Find(r.DataDirectory())
	if err != nil || !srv.Runs() || srv.IsStandby() {
		return me, before
	}
	if rules := s.SavedRules(srv.Dir); len(rules) > 0 && rules[0].Primary == me.ID {
		me.Rule, me.Running = rules[0], election.Primary
		if len(rules) > 1 {
			before = rules[1]
		}
	}
	return me, before
}

// DataDirectory is the data directory that the local server last reported. Empty: none yet.
func (g *Guard) DataDirectory() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dir
}

// SetDataDirectory sets the data directory that the local server reports.
func (g *Guard) SetDataDirectory(dir string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dir = dir
}

// IsPrimary reports whether the local server is seen as the primary.
func (g *Guard) IsPrimary() bool { return !g.seenPrimarySince().IsZero() }

func (g *Guard) seenPrimarySince() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.primarySince
}

// NotePrimary notes since when the local server, seen as me, is the primary.
func (g *Guard) NotePrimary(me election.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	unseen := me.Answer == election.Rejects && me.SeenAt.IsZero()
	switch {
	case unseen && me.Running == "": // the state file may know more
	case me.Role == election.Witness || me.Running != election.Primary || me.Answer == election.Refused || !unseen && me.SeenAt.Before(g.fencedAt):
		g.primarySince = time.Time{} // a server that is down is no primary until it is seen as one again
	case g.primarySince.IsZero() && (me.Answer == election.Answers || unseen):
		g.primarySince = time.Now()
	}
}

// Lease is how long the local primary may go on without further contact, and whether nothing
// renews the lease at the moment. nil: it needs no lease.
func (g *Guard) Lease() (left *time.Duration, runsOut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lease, g.runsOut
}

// Before is the rule before the newest, as long as an election could miss the newest one.
func (g *Guard) Before() election.Rule {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.before
}

// NoteBefore sets the rule that an election may still find: before, unless the newest is held.
func (g *Guard) NoteBefore(before election.Rule, held bool) {
	if held {
		before = election.Rule{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before = before
}

// Elsewhere reports whether the server that answers runs on another machine.
func (g *Guard) Elsewhere() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.elsewhere
}

// Suspend leaves starting and stopping the server to a rejoin until resume is called. Only
// Fence, and the check for a server that hangs, still end it.
func (g *Guard) Suspend() (resume func()) {
	g.setSuspended(true)
	return func() { g.setSuspended(false) }
}

func (g *Guard) setSuspended(yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.suspended = yes
}

func (g *Guard) isSuspended() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.suspended
}

// Trouble is what keeps the heartbeat from being written and the watchdog device from being
// used. Empty and nil: nothing does.
func (g *Guard) Trouble() (heartbeat string, device error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.trouble, g.device
}
