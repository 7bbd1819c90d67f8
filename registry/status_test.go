package registry

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// The status says what fills the disk and what waits for a restart.
func TestStatus_SlotsArchiveAndRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
	n, err := Connect(t.Context(), "", server.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	s, err := n.Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, s.PendingRestart)
	require.Equal(t, "on", s.Settings.ArchiveMode)
	require.NotZero(t, s.Settings.MaxSlots)

	server.Exec(t, `SELECT pg_create_physical_replication_slot('keeps', true), pg_create_physical_replication_slot('nothing')`)
	server.Exec(t, `ALTER SYSTEM SET max_locks_per_transaction = 128`)
	server.Exec(t, `SELECT pg_reload_conf()`)
	server.Exec(t, `SELECT pg_logical_emit_message(false, 'x', repeat('x', 100000))`)
	server.Exec(t, `SELECT pg_switch_wal()`)
	pgtest.WaitFor(t, "a setting that waits for a restart, and an archive that fails", func(ctx context.Context) error {
		if s, err = n.Status(ctx); err == nil && (s.PendingRestart != 1 || !s.Archiver.Failing() || s.Archiver.Failed == 0) {
			err = errors.New("not yet")
		}
		return err
	})
	require.Len(t, s.Slots, 2)
	require.Greater(t, *s.Slots[0].Kept, int64(100000))
	require.Nil(t, s.Slots[1].Kept)
}
