package repmgr

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/report"
)

// A primary is new only where it was not the primary before, as the follower knew it.
func TestFollowResult_Sentence(t *testing.T) {
	t.Parallel()
	r := FollowResult{Node: Record{ID: 2, Name: "node2"}, Upstream: Record{ID: 1, Name: "node1"}}
	require.Equal(t, `node "node2" (ID: 2) follows new primary node "node1" (ID: 1)`, report.Followed(r.Node, r.Upstream, r.wasPrimary, r.wasUpstream))
	r.wasPrimary = true
	require.Equal(t, `node "node2" (ID: 2) follows node "node1" (ID: 1), which is the primary as before`, report.Followed(r.Node, r.Upstream, r.wasPrimary, r.wasUpstream))
	r.wasUpstream = true
	require.Equal(t, `node "node2" (ID: 2) follows node "node1" (ID: 1) again, which is the primary as before`, report.Followed(r.Node, r.Upstream, r.wasPrimary, r.wasUpstream))
}

// Nobody knows whether what is not tried any more would work.
func TestMonitor_SaysNotThatItWorksWhatIsNotTried(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	m := &Monitor{trouble: trouble.Log{Logger: slog.New(slog.NewTextHandler(&log, nil)), Hint: Hint}}
	m.tellHeartbeat("refused", false)
	require.Contains(t, log.String(), "the heartbeat does not work")
	log.Reset()
	m.tellHeartbeat("", false) // no primary: nobody writes one
	m.tellHeartbeat("", false)
	require.NotContains(t, log.String(), "works again")
	require.Contains(t, log.String(), "the trouble with the heartbeat is over")
	require.Empty(t, m.trouble.All())
}

// What an unpause that did not reach the primary leaves behind depends on the mode,
// and is said of the mode that is in force.
func TestPauseResult_Warn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		quorum, paused, reached bool
		want                    string
	}{
		{false, false, false, "synchronous_mode=off"},
		{true, false, false, ""},
		{false, false, true, ""},
		{true, true, false, "keeps its lease"},
	} {
		res := PauseResult{Paused: test.paused, Nodes: []PausedNode{{ID: 1, Name: "node1", Error: "no answer"}, {ID: 2, Name: "node2"}, {ID: 3, Name: "node3", Error: "no answer"}}}
		if test.paused {
			res.Nodes[1].Error = "no answer"
		}
		if test.reached {
			res.Nodes[0].Error = ""
		}
		res.warn(election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: test.quorum}, 2)
		if test.want == "" {
			require.Empty(t, res.Warning)
		} else {
			require.Contains(t, res.Warning, test.want)
		}
	}
}

func TestBringsBack(t *testing.T) {
	t.Parallel()
	diverged, gone := kind(ErrTimelineDiverged, "x"), hint(kind(ErrWALGone, "x"), "y")
	for _, test := range []struct {
		mode   FailoverMode
		policy RejoinPolicy
		err    error
		want   bool
	}{
		{FailoverAutomatic, RejoinRewind, diverged, true},
		{FailoverAutomatic, RejoinRewind, gone, false},
		{FailoverAutomatic, RejoinReclone, diverged, true},
		{FailoverAutomatic, RejoinReclone, gone, true},
		{FailoverAutomatic, RejoinIfClean, diverged, false},
		{FailoverAutomatic, RejoinNever, diverged, false},
		{FailoverManual, RejoinReclone, diverged, false},
	} {
		require.Equal(t, test.want, daemonRejoins(Announcement{Mode: test.mode}, test.policy, test.err), "%+v", test)
	}
}

// A primary that was deposed is not shown as the primary, by whomever it is asked.
func TestJudge_Deposed(t *testing.T) {
	t.Parallel()
	primary := func(id NodeID, term int64, of int32) report.Look {
		p := report.Look{Record: Record{ID: id, Name: "node" + id.String(), Role: RolePrimary, Active: true, Conninfo: "host=node" + id.String()}}
		if p.Status.Timeline = 1; term > 0 {
			p.Rule = election.Rule{Term: term, Seq: 1, Primary: of}
		}
		return p
	}
	standby := func(id NodeID, term int64, of int32) report.Look {
		p := primary(id, term, of)
		p.Record.Role, p.Status.InRecovery = RoleStandby, true
		return p
	}
	gone := primary(2, 0, 0)
	gone.Err = &postgres.ConnectError{Reach: postgres.ReachTimeout, Err: errors.New("no answer")}
	byHand := primary(2, 0, 0)
	byHand.Status.Timeline = 2
	byHand.Rows = []Record{{ID: 1, Role: RolePrimary}, {ID: 2, Role: RolePrimary, Active: true}}
	unaware := byHand
	unaware.Rows = []Record{{ID: 1, Role: RolePrimary, Active: true}, {ID: 2, Role: RoleStandby, Active: true}}
	for name, test := range map[string]struct {
		probes []report.Look
		cells  []string
		text   string // of node 1; empty: it is not deposed
	}{
		"the only one":                      {[]report.Look{primary(1, 3, 1), standby(2, 3, 1)}, []string{"* running", "running"}, ""},
		"who took over runs":                {[]report.Look{primary(1, 1, 1), primary(2, 2, 2)}, []string{"! deposed", "* running"}, `node "node2" (ID: 2) is the primary since term 2`},
		"a standby knows who":               {[]report.Look{primary(1, 1, 1), gone, standby(3, 2, 2)}, []string{"! deposed", "? unreachable", "running"}, `node "node2" (ID: 2) is the primary since term 2`},
		"who won has no row of it yet":      {[]report.Look{primary(1, 1, 1), primary(2, 1, 1)}, []string{"* running", "* running"}, ""},
		"a newer set of voters":             {[]report.Look{primary(1, 1, 1), standby(2, 1, 1)}, []string{"* running", "running"}, ""},
		"promoted by hand, which both know": {[]report.Look{primary(1, 0, 0), byHand}, []string{"! deposed", "* running"}, `node "node2" (ID: 2) is the primary, promoted to timeline 2`},
		"promoted by pg_ctl":                {[]report.Look{primary(1, 0, 0), unaware}, []string{"* running", "* running"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := report.Compare(test.probes)
			var cells []string
			for _, n := range st.Nodes {
				cells = append(cells, n.Status)
			}
			require.Equal(t, test.cells, cells)
			require.Equal(t, test.text != "", report.Findings(st.Findings).Has(FindingDeposed))
			for _, f := range st.Findings {
				if f.Code == FindingDeposed {
					require.Contains(t, f.Text, test.text)
					require.Contains(t, f.Text, "node rejoin -d 'host=node2' --force-rewind")
				}
			}
		})
	}
}
