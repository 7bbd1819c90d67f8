package repmgr_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// startRepmgr5 starts a primary and two standbys with the extension of repmgr 5
// and the rows that its programs write, which nobody has adopted.
func startRepmgr5(t *testing.T, change ...func(*repmgr.Config)) []*node {
	t.Helper()
	settings := map[string]string{"shared_preload_libraries": "repmgr"}
	probe := pgtest.Start(t, pgtest.Options{Name: "probe"})
	if probe.QueryString(t, `SELECT count(*) FROM pg_available_extensions WHERE name = 'repmgr'`) == "0" {
		t.Skip("the extension of repmgr 5 is not installed for this server")
	}
	primary := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: settings})
	primary.Exec(t, `CREATE EXTENSION repmgr`)
	nodes := []*node{newNode(t, 1, primary, change...)}
	for id := repmgr.NodeID(2); id <= 3; id++ {
		name := fmt.Sprintf("node%d", id)
		nodes = append(nodes, newNode(t, id, pgtest.NewStandby(t, primary, pgtest.Options{Name: name, Settings: settings}), change...))
	}
	for i, n := range nodes {
		role, upstream := "standby", "1"
		if i == 0 {
			role, upstream = "primary", "NULL"
		}
		primary.Exec(t, fmt.Sprintf(`INSERT INTO repmgr.nodes (node_id, upstream_node_id, node_name, type, conninfo, repluser, config_file)
			VALUES (%d, %s, '%s', '%s', '%s', 'postgres', '/etc/repmgr.conf')`, n.cfg.NodeID, upstream, n.cfg.NodeName, role, n.Conninfo()))
	}
	for _, n := range nodes[1:] {
		waitSame(t, nodes[0], n)
	}
	return nodes
}

const adopted = `SELECT count(*) FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'repmgr') AND relname IN ('metadata', 'rules', 'standby_state')`

