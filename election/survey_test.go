package election_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

var failoverPolicy = election.Policy{Interval: 2 * time.Second, Automatic: true, Silence: 2 * time.Second, Fence: 2500 * time.Millisecond}

// answers is a voter that was just seen.
func answers(id int32, running election.Role, lsn wal.LSN, change ...func(*election.Peer)) election.Peer {
	p := election.Peer{
		ID: id, Role: election.Standby, Priority: 100, Location: "a", Answer: election.Answers, Tried: start, SeenAt: start,
		Running: running, Position: wal.Position{Timeline: 1, LSN: lsn}, Monitored: true, Automatic: true, CanFence: true,
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

// gone is node 1, a primary that was seen an age ago.
func gone(a election.Answer, change ...func(*election.Peer)) election.Peer {
	p := answers(1, election.Primary, 100, change...)
	p.Answer, p.SeenAt = a, start.Add(-time.Minute)
	return p
}

func streams(p *election.Peer) { p.Streams, p.Receiving, p.Receives = true, true, 1 }
func ended(p *election.Peer)   { p.Ended = true }
func won(p *election.Peer)     { p.WonElection, p.Term = true, 2 }

func toldOf(r election.Rule) func(*election.Peer) {
	return func(p *election.Peer) { p.Announced = r }
}
func paused(p *election.Peer)    { p.Paused, p.PauseSeq = true, 1 }
func witness(p *election.Peer)   { p.Role = election.Witness }
func elsewhere(p *election.Peer) { p.Location = "b" }

func neverSeen(p *election.Peer) {
	*p = election.Peer{ID: 1, Role: election.Standby, Location: "a", Answer: election.Silent, Since: start.Add(-time.Minute)}
}

func holding(r election.Rule) func(*election.Peer) { return func(p *election.Peer) { p.Rule = r } }

func three(quorum bool) election.Rule {
	r := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: quorum}
	if quorum {
		r.Sync, r.Acks = []int32{2, 3}, 1
	}
	return r
}

func TestPolicy_Diagnose(t *testing.T) {
	t.Parallel()
	two := answers(2, election.Standby, 100)
	onShutdown := failoverPolicy
	onShutdown.OnShutdown = true
	tests := map[election.Health][][]election.Peer{
		election.HealthAlive:        {{answers(1, election.Primary, 100), two}},
		election.HealthNotAccepting: {{gone(election.NotAccepting), two}},
		election.HealthNoSlots:      {{gone(election.NoSlots), two}},
		election.HealthRejects:      {{gone(election.Rejects), two}},
		election.HealthMoved:        {{gone(election.Silent), answers(2, election.Primary, 100, won)}, {answers(1, election.Primary, 100), answers(2, election.Primary, 100, won)}},
		election.HealthReceived: {
			{gone(election.Silent), answers(2, election.Standby, 100, streams)},
			{gone(election.Refused), answers(2, election.Standby, 100, streams, func(p *election.Peer) { p.Heard = time.Hour })},
		},
		election.HealthDoubtful: {{gone(election.Silent, func(p *election.Peer) {}), two}},
		election.HealthShutDown: {
			{gone(election.Refused, ended), answers(2, election.Standby, 100, func(p *election.Peer) { p.ShutDown = true })},
			{gone(election.Refused, ended, func(p *election.Peer) { p.Since = start }), answers(2, election.Standby, 100, streams, func(p *election.Peer) { p.SeenAt = start.Add(-time.Second) }), answers(3, election.Standby, 100, func(p *election.Peer) { p.ShutDown = true })},
		},
		election.HealthDemoted: {{answers(1, election.Standby, 100), two}},
		election.HealthDead:    {{gone(election.Refused, ended), two}},
		election.HealthRefused: {{gone(election.Refused), two}},
		election.HealthSilent:  {{gone(election.Silent), two}, {gone(election.Silent), answers(2, election.Primary, 100), answers(3, election.Standby, 100)}, {gone(election.Silent), answers(2, election.Standby, 100, streams, func(p *election.Peer) { p.Heard = time.Hour })}},
		election.HealthHangs:   {{gone(election.Hangs), two}},
	}
	successor := three(false) // of a primary that was shut down in order, as in a switchover
	successor.Line = wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: 500}}}
	ends := func(timeline wal.Timeline, at wal.LSN) election.Peer {
		return answers(2, election.Standby, 100, func(p *election.Peer) { p.ShutDown, p.Position = true, wal.Position{Timeline: timeline, LSN: at} })
	}
	own := ends(2, 600)
	own.Past = successor.Line.Past
	for _, timeline := range []wal.Timeline{2, 0} { // a rule that was announced before the promotion has no number
		successor.Line.Timeline = timeline
		if got := failoverPolicy.Diagnose(start, successor, []election.Peer{gone(election.Refused, ended), ends(1, 500)}); got != election.HealthDead {
			t.Errorf("the shutdown was that of its predecessor: got %q", got)
		}
		if got := failoverPolicy.Diagnose(start, successor, []election.Peer{gone(election.Refused, ended), own, ends(1, 500)}); got != election.HealthShutDown {
			t.Errorf("the shutdown was its own: got %q", got)
		}
	}
	tests[election.HealthDoubtful][0][0].SeenAt = start.Add(-time.Second)
	fresh := func(found time.Duration) election.Peer { // of a monitor that was just started
		return gone(election.Silent, func(p *election.Peer) { p.Since = start.Add(-found) })
	}
	for want, found := range map[election.Health]time.Duration{election.HealthDoubtful: time.Second, election.HealthSilent: time.Minute} {
		never := fresh(found)
		never.SeenAt = time.Time{}
		tests[want] = append(tests[want], []election.Peer{never, two})
	}
	// A stream from a sender that names no known address may be the primary's, unless
	// one node that answers shows it as its own.
	unknown := answers(3, election.Standby, 100, streams, func(p *election.Peer) { p.Receives = 0 })
	feeds := func(ids ...int32) func(*election.Peer) { return func(p *election.Peer) { p.Feeds = ids } }
	feeding := answers(2, election.Standby, 100, feeds(3))
	away := feeding
	away.Answer = election.Silent
	for _, a := range []election.Answer{election.Refused, election.Silent} {
		tests[election.HealthReceived] = append(tests[election.HealthReceived], []election.Peer{gone(a), two, unknown}, []election.Peer{gone(a), away, unknown},
			[]election.Peer{gone(a), feeding, unknown, answers(4, election.Standby, 100, feeds(3))}, // which of the two can not be told
			[]election.Peer{gone(a), feeding, answers(3, election.Standby, 100, streams)})           // it names the primary
	}
	tests[election.HealthRefused] = append(tests[election.HealthRefused], []election.Peer{gone(election.Refused), feeding, unknown})
	tests[election.HealthSilent] = append(tests[election.HealthSilent], []election.Peer{gone(election.Silent), feeding, unknown})
	back := answers(2, election.Standby, 100, func(p *election.Peer) { p.Since = start.Add(-time.Second) }) // whoever asks was cut off until then
	tests[election.HealthDoubtful] = append(tests[election.HealthDoubtful], []election.Peer{gone(election.Silent), back, answers(3, election.Standby, 100)})
	for want, cases := range tests {
		for _, peers := range cases {
			if got := failoverPolicy.Diagnose(start, three(false), peers); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
	if got := failoverPolicy.Diagnose(start, election.Rule{}, nil); got != election.HealthUnknown {
		t.Errorf("without a rule: got %q", got)
	}
	if got := onShutdown.Diagnose(start, three(false), tests[election.HealthShutDown][0]); got != election.HealthDead {
		t.Errorf("failover_on_shutdown: got %q", got)
	}
}

// A primary that lets nobody in has so long, by its own word.
func TestPolicy_Diagnose_Starting(t *testing.T) {
	t.Parallel()
	never, given, forced := failoverPolicy, failoverPolicy, failoverPolicy
	never.Start, given.Start, forced.Forced = -time.Second, 10*time.Second, true
	receives := func(p *election.Peer) { streams(p); p.SeenAt = start }
	tests := map[string]struct {
		policy election.Policy
		quorum bool
		since  time.Duration // 0: not known
		others []func(*election.Peer)
		stuck  bool
	}{
		"not known since when":             {failoverPolicy, true, 0, nil, false},
		"off, before the limit":            {failoverPolicy, false, 299 * time.Second, nil, false},
		"off, after it":                    {failoverPolicy, false, 300 * time.Second, nil, true},
		"off, and a standby receives":      {failoverPolicy, false, 300 * time.Second, []func(*election.Peer){receives}, true},
		"quorum, before the limit":         {failoverPolicy, true, 29 * time.Second, nil, false},
		"quorum, after it":                 {failoverPolicy, true, 30 * time.Second, nil, true},
		"quorum, but a standby receives":   {failoverPolicy, true, 299 * time.Second, []func(*election.Peer){receives}, false},
		"quorum, and receives for so long": {failoverPolicy, true, 300 * time.Second, []func(*election.Peer){receives}, true},
		"the operator's, before":           {given, true, 9 * time.Second, nil, false},
		"the operator's, after":            {given, true, 10 * time.Second, []func(*election.Peer){receives}, true},
		"never":                            {never, true, time.Hour, nil, false},
		"forced":                           {forced, false, time.Millisecond, nil, true},
	}
	for name, test := range tests {
		peers := []election.Peer{gone(election.NotAccepting, func(p *election.Peer) {
			if test.since > 0 {
				p.Starting = start.Add(-test.since)
			}
		}), answers(2, election.Standby, 100, test.others...)}
		want := election.HealthNotAccepting
		if test.stuck {
			want = election.HealthStuck
		}
		if got := test.policy.Diagnose(start, three(test.quorum), peers); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestPolicy_Survey(t *testing.T) {
	t.Parallel()
	fine := []election.Peer{gone(election.Silent), answers(2, election.Standby, 100), answers(3, election.Standby, 90)}
	with := func(i int, change func(*election.Peer)) []election.Peer {
		peers := append([]election.Peer{}, fine...)
		change(&peers[i])
		return peers
	}
	both := func(change func(*election.Peer)) []election.Peer {
		peers := with(1, change)
		change(&peers[2])
		return peers
	}
	needsBoth := three(true)
	forced := failoverPolicy
	forced.Forced = true
	often := failoverPolicy
	often.TooMany = true
	tests := map[string]struct {
		policy election.Policy
		rule   election.Rule
		peers  []election.Peer
		want   election.Refusal
	}{
		"nothing stands against it":  {failoverPolicy, three(false), fine, ""},
		"the primary answers":        {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.Answer = election.Answers }), election.RefusedHealth},
		"one is paused":              {failoverPolicy, three(false), with(2, func(p *election.Peer) { p.Paused = true }), election.RefusedPaused},
		"paused, but forced":         {forced, three(false), with(2, func(p *election.Peer) { p.Paused = true }), ""},
		"alone":                      {failoverPolicy, three(false), with(1, func(p *election.Peer) { p.Answer = election.Silent }), election.RefusedNoMajority},
		"one of two, forced as well": {forced, election.Rule{Term: 1, Primary: 1, Voters: []int32{1, 2}}, fine[:2], election.RefusedNoMajority},
		"a holder is missing":        {failoverPolicy, needsBoth, []election.Peer{fine[0], fine[1], answers(4, election.Primary, 0, witness)}, election.RefusedNoMajority},
		"a holder is missing, with a majority": {
			failoverPolicy,
			election.Rule{Term: 1, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}, Quorum: true, Sync: []int32{2, 3}, Acks: 1},
			[]election.Peer{fine[0], fine[1], answers(4, election.Primary, 0, witness), answers(5, election.Primary, 0, witness)},
			election.RefusedSync,
		},
		"recovering, an operator insists, and its daemon can stop it": {forced, three(false), with(0, func(p *election.Peer) { p.Answer = election.NotAccepting }), ""},
		"recovering, an operator insists, and nobody could stop it":   {forced, three(false), with(0, func(p *election.Peer) { p.Answer, p.Monitored = election.NotAccepting, false }), election.RefusedUnfenced},
		"recovering, with quorum nobody need":                         {forced, needsBoth, with(0, func(p *election.Peer) { p.Answer, p.Monitored = election.NotAccepting, false }), ""},
		"all priorities 0":                                            {failoverPolicy, three(false), both(func(p *election.Peer) { p.Priority = 0 }), election.RefusedNoneFit},
		"location not seen":                                           {failoverPolicy, three(false), both(elsewhere), election.RefusedLocation},
		"too many":                                                    {often, three(false), fine, election.RefusedTooMany},
		"no daemon with the primary":                                  {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.Monitored = false }), election.RefusedUnfenced},
		"a manual daemon":                                             {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.Automatic = false }), election.RefusedUnfenced},
		"one that can not stop it":                                    {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.CanFence = false }), election.RefusedUnfenced},
		"never seen":                                                  {failoverPolicy, three(false), with(0, neverSeen), election.RefusedUnfenced},
		"never seen, but kept":                                        {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.SeenAt, p.Since = time.Time{}, start.Add(-time.Minute) }), ""},
		"unpaused, and it may not know":                               {failoverPolicy, three(false), with(1, func(p *election.Peer) { p.PauseSeq = 2 }), election.RefusedUnfenced},
		"manual, but its commits wait":                                {failoverPolicy, needsBoth, with(0, func(p *election.Peer) { p.Automatic = false }), ""},
		"manual, but known to be dead":                                {failoverPolicy, three(false), with(0, func(p *election.Peer) { p.Automatic, p.Answer, p.Ended = false, election.Refused, true }), ""},
		"manual, and the operator forces":                             {forced, three(false), with(0, func(p *election.Peer) { p.Automatic = false }), ""},
		"nobody could fence the winner":                               {failoverPolicy, three(false), both(func(p *election.Peer) { p.CanFence = false }), election.RefusedNoneFit},
		"nobody could fence it":                                       {failoverPolicy, three(false), both(func(p *election.Peer) { p.Monitored = false }), election.RefusedNoneFit},
	}
	for name, test := range tests {
		if got := test.policy.Survey(start, test.rule, test.peers); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// A limit of what may be lost holds where anything can be.
func TestPolicy_LacksTooMuch(t *testing.T) {
	t.Parallel()
	limited, forced := failoverPolicy, failoverPolicy
	limited.MaxLag, forced.MaxLag, forced.Forced = 10, 10, true
	primaryAt := func(lsn wal.LSN) election.Peer {
		return gone(election.Refused, ended, func(p *election.Peer) { p.Position.LSN = lsn })
	}
	low := func(p *election.Peer) { p.Priority = 0 }
	tests := map[string]struct {
		policy  election.Policy
		quorum  bool
		primary election.Peer
		two     func(*election.Peer)
		want    election.Refusal
	}{
		"as much as the limit":                {limited, false, primaryAt(110), func(*election.Peer) {}, ""},
		"more":                                {limited, false, primaryAt(111), func(*election.Peer) {}, election.RefusedLag},
		"no limit":                            {failoverPolicy, false, primaryAt(999), func(*election.Peer) {}, ""},
		"an operator insists":                 {forced, false, primaryAt(999), func(*election.Peer) {}, ""},
		"with quorum the rest does not count": {limited, true, primaryAt(999), func(*election.Peer) {}, ""},
		"the primary was never seen":          {limited, false, primaryAt(0), func(*election.Peer) {}, election.RefusedLag},
		"on another timeline":                 {limited, false, primaryAt(100), func(p *election.Peer) { p.Position.Timeline = 2 }, election.RefusedLag},
		"the one that has it may not":         {limited, false, primaryAt(105), low, election.RefusedLag},
	}
	for name, test := range tests {
		peers := []election.Peer{test.primary, answers(2, election.Standby, 100, test.two), answers(3, election.Standby, 90)}
		if got := test.policy.Survey(start, three(test.quorum), peers); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestPolicy_Fit(t *testing.T) {
	t.Parallel()
	set := func(f func(*election.Peer)) election.Peer { return answers(2, election.Standby, 1, f) }
	unmonitored := set(func(p *election.Peer) { p.Monitored = false })
	tests := []struct {
		rule election.Rule
		peer election.Peer
		want election.Unfit
	}{
		{three(false), answers(2, election.Standby, 1), ""},
		{three(false), set(witness), election.UnfitWitness},
		{three(false), set(func(p *election.Peer) { p.Priority = 0 }), election.UnfitPriority},
		{three(false), set(func(p *election.Peer) { p.Delayed = true }), election.UnfitDelayed},
		{three(false), set(func(p *election.Peer) { p.Automatic = false }), election.UnfitManual},
		{three(false), unmonitored, election.UnfitUnmonitored},
		{three(true), unmonitored, ""}, // its commits wait for others
		{three(false), set(func(p *election.Peer) { p.CanFence = false }), election.UnfitUnable},
		{three(true), set(func(p *election.Peer) { p.CanFence = false }), ""},
	}
	for _, test := range tests {
		if got := failoverPolicy.Fit(test.rule, test.peer); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// One test for each key of the ranking and for each sign: the keys before are equal.
func TestPolicy_Count_Ranking(t *testing.T) {
	t.Parallel()
	r := three(false)
	newer := r
	newer.Seq, newer.Term = 1, 2
	newer.Primary = 3
	keys := map[string]struct{ better, worse func(*election.Peer) }{
		"term of the rule": {func(p *election.Peer) { p.Rule = newer }, func(p *election.Peer) { p.Position.LSN, p.Position.Timeline, p.Priority = 999, 9, 999 }},
		"timeline":         {func(p *election.Peer) { p.Position.Timeline = 2 }, func(p *election.Peer) { p.Position.LSN, p.Priority = 999, 999 }},
		"LSN":              {func(p *election.Peer) { p.Position.LSN = 101 }, func(p *election.Peer) { p.Priority = 999 }},
		"serves":           {func(*election.Peer) {}, func(p *election.Peer) { p.Priority = 999; room(0, 0)(p) }},
		"priority":         {func(p *election.Peer) { p.Priority = 101 }, func(p *election.Peer) {}},
		"location":         {func(p *election.Peer) {}, elsewhere},
	}
	located := failoverPolicy
	located.Location = answers(1, election.Standby, 1).Location
	for key, test := range keys {
		for _, best := range []int32{2, 3} { // whichever has the lower id
			a, b := answers(best, election.Standby, 100, holding(r), test.better), answers(5-best, election.Standby, 100, holding(r), test.worse)
			former := answers(1, election.Standby, 1, holding(r), func(p *election.Peer) { p.Priority = 0 })
			for _, peers := range [][]election.Peer{{former, a, b}, {former, b, a}} {
				if got := located.Count(r, 9, election.HealthDead, peers); got.Winner != best {
					t.Errorf("%s: got %+v, want winner %d", key, got, best)
				}
			}
		}
	}
	peers := []election.Peer{answers(3, election.Standby, 100, holding(r)), answers(2, election.Standby, 100, holding(r))}
	if got := failoverPolicy.Count(r, 2, election.HealthDead, peers); got.Winner != 2 {
		t.Errorf("lowest id: got %+v", got)
	}
}

func TestPolicy_Count_Refusals(t *testing.T) {
	t.Parallel()
	r := three(true)
	five := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}
	low := func(p *election.Peer) { p.Priority = 0 }
	four, last := answers(4, election.Primary, 0, witness), answers(5, election.Primary, 0, witness)
	tests := map[string]struct {
		rule  election.Rule
		peers []election.Peer
		want  election.Refusal
	}{
		"one pledge of three":                  {r, []election.Peer{answers(2, election.Standby, 9, holding(r))}, election.RefusedPledges},
		"a holder is missing":                  {five, []election.Peer{answers(2, election.Standby, 9, holding(five)), four, last}, election.RefusedSync},
		"nobody may be promoted":               {r, []election.Peer{answers(2, election.Standby, 9, holding(r), low), answers(3, election.Standby, 9, holding(r), low)}, election.RefusedNoneFit},
		"only one that may not has all":        {r, []election.Peer{answers(2, election.Standby, 9, holding(r)), answers(3, election.Standby, 10, holding(r), low)}, election.RefusedBehind},
		"a newer rule that a witness tells of": {r, []election.Peer{answers(2, election.Standby, 9, holding(r)), answers(3, election.Primary, 0, witness, holding(election.Rule{Term: 2, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}}))}, election.RefusedPledges},
		"both holders":                         {r, []election.Peer{answers(2, election.Standby, 9, holding(r)), answers(3, election.Standby, 10, holding(r))}, ""},
	}
	for name, test := range tests {
		if got := failoverPolicy.Count(test.rule, 7, election.HealthDead, test.peers); got.Refusal != test.want {
			t.Errorf("%s: got %+v, want %q", name, got, test.want)
		}
	}
}

// A primary that may still accept writes is waited for, until it is known that none does.
func TestPolicy_Count_Wait(t *testing.T) {
	t.Parallel()
	r := three(false)
	two, other := answers(2, election.Standby, 9, holding(r)), answers(3, election.Standby, 9, holding(r))
	former := answers(1, election.Standby, 9, holding(r))
	told := r
	told.Term, told.Primary = 2, 4 // by a witness
	tests := map[string]struct {
		rule   election.Rule
		term   int64
		health election.Health
		peers  []election.Peer
		want   bool
	}{
		"silent":                         {r, 2, election.HealthSilent, []election.Peer{two, other}, true},
		"refused by a firewall, perhaps": {r, 2, election.HealthRefused, []election.Peer{two, other}, true},
		"dead":                           {r, 2, election.HealthDead, []election.Peer{two, other}, false},
		"seen as a standby, that may be promoted again": {r, 2, election.HealthDemoted, []election.Peer{two, other}, true},
		"pledged": {r, 2, election.HealthDemoted, []election.Peer{former, two}, false},
		"dead, but one may have been elected since": {r, 3, election.HealthDead, []election.Peer{two, other}, true},
		"all are pledged":                      {r, 3, election.HealthDemoted, []election.Peer{former, two, other}, false},
		"a term that was told of and not seen": {r, 3, election.HealthDead, []election.Peer{two, answers(3, election.Primary, 0, witness, holding(told))}, true},
		"its commits wait for others":          {three(true), 2, election.HealthSilent, []election.Peer{answers(2, election.Standby, 9, holding(three(true))), answers(3, election.Standby, 9, holding(three(true)))}, false},
	}
	for name, test := range tests {
		got := failoverPolicy.Count(test.rule, test.term, test.health, test.peers)
		if got.Refusal != "" || got.Wait != test.want {
			t.Errorf("%s: got %+v, want wait %v", name, got, test.want)
		}
	}
}

// A pause counts where no election can pass it by, and not where it reached the
// primary's side of a cut alone.
func TestRule_PauseHolds(t *testing.T) {
	t.Parallel()
	word := func(id int32, seq int64, paused bool) election.Peer {
		return answers(id, election.Standby, 1, func(p *election.Peer) { p.Paused, p.PauseSeq = paused, seq })
	}
	r := three(false)
	etcd := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{election.Arbiter, 1, 2}}
	tests := map[string]struct {
		rule  election.Rule
		peers []election.Peer
		want  bool
	}{
		"nobody":                        {r, []election.Peer{word(1, 0, false), word(2, 0, false), word(3, 0, false)}, false},
		"everybody":                     {r, []election.Peer{word(1, 3, true), word(2, 3, true), word(3, 3, true)}, true},
		"the primary alone":             {r, []election.Peer{word(1, 3, true), word(2, 2, false), word(3, 2, false)}, false},
		"the primary and another":       {r, []election.Peer{word(1, 3, true), word(2, 3, true), word(3, 2, false)}, true},
		"another one alone":             {r, []election.Peer{word(1, 2, false), word(2, 3, true), word(3, 2, false)}, true},
		"one that was unpaused since":   {r, []election.Peer{word(1, 3, true), word(2, 4, false), word(3, 3, true)}, false},
		"the etcd and the other remain": {etcd, []election.Peer{word(1, 3, true), word(2, 2, false)}, false},
		"the etcd alone remains":        {etcd, []election.Peer{word(1, 3, true), word(2, 3, true)}, true},
	}
	for name, test := range tests {
		if got := test.rule.PausePreventsElection(1, test.peers); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// A primary that stands for a higher term stays unless another one has more.
func TestPolicy_Count_Incumbent(t *testing.T) {
	t.Parallel()
	r := three(true)
	runs := answers(1, election.Primary, 100, holding(r))
	runs.Running, runs.Priority = election.Primary, 0
	liked := func(p *election.Peer) { p.Priority = 200 }
	p := failoverPolicy
	p.Incumbent = 1
	for lsn, winner := range map[wal.LSN]int32{99: 1, 100: 1, 101: 2} {
		other := answers(2, election.Standby, lsn, holding(r), liked)
		require.Equal(t, winner, p.Count(r, 9, election.HealthAlive, []election.Peer{runs, other}).Winner, "the other one is at %s", lsn)
	}
}

// What the election of a handover would lack: the pledge of the former primary is had by starting that as a standby, and
// what only forbids a failover is not asked.
func TestPolicy_HandoverRefused(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(*election.Rule, []election.Peer)
		voter  bool             // the former primary has to pledge itself
		want   election.Refusal // also then
	}{
		"nothing":                     {func(*election.Rule, []election.Peer) {}, false, ""},
		"nobody else at its location": {func(_ *election.Rule, p []election.Peer) { elsewhere(&p[0]) }, true, ""},
		"commits wait for nobody":     {func(r *election.Rule, _ []election.Peer) { r.Quorum = true }, true, ""},
		"its vote is needed": {func(r *election.Rule, p []election.Peer) {
			p[2].Answer = election.Silent
		}, true, ""},
		"too many are silent": {func(r *election.Rule, p []election.Peer) {
			r.Voters, p[2].Answer = []int32{1, 2, 3, 4, 5}, election.Silent
		}, true, election.RefusedNoMajority},
		"another was promoted by nobody": {func(_ *election.Rule, p []election.Peer) {
			p[2].Running, p[2].Monitored, p[2].SeenAt = election.Primary, false, start.Add(-time.Minute)
		}, true, election.RefusedUsurper},
	} {
		rule := election.Rule{Term: 4, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
		peers := []election.Peer{answers(1, election.Primary, 1000), answers(2, election.Standby, 1000), answers(3, election.Standby, 1000)}
		c.change(&rule, peers)
		p := failoverPolicy
		p.MaxLag, p.TooMany = 1, true
		require.Equal(t, c.want, p.HandoverRefused(start, rule, peers, 2, true), what)
		peers[0].Answer, peers[0].Since = election.Refused, start
		streams(&peers[1]) // as it was seen a moment ago
		refused := p.HandoverRefused(start, rule, peers, 2, false)
		require.Equal(t, c.voter, refused.NeedsVoter(), "%s: %s", what, refused)
	}
}
