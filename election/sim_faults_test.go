package election_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// fault is something that goes wrong at a time, or at a step of an election.
type fault struct {
	kind string
	at   time.Duration
	step string // of the next election that comes to it, instead of a time
	d    time.Duration
	a, b int32 // whom it hits; at a step: 0 the winner, 1 the coordinator, 2 the former primary, 3 another
}

func (f fault) String() string {
	when := fmt.Sprintf("%.3fs", f.at.Seconds())
	if f.step != "" {
		when = "when " + f.step
	}
	return fmt.Sprintf("%s of %d (%d) at %s for %v", f.kind, f.a, f.b, when, f.d)
}

var (
	nodeFaults = []string{
		"crash", "crash", "host crash", "monitor crash", "hang", "monitor hang", "host hang", "isolate", "isolate", "one way in", "one way out",
		"cut", "one way", "flap", "slow link", "slow disk", "lazy", "reclone",
	}
	worldFaults = []string{
		"long query", "long query", "delay", "pause replay", "target", "narrow", "backlog", "copy", "broken", "cascade", "cascade",
		"outside promotion", "outside promotion", "outside and back", "login changed", "full", "endless recovery", "suspend", "stalled volume",
	}
	operators = []string{"pause", "unregister", "stop", "sync on", "register"}
	steps     = []string{"surveyed", "recruited", "counted", "verified", "told", "locked", "set", "promoted", "promoted", "written", "written", "opened"}
	stepFault = []string{"crash", "crash", "host crash", "monitor crash", "monitor crash", "monitor hang", "host hang", "isolate", "one way out"}
)

// newWorld makes the cluster of a seed, and plans what happens to it.
func newWorld(seed uint64, bug string) *world {
	w := emptyWorld(seed, bug)
	w.quorum = w.chance(60)
	if w.chance(25) {
		w.policy.Acks = 1 + w.rng.IntN(2)
	}
	w.nodes = []int{2, 3, 3, 3, 3, 4, 5, 5, 6, 7}[w.rng.IntN(10)]
	witnesses := 0
	if w.chance(30) {
		witnesses = 1 + w.rng.IntN(2)
	}
	if w.busy = true; seed%3 == 1 {
		w.policy.Start = 0
	}
	if w.chance(25) {
		w.archives = map[int32]archived{}
	}
	w.build(witnesses, w.chance(15))
	for _, h := range w.hosts {
		h.unable, h.manual, h.unnamed = w.chance(4), w.chance(4), w.chance(10)
	}
	w.plot()
	return w
}

// stage is a cluster with a plan of its own, for what chance finds too seldom.
type stage struct {
	nodes, witnesses int
	quorum           bool
	low              int32 // a node with priority 0
	plan             []fault
	archive          bool
	busy             bool          // checkpointers may be
	served           int32         // who must acknowledge when all is healed: this node, or any but 1; 0: nobody need
	strict           time.Duration // see world
}

const another int32 = -3

func (st stage) world(seed uint64, bug string) *world {
	w := emptyWorld(seed, bug)
	w.nodes, w.quorum, w.plan, w.name = st.nodes, st.quorum, st.plan, "staged"
	w.served, w.strict, w.busy = st.served, st.strict, st.busy
	if st.archive {
		w.archives = map[int32]archived{}
	}
	w.build(st.witnesses, false)
	for _, h := range w.hosts {
		if h.s.priority = 100; h.id == st.low {
			h.s.priority = 0
		}
	}
	w.schedule()
	return w
}

func emptyWorld(seed uint64, bug string) *world {
	w := &world{seed: seed, bug: bug, rng: rand.New(rand.NewPCG(seed, 7)), byID: map[int32]*host{}, links: map[[2]int32]*link{}, points: map[string][]func(*election1){}}
	w.judge = judge{w: w, votes: map[int32]int64{}, winners: map[int64]int32{}}
	w.policy = election.Policy{Interval: 2 * time.Second, Automatic: true, Silence: 2 * time.Second, Fence: 2500 * time.Millisecond, Start: 3 * time.Second}
	if bug == "recovery for ever" {
		w.policy.Start = -1
	}
	return w
}

