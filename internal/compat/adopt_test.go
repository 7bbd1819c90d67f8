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

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// theirs is a program of repmgr 5.
func (h *host) theirs(name string) string { return filepath.Join(h.BinDir, name) }

// watchTheirs starts the daemon of repmgr 5.
func (h *host) watchTheirs(t *testing.T) (stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(h.dir, "repmgrd5.log"))
	require.NoError(t, err)
	cmd := exec.Command(h.theirs("repmgrd"), "-f", h.conf(), "--no-pid-file", "--daemonize=false")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its follow_command outlives it
	end := begin(t, cmd)
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
func isPrimary(t *testing.T, who string, among ...*host) (found *host) {
	t.Helper()
	pgtest.WaitFor(t, "a primary elected by "+who, func(ctx context.Context) error {
		for _, h := range among {
			if out, code := h.sh(t, fmt.Sprintf(`psql -XAtc 'SELECT pg_is_in_recovery()' %q`, h.Conninfo())); code == 0 && strings.TrimSpace(out) == "f" {
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
	var nodes []*host
	for id := 1; id <= 3; id++ {
		var s *pgtest.Server
		if name := fmt.Sprintf("node%d", id); id == 1 {
			s = pgtest.Start(t, pgtest.Options{Name: name, Settings: settings})
		} else {
			s = pgtest.NewStandby(t, nodes[0].Server, pgtest.Options{Name: name, Settings: settings})
		}
		h := newHost(t, id, s, "reconnect_attempts=1", "reconnect_interval=1")
		text, err := os.ReadFile(h.conf())
		require.NoError(t, err)
		text = fmt.Appendf(text, "promote_command='%s -f %s standby promote'\nfollow_command='%s -f %s standby follow --upstream-node-id=%%n'\n", h.theirs("repmgr"), h.conf(), h.theirs("repmgr"), h.conf())
		require.NoError(t, os.WriteFile(h.conf(), text, 0o600))
		nodes = append(nodes, h)
		if id == 1 {
			h.must(t, h.theirs("repmgr")+" -f $C primary register")
		} else {
			h.must(t, h.theirs("repmgr")+" -f $C standby register --wait-sync=30")
		}
	}
	var stops []func()
	for _, h := range nodes {
		stops = append(stops, h.watchTheirs(t))
	}
	one := nodes[0]
	pgtest.WaitFor(t, "the daemons of repmgr 5", func(context.Context) error {
		if out, code := one.sh(t, "repmgr -f $C adopt --dry-run 2>&1"); code == 0 || strings.Count(out, "a repmgrd of repmgr 5 runs there (PID ") != 3 {
			return errors.New(out)
		}
		return nil
	})
	out, code := nodes[1].sh(t, "repmgr -f $C adopt --dry-run 2>&1")
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
	out = one.must(t, "repmgr -f $C adopt --dry-run")
	require.Contains(t, out, "prerequisites for executing ADOPT are met")
	require.Contains(t, out, "reconnect_attempts and reconnect_interval would make each failover wait for 1s")
	require.Equal(t, "f", one.QueryString(t, `SELECT to_regclass('repmgr.rules') IS NOT NULL`), "nothing is changed yet")
	one.must(t, "repmgr -f $C adopt")
	require.Contains(t, one.must(t, "repmgr -f $C adopt"), "adopted already")
	require.Equal(t, rowsBefore, one.QueryString(t, rows))

	for _, h := range nodes {
		h.watch(t)
	}
	ready := func(h *host) {
		t.Helper()
		pgtest.WaitFor(t, "our daemons", func(context.Context) error {
			if out, code := h.sh(t, `repmgr -f $C doctor 2>&1 | grep -i critical; repmgr -f $C service status 2>&1`); code != 0 || strings.Count(out, "| running |") != 3 || strings.Contains(out, "CRITICAL") {
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
		if out, code := second.sh(t, second.theirs("repmgr")+" -f $C cluster show 2>&1"); code != 0 {
			return errors.New(out)
		}
		return nil
	})

	for _, h := range nodes {
		h.stop()
	}
	for _, h := range nodes {
		h.watchTheirs(t)
	}
	pgtest.WaitFor(t, "the daemons of repmgr 5 again", func(context.Context) error {
		if out, code := second.sh(t, second.theirs("repmgr")+" -f $C service status 2>&1"); code != 0 || strings.Count(out, "| running |") != 3 {
			return errors.New(out)
		}
		return nil
	})
	second.Kill()
	var others []*host
	for _, h := range nodes {
		if h != second {
			others = append(others, h)
		}
	}
	isPrimary(t, "repmgr 5", others...)
}
