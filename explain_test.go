package repmgr_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// explained asks again until the explanation is as it should be: what the Monitors
// announce and what streams settles in its own time.
func explained(t *testing.T, n *node, o repmgr.ExplainOptions, ok func(repmgr.Explanation) bool) repmgr.Explanation {
	t.Helper()
	var e repmgr.Explanation
	pgtest.WaitFor(t, "the explanation to be as it should", func(ctx context.Context) (err error) {
		if e, err = n.Explain(ctx, o); err == nil && !ok(e) {
			err = fmt.Errorf("it says:\n%s", e)
		}
		return err
	})
	return e
}

// What is foretold happens, and afterwards everybody can say why.
func TestExplain_ForetellsTheFailover(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	none, err := nodes[1].Failovers(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, none)
	why, err := nodes[1].Why(t.Context())
	require.NoError(t, err)
	require.Contains(t, why.String(), "The cluster is in term 1. No failover is recorded, no promotion, and no refusal.\n")

	before := explained(t, nodes[2], repmgr.ExplainOptions{}, func(e repmgr.Explanation) bool { return len(e.Blocked) == 0 && e.Forecast.Winner == 2 })
	t.Logf("before:\n%s", before)
	require.Equal(t, election.HealthAlive, before.Health)
	require.Equal(t, repmgr.NodeID(1), before.Lost.ID)
	require.Equal(t, repmgr.Votes{All: 3, Answer: 3, Without: 2, Majority: 2}, before.Votes)
	require.Zero(t, before.Loss.Bytes)
	require.Len(t, before.Outages, 2)
	require.Less(t, before.Outages[0].Total, time.Second)
	require.Contains(t, before.String(), "If node1 died now, node2 would win: ")
	require.Contains(t, before.String(), "Blocked by: nothing\n")

	standby := explained(t, nodes[0], repmgr.ExplainOptions{Lost: 3}, func(e repmgr.Explanation) bool { return e.Forecast.Commits == election.CommitsGoOn })
	require.Equal(t, election.RefusedNoMajority, standby.Forecast.Refusal)
	require.Contains(t, standby.String(), "If node3 died now, node1 would go on as primary, and commits go on.\n")
	require.Contains(t, standby.String(), "Blocked by: no majority of the voters answers: 1 of 3 votes would be left, a majority is 2\n")
	_, err = nodes[0].Explain(t.Context(), repmgr.ExplainOptions{Lost: 9})
	require.ErrorIs(t, err, repmgr.ErrNotRegistered)

	pgtest.WaitFor(t, "node3 to have no more than node2", func(ctx context.Context) error { // a record may reach it first
		not, err := nodes[0].WhyNot(ctx, 3)
		if err == nil && (not.IsPrimary || not.WouldWin || not.Reasons[0] != "node1 is the primary of term 1 (primary answers)." || !strings.Contains(not.Reasons[1], "node2 would go before it: node3 has ")) {
			err = fmt.Errorf("it says %q", not.Reasons)
		}
		return err
	})

	nodes[0].Signal(syscall.SIGKILL)
	winner := waitPrimary(t, nodes[1:]...)
	require.Equal(t, "2", winner.cfg.NodeID.String(), "as foretold")
	explainsThePast(t, nodes)
}

// explainsThePast asks of the failover from node1 to node2.
func explainsThePast(t *testing.T, nodes []*node) {
	t.Helper()
	var past []repmgr.FailoverRecord
	pgtest.WaitFor(t, "the failover in the history", func(ctx context.Context) (err error) {
		if past, err = nodes[2].Failovers(ctx, 5); err == nil && len(past) == 0 {
			err = fmt.Errorf("none")
		}
		return err
	})
	require.Len(t, past, 1)
	f := past[0]
	t.Logf("\n%s", f)
	require.Equal(t, []string{"node1", "node2"}, []string{f.Former, f.Primary})
	require.True(t, f.Reason.Lost(), f.Reason)
	require.WithinDuration(t, time.Now(), f.StartedAt, 30*time.Second)
	require.Less(t, f.Outage, 20*time.Second)
	told := make(chan repmgr.Event, 1) // by the Monitor that held the election
	for _, n := range nodes[1:] {
		if strings.HasPrefix(f.Coordinator, n.cfg.NodeName+".") {
			told <- n.events.wait(t, repmgr.EventFailoverPromote)
		}
	}
	e := <-told
	e.Failover.StartedAt, e.Failover.Outage = f.StartedAt, f.Outage // the server keeps microseconds, and its time zone
	require.Equal(t, f, *e.Failover)
	require.Equal(t, "surveyed", f.Steps[0].Step)
	require.Equal(t, "ruled", f.Steps[len(f.Steps)-1].Step)

	why, err := nodes[1].Why(t.Context())
	require.NoError(t, err)
	t.Logf("why:\n%s", why)
	require.Equal(t, f.Term, why.Failover.Term)
	require.Equal(t, f.Term, why.Rule.Term)
	require.Len(t, why.Monitors, 3)
	require.Contains(t, why.String(), "node2 took over from node1, because the primary ")
	require.NotNil(t, why.Monitors[1].Monitor)

	not, err := nodes[2].WhyNot(t.Context(), 2)
	require.NoError(t, err)
	require.True(t, not.IsPrimary)
	after, err := nodes[2].Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	t.Logf("after:\n%s", after)
	require.Equal(t, repmgr.NodeID(2), after.Lost.ID)
	not, err = nodes[2].WhyNot(t.Context(), 1)
	require.NoError(t, err)
	t.Logf("why not node1: %q", not.Reasons)
	require.Contains(t, not.Reasons[len(not.Reasons)-1], "It was the primary before. ")
}

