package repmgr_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// A node that is drained is not the primary any more, and may be stopped: writes go on. Others hear of the
// new primary meanwhile.
func TestDrain(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	heard := make(chan repmgr.Record, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- nodes[2].FollowPrimary(ctx, func(r repmgr.Record) error { heard <- r; return nil })
	}()
	require.Equal(t, repmgr.NodeID(1), (<-heard).ID)

	res, err := nodes[0].Drain(t.Context(), repmgr.DrainOptions{DryRun: true})
	require.NoError(t, err)
	require.NotNil(t, res.Switchover)
	require.NotEmpty(t, res.Switchover.Plan.Steps)
	primary, err := nodes[1].Primary(t.Context())
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(1), primary.ID)

	res, err = nodes[0].Drain(t.Context(), repmgr.DrainOptions{})
	require.NoError(t, err)
	next := res.Switchover.To
	require.Equal(t, next.ID, (<-heard).ID)
	nodes[0].Stop("fast")
	nodes[next.ID-1].Exec(t, `CREATE TABLE after_drain ()`)
	cfg := nodes[0].cfg
	cfg.DataDirectory = nodes[0].Dir // its server can not be asked
	down, err := repmgr.New(cfg)
	require.NoError(t, err)
	primary, err = down.Primary(t.Context())
	require.NoError(t, err)
	require.Equal(t, next.ID, primary.ID)

	res, err = down.Drain(t.Context(), repmgr.DrainOptions{})
	require.NoError(t, err, "it is down already")
	require.Nil(t, res.Switchover)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

// A node that commits wait for is not drained before another one can take its place.
func TestDrain_Needed(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousQuorum)
	cfg := nodes[1].cfg
	cfg.Durability = repmgr.DurabilityRequired
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	_, err = c.Drain(t.Context(), repmgr.DrainOptions{Timeout: time.Second})
	require.ErrorIs(t, err, repmgr.ErrTimeout)
	require.ErrorContains(t, err, "commits wait for 1 standbys, and without it 0 would be left")
}

// The matrix shows what each daemon sees.
func TestMatrix(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	await := func(want string) {
		pgtest.WaitFor(t, "the matrix "+want, func(ctx context.Context) error {
			m, err := nodes[0].Matrix(ctx)
			if err != nil {
				return err
			}
			got := ""
			for _, c := range m.Cells {
				got += map[repmgr.Contact]string{repmgr.ContactYes: "*", repmgr.ContactNo: "x", repmgr.ContactUnknown: "?"}[c.Contact]
			}
			if got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	await("*********")
	nodes[2].Stop("fast")
	await("**x**x???")
}

// The server is controlled by the commands of the configuration, and else by pg_ctl.
func TestControlServer(t *testing.T) {
	t.Parallel()
	first := pgtest.Start(t, pgtest.Options{Name: "node1"})
	n := newNode(t, 1, first, func(c *repmgr.Config) {
		c.DataDirectory, c.ServiceReloadCommand = first.Dir, "echo it does not work >&2; exit 3"
	})
	_, err := n.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	command, err := n.ServiceCommand(repmgr.ServiceReload)
	require.NoError(t, err)
	require.Equal(t, "echo it does not work >&2; exit 3", command)
	_, err = n.ControlServer(t.Context(), repmgr.ServiceReload, repmgr.ServiceOptions{})
	require.ErrorIs(t, err, repmgr.ErrServerControl)
	require.ErrorContains(t, err, "it does not work")
	_, err = n.ControlServer(t.Context(), repmgr.ServicePromote, repmgr.ServiceOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)

	started := n.QueryString(t, `SELECT pg_postmaster_start_time()`)
	res, err := n.ControlServer(t.Context(), repmgr.ServiceRestart, repmgr.ServiceOptions{DryRun: true, Checkpoint: true})
	require.NoError(t, err)
	require.Contains(t, res.Command, "pg_ctl")
	require.Equal(t, started, n.QueryString(t, `SELECT pg_postmaster_start_time()`))
	_, err = n.ControlServer(t.Context(), repmgr.ServiceRestart, repmgr.ServiceOptions{Checkpoint: true})
	require.NoError(t, err)
	require.NotEqual(t, started, n.QueryString(t, `SELECT pg_postmaster_start_time()`))
	_, err = n.ControlServer(t.Context(), repmgr.ServiceStop, repmgr.ServiceOptions{})
	require.NoError(t, err)
	require.False(t, n.Started())
	_, err = n.ControlServer(t.Context(), repmgr.ServiceStart, repmgr.ServiceOptions{})
	require.NoError(t, err)
	require.True(t, n.Started())
}
