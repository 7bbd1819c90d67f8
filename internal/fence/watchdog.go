package fence

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// Beat is what a [Guard] tells its watchdog, at least four times in each silence_timeout.
type Beat struct {
	PID    int           `json:"pid"`
	Left   *float64      `json:"left"`           // seconds until this primary is fenced; nil: there is nothing to guard
	Dir    string        `json:"data_directory"` // of the local server
	Shown  bool          `json:"shown"`          // the daemon has shown that it can end the server in Dir, whose path then has no symbolic links
	Rule   election.Rule `json:"rule"`           // the newest rule that the local server holds
	Before election.Rule `json:"before"`         // the rule before that, while an election could miss the newest
	Bye    bool          `json:"bye,omitempty"`  // the daemon ends in an orderly way
}

// TellWatchdog makes Run write a [Beat] to w, as a line of JSON, again and again. Call it
// before Run. A write that blocks delays the lease, so give w a deadline. Errors are ignored.
func (g *Guard) TellWatchdog(w io.Writer) { g.beats = w }

func (k *leaseKeeper) tellWatchdog(left *time.Duration, bye bool) {
	if k.beats == nil {
		return
	}
	b := Beat{PID: os.Getpid(), Dir: k.DataDirectory(), Rule: k.me.Rule, Before: k.Before(), Bye: bye}
	k.mu.Lock()
	if srv := k.srv; srv != nil {
		b.Dir, b.Shown = srv.Dir, true
	}
	k.mu.Unlock()
	if left != nil && !k.Elsewhere() {
		seconds := left.Seconds()
		b.Left = &seconds
	}
	line, _ := json.Marshal(b)
	_, _ = k.beats.Write(append(line, '\n'))
}

