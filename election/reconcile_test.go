package election_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// tending plays the primary's monitor: each step is done before the next is asked for.
type tending struct {
	p      election.Policy
	c      election.Membership
	before election.Rule
	steps  []string
}

func (s *tending) step() bool {
	change := s.p.Reconcile(s.c)
	switch {
	case change.Set != nil:
		s.c.Set = *change.Set
		s.steps = append(s.steps, fmt.Sprintf("set %d of %v", s.c.Set.Acks, s.c.Set.Standbys))
	case change.Rule != nil:
		s.before, s.c.Rule = s.c.Rule, *change.Rule
		s.steps = append(s.steps, fmt.Sprintf("rule %d of %v", s.c.Rule.Acks, s.c.Rule.Sync))
	default:
		return false
	}
	return true
}

func quorumOf(voters []int32) *tending {
	p := failoverPolicy
	p.Quorum = true
	return &tending{p: p, c: election.Membership{Held: true, Registered: voters, Rule: election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: voters, Quorum: true}}}
}

func TestPolicy_Reconcile(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		voters  []int32
		healthy [][]int32 // one after another
		want    []string
	}{
		"two nodes: joins, leaves, returns": {[]int32{1, 2}, [][]int32{{2}, {}, {2}}, []string{
			"rule 0 of [2]", "set 1 of [2]", "rule 1 of [2]",
			"rule 0 of [2]", "set 0 of []", "rule 0 of []",
			"rule 0 of [2]", "set 1 of [2]", "rule 1 of [2]",
		}},
		"three nodes: one leaves and returns": {[]int32{1, 2, 3}, [][]int32{{2, 3}, {3}, {2, 3}}, []string{
			"rule 0 of [2]", "rule 0 of [2 3]", "set 1 of [2 3]", "rule 1 of [2 3]",
			"set 1 of [3]", "rule 1 of [3]",
			"rule 1 of [2 3]", "set 1 of [2 3]",
		}},
		"three nodes and a witness, which never counts": {[]int32{1, 2, 3, 4}, [][]int32{{2, 3}}, []string{
			"rule 0 of [2]", "rule 0 of [2 3]", "set 1 of [2 3]", "rule 1 of [2 3]",
		}},
		"one that is not registered does not count": {[]int32{1, 2}, [][]int32{{2, 9}}, []string{"rule 0 of [2]", "set 1 of [2]", "rule 1 of [2]"}},
		"five nodes: two leave": {[]int32{1, 2, 3, 4, 5}, [][]int32{{2, 3, 4, 5}, {4, 5}}, []string{
			"rule 0 of [2]", "rule 0 of [2 3]", "rule 0 of [2 3 4]", "rule 0 of [2 3 4 5]",
			"set 1 of [2 3 4 5]", "rule 1 of [2 3 4 5]", "set 2 of [2 3 4 5]", "rule 2 of [2 3 4 5]",
			"rule 1 of [2 3 4 5]", "set 1 of [3 4 5]", "rule 1 of [3 4 5]", "set 1 of [4 5]", "rule 1 of [4 5]",
		}},
	}
	for name, test := range tests {
		s := quorumOf(test.voters)
		for _, s.c.Healthy = range test.healthy {
			for range 20 {
				if !s.step() {
					break
				}
			}
		}
		if !slices.Equal(s.steps, test.want) {
			t.Errorf("%s: got\n%q, want\n%q", name, s.steps, test.want)
		}
	}
}

