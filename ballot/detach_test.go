package ballot_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// What somebody sets while restore_command is out of force is what is given back,
// and so is that of a clone beside what its source had kept.
func TestOverride_KeepsWhatWasSetSince(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	ctx, conn := t.Context(), server.Conn(t)
	const name, saved = "restore_command", "repmgr.saved_restore_command"
	file := func() (string, bool) {
		set, err := ballot.ReadSettings(ctx, conn)
		require.NoError(t, err)
		value, there := set[name]
		return value, there
	}
	giveBack := func(want string, there bool) {
		t.Helper()
		_, err := ballot.Revert(ctx, conn, name, "")
		require.NoError(t, err)
		got, is := file()
		require.Equal(t, there, is)
		require.Equal(t, want, got)
		set, err := ballot.ReadSettings(ctx, conn)
		require.NoError(t, err)
		require.NotContains(t, set, saved)
	}
	override := func() { t.Helper(); require.NoError(t, ballot.Override(ctx, conn, name, "")) }

	require.NoError(t, ballot.Store(ctx, conn, name, "old"))
	override()
	override()
	giveBack("old", true)

	override()
	require.NoError(t, ballot.Store(ctx, conn, name, "new"))
	giveBack("new", true)

	override()
	require.NoError(t, ballot.Store(ctx, conn, name, "newer"))
	override()
	giveBack("newer", true)

	override()
	_, err := conn.Exec(ctx, `ALTER SYSTEM RESET restore_command`)
	require.NoError(t, err)
	giveBack("", false)
}

// A copy has the WAL that its source has of its own, and so the note of it; a vote it has not.
func TestInherited_OwnWAL(t *testing.T) {
	t.Parallel()
	_, drop, err := ballot.Inherited("repmgr.ballot = '1/2/node1.7'\nrepmgr.own_wal = '{\"timeline\":1,\"lsn\":\"0/5000\"}'\n")
	require.NoError(t, err)
	require.Equal(t, []string{ballot.Setting}, drop)
}
