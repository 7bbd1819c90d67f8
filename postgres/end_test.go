package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

func TestWatchEnd(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Name: "node1"})
	n, err := registry.Connect(t.Context(), "node1", server.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	ended := make(chan error, 1)
	stop := n.WatchEnd(t.Context(), func(err error) { ended <- err })
	stop()
	require.NoError(t, n.Conn.Ping(t.Context()), "the connection is still of use")
	stop = n.WatchEnd(t.Context(), func(err error) { ended <- err })
	defer stop()
	server.Kill()
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(pgtest.Timeout(20 * time.Second)):
		t.Fatal("it has not noticed the end")
	}
}
