package restart

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/switchover"
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
	ask := func(asked time.Time, begun bool) {
		n, err := connect(ctx)
		require.NoError(t, err)
		defer n.Close()
		require.NoError(t, n.SetRestart(ctx, election.Restart{ID: "x", Term: 1, Asked: asked, Until: asked.Add(switchover.BeginWithin), Limit: time.Minute, Begun: begun}))
	}
	leftBehind := func(now time.Time) (election.Restart, bool) { return LeftBehind(srv, now) }
	ask(time.Now(), false)
	server.Stop("fast")
	_, ok := leftBehind(time.Now())
	require.False(t, ok, "no daemon has begun: somebody else has stopped it")
	server.StartAgain()
	ask(time.Now(), true)
	_, ok = leftBehind(time.Now())
	require.False(t, ok, "it runs")
	server.Stop("fast")
	request, ok := leftBehind(time.Now())
	require.True(t, ok)
	_, ok = leftBehind(time.Now().Add(time.Hour))
	require.False(t, ok, "it is too late")

	w := Work{Request: request, Server: srv, Log: slog.New(slog.DiscardHandler), Suspend: func() func() { return func() {} }, Connect: connect}
	require.ErrorIs(t, w.Run(ctx), failure.ErrRefused, "it would start as a primary")
	server.StartAgain()
	ask(request.Asked, true)
	server.Stop("fast")
	w.Witness = true
	require.NoError(t, w.Run(ctx))
	t.Cleanup(server.Kill)
	require.Equal(t, "t", server.QueryString(t, `SELECT pg_postmaster_start_time() > $1`, request.Asked))
	text, err := postmaster.ReadAutoConf(srv.Dir)
	require.NoError(t, err)
	require.NotContains(t, text, registry.RestartSetting)

	ask(time.Now().Add(time.Hour), true)
	server.Stop("fast")
	_, ok = leftBehind(time.Now())
	require.False(t, ok, "it ended before it was asked to restart")
}
