package chaos

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/pgfollow"
)

func at(ms int) time.Time { return time.UnixMilli(1_000_000 + int64(ms)) }

func TestParseLog(t *testing.T) {
	t.Parallel()
	events := parseLog(2, `1795393370.274 [553] LOG:  redo starts at 0/2000028
1795393370.280 [529] LOG:  archive recovery complete
1795393372.248 [755] LOG:  selected new timeline ID: 4
1795393372.272 [755] LOG:  archive recovery complete
1795393372.308 [1003] LOG:  started streaming WAL from primary at 0/4000000 on timeline 3
1795393372.310 [1003] LOG:  restarted WAL streaming at 0/4000000 on timeline 4
`)
	require.Equal(t, []logEvent{
		{time.UnixMilli(1795393372248), 2, chosen, 4},
		{time.UnixMilli(1795393372272), 2, promoted, 4},
		{time.UnixMilli(1795393372308), 2, streaming, 3},
		{time.UnixMilli(1795393372310), 2, streaming, 4},
	}, events)
}

func TestOutage(t *testing.T) {
	t.Parallel()
	acks := []Ack{{At: at(0)}, {At: at(10)}, {At: at(60)}, {At: at(70)}}
	require.Equal(t, 50*time.Millisecond, outage(acks, at(12), at(75)), "counted from the last commit before the fault")
	require.Equal(t, 130*time.Millisecond, outage(acks, at(12), at(200)), "it may last until the end")
	require.Equal(t, 9*time.Millisecond, outage(nil, at(1), at(10)))
}

func TestLosses(t *testing.T) {
	t.Parallel()
	ps := promotions(promotion{Node: 1, Timeline: 1}, []logEvent{{at(100), 2, chosen, 2}, {at(110), 2, promoted, 2}})
	require.Equal(t, []promotion{{Node: 1, Timeline: 1}, {at(110), 2, 2}}, ps)
	acks := []Ack{
		{1, at(1), at(2), 1},     // well
		{2, at(10), at(11), 1},   // before the fault: not replicated
		{3, at(60), at(61), 1},   // after it, and gone
		{4, at(109), at(111), 1}, // on its way when node 2 was promoted, and there
		{5, at(120), at(121), 1}, // two primaries, though it is there
		{6, at(130), at(131), 2}, // well
	}
	l := losses(acks, map[int64]bool{1: true, 4: true, 5: true, 6: true}, ps, at(50))
	require.Equal(t, loss{Lost: 2, Fenced: 2, Last: at(121)}, l)
}

// What a server acknowledged that was promoted by hand is nobody's promise; its promotion supersedes nobody.
func TestStray(t *testing.T) {
	t.Parallel()
	ps := []promotion{{Node: 1, Timeline: 1}, {at(10), 3, 2}, {at(50), 2, 2}, {at(90), 3, 3}}
	require.Equal(t, []promotion{{Node: 1, Timeline: 1}, {at(50), 2, 2}, {at(90), 3, 3}}, without(ps, 3), "a later promotion was an election")
	require.Equal(t, ps[:1], without(ps[:1], 3))
	rest, its := apart([]Ack{{1, at(1), at(2), 3}, {2, at(20), at(21), 3}, {3, at(22), at(23), 1}}, 3, at(10))
	require.Equal(t, []Ack{{1, at(1), at(2), 3}, {3, at(22), at(23), 1}}, rest)
	require.Equal(t, []Ack{{2, at(20), at(21), 3}}, its)
}

func TestVanished(t *testing.T) {
	t.Parallel()
	ps := []promotion{{Node: 1, Timeline: 1}, {at(50), 2, 2}}
	row := func(node, timeline int, a Ack) absence { return absence{node, timeline, 1, a} }
	early, late := Ack{1, at(10), at(11), 1}, Ack{2, at(60), at(61), 2}
	missing := []absence{
		row(2, 2, early), row(2, 2, early), // twice the same row, on a later primary
		row(1, 1, late),                      // the former primary can not know it
		row(3, 4, early),                     // promoted by hand
		row(2, 2, Ack{3, at(55), at(56), 1}), // acknowledged by one that was superseded: counted elsewhere
		row(2, 2, Ack{4, at(12), at(13), 3}), // acknowledged by the one that was promoted by hand
	}
	require.Equal(t, 1, vanished(missing, ps, 3, true))
	require.Zero(t, vanished(missing, ps, 3, false), "with off a later term may have lost it")
	require.Equal(t, 2, vanished(append(missing, row(2, 2, late)), ps, 3, true))
	require.Equal(t, 1, vanished(append(missing, row(2, 2, late)), ps, 3, false), "never its own")
}

func TestLasting(t *testing.T) {
	t.Parallel()
	ps := []promotion{{Node: 1}, {Node: 2, Timeline: 2}, {Node: 3, Timeline: 3}}
	at := func(sec int) time.Time { return time.Unix(int64(sec), 0) }
	for i := range ps {
		ps[i].At = at(10 * i)
	}
	require.Equal(t, []promotion{ps[0], ps[2]}, lasting(ps, 3, nil), "node 2 never came to office")
	require.Equal(t, ps[:1], lasting(ps, 1, nil))
	require.Equal(t, ps, lasting(ps, 3, []Ack{{1, at(11), at(12), 2}}))
	require.Equal(t, ps[:2], lasting(ps, 1, []Ack{{1, at(11), at(12), 2}, {2, at(15), at(16), 3}}), "node 3 acknowledged before it was promoted")
	again := append(ps, promotion{At: at(30), Node: 2, Timeline: 4})
	require.Equal(t, []promotion{ps[0], again[3]}, lasting(again, 1, []Ack{{1, at(31), at(32), 2}}), "its second term, not its first")
}

