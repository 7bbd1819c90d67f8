package fence

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// Settings are what fencing needs of a configuration.
type Settings struct {
	Node      int32  // 0: this daemon has no server
	Name      string // of the node, for messages
	Conninfo  string // of its server
	Candidate string // what the pledges of this daemon are made out to
	Automatic bool   // failover=automatic; else nothing is stopped

	SilenceTimeout  time.Duration
	FenceTimeout    time.Duration
	HangTimeout     time.Duration
	MonitorInterval time.Duration // between two looks at the state of the server where nothing is stopped

	Device         string // the hardware watchdog, such as /dev/watchdog; empty: none
	DeviceRequired bool

	// Find finds the server of this machine by its data directory: that of the
	// configuration, or dir where it names none.
	Find func(dir string) (*postmaster.Server, error)
	// At is the server of a data directory that was found before. It asks nothing of the disk.
	At func(dir string) *postmaster.Server
	// Kept are the rules that the daemon has kept in a data directory, the newest first.
	SavedRules func(dir string) []election.Rule

	Logger *slog.Logger
}

// heartbeatInterval is the time between two looks at the lease, and between two heartbeats.
func (s *Settings) heartbeatInterval() time.Duration {
	return voters.HeartbeatInterval(s.SilenceTimeout)
}

// Guard fences the local server. It is safe for concurrent use. What only one of its
// goroutines needs is not in here, but in a type of that goroutine: [heartbeat] and [keeper].
type Guard struct {
	BootTime func() time.Duration // CLOCK_BOOTTIME; only a test replaces it, before Run

	tell     func(registry.Event)
	wake     func()
	beats    io.Writer // to the watchdog; nil: there is none
	settings atomic.Pointer[Settings]
	marks    marks

	mu           sync.Mutex // holds what follows
	dir          string     // data directory, as the server last said
	primarySince time.Time  // since when the local server is seen as the primary; zero: it is none
	lease        *time.Duration
	runsOut      bool                // nothing renews the lease
	before       election.Rule       // the rule before the newest, while an election could miss the newest
	trouble      string              // what keeps the heartbeat from being written
	srv          *postmaster.Server  // as it was when it was last known that it can be stopped
	elsewhere    bool                // the local server runs on another machine: it is not ours to stop
	suspended    bool                // somebody else starts and stops the server: see Suspend
	fenced       string              // why this Guard last fenced the server
	fencedAt     time.Time           // and when
	device       error               // what keeps the watchdog device from being used
	replied      map[int32]time.Time // when a standby sent a reply, or later
	ability      ability
}

// New makes a Guard that does nothing before Use and Run. tell takes the event of a fence,
// without a time where it is of now. wake is called when a lease begins or ends to run
// out. Both must return at once.
func New(tell func(registry.Event), wake func()) *Guard {
	return &Guard{BootTime: nowait.BootTime, tell: tell, wake: wake}
}

// Use puts settings in force.
func (g *Guard) Use(s Settings) { g.settings.Store(&s) }

// Run guards the server until ctx ends, with what w sees of the voters.
func (g *Guard) Run(ctx context.Context, w *voters.Watch) {
	r := activeGuard{g, w}
	var wg sync.WaitGroup
	wg.Go(func() { (&heartbeat{activeGuard: r}).run(ctx) })
	wg.Go(func() { r.guardHang(ctx) })
	(&leaseKeeper{activeGuard: r}).run(ctx)
	wg.Wait()
}

// activeGuard is a Guard that sees the voters.
type activeGuard struct {
	*Guard
	watch *voters.Watch
}

// waitHeartbeat lets a pulse pass. With failover=manual nothing is that urgent.
func (r activeGuard) waitHeartbeat(ctx context.Context) error {
	s := r.settings.Load()
	if !s.Automatic {
		return wait.Pause(ctx, s.MonitorInterval)
	}
	return r.watch.Rest(ctx, s.heartbeatInterval()-voters.SinceTick(s.heartbeatInterval()), nil)
}

// self is the local server as it was last seen. One that has rejected the login of this
// daemon since that began is what was kept of it: where it was the primary, and runs as
// one, it is guarded all the same, by the rule that was kept and the one before.
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

// DataDirectory is that of the local server, as it last said. Empty: it has not said it yet.
func (g *Guard) DataDirectory() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dir
}

// SetDataDirectory notes what the local server says of its data directory.
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

// NotePrimary keeps since when the local server, seen as me, is the primary.
func (g *Guard) NotePrimary(me election.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	unseen := me.Answer == election.Rejects && me.SeenAt.IsZero()
	switch {
	case unseen && me.Running == "": // what was kept of it may say more
	case me.Role == election.Witness || me.Running != election.Primary || me.Answer == election.Refused || !unseen && me.SeenAt.Before(g.fencedAt):
		g.primarySince = time.Time{} // what is down is none until it is seen as one again
	case g.primarySince.IsZero() && (me.Answer == election.Answers || unseen):
		g.primarySince = time.Now()
	}
}

// Lease is how long the local primary may go on without further contact, and whether
// nothing renews that. nil: it needs no lease.
func (g *Guard) Lease() (left *time.Duration, runsOut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lease, g.runsOut
}

// Before is the rule before the newest, as long as an election could miss the newest.
func (g *Guard) Before() election.Rule {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.before
}

// NoteBefore says which rule an election may still find: before, unless the newest is held.
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

// Suspend leaves the starting and stopping of the server to a rejoin, until that calls
// resume. Only Fence, and a server that hangs, still ends it.
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

// Trouble is what keeps the heartbeat from being written, and the watchdog device from
// being used. Empty and nil: nothing does.
func (g *Guard) Trouble() (heartbeat string, device error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.trouble, g.device
}
