package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
)

// What stands in the way of a switchover is named by its code as soon as it is there, and is gone when it is mended.
func TestSwitchover_Obstacles(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	primary, target := nodes[0], nodes[1]
	for _, n := range []*node{nodes[1], nodes[2], nodes[0]} { // what rises is raised on the standbys first
		n.Exec(t, `ALTER SYSTEM SET max_prepared_transactions = 5`)
		n.Restart()
	}
	primary.set(t, "archive_mode = on", "archive_command = 'true'")
	primary.Restart()
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	awaitPlan := func(what string, right func(codes map[string]bool) bool) {
		t.Helper()
		pgtest.WaitFor(t, what, func(ctx context.Context) error {
			p, err := target.PlanSwitchover(ctx, repmgr.SwitchoverOptions{To: 2})
			codes := map[string]bool{}
			for _, o := range append(p.Obstacles, p.Warnings...) {
				codes[o.Code] = true
			}
			if err == nil && !right(codes) {
				err = fmt.Errorf("it has %v", codes)
			}
			return err
		})
	}
	var senders []*pgconn.PgConn
	for _, trouble := range []struct {
		code       string
		make, mend func()
	}{
		{"target_unfit", func() {
			target.set(t, `recovery_min_apply_delay = '1h'`)
		}, func() {
			target.Exec(t, `ALTER SYSTEM RESET recovery_min_apply_delay`)
			target.Exec(t, `SELECT pg_reload_conf()`)
		}},
		{"archive_fails", func() {
			primary.set(t, `archive_command = 'false'`)
			primary.Exec(t, `SELECT pg_logical_emit_message(false, 'x', 'x')`)
			primary.Exec(t, `SELECT pg_switch_wal()`)
		}, func() {
			primary.set(t, `archive_command = 'true'`)
		}},
		{"prepared_transactions", func() {
			primary.Exec(t, `BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'mine'`)
		}, func() { primary.Exec(t, `ROLLBACK PREPARED 'mine'`) }},
		{"max_wal_senders", func() {
			for {
				c, err := pgconn.Connect(t.Context(), target.Conninfo("replication=true", "application_name=taken"))
				if err != nil {
					return // there is no room any more
				}
				senders = append(senders, c)
			}
		}, func() {
			for _, c := range senders {
				_ = c.Close(t.Context())
			}
		}},
		{"target_paused", func() { target.Exec(t, `SELECT pg_wal_replay_pause()`) }, func() { target.Exec(t, `SELECT pg_wal_replay_resume()`) }},
		{"target_read_only", func() {
			target.set(t, `default_transaction_read_only = on`)
		}, func() {
			target.Exec(t, `ALTER SYSTEM RESET default_transaction_read_only`)
			target.Exec(t, `SELECT pg_reload_conf()`)
		}},
	} {
		awaitPlan("no "+trouble.code, func(codes map[string]bool) bool { return !codes[trouble.code] })
		trouble.make()
		awaitPlan(trouble.code, func(codes map[string]bool) bool { return codes[trouble.code] })
		trouble.mend()
		awaitPlan("the end of "+trouble.code, func(codes map[string]bool) bool { return !codes[trouble.code] })
	}
	require.Equal(t, "1", primary.QueryString(t, `SELECT max(term) FROM repmgr.rules`), "nothing was changed")
	res, err := target.Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(2), res.To.ID)
	waitStreams(t, target, primary)
}

// Two operators ask at once for different primaries: whatever becomes of each request, one node is the primary in the
// end, all others stream from it, and whoever was refused is told so.
func TestSwitchover_TwoAtOnce(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, to := range nodes[1:] {
		wg.Go(func() { _, errs[i] = to.Switchover(t.Context(), repmgr.SwitchoverOptions{To: to.cfg.NodeID}) })
	}
	wg.Wait()
	require.True(t, errs[0] == nil || errs[1] == nil, "%v", errs)
	for _, err := range errs {
		require.True(t, err == nil || errors.Is(err, repmgr.ErrRefused) || errors.Is(err, repmgr.ErrTimeout), "%v", err)
	}
	var primary *node
	pgtest.WaitFor(t, "one primary", func(context.Context) error {
		primary = nil
		for _, n := range nodes {
			if n.QueryString(t, `SELECT pg_is_in_recovery()`) == "t" {
				continue
			}
			if primary != nil {
				return errors.New("there are two")
			}
			primary = n
		}
		if primary == nil {
			return errors.New("there is none")
		}
		return nil
	})
	require.NotEqual(t, nodes[0], primary)
	for _, n := range nodes {
		if n != primary {
			waitStreams(t, primary, n)
		}
	}
}

// The checkpoint of a shutdown removes all WAL that nobody is known to need: with an archive it begins a segment, so that
// even the newest one before it may go. What the target has not received by then is kept for it.
func TestSwitchover_KeepsTheLastWAL(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	primary, target := nodes[0], nodes[1]
	primary.set(t, "archive_mode = on", "archive_command = 'true'")
	primary.Restart()
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	waitStreams(t, primary, target)
	receiver, err := strconv.Atoi(target.QueryString(t, `SELECT pid FROM pg_stat_wal_receiver`))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := target.Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
		done <- err
	}()
	pgtest.WaitFor(t, "the notices", func(context.Context) error {
		if text, err := os.ReadFile(filepath.Join(target.Dir, "postgresql.auto.conf")); err != nil || !strings.Contains(string(text), registry.HandoverSetting) {
			return fmt.Errorf("none yet (%w)", err)
		}
		return nil
	})
	require.NoError(t, syscall.Kill(receiver, syscall.SIGSTOP))
	pgtest.WaitFor(t, "the last checkpoint of the primary", func(context.Context) error {
		control, err := pgcontrol.Read(primary.Dir)
		if err == nil && control.State != pgcontrol.ShutDown {
			err = fmt.Errorf("it is %q", control.State)
		}
		return err
	})
	require.NoError(t, syscall.Kill(receiver, syscall.SIGCONT))
	require.NoError(t, <-done)
	waitStreams(t, target, primary)
	for _, n := range nodes {
		require.Equal(t, "0", n.QueryString(t, `SELECT count(*) FROM pg_replication_slots`), "it keeps WAL for nobody")
	}
}

// What the daemons announced of replication logins may be of before a change: the primary's own tries it again before it stops anything.
func TestSwitchover_TriesTheLogin(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousOff)
	waitStreams(t, nodes[0], nodes[1])
	hba := filepath.Join(nodes[1].Dir, "pg_hba.conf")
	old, err := os.ReadFile(hba)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(hba, append([]byte("host replication all all reject\n"), old...), 0o600))
	nodes[1].Exec(t, `SELECT pg_reload_conf()`)
	_, err = nodes[0].Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
	requireError(t, err, repmgr.ErrRefused, "node1", "it could not stream from the target")
	require.Equal(t, "f", nodes[0].QueryString(t, `SELECT pg_is_in_recovery()`))
}
