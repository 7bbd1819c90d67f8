package election_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// proc is a process of a host: a server or a monitor. What it was about to do is
// lost when it dies, and late when it is stopped for a while.
type proc struct {
	up    bool
	inc   int
	until time.Duration // stopped until then (SIGSTOP)
}

func (p *proc) hung(now time.Duration) bool { return p.up && p.until > now }

func (p *proc) die() { p.up, p.until, p.inc = false, 0, p.inc+1 }

type event struct {
	at  time.Duration
	seq uint64
	own *proc // whose doing it is; nil: the world's
	inc int
	f   func()
}

// link is one direction between two hosts. TCP neither duplicates nor reorders;
// what is sent into a cut arrives when that is healed, or never.
type link struct {
	cut    bool
	slow   time.Duration
	parked []func()
}

// host is a machine with a server, a monitor and a clock of its own.
type host struct {
	id   int32
	s    *server
	m    *monitor
	down bool
	rate float64       // of its monotonic clock
	lost time.Duration // what a clock that stands still while the host is suspended has missed

	stalled  bool // the volume of its data takes no writes
	unable   bool // its monitor can not stop its server
	manual   bool // its monitor runs with failover=manual
	unnamed  bool // whose stream its server receives can not be told by the address
	paused   bool
	pauseSeq int64
}

// world is one virtual cluster in virtual time. It is a function of its seed.
type world struct {
	seed     uint64
	now      time.Duration
	seq      uint64
	queue    []event
	rng      *rand.Rand
	bug      string // the planted fault
	hosts    []*host
	byID     map[int32]*host
	links    map[[2]int32]*link
	policy   election.Policy
	name     string
	quorum   bool          // guarantees of synchronous_mode=quorum from the beginning
	mixed    bool          // it was turned on on the way
	nodes    int           // that hold data
	strict   time.Duration // for how long two may accept writes beyond what is excused
	members  []int32
	pauses   int64              // words on the pause
	served   int32              // see stage
	busy     bool               // checkpointers may be
	archives map[int32]archived // nil: there is no archive
	healed   time.Duration      // when all faults were over; 0: not yet
	plan     []fault
	points   map[string][]func(c *election1)
	asked    int // requests to hand over, or to restart the primary in its place, that were written
	restarts int // that were done
	tracing  bool
	trace    strings.Builder
	judge    judge
}

func (w *world) logf(format string, args ...any) {
	if w.tracing {
		fmt.Fprintf(&w.trace, "%9.3fs ", w.now.Seconds())
		fmt.Fprintf(&w.trace, format+"\n", args...)
	}
}

func (w *world) push(e event) {
	w.queue = append(w.queue, e)
	for i := len(w.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.queue[i].before(w.queue[up]) {
			break
		}
		w.queue[i], w.queue[up] = w.queue[up], w.queue[i]
		i = up
	}
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (w *world) pop() event {
	top, last := w.queue[0], len(w.queue)-1
	w.queue[0] = w.queue[last]
	w.queue[last] = event{}
	w.queue = w.queue[:last]
	for i := 0; ; {
		least := i
		for _, c := range []int{2*i + 1, 2*i + 2} {
			if c < last && w.queue[c].before(w.queue[least]) {
				least = c
			}
		}
		if least == i {
			return top
		}
		w.queue[i], w.queue[least] = w.queue[least], w.queue[i]
		i = least
	}
}

// after does f in a while, as a doing of own if it is given.
func (w *world) after(own *proc, d time.Duration, f func()) {
	w.seq++
	e := event{at: w.now + d, seq: w.seq, own: own, f: f}
	if own != nil {
		e.inc = own.inc
	}
	w.push(e)
}

// step does the next thing that happens.
func (w *world) step() {
	e := w.pop()
	w.now = max(w.now, e.at)
	if e.own != nil {
		if !e.own.up || e.own.inc != e.inc {
			return
		}
		if e.own.until > w.now {
			e.at = e.own.until
			w.push(e)
			return
		}
	}
	e.f()
}

// clock is the time on a host.
func (w *world) clock(h *host) time.Time {
	return h.at(w.now)
}

// at is what the host's clock shows at an instant.
func (h *host) at(t time.Duration) time.Time {
	return start.Add(time.Duration(float64(t-h.lost) * h.rate))
}

// sleep is after by the host's own clock.
func (w *world) sleep(h *host, own *proc, d time.Duration, f func()) {
	w.after(own, time.Duration(float64(d)/h.rate), f)
}

func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

func (w *world) link(a, b int32) *link {
	l := w.links[[2]int32{a, b}]
	if l == nil {
		l = &link{}
		w.links[[2]int32{a, b}] = l
	}
	return l
}

func (w *world) open(a, b *host) bool {
	return a == b || !w.link(a.id, b.id).cut && !a.down && !b.down
}

// send brings f to a process of another host, if it still lives then.
func (w *world) send(a, b *host, dst *proc, f func()) {
	inc, l := dst.inc, w.link(a.id, b.id)
	deliver := func() {
		d := w.between(100*time.Microsecond, 600*time.Microsecond)
		if a != b {
			d += l.slow
		}
		w.seq++
		w.push(event{at: w.now + d, seq: w.seq, own: dst, inc: inc, f: f})
	}
	switch {
	case a == b || !l.cut:
		deliver()
	default:
		l.parked = append(l.parked, deliver)
	}
}

// setCut cuts or heals one direction.
func (w *world) setCut(a, b int32, cut bool) {
	l := w.link(a, b)
	if l.cut == cut {
		return
	}
	l.cut = cut
	if cut {
		return
	}
	parked := l.parked
	l.parked = nil
	for _, deliver := range parked {
		if w.chance(50) {
			deliver()
		}
	}
	for _, h := range w.hosts {
		h.s.linkHealed(a, b)
	}
}

// rpc asks a server something, over a session of its own or an old one. exec is
// done there and calls ret when it has an answer; done is called once.
func (w *world) rpc(from *proc, a *host, s *server, timeout time.Duration, exec func(ret func()), done func(election.Answer)) {
	over, b := false, s.h
	finish := func(ans election.Answer) {
		if !over {
			over = true
			done(ans)
		}
	}
	w.sleep(a, from, timeout, func() {
		if s.hung(w.now) && w.open(a, b) && w.open(b, a) {
			finish(election.Hangs)
			return
		}
		finish(election.Silent)
	})
	if !s.up {
		if w.open(a, b) && w.open(b, a) {
			w.after(from, time.Millisecond+w.link(a.id, b.id).slow+w.link(b.id, a.id).slow, func() { finish(election.Refused) })
		}
		return
	}
	w.send(a, b, &s.proc, func() {
		ans := election.Answers
		ret := func() { w.send(b, a, from, func() { finish(ans) }) }
		switch monitor := from == &a.m.proc; {
		case s.starting, s.closing:
			ans = election.NotAccepting
		case monitor && s.full:
			ans = election.NoSlots
		case monitor && s.rejects && a != b:
			ans = election.Rejects
		default:
			exec(ret)
			return
		}
		ret()
	})
}

func (w *world) host(id int32) *host { return w.byID[id] }

// voters are the ids of all hosts that are registered now.
func (w *world) voters() []int32 { return slices.Sorted(slices.Values(w.members)) }
