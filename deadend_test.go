package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// recycle makes a primary throw away WAL, until the segment that is current now is gone.
func recycle(t *testing.T, primary *node) {
	t.Helper()
	segment := primary.QueryString(t, `SELECT pg_walfile_name(pg_current_wal_lsn())`)
	for range 6 {
		primary.Exec(t, `SELECT pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()`)
	}
	pgtest.WaitFor(t, "the WAL to be recycled", func(context.Context) error {
		primary.Exec(t, `CHECKPOINT`)
		if primary.QueryString(t, fmt.Sprintf(`SELECT count(*) FROM pg_ls_waldir() WHERE name <= '%s' AND length(name) = 24`, segment)) != "0" {
			return fmt.Errorf("%s is there", segment)
		}
		return nil
	})
}

// A standby whose WAL is gone is named so at every place within one look; follow
// and rejoin refuse before anything is changed, and a new copy brings it back.
func TestLostWAL(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	server := pgtest.Start(t, pgtest.Options{Name: "node1", WALSegmentSizeMB: 1, Settings: map[string]string{"max_wal_size": "2MB", "min_wal_size": "2MB", "wal_keep_size": "0"}})
	node1 := newNode(t, 1, server)
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node2 := addStandby(t, node1, 2)
	waitSame(t, node1, node2)
	node2.Stop("fast")
	recycle(t, node1)
	node2.StartAgain()
	node2.cfg.DataDirectory = node2.Dir
	node2.Cluster, err = repmgr.New(node2.cfg)
	require.NoError(t, err)

	pgtest.WaitFor(t, "the standby to have asked", func(context.Context) error {
		st, err := node1.Status(t.Context())
		if err == nil && st.Nodes[1].LostWAL == nil {
			err = fmt.Errorf("%+v", st.Issues)
		}
		return err
	})
	st, err := node1.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, st.Issues, 1)
	require.Contains(t, st.Issues[0], "does not have WAL segment")
	require.Contains(t, st.Issues[0], "node rejoin -d ")
	require.Contains(t, st.Issues[0], "--reclone")
	require.False(t, st.Nodes[1].LostWAL.Archive)
	require.NoError(t, ballot.Store(t.Context(), node2.Conn(t), "repmgr.saved_restore_command", "=false")) // as a pledge leaves it
	node2.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the archive that is out of force to be known", func(context.Context) error {
		st, err := node1.Status(t.Context())
		if err == nil && !st.Nodes[1].LostWAL.Archive {
			err = errors.New("it may still have the WAL, and nobody says so")
		}
		return err
	})
	node2.Exec(t, `ALTER SYSTEM RESET repmgr.saved_restore_command`)
	node2.Exec(t, `SELECT pg_reload_conf()`)
	report, err := node2.NodeStatus(t.Context())
	require.NoError(t, err)
	require.Contains(t, strings.Join(report.Issues, "\n"), "--reclone")
	require.EqualValues(t, -1, report.ReplicationLag)
	checks, err := node2.CheckNode(t.Context(), repmgr.CheckUpstream)
	require.NoError(t, err)
	require.Equal(t, repmgr.CheckCritical, checks.Checks[0].Status)
	require.Contains(t, checks.Checks[0].Details, "does not have WAL segment")
	require.Equal(t, 1, strings.Count(checks.Checks[0].Details, "can not go on"), checks.Checks[0].Details)
	require.Contains(t, checks.Checks[0].Details, "node rejoin -d ")
	told, err := node1.Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.NotNil(t, told.Voters[1].LostWAL)
	require.Contains(t, told.String(), `At risk: node2 can not go on: `)
	require.Contains(t, told.AtRisk[0].Remedy, "--reclone")
	not, err := node1.WhyNot(t.Context(), 2)
	require.NoError(t, err)
	require.Contains(t, strings.Join(not.Reasons, "\n"), "node2 can not go on: ")

	ctx, cancel := context.WithCancel(t.Context())
	m, err := repmgr.NewMonitor(node2.cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	e := node2.events.wait(t, repmgr.EventWALGone)
	require.Contains(t, e.Details, "--reclone")
	pgtest.WaitFor(t, "the status to say so", func(context.Context) error {
		if text := m.Status().Error; !strings.Contains(text, "does not have WAL segment") {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
	require.True(t, m.View().WALGone)
	cancel()
	require.NoError(t, <-done)

	before := node2.QueryString(t, `SELECT pg_postmaster_start_time()`)
	_, err = node2.Follow(t.Context(), repmgr.FollowOptions{})
	requireError(t, err, repmgr.ErrWALGone, "node2", "does not have WAL segment")
	require.Contains(t, repmgr.Hint(err), "--reclone")
	for _, policy := range []repmgr.RejoinPolicy{repmgr.RejoinIfClean, repmgr.RejoinRewind} {
		_, err = node2.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: policy})
		requireError(t, err, repmgr.ErrRejoin, "node2", "does not have the WAL")
		require.Contains(t, repmgr.Hint(err), "--reclone")
	}
	require.Equal(t, before, node2.QueryString(t, `SELECT pg_postmaster_start_time()`), "nothing was stopped")
	node2.Stop("fast") // and the same is known of one that is down
	_, err = node2.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinRewind, Target: node1.Conninfo()})
	requireError(t, err, repmgr.ErrRejoin, "node2", "does not have the WAL")
	node2.StartAgain()

	res, err := node2.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinReclone})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	waitSame(t, node1, node2)
	st, err = node1.Status(t.Context())
	require.NoError(t, err)
	require.Empty(t, st.Issues)
}