func TestFollowed(t *testing.T) {
	t.Parallel()
	p := promotion{at(100), 2, 2}
	events := []logEvent{{at(90), 3, streaming, 1}, {at(120), 3, streaming, 2}, {at(300), 1, streaming, 2}}
	d, ok := followed(p, events, []int{3})
	require.True(t, ok)
	require.Equal(t, 20*time.Millisecond, d)
	_, ok = followed(p, events, []int{3, 4})
	require.False(t, ok)
}

func TestPlanFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	o := PlanOptions{Seed: 7, Count: 200, Topology: "3,5,3+witness", Mode: "off,quorum", PairsPct: 30}
	a, err := NewPlan(o)
	require.NoError(t, err)
	b, err := NewPlan(o)
	require.NoError(t, err)
	require.Equal(t, a, b)
	o.Seed++
	c, err := NewPlan(o)
	require.NoError(t, err)
	require.NotEqual(t, a.Faults, c.Faults)

	o.Topology = "4"
	_, err = NewPlan(o)
	require.ErrorContains(t, err, `topology "4"`)
}

func TestPlanFitsItsTopology(t *testing.T) {
	t.Parallel()
	for _, topology := range []Topology{Three, ThreeWitness, Five, TwoWitness, TwoEtcd} {
		for _, plain := range []bool{false, true} {
			p, err := NewPlan(PlanOptions{Seed: 1, Each: true, Topology: string(topology), Mode: "off", Plain: plain})
			require.NoError(t, err)
			require.NotEmpty(t, p.Faults)
			for _, f := range p.Faults {
				n, ok := FindNemesis(f.Nemeses[0])
				require.True(t, ok)
				require.True(t, n.Needs.met(topology, plain, false, false, false))
			}
		}
	}
}

func TestNemesesAreComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, n := range Nemeses() {
		require.False(t, seen[n.Name], n.Name)
		seen[n.Name] = true
		require.NotNil(t, n.Do, n.Name)
		require.Contains(t, []Expect{Failover, None, Either}, n.Expect, n.Name)
		require.LessOrEqual(t, n.Hold[0], n.Hold[1], n.Name)
	}
	require.True(t, seen[killFault] && seen[cutFault])
	for _, name := range inSwitchover {
		require.True(t, seen["switchover, in it: "+name], name)
	}
}

func TestReportAndPlot(t *testing.T) {
	t.Parallel()
	r := Report{Version: "repmgr x", Began: at(0), Results: []Result{
		{Suite: "ours", Nemesis: killFault, Mode: "off", OutageMS: 50, FollowMS: 20, Promotions: 1, Alone: true},
		{Suite: "ours", Nemesis: "kill standby + " + cutFault, Mode: "quorum", OutageMS: 5000, FollowMS: -1, Seed: 9, N: 4, Problems: []string{"false failover"}},
		{Suite: "repmgr 5 default", Nemesis: killFault, Mode: "off", OutageMS: 50_000, FollowMS: -1, Promotions: 1, Alone: true},
	}}
	text := r.markdown()
	require.Contains(t, text, "| ours | kill server | off | 1 | 1 | 50/50/50 | 0 | 0 | 0 | 20/20/20 |")
	require.Contains(t, text, "| ours | two at once | quorum |")
	require.Contains(t, text, "repmgr 5 default 50000 ms: 1000 times as long")
	require.Contains(t, text, "- seed 9 fault 4")
	d := xml.NewDecoder(strings.NewReader(plot(r.Results)))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	n := &network{machines: map[string]*machine{"a": {ip: "10.0.0.1"}, "b": {ip: "10.0.0.2"}, "c": {ip: "10.0.0.3"}}, fates: map[[2]string]fate{
		{"a", "b"}: dropped, {"c", "b"}: reset, {"b", "c"}: dropped,
	}, weather: map[string]*weather{}}
	require.Equal(t, `*filter
-A INPUT -s 10.0.0.1 -j DROP
-A INPUT -s 10.0.0.3 -p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset
-A INPUT -s 10.0.0.3 ! -p tcp -j REJECT
COMMIT
`, n.rules("b"))
	require.Equal(t, []way{{"a", "b"}, {"b", "a"}}, both([]string{"a"}, []string{"b", "a"}))
}

// A client that asked what became of a commit is told the truth, or that nobody knows.
func TestContradicts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		t       try
		outcome pgfollow.Outcome
		there   bool
		wrong   bool
	}{
		{try{Open: true}, pgfollow.Committed, true, false},
		{try{Open: true}, pgfollow.Committed, false, true},
		{try{Open: true}, pgfollow.Aborted, false, false},
		{try{Open: true}, pgfollow.Aborted, true, true},
		{try{Open: true}, pgfollow.Lost, true, true},
		{try{Acked: true}, pgfollow.Lost, false, false},
		{try{Acked: true}, pgfollow.Lost, true, true},
		{try{Acked: true}, "", false, false},
		{try{Open: true}, pgfollow.Unknown, true, false},
		{try{}, "", false, false},
		{try{}, "", true, true},
	} {
		require.Equal(t, c.wrong, contradicts(c.t, c.outcome, c.there) != "", "%+v", c)
	}
}
