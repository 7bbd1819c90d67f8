package election_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// Each reason of failover=automatic, with what leads to it.
func TestPolicy_Step_Automatic(t *testing.T) {
	t.Parallel()
	r := three(false)
	held := holding(r)
	ballot := func(term int64) func(*election.Peer) {
		return func(p *election.Peer) { p.Term, p.Candidate = term, "node3" }
	}
	detached := func(p *election.Peer) { p.Detached = true }
	later := r
	later.Term, later.Primary = 2, 2
	mine := r
	mine.Term, mine.Primary = 2, 3
	lost := []election.Peer{gone(election.Silent, held), answers(2, election.Standby, 100, held), answers(3, election.Standby, 90, held)}
	base := election.Observation{Now: start, Self: 2, RowKnown: true, Rule: r, Candidate: "node2", Local: standby, Node: row(election.Standby, true)}
	of := func(change func(*election.Observation), peers ...election.Peer) election.Observation {
		o := base
		o.Peers = peers
		if change != nil {
			change(&o)
		}
		return o
	}
	asPrimary := func(o *election.Observation) { o.Self, o.Local, o.Node = 1, primary, row(election.Primary, true) }
	patient := failoverPolicy
	patient.Patience = time.Minute
	longAgo := election.State{LostAt: start.Add(-time.Hour), DisconnectedAt: start.Add(-time.Hour), PrimarySince: start.Add(-time.Hour), BallotAt: start.Add(-time.Hour), BallotFor: 9, Pruned: start}
	tests := map[string]struct {
		policy election.Policy
		state  election.State
		see    election.Observation
		reason election.Reason
		verb   election.Verb // of the first action; empty: none
	}{
		"a primary meets the rule of another": {failoverPolicy, longAgo, of(asPrimary, answers(1, election.Primary, 100, held), answers(2, election.Primary, 90, holding(later))), election.Deposed, election.Fence},
		"a winner whose own rule is older than the lost primary's is not deposed": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, ballot(2), won)), election.WatchingPrimary, election.Reconcile,
		},
		"nor before it is seen as a primary itself": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Standby, 100, ballot(2))), election.WatchingPrimary, election.Reconcile,
		},
		"but it is by a later election": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 3 }, answers(2, election.Primary, 100, holding(later)), answers(3, election.Primary, 100, ballot(1), won)), election.Deposed, election.Fence,
		},
		"a witness's word alone deposes nobody: it stands for a later term": {
			failoverPolicy, longAgo, of(asPrimary, answers(1, election.Primary, 100, held), answers(3, election.Primary, 0, witness, holding(later))), election.MetHigherTerm, election.Reaffirm,
		},
		"a primary meets a ballot of a later term": {failoverPolicy, longAgo, of(asPrimary, answers(1, election.Primary, 100, held), answers(2, election.Standby, 90, held, ballot(2))), election.MetHigherTerm, election.Reaffirm},
		"it leaves an elected primary alone": {
			failoverPolicy, longAgo, of(asPrimary, answers(1, election.Primary, 100, held), answers(2, election.Primary, 90, held, ballot(2), won)), election.WatchingPrimary, election.Reconcile,
		},
		"also where that has pledged itself in a later term since": {
			failoverPolicy, longAgo, of(asPrimary, answers(1, election.Primary, 100, held), answers(2, election.Primary, 90, held, ballot(3), toldOf(election.Rule{Term: 2, Primary: 2}))), election.WatchingPrimary, election.Reconcile,
		},
		"one that was just promoted waits for its rule": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, held, ballot(2), won)), election.WatchingPrimary, election.Reconcile,
		},
		"not where the coordinator of its election has ended": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, held, ballot(2), won, func(p *election.Peer) { p.CoordinatorGone = true })), election.MetHigherTerm, election.Reaffirm,
		},
		"and stands for one when none comes": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, held, ballot(2), won)), election.MetHigherTerm, election.Reaffirm,
		},
		"one that was promoted by hand is stopped where the primary runs": {
			failoverPolicy, election.State{}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, answers(1, election.Primary, 100, held), answers(2, election.Primary, 100, held)), election.Unelected, election.Fence,
		},
		"not while that is paused": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, answers(1, election.Primary, 100, held, paused), answers(2, election.Primary, 100, held)), election.WatchingPrimary, election.Reconcile,
		},
		"and stands for election where the primary is lost": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, held), answers(3, election.Standby, 100, held)), election.Claiming, election.Reaffirm,
		},
		"but gives who promoted it time for a rule": {
			failoverPolicy, election.State{Pruned: start}, of(func(o *election.Observation) { asPrimary(o); o.Self = 2 }, gone(election.Silent, held), answers(2, election.Primary, 100, held), answers(3, election.Standby, 100, held)), election.WatchingPrimary, election.Reconcile,
		},
		"a former primary is down and another one is there": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { o.Self, o.Local, o.WasPrimary, o.Rule = 1, down, true, later }, gone(election.Refused, held), answers(2, election.Primary, 100, holding(later))),
			election.Rejoining, election.Rejoin,
		},
		"a detached standby finds the winner": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { o.Rule = mine }, answers(2, election.Standby, 100, held, ballot(2), detached), answers(3, election.Primary, 100, holding(mine))), election.FollowingWinner, election.Follow,
		},
		"a standby that has lost its primary follows it as soon as that is back": {
			failoverPolicy, election.State{DisconnectedAt: start.Add(-time.Second), PrimaryWasAway: true}, of(func(o *election.Observation) { o.Upstream = primary }, answers(1, election.Primary, 100, held), answers(2, election.Standby, 100, held)), election.FollowingWinner, election.Follow,
		},
		"its server tries it by itself while the primary was there all the time": {
			failoverPolicy, election.State{DisconnectedAt: start.Add(-time.Second)}, of(func(o *election.Observation) { o.Upstream = primary }, answers(1, election.Primary, 100, held), answers(2, election.Standby, 100, held)), election.WatchingStandby, "",
		},
		"but not one of an older term than its pledge": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { o.Rule = mine; o.Upstream = primary }, answers(2, election.Standby, 100, held, ballot(3), detached), answers(3, election.Primary, 100, holding(mine))), election.WatchingStandby, "",
		},
		"it waits a little after an attempt that failed, and is no standby of it yet": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Rule, o.Upstream, o.Last = mine, primary, election.Outcome{Verb: election.Follow, At: start}
			}, answers(2, election.Standby, 100, held, ballot(2), detached), answers(3, election.Primary, 100, holding(mine))), election.FollowingWinner, "",
		},
		"nor while it is being pointed there": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { o.Rule, o.Upstream, o.Busy = mine, primary, true },
				answers(2, election.Standby, 100, held, ballot(2), detached), answers(3, election.Primary, 100, holding(mine))), election.FollowingWinner, "",
		},
		"nor before it was looked at again after it was pointed there": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Rule, o.Upstream, o.Last = mine, primary, election.Outcome{Verb: election.Follow, At: start, OK: true}
			}, answers(2, election.Standby, 100, held, ballot(2), detached), answers(3, election.Primary, 100, holding(mine))), election.FollowingWinner, "",
		},
		"but again when it has strayed since": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Rule, o.Upstream, o.Last = mine, primary, election.Outcome{Verb: election.Follow, At: start.Add(-time.Millisecond), OK: true}
			}, answers(2, election.Standby, 100, held, ballot(2), detached), answers(3, election.Primary, 100, holding(mine))), election.FollowingWinner, election.Follow,
		},
		"one that has what the winner never had": {
			failoverPolicy, longAgo, of(func(o *election.Observation) { o.Rule, o.Diverged = mine, true }, answers(2, election.Standby, 100, held, detached), answers(3, election.Primary, 100, holding(mine))), election.Returning, election.Rejoin,
		},
		"lost, and it is its turn":          {failoverPolicy, election.State{LostAt: start.Add(-time.Second)}, of(nil, lost...), election.Electing, election.Elect},
		"lost, and another goes first":      {failoverPolicy, election.State{}, of(func(o *election.Observation) { o.Self = 3 }, lost...), election.NotMyTurn, ""},
		"lost, and reconnect_attempts":      {patient, election.State{}, of(nil, lost...), election.BeingPatient, ""},
		"lost, and an election is going on": {failoverPolicy, election.State{LostAt: start.Add(-time.Second)}, of(nil, lost[0], lost[1], answers(3, election.Standby, 90, held, ballot(2))), election.OthersElect, ""},
		"lost, and it just failed": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Last = election.Outcome{Verb: election.Elect, At: start, Reason: election.Reason(election.RefusedNoMajority)}
			}, lost...), election.WaitingToRetry, "",
		},
		"lost, and it was one failover too many": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Last = election.Outcome{Verb: election.Elect, At: start, Reason: election.Reason(election.RefusedTooMany)}
			}, lost...), election.HeldByLimit, "",
		},
		"lost, and paused": {
			failoverPolicy, longAgo, of(func(o *election.Observation) {
				o.Last = election.Outcome{Verb: election.Elect, At: start, Reason: election.Reason(election.RefusedPaused)}
				o.Peers = slices.Clone(o.Peers)
				o.Peers[1].Paused, o.Peers[1].PauseSeq = true, 1
			}, lost...), election.HeldByPause, "",
		},
		"a follow that only waits gives way": {failoverPolicy, longAgo, of(func(o *election.Observation) { o.Busy, o.Interruptible = true, true }, lost...), election.GivingWay, election.Interrupt},
		"what must not be ended does not":    {failoverPolicy, longAgo, of(func(o *election.Observation) { o.Busy = true }, lost...), "", ""},
		"nor while the primary lives":        {failoverPolicy, longAgo, of(func(o *election.Observation) { o.Busy, o.Interruptible, o.Upstream = true, true, primary }, answers(1, election.Primary, 100, held), answers(2, election.Standby, 100, held)), election.FollowingWinner, ""},
		"an observer comes last":             {failoverPolicy, election.State{}, of(func(o *election.Observation) { o.Observer, o.Self, o.Local, o.Node = true, 0, down, election.Node{} }, lost...), election.NotMyTurn, ""},
		"an observer watches":                {failoverPolicy, election.State{}, of(func(o *election.Observation) { o.Observer, o.Self, o.Local, o.Node = true, 0, down, election.Node{} }, answers(1, election.Primary, 100, held)), election.WatchingCluster, ""},
	}
	for name, test := range tests {
		d := test.policy.Step(test.state, test.see)
		verb := election.Verb("")
		for _, a := range d.Actions {
			if verb == "" && a.Verb != election.Notify && a.Verb != election.Sample && a.Verb != election.MarkActive && a.Verb != election.PrepareStandby && a.Verb != election.Prune {
				verb = a.Verb
			}
		}
		if d.Reason != test.reason || verb != test.verb {
			t.Errorf("%s: got %q (%s) and %v, want %q and %q", name, d.Reason, d.Next.Health, d.Actions, test.reason, test.verb)
		}
	}
	if d := (election.Policy{}).Step(longAgo, of(nil, lost...)); d.Next.Phase == election.Failover {
		t.Errorf("failover=manual: got %q", d.Reason)
	}
}

