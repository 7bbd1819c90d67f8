package health_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

var now = time.Date(2026, 11, 30, 3, 0, 0, 0, time.UTC)

// rule is the one of term 5: node 1 is the primary, and commits wait for one of the others.
var rule = election.Rule{Term: 5, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}

// view is that of a node in a healthy cluster of three, whose primary is node 1.
func view(id registry.NodeID) health.View {
	v := health.View{
		At: now, NodeID: id, LookedAt: now.Add(-time.Second), Interval: 2 * time.Second, Silence: 2 * time.Second,
		Automatic: true, Rule: rule, LocalAnswer: election.Answers, LocalSeenAt: now.Add(-time.Second),
		Local:    registry.NodeStatus{StartedAt: now.Add(-time.Hour), InRecovery: id != 1, CurrentLSN: 1000, ReceivedLSN: 990, ReplayedLSN: 900, Receiver: &registry.WALReceiver{Status: "streaming"}},
		Upstream: health.Upstream{ID: 1, SeenAt: now.Add(-time.Second), LSN: 1000},
		Lease:    health.Lease{Known: id == 1, Needed: id == 1, Proven: id == 1, Left: 2 * time.Second},
	}
	for i := int32(1); i <= 3; i++ {
		r := registry.Record{ID: registry.NodeID(i), Name: "node" + registry.NodeID(i).String(), Active: true, Role: registry.RoleStandby, Priority: 100}
		p := election.Peer{ID: i, Role: election.Standby, Answer: election.Answers, Tried: now, SeenAt: now.Add(-200 * time.Millisecond), Running: election.Standby, Rule: rule, Receiving: true}
		if i == 1 {
			r.Role, p.Role, p.Running, p.Receiving = registry.RolePrimary, election.Primary, election.Primary, false
		}
		v.Records, v.Peers = append(v.Records, r), append(v.Peers, p)
	}
	return v
}

// with returns the view after a change to it and to the local node among its peers.
func with(v health.View, change func(v *health.View, self *election.Peer)) health.View {
	change(&v, &v.Peers[v.NodeID-1])
	return v
}