// With durability=required acks never fall to none: the last standby stays in the
// set, and commits wait for it. Before the first one there was nobody to wait for.
func TestPolicy_Reconcile_Required(t *testing.T) {
	t.Parallel()
	s := quorumOf([]int32{1, 2, 3})
	s.p.Required = true
	for _, s.c.Healthy = range [][]int32{{}, {2, 3}, {3}, {}, {2}, {}} {
		for s.step() {
		}
	}
	want := []string{
		"rule 0 of [2]", "rule 0 of [2 3]", "set 1 of [2 3]", "rule 1 of [2 3]", // the first
		"set 1 of [3]", "rule 1 of [3]", // node 2 leaves; when node 3 does, nothing changes
		"rule 1 of [2 3]", "set 1 of [2]", "rule 1 of [2]", // node 2 is back
	}
	if !slices.Equal(s.steps, want) {
		t.Errorf("got\n%q, want\n%q", s.steps, want)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		s.c.Healthy, s.c.Registered = subset(rng, []int32{2, 3, 4}, 50), append([]int32{1}, subset(rng, []int32{2, 3, 4}, 80)...)
		s.step()
		if s.c.Rule.Acks < 1 || s.c.Set.Acks < 1 {
			t.Fatalf("%+v, %+v: %q", s.c.Rule, s.c.Set, s.steps[len(s.steps)-3:])
		}
	}
}

// A setting that somebody else took away, or replaced, is no reason to say that
// commits wait: the rule follows, unless durability=required.
func TestPolicy_Reconcile_TakenAway(t *testing.T) {
	t.Parallel()
	for _, taken := range []election.SyncSetting{{}, {Acks: -1}} {
		s := quorumOf([]int32{1, 2})
		s.c.Rule.Sync, s.c.Rule.Acks, s.c.Healthy, s.c.Set = []int32{2}, 1, []int32{2}, taken
		required := *s
		required.p.Required = true
		for s.step() {
		}
		for required.step() {
		}
		if want := []string{"rule 0 of [2]", "set 1 of [2]", "rule 1 of [2]"}; !slices.Equal(s.steps, want) {
			t.Errorf("got %q, want %q", s.steps, want)
		}
		if want := []string{"set 1 of [2]"}; !slices.Equal(required.steps, want) {
			t.Errorf("required: got %q, want %q", required.steps, want)
		}
	}
}

// Whatever comes and goes, and whatever rule an election finds while the newest
// is not held: those who may elect have one among them that has what was acknowledged.
func TestPolicy_Reconcile_AcksMeetElections(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		n := int32(2 + rng.IntN(5))
		var all []int32
		for id := int32(1); id <= n; id++ {
			all = append(all, id)
		}
		s := quorumOf(all[:max(2, rng.IntN(int(n)+1))])
		s.p.Acks, s.p.Required = rng.IntN(4), seed%3 == 0
		for range 60 {
			s.c.Healthy, s.c.Registered = subset(rng, all, 75), append([]int32{1}, subset(rng, all[1:], 90)...)
			if rng.IntN(40) == 0 {
				s.p.Quorum = !s.p.Quorum
			}
			s.c.Held = s.c.Held || rng.IntN(4) > 0 // once held, a rule stays so
			was := s.c.Rule
			s.step()
			s.c.Held = s.c.Held && s.c.Rule.Compare(was) == 0
			rules := []election.Rule{s.c.Rule}
			if !s.c.Held && s.before.Known() {
				rules = append(rules, s.before)
			}
			for _, r := range rules {
				if bad := missed(r, s.c.Set, all); bad != nil {
					t.Fatalf("seed %d: %v may elect under %+v, and know nothing of what %+v acknowledged: %q", seed, bad, r, s.c.Set, s.steps)
				}
			}
		}
	}
}

// missed is an electorate without anybody of some set of acknowledgers.
func missed(r election.Rule, set election.SyncSetting, all []int32) []int32 {
	if !r.Quorum {
		return nil // it promises nothing
	}
	for mask := range 1 << len(all) {
		var who []int32
		has := 0
		for i, id := range all {
			if mask&(1<<i) == 0 || id == r.Primary {
				continue
			}
			who = append(who, id)
			if slices.Contains(set.Standbys, id) {
				has++
			}
		}
		if r.CanElect(who) && (set.Acks == 0 || has < len(set.Standbys)-set.Acks+1) {
			return who
		}
	}
	return nil
}

func subset(rng *rand.Rand, of []int32, percent int) (some []int32) {
	for _, id := range of {
		if rng.IntN(100) < percent {
			some = append(some, id)
		}
	}
	return some
}

