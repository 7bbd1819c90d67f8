package election_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

var (
	start  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	policy = election.Policy{Interval: 2 * time.Second, RegisterEvery: 10 * time.Second, PruneEvery: time.Hour}

	primary = election.View{Up: true}
	standby = election.View{Up: true, InRecovery: true}
	down    = election.View{}
)

func row(role election.Role, active bool) election.Node {
	return election.Node{Registered: true, Role: role, Active: active}
}

func tell(what election.Event) election.Action {
	return election.Action{Verb: election.Notify, Event: what}
}

func do(v election.Verb) election.Action { return election.Action{Verb: v} }

func TestPolicy_Step(t *testing.T) {
	t.Parallel()
	watched := func(phase election.Phase, role election.Role) election.State {
		return election.State{Phase: phase, Role: role, Pruned: start}
	}
	lost := func(role election.Role) election.State {
		return election.State{Phase: election.Waiting, Reason: election.LocalNotReachable, Role: role, Pruned: start}
	}
	tests := map[string]struct {
		state   election.State
		see     election.Observation
		phase   election.Phase
		reason  election.Reason
		actions []election.Action
	}{
		"the daemon starts before its server": {
			see:   election.Observation{Local: down},
			phase: election.Waiting, reason: election.LocalNotReachable,
		},
		"rows that can not be read decide nothing": {
			see:   election.Observation{Local: primary},
			phase: election.Waiting, reason: election.RowNotReadable,
		},
		"a node without a row is registered": {
			see:   election.Observation{Local: primary, RowKnown: true},
			phase: election.Unregistered, reason: election.NotRegistered, actions: []election.Action{do(election.Register)},
		},
		"a refused registration is not hammered": {
			state: election.State{Phase: election.Unregistered, Tried: start.Add(-time.Second)},
			see:   election.Observation{Local: primary, RowKnown: true},
			phase: election.Unregistered, reason: election.NotRegistered,
		},
		"a standby is sampled": {
			state: watched(election.AsStandby, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, true), Upstream: primary},
			phase: election.AsStandby, reason: election.WatchingStandby, actions: []election.Action{do(election.Sample)},
		},
		"a standby whose row says inactive is active": {
			state: watched(election.AsStandby, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, false), Upstream: primary},
			phase: election.AsStandby, reason: election.WatchingStandby, actions: []election.Action{do(election.MarkActive), do(election.Sample)},
		},
		"a standby's server goes": {
			state: watched(election.AsStandby, election.Standby),
			see:   election.Observation{Local: down, Upstream: primary},
			phase: election.Waiting, reason: election.LocalNotReachable, actions: []election.Action{do(election.MarkInactive), tell(election.StandbyFailure)},
		},
		"a server that is still gone is old news": {
			state: lost(election.Standby),
			see:   election.Observation{Local: down},
			phase: election.Waiting, reason: election.LocalNotReachable,
		},
		"a standby's server returns": {
			state: lost(election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, false), Upstream: primary},
			phase: election.AsStandby, reason: election.WatchingStandby,
			actions: []election.Action{do(election.MarkActive), tell(election.StandbyRecovery), do(election.Sample)},
		},
		"the row of a former primary is not marked active: there would be two primaries": {
			state: lost(election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Primary, false)},
			phase: election.Orphaned, reason: election.PrimaryNotReachable, actions: []election.Action{tell(election.StandbyRecovery)},
		},
		"its row becomes that of a standby, and that is told": {
			state: watched(election.Orphaned, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Primary, false), Upstream: primary},
			phase: election.AsStandby, reason: election.NowStandby, actions: []election.Action{do(election.Adopt), tell(election.StandbyReconnect)},
		},
		"once, where that fails": {
			state: election.State{Phase: election.AsStandby, Reason: election.NowStandby, Role: election.Standby},
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Primary, false), Upstream: primary},
			phase: election.AsStandby, reason: election.NowStandby, actions: []election.Action{do(election.Adopt)},
		},
		"a primary's server goes": {
			state: watched(election.AsPrimary, election.Primary),
			see:   election.Observation{Local: down},
			phase: election.Waiting, reason: election.LocalNotReachable, actions: []election.Action{tell(election.LocalDisconnect)},
		},
		"a primary's server returns": {
			state: lost(election.Primary),
			see:   election.Observation{Local: primary, RowKnown: true, Node: row(election.Primary, true)},
			phase: election.AsPrimary, reason: election.WatchingPrimary, actions: []election.Action{tell(election.LocalReconnect)},
		},
		"a standby loses its primary": {
			state: watched(election.AsStandby, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, true), Upstream: down},
			phase: election.Orphaned, reason: election.PrimaryNotReachable, actions: []election.Action{tell(election.UpstreamDisconnect)},
		},
		"an orphan waits quietly": {
			state: watched(election.Orphaned, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, true), Upstream: down},
			phase: election.Orphaned, reason: election.PrimaryNotReachable,
		},
		"an orphan finds a primary": {
			state: watched(election.Orphaned, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, true), Upstream: primary},
			phase: election.AsStandby, reason: election.WatchingStandby, actions: []election.Action{tell(election.UpstreamReconnect), do(election.Sample)},
		},
		"a standby that lost its primary in an election finds one": {
			state: watched(election.Failover, election.Standby),
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Standby, true), Upstream: primary},
			phase: election.AsStandby, reason: election.WatchingStandby, actions: []election.Action{tell(election.UpstreamReconnect), do(election.Sample)},
		},
		"a registered primary that runs as a standby is registered anew": {
			see:   election.Observation{Local: standby, RowKnown: true, Node: row(election.Primary, false), Upstream: primary},
			phase: election.AsStandby, reason: election.NowStandby, actions: []election.Action{do(election.Adopt), tell(election.StandbyReconnect)},
		},
		"a registered standby that runs as a primary is only shown: who promoted it also records it": {
			state: watched(election.AsStandby, election.Standby),
			see:   election.Observation{Local: primary, RowKnown: true, Node: row(election.Standby, true)},
			phase: election.AsPrimary, reason: election.NowPrimary,
		},
		"history is pruned when it is time": {
			state: election.State{Phase: election.AsPrimary, Pruned: start.Add(-time.Hour)},
			see:   election.Observation{Local: primary, RowKnown: true, Node: row(election.Primary, true)},
			phase: election.AsPrimary, reason: election.WatchingPrimary, actions: []election.Action{do(election.Prune)},
		},
		"a witness is neither": {
			see:   election.Observation{Local: primary, RowKnown: true, Node: row(election.Witness, true)},
			phase: election.AsWitness, reason: election.WatchingWitness, actions: []election.Action{{Verb: election.CopyToWitness}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.see.Now = start
			if test.state.Pruned.IsZero() {
				test.state.Pruned = start
			}
			d := policy.Step(test.state, test.see)
			if d.Next.Phase != test.phase || d.Reason != test.reason || d.Next.Reason != test.reason {
				t.Errorf("got %q because %q, want %q because %q", d.Next.Phase, d.Reason, test.phase, test.reason)
			}
			if len(d.Actions)+len(test.actions) > 0 && !reflect.DeepEqual(d.Actions, test.actions) {
				t.Errorf("got actions %v, want %v", d.Actions, test.actions)
			}
			if again := policy.Step(test.state, test.see); !reflect.DeepEqual(again, d) {
				t.Errorf("the same question had another answer: %v, then %v", d, again)
			}
		})
	}
}

