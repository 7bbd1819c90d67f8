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
	before := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	four := election.Rule{Term: 1, Seq: 2, Primary: 1, Voters: []int32{1, 2, 3, 4}}
	two := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2}}
	old := func(p *election.Peer) { p.SeenAt = start.Add(-time.Minute) }
	me := election.Peer{ID: 1, Term: 1}
	chosen := election.Peer{ID: 1, Term: 2, WonElection: true}
	all := []int32{1, 2, 3}
	manual := failoverPolicy
	manual.Automatic = false
	type rules = []election.Rule
	type peers = []election.Peer
	tests := map[string]struct {
		own    election.Peer
		known  rules
		voters []int32
		peers  peers
		want   election.Screening
	}{
		"all follow it":                         {me, rules{r}, all, peers{standby(2), standby(3)}, election.ScreenedClear},
		"one follows it, that is a majority":    {me, rules{r}, all, peers{standby(2), standby(3, silent)}, election.ScreenedClear},
		"nobody answers":                        {me, rules{r}, all, peers{standby(2, silent), standby(3, silent)}, election.ScreenedAlone},
		"nobody answers, and no rule is known":  {election.Peer{ID: 1}, nil, all, peers{standby(2, silent), standby(3, silent)}, election.ScreenedAlone},
		"one has answered long ago":             {me, rules{r}, all, peers{standby(2, old), standby(3, silent)}, election.ScreenedAlone},
		"a later rule":                          {me, rules{r}, all, peers{standby(2, silent), standby(3, knows(later))}, election.ScreenedDeposed},
		"another primary runs":                  {me, rules{r}, all, peers{standby(2, runs), standby(3)}, election.ScreenedRunning},
		"one of an older rule runs":             {chosen, rules{{Term: 2, Seq: 1, Primary: 1, Voters: all}}, all, peers{standby(2, runs), standby(3)}, election.ScreenedClear},
		"a majority is pledged":                 {me, rules{r}, all, peers{standby(2, pledged), standby(3, pledged)}, election.ScreenedPledged},
		"one is pledged, one is silent":         {me, rules{r}, all, peers{standby(2, pledged), standby(3, silent)}, election.ScreenedPledged},
		"one is pledged, one is not":            {me, rules{r}, all, peers{standby(2, pledged), standby(3)}, election.ScreenedClear},
		"itself is pledged":                     {election.Peer{ID: 1, Term: 2}, rules{r}, all, peers{standby(2), standby(3)}, election.ScreenedPledged},
		"itself was chosen":                     {chosen, rules{r}, all, peers{standby(2, pledged), standby(3, pledged)}, election.ScreenedClear},
		"chosen once, deposed since":            {election.Peer{ID: 1, Term: 1, WonElection: true}, rules{r}, all, peers{standby(2, silent), standby(3, knows(later))}, election.ScreenedDeposed},
		"of two the other one elects nobody":    {me, rules{two}, []int32{1, 2}, peers{standby(2, silent)}, election.ScreenedClear},
		"of two, and it may have voted":         {election.Peer{ID: 1, Term: 2}, rules{two}, []int32{1, 2}, peers{standby(2, silent)}, election.ScreenedPledged},
		"it is the only one":                    {election.Peer{ID: 1}, nil, []int32{1}, nil, election.ScreenedClear},
		"who answers knows an old rule only":    {me, rules{{Term: 1, Seq: 9, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}}}, all, peers{standby(2, knows(two))}, election.ScreenedAlone},
		"an election could miss the newest one": {me, rules{four, before}, all, peers{standby(4, knows(four)), standby(2, silent), standby(3, silent)}, election.ScreenedAlone},
		"an arbiter that knows of no other": {
			election.Peer{ID: 1},
			nil,
			[]int32{1, 2, election.Arbiter},
			peers{standby(2, silent), {ID: election.Arbiter, Answer: election.Answers, SeenAt: start, Rule: election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, election.Arbiter}}}},
			election.ScreenedClear,
		},
	}
	for name, test := range tests {
		if got := failoverPolicy.Screen(start, test.own, test.known, test.voters, test.peers); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		want := election.ScreenedManual
		if test.want == election.ScreenedRunning {
			want = test.want
		}
		if got := manual.Screen(start, test.own, test.known, test.voters, test.peers); got != want {
			t.Errorf("failover=manual, %s: %q, want %q", name, got, want)
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
		if failoverPolicy.Screen(start, election.Peer{ID: 1, Term: 3, WonElection: true}, nil, r.Voters, peers) != election.ScreenedClear {
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
