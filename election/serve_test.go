package election_test

import (
	"reflect"
	"testing"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

func room(senders, slots int) func(*election.Peer) {
	return func(p *election.Peer) { p.Capacity = election.Capacity{Known: true, Senders: senders, Slots: slots} }
}

func noStream(ids ...int32) func(*election.Peer) {
	return func(p *election.Peer) {
		p.NoStream = map[int32]string{}
		for _, id := range ids {
			p.NoStream[id] = "rejected"
		}
	}
}

func slotted(p *election.Peer) { p.NeedsSlot = true }

// Of equals the one wins that can serve the others best, whoever is preferred;
// never one that has less.
func TestPolicy_Count_Serves(t *testing.T) {
	t.Parallel()
	r := election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3, 4}}
	preferred := func(p *election.Peer) { p.Priority = 999 }
	tests := map[string]struct {
		two, three, four []func(*election.Peer)
		want             int32
	}{
		"nothing is known":                  {nil, nil, nil, 2},
		"all can":                           {set(room(2, 0)), set(room(2, 0)), nil, 2},
		"the login of one other is refused": {set(preferred), nil, set(noStream(2)), 3},
		"one login less is refused":         {set(noStream(3)), set(noStream(2)), set(noStream(2)), 4},
		"no sender":                         {set(preferred, room(0, 9)), nil, nil, 3},
		"a sender too few":                  {set(room(1, 9)), set(room(2, 9)), set(room(1, 9)), 3},
		"no slot, and none is wanted":       {set(room(9, 0)), nil, nil, 2},
		"no slot":                           {set(preferred, slotted, room(9, 0)), set(slotted, room(9, 2)), set(slotted), 3},
		"a stream is worth more than slots": {set(slotted, room(9, 0)), set(slotted, room(1, 9)), set(slotted, room(1, 9)), 2},
		"nobody can":                        {set(room(0, 0)), set(room(0, 0)), set(room(0, 0)), 2},
		"who has more wins":                 {set(room(0, 0), func(p *election.Peer) { p.Position.LSN++ }), nil, nil, 2},
	}
	for name, test := range tests {
		peers := []election.Peer{
			answers(2, election.Standby, 100, append(test.two, holding(r))...),
			answers(3, election.Standby, 100, append(test.three, holding(r))...),
			answers(4, election.Standby, 100, append(test.four, holding(r))...),
		}
		if got := failoverPolicy.Count(r, 2, election.HealthDead, peers); got.Winner != test.want {
			t.Errorf("%s: got %+v, want %d", name, got, test.want)
		}
	}
}

func set(change ...func(*election.Peer)) []func(*election.Peer) { return change }

// With quorum a winner from which nobody can stream would never open its term: it
// loses also where it has more, if that was never acknowledged, and only then.
func TestPolicy_Count_ServesWithQuorum(t *testing.T) {
	t.Parallel()
	more := func(p *election.Peer) { p.Position.LSN++ }
	both := three(true)
	onlyThree := both
	onlyThree.Sync = []int32{3}
	tests := map[string]struct {
		rule       election.Rule
		two, three []func(*election.Peer)
		want       int32
	}{
		"it has more, which may be acknowledged": {both, set(more, room(0, 0)), nil, 2},
		"it has more that nobody waited for":     {onlyThree, set(more, room(0, 0)), nil, 3},
		"it has more, and can serve":             {onlyThree, set(more, room(1, 0)), nil, 2},
		"neither can":                            {onlyThree, set(more, room(0, 0)), set(room(0, 0)), 2},
		"the login is refused":                   {onlyThree, set(more), set(noStream(2)), 3},
		"equal":                                  {both, set(room(0, 0)), nil, 3},
	}
	for name, test := range tests {
		peers := []election.Peer{answers(2, election.Standby, 100, append(test.two, holding(test.rule))...), answers(3, election.Standby, 100, append(test.three, holding(test.rule))...)}
		got := failoverPolicy.Count(test.rule, 2, election.HealthDead, peers)
		if got.Winner != test.want || got.Refusal != "" {
			t.Errorf("%s: got %+v, want %d", name, got, test.want)
		}
		all := append([]election.Peer{gone(election.Refused, ended)}, peers...)
		f := failoverPolicy.Forecast(start, test.rule, all, 1)
		if f.Winner != test.want || f.Candidates[0].ID != test.want || f.Candidates[0].Key != "" || f.Candidates[1].Key == "" {
			t.Errorf("%s: the forecast is %+v, want %d", name, f, test.want)
		}
	}
}

