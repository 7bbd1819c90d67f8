package datadir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
)

// A tablespace that a running server uses is not the old data's to delete, although
// that links to it, as a copy that was made by hand does.
func TestOwnTablespaces(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	space, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	s.Exec(t, `CREATE TABLESPACE extra LOCATION '`+space+`'`)
	byHand := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(byHand, "pg_tblspc"), 0o700))
	require.NoError(t, os.Symlink(space, filepath.Join(byHand, "pg_tblspc", "1")))
	own := func(dir string) []string { return (&Target{dir: dir, force: true}).OwnTablespaces() }
	require.Empty(t, own(byHand))
	require.Equal(t, []string{space}, own(s.Dir))
	s.Stop("fast")
	require.Equal(t, []string{space}, own(byHand))
	require.NoError(t, os.WriteFile(filepath.Join(space, "PG_note"), nil, 0o600))
	require.Empty(t, own(byHand))
}

// What repmgrd was writing when somebody took the data away stands in no clone's way,
// and anything else does.
func TestOpenTarget_NotesOfADaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{postmaster.NodesFile, postmaster.EventsFile, postmaster.EventsFile + ".tmp"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	_, err := Open(dir, false, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	_, err = Open(dir, true, false)
	require.ErrorIs(t, err, failure.ErrDirectory)
	require.ErrorContains(t, err, "it holds notes.txt, and no PG_VERSION")
}
