package election_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

var guessing = election.Policy{Automatic: true, Silence: 2 * time.Second, Fence: 2500 * time.Millisecond}

// cluster is a primary, node 1, with so many standbys, all well. change may spoil it.
func cluster(nodes int32, quorum bool, change ...func(r *election.Rule, peers []election.Peer)) (election.Rule, []election.Peer) {
	r := election.Rule{Term: 3, Seq: 4, Primary: 1, Quorum: quorum}
	var peers []election.Peer
	for id := int32(1); id <= nodes; id++ {
		r.Voters = append(r.Voters, id)
		if quorum && id > 1 {
			r.Sync = append(r.Sync, id)
		}
	}
	r.Acks = len(r.Sync) / 2
	if quorum && r.Acks == 0 {
		r.Acks = 1
	}
	for id := int32(1); id <= nodes; id++ {
		p := election.Peer{
			ID: id, Role: election.Standby, Running: election.Standby, Priority: 100, Location: "default", Tried: start, Answer: election.Answers, SeenAt: start,
			Position: wal.Position{Timeline: 2, LSN: 1000}, Receives: 1, Streams: true, Receiving: true, Term: 3, Rule: r, Monitored: true, Automatic: true, CanFence: true,
		}
		if id == 1 {
			p.Role, p.Running, p.Receives, p.Streams = election.Primary, election.Primary, 0, false
		}
		peers = append(peers, p)
	}
	for _, f := range change {
		f(&r, peers)
	}
	return r, peers
}

func TestPolicy_Forecast_OfThePrimary(t *testing.T) {
	t.Parallel()
	type change = func(r *election.Rule, peers []election.Peer)
	tests := map[string]struct {
		nodes   int32
		quorum  bool
		change  change
		policy  func(p *election.Policy)
		refusal election.Refusal
		health  election.Health // default: dead
		wait    bool
		order   []int32
		key     election.Key   // of the second
		unfit   election.Unfit // of the last
	}{
		"equals: the lower id wins":   {nodes: 3, order: []int32{2, 3}, key: election.KeyID},
		"the same with quorum":        {nodes: 3, quorum: true, order: []int32{2, 3}, key: election.KeyID},
		"more WAL wins over priority": {nodes: 3, order: []int32{3, 2}, key: election.KeyLSN, change: func(_ *election.Rule, p []election.Peer) { p[2].Position.LSN, p[1].Priority = 1001, 200 }},
		"priority wins over the id":   {nodes: 3, order: []int32{3, 2}, key: election.KeyPriority, change: func(_ *election.Rule, p []election.Peer) { p[2].Priority = 101 }},
		"the later timeline wins": {nodes: 3, order: []int32{3, 2}, key: election.KeyTimeline, change: func(_ *election.Rule, p []election.Peer) {
			p[2].Position, p[1].Position.LSN = wal.Position{Timeline: 3, LSN: 10}, 2000
		}},
		"the newer rule wins over WAL":        {nodes: 3, order: []int32{3, 2}, key: election.KeyRule, change: func(_ *election.Rule, p []election.Peer) { p[1].Rule.Term, p[1].Position.LSN = 2, 2000 }},
		"what may not be promoted comes last": {nodes: 3, order: []int32{3, 2}, unfit: election.UnfitPriority, change: func(_ *election.Rule, p []election.Peer) { p[1].Priority, p[1].Position.LSN = 0, 2000 }},
		"with off a standby needs a daemon":   {nodes: 3, order: []int32{3, 2}, unfit: election.UnfitUnmonitored, change: func(_ *election.Rule, p []election.Peer) { p[1].Monitored = false }},
		"alone is no majority":                {nodes: 2, order: []int32{2}, refusal: election.RefusedNoMajority},
		"a silent standby is no candidate, and its vote is missing": {
			nodes: 3, order: []int32{2}, refusal: election.RefusedNoMajority,
			change: func(_ *election.Rule, p []election.Peer) { p[2].Answer = election.Silent },
		},
		"paused":             {nodes: 3, order: []int32{2, 3}, key: election.KeyID, refusal: election.RefusedPaused, change: func(_ *election.Rule, p []election.Peer) { p[2].Paused = true }},
		"failovers_per_hour": {nodes: 3, order: []int32{2, 3}, key: election.KeyID, refusal: election.RefusedTooMany, policy: func(p *election.Policy) { p.TooMany = true }},
		"no standby holds what was acknowledged": {nodes: 3, quorum: true, order: []int32{2, 3}, key: election.KeyID, refusal: election.RefusedSync, change: func(r *election.Rule, p []election.Peer) {
			r.Sync, r.Acks = nil, 0
			for i := range p {
				p[i].Rule = *r
			}
		}},
		"a primary that is lost already, and may run: the winner waits": {
			nodes: 3, order: []int32{2, 3}, key: election.KeyID, health: election.HealthSilent, wait: true,
			change: func(_ *election.Rule, p []election.Peer) {
				p[0].Answer, p[0].SeenAt = election.Silent, start.Add(-time.Minute)
				p[1].Streams, p[2].Streams = false, false
			},
		},
		"a primary that was shut down in order is not lost": {
			nodes: 3, order: []int32{2, 3}, key: election.KeyID, health: election.HealthShutDown, refusal: election.RefusedHealth,
			change: func(_ *election.Rule, p []election.Peer) {
				p[0].Answer = election.Refused
				p[1].Streams, p[2].Streams, p[1].ShutDown, p[2].ShutDown = false, false, true, true
			},
		},
		"another primary": {
			nodes: 3, order: []int32{2, 3}, key: election.KeyID, health: election.HealthMoved, refusal: election.RefusedHealth,
			change: func(_ *election.Rule, p []election.Peer) {
				p[2].Running, p[2].WonElection, p[2].Term = election.Primary, true, 99
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.change == nil {
				test.change = func(*election.Rule, []election.Peer) {}
			}
			p := guessing
			if test.policy != nil {
				test.policy(&p)
			}
			if test.health == "" {
				test.health = election.HealthDead
			}
			r, peers := cluster(test.nodes, test.quorum, test.change)
			f := p.Forecast(start.Add(100*time.Millisecond), r, peers, 1)
			require.Equal(t, test.refusal, f.Refusal)
			require.Equal(t, test.health, f.Health)
			require.Equal(t, test.wait, f.Wait)
			require.Empty(t, f.Commits)
			var order []int32
			for _, c := range f.Candidates {
				order = append(order, c.ID)
			}
			require.Equal(t, test.order, order)
			if len(order) > 1 {
				require.Equal(t, test.key, f.Candidates[1].Key)
			}
			require.Equal(t, test.unfit, f.Candidates[len(order)-1].Unfit)
			if test.refusal == "" {
				require.Equal(t, order[0], f.Winner, "the order is that of the count")
				require.Equal(t, order[0], f.Rule.Primary)
				require.EqualValues(t, 4, f.Rule.Term)
			} else {
				require.Zero(t, f.Winner)
			}
		})
	}
}

