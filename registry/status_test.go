package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// startArchiving starts a server whose archive_command fails, and looks at it.
func startArchiving(t *testing.T) (*pgtest.Server, *Server, NodeStatus) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
	n, err := Connect(t.Context(), "", server.Conninfo())
	require.NoError(t, err)
	t.Cleanup(n.Close)
	s, err := n.Status(t.Context())
	require.NoError(t, err)
	return server, n, s
}

// The status says what fills the disk and what waits for a restart.
func TestStatus_SlotsArchiveAndRestart(t *testing.T) {
	t.Parallel()
	server, n, s := startArchiving(t)
	require.Zero(t, s.PendingRestart)
	require.Equal(t, "on", s.Settings.ArchiveMode)
	require.NotZero(t, s.Settings.MaxSlots)

	server.Exec(t, `SELECT pg_create_physical_replication_slot('keeps', true), pg_create_physical_replication_slot('nothing')`)
	server.Exec(t, `ALTER SYSTEM SET max_locks_per_transaction = 128`)
	server.Exec(t, `SELECT pg_reload_conf()`)
	server.Exec(t, `SELECT pg_logical_emit_message(false, 'x', repeat('x', 100000))`)
	server.Exec(t, `SELECT pg_switch_wal()`)
	known := s.VersionNum >= 150000
	pgtest.WaitFor(t, "a setting that waits for a restart, and an archive that fails", func(ctx context.Context) (err error) {
		if s, err = n.Status(ctx); err == nil && (s.PendingRestart != 1 || ArchiveFails(s) != known || known && s.Archiver.Failed == 0) {
			err = errors.New("not yet")
		}
		return err
	})
	require.Equal(t, known, s.Archiver != nil)
	require.Len(t, s.Slots, 2)
	require.Greater(t, *s.Slots[0].Kept, int64(100000))
	require.Nil(t, s.Slots[1].Kept)
}

// A statistics collector that does not answer, which PostgreSQL has until version 14, does not hold a look at the server up.
func TestStatus_StatisticsCollectorHangs(t *testing.T) {
	t.Parallel()
	server, n, s := startArchiving(t)
	if s.VersionNum >= 150000 {
		t.Skip("this PostgreSQL has no statistics collector")
	}
	pid := 0
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		works, _ := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		if works == server.Dir && strings.Contains(string(line), "stats collector") {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	require.NotZero(t, pid)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	require.NoError(t, os.RemoveAll(filepath.Join(server.Dir, "pg_stat_tmp"))) // what it wrote lately would do
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)             // PostgreSQL waits for 10 s for its collector
	defer cancel()
	_, err := n.Status(ctx)
	require.NoError(t, err)
}

func TestArchiveFails(t *testing.T) {
	t.Parallel()
	early, late := time.Unix(1000, 0), time.Unix(2000, 0)
	with := func(a *Archiver, command string) bool {
		return ArchiveFails(NodeStatus{Archiver: a, Settings: Settings{ArchiveCommand: command}})
	}
	require.False(t, with(nil, ""), "it is not known")
	require.False(t, with(&Archiver{}, "cp"))
	require.True(t, with(&Archiver{}, ""), "there is neither a command nor a library, so that the WAL stays")
	require.True(t, with(&Archiver{FailedAt: &early}, "cp"))
	require.True(t, with(&Archiver{FailedAt: &late, ArchivedAt: &early}, "cp"))
	require.False(t, with(&Archiver{FailedAt: &early, ArchivedAt: &late}, "cp"))
}
