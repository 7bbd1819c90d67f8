package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// theirs is a program of repmgr 5.
func theirs(h *daemontest.Host, name string) string { return filepath.Join(h.BinDir, name) }

// watchTheirs starts the daemon of repmgr 5.
func watchTheirs(t *testing.T, h *daemontest.Host) (stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(h.Home, "repmgrd5.log"))
	require.NoError(t, err)
	cmd := exec.Command(theirs(h, "repmgrd"), "-f", h.Conf(), "--no-pid-file", "--daemonize=false")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its follow_command outlives it
	end := daemontest.Begin(t, cmd)
	stop = func() {
		_ = end()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("repmgrd 5 of %s:\n%s", h.Name, text)
		}
		log.Close()
	}
	t.Cleanup(stop)
	return stop
}

// isPrimary waits until one of the hosts accepts writes.
func isPrimary(t *testing.T, who string, among ...*daemontest.Host) (found *daemontest.Host) {
	t.Helper()
	pgtest.WaitFor(t, "a primary elected by "+who, func(ctx context.Context) error {
		for _, h := range among {
			if out, code := h.Sh(t, fmt.Sprintf(`psql -XAtc 'SELECT pg_is_in_recovery()' %q`, h.Conninfo())); code == 0 && strings.TrimSpace(out) == "f" {
				found = h
				return nil
			}
		}
		return errors.New("none yet")
	})
	return found
}

// A live cluster of repmgr 5 is taken over, fails over, and is given back and fails over again, with the
// same configuration files, and without a restart of PostgreSQL for that.
func TestAdopt(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"shared_preload_libraries": "repmgr"}
	probe := pgtest.Start(t, pgtest.Options{Name: "probe"})
	if _, err := os.Stat(filepath.Join(probe.BinDir, "repmgr")); err != nil {
		t.Skip("repmgr 5 is not installed for this server")
	}
	var nodes []*daemontest.Host
	for id := 1; id <= 3; id++ {
		var s *pgtest.Server
		if name := fmt.Sprintf("node%d", id); id == 1 {
			s = pgtest.Start(t, pgtest.Options{Name: name, Settings: settings})
		} else {
			s = pgtest.NewStandby(t, nodes[0].Server, pgtest.Options{Name: name, Settings: settings})
		}
		h := daemontest.NewHost(t, id, s, "reconnect_attempts=1", "reconnect_interval=1")
		text, err := os.ReadFile(h.Conf())
		require.NoError(t, err)
		text = fmt.Appendf(text, "promote_command='%s -f %s standby promote'\nfollow_command='%s -f %s standby follow --upstream-node-id=%%n'\n", theirs(h, "repmgr"), h.Conf(), theirs(h, "repmgr"), h.Conf())
		require.NoError(t, os.WriteFile(h.Conf(), text, 0o600))
		nodes = append(nodes, h)
		if id == 1 {
			h.Must(t, theirs(h, "repmgr")+" -f $C primary register")
		} else {
			h.Must(t, theirs(h, "repmgr")+" -f $C standby register --wait-sync=30")
		}
	}
	var stops []func()
	for _, h := range nodes {
		stops = append(stops, watchTheirs(t, h))
	}
	one := nodes[0]
	pgtest.WaitFor(t, "the daemons of repmgr 5", func(context.Context) error {
		if out, code := one.Sh(t, "repmgr -f $C adopt --dry-run 2>&1"); code == 0 || strings.Count(out, "a repmgrd of repmgr 5 runs there (PID ") != 3 {
			return errors.New(out)
		}
		return nil
	})
	out, code := nodes[1].Sh(t, "repmgr -f $C adopt --dry-run 2>&1")
	require.NotZero(t, code)
	require.Contains(t, out, `node "node1" (ID: 1) is the primary`)
	started := func() (all string) {
		for _, h := range nodes {
			all += h.QueryString(t, `SELECT pg_postmaster_start_time()::text || ' '`)
		}
		return all
	}
	const rows = `SELECT string_agg(n::text, ' ' ORDER BY node_id) FROM repmgr.nodes n`
	before, rowsBefore := started(), one.QueryString(t, rows)
	for _, stop := range stops {
		stop()
	}
	out = one.Must(t, "repmgr -f $C adopt --dry-run")
	require.Contains(t, out, "prerequisites for executing ADOPT are met")
	require.Contains(t, out, "reconnect_attempts and reconnect_interval would make each failover wait for 1s")
	require.Equal(t, "f", one.QueryString(t, `SELECT to_regclass('repmgr.rules') IS NOT NULL`), "nothing is changed yet")
	one.Must(t, "repmgr -f $C adopt")
	require.Contains(t, one.Must(t, "repmgr -f $C adopt"), "adopted already")
	require.Equal(t, rowsBefore, one.QueryString(t, rows))

	for _, h := range nodes {
		h.Watch(t)
	}
	ready := func(h *daemontest.Host) {
		t.Helper()
		pgtest.WaitFor(t, "our daemons", func(context.Context) error {
			if out, code := h.Sh(t, `repmgr -f $C doctor 2>&1 | grep -i critical; repmgr -f $C service status 2>&1`); code != 0 || strings.Count(out, "| running |") != 3 || strings.Contains(out, "CRITICAL") {
				return errors.New(out)
			}
			return nil
		})
	}
	ready(one)
	require.Equal(t, before, started())
	one.Kill()
	second := isPrimary(t, "ours", nodes[1:]...)
	pgtest.WaitFor(t, "repmgr 5 to see three nodes that are well", func(context.Context) error {
		if out, code := second.Sh(t, theirs(second, "repmgr")+" -f $C cluster show 2>&1"); code != 0 {
			return errors.New(out)
		}
		return nil
	})

	for _, h := range nodes {
		h.EndDaemon()
	}
	for _, h := range nodes {
		watchTheirs(t, h)
	}
	pgtest.WaitFor(t, "the daemons of repmgr 5 again", func(context.Context) error {
		if out, code := second.Sh(t, theirs(second, "repmgr")+" -f $C service status 2>&1"); code != 0 || strings.Count(out, "| running |") != 3 {
			return errors.New(out)
		}
		return nil
	})
	second.Kill()
	var others []*daemontest.Host
	for _, h := range nodes {
		if h != second {
			others = append(others, h)
		}
	}
	isPrimary(t, "repmgr 5", others...)
}