// A child that was not attached when we first looked was never ours to lose;
// from then on each change is told once.
func TestPolicy_Step_Children(t *testing.T) {
	t.Parallel()
	s := election.State{Pruned: start}
	steps := []struct {
		name     string
		children map[int32]bool
		want     []election.Action
	}{
		{"first look: nothing is news", map[int32]bool{2: true, 3: false}, nil},
		{"nothing changed", map[int32]bool{2: true, 3: false}, nil},
		{"one that was never seen attaches", map[int32]bool{2: true, 3: true}, []election.Action{{election.Notify, election.ChildConnect, 3}}},
		{"one is gone", map[int32]bool{2: false, 3: true}, []election.Action{{election.Notify, election.ChildDisconnect, 2}}},
		{"and stays gone", map[int32]bool{2: false, 3: true}, nil},
		{"and is back, while the other goes", map[int32]bool{2: true, 3: false}, []election.Action{{election.Notify, election.ChildReconnect, 2}, {election.Notify, election.ChildDisconnect, 3}}},
		{"an unregistered one is forgotten", map[int32]bool{2: true}, nil},
		{"and new when it returns", map[int32]bool{2: true, 3: true}, []election.Action{{election.Notify, election.ChildConnect, 3}}},
	}
	for _, step := range steps {
		d := policy.Step(s, election.Observation{Now: start, Local: primary, RowKnown: true, Node: row(election.Primary, true), Children: step.children})
		if len(d.Actions)+len(step.want) > 0 && !reflect.DeepEqual(d.Actions, step.want) {
			t.Errorf("%s: got %v, want %v", step.name, d.Actions, step.want)
		}
		s = d.Next
	}
}

// Since moves with the phase or the reason, not with every look.
func TestPolicy_Step_Since(t *testing.T) {
	t.Parallel()
	see := election.Observation{Now: start, Local: primary, RowKnown: true, Node: row(election.Primary, true)}
	s := policy.Step(election.State{}, see).Next
	see.Now = start.Add(time.Minute)
	if s = policy.Step(s, see).Next; s.Since != start {
		t.Errorf("got %v, want %v", s.Since, start)
	}
	see.Local = down
	if s = policy.Step(s, see).Next; s.Since != see.Now {
		t.Errorf("got %v, want %v", s.Since, see.Now)
	}
}