func TestPolicy_Forecast_BytesBehind(t *testing.T) {
	t.Parallel()
	r, peers := cluster(4, false, func(_ *election.Rule, p []election.Peer) {
		p[0].Position.LSN, p[1].Position.LSN, p[2].Position.LSN = 1500, 1400, 1100
		p[3].Position = wal.Position{Timeline: 1, LSN: 1100}
	})
	f := guessing.Forecast(start, r, peers, 1)
	var lost, best []int64
	for _, c := range f.Candidates {
		lost, best = append(lost, c.BehindLost), append(best, c.BehindBest)
	}
	require.Equal(t, []int64{100, 400, -1}, lost)
	require.Equal(t, []int64{0, 300, -1}, best)
	peers[0].Position = wal.Position{}
	require.EqualValues(t, -1, guessing.Forecast(start, r, peers, 1).Candidates[0].BehindLost, "it was never seen")
}

func TestPolicy_Forecast_OfAStandby(t *testing.T) {
	t.Parallel()
	down := func(ids ...int32) func(*election.Rule, []election.Peer) {
		return func(_ *election.Rule, p []election.Peer) {
			for _, id := range ids {
				p[id-1].Answer, p[id-1].Streams = election.Refused, false
			}
		}
	}
	tests := map[string]struct {
		nodes   int32
		quorum  bool
		change  func(*election.Rule, []election.Peer)
		commits election.Commits
		refusal election.Refusal
		winner  int32
	}{
		"of three, nobody is left to vote":            {nodes: 3, commits: election.CommitsGoOn, refusal: election.RefusedNoMajority},
		"of five, another failover is possible":       {nodes: 5, commits: election.CommitsGoOn, winner: 3},
		"quorum goes on while enough standbys stream": {nodes: 5, quorum: true, commits: election.CommitsGoOn, winner: 3},
		"quorum waits until fewer are asked": {
			nodes: 5, quorum: true, commits: election.CommitsPause, refusal: election.RefusedNoMajority,
			change: func(r *election.Rule, p []election.Peer) {
				r.Acks = 3
				down(3)(r, p)
			},
		},
		"quorum of a primary that is left alone waits": {
			nodes: 5, quorum: true, change: down(3, 4, 5), commits: election.CommitsWait, refusal: election.RefusedNoMajority,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.change == nil {
				test.change = down()
			}
			r, peers := cluster(test.nodes, test.quorum, test.change)
			f := guessing.Forecast(start, r, peers, 2)
			require.Equal(t, test.commits, f.Commits)
			require.Equal(t, test.refusal, f.Refusal)
			require.Equal(t, test.winner, f.Winner)
			require.NotContains(t, f.Candidates, int32(2))
		})
	}
}