// build makes the hosts: node 1 is the primary, the others stream from it.
func (w *world) build(witnesses int, arbiter bool) {
	w.policy.Quorum, w.policy.Required = w.quorum, w.quorum && w.seed%4 == 1 && w.served == 0
	for id := int32(1); id <= int32(w.nodes+witnesses); id++ {
		w.add(id, int(id) > w.nodes)
	}
	if arbiter {
		w.add(election.Arbiter, true)
	}
	first := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: w.voters(), Quorum: w.quorum, Line: wal.Lineage{Timeline: 1}}
	for _, h := range w.hosts {
		s := h.s
		switch {
		case !s.data():
			s.rules = []ruleAt{{rule: first}}
		default:
			s.append(rec{id: -1, rule: &first})
			s.recovery, s.tl = h.id != 1, 1
			if s.recovery {
				s.conninfo = 1
			}
		}
		s.reign = 1
	}
	if w.archives != nil {
		w.after(nil, time.Second, w.archive)
	}
	for _, h := range w.hosts {
		h := h
		if h.s.recovery && w.quorum && w.bug != "set after promote" {
			h.s.ssn = anySync
		}
		h.s.start()
		if h.s.data() {
			h.s.watchReceiver()
		}
		if h.id != election.Arbiter {
			w.after(nil, w.between(0, time.Second), h.m.start)
		}
	}
}

func (w *world) add(id int32, witness bool) {
	h := &host{id: id, rate: 1 + (w.rng.Float64()-0.5)/50}
	h.s = &server{w: w, h: h, role: election.Standby, priority: 100, senders: map[int32]*sender{}, location: "a"}
	if witness {
		h.s.role = election.Witness
	}
	if id > 1 && w.chance(8) {
		h.s.priority = []int{0, 50, 150}[w.rng.IntN(3)]
	}
	h.m = &monitor{w: w, h: h}
	h.m.name = fmt.Sprintf("node%d", id)
	w.hosts, w.byID[id], w.members = append(w.hosts, h), h, append(w.members, id)
}

// plot plans the faults.
func (w *world) plot() {
	anybody := func() int32 { return w.hosts[w.rng.IntN(len(w.hosts))].id }
	switch n := w.rng.IntN(100); {
	case n < 12:
		w.name = "harmless"
		w.harmless()
	case n < 18:
		w.name = "paused"
		w.plan = append(w.plan, fault{kind: "pause", at: time.Second, a: 1, d: time.Hour}, w.random(1))
	default:
		w.name = "faults"
		who := int32(1)
		if w.chance(15) {
			who = anybody()
		}
		w.plan = append(w.plan, w.random(who))
		for w.chance(45) && len(w.plan) < 4 {
			w.plan = append(w.plan, w.random(anybody()))
		}
		for w.chance(40) && len(w.plan) < 6 { // most of them before the others
			f := w.random(anybody())
			f.kind, f.at = worldFaults[w.rng.IntN(len(worldFaults))], w.between(time.Second, 7*time.Second)
			w.plan = append(w.plan, f)
		}
		for w.chance(45) && len(w.plan) < 8 {
			w.plan = append(w.plan, fault{kind: stepFault[w.rng.IntN(len(stepFault))], step: steps[w.rng.IntN(len(steps))], a: int32(w.rng.IntN(4)), d: w.between(200*time.Millisecond, 6*time.Second)})
		}
		if w.chance(15) {
			w.plan = append(w.plan, fault{kind: operators[w.rng.IntN(len(operators))], at: w.between(time.Second, 9*time.Second), a: anybody(), d: w.between(time.Second, 5*time.Second)})
		}
	}
	w.plotHandover()
	w.schedule()
}

// schedule sets the planned faults on their times and steps, and the end of all.
func (w *world) schedule() {
	for _, f := range w.plan {
		if f.step != "" {
			w.points[f.step] = append(w.points[f.step], func(c *election1) { w.strike(f, c) })
			continue
		}
		w.after(nil, f.at, func() { w.inject(f) })
	}
	w.after(nil, 16*time.Second, w.heal)
}

