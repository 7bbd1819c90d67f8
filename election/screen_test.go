package election_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

func TestScreen(t *testing.T) {
	t.Parallel()
	r := three(false)
	later := r
	later.Term, later.Primary = 2, 2
	standby := func(id int32, changes ...func(*election.Peer)) election.Peer {
		p := answers(id, election.Standby, 1)
		p.Rule, p.SeenAt = r, start
		for _, f := range changes {
			f(&p)
		}
		return p
	}
	silent := func(p *election.Peer) { p.SeenAt, p.Answer, p.Rule = time.Time{}, election.Silent, election.Rule{} }
	pledged := func(p *election.Peer) { p.Term = 2 }
	knows := func(r election.Rule) func(*election.Peer) {
		return func(p *election.Peer) { p.Rule, p.Term = r, r.Term }
	}
	runs := func(p *election.Peer) { p.Running = election.Primary }
	me := election.Peer{ID: 1, Term: 1}
	tests := map[string]struct {
		own    election.Peer
		voters []int32
		peers  []election.Peer
		want   election.Screening
	}{
		"all follow it":                      {me, nil, []election.Peer{standby(2), standby(3)}, election.ScreenedClear},
		"one follows it, that is a majority": {me, nil, []election.Peer{standby(2), standby(3, silent)}, election.ScreenedClear},
		"nobody answers":                     {me, []int32{1, 2, 3}, []election.Peer{standby(2, silent), standby(3, silent)}, election.ScreenedAlone},
		"a later rule":                       {me, nil, []election.Peer{standby(2, silent), standby(3, knows(later))}, election.ScreenedDeposed},
		"another primary runs":               {me, nil, []election.Peer{standby(2, runs), standby(3)}, election.ScreenedDeposed},
		"a majority is pledged":              {me, nil, []election.Peer{standby(2, pledged), standby(3, pledged)}, election.ScreenedPledged},
		"one is pledged, one is silent":      {me, nil, []election.Peer{standby(2, pledged), standby(3, silent)}, election.ScreenedPledged},
		"one is pledged, one is not":         {me, nil, []election.Peer{standby(2, pledged), standby(3)}, election.ScreenedClear},
		"itself is pledged":                  {election.Peer{ID: 1, Term: 2}, nil, []election.Peer{standby(2), standby(3)}, election.ScreenedPledged},
		"itself was chosen": {election.Peer{ID: 1, Term: 2, Chosen: true}, nil, []election.Peer{standby(2, pledged), standby(3, pledged)},
			election.ScreenedClear},
		"chosen once, deposed since": {election.Peer{ID: 1, Term: 1, Chosen: true}, nil, []election.Peer{standby(2, silent), standby(3, knows(later))},
			election.ScreenedDeposed},
		"of two, and it may have voted":     {me, []int32{1, 2}, []election.Peer{standby(2, silent)}, election.ScreenedAlone},
		"of two, and it never voted":        {election.Peer{ID: 1}, []int32{1, 2}, []election.Peer{standby(2, silent)}, election.ScreenedClear},
		"it is the only one":                {election.Peer{ID: 1}, []int32{1}, nil, election.ScreenedClear},
		"an arbiter that knows of no other": {election.Peer{ID: 1}, []int32{1, 2, election.Arbiter}, []election.Peer{standby(2, silent), {ID: election.Arbiter, Answer: election.Answers, SeenAt: start, Rule: election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, election.Arbiter}}}}, election.ScreenedClear},
	}
	for name, test := range tests {
		if got := election.Screen(start, test.own, test.voters, test.peers); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// Whoever is clear to start: no set of voters that it did not reach, or that is
// pledged to somebody else, could have elected another one.
func TestScreen_LeavesNoMajority(t *testing.T) {
	t.Parallel()
	clear := 0
	for seed := range uint64(5000) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := election.Rule{Term: 3, Seq: 1, Primary: 1, Quorum: rng.IntN(2) == 0, Acks: 1}
		for id := int32(1); id <= int32(1+rng.IntN(6)); id++ {
			r.Voters = append(r.Voters, id)
		}
		r.Sync = subset(rng, r.Voters[1:], 70)
		r.Acks = min(r.Acks, len(r.Sync))
		var peers []election.Peer
		var free []int32 // to elect somebody else
		for _, id := range r.Voters[1:] {
			p := answers(id, election.Standby, 1)
			p.Rule, p.SeenAt = r, start
			switch rng.IntN(3) {
			case 0:
				p.SeenAt, p.Rule = time.Time{}, election.Rule{}
				free = append(free, id)
			case 1:
				p.Term = 4
				free = append(free, id)
			}
			peers = append(peers, p)
		}
		if election.Screen(start, election.Peer{ID: 1, Term: 3, Chosen: true}, r.Voters, peers) != election.ScreenedClear {
			continue
		}
		clear++
		if r.CanElect(free) {
			t.Fatalf("seed %d: %v could have elected another one under %+v", seed, free, r)
		}
	}
	if clear < 500 {
		t.Fatalf("only %d of 5000 were clear", clear)
	}
}
