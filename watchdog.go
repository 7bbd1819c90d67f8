package repmgr

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
)

// Beat is what a [Monitor] tells its watchdog, at least four times in each silence_timeout.
type Beat struct {
	PID    int           `json:"pid"`
	Left   *float64      `json:"left"`           // seconds until this primary would be fenced; nil: there is nothing to guard
	Dir    string        `json:"data_directory"` // of the local server
	Shown  bool          `json:"shown"`          // that the Monitor can end the server in that directory, which is named without symbolic links
	Rule   election.Rule `json:"rule"`           // the newest that the local server holds
	Before election.Rule `json:"before"`         // the rule before that, while an election could miss the newest
	Bye    bool          `json:"bye,omitempty"`  // the Monitor ends in order
}

// TellWatchdog makes the Monitor write a [Beat] to w, as a line of JSON, again
// and again while it runs. Call it before Run. A write that waits holds the
// Monitor up: give w a deadline. Errors are ignored.
func (m *Monitor) TellWatchdog(w io.Writer) { m.beats = w }

func (m *Monitor) beat(left *time.Duration, bye bool) {
	if m.beats == nil {
		return
	}
	me, _ := m.localPeer(m.settings())
	b := Beat{PID: os.Getpid(), Dir: m.dataDirectory(), Rule: me.Rule, Before: m.ruleBefore(), Bye: bye}
	m.shared.mu.Lock()
	if srv := m.shared.srv; srv != nil {
		b.Dir, b.Shown = srv.Dir, true
	}
	m.shared.mu.Unlock()
	if left != nil && !m.isElsewhere() {
		seconds := left.Seconds()
		b.Left = &seconds
	}
	line, _ := json.Marshal(b)
	_, _ = m.beats.Write(append(line, '\n'))
}

// Watchdog fences the local primary in the place of a [Monitor] that can not: one
// that is stopped, starved or dead. It belongs in a process of its own, which
// reads from r what [Monitor.TellWatchdog] writes. While the beats come it does
// nothing. When they stop it looks for a majority of the voters itself, and where
// none is found until the lease is over, it stops the server; the Monitor starts
// it, as a standby, when it is back.
//
// It returns nil when the Monitor ends in order, when another one has taken over
// from a dead one, when there is nothing left to guard, or with ctx. It closes r.
func (c *Cluster) Watchdog(ctx context.Context, r io.ReadCloser) error {
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
	d := watchdog{c: c, at: readClocks(bootTime)}
	defer wg.Wait()
	defer r.Close()
	defer cancel()
	defer d.rest()
	for rest := c.pulse(); ; {
		well := false
		tick := time.NewTimer(rest) // a new one: one that is set again may wake the process once more
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
			if d.m == nil || !d.m.unmarked() {
				d.rest()
			}
			d.beat, d.at, well = b, readClocks(bootTime), d.m == nil
		case <-tick.C:
		}
		tick.Stop()
		if rest = c.pulse() / 2; well {
			rest = 2 * c.pulse()
			continue
		}
		if over, err := d.guard(ctx); over || err != nil {
			return err
		}
	}
}

// watchdog is owned by the goroutine of [Cluster.Watchdog].
type watchdog struct {
	c      *Cluster
	beat   Beat // the last
	at     reading
	orphan bool     // the Monitor's process is gone
	stop   func()   // ends what m has begun
	m      *Monitor // looks at the voters while the Monitor is silent; nil: it is not
}

// guard does the Monitor's part while that is silent. over says that there is
// nothing left to do.
func (d *watchdog) guard(ctx context.Context) (over bool, err error) {
	if d.m != nil && !d.m.keepDown(ctx, d.c) {
		return false, nil
	}
	switch {
	case !d.orphan && d.silence() < 2*d.c.pulse():
		return false, nil
	case d.beat.Left == nil:
		return d.orphan, nil
	case d.m == nil:
		if err := d.begin(ctx); err != nil {
			return false, err
		}
	}
	d.m.awake(ctx, d.c)
	left := seconds(*d.beat.Left) - d.silence()
	me := voters.PeerOf(d.m.watch.Peers(), int32(d.c.cfg.NodeID))
	if !me.Rule.Known() { // it was not seen since, and may reject our login
		me.Rule = d.beat.Rule
	}
	if me.Rule.Known() {
		lease, needed := d.m.lease(time.Now(), d.c, me)
		if left = lease; !needed {
			left = d.c.cfg.FenceTimeout
		}
	}
	running := me.Answer == election.Answers
	switch {
	case running && me.Running != election.Primary, d.orphan && d.succeeded(running), d.orphan && !d.serverRuns(ctx):
		return d.orphan, nil
	case left <= 0:
		if d.m.fence(ctx, d.c, fmt.Sprintf("repmgrd (PID %d) is silent, and there was no contact to a majority of the voters for fence_timeout (%s)", d.beat.PID, d.c.cfg.FenceTimeout)+rejecting(me)) {
			d.beat.Left = nil
		}
	}
	return false, nil
}

// silence is how long ago the last beat came, a sleep of the machine counted.
func (d *watchdog) silence() time.Duration {
	now := readClocks(bootTime)
	return now.at.Sub(d.at.at) + asleep(d.at, now, d.c.cfg.FenceTimeout)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// begin opens a watch of its own. What the Monitor knew last of its contact counts on.
func (d *watchdog) begin(ctx context.Context) error {
	m, err := NewMonitor(d.c.cfg)
	if err != nil {
		return err
	}
	m.use(m.cfg)
	m.fenceOnly = true
	m.shared.dir, m.shared.before = d.beat.Dir, d.beat.Before
	if d.beat.Shown {
		m.shared.srv = newLocalServer(m.cfg, d.beat.Dir)
	}
	m.shared.office = d.at.at.Add(seconds(*d.beat.Left) - d.c.cfg.FenceTimeout)
	recs := d.c.keptRecords()
	if len(recs) == 0 {
		limit, cancel := context.WithTimeout(ctx, d.c.pulse())
		defer cancel()
		recs, _ = d.c.Nodes(limit) // without them it has no contact, and the lease counts down
	}
	d.m = m
	m.watch = m.cluster.watchVoters(ctx, func() {})
	m.watch.SetNodes(recs)
	hearts, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { m.heart(hearts) }) // and what the standbys reply is contact
	d.stop = func() { end(); wg.Wait(); m.endMarking(); m.watch.Close() }
	m.log.Warn("repmgrd is silent: its watchdog guards the server", "pid", d.beat.PID, "gone", d.orphan, "lease_left", *d.beat.Left)
	return nil
}

// rest ends the looking: the Monitor is back.
func (d *watchdog) rest() {
	if d.m != nil {
		d.stop()
		d.m = nil
	}
}

// succeeded reports whether another Monitor watches the server now.
func (d *watchdog) succeeded(answers bool) bool {
	n := d.m.watch.Voter(int32(d.c.cfg.NodeID))
	if n == nil || !answers {
		return false
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.View.Monitored && n.Last.PID != 0 && n.Last.PID != d.beat.PID
}

// serverRuns reports whether there is a server to guard. What a dead postmaster
// has left behind is ended first: nobody else would.
func (d *watchdog) serverRuns(ctx context.Context) bool {
	srv, err := d.c.localServer(d.beat.Dir)
	if err != nil || srv.Runs() {
		return err == nil
	}
	d.m.killLeftovers(ctx, d.c)
	return false
}