func TestRule_Arbiter(t *testing.T) {
	t.Parallel()
	for n := int32(1); n <= 6; n++ {
		r := election.Rule{Voters: []int32{election.Arbiter}}
		for id := int32(1); id <= n; id++ {
			r.Voters = append(r.Voters, id)
		}
		if r.Majority([]int32{election.Arbiter}) || n > 1 && !r.Majority([]int32{election.Arbiter, n}) || n > 1 && !r.Majority(r.Voters[1:]) || n > 2 && r.Majority(r.Voters[2:]) {
			t.Errorf("%d nodes: the arbiter and one, or all nodes, and nothing less", n)
		}
	}
}

func TestHeld(t *testing.T) {
	t.Parallel()
	opening := election.Rule{Term: 2, Seq: 1, Primary: 3, Voters: []int32{1, 2, 3}, Quorum: true}
	if election.Held(opening, three(true), []int32{3}) || !election.Held(opening, three(true), []int32{2, 3}) {
		t.Error("the row that opens a term is held by a majority, and by nothing less")
	}
	if set := opening.PromotionSetting(); set.Acks != 1 || slices.ContainsFunc(set.Standbys, func(id int32) bool { return id > 0 }) {
		t.Errorf("%+v: an opening waits for nobody who exists", set)
	}
	if set := three(false).PromotionSetting(); set.Acks != 0 {
		t.Errorf("%+v: without quorum nothing is closed", set)
	}
}