// What a node lacks is named beforehand, of each that may be promoted.
func TestPolicy_Forecast_Unserved(t *testing.T) {
	t.Parallel()
	r := three(false)
	peers := []election.Peer{
		answers(1, election.Primary, 100, holding(r)),
		answers(2, election.Standby, 100, holding(r), streams, slotted, room(0, 0)),
		answers(3, election.Standby, 100, holding(r), streams, slotted, room(5, 5), noStream(1, 2)),
	}
	f := failoverPolicy.Forecast(start, r, peers, 1)
	want := []election.Unserved{
		{Winner: 2, Lacks: election.LackLogin, Node: 3, Why: "rejected"},
		{Winner: 2, Lacks: election.LackSenders, Need: 1},
		{Winner: 2, Lacks: election.LackSlots, Need: 1},
	}
	if !reflect.DeepEqual(f.Unserved, want) {
		t.Errorf("got %+v, want %+v", f.Unserved, want)
	}
	if f.Winner != 3 || f.Candidates[1].Key != election.KeyServes {
		t.Errorf("got winner %d and %+v", f.Winner, f.Candidates)
	}
	if peers[1].Capacity.Senders, peers[1].Capacity.Slots, peers[2].NoStream = 5, 5, nil; len(failoverPolicy.Forecast(start, r, peers, 1).Unserved) != 0 {
		t.Errorf("all can serve: got %+v", f.Unserved)
	}
}

// A node is fed by the standby that has most, if that has what it needs.
func TestWALSource(t *testing.T) {
	t.Parallel()
	r := election.Rule{Term: 2, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3, 4}}
	standby := func(id int32, timeline wal.Timeline, at wal.LSN) election.Peer {
		return election.Peer{ID: id, Role: election.Standby, Running: election.Standby, Answer: election.Answers, Position: wal.Position{Timeline: timeline, LSN: at}}
	}
	lost := standby(2, 5, 900)
	lost.Answer = election.Silent
	strange, refused := standby(2, 5, 900), standby(4, 5, 0)
	strange.ReplayBlocked, refused.NoStream = election.UnfitOwnWAL, map[int32]string{2: "rejected"}
	unknown := standby(2, 5, 900)
	unknown.PositionUnknown = true
	for name, test := range map[string]struct {
		peers []election.Peer
		want  int32
	}{
		"nobody":                    {nil, 0},
		"itself":                    {[]election.Peer{standby(4, 5, 900)}, 0},
		"one that has it":           {[]election.Peer{standby(2, 5, 500)}, 2},
		"one that lacks a byte":     {[]election.Peer{standby(2, 5, 499)}, 0},
		"the one that has most":     {[]election.Peer{standby(2, 5, 600), standby(3, 5, 700)}, 3},
		"one of another timeline":   {[]election.Peer{standby(2, 6, 900)}, 0},
		"one that does not answer":  {[]election.Peer{lost, standby(3, 5, 500)}, 3},
		"one with WAL of its own":   {[]election.Peer{strange, standby(3, 5, 500)}, 3},
		"one that rejects it":       {[]election.Peer{standby(2, 5, 900), standby(3, 5, 500), refused}, 3},
		"one that is not known":     {[]election.Peer{unknown}, 0},
		"a primary":                 {[]election.Peer{{ID: 2, Role: election.Standby, Running: election.Primary, Answer: election.Answers, Position: wal.Position{Timeline: 5, LSN: 900}}}, 0},
		"a witness has no such WAL": {[]election.Peer{{ID: 2, Role: election.Witness, Running: election.Standby, Answer: election.Answers, Position: wal.Position{Timeline: 5, LSN: 900}}}, 0},
	} {
		if got := election.WALSource(r, test.peers, 4, wal.Position{Timeline: 5, LSN: 500}); got != test.want {
			t.Errorf("%s: node %d", name, got)
		}
	}
}
