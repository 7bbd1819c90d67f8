package repmgr_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
)

// breakConfig puts a typing error into a server's configuration.
func breakConfig(t *testing.T, n *node) (mend func()) {
	t.Helper()
	path := filepath.Join(n.Dir, "postgresql.conf")
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(old, "work_mem = '4MB\n"...), 0o600))
	return func() { require.NoError(t, os.WriteFile(path, old, 0o600)) }
}

// A server whose configuration has an error would not heed a pledge. Where a
// majority has one, no election is begun, and everybody who asks is told why;
// once it is mended, the failover comes by itself.
func TestFailover_BrokenConfiguration(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	ctx := t.Context()
	_, err := nodes[0].Explain(ctx, repmgr.ExplainOptions{})
	require.NoError(t, err)
	mend2 := breakConfig(t, nodes[1])
	e := nodes[1].events.wait(t, repmgr.EventPledgeAbility)
	require.False(t, e.Success)
	require.Contains(t, e.Details, "its configuration file has an error: "+filepath.Join(nodes[1].Dir, "postgresql.conf")+" line ")
	x, err := nodes[0].Explain(ctx, repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Equal(t, election.RefusedNoPledge, x.Forecast.Refusal) // with the primary gone two are needed
	require.Contains(t, x.Blocked[0].Reason, "node2: its configuration file has an error")
	require.Contains(t, x.String(), "node2 could not pledge itself: its configuration file has an error")
	st, err := nodes[2].ServiceStatus(ctx)
	require.NoError(t, err)
	require.Contains(t, strings.Join(st.Issues, "\n"), `node "node2" (ID: 2) could not pledge itself in an election: its configuration file has an error`)

	mend3 := breakConfig(t, nodes[2])
	nodes[2].events.wait(t, repmgr.EventPledgeAbility)
	nodes[0].Kill()
	for {
		if e := nodes[1].events.wait(t, repmgr.EventFailoverRefused); strings.Contains(e.Details, string(election.RefusedNoPledge)) {
			break
		}
	}
	for _, n := range nodes[1:] {
		text, err := os.ReadFile(filepath.Join(n.Dir, "postgresql.auto.conf"))
		require.NoError(t, err)
		require.NotContains(t, string(text), "repmgr.ballot", n.cfg.NodeName)
	}
	mend2()
	mend3()
	waitPrimary(t, nodes[1:]...)
	e = nodes[1].events.wait(t, repmgr.EventPledgeAbility)
	require.True(t, e.Success)
}
