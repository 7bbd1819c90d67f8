package election

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A request is carried out by the monitor of a standby, once, in its time and under its rule only, while the primary lives
// and nobody else is asked to.
func TestPolicy_RestartsWhenAsked(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	rule := Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	asked := Restart{ID: "x", Term: 4, Asked: now.Add(-time.Second), Until: now.Add(time.Second), Limit: time.Minute}
	p := Policy{Automatic: true, Interval: time.Second, Silence: 2 * time.Second}
	step := func(change func(*Restart, *Observation)) []Action {
		r := asked
		o := Observation{
			Now: now, Self: 2, Rule: rule, RowKnown: true, Local: View{Up: true, InRecovery: true}, Upstream: View{Up: true}, Node: Node{Registered: true, Role: Standby, Active: true, Upstream: 1},
			Peers: []Peer{
				{ID: 1, Role: Primary, Answer: Answers, Running: Primary, SeenAt: now, Rule: rule},
				{ID: 2, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule, Receiving: true, Receives: 1, Streams: true, Started: now.Add(-time.Hour)},
				{ID: 3, Role: Standby, Answer: Answers, Running: Standby, SeenAt: now, Rule: rule, Started: now.Add(-time.Hour)},
			},
		}
		change(&r, &o)
		o.Peers[1].Restart = r
		return p.Step(State{Phase: AsStandby, RestartBegun: "begun"}, o).Actions
	}
	require.Contains(t, step(func(*Restart, *Observation) {}), Action{Verb: RestartServer})
	for what, change := range map[string]func(*Restart, *Observation){
		"there is none":             func(r *Restart, _ *Observation) { *r = Restart{} },
		"it is done":                func(_ *Restart, o *Observation) { o.Peers[1].Started = now },
		"it is too late":            func(r *Restart, _ *Observation) { r.Until = now },
		"another term":              func(r *Restart, _ *Observation) { r.Term = 3 },
		"another monitor has begun": func(r *Restart, _ *Observation) { r.Begun = true },
		"this monitor has begun":    func(r *Restart, _ *Observation) { r.ID = "begun" },
		"it has no limit":           func(r *Restart, _ *Observation) { r.Limit = 0 },
		"something is under way":    func(_ *Restart, o *Observation) { o.Busy = true },
		"failover is paused":        func(_ *Restart, o *Observation) { o.Peers[0].Paused, o.Peers[0].PauseSeq = true, 1 },
		"another node is asked":     func(r *Restart, o *Observation) { o.Peers[2].Restart = *r },
		"the primary is to hand over": func(_ *Restart, o *Observation) {
			o.Peers[0].Handover = Handover{ID: "y", Term: 4, Target: 3, Until: now.Add(time.Second)}
		},
		"the primary is lost": func(_ *Restart, o *Observation) {
			o.Peers[0].Answer, o.Peers[0].Ended, o.Peers[0].SeenAt = Silent, false, now.Add(-time.Hour)
			o.Peers[1].Streams, o.Peers[1].Receiving = false, false
		},
	} {
		require.NotContains(t, step(change), Action{Verb: RestartServer}, what)
	}
}
