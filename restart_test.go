package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// restarted are the ids of the nodes that were restarted, in that order.
func restarted(res repmgr.RestartResult) (ids []repmgr.NodeID) {
	for _, n := range res.Restarted {
		ids = append(ids, n.ID)
	}
	return ids
}

// A setting is put in force on all nodes, in the order that it needs, without a failover and
// without the loss of what was acknowledged, in the primary's place or by a switchover.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
	setConnections := func(count int) {
		for _, n := range nodes {
			n.Exec(t, `ALTER SYSTEM SET max_connections = `+strconv.Itoa(count)) // without a reload
		}
	}
	setConnections(120)
	res, err := nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Pending: true, DryRun: true})
	require.NoError(t, err)
	require.Len(t, res.Plan.Steps, 3)
	require.Equal(t, "node1", res.Plan.Steps[2].Node)
	require.Contains(t, res.Plan.Steps[0].Effect, "max_connections")
	require.Empty(t, res.Restarted)

	res, err = nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Pending: true, Primary: repmgr.RestartInPlace})
	require.NoError(t, err)
	require.Equal(t, []repmgr.NodeID{2, 3, 1}, restarted(res))
	for _, n := range nodes {
		require.Equal(t, "120", n.QueryString(t, `SHOW max_connections`))
		require.Equal(t, "0", n.QueryString(t, `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.restart'`))
	}
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT max(term) FROM repmgr.rules`))
	res, err = nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Pending: true})
	require.NoError(t, err)
	require.Empty(t, res.Plan.Steps, "nothing waits for a restart any more")

	setConnections(110)
	res, err = nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Pending: true})
	require.NoError(t, err)
	require.Equal(t, []repmgr.NodeID{1, 2, 3}, restarted(res), "what falls, falls on the primary first")
	require.Equal(t, repmgr.RestartInPlace, res.Restarted[0].How)

	res, err = nodes[2].RollingRestart(t.Context(), repmgr.RestartOptions{Primary: repmgr.RestartSwitchover})
	require.NoError(t, err)
	require.Equal(t, []repmgr.NodeID{2, 3, 1}, restarted(res))
	require.Equal(t, "t", nodes[0].QueryString(t, `SELECT pg_is_in_recovery()`))
	w.Stop()
	primary := waitPrimary(t, nodes[1:]...)
	w.Verify(t, primary.Conninfo())
	require.Equal(t, "0", primary.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event IN ('standby_failure', 'repmgrd_local_disconnect')`), "nothing failed")
}

// Where one server does not come back, the command says why and leaves the others as they are;
// the next one goes on there.
func TestRollingRestart_GoesOn(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	started := func(n *node) string { return n.QueryString(t, `SELECT pg_postmaster_start_time()`) }
	was := []string{started(nodes[0]), started(nodes[1])}
	nodes[2].Exec(t, `ALTER SYSTEM SET shared_preload_libraries = 'there_is_none'`)
	res, err := nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Primary: repmgr.RestartInPlace})
	require.ErrorIs(t, err, repmgr.ErrServerControl)
	require.ErrorContains(t, err, "there_is_none")
	require.Equal(t, []repmgr.NodeID{2}, restarted(res))
	require.Equal(t, was[0], started(nodes[0]))
	require.NotEqual(t, was[1], started(nodes[1]))

	nodes[2].amend(t, `shared_preload_libraries = ''`)
	nodes[2].StartAgain()
	waitStreams(t, nodes[0], nodes[2])
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	after := started(nodes[1])
	res, err = nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Primary: repmgr.RestartInPlace})
	require.NoError(t, err)
	require.Equal(t, []repmgr.NodeID{3, 1}, restarted(res))
	require.Len(t, res.Skipped, 1)
	require.Equal(t, repmgr.NodeID(2), res.Skipped[0].ID)
	require.Equal(t, after, started(nodes[1]))

	res, err = nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{DryRun: true})
	require.NoError(t, err)
	require.Len(t, res.Plan.Steps, 3, "that one ended")
}

// A primary that does not start again is replaced by a standby that has everything.
func TestRollingRestart_PrimaryDoesNotStart(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Exec(t, `CREATE TABLE acknowledged AS SELECT generate_series(1, 100) AS i`)
	nodes[0].Exec(t, `ALTER SYSTEM SET shared_preload_libraries = 'there_is_none'`)
	_, err := nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{1}, Primary: repmgr.RestartInPlace})
	require.ErrorIs(t, err, repmgr.ErrServerControl)
	require.ErrorContains(t, err, "is the primary now")
	winner := waitPrimary(t, nodes[1:]...)
	require.Equal(t, "100", winner.QueryString(t, `SELECT count(*) FROM acknowledged`))
}

// inCheckpoint runs a command, and returns when the checkpoint that it asks of a server is under way. That hangs until goOn is called.
func inCheckpoint(t *testing.T, n *node, command func() error) (ended <-chan error, goOn func()) {
	t.Helper()
	goOn = stopCheckpointer(t, n)
	result := make(chan error, 1)
	go func() { result <- command() }()
	waitValue(t, n, "1", `SELECT count(*) FROM pg_stat_activity WHERE query = 'CHECKPOINT' AND state = 'active'`)
	return result, goOn
}