func TestPrimary(t *testing.T) {
	t.Parallel()
	type change = func(v *health.View, self *election.Peer)
	for name, c := range map[string]struct {
		change change
		why    string // why not; empty: it is the primary
	}{
		"in office":                   {func(*health.View, *election.Peer) {}, ""},
		"not needed lease":            {func(v *health.View, _ *election.Peer) { v.Lease = health.Lease{Known: true} }, ""},
		"elected, row not written":    {func(v *health.View, p *election.Peer) { p.Rule.Primary, p.WonElection, p.Term = 3, true, 6 }, ""},
		"a failed election announced": {func(v *health.View, _ *election.Peer) { v.Peers[1].Announced = election.Rule{Term: 6, Primary: 2} }, ""},
		"the same term, newer":        {func(v *health.View, _ *election.Peer) { v.Peers[1].Rule.Seq = 9 }, ""},
		"one heartbeat late":          {func(_ *health.View, p *election.Peer) { p.Answer, p.SeenAt = election.Silent, now.Add(-time.Second) }, ""},
		"out of connections for long": {func(_ *health.View, p *election.Peer) { p.Answer, p.SeenAt = election.NoSlots, now.Add(-time.Minute) }, ""},
		"rejects our login":           {func(_ *health.View, p *election.Peer) { p.Answer, p.SeenAt = election.Rejects, now.Add(-time.Minute) }, ""},
		"an idle session was ended":   {func(_ *health.View, p *election.Peer) { p.Ended = true }, ""},
		"deposed":                     {func(v *health.View, _ *election.Peer) { v.Peers[1].Rule = election.Rule{Term: 6, Primary: 2} }, "node2 was elected in term 6"},
		"deposed, by a witness's rule": {func(v *health.View, _ *election.Peer) {
			v.Peers[1].Role, v.Peers[1].Rule = election.Witness, election.Rule{Term: 6, Primary: 2}
		}, ""},
		"promoted by hand":                 {func(_ *health.View, p *election.Peer) { p.Rule.Primary = 3 }, "nobody elected"},
		"no rule yet":                      {func(v *health.View, p *election.Peer) { v.Rule, p.Rule = election.Rule{}, election.Rule{} }, "no majority has made"},
		"lease over":                       {func(v *health.View, _ *election.Peer) { v.Lease.Left = 0 }, "has run out"},
		"lease not checked":                {func(v *health.View, _ *election.Peer) { v.Lease.Known = false }, "not known"},
		"daemon just started, no majority": {func(v *health.View, _ *election.Peer) { v.Lease.Proven = false }, "since it was started"},
		"down":                             {func(_ *health.View, p *election.Peer) { p.Answer, p.Ended = election.Refused, true }, "refuses connections"},
		"shutting down":                    {func(_ *health.View, p *election.Peer) { p.Answer = election.NotAccepting }, "not accepting"},
		"hangs":                            {func(_ *health.View, p *election.Peer) { p.Answer = election.Hangs }, "says nothing"},
		"silent for long":                  {func(_ *health.View, p *election.Peer) { p.SeenAt = now.Add(-3 * time.Second) }, "has not answered for 3s"},
		"never seen":                       {func(_ *health.View, p *election.Peer) { *p = election.Peer{ID: 1} }, "was not seen since"},
		"daemon hangs":                     {func(v *health.View, _ *election.Peer) { v.LookedAt = now.Add(-time.Minute) }, "has not completed a look"},
		"daemon has made no turn":          {func(v *health.View, _ *election.Peer) { v.LookedAt = time.Time{} }, "since it was started"},
		"standby":                          {func(_ *health.View, p *election.Peer) { p.Running = election.Standby }, "node1 is the primary of term 5"},
		"witness":                          {func(v *health.View, _ *election.Peer) { v.Records[0].Role = registry.RoleWitness }, "witness"},
		"observer":                         {func(v *health.View, _ *election.Peer) { v.NodeID = 0 }, "no node of its own"},
		"by hand":                          {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers = false, nil }, ""},
		"by hand, down": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.LocalAnswer = false, nil, election.Refused
		}, "refuses connections"},
		"by hand, one look failed": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.LocalAnswer, v.LocalSeenAt = false, nil, election.Silent, now.Add(-5*time.Second)
		}, ""},
		"by hand, many looks failed": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.LocalAnswer, v.LocalSeenAt = false, nil, election.Silent, now.Add(-7*time.Second)
		}, "has not answered for 7s"},
		"by hand, out of connections": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.LocalAnswer, v.LocalSeenAt = false, nil, election.NoSlots, now.Add(-time.Minute)
		}, ""},
		"by hand, never seen":           {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.LocalSeenAt = false, nil, time.Time{} }, "was not seen since"},
		"another daemon acts":           {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.Yields = false, nil, true }, "another repmgrd"},
		"lease over beside repmgr 5":    {func(v *health.View, _ *election.Peer) { v.Peers[1].Foreign, v.Lease.Left = true, 0 }, "has run out"},
		"by hand, no rule":              {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.Rule = false, nil, election.Rule{} }, ""},
		"by hand, a rule names another": {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.Rule.Primary = false, nil, 2 }, "node2 is the primary"},
		"by hand, registered as standby": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.Records[0].Role = false, nil, registry.RoleStandby
		}, "not registered as one"},
		"beside a daemon of repmgr 5": {func(v *health.View, p *election.Peer) {
			v.Peers[1].Foreign, v.Rule, p.Rule, v.Lease = true, election.Rule{}, election.Rule{}, health.Lease{}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := with(view(1), c.change).Primary()
			assert.Equal(t, c.why == "", got.OK, got.Why)
			assert.Contains(t, got.Why, c.why)
			assert.Equal(t, got.OK, got.Why == "")
		})
	}
}

func TestStandby(t *testing.T) {
	t.Parallel()
	v := view(2)
	assert.True(t, v.Standby().OK, v.Standby().Why)
	assert.Contains(t, v.Primary().Why, "node1 is the primary of term 5")
	assert.Contains(t, view(1).Standby().Why, "runs as a primary")
	each, some := v.Synchronous()
	assert.Equal(t, []bool{false, true}, []bool{each, some})
	v.Rule.Acks = 2
	each, some = v.Synchronous()
	assert.Equal(t, []bool{true, false}, []bool{each, some})

	assert.True(t, v.CaughtUp(v.Local.ReplayedLSN, 100).OK)
	assert.Contains(t, v.CaughtUp(v.Local.ReplayedLSN, 99).Why, "100 bytes behind")
	assert.True(t, v.CaughtUp(v.Local.ReceivedLSN, 10).OK)
	assert.Contains(t, with(view(2), func(_ *health.View, p *election.Peer) { p.Receiving = false }).CaughtUp(900, 100).Why, "receives nothing")
	assert.Contains(t, with(view(2), func(v *health.View, _ *election.Peer) { v.Upstream = health.Upstream{} }).Within(900, 100).Why, "not known")
	assert.Contains(t, v.Within(wal.LSN(0), 100).Why, "not known")
}