// With force a server that runs as a primary is stopped only when all that can be
// known beforehand is known.
func TestRejoin_StopsNothingBeforeItKnows(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	c.node1.StartAgain()
	before := c.node1.QueryString(t, `SELECT pg_postmaster_start_time()`)
	same := func() {
		t.Helper()
		require.Equal(t, before, c.node1.QueryString(t, `SELECT pg_postmaster_start_time()`))
	}
	_, err := c.rejoin(t, repmgr.RejoinOptions{Force: true, Policy: repmgr.RejoinIfClean})
	requireError(t, err, repmgr.ErrTimelineDiverged, "node1")
	same()
	_, err = c.rejoin(t, repmgr.RejoinOptions{Force: true, Target: "host=127.0.0.1 port=1"})
	require.ErrorIs(t, err, repmgr.ErrConnect)
	same()
	_, err = c.rejoin(t, repmgr.RejoinOptions{Force: true, PgRewind: "/nowhere/pg_rewind"})
	requireError(t, err, repmgr.ErrRejoin, "/nowhere/pg_rewind")
	same()
	res, err := c.rejoin(t, repmgr.RejoinOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	c.requireEqualEverywhere(t)
}

// A file that pg_rewind could not write would end it half-way.
func TestRejoin_UnwritableFileIsNamedBeforehand(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	for _, n := range []*node{c.node1, c.node2} {
		require.NoError(t, os.WriteFile(filepath.Join(n.Dir, "server.key"), []byte("key of "+n.cfg.NodeName), 0o400))
	}
	require.NoError(t, os.WriteFile(filepath.Join(c.node1.Dir, "only-here"), []byte("mine"), 0o400))
	control, err := os.ReadFile(filepath.Join(c.node1.Dir, "global", "pg_control"))
	require.NoError(t, err)
	for _, dryRun := range []bool{true, false} {
		_, err := c.rejoin(t, repmgr.RejoinOptions{DryRun: dryRun})
		requireError(t, err, repmgr.ErrRejoin, "server.key", "permission denied")
		require.NotContains(t, err.Error(), "only-here")
		require.Contains(t, repmgr.Hint(err), "--force-rewind")
	}
	now, err := os.ReadFile(filepath.Join(c.node1.Dir, "global", "pg_control"))
	require.NoError(t, err)
	require.Equal(t, control, now, "nothing was changed")
	require.NoDirExists(t, c.node1.Dir+".salvage")

	require.NoError(t, os.Chmod(filepath.Join(c.node1.Dir, "server.key"), 0o600))
	res, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	for name, want := range map[string]string{"server.key": "key of node1", "only-here": "mine"} {
		text, err := os.ReadFile(filepath.Join(c.node1.Dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(text))
	}
	c.requireEqualEverywhere(t)
}

// A tablespace that would come to lie inside the new data directory, and one that
// is in place, are refused with words.
func TestClone_TablespacesThatCanNotBe(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	outside := filepath.Join(t.TempDir(), "space")
	require.NoError(t, os.Mkdir(outside, 0o700))
	node1.Exec(t, fmt.Sprintf(`CREATE TABLESPACE far LOCATION '%s'`, outside))
	dir := filepath.Join(t.TempDir(), "data")
	clone := func(dir, to string) error {
		n := newNode(t, 2, node1.Server, func(c *repmgr.Config) { c.TablespaceMapping = map[string]string{outside: to} })
		_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir})
		return err
	}
	err := clone(dir, dir+"/far")
	requireError(t, err, repmgr.ErrDirectory, "far", "inside the new data directory", dir)
	require.Contains(t, repmgr.Hint(err), "outside of the data directory")
	requireError(t, clone(dir, filepath.Dir(dir)), repmgr.ErrDirectory, "far", "would lie inside its own directory")
	requireError(t, clone(filepath.Dir(outside), outside), repmgr.ErrDirectory, "far", "would lie inside the new data directory")
	require.NoDirExists(t, dir)
	if node1.Major < 15 {
		return
	}
	node1.Exec(t, `DROP TABLESPACE far`)
	node1.Exec(t, `ALTER SYSTEM SET allow_in_place_tablespaces = on`)
	node1.Exec(t, `SELECT pg_reload_conf()`)
	node1.Exec(t, `CREATE TABLESPACE here LOCATION ''`)
	requireError(t, clone(dir, outside), repmgr.ErrDirectory, "here", "in-place", "allow_in_place_tablespaces")
	require.NoDirExists(t, dir)
}
