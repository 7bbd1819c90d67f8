package restart

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/service"
	"github.com/pgrepmgr/repmgr/registry"
)

// A daemon that finds its server down in the middle of a restart starts it; one that an operator
// has stopped, or that nobody started for long, it leaves alone.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := pgtest.Start(t, pgtest.Options{})
	srv := &postmaster.Server{Options: postmaster.Options{StartTimeout: time.Minute, StopTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}, Dir: server.Dir}
	connect := func(ctx context.Context) (*registry.Server, error) {
		return registry.Connect(ctx, "", server.Conninfo())
	}
	ask := func(asked time.Time) {
		n, err := connect(ctx)
		require.NoError(t, err)
		defer n.Close()
		require.NoError(t, n.SetRestart(ctx, election.Restart{ID: "x", Asked: asked, Until: asked.Add(beginWithin), Limit: time.Minute}))
	}
	ask(time.Now())
	_, ok := LeftBehind(srv, time.Now())
	require.False(t, ok, "it runs")
	server.Stop("fast")
	request, ok := LeftBehind(srv, time.Now())
	require.True(t, ok)
	_, ok = LeftBehind(srv, time.Now().Add(time.Hour))
	require.False(t, ok, "it is too late")

	w := Work{
		Request: request, Log: slog.New(slog.DiscardHandler), Suspend: func() func() { return func() {} },
		Commands: service.Commands{Server: srv, Connect: connect, Screen: func(context.Context, bool) error { return nil }},
	}
	require.NoError(t, w.Run(ctx))
	t.Cleanup(server.Kill)
	require.Equal(t, "t", server.QueryString(t, `SELECT pg_postmaster_start_time() > $1`, request.Asked))
	text, err := postmaster.ReadAutoConf(srv.Dir)
	require.NoError(t, err)
	require.NotContains(t, text, registry.RestartSetting)

	ask(time.Now().Add(time.Hour))
	server.Stop("fast")
	_, ok = LeftBehind(srv, time.Now())
	require.False(t, ok, "it ended before it was asked to restart")
}
