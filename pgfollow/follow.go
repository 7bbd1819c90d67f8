package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Defaults of the options.
const (
	DefaultHold     = 5 * time.Second
	DefaultInterval = 500 * time.Millisecond
	DefaultSilence  = time.Second
)

// searchInterval is how often each node is asked while there is no primary. After searchLimit they are
// asked ten times less often.
const (
	searchInterval = 20 * time.Millisecond
	searchLimit    = 30 * time.Second
)

// Option changes a default of [New].
type Option func(*Follower)

// Hold is for how long a connection is waited for while there is no primary (default 5 s). Then the
// caller gets a [NoPrimaryError]. The context of the caller may end the wait earlier. 0: not at all.
func Hold(d time.Duration) Option { return func(f *Follower) { f.hold = d } }

// Interval is how often each node is asked while all is well (default 500 ms).
func Interval(d time.Duration) Option { return func(f *Follower) { f.interval = d } }

// Silence is for how long a node may owe an answer, or a connection, before it is not taken for the
// primary any more (default 1 s).
func Silence(d time.Duration) Option { return func(f *Follower) { f.silence = d } }

// Dial is how network connections are made, through a tunnel for example, by the Follower itself and by the
// pools of [Follower.Pool] and [Follower.StandbyPool] (default: as pgx does).
func Dial(d pgconn.DialFunc) Option { return func(f *Follower) { f.dial = d } }

// Primary is the primary of a cluster.
type Primary struct {
	Node     string    // "host:port", as the connection string has it
	Term     int64     // of the election of repmgr that it won; 0: not known
	Timeline uint32    // the timeline that it writes
	Since    time.Time // when this process saw that
}

// NoPrimaryError is the error of a connection that was waited for in vain. The text says what each
// node is. Nothing was sent to any server, so it is safe to try again: [pgconn.SafeToRetry].
type NoPrimaryError struct {
	Waited time.Duration
	Nodes  string
	cause  error
}

func (e *NoPrimaryError) Error() string {
	return fmt.Sprintf("no primary for %s (%s)", e.Waited.Round(time.Millisecond), e.Nodes)
}

// Unwrap is the end of the caller's context, if that ended the wait.
func (e *NoPrimaryError) Unwrap() error { return e.cause }

// SafeToRetry tells [pgconn.SafeToRetry].
func (*NoPrimaryError) SafeToRetry() bool { return true }

var errNotSeen = errors.New("was not asked yet")

// Follower follows the primary. Make one with [New]. All its functions may be called at any time, by
// several goroutines, until [Follower.Close].
type Follower struct {
	connString              string
	nodes                   []node
	hold, interval, silence time.Duration
	dial                    pgconn.DialFunc // nil: that of pgx

	closed context.Context
	end    func()
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the rest
	state   *state
	changed chan struct{} // closed at the next change, and at the end
	calm    context.Context
	hurry   func() // ends calm: there is no primary
	links   map[*link]struct{}
}

// node is one host of the connection string, with the ways to log in there: TLS first, for example.
type node struct {
	name string
	ways []*pgconn.FallbackConfig
}

// New begins to follow the primary of the cluster whose nodes connString names: all that pgx
// understands, a URL or a keyword string, also the settings of a pool. It does not wait: see
// [Follower.Wait]. The error is one of connString. target_session_attrs is not heeded.
func New(connString string, options ...Option) (*Follower, error) {
	cfg, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, err
	}
	f := &Follower{connString: connString, nodes: nodesOf(cfg.ConnConfig), hold: DefaultHold, interval: DefaultInterval, silence: DefaultSilence, links: map[*link]struct{}{}}
	for _, o := range options {
		o(f)
	}
	if f.interval <= 0 || f.silence <= 0 || f.hold < 0 {
		return nil, fmt.Errorf("pgfollow: Interval (%s) and Silence (%s) must be more than 0, and Hold (%s) not less", f.interval, f.silence, f.hold)
	}
	var names []string
	for _, n := range f.nodes {
		names = append(names, n.name)
	}
	f.state, f.changed = newState(names, time.Now(), f.silence), make(chan struct{})
	f.closed, f.end = context.WithCancel(context.Background())
	f.calm, f.hurry = context.WithCancel(f.closed)
	for i := range f.nodes {
		s := sentinel{f: f, node: i, cfg: f.config(cfg.ConnConfig, i)}
		f.wg.Go(func() { s.run(f.closed) })
	}
	return f, nil
}