// Two nodes. With failover=manual it says what an operator would do, and what that
// does happens; with automatic, what is missing.
func TestExplain_NamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	e, err := node2.Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	t.Logf("\n%s", e)
	require.True(t, e.Manual && e.Presumed)
	require.Equal(t, repmgr.NodeID(1), e.Lost.ID)
	require.EqualValues(t, 2, e.Forecast.Winner)
	require.Equal(t, "repmgr standby promote", e.Command)
	require.Empty(t, e.Blocked)
	require.Empty(t, e.Outages)
	require.Contains(t, e.String(), "failover=manual: nobody takes over by itself, an operator promotes.\n")
	not, err := node2.WhyNot(t.Context(), 2)
	require.NoError(t, err)
	require.Contains(t, not.Reasons[1], "If node1 died now, node2 should be promoted: ")

	asked := newNode(t, 2, node2.Server, func(c *repmgr.Config) { c.Failover = repmgr.FailoverAutomatic })
	e, err = asked.Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.False(t, e.Rule.Known())
	require.Equal(t, []repmgr.Blocker{{Reason: string(election.HealthUnknown), Remedy: "Start repmgrd with failover=automatic on the primary: it writes the first rule."}}, e.Blocked)
	require.Contains(t, e.String(), "Whichever node died now, no other would take its place: there is no rule that names a primary.\n")

	automatic(repmgr.SynchronousOff)(&node1.cfg)
	node1.cfg.DataDirectory = node1.Dir
	node1.monitor(t)
	waitReady(t, []*node{node1}, 2, repmgr.SynchronousOff)
	e = explained(t, node2, repmgr.ExplainOptions{}, func(e repmgr.Explanation) bool { return e.Rule.Known() && len(e.Blocked) == 2 })
	t.Logf("\n%s", e)
	require.Equal(t, election.RefusedNoMajority, e.Forecast.Refusal)
	require.Contains(t, e.String(), "A witness (repmgr witness register) or an etcd gives another vote.")
	require.Contains(t, e.Blocked[1].Reason, "nobody would begin")
}

// With failover=manual a rejected login is not told to promote, and standby promote
// refuses while the primary lives; when it is dead, what was foretold is what to do.
func TestExplain_ByHand(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	hba := filepath.Join(node1.Dir, "pg_hba.conf")
	old, err := os.ReadFile(hba)
	require.NoError(t, err)
	rejecting := "local postgres all reject\nhost postgres all all reject\n" + string(old)
	require.NoError(t, os.WriteFile(hba, []byte(rejecting), 0o600))
	node1.Exec(t, `SELECT pg_reload_conf()`)
	e := explained(t, node3, repmgr.ExplainOptions{}, func(e repmgr.Explanation) bool { return e.Health == election.HealthRejects })
	t.Logf("\n%s", e)
	require.Empty(t, e.Command)
	require.Contains(t, e.Blocked[0].Remedy, `Do not promote. Let user "postgres" log in to node1: pg_hba.conf there`)
	require.Contains(t, e.String(), `it rejects the login of user "postgres" (pg_hba.conf rejects connection`)
	st, err := node3.Status(t.Context())
	require.NoError(t, err)
	for _, f := range st.Findings {
		require.NotEqual(t, repmgr.FindingNoPrimary, f.Code)
	}
	_, err = node3.Follow(t.Context(), repmgr.FollowOptions{})
	require.ErrorIs(t, err, repmgr.ErrNoPrimary)
	require.Contains(t, repmgr.Hint(err), "lives, and rejects this login")
	_, err = node2.Promote(t.Context(), repmgr.PromoteOptions{DryRun: true})
	require.ErrorContains(t, err, "the primary lives: ")

	require.NoError(t, os.WriteFile(hba, old, 0o600))
	node1.Kill()
	e = explained(t, node3, repmgr.ExplainOptions{}, func(e repmgr.Explanation) bool { return e.Health.Lost() })
	t.Logf("\n%s", e)
	require.EqualValues(t, 2, e.Forecast.Winner)
	require.Equal(t, "repmgr standby promote --siblings-follow", e.Command)
	require.Contains(t, e.Blocked[0].Reason, "failover=manual: nobody takes the place of node1 by itself")
	st, err = node3.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, repmgr.FindingNoPrimary, st.Findings[len(st.Findings)-1].Code)
	_, err = node2.Promote(t.Context(), repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	waitSame(t, node2, node3)
	why, err := node3.Why(t.Context())
	require.NoError(t, err)
	t.Logf("\n%s", why)
	require.Contains(t, why.String(), "an operator promoted it: standby promote on node2")
	e, err = node3.Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 2, e.Rule.Primary)
	require.EqualValues(t, 3, e.Forecast.Winner)
}
