package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) } // it fails when a process is left behind

// needPgbench skips where the PostgreSQL under test comes without it, and the machine too.
func needPgbench(t *testing.T) {
	if _, err := os.Stat(filepath.Join(os.Getenv("REPMGR_PG_BINDIR"), "pgbench")); err == nil {
		return
	}
	if _, err := exec.LookPath("pgbench"); err != nil {
		t.Skip("there is no pgbench")
	}
}

func requireNothingLeft(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// The whole story, in its short form.
func TestQuickstart(t *testing.T) {
	needPgbench(t)
	var out bytes.Buffer
	err := run(t.Context(), []string{"-quick"}, &out)
	t.Logf("\n%s", &out)
	require.NoError(t, err)
	for _, want := range []string{
		"$ repmgr -f node1/repmgr.conf primary register\n",
		" 1  | node1 | primary | - failed  |          | default  | 100   | ?\n",
		" 4  | node4 | standby | running   | ", // of node2, or of node3 where that had more WAL
		"is the primary, on timeline 2",
		"receipts that ",
		"standby_promote",
		"Blocked by: nothing\n",
		" orders were acknowledged. None is missing on any node,",
		"repmgrd_failover_promote",
		"node_rejoin",
		"All servers are stopped, and the directory is removed.",
	} {
		require.Contains(t, out.String(), want)
	}
	require.Equal(t, 5, strings.Count(out.String(), "| same\n"))
	require.NotContains(t, out.String(), "\x1b", "colors are for terminals")
	requireNothingLeft(t)
}

// cancelAt is a reader of the story who presses ctrl-C when a text has come.
type cancelAt struct {
	io.Writer
	text   string
	cancel context.CancelCauseFunc
}

func (c cancelAt) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.text)) {
		c.cancel(errors.New("ctrl-C"))
	}
	return c.Writer.Write(b)
}

// Ctrl-C leaves nothing behind, wherever it comes: in a clone, under load, or
// while the cluster has no primary, or while a rejoin is under way.
func TestQuickstart_Interrupted(t *testing.T) {
	needPgbench(t)
	for _, at := range []string{"-D node2/data", "pg_wal_replay_pause()", "kill -9", "comes back"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var out bytes.Buffer
			err := run(ctx, []string{"-quick"}, cancelAt{&out, at, cancel})
			t.Logf("\n%s\n%v", &out, err)
			require.ErrorContains(t, err, "ctrl-C: the servers are stopped")
			require.Contains(t, out.String(), at)
			require.NotContains(t, out.String(), "The end of", "logs are for faults")
			requireNothingLeft(t)
		})
	}
}

// Whoever has to find out what went wrong gets the servers' last words.
func TestQuickstart_Failure(t *testing.T) {
	needPgbench(t)
	t.Setenv("REPMGR_PG_BINDIR", brokenPostgres(t))
	var out bytes.Buffer
	err := run(t.Context(), []string{"-quick"}, &out)
	require.ErrorContains(t, err, "start node1: the server ended")
	require.Contains(t, out.String(), "The end of node1's log:\nno room on this disk\n")
}

// brokenPostgres has the programs of the PostgreSQL under test, with a postgres
// that only initdb can use.
func brokenPostgres(t *testing.T) string {
	t.Helper()
	m, err := newMachine()
	require.NoError(t, err)
	require.NoError(t, m.close())
	dir := t.TempDir()
	require.NoError(t, os.Symlink(filepath.Join(m.bin, "initdb"), filepath.Join(dir, "initdb")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "postgres"), []byte("#!/bin/sh\ncase $1 in -D) echo no room on this disk; exit 1;; esac\nexec "+filepath.Join(m.bin, "postgres")+" \"$@\"\n"), 0o755))
	return dir
}