func TestWriter(t *testing.T) {
	t.Parallel()
	type change = func(v *health.View, primary *election.Peer)
	for name, c := range map[string]struct {
		change change
		want   registry.NodeID
	}{
		"in office":             {func(*health.View, *election.Peer) {}, 1},
		"lost":                  {func(_ *health.View, p *election.Peer) { p.Answer = election.Refused }, 0},
		"silent for long":       {func(_ *health.View, p *election.Peer) { p.SeenAt = now.Add(-3 * time.Second) }, 0},
		"not promoted yet":      {func(_ *health.View, p *election.Peer) { p.Running = election.Standby }, 0},
		"promoted by hand":      {func(_ *health.View, p *election.Peer) { p.Rule.Primary = 3 }, 0},
		"elected, row not seen": {func(_ *health.View, p *election.Peer) { p.Rule.Primary, p.WonElection, p.Term = 3, true, 6 }, 1},
		"deposed":               {func(v *health.View, _ *election.Peer) { v.Peers[2].Rule = election.Rule{Term: 6, Primary: 3} }, 0},
		"deposed, its successor is there": {func(v *health.View, _ *election.Peer) {
			v.Peers[2].Rule, v.Peers[2].Running = election.Rule{Term: 6, Primary: 3}, election.Primary
		}, 3},
		"no majority": {func(v *health.View, _ *election.Peer) { v.Rule.Voters = []int32{1, 2, 3, 4, 5}; v.Peers = v.Peers[:2] }, 0},
		"a witness":   {func(v *health.View, p *election.Peer) { p.Role = election.Witness }, 0},
		"by hand":     {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers = false, nil }, 1},
		"by hand, not seen": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.Upstream.SeenAt = false, nil, now.Add(-time.Minute)
		}, 0},
		"by hand, cascaded": {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.Upstream.ID = false, nil, 3 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := view(2)
			c.change(&v, &v.Peers[0])
			assert.Equal(t, c.want, v.Writer())
		})
	}
	assert.Equal(t, registry.NodeID(1), view(1).Writer())
	assert.Zero(t, with(view(1), func(v *health.View, _ *election.Peer) { v.Lease.Left = 0 }).Writer(), "the lease is over")
	v := view(1)
	v.NodeID, v.Node = 0, "" // an observer
	assert.Equal(t, registry.NodeID(1), v.Writer())
}

// Whether a node is certainly not the primary: not to know it is not enough.
func TestGone(t *testing.T) {
	t.Parallel()
	type change = func(v *health.View, self *election.Peer)
	for name, c := range map[string]struct {
		change change
		want   bool
	}{
		"in office":           {func(*health.View, *election.Peer) {}, false},
		"down":                {func(_ *health.View, p *election.Peer) { p.Answer = election.Refused }, true},
		"shutting down":       {func(_ *health.View, p *election.Peer) { p.Answer = election.NotAccepting }, true},
		"silent":              {func(_ *health.View, p *election.Peer) { p.Answer = election.Silent }, false},
		"silent, lease over":  {func(v *health.View, p *election.Peer) { p.Answer, v.Lease.Left = election.Silent, 0 }, true},
		"lease over":          {func(v *health.View, _ *election.Peer) { v.Lease.Left = 0 }, true},
		"lease not known":     {func(v *health.View, _ *election.Peer) { v.Lease = health.Lease{} }, false},
		"lease not needed":    {func(v *health.View, _ *election.Peer) { v.Lease = health.Lease{Known: true} }, false},
		"deposed":             {func(v *health.View, _ *election.Peer) { v.Peers[1].Rule = election.Rule{Term: 6, Primary: 2} }, true},
		"a standby":           {func(_ *health.View, p *election.Peer) { p.Running = election.Standby }, true},
		"never seen":          {func(v *health.View, p *election.Peer) { *p, v.Lease = election.Peer{ID: 1}, health.Lease{} }, false},
		"another daemon acts": {func(v *health.View, p *election.Peer) { v.Yields, p.Answer = true, election.Refused }, false},
		"this daemon hangs":   {func(v *health.View, p *election.Peer) { v.LookedAt, p.Answer = now.Add(-time.Minute), election.Refused }, false},
		"just made automatic": {func(v *health.View, _ *election.Peer) {
			v.Peers, v.Rule, v.Lease = nil, election.Rule{}, health.Lease{}
		}, false},
		"by hand": {func(v *health.View, _ *election.Peer) { v.Automatic, v.Peers, v.Lease = false, nil, health.Lease{} }, false},
		"by hand, down": {func(v *health.View, _ *election.Peer) {
			v.Automatic, v.Peers, v.LocalAnswer = false, nil, election.Refused
		}, true},
		"without a node": {func(v *health.View, p *election.Peer) { v.NodeID, p.Answer = 0, election.Refused }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, c.want, with(view(1), c.change).Gone())
		})
	}
}
