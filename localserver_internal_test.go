package repmgr

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// endsSession is a server that is stopped between its answer and the look at its processes.
type endsSession struct{ stop func() }

func (e endsSession) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (e endsSession) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { e.stop() }

// A server that is being stopped is not taken for one of another machine.
func TestLocalServer_IsAt(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.Options{})
	c, err := New(Config{NodeID: 1, Conninfo: pg.Conninfo(), DataDirectory: pg.Dir})
	require.NoError(t, err)
	server, err := c.localServer("")
	require.NoError(t, err)
	n, err := registry.Connect(t.Context(), "", pg.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	here, err := server.isAt(t.Context(), n)
	require.NoError(t, err)
	require.True(t, here)
	here, err = newLocalServer(server.cfg, t.TempDir()).isAt(t.Context(), n)
	require.NoError(t, err)
	require.False(t, here)

	cfg, err := postgres.ConnConfig(pg.Conninfo())
	require.NoError(t, err)
	cfg.Tracer, cfg.AfterConnect = endsSession{sync.OnceFunc(func() { pg.Stop("immediate") })}, nil
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	n.Conn = conn
	_, err = server.isAt(t.Context(), n)
	require.ErrorIs(t, err, ErrConnect)
}

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
