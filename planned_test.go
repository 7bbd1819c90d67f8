package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// Where nobody hands the primary over, the refusal says what does.
func TestDrain_Manual(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	_, err := node1.Drain(t.Context(), repmgr.DrainOptions{})
	requireError(t, err, repmgr.ErrRefused, "no repmgrd runs there to hand it over")
	require.Contains(t, repmgr.Hint(err), "standby switchover")
	announce(t, node1, repmgr.Announcement{Mode: repmgr.FailoverManual})
	_, err = node1.Drain(t.Context(), repmgr.DrainOptions{DryRun: true})
	requireError(t, err, repmgr.ErrRefused, "failover=manual")
	_, err = node2.Drain(t.Context(), repmgr.DrainOptions{})
	require.NoError(t, err, "a standby may be stopped")
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
	two := addStandby(t, n, 2)
	n.Exec(t, `ALTER SYSTEM SET max_connections = 300`)
	_, err = n.ControlServer(t.Context(), repmgr.ServiceRestart, repmgr.ServiceOptions{DryRun: true})
	requireError(t, err, repmgr.ErrRefused, "node2: it would not replay: max_connections would be ", "300 on the primary")
	require.Contains(t, repmgr.Hint(err), "repmgr cluster restart")
	_, err = n.ControlServer(t.Context(), repmgr.ServiceRestart, repmgr.ServiceOptions{DryRun: true, Force: true})
	require.NoError(t, err)
	two.Exec(t, `ALTER SYSTEM SET max_connections = 300`)
	two.Stop("fast")
	two.StartAgain()
	_, err = n.ControlServer(t.Context(), repmgr.ServiceRestart, repmgr.ServiceOptions{DryRun: true})
	require.NoError(t, err, "it is raised on the standby now")
	_, err = n.ControlServer(t.Context(), repmgr.ServiceStart, repmgr.ServiceOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "runs already")
	_, err = n.ControlServer(t.Context(), repmgr.ServiceStop, repmgr.ServiceOptions{})
	require.NoError(t, err)
	require.False(t, n.Started())
	_, err = n.ControlServer(t.Context(), repmgr.ServiceStart, repmgr.ServiceOptions{})
	require.NoError(t, err)
	require.True(t, n.Started())
}

// The doctor finds nothing critical in a healthy cluster, and what is wrong in one that is not.
func TestDoctor(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	ids := func() (all []string) {
		r, err := nodes[1].Doctor(t.Context())
		require.NoError(t, err)
		for _, f := range r.Findings {
			all = append(all, f.ID)
		}
		return all
	}
	for _, n := range nodes { // the servers of tests run without
		n.Exec(t, `ALTER SYSTEM SET fsync = on`)
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	pgtest.WaitFor(t, "a healthy cluster", func(context.Context) error {
		for _, id := range ids() {
			if id != "slots_without_limit" {
				return errors.New(id)
			}
		}
		return nil
	})
	nodes[2].Exec(t, `ALTER SYSTEM SET default_transaction_read_only = on`)
	nodes[2].Exec(t, `ALTER SYSTEM SET max_connections = 50`)
	nodes[2].Exec(t, `SELECT pg_reload_conf()`)
	nodes[0].Exec(t, `SELECT pg_create_physical_replication_slot('nobody', true)`)
	pgtest.WaitFor(t, "the findings", func(context.Context) error {
		found := ids()
		for _, id := range []string{"read_only", "pending_restart"} {
			if !slices.Contains(found, id) {
				return fmt.Errorf("%s is not in %v", id, found)
			}
		}
		return nil
	})
}

// A standby is kept from receiving, and let again. How a server ended is seen without asking it.
func TestSetWALReceiver(t *testing.T) {
	t.Parallel()
	first := pgtest.Start(t, pgtest.Options{Name: "node1"})
	one := newNode(t, 1, first)
	_, err := one.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	two := addStandby(t, one, 2)
	_, err = one.SetWALReceiver(t.Context(), false, false)
	require.ErrorIs(t, err, repmgr.ErrNotStandby)
	set := func(on, dryRun, changed bool) {
		res, err := two.SetWALReceiver(t.Context(), on, dryRun)
		require.NoError(t, err)
		require.Equal(t, changed, res.Changed)
	}
	set(true, false, false)
	set(false, true, true)
	set(false, false, true)
	require.Equal(t, "0", two.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`))
	set(false, false, false)
	set(true, false, true)
	require.Equal(t, "5s", two.QueryString(t, `SHOW wal_retrieve_retry_interval`))

	cfg := two.cfg
	cfg.DataDirectory = two.Dir
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	state := func() string {
		st, err := c.ShutdownState()
		require.NoError(t, err)
		return st.State
	}
	require.Equal(t, "UP", state())
	two.Stop("fast")
	require.Equal(t, "SHUTDOWN", state())
	two.StartAgain()
	two.Stop("immediate")
	require.Equal(t, "UNCLEAN_SHUTDOWN", state())
}
