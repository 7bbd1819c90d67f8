package election_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// lined is the rule of three nodes whose line is known: timeline 2, which began at 500.
func lined(quorum bool) election.Rule {
	r := three(quorum)
	r.Line = wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: 500}}, Fingerprint: 7}
	return r
}

func on(t wal.Timeline, mark uint32, forks ...wal.LSN) func(*election.Peer) {
	return func(p *election.Peer) {
		p.Position.Timeline, p.Mark = t, mark
		for i, lsn := range forks {
			p.Past = append(p.Past, wal.HistoryEntry{Timeline: wal.Timeline(i + 1), SwitchLSN: lsn})
		}
	}
}

// Who is not on the line of the rule votes, never wins, and counts for what it has
// up to where it left the line; so does one of which it is not known where it is.
func TestPolicy_Count_Line(t *testing.T) {
	t.Parallel()
	unsure := func(p *election.Peer) { p.PositionUnknown = true }
	own := func(p *election.Peer) { p.ReplayBlocked = election.UnfitOwnWAL }
	halted := func(p *election.Peer) { p.ReplayBlocked = election.UnfitTarget }
	asPrimary := func(p *election.Peer) { p.Running = election.Primary }
	for name, test := range map[string]struct {
		a, b    election.Peer
		adopts  int32
		winner  int32
		refusal election.Refusal
	}{
		"two on the line: who has more":                                {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 601, on(2, 7, 500)), 0, 3, ""},
		"one before the fork has less":                                 {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 499, on(1, 0)), 0, 2, ""},
		"a newer timeline that no rule knows":                          {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 900, on(3, 9, 500, 550)), 0, 2, ""},
		"but it left the line with more":                               {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 900, on(3, 9, 500, 650)), 0, 0, election.RefusedBehind},
		"a twin of the same numbers":                                   {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 900, on(2, 8, 500)), 0, 2, ""},
		"a dead branch of the old timeline":                            {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 900, on(1, 0)), 0, 2, ""},
		"unsure: its acknowledgements are not":                         {answers(2, election.Standby, 600, on(2, 7, 500), unsure), answers(3, election.Standby, 601, on(2, 7, 500), unsure), 0, 0, election.RefusedSync},
		"unsure: one is enough to cover":                               {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 601, on(2, 7, 500), unsure), 0, 0, election.RefusedSync},
		"its own WAL: it has the line up to its fork; both are needed": {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 500, on(1, 0), own), 0, 2, ""},
		"its own WAL, on another branch; both are needed":              {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 550, on(3, 9, 500, 550), own), 0, 2, ""},
		"its own WAL, on the line itself; both are needed":             {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 550, on(2, 7, 500), own), 0, 0, election.RefusedSync},
		"one whose replay can not end":                                 {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 600, on(2, 7, 500), halted), 0, 2, ""},
		"it has what the other one lacks":                              {answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 601, on(2, 7, 500), halted), 0, 0, election.RefusedBehind},
		"who was promoted by hand with all":                            {answers(2, election.Primary, 700, on(3, 9, 500, 600), asPrimary), answers(3, election.Standby, 600, on(2, 7, 500)), 2, 2, ""},
		"and with less than all":                                       {answers(2, election.Primary, 700, on(3, 9, 500, 590), asPrimary), answers(3, election.Standby, 600, on(2, 7, 500)), 2, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rule := lined(true)
			if name == "unsure: one is enough to cover" || strings.HasSuffix(name, "; both are needed") {
				rule.Acks = 1 // of two: an election needs both
			}
			p := failoverPolicy
			p.Adopts = test.adopts
			test.a.Rule, test.b.Rule = rule, rule
			tally := p.Count(rule, 9, election.HealthDead, []election.Peer{test.a, test.b})
			require.Equal(t, test.refusal, tally.Refusal)
			require.Equal(t, test.winner, tally.Winner)
		})
	}
	tally := failoverPolicy.Count(lined(true), 9, election.HealthDead, []election.Peer{answers(2, election.Standby, 600, on(2, 7, 500)), answers(3, election.Standby, 600, on(2, 7, 500))})
	require.Equal(t, wal.Lineage{Past: wal.History{{Timeline: 1, SwitchLSN: 500}, {Timeline: 2, SwitchLSN: 600}}}, tally.Rule.Line, "the line of the new term begins where the winner's log ends")
}

// What a node was told is what it has only beyond the fork; else it knows of it.
func TestPeer_Learned(t *testing.T) {
	t.Parallel()
	told := lined(true)
	told.Term, told.Primary = 2, 2
	same := told
	same.Line = wal.Lineage{Timeline: 1}
	before := three(true)
	before.Line = wal.Lineage{Timeline: 1}
	held := holding(before)
	for name, test := range map[string]struct {
		peer election.Peer
		told election.Rule
		rule int64 // term
		knew int64
	}{
		"beyond the fork":                   {answers(3, election.Standby, 501, held, on(2, 7, 500)), told, 2, 2},
		"at the fork":                       {answers(3, election.Standby, 500, held, on(2, 7, 500)), told, 1, 2},
		"on the timeline before":            {answers(3, election.Standby, 400, held, on(1, 0)), told, 1, 2},
		"on another branch":                 {answers(3, election.Standby, 900, held, on(1, 0)), told, 1, 2},
		"no new timeline: in the same line": {answers(3, election.Standby, 400, held, on(1, 0)), same, 1, 2},
		"the winner before its promotion":   {answers(2, election.Standby, 500, held, on(1, 0)), told, 1, 1},
		"the winner that died and is back":  {answers(2, election.Standby, 510, held, on(2, 7, 500)), told, 2, 2},
		"a primary shows its own rows":      {answers(2, election.Primary, 510, held, on(2, 7, 500)), told, 1, 1},
		"an older rule":                     {answers(3, election.Standby, 501, holding(told), on(2, 7, 500)), before, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := test.peer.WithAnnounced(test.told)
			require.Equal(t, test.rule, got.Rule.Term)
			require.Equal(t, test.knew, got.NewestRule().Term)
		})
	}
	require.EqualValues(t, 2, answers(2, election.Primary, 510, held, on(2, 7, 500)).WithAnnounced(told).Announced.Term, "it was elected, and has not written its row yet")
}

// No commit of a new term waits for a node that is on a branch: it streams only
// when it was brought back, and the term would stay closed until then.
func TestPolicy_Count_WaitsForNoStray(t *testing.T) {
	t.Parallel()
	r, peers := cluster(3, true, func(r *election.Rule, p []election.Peer) {
		r.Line, r.Sync = wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: 500}}}, []int32{2}
		for i := range p {
			p[i].Past, p[i].Rule = r.Line.Past, *r
		}
		p[2].Position.Timeline, p[2].Past = 3, wal.History{{Timeline: 1, SwitchLSN: 500}, {Timeline: 2, SwitchLSN: 900}}
	})
	got := guessing.Count(r, 4, election.HealthDead, peers[1:])
	require.EqualValues(t, 2, got.Winner)
	require.Empty(t, got.Rule.Sync)
	require.Zero(t, got.Rule.Acks)
}
