package repmgr_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// screen screens the node, by what its Monitor has left.
func (n *node) screen(t *testing.T, o repmgr.ScreenOptions) repmgr.ScreenResult {
	t.Helper()
	c, err := repmgr.New(n.cfg)
	require.NoError(t, err)
	res, err := c.Screen(t.Context(), o)
	require.NoError(t, err)
	t.Log(res)
	return res
}

// A former primary that is screened before it is started never accepts a write
// beside the one that was elected while it was down.
func TestScreen_FormerPrimary(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	signal := filepath.Join(nodes[0].Dir, "standby.signal")
	require.Empty(t, nodes[0].screen(t, repmgr.ScreenOptions{}).As, "it runs")

	nodes[0].stop()
	nodes[0].Stop("fast")
	res := nodes[0].screen(t, repmgr.ScreenOptions{})
	require.Equal(t, repmgr.RolePrimary, res.As)
	require.Equal(t, string(election.ScreenedClear), res.Reason)
	require.False(t, res.Changed)
	require.NoFileExists(t, signal, "nobody was elected: it goes on as the primary")
	nodes[0].StartAgain()
	nodes[0].Exec(t, `CREATE TABLE t (i int)`)
	waitSame(t, nodes[0], nodes[1])
	waitSame(t, nodes[0], nodes[2])
	waitLooked(t, nodes[1:]) // only who has a connection sees it die

	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	res = nodes[0].screen(t, repmgr.ScreenOptions{DryRun: true})
	require.Equal(t, repmgr.RoleStandby, res.As)
	require.NoFileExists(t, signal, "a dry run changes nothing")
	res = nodes[0].screen(t, repmgr.ScreenOptions{})
	require.Equal(t, repmgr.RoleStandby, res.As)
	require.True(t, res.Changed)
	nodes[0].StartAgain()
	require.Equal(t, "t", nodes[0].QueryString(t, `SELECT pg_is_in_recovery()`))
	nodes[0].monitor(t)
	pgtest.WaitFor(t, "it to stream from the winner", func(context.Context) error {
		if got := winner.QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE application_name = 'node1' AND state = 'streaming'`); got != "1" {
			return errors.New("it does not")
		}
		return nil
	})
}

// Where nobody answers, others may have elected one of them.
func TestScreen_Alone(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	for _, n := range nodes {
		n.stop()
		n.Stop("fast")
	}
	res := nodes[0].screen(t, repmgr.ScreenOptions{})
	require.Equal(t, string(election.ScreenedAlone), res.Reason)
	require.FileExists(t, filepath.Join(nodes[0].Dir, "standby.signal"))
	res = nodes[0].screen(t, repmgr.ScreenOptions{})
	require.Equal(t, repmgr.RoleStandby, res.As)
	require.False(t, res.Changed, "twice is harmless")

	for _, n := range nodes {
		n.StartAgain()
	}
	for _, n := range nodes {
		n.monitor(t)
	}
	waitPrimary(t, nodes...)
}

// With failover=manual nobody is elected: only a primary that is seen counts.
func TestScreen_Manual(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	node1.cfg.DataDirectory = node1.Dir
	_, stop := node1.monitor(t)
	node1.events.wait(t, repmgr.EventDaemonStart)
	stop()
	node1.Stop("fast")
	res := node1.screen(t, repmgr.ScreenOptions{})
	require.Equal(t, string(election.ScreenedManual), res.Reason)
	_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
	res = node1.screen(t, repmgr.ScreenOptions{})
	require.Equal(t, repmgr.RoleStandby, res.As)
	require.True(t, res.Changed)
}

// What can not be screened is an error, and nothing is changed.
func TestScreen_BadInput(t *testing.T) {
	t.Parallel()
	n := startPrimary(t)
	_, err := n.Screen(t.Context(), repmgr.ScreenOptions{})
	requireError(t, err, repmgr.ErrConfig, "data directory")
	cfg := n.cfg
	cfg.DataDirectory = t.TempDir()
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	_, err = c.Screen(t.Context(), repmgr.ScreenOptions{})
	require.ErrorContains(t, err, cfg.DataDirectory)

	n.cfg.DataDirectory = n.Dir
	n.Stop("fast")
	require.Contains(t, n.screen(t, repmgr.ScreenOptions{}).Reason, "no repmgrd")
	require.NoError(t, os.WriteFile(filepath.Join(n.Dir, "repmgr_nodes.json"), []byte("{"), 0o600))
	c, err = repmgr.New(n.cfg)
	require.NoError(t, err)
	_, err = c.Screen(t.Context(), repmgr.ScreenOptions{})
	requireError(t, err, repmgr.ErrDirectory, "repmgr_nodes.json")
	require.NotEmpty(t, repmgr.Hint(err))
}
