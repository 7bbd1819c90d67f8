package election

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A request is carried out by the monitor of the primary, in its time and under its rule only.
func TestPolicy_HandsOverWhenAsked(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	rule := Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	asked := Handover{ID: "x", Term: 4, Target: 2, Start: now.Add(-time.Second), Until: now.Add(time.Second)}
	p := Policy{Automatic: true, Interval: time.Second, Silence: 2 * time.Second}
	step := func(change func(*Handover, *Observation)) []Action {
		h := asked
		o := Observation{
			Now: now, Self: 1, Rule: rule, RowKnown: true, Local: View{Up: true}, Node: Node{Registered: true, Role: Primary, Active: true},
			Peers: []Peer{
				{ID: 1, Role: Primary, Answer: Answers, Running: Primary, SeenAt: now, Rule: rule},
				{ID: 2, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule},
			},
		}
		change(&h, &o)
		o.Peers[0].Handover = h
		return p.Step(State{Phase: AsPrimary, HandoverBegun: "failed"}, o).Actions
	}
	require.Contains(t, step(func(*Handover, *Observation) {}), Action{Verb: HandOver})
	require.Contains(t, step(func(h *Handover, _ *Observation) { h.Hold = time.Minute }), Action{Verb: HandOver}, "one that was left behind")
	require.Contains(t, step(func(h *Handover, _ *Observation) { h.Begun = true }), Action{Verb: HandOver}, "the same, earlier")
	require.Contains(t, step(func(_ *Handover, o *Observation) { o.Last = Outcome{Verb: HandOver, At: now.Add(-time.Second)} }), Action{Verb: HandOver}, "another one has failed")
	for what, change := range map[string]func(*Handover, *Observation){
		"it is too early":              func(h *Handover, _ *Observation) { h.Start = now.Add(time.Millisecond) },
		"it is too late":               func(h *Handover, _ *Observation) { h.Until = now },
		"it has begun in another term": func(h *Handover, _ *Observation) { h.Hold, h.Term = time.Minute, 3 },
		"another term":                 func(h *Handover, _ *Observation) { h.Term = 3 },
		"there is none":                func(h *Handover, _ *Observation) { *h = Handover{} },
		"failover is paused":           func(_ *Handover, o *Observation) { o.Peers[0].Paused, o.Peers[0].PauseSeq = true, 1 },
		"something is under way":       func(_ *Handover, o *Observation) { o.Busy = true },
		"it has just failed": func(h *Handover, o *Observation) {
			h.ID = "failed"
			o.Last = Outcome{Verb: HandOver, At: now.Add(-time.Second)}
		},
	} {
		require.NotContains(t, step(change), Action{Verb: HandOver}, what)
	}
}

// Only a switchover that has not begun, and may still begin, can be taken back.
func TestHandover_Requested(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	rule := Rule{Term: 4, Primary: 1}
	later := Handover{ID: "x", Term: 4, Target: 2, Start: now.Add(time.Hour), Until: now.Add(time.Hour + time.Second)}
	require.True(t, later.Requested(now, rule))
	for what, change := range map[string]func(*Handover){
		"there is none":   func(h *Handover) { *h = Handover{} },
		"another term":    func(h *Handover) { h.Term = 3 },
		"it is over":      func(h *Handover) { h.Start, h.Until = now.Add(-time.Minute), now },
		"it has begun":    func(h *Handover) { h.Begun = true },
		"it is a notice":  func(h *Handover) { h.Hold = time.Minute },
		"it is a restart": func(h *Handover) { h.Restart = true },
	} {
		h := later
		change(&h)
		require.False(t, h.Requested(now, rule), what)
	}
}

// Who paused is known only of the newest pause, and only while it lasts.
func TestPausedBy(t *testing.T) {
	t.Parallel()
	by := Pause{Seq: 2, By: "ada@desk"}
	require.Equal(t, by, PausedBy([]Peer{{PauseSeq: 1, Paused: true, PausedBy: Pause{Seq: 1, By: "old"}}, {PauseSeq: 2, Paused: true}, {PauseSeq: 2, Paused: true, PausedBy: by}}))
	require.Zero(t, PausedBy([]Peer{{PauseSeq: 3}, {PauseSeq: 2, Paused: true, PausedBy: by}}), "it was unpaused")
	require.Zero(t, PausedBy([]Peer{{PauseSeq: 3, Paused: true, PausedBy: by}}), "an older program has paused again")
	require.Zero(t, PausedBy(nil))
}