func (w *world) random(who int32) fault {
	f := fault{kind: nodeFaults[w.rng.IntN(len(nodeFaults))], at: w.between(2*time.Second, 9*time.Second), a: who, d: w.between(50*time.Millisecond, 7*time.Second)}
	f.b = w.hosts[w.rng.IntN(len(w.hosts))].id
	if w.chance(30) {
		f.d = time.Hour // until all is healed
	}
	return f
}

// harmless plans what must not lead to a failover: a standby or a minority link hurt.
func (w *world) harmless() {
	if w.nodes < 3 {
		w.name = "calm"
		return
	}
	f := w.random(2 + int32(w.rng.IntN(w.nodes-1)))
	f.kind = []string{
		"crash", "host crash", "hang", "host hang", "monitor crash", "monitor hang", "isolate", "cut", "one way", "slow disk", "reclone",
		"long query", "delay", "pause replay", "backlog", "broken", "login changed", "full", "suspend", "outside promotion",
	}[w.rng.IntN(20)]
	f.b = 1
	if w.chance(30) && w.quorum {
		f.a, f.kind = 1, "monitor crash"
	}
	w.plan = append(w.plan, f)
}

// strike is a fault at a step of an election.
func (w *world) strike(f fault, c *election1) {
	switch f.a {
	case 0:
		f.a = c.tally.Winner
	case 1:
		f.a = c.m.h.id
	case 2:
		f.a = c.rule.Primary
	default:
		f.a = w.hosts[w.rng.IntN(len(w.hosts))].id
	}
	if w.host(f.a) == nil {
		f.a = c.m.h.id
	}
	f.b = 1
	w.inject(f)
}

func (w *world) inject(f fault) {
	if w.healed > 0 {
		return
	}
	h := w.host(f.a)
	w.logf("FAULT %s", f)
	undo := func(d time.Duration, g func()) {
		if d < time.Hour {
			w.after(nil, d, func() {
				if w.healed == 0 {
					w.logf("end of %s", f)
					g()
				}
			})
		}
	}
	switch f.kind {
	case "crash":
		h.s.crash()
		undo(f.d, h.s.start)
	case "host crash":
		h.s.crash()
		h.m.crash()
		h.down = true
		undo(f.d, func() { h.down = false; h.s.start(); w.after(nil, w.between(0, time.Second), h.boot) })
		w.judge.excuse(f.d * 0)
	case "monitor crash":
		h.m.crash()
		w.judge.excuse(min(f.d, 16*time.Second))
		undo(f.d, h.boot)
	case "hang":
		w.freeze(f.d, &h.s.proc)
	case "monitor hang":
		w.freeze(f.d, &h.m.proc)
	case "host hang":
		w.freeze(f.d, &h.s.proc, &h.m.proc)
	case "isolate", "one way in", "one way out":
		w.isolate(f, true)
		undo(f.d, func() { w.isolate(f, false) })
	case "cut", "one way":
		w.cutPair(f, true)
		undo(f.d, func() { w.cutPair(f, false) })
	case "flap":
		for at := time.Duration(0); at < min(f.d, 8*time.Second); at += w.between(100*time.Millisecond, 3*time.Second) {
			g := f
			g.kind, g.d = "isolate", w.between(50*time.Millisecond, 2*time.Second)
			w.after(nil, at, func() { w.inject(g) })
		}
	case "slow link":
		most := []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 800 * time.Millisecond}[w.rng.IntN(3)]
		for _, o := range w.hosts {
			w.link(f.a, o.id).slow = w.between(most/4, most)
		}
		undo(f.d, func() {
			for _, o := range w.hosts {
				w.link(f.a, o.id).slow = 0
			}
		})
	case "slow answers": // staged: to the first primary
		w.link(f.a, 1).slow = 850 * time.Millisecond
	case "slow disk":
		h.s.slow = w.between(20*time.Millisecond, 400*time.Millisecond)
		undo(f.d, func() { h.s.slow = 0 })
	case "lazy":
		for _, o := range w.hosts {
			o.s.lazy = w.between(0, 500*time.Millisecond)
		}
		undo(f.d, func() {
			for _, o := range w.hosts {
				o.s.lazy = 0
			}
		})
	case "reclone":
		w.reclone(h)
	default:
		if !w.inject2(f, h, undo) {
			w.operate(f, h, undo)
		}
	}
}