// Watchdog fences the local primary in place of a [Guard] that can not, because its process is
// stopped, starved or dead. It must run in a process of its own, which reads from r what
// [Guard.TellWatchdog] writes. While beats arrive it does nothing. When they stop, it looks for
// a majority of the voters itself, with a watch that open makes. Where it finds none until the
// lease ends, it stops the server; the Guard starts that as a standby when it runs again.
//
// It returns nil when the Guard ends in an orderly way, when another daemon has replaced a dead
// one, when there is nothing left to guard, or when ctx ends. It closes r.
func Watchdog(ctx context.Context, r io.ReadCloser, s Settings, open func(context.Context) (*voters.Watch, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	beats := make(chan Beat)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(beats)
		for d := json.NewDecoder(r); ; {
			var b Beat
			if d.Decode(&b) != nil {
				return
			}
			select {
			case beats <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	d := watchdog{s: &s, open: open, at: readClocks(nowait.BootTime)}
	defer wg.Wait()
	defer r.Close()
	defer cancel()
	defer d.standDown()
	for rest := s.heartbeatInterval(); ; {
		well := false
		tick := time.NewTimer(rest) // a new timer: resetting one may wake the process once more
		select {
		case <-ctx.Done():
			return nil
		case b, ok := <-beats:
			if b.Bye {
				return nil
			}
			if !ok {
				beats, d.orphan = nil, true
				break
			}
			if d.k == nil || !d.k.Unmarked() {
				d.standDown()
			}
			d.beat, d.at, well = b, readClocks(nowait.BootTime), d.k == nil
		case <-tick.C:
		}
		tick.Stop()
		if rest = s.heartbeatInterval() / 2; well {
			rest = 2 * s.heartbeatInterval()
			continue
		}
		if over, err := d.guard(ctx); over || err != nil {
			return err
		}
	}
}

// watchdog is the state of [Watchdog], and belongs to its goroutine.
type watchdog struct {
	s      *Settings
	open   func(context.Context) (*voters.Watch, error)
	beat   Beat         // the newest beat
	at     reading      // when that beat arrived
	orphan bool         // the daemon's process is gone
	stop   func()       // ends what takeOver has started
	k      *leaseKeeper // checks the lease while the daemon is silent; nil: the daemon is not silent
}

// guard does the work of the daemon while that is silent. over means that there is nothing left
// to guard.
func (d *watchdog) guard(ctx context.Context) (over bool, err error) {
	if d.k != nil && !d.k.keepDown(ctx, d.s) {
		return false, nil
	}
	switch {
	case !d.orphan && d.silence() < 2*d.s.heartbeatInterval():
		return false, nil
	case d.beat.Left == nil:
		return d.orphan, nil
	case d.k == nil:
		if err := d.takeOver(ctx); err != nil {
			return false, err
		}
	}
	d.k.checkSleep(ctx, d.s)
	left := seconds(*d.beat.Left) - d.silence()
	me := voters.PeerOf(d.k.watch.Peers(), d.s.Node)
	if !me.Rule.Known() { // the server was not seen since then, and may reject our login
		me.Rule = d.beat.Rule
	}
	if me.Rule.Known() {
		lease, needed := d.k.left(time.Now(), d.s, me)
		if left = lease; !needed {
			left = d.s.FenceTimeout
		}
	}
	running := me.Answer == election.Answers
	switch {
	case running && me.Running != election.Primary, d.orphan && d.replaced(running), d.orphan && !d.serverRuns(ctx):
		return d.orphan, nil
	case left <= 0:
		if d.k.stop(ctx, d.s, fmt.Sprintf("repmgrd (PID %d) is silent, and there was no contact to a majority of the voters for fence_timeout (%s)", d.beat.PID, d.s.FenceTimeout)+rejecting(me)) {
			d.k.keepDown(ctx, d.s) // the daemon will start it
			d.beat.Left = nil
		}
	}
	return false, nil
}

// silence is the time since the last beat arrived, including any sleep of the machine.
func (d *watchdog) silence() time.Duration {
	now := readClocks(nowait.BootTime)
	return now.at.Sub(d.at.at) + sleptBetween(d.at, now, d.s.FenceTimeout)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// takeOver opens a watch of the voters. The lease continues from what the daemon last said of
// it.
func (d *watchdog) takeOver(ctx context.Context) error {
	watch, err := d.open(ctx)
	if err != nil {
		return err
	}
	g := New(func(registry.Event) {}, func() {}) // the daemon sends the event of the fence when it starts the server
	g.Use(*d.s)
	g.dir, g.before = d.beat.Dir, d.beat.Before
	if d.beat.Shown {
		g.srv = d.s.At(d.beat.Dir)
	}
	g.primarySince = d.at.at.Add(seconds(*d.beat.Left) - d.s.FenceTimeout)
	d.k = &leaseKeeper{activeGuard: activeGuard{g, watch}}
	hearts, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { (&heartbeat{activeGuard: d.k.activeGuard}).run(hearts) }) // the replies of standbys count as contact too
	d.stop = func() { end(); wg.Wait(); g.endMarking(); watch.Close() }
	d.s.Logger.Warn("repmgrd is silent: its watchdog guards the server", "pid", d.beat.PID, "gone", d.orphan, "lease_left", *d.beat.Left)
	return nil
}

// standDown ends the watch of the voters, because the daemon is back.
func (d *watchdog) standDown() {
	if d.k != nil {
		d.stop()
		d.k = nil
	}
}

// replaced reports whether another daemon watches the server now.
func (d *watchdog) replaced(answers bool) bool {
	n := d.k.watch.Voter(d.s.Node)
	if n == nil || !answers {
		return false
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.View.Monitored && n.Last.PID != 0 && n.Last.PID != d.beat.PID
}

// serverRuns reports whether there is a server to guard. The processes that a dead postmaster
// has left behind are ended first, because nobody else would.
func (d *watchdog) serverRuns(ctx context.Context) bool {
	srv, err := d.s.Find(d.beat.Dir)
	if err != nil || srv.Runs() {
		return err == nil
	}
	d.k.killLeftovers(ctx, d.s)
	return false
}