// The order and the keys are those of the count, whatever the nodes look like:
// every pair is in its order for the reason that is named.
func TestPolicy_Forecast_KeysAreThoseOfTheCount(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		r, peers := cluster(3, false, func(_ *election.Rule, p []election.Peer) {
			for i := range p[1:] {
				o := &p[i+1]
				o.Rule.Term = 2 + rng.Int64N(2)
				o.Position = wal.Position{Timeline: wal.Timeline(1 + rng.IntN(2)), LSN: wal.LSN(100 + rng.IntN(2))}
				o.Priority, o.Location = 1+rng.IntN(2), []string{"default", "elsewhere"}[rng.IntN(2)]
			}
		})
		f := guessing.Forecast(start, r, peers, 1)
		if f.Refusal == "" {
			require.Equal(t, f.Winner, f.Candidates[0].ID)
		}
		a, b := peers[f.Candidates[0].ID-1], peers[f.Candidates[1].ID-1]
		more := map[election.Key]bool{
			election.KeyRule: a.Rule.Term > b.Rule.Term, election.KeyTimeline: a.Position.Timeline > b.Position.Timeline, election.KeyLSN: a.Position.LSN > b.Position.LSN,
			election.KeyPriority: a.Priority > b.Priority, election.KeyLocation: a.Location == "default" && b.Location != "default", election.KeyID: a.ID < b.ID,
		}
		require.True(t, more[f.Candidates[1].Key], "%s does not put %+v before %+v", f.Candidates[1].Key, a, b)
	}
}

func TestPolicy_Forecast_LeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	r, peers := cluster(5, true)
	_, before := cluster(5, true)
	guessing.Forecast(start, r, peers, 1)
	guessing.Forecast(start, r, peers, 3)
	require.Equal(t, before, peers)
}

// A voter that can not pledge itself takes no part, in the forecast either: what it
// alone knows, such as a newer rule with another line, puts nobody in order.
func TestPolicy_Forecast_GoesThroughTheCount(t *testing.T) {
	t.Parallel()
	fork := func(at wal.LSN) wal.Lineage {
		return wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: at}}}
	}
	var later election.Rule
	_, peers := cluster(5, false, func(r *election.Rule, p []election.Peer) {
		r.Line = fork(500)
		for i := range p {
			p[i].Past, p[i].Rule = r.Line.Past, *r
		}
		later = *r
		later.Term, later.Line = 4, fork(400)
		p[4].Past, p[4].Rule, p[4].NoPledge = later.Line.Past, later, "its configuration is broken"
		p[2].Position.LSN++
	})
	f := guessing.Forecast(start, later, peers, 1)
	require.Empty(t, f.Refusal)
	require.EqualValues(t, 3, f.Winner)
	var got []string
	for _, c := range f.Candidates {
		got = append(got, fmt.Sprintf("%d %s%s", c.ID, c.Key, c.Unfit))
	}
	require.Equal(t, []string{"3 ", "2 LSN", "4 id", "5 " + string(election.UnfitNoPledge)}, got)
}

// One that was promoted by nobody's vote is asked for no pledge, and is no candidate.
func TestPolicy_Forecast_WithoutUsurper(t *testing.T) {
	t.Parallel()
	r, peers := cluster(4, false, func(_ *election.Rule, p []election.Peer) {
		p[1].Running, p[1].Receives, p[1].Streams = election.Primary, 0, false
	})
	f := guessing.Forecast(start, r, peers, 1)
	require.Equal(t, election.RefusedNoMajority, f.Refusal, "two of four are left")
	require.EqualValues(t, 2, f.Candidates[2].ID)
	require.Equal(t, election.UnfitBranch, f.Candidates[2].Unfit)
}