func (h *host) boot() {
	if h.id != election.Arbiter {
		h.m.start()
	}
}

// operate is an operator at the wrong moment.
func (w *world) operate(f fault, h *host, undo func(time.Duration, func())) {
	switch f.kind {
	case "pause":
		w.pause(h, true)
		undo(f.d, func() { w.pause(h, false) })
	case "unregister":
		if h.id != 1 && h.id != election.Arbiter {
			w.members = slices.DeleteFunc(w.members, func(id int32) bool { return id == h.id })
			undo(f.d, func() { w.register(h) })
		}
	case "stop":
		for _, o := range w.hosts {
			if s := o.s; s.up && s.primary() && !s.hung(w.now) {
				w.seq++
				s.commit(rec{id: -int64(w.seq), stop: true}, nil)
				w.after(nil, w.between(5*time.Millisecond, 50*time.Millisecond), s.crash)
				undo(f.d, s.start)
			}
		}
	case "switchover", "restart":
		w.askHandover(f.b, f.kind == "restart")
	case "sync on":
		w.mixed = w.mixed || !w.policy.Quorum
		w.policy.Quorum = true // what was acknowledged before is not covered: to the judge it stays off
		for _, o := range w.hosts {
			o.m.p.Quorum = true
		}
	}
}

func (w *world) register(h *host) {
	if !slices.Contains(w.members, h.id) {
		w.members = append(w.members, h.id)
	}
}

func (w *world) freeze(d time.Duration, procs ...*proc) {
	d = min(d, 10*time.Second)
	for _, p := range procs {
		if p.up {
			p.until = max(p.until, w.now+d)
			w.judge.excuse(d)
		}
	}
}

func (w *world) isolate(f fault, cut bool) {
	for _, o := range w.hosts {
		if o.id == f.a {
			continue
		}
		if f.kind != "one way out" {
			w.setCut(o.id, f.a, cut)
		}
		if f.kind != "one way in" {
			w.setCut(f.a, o.id, cut)
		}
	}
}

func (w *world) cutPair(f fault, cut bool) {
	if f.a == f.b {
		return
	}
	w.setCut(f.a, f.b, cut)
	if f.kind == "cut" {
		w.setCut(f.b, f.a, cut)
	}
}

// reclone loses the disk of a standby and clones it from the living primary.
func (w *world) reclone(h *host) {
	for _, o := range w.hosts {
		if s := o.s; s.up && s.primary() && !s.starting && h.s.recovery && h.s.data() && w.open(o, h) && !s.hung(w.now) && h.s.conn != 0 && h.s.upstream == o.id {
			h.s.crash()
			inc, recs, line := s.inc, s.wal, s.line()
			w.after(nil, w.between(300*time.Millisecond, 2*time.Second), func() {
				if s.inc == inc && s.primary() {
					recs, line = s.wal, s.line()
				}
				h.s.copyFrom(recs, line, o.id)
				h.s.start()
			})
			return
		}
	}
}

// heal ends all faults.
func (w *world) heal() {
	w.logf("all is healed")
	w.healed = w.now
	w.mustServe()
	w.points = map[string][]func(*election1){}
	for _, h := range w.hosts {
		w.mend(h)
		h.down = false
		h.s.until, h.m.until = min(h.s.until, w.now), min(h.m.until, w.now)
		h.s.slow = 0
		w.register(h)
		for _, o := range w.hosts {
			w.setCut(h.id, o.id, false)
			w.link(h.id, o.id).slow = 0
		}
	}
	w.pause(w.hosts[0], false)
	for _, h := range w.hosts {
		h.s.start()
		h.boot()
	}
}
