package repmgr

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
)

// Where the data directory can not be told, that is what is wrong.
func TestLocalServer_WhichDirectory(t *testing.T) {
	t.Parallel()
	c, err := New(Config{NodeID: 1})
	require.NoError(t, err)
	_, err = c.localServer("")
	require.ErrorIs(t, err, ErrConfig)
	_, err = c.localServer("/nowhere/at/all")
	require.ErrorIs(t, err, ErrDirectory)
}

// Whoever could not connect closes what it did not get.
func TestNode_CloseNothing(t *testing.T) {
	t.Parallel()
	(*Node)(nil).Close()
	(*registry.Server)(nil).Close()
}