// A standby that is elected while the checkpoint before its restart is written goes on as the primary, without
// the restart, whoever has held the election: its own daemon does not wait for the checkpoint.
func TestRollingRestart_ElectedDuringTheCheckpoint(t *testing.T) {
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "another daemon may hold the election", true: "only its own may"}[alone], func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
			if alone {
				nodes[2].stop()
			}
			started := nodes[1].QueryString(t, `SELECT pg_postmaster_start_time()`)
			ended, goOn := inCheckpoint(t, nodes[1], func() error {
				_, err := nodes[2].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{2}})
				return err
			})
			nodes[0].Kill()
			require.Equal(t, nodes[1], waitPrimary(t, nodes[1:]...))
			goOn()
			require.ErrorContains(t, <-ended, "not restarted")
			waitValue(t, nodes[1], "0", `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.restart'`)
			require.Equal(t, started, nodes[1].QueryString(t, `SELECT pg_postmaster_start_time()`))
			require.Equal(t, "f", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
		})
	}
}

// A restart that has given way to an election is not taken up again where there was none, and its request is removed.
func TestRollingRestart_PrimaryComesBack(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousOff)
	started := nodes[1].QueryString(t, `SELECT pg_postmaster_start_time()`)
	ended, goOn := inCheckpoint(t, nodes[1], func() error {
		_, err := nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{2}})
		return err
	})
	nodes[0].Kill()
	pgtest.WaitFor(t, "the restart to end", func(context.Context) error {
		if s := nodes[1].daemon.Status(); s.Phase != election.Failover || s.Doing != "" {
			return fmt.Errorf("%s, doing %q", s.Phase, s.Doing)
		}
		return nil
	})
	nodes[0].StartAgain()
	goOn()
	require.ErrorContains(t, <-ended, "nothing was changed: the primary is lost")
	waitValue(t, nodes[1], "0", `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.restart'`)
	require.Equal(t, started, nodes[1].QueryString(t, `SELECT pg_postmaster_start_time()`))
}

// A primary whose voters have pledged themselves during the checkpoint is not shut down: it would lose what it has acknowledged since.
func TestRollingRestart_PledgesDuringTheCheckpointOfThePrimary(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	started := nodes[0].QueryString(t, `SELECT pg_postmaster_start_time()`)
	ended, goOn := inCheckpoint(t, nodes[0], func() error {
		_, err := nodes[1].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{1}, Primary: repmgr.RestartInPlace})
		return err
	})
	for i, n := range nodes[1:] {
		require.NoError(t, ballot.Pledge(t.Context(), n.Conn(t), ballot.Ballot{Node: int32(i + 2), Term: 2, Candidate: "x"}, ballot.Standby))
	}
	nodes[0].Exec(t, `CREATE TABLE acknowledged AS SELECT generate_series(1, 100) AS i`)
	goOn()
	require.ErrorContains(t, <-ended, "an election of term 2 has begun meanwhile: nothing was changed")
	require.Equal(t, nodes[0], waitPrimary(t, nodes...), "it stands for a higher term")
	require.Equal(t, started, nodes[0].QueryString(t, `SELECT pg_postmaster_start_time()`))
	require.Equal(t, "100", nodes[0].QueryString(t, `SELECT count(*) FROM acknowledged`))
}

// All that stands in the way is named at once, and nothing is changed.
func TestRollingRestart_Refused(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Exec(t, `ALTER SYSTEM SET max_connections = 120`)
	nodes[2].stop()
	nodes[2].Stop("fast")
	pgtest.WaitFor(t, "node3 to be seen as down", func(ctx context.Context) error {
		res, err := nodes[0].RollingRestart(ctx, repmgr.RestartOptions{DryRun: true})
		if !errors.Is(err, repmgr.ErrRefused) {
			return errors.Join(errors.New("not refused"), err)
		}
		codes := map[string]bool{}
		for _, o := range res.Plan.Obstacles {
			codes[o.Code] = true
		}
		if !codes["node_lost"] || !codes["below_primary"] || !codes["no_majority"] {
			return err
		}
		return nil
	})
	_, err := nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{7}})
	require.ErrorIs(t, err, repmgr.ErrNotRegistered)
	_, err = nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Timeout: 48 * time.Hour})
	require.ErrorIs(t, err, repmgr.ErrConfig)

	_, err = nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{2}})
	require.ErrorContains(t, err, "no majority would answer")
	nodes[2].StartAgain()
	waitStreams(t, nodes[0], nodes[2])
	res, err := nodes[0].RollingRestart(t.Context(), repmgr.RestartOptions{Nodes: []repmgr.NodeID{2}})
	require.NoError(t, err)
	require.Equal(t, []repmgr.NodeID{2}, restarted(res))
}
