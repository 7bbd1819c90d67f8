package restart

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
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

	w := Work{
		Request: request, Server: srv, Log: slog.New(slog.DiscardHandler), Connect: connect,
		Hold: func() error { return nil }, Suspend: func() func() { return func() {} },
	}
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

// A server is told to end only while it is the standby that it was when it was asked for, and nobody can vote or
// be promoted by an election from then on. One that was promoted by hand all the same is screened.
func TestWork(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		during func(t *testing.T, s *pgtest.Server) // the checkpoint
		late   func(t *testing.T, s *pgtest.Server) // when it is told to end
		hold   error
		limit  time.Duration // 0: a minute
		screen registry.Role
		fails  string
		stays  bool   // it is not restarted
		ends   string // as a standby (t), as a primary (f), or down ("")
	}{
		"nothing happens":                {ends: "t", late: func(t *testing.T, s *pgtest.Server) { t.Helper(); require.Equal(t, "1", advisoryLocks(t, s)) }},
		"it is elected":                  {ends: "f", during: promote, stays: true, fails: "nothing was changed: it was promoted meanwhile"},
		"it votes":                       {ends: "t", during: pledge(2), stays: true, fails: "nothing was changed: it has voted in an election meanwhile, in term 2"},
		"it has voted before":            {ends: "t", during: pledge(1)},
		"an election needs its daemon":   {ends: "t", hold: errors.New("gives way"), stays: true, fails: "nothing was changed: gives way"},
		"the checkpoint takes too long":  {ends: "t", during: stopCheckpointer, limit: time.Second},
		"it is promoted by hand, and is": {ends: "f", late: promote, screen: registry.RolePrimary},
		"it is promoted by hand, late":   {ends: "", late: promote, screen: registry.RoleStandby, fails: "comes back as a standby: screened"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := pgtest.NewStandby(t, pgtest.Start(t, pgtest.Options{}), pgtest.Options{Name: "standby"})
			t.Cleanup(s.Kill)
			srv := &postmaster.Server{Options: postmaster.Options{StartTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}, Dir: s.Dir}
			started := s.QueryString(t, `SELECT pg_postmaster_start_time()`)
			connected, suspended := 0, 0
			w := Work{
				Request: election.Restart{ID: "x", Term: 1, Asked: time.Now(), Until: time.Now().Add(switchover.BeginWithin), Limit: cmp.Or(test.limit, time.Minute)},
				Server:  srv, Log: slog.New(slog.DiscardHandler), Hold: func() error { return test.hold },
				Connect: func(ctx context.Context) (*registry.Server, error) {
					if connected++; connected == 1 && test.during != nil {
						test.during(t, s)
					}
					return registry.Connect(ctx, "", s.Conninfo())
				},
				Suspend: func() func() {
					if test.late != nil {
						test.late(t, s)
					}
					suspended++
					return func() { suspended-- }
				},
				Screen: func(context.Context) (registry.Role, string, error) { return test.screen, "screened", nil },
			}
			err := w.Run(t.Context())
			require.Zero(t, suspended)
			if test.fails == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.fails)
			}
			if test.ends == "" {
				_, why := srv.ReadMark()
				require.Contains(t, why, "promoted")
				require.True(t, srv.StaysStandby())
				require.False(t, srv.Runs())
				return
			}
			require.Equal(t, test.ends, s.QueryString(t, `SELECT pg_is_in_recovery()`))
			require.Equal(t, test.stays, started == s.QueryString(t, `SELECT pg_postmaster_start_time()`))
			text, err := postmaster.ReadAutoConf(srv.Dir)
			require.NoError(t, err)
			require.NotContains(t, text, registry.RestartSetting)
		})
	}
}

func promote(t *testing.T, s *pgtest.Server) {
	t.Helper()
	require.Equal(t, "t", s.QueryString(t, `SELECT pg_promote()`))
}

func pledge(term int64) func(*testing.T, *pgtest.Server) {
	return func(t *testing.T, s *pgtest.Server) {
		t.Helper()
		require.NoError(t, ballot.Pledge(t.Context(), s.Conn(t), ballot.Ballot{Node: 2, Term: term, Candidate: "x"}, ballot.Standby))
	}
}

func stopCheckpointer(t *testing.T, s *pgtest.Server) {
	t.Helper()
	require.NoError(t, syscall.Kill(pgtest.Query[int](t, s, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`), syscall.SIGSTOP))
}

func advisoryLocks(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	return s.QueryString(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted`)
}