// The other monitors leave the election to the one that carries the handover out, for a limited
// time. After that the shutdown of the primary is followed by an election.
func TestPolicy_LeavesTheElectionToAHandover(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	rule := Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true}
	notice := Handover{ID: "x", Term: 4, Target: 2, Hold: 10 * time.Second}
	p := Policy{Automatic: true, Interval: time.Second, Silence: 2 * time.Second}
	at := func(now time.Time, h Handover) Observation {
		standby := Peer{ID: 2, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule, ShutDown: true, Priority: 100, Monitored: true, Automatic: true, Handover: h}
		third := standby
		third.ID = 3
		return Observation{
			Now: now, Self: 2, Rule: rule, RowKnown: true, Local: View{Up: true, InRecovery: true}, Node: Node{Registered: true, Role: Standby, Active: true},
			Peers: []Peer{{ID: 1, Role: Primary, Answer: Refused, Ended: true, Since: now.Add(-time.Second), SeenAt: now.Add(-2 * time.Second)}, standby, third},
		}
	}
	elects := func(d Decision) bool {
		for _, a := range d.Actions {
			if a.Verb == Elect {
				return true
			}
		}
		return false
	}
	d := p.Step(State{Phase: AsStandby}, at(now, Handover{}))
	require.Equal(t, HealthShutDown, d.Next.Health, "without a notice it was the operator")
	require.False(t, elects(d))

	d = p.Step(State{Phase: AsStandby}, at(now, notice))
	require.Equal(t, HeldBack, d.Reason)
	require.False(t, elects(d))
	d = p.Step(d.Next, at(now.Add(9*time.Second), notice))
	require.Equal(t, HeldBack, d.Reason)
	d = p.Step(d.Next, at(now.Add(11*time.Second), notice))
	require.True(t, elects(d), d.Reason)

	ended := at(now, notice)
	ended.Peers[0].Since = now.Add(-7 * time.Second)
	d = p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-8 * time.Second)}, ended)
	require.True(t, elects(d), "a server that has ended is not waited for so long")

	for _, answer := range []Answer{Silent, Hangs, Rejects, NoSlots} { // its machine has died, or nobody can know what it does
		gone := at(now, notice)
		gone.Peers[0].Answer, gone.Peers[0].Ended, gone.Peers[0].Since = answer, false, now.Add(-7*time.Second)
		require.LessOrEqual(t, p.heldBack(State{Handover: notice, HandoverAt: now.Add(-8 * time.Second)}, gone), time.Duration(0), answer)
	}
	shuts := at(now, notice)
	shuts.Peers[0].Answer, shuts.Peers[0].Since = NotAccepting, now.Add(-7*time.Second)
	require.Equal(t, 2*time.Second, p.heldBack(State{Handover: notice, HandoverAt: now.Add(-8 * time.Second)}, shuts), "it still shuts down")

	back := at(now, notice)
	back.Peers[0] = Peer{ID: 1, Role: Primary, Answer: Answers, Running: Standby, Since: now, SeenAt: now, Handover: notice}
	require.Equal(t, 6*time.Second, p.heldBack(State{Handover: notice, HandoverAt: now}, back), "its own vote is needed")
	back.Peers[0].Handover = Handover{}
	require.Zero(t, p.heldBack(State{Handover: notice, HandoverAt: now}, back), "its daemon ended, and the next one has given it up")

	// A notice that could not be removed comes back with its node, after the primary has gone on.
	runs := func(now time.Time, h Handover) Observation {
		o := at(now, h)
		o.Peers[0] = Peer{ID: 1, Role: Primary, Answer: Answers, Running: Primary, Since: now, SeenAt: now, Rule: rule}
		return o
	}
	d = p.Step(State{Phase: AsStandby}, at(now, notice))
	d = p.Step(d.Next, runs(now.Add(time.Second), Handover{}))
	require.False(t, d.Next.HandsOver(), "nobody has the notice now")
	d = p.Step(d.Next, runs(now.Add(3*time.Second), notice))
	require.False(t, d.Next.HandsOver(), "the primary goes on without it")
	d = p.Step(d.Next, at(now.Add(4*time.Second), notice))
	require.False(t, d.Next.HandsOver(), "a later loss waits for nothing")

	// The notices are removed, and the primary is lost before it was seen to go on.
	d = p.Step(State{Phase: AsStandby}, at(now, notice))
	d = p.Step(d.Next, at(now.Add(time.Second), Handover{}))
	require.Zero(t, p.heldBack(d.Next, at(now.Add(time.Second), Handover{})))

	// Of an old notice that was left on a node, and a newer one, the newer counts, whoever answers first.
	two := at(now, notice)
	two.Peers[2].Handover.ID, two.Peers[2].Handover.Until = "y", now.Add(time.Second)
	h, ok := Noticed(rule, two.Peers)
	require.True(t, ok)
	require.Equal(t, "y", h.ID)

	old := notice
	old.Term = 3
	d = p.Step(State{Phase: AsStandby}, at(now, old))
	require.Equal(t, HealthShutDown, d.Next.Health, "a notice of another term says nothing")
	d = p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-time.Hour)}, at(now, notice))
	require.True(t, elects(d), "the primary was not seen since")

	goesOn := at(now, notice)
	goesOn.Peers[0] = Peer{ID: 1, Role: Primary, Answer: Answers, Running: Primary, SeenAt: now, Rule: rule}
	d = p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-time.Hour)}, goesOn)
	require.True(t, d.Next.HandoverOver)
	d = p.Step(d.Next, at(now, notice))
	require.Equal(t, HealthShutDown, d.Next.Health, "a notice that was left behind says nothing")
	require.False(t, elects(d))

	alone := at(now, notice)
	alone.Peers[0] = Peer{ID: 1, Role: Primary, Answer: Answers, Running: Primary, SeenAt: now, Rule: rule, Handover: notice}
	require.False(t, p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-9 * time.Second)}, alone).Next.HandoverOver)
	require.True(t, p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-11 * time.Second)}, alone).Next.HandoverOver, "its daemon died, and it goes on")

	hangs := at(now, notice)
	hangs.Peers[0].Answer, hangs.Peers[0].Ended, hangs.Peers[0].Since, hangs.Peers[0].Starting = NotAccepting, false, now.Add(-11*time.Second), now.Add(-11*time.Second)
	d = p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-9 * time.Second)}, hangs)
	require.Equal(t, HealthNotAccepting, d.Next.Health)
	d = p.Step(State{Phase: AsStandby, Handover: notice, HandoverAt: now.Add(-11 * time.Second)}, hangs)
	require.Equal(t, HealthStuck, d.Next.Health, "a shutdown that hangs is not waited for longer than it was given")
}