// nodesOf are the hosts of a connection string, each once.
func nodesOf(cfg *pgx.ConnConfig) (all []node) {
	ways := append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	index := map[string]int{}
	for _, w := range ways {
		name := net.JoinHostPort(w.Host, strconv.Itoa(int(w.Port)))
		i, known := index[name]
		if !known {
			i = len(all)
			index[name], all = i, append(all, node{name: name})
		}
		all[i].ways = append(all[i].ways, w)
	}
	return all
}

// config is cfg for one node, for a sentinel.
func (f *Follower) config(cfg *pgx.ConnConfig, node int) *pgx.ConnConfig {
	c := cfg.Copy()
	c.RuntimeParams["default_transaction_isolation"] = "read committed" // a standby refuses serializable
	direct(c, f.nodes[node].ways)
	if f.dial != nil {
		c.DialFunc = f.dial
	}
	return c
}

// direct points a configuration at one node.
func direct(c *pgx.ConnConfig, ways []*pgconn.FallbackConfig) {
	c.Host, c.Port, c.TLSConfig, c.Fallbacks = ways[0].Host, ways[0].Port, ways[0].TLSConfig, ways[1:]
	c.ValidateConnect = nil
}

// Close ends all connections of the follower itself. Pools stay usable as ordinary ones for as long as
// their connections live; close them first.
func (f *Follower) Close() {
	f.end()
	f.wg.Wait()
}

// see takes over what a sentinel saw.
func (f *Follower) see(node int, l look) {
	var stale []*link
	defer func() { // closing one may take a while
		for _, l := range stale {
			l.cut()
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.see(node, l) {
		return
	}
	if f.hurry(); f.state.up {
		f.calm, f.hurry = context.WithCancel(context.Background())
	}
	for l := range f.links {
		if l.generation != f.state.generation {
			stale = append(stale, l)
		}
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// rest is for how long a sentinel rests after an answer, and what ends the rest earlier.
func (f *Follower) rest() (calm context.Context, most time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.state.up:
		return f.calm, f.interval
	case time.Since(f.state.since) < searchLimit:
		return context.Background(), min(f.interval, searchInterval)
	}
	return context.Background(), min(f.interval, 10*searchInterval)
}

// office is that of the primary that was seen last, and its timeline.
func (f *Follower) office() (office, uint32) {
	f.mu.Lock()
	timeline := f.state.best.timeline
	f.mu.Unlock()
	return f.lastOffice(timeline), timeline
}

// lastOffice is in which office a timeline was seen to be written last.
func (f *Follower) lastOffice(timeline uint32) (o office) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o, ok := f.state.offices[timeline]; ok {
		o.f = f
		return o
	}
	return office{}
}

// present is what is known of the primary at one moment.
type present struct {
	Primary // empty: there is none

	node       int
	generation uint64
	up         bool
}

// now also returns what is closed at the next change.
func (f *Follower) now() (present, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh := 2 * (f.interval + f.silence) // the most that a sentinel without a connection takes for an answer
	if f.closed.Err() != nil {
		fresh = math.MaxInt64 // nobody asks any more
	}
	p, ok := f.state.primary(time.Now(), fresh)
	return present{p, f.state.current, f.state.generation, ok}, f.changed
}

// Wait returns the primary as soon as there is one: at once, where it is known. The error is a
// [NoPrimaryError], after [Hold] or when ctx ends.
func (f *Follower) Wait(ctx context.Context) (Primary, error) {
	ctx, cancel := f.held(ctx)
	defer cancel()
	p, err := f.await(ctx)
	return p.Primary, err
}

// held limits a wait.
func (f *Follower) held(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, f.hold, errHeld)
}

var errHeld = errors.New("it was waited for long enough")

func (f *Follower) await(ctx context.Context) (present, error) {
	for began := time.Now(); ; {
		p, changed := f.now()
		if p.up {
			return p, nil
		}
		select {
		case <-changed:
			continue
		case <-time.After(f.silence): // an answer that was too old may be followed by a newer one
			continue
		case <-ctx.Done():
		case <-f.closed.Done():
		}
		return present{}, f.noPrimary(ctx, began)
	}
}

// noPrimary is the error of a wait that ended with ctx.
func (f *Follower) noPrimary(ctx context.Context, began time.Time) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, errHeld) {
		cause = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &NoPrimaryError{Waited: time.Since(began), Nodes: f.state.describe(), cause: cause}
}

// Changes yields the primary that there is, and then each new one, until ctx ends: an empty [Primary]
// means that there is none at the moment. What a slow reader misses is left out; the newest is not.
func (f *Follower) Changes(ctx context.Context) iter.Seq[Primary] {
	return func(yield func(Primary) bool) {
		for {
			p, changed := f.now()
			if !yield(p.Primary) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-f.closed.Done():
				return
			}
		}
	}
}