func TestLeaseStart(t *testing.T) {
	t.Parallel()
	at := func(ago time.Duration, term int64) func(*election.Peer) {
		return func(p *election.Peer) { p.SeenAt, p.Term = start.Add(-ago), term }
	}
	replied := func(seen, reply time.Duration, term int64) func(*election.Peer) {
		return func(p *election.Peer) { p.SeenAt, p.Replied, p.Term = start.Add(-seen), start.Add(-reply), term }
	}
	two := func(f func(*election.Peer)) election.Peer { return answers(2, election.Standby, 1, f) }
	other := func(f func(*election.Peer)) election.Peer { return answers(3, election.Standby, 1, f) }
	rejects := func(p *election.Peer) {
		p.SeenAt, p.Answer, p.Tried = start.Add(-time.Hour), election.Rejects, start.Add(-time.Second)
	}
	r, waits, lowered := three(false), three(true), three(true)
	lowered.Sync, lowered.Acks = nil, 0
	tests := map[string]struct {
		rule  election.Rule
		peers []election.Peer
		want  time.Time
	}{
		"the later of two":             {r, []election.Peer{two(at(time.Second, 0)), other(at(time.Minute, 0))}, start.Add(-time.Second)},
		"pledged in a later term":      {r, []election.Peer{two(at(time.Second, 2)), other(at(time.Minute, 0))}, start.Add(-time.Minute)},
		"all are pledged":              {r, []election.Peer{two(at(time.Second, 2)), other(at(time.Second, 2))}, time.Time{}},
		"never seen":                   {r, []election.Peer{two(func(p *election.Peer) { p.SeenAt = time.Time{} }), other(func(p *election.Peer) { p.SeenAt = time.Time{} })}, time.Time{}},
		"a reply is contact":           {r, []election.Peer{two(replied(time.Minute, time.Second, 0)), other(at(time.Minute, 0))}, start.Add(-time.Second)},
		"of one that was never seen":   {r, []election.Peer{two(func(p *election.Peer) { p.SeenAt, p.Replied = time.Time{}, start.Add(-time.Second) }), other(at(time.Minute, 0))}, start.Add(-time.Second)},
		"not of one that is pledged":   {r, []election.Peer{two(replied(time.Minute, time.Second, 2)), other(at(time.Minute, 0))}, start.Add(-time.Minute)},
		"off: a rejection is none":     {r, []election.Peer{two(rejects), other(at(time.Minute, 0))}, start.Add(-time.Minute)},
		"quorum: a rejection is one":   {waits, []election.Peer{two(rejects), other(at(time.Minute, 0))}, start.Add(-time.Second)},
		"nobody is waited for":         {lowered, []election.Peer{two(rejects), other(at(time.Minute, 0))}, start},
		"quorum: not of a later term":  {waits, []election.Peer{two(func(p *election.Peer) { rejects(p); p.Term = 2 }), other(at(time.Minute, 0))}, start.Add(-time.Minute)},
		"two nodes elect nobody alone": {election.Rule{Term: 1, Primary: 1, Voters: []int32{1, 2}}, []election.Peer{two(at(time.Hour, 2))}, start},
	}
	for name, test := range tests {
		if got := election.LeaseStart(start, test.rule, 1, test.peers); !got.Equal(test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

// What a new term begins with: nobody counts whose name PostgreSQL reads as
// another's, and with durability=required somebody always does, where somebody did.
func TestPolicy_Count_FirstAcks(t *testing.T) {
	t.Parallel()
	five := election.Rule{Term: 1, Seq: 4, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}
	none := five
	none.Sync, none.Acks = nil, 0
	misnamed := func(p *election.Peer) { p.Misnamed = true }
	wit := func(id int32) election.Peer { return answers(id, election.Primary, 0, witness) }
	for name, test := range map[string]struct {
		rule     election.Rule
		required bool
		peers    []election.Peer
		sync     []int32
		acks     int
	}{
		"all follow":                  {five, false, []election.Peer{answers(2, election.Standby, 100), answers(3, election.Standby, 100), wit(4)}, []int32{3}, 1},
		"one is misnamed":             {five, false, []election.Peer{answers(2, election.Standby, 100), answers(3, election.Standby, 100, misnamed), wit(4)}, nil, 0},
		"alone with witnesses":        {three(true), false, []election.Peer{answers(2, election.Standby, 100), answers(3, election.Standby, 100, misnamed)}, nil, 0},
		"the same, required":          {three(true), true, []election.Peer{answers(2, election.Standby, 100), answers(3, election.Standby, 100, misnamed)}, []int32{1}, 1},
		"required, and nobody before": {none, true, []election.Peer{answers(1, election.Primary, 100), wit(4), wit(5)}, nil, 0},
	} {
		p := failoverPolicy
		p.Quorum, p.Required = true, test.required
		got := p.Count(test.rule, 2, election.HealthDead, test.peers).Rule
		if !slices.Equal(got.Sync, test.sync) || got.Acks != test.acks {
			t.Errorf("%s: got %d of %v, want %d of %v", name, got.Acks, got.Sync, test.acks, test.sync)
		}
	}
}

// What a copy acknowledges in a standby's name must count for nobody at once,
// whether or not the rule can be changed.
func TestPolicy_Reconcile_Doubled(t *testing.T) {
	t.Parallel()
	set := func(acks int, ids ...int32) election.SyncSetting {
		return election.SyncSetting{Acks: acks, Standbys: ids}
	}
	for name, test := range map[string]struct {
		sync, healthy, doubled []int32
		acks                   int
		held                   bool
		want                   []string
	}{
		"another standby is left":        {[]int32{2, 3}, []int32{3}, []int32{2}, 1, true, []string{"set 1 of [3]", "rule 1 of [3]"}},
		"nobody is left":                 {[]int32{2, 3}, nil, []int32{2, 3}, 1, true, []string{"set 1 of [0]", "rule 0 of [2 3]", "set 0 of []", "rule 0 of [3]", "rule 0 of []"}},
		"the rule can not be changed":    {[]int32{2, 3}, nil, []int32{2}, 1, false, []string{"set 1 of [3]"}},
		"so many as a commit needs":      {[]int32{2, 3}, nil, []int32{2}, 2, false, []string{"set 1 of [0]"}},
		"nobody waits for it in any way": {[]int32{3}, []int32{3}, []int32{2}, 1, true, nil},
	} {
		s := quorumOf([]int32{1, 2, 3})
		s.c.Rule.Sync, s.c.Rule.Acks, s.c.Held, s.c.Healthy, s.c.Duplicated = test.sync, test.acks, test.held, test.healthy, test.doubled
		s.c.Set = set(test.acks, test.sync...)
		for n := 0; n < 10 && s.step(); n++ {
		}
		if !slices.Equal(s.steps, test.want) {
			t.Errorf("%s: got\n%q, want\n%q", name, s.steps, test.want)
		}
	}
}