// The target of a handover wins where it has as much WAL as the others, and not before those that
// have more.
func TestPolicy_Prefers(t *testing.T) {
	t.Parallel()
	rule := Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	peer := func(id int32, priority int) Peer {
		return Peer{ID: id, Role: Standby, Answer: Answers, Running: Standby, Priority: priority, Monitored: true, Automatic: true, CanFence: true, Rule: rule}
	}
	p := Policy{Automatic: true, Prefer: 3}
	require.Equal(t, int32(3), p.Best(rule, []Peer{peer(2, 200), peer(3, 100)}))
	ahead := peer(2, 100)
	ahead.Position.LSN = 8
	require.Equal(t, int32(2), p.Best(rule, []Peer{ahead, peer(3, 200)}))
	p.Prefer = 0
	require.Equal(t, int32(2), p.Best(rule, []Peer{peer(2, 200), peer(3, 100)}))
}

// A standby that streams from a node which is the primary no more, although it is registered below
// the primary, is to follow that.
func TestPolicy_FollowsItsUpstream(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	rule := Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	p := Policy{Automatic: true, Interval: time.Second, Silence: 2 * time.Second}
	follows := func(change func(*Observation)) bool {
		o := Observation{
			Now: now, Self: 3, Rule: rule, RowKnown: true, Local: View{Up: true, InRecovery: true}, Upstream: View{Up: true},
			Node: Node{Registered: true, Role: Standby, Active: true, Upstream: 1},
			Peers: []Peer{
				{ID: 1, Role: Primary, Answer: Answers, Running: Primary, SeenAt: now, Rule: rule, Feeds: []int32{2}},
				{ID: 2, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule, Receiving: true, Receives: 1, Feeds: []int32{3}},
				{ID: 3, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule, Receiving: true, Receives: 2},
			},
		}
		change(&o)
		d := p.Step(State{Phase: AsStandby}, o)
		o.Now = now.Add(p.Silence)
		for _, a := range p.Step(d.Next, o).Actions {
			if a.Verb == Follow {
				return true
			}
		}
		return false
	}
	require.True(t, follows(func(*Observation) {}))
	for what, change := range map[string]func(*Observation){
		"it is registered below that node":           func(o *Observation) { o.Node.Upstream = 2 },
		"its address is known under a wrong name":    func(o *Observation) { o.Peers[0].Feeds, o.Peers[1].Feeds = []int32{2, 3}, nil },
		"where it streams from is not known":         func(o *Observation) { o.Peers[2].Receives = 0 },
		"the primary does not run":                   func(o *Observation) { o.Peers[0].Answer = Silent },
		"that node is a primary, which others judge": func(o *Observation) { o.Peers[1].Running = Primary },
	} {
		require.False(t, follows(change), what)
	}
}
