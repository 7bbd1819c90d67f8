package pgfollow_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
)

// outcome asks for a moment.
func outcome(t *testing.T, ask func(context.Context) (pgfollow.Outcome, error)) (pgfollow.Outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return ask(ctx)
}

// On one primary the outcome is that of the transaction, once it has ended, and once a failover could not take it back.
func TestOutcomeOf(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	s[0].Exec(t, `ALTER ROLE postgres SET synchronous_commit = local`)
	pool := poolOf(t, follow(t, s))
	ctx := t.Context()
	begin := func() (pgx.Tx, func(context.Context) (pgfollow.Outcome, error)) {
		tx, err := pool.Begin(ctx)
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // the pool would wait for one that is left open
		_, err = tx.Exec(ctx, `SET LOCAL synchronous_commit = on; INSERT INTO rows VALUES (1)`)
		require.NoError(t, err)
		x, err := pgfollow.Identify(ctx, tx)
		require.NoError(t, err)
		require.NotZero(t, x.Xid)
		require.EqualValues(t, 1, x.Timeline)
		return tx, func(ctx context.Context) (pgfollow.Outcome, error) { return pgfollow.OutcomeOf(ctx, pool, x) }
	}
	tx, ask := begin()
	got, err := outcome(t, ask)
	require.ErrorContains(t, err, "in progress")
	require.Equal(t, pgfollow.Unknown, got)
	require.NoError(t, tx.Commit(ctx))
	got, err = ask(ctx)
	require.NoError(t, err)
	require.Equal(t, pgfollow.Committed, got)

	tx, ask = begin()
	require.NoError(t, tx.Rollback(ctx))
	got, err = ask(ctx)
	require.NoError(t, err)
	require.Equal(t, pgfollow.Aborted, got)

	empty, err := pool.Begin(ctx)
	require.NoError(t, err)
	x, err := pgfollow.Identify(ctx, empty)
	require.NoError(t, err)
	require.NoError(t, empty.Commit(ctx))
	require.Zero(t, x.Xid)
	got, err = pgfollow.OutcomeOf(ctx, pool, x)
	require.ErrorContains(t, err, "it had written nothing")
	require.Equal(t, pgfollow.Unknown, got)

	// A commit that waits for a standby, and whose session ends, is there; no standby has it.
	s[0].Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the setting", func(context.Context) error {
		if s[0].QueryString(t, `SHOW synchronous_standby_names`) != "nobody" {
			return errors.New("not yet")
		}
		return nil
	})
	tx, ask = begin()
	pid := tx.Conn().PgConn().PID()
	done := make(chan error, 1)
	go func() { done <- tx.Commit(ctx) }()
	pgtest.WaitFor(t, "the commit to wait", func(context.Context) error {
		if s[0].QueryString(t, fmt.Sprintf(`SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = %d`, pid)) != "SyncRep" {
			return errors.New("not yet")
		}
		return nil
	})
	s[0].Exec(t, `SELECT pg_terminate_backend($1)`, pid)
	require.Error(t, within(t, done))
	got, err = outcome(t, ask)
	require.Error(t, err)
	require.Equal(t, pgfollow.Unknown, got)
	s[0].Exec(t, `ALTER SYSTEM RESET synchronous_standby_names`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	got, err = ask(ctx)
	require.NoError(t, err)
	require.Equal(t, pgfollow.Committed, got)
}

// Where commits wait until a standby has replayed them, so does the answer.
func TestOutcomeOf_RemoteApply(t *testing.T) {
	t.Parallel()
	s := start(t, 1)
	s[0].Exec(t, `ALTER ROLE postgres SET synchronous_commit = remote_apply`)
	s[0].Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'node2'`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	pool := poolOf(t, follow(t, s))
	ctx := t.Context()
	pgtest.WaitFor(t, "a synchronous standby", func(context.Context) error {
		if n := s[0].QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`); n != "1" {
			return errors.New("not yet")
		}
		return nil
	})
	s[1].Exec(t, `SELECT pg_wal_replay_pause()`)
	tx, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SET LOCAL synchronous_commit = on; INSERT INTO rows VALUES (1)`)
	require.NoError(t, err)
	x, err := pgfollow.Identify(ctx, tx)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
	ask := func(ctx context.Context) (pgfollow.Outcome, error) { return pgfollow.OutcomeOf(ctx, pool, x) }
	got, err := outcome(t, ask)
	require.Error(t, err)
	require.Equal(t, pgfollow.Unknown, got)
	s[1].Exec(t, `SELECT pg_wal_replay_resume()`)
	got, err = ask(ctx)
	require.NoError(t, err)
	require.Equal(t, pgfollow.Committed, got)
}

// A server that recovers from a crash gives an id away again that had left no trace, on the same timeline.
func TestOutcomeOf_Crash(t *testing.T) {
	t.Parallel()
	s := []*pgtest.Server{pgtest.Start(t, pgtest.Options{Name: "node1", Settings: map[string]string{"wal_writer_delay": "10s", "autovacuum": "off"}})}
	s[0].Exec(t, `CREATE TABLE rows (id bigint)`)
	pool := poolOf(t, follow(t, s))
	ctx := t.Context()
	tx, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `INSERT INTO rows VALUES (1)`)
	require.NoError(t, err)
	x, err := pgfollow.Identify(ctx, tx)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(int(tx.Conn().PgConn().PID()), syscall.SIGKILL))
	require.Error(t, tx.Commit(ctx))
	pgtest.WaitFor(t, "the id to be used again", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var xid uint64
		err := pool.QueryRow(ctx, `INSERT INTO rows VALUES (2) RETURNING pg_current_xact_id()::text::int8`).Scan(&xid)
		if err == nil && xid < x.Xid {
			err = fmt.Errorf("%d", xid)
		}
		return err
	})
	require.Equal(t, "committed", s[0].QueryString(t, fmt.Sprintf(`SELECT pg_xact_status('%d'::xid8)`, x.Xid)), "that is another transaction")
	got, err := pgfollow.OutcomeOf(ctx, pool, x)
	require.ErrorContains(t, err, "after a crash")
	require.Equal(t, pgfollow.Unknown, got)
}
