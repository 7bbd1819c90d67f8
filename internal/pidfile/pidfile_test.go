package pidfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pidfile"
)

// The default pid file is not where anybody could have made it before us.
func TestDefault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine, open, locked := filepath.Join(dir, "mine"), filepath.Join(dir, "open"), filepath.Join(dir, "locked")
	for path, mode := range map[string]os.FileMode{mine: 0o775, open: 0o1777, locked: 0o555} {
		require.NoError(t, os.Mkdir(path, 0o700))
		require.NoError(t, os.Chmod(path, mode))
	}
	require.Equal(t, filepath.Join(mine, "repmgrd-7.pid"), pidfile.Default(7, "", filepath.Join(dir, "none"), open, locked, mine))
	require.Equal(t, filepath.Join(os.TempDir(), "repmgrd.pid"), pidfile.Default(7, open, locked))
	require.Equal(t, filepath.Join(os.TempDir(), "repmgrd.pid"), pidfile.Default(0, mine))
}
