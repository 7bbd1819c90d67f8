package explain

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

var updateExplain = flag.Bool("update-explain", false, "write testdata/explain.txt instead of comparing with it")

// What a tired person reads at night, for the cases that matter.
func TestExplanation_String(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	type world struct {
		recs  []registry.Record
		peers []election.Peer
	}
	make5 := func(quorum bool, change func(w *world)) world {
		rule := election.Rule{Term: 3, Seq: 4, Primary: 1, Voters: []int32{1, 2, 3, 4, 5}}
		if quorum {
			rule.Quorum, rule.Sync, rule.Acks = true, []int32{2, 3, 4}, 2
		}
		var w world
		for id := int32(1); id <= 5; id++ {
			role, name := registry.RoleStandby, "node"+registry.NodeID(id).String()
			p := election.Peer{
				ID: id, Priority: 100, Location: "default", Tried: now, Answer: election.Answers, SeenAt: now, Running: election.Standby, Receives: 1, Streams: true,
				Position: wal.Position{Timeline: 2, LSN: 0x5034A70}, Term: 3, Rule: rule, Monitored: true, Automatic: true, CanFence: true,
			}
			switch id {
			case 1:
				role, p.Running, p.Streams, p.Receives = registry.RolePrimary, election.Primary, false, 0
			case 5:
				role, name, p.Running, p.Streams, p.Receives = registry.RoleWitness, "witness", election.Primary, false, 0
			}
			p.Role = election.Role(role)
			w.recs = append(w.recs, registry.Record{ID: registry.NodeID(id), Name: name, Role: role, Active: true})
			w.peers = append(w.peers, p)
		}
		change(&w)
		return w
	}
	lost := func(w *world) { // the machine of the primary is gone
		w.peers[0].Answer, w.peers[0].SeenAt, w.peers[0].Position = election.Silent, time.Time{}, wal.Position{}
		for i := range w.peers {
			w.peers[i].Streams = false
		}
	}
	byHand := func(w *world) { // no daemon fails over, and none has ever written a rule
		for i := range w.peers {
			w.recs[i].ConfigFile = "/etc/repmgr.conf"
			w.peers[i].Automatic, w.peers[i].Monitored, w.peers[i].Rule, w.peers[i].Term = false, i == 1, election.Rule{}, 0
		}
	}
	past := []registry.FailoverRecord{{Term: 3, StartedAt: now.Add(-2 * time.Hour), Steps: []registry.FailoverStep{
		{Step: "surveyed", After: 2 * time.Millisecond}, {Step: "recruited", After: 25 * time.Millisecond}, {Step: "chosen", After: 25 * time.Millisecond}, {Step: "promoted", After: 60 * time.Millisecond}, {Step: "ruled", After: 87 * time.Millisecond},
	}}}
	const mostPerHour = 10
	var all string
	for _, test := range []struct {
		name   string
		quorum bool
		lost   registry.NodeID
		past   []registry.FailoverRecord
		change func(w *world)
	}{
		{"all is well, quorum", true, 0, past, func(*world) {}},
		{"all is well, off; one is behind, one may not be promoted", false, 0, nil, func(w *world) {
			w.peers[0].Position.LSN += 4096
			w.peers[1].Position.LSN -= 100 << 10
			w.peers[3].Priority = 0
		}},
		{"a standby dies", true, 3, nil, func(*world) {}},
		{"nobody but the primary and a standby", true, 0, nil, func(w *world) {
			w.peers[2].Answer, w.peers[3].Answer, w.peers[4].Answer = election.Silent, election.Refused, election.NotAccepting
		}},
		{"paused", false, 0, nil, func(w *world) {
			p := &w.peers[4]
			p.Paused, p.PauseSeq, p.PausedBy = true, 1, election.Pause{Seq: 1, By: "ada@desk"}
		}},
		{"daemons with failover=manual", false, 0, nil, func(w *world) {
			for i := range w.peers {
				w.peers[i].Automatic = false
			}
		}},
		{"the machine of the primary is gone", false, 0, nil, lost},
		{"a standby dies after the primary", false, 2, nil, lost},
		{"no daemon runs, quorum", true, 0, nil, func(w *world) {
			for i := range w.peers {
				w.peers[i].Monitored, w.peers[i].Automatic = false, false
			}
		}},
		{"manual, and nobody ever wrote a rule", false, 0, nil, func(w *world) { byHand(w); w.peers[0].Position.LSN += 4096; w.peers[2].Position.LSN -= 512 }},
		{"manual: a standby dies", false, 3, nil, func(w *world) { byHand(w) }},
		{"manual: the primary is lost, and a standby is silent", false, 0, nil, func(w *world) {
			byHand(w)
			lost(w)
			w.peers[3].Answer, w.peers[3].SeenAt = election.Silent, time.Time{}
		}},
		{"manual: the primary rejects this login", false, 0, nil, func(w *world) { byHand(w); w.peers[0].Answer = election.Rejects }},
		{"a voter rejects this login", false, 0, nil, func(w *world) {
			for i := range w.peers[1:] {
				w.peers[i+1].Answer, w.peers[i+1].Rejection = election.Rejects, `password authentication failed for user "repmgr"`
			}
		}},
		{"voters reject this login, and others are silent", true, 0, nil, func(w *world) {
			for i := range w.peers[1:] {
				w.peers[i+1].Answer = election.Silent
			}
			w.peers[1].Answer = election.Rejects
		}},
		{"manual: two primaries", false, 0, nil, func(w *world) { byHand(w); w.peers[1].Running = election.Primary }},
		{"manual: nobody is left", false, 0, nil, func(w *world) {
			byHand(w)
			lost(w)
			for i := range w.peers[1:4] {
				w.peers[i+1].Answer = election.Silent
			}
		}},
		{"nobody may be promoted", true, 0, nil, func(w *world) {
			for i := range w.peers {
				w.peers[i].Priority = 0
			}
		}},
		{"too many failovers", true, 0, func() (many []registry.FailoverRecord) {
			for range mostPerHour {
				many = append(many, registry.FailoverRecord{Term: 3, StartedAt: now.Add(-time.Minute)})
			}
			return many
		}(), func(*world) {}},
	} {
		w := make5(test.quorum, test.change)
		for i, r := range w.recs {
			w.recs[i].Conninfo = "host=" + r.Name + " user=repmgr"
		}
		e, err := Answer(Question{
			At: now, Nodes: w.recs, Peers: w.peers, Past: test.past, MostPerHour: mostPerHour, Lost: test.lost,
			Policy: election.Policy{
				Interval: 2 * time.Second, RegisterEvery: 10 * time.Second, Silence: 2 * time.Second, Fence: 2500 * time.Millisecond, Promotion: time.Minute,
			},
			User: func(registry.Record) string { return "repmgr" },
		})
		require.NoError(t, err)
		require.Contains(t, e.String(), "\n"+e.Verdict()+"\n", test.name)
		all += "# " + test.name + "\n" + e.String() + "\n"
	}
	const file = "testdata/explain.txt"
	if *updateExplain {
		require.NoError(t, os.WriteFile(file, []byte(all), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), all)
}

// Each answer of why not begins with what is weightiest.
func TestExplanation_WhyNot(t *testing.T) {
	t.Parallel()
	rec := func(id registry.NodeID, role registry.Role) registry.Record {
		return registry.Record{ID: id, Name: "node" + id.String(), Role: role}
	}
	e := Explanation{
		Health: election.HealthAlive, Rule: election.Rule{Term: 3, Primary: 1},
		Voters: []Voter{{ID: 1, Name: "node1", Answer: election.Answers}, {ID: 2, Name: "node2", Answer: election.Answers}, {ID: 3, Name: "node3", Answer: election.Answers}, {ID: 4, Name: "node4", Answer: election.Hangs}, {ID: 5, Name: "node5", Answer: election.Answers}, {ID: 6, Name: "node6", Answer: election.Answers}, {ID: 7, Name: "node7", Answer: election.Answers}},
		Forecast: election.Forecast{Winner: 2, Candidates: []election.Candidate{
			{ID: 2}, {ID: 3, Key: election.KeyPriority}, {ID: 5, Unfit: election.UnfitDelayed},
		}},
	}
	require.Len(t, e.stuck([]Stuck{{ID: 7, Why: "node7 can not follow node1", Remedy: "On node7: repmgr node rejoin"}}), 1)
	const lives = "node1 is the primary of term 3 (primary answers)."
	const wins = "In an election now, node2 would win: it has as much as node3, and the higher priority."
	for _, test := range []struct {
		node registry.Record
		want []string
	}{
		{rec(1, registry.RolePrimary), []string{lives}},
		{rec(2, registry.RoleStandby), []string{lives, "If node1 died now, node2 would win: it has as much as node3, and the higher priority."}},
		{rec(3, registry.RoleStandby), []string{lives, "node2 would go before it: node3 has as much as node2, with a lower priority.", wins}},
		{rec(4, registry.RoleStandby), []string{lives, "node4 does not count: it accepts connections and says nothing.", wins}},
		{rec(5, registry.RoleStandby), []string{lives, "node5 may not be promoted: it applies WAL with a delay.", wins}},
		{rec(6, registry.RoleWitness), []string{lives, "node6 is a witness: it holds no data.", wins}},
		{rec(7, registry.RoleStandby), []string{lives, "node7 can not follow node1. On node7: repmgr node rejoin", wins}},
	} {
		got := WhyNot(e, test.node, nil)
		require.Equal(t, test.want, got.Reasons)
		require.Equal(t, test.node.ID == 1, got.IsPrimary)
		require.Equal(t, test.node.ID == 2, got.WouldWin)
	}
}

// What was tried is not advised.
func TestRefusalHint_NotForceAgain(t *testing.T) {
	t.Parallel()
	healths := []election.Health{election.HealthAlive, election.HealthUnknown, election.HealthNotAccepting, election.HealthShutDown, election.HealthMoved, election.HealthStuck}
	for r := range refusalHints {
		for _, h := range healths {
			require.NotContains(t, RefusalHint(r, h, true), "cluster failover", "%s, %s", r, h)
		}
	}
	require.Contains(t, RefusalHint(election.RefusedUnfenced, election.HealthStuck, true), "stop its server")
	require.Contains(t, RefusalHint(election.RefusedUnfenced, election.HealthSilent, false), "cluster failover --force")
}
