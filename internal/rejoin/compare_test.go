package rejoin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/wal"
)

// A second comparison forgets what the first one has found: the server may have run since.
func TestCompare_ForgetsTheOneBefore(t *testing.T) {
	t.Parallel()
	server := &salvage.Server{Server: postmaster.Server{Dir: t.TempDir()}}
	w := Work{Options: Options{MayClone: true}, Server: server, twin: true, impossible: "as it was", cloneOnly: true, Fork: &wal.Position{LSN: 7}}
	why, err := w.Compare(t.Context())
	require.NoError(t, err, "an empty directory is cloned anew")
	require.NotContains(t, why, "as it was")
	require.False(t, w.cloneOnly)
	require.False(t, w.twin)
	require.Nil(t, w.Fork)
}