// Whoever still has the tables of repmgr 5 can look, and promote, and nothing is
// written into them but what repmgr 5 would write.
func TestRepmgr5_WorksBeforeAdoption(t *testing.T) {
	t.Parallel()
	nodes := startRepmgr5(t)
	ctx, node2 := t.Context(), nodes[1]
	st, err := node2.Status(ctx)
	require.NoError(t, err)
	require.Len(t, st.Nodes, 3)
	require.Empty(t, st.Issues)
	service, err := node2.ServiceStatus(ctx)
	require.NoError(t, err)
	require.Empty(t, service.Issues)
	require.Nil(t, service.Rule)
	_, err = node2.NodeStatus(ctx)
	require.NoError(t, err)
	checks, err := node2.CheckNode(ctx, "")
	require.NoError(t, err)
	require.Len(t, checks.Checks, 8)
	for _, r := range checks.Checks {
		require.Equal(t, repmgr.CheckOK, r.Status, r)
	}
	checks, err = node2.CheckNode(ctx, repmgr.CheckRole)
	require.NoError(t, err)
	require.Equal(t, []repmgr.CheckResult{{Check: repmgr.CheckRole, Status: repmgr.CheckOK, Details: "node is standby"}}, checks.Checks)
	_, err = node2.Events(ctx, repmgr.EventFilter{})
	require.NoError(t, err)
	failovers, err := node2.Failovers(ctx, 0)
	require.NoError(t, err)
	require.Empty(t, failovers)
	why, err := node2.Why(ctx)
	require.NoError(t, err)
	require.Len(t, why.Monitors, 3)
	_, err = node2.Cleanup(ctx, repmgr.CleanupOptions{DryRun: true})
	require.NoError(t, err)
	_, err = node2.Promote(ctx, repmgr.PromoteOptions{DryRun: true})
	require.ErrorIs(t, err, repmgr.ErrPrimaryExists)

	nodes[0].Stop("fast")
	_, err = node2.Promote(ctx, repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	require.Equal(t, "0", node2.QueryString(t, adopted))
	require.Equal(t, "1 primary false, 2 primary true, 3 standby true", node2.QueryString(t, `SELECT string_agg(concat_ws(' ', node_id, type, active::text), ', ' ORDER BY node_id) FROM repmgr.nodes`))
	waitSame(t, node2, nodes[2])
	nodes[2].Stop("fast")
	checks, err = node2.CheckNode(ctx, repmgr.CheckDownstream)
	require.NoError(t, err)
	require.Equal(t, `1 of 1 downstream nodes not attached; missing: node "node3" (ID: 3)`, checks.Checks[0].Details)
	require.Equal(t, 2, checks.Checks[0].Status.ExitCode())
}

// An operator's election takes the rows of the nodes for the rule that nobody wrote.
func TestRepmgr5_ClusterFailover(t *testing.T) {
	t.Parallel()
	nodes := startRepmgr5(t)
	nodes[0].Kill()
	_, err := nodes[2].Failover(t.Context(), repmgr.FailoverOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	res, err := nodes[2].Failover(t.Context(), repmgr.FailoverOptions{Force: true})
	require.NoError(t, err)
	require.EqualValues(t, 2, res.Winner.ID)
	require.Len(t, res.Following, 1)
	require.Equal(t, "0", nodes[1].QueryString(t, adopted))
	require.Equal(t, "2", nodes[1].QueryString(t, `SELECT node_id FROM repmgr.nodes WHERE type = 'primary' AND active`))
	waitSame(t, nodes[1], nodes[2])
}

// While a daemon of repmgr 5 lives anywhere in the cluster, ours watch and do
// nothing: they say so, and go on when it is gone.
func TestRepmgr5_DaemonsStandAside(t *testing.T) {
	t.Parallel()
	nodes := startRepmgr5(t, automatic(repmgr.SynchronousOff))
	daemon := func(n *node, pid int) { // its shared memory says so; whether that process lives, its extension asks the kernel
		n.Exec(t, fmt.Sprintf(`SELECT repmgr.set_repmgrd_pid(%d, '')`, pid))
	}
	for _, n := range nodes {
		daemon(n, os.Getpid())
	}
	service, err := nodes[0].ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Empty(t, service.Issues, "daemons of repmgr 5 alone are no trouble")
	require.Equal(t, os.Getpid(), service.Nodes[2].Foreign.PID)
	daemon(nodes[0], 0)
	daemon(nodes[1], 0)

	var monitors []*repmgr.Monitor
	for _, n := range nodes {
		n.cfg.DataDirectory = n.Dir
		m, _ := n.monitor(t)
		monitors = append(monitors, m)
	}
	says := func(m *repmgr.Monitor) {
		t.Helper()
		pgtest.WaitFor(t, "the monitor to stand aside", func(context.Context) error {
			if s := m.Status(); !strings.Contains(s.Error, "a repmgrd of repmgr 5 runs on node3") {
				return fmt.Errorf("%s: %s (%s)", s.Phase, s.Reason, s.Error)
			}
			return nil
		})
	}
	says(monitors[0])
	require.Equal(t, "0", nodes[0].QueryString(t, adopted))

	daemon(nodes[2], 0)
	waitValue(t, nodes[0], "3", adopted) // by the daemon of the primary
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	daemon(nodes[2], os.Getpid())
	for _, m := range monitors {
		says(m)
	}
	require.Equal(t, string(repmgr.EventFailoverRefused), string(nodes[1].events.wait(t, repmgr.EventFailoverRefused).Type))
	service, err = nodes[0].ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Contains(t, strings.Join(service.Issues, "\n"), "a repmgrd of repmgr 5 runs on node3, ours on node1, node2, node3")
	nodes[0].Kill()
	pgtest.WaitFor(t, "node2 to see that the primary is gone", func(context.Context) error {
		if s := monitors[1].Status(); s.Phase != election.Orphaned {
			return fmt.Errorf("%s: %s", s.Phase, s.Reason)
		}
		return nil
	})
	_, err = nodes[1].Failover(t.Context(), repmgr.FailoverOptions{})
	require.ErrorContains(t, err, string(election.RefusedForeign))
	daemon(nodes[2], 0)
	require.Contains(t, []*node{nodes[1], nodes[2]}, waitPrimary(t, nodes[1:]...))
}