// An election that has a majority of the pledges is left alone while its winner may
// replay; split votes are not, for they have none.
func TestPolicy_Step_AfterSplitVotes(t *testing.T) {
	t.Parallel()
	for third, want := range map[string]election.Reason{"a": election.OthersElect, "b": election.Electing} {
		r, peers := cluster(3, true)
		for i, candidate := range []string{"", "a", third} {
			peers[i].Candidate, peers[i].Term, peers[i].Streams, peers[i].Receiving = candidate, 4, false, false
			peers[i].Replayed = 500
		}
		peers[0].Answer, peers[0].Ended, peers[0].Term = election.Refused, true, 3
		p := guessing
		p.Promotion = time.Minute
		s := election.State{LostAt: start.Add(-time.Minute), TurnsAt: start.Add(-time.Minute), BallotFor: 4, BallotAt: start.Add(-10 * time.Second)}
		d := p.Step(s, election.Observation{
			Now: start, Self: 2, RowKnown: true, Rule: r, Candidate: "c", Peers: peers, Node: election.Node{Registered: true, Role: election.Standby, Active: true},
			Local: election.View{Up: true, InRecovery: true},
		})
		if d.Reason != want {
			t.Errorf("%s: %s, want %s", third, d.Reason, want)
		}
	}
}
