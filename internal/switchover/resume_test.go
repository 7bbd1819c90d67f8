package switchover

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/registry"
)

// A daemon that starts while the shutdown of a handover hangs, which another process has begun,
// ends it when its time is over: nobody else would.
func TestResume_ShutdownHangs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary := pgtest.Start(t, pgtest.Options{})
	pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2"})
	srv := &postmaster.Server{Options: postmaster.Options{StartTimeout: time.Minute, StopTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}, Dir: primary.Dir}
	begin := func(until time.Time) {
		n, err := registry.Connect(ctx, "", primary.Conninfo())
		require.NoError(t, err)
		defer n.Close()
		require.NoError(t, n.SetHandover(ctx, election.Handover{ID: "x", Term: 7, Target: 2, Limit: time.Second, Until: until, Hold: time.Minute}))
	}
	resume := func(term int64) bool {
		resumed, err := Resume(ctx, srv, term)
		require.NoError(t, err)
		return resumed
	}
	begin(time.Now().Add(-time.Second))
	require.False(t, resume(7), "it does not shut down")
	begin(time.Now().Add(time.Hour))
	sender := pgtest.Query[int](t, primary, `SELECT pid FROM pg_stat_replication`)
	require.NoError(t, syscall.Kill(sender, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(sender, syscall.SIGCONT) })
	primary.Signal(syscall.SIGINT)
	pgtest.WaitFor(t, "the shutdown", func(context.Context) error {
		if !srv.ShutsDown() {
			return errors.New("it runs")
		}
		return nil
	})
	require.False(t, resume(7), "there is still time")
	require.NoError(t, postmaster.SetAutoConf(srv.Dir, map[string]string{registry.HandoverSetting: `{"id":"x","term":7,"hold_ns":1,"until":"2026-01-01T00:00:00Z"}`}, nil))
	require.False(t, resume(8), "another term")
	require.True(t, resume(7))
	require.False(t, srv.Runs())
	mark, _ := srv.ReadMark()
	require.NotNil(t, mark)
	text, err := postmaster.ReadAutoConf(srv.Dir)
	require.NoError(t, err)
	require.NotContains(t, text, registry.HandoverSetting)
}

// The slot of a handover does not outlive it on a server that is down: one that has room for no slot any more would not start.
func TestRemoveSlot(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(t, `SELECT pg_create_physical_replication_slot($1, true), pg_create_physical_replication_slot('other', true)`, registry.HandoverSlot)
	s.Stop("fast")
	srv := &postmaster.Server{Dir: s.Dir}
	removeSlot(srv)
	removeSlot(srv)
	s.StartAgain()
	require.Equal(t, "other", s.QueryString(t, `SELECT string_agg(slot_name, ',') FROM pg_replication_slots`))
}
