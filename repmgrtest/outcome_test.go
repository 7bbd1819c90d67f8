package repmgrtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
	"github.com/pgrepmgr/repmgr/repmgrtest"
)

// A primary dies with transactions that nobody has received, of which with quorum no client has an answer. The next
// one gives their ids to others, which pg_xact_status tells of; the outcome is that of the transaction itself, also after
// the next failover, for a login that may do nothing and in a database without repmgr's tables.
func TestOutcome(t *testing.T) {
	t.Parallel()
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			c := repmgrtest.Start(t, repmgrtest.Options{SynchronousMode: mode})
			first := c.WaitUntilReady(t)
			run(t, first, `CREATE DATABASE app`, `CREATE ROLE app LOGIN`)
			f, err := pgfollow.New(c.ConnString() + " dbname=app user=app pool_max_conns=20")
			require.NoError(t, err)
			t.Cleanup(f.Close)
			pool, err := f.Pool(ctx)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			admin := connect(t, first.ConnString+" dbname=app")
			_, err = admin.Exec(ctx, `CREATE TABLE rows (id int); GRANT ALL ON rows TO app`)
			require.NoError(t, err)
			begin := func(id int) (pgx.Tx, pgfollow.Transaction) {
				tx, err := pool.Begin(ctx)
				require.NoError(t, err)
				_, err = tx.Exec(ctx, `INSERT INTO rows VALUES ($1)`, id)
				require.NoError(t, err)
				x, err := pgfollow.Identify(ctx, tx)
				require.NoError(t, err)
				return tx, x
			}
			told(t, pool, 1)
			want := map[pgfollow.Transaction]pgfollow.Outcome{}
			tx, arrived := begin(1)
			require.NoError(t, tx.Commit(ctx))
			want[arrived] = pgfollow.Committed
			tx, takenBack := begin(2)
			require.NoError(t, tx.Rollback(ctx))
			want[takenBack] = pgfollow.Aborted
			open, unfinished := begin(3)
			tx, after := begin(4)
			require.NoError(t, tx.Commit(ctx))
			want[after] = pgfollow.Committed
			want[unfinished] = pgfollow.Aborted // its record has arrived, and its end never does
			caughtUp(t, c, admin)
			for x, outcome := range want {
				if x != unfinished {
					got, err := pgfollow.OutcomeOf(ctx, pool, x)
					require.NoError(t, err)
					require.Equal(t, outcome, got, "%+v, on its own primary", x)
				}
			}
			caughtUp(t, c, admin)
			rows, err := admin.Query(ctx, `SELECT pid FROM pg_stat_replication`)
			require.NoError(t, err)
			senders, err := pgx.CollectRows(rows, pgx.RowTo[int])
			require.NoError(t, err)
			require.Len(t, senders, 2)
			for _, pid := range senders {
				require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP)) // it is killed with its server
			}
			var wg sync.WaitGroup
			var mu sync.Mutex
			var unsent []pgfollow.Transaction
			for id := range 10 {
				tx, x := begin(100 + id)
				want[x] = pgfollow.Lost
				unsent = append(unsent, x)
				wg.Go(func() {
					err := tx.Commit(ctx)
					mu.Lock()
					defer mu.Unlock()
					if mode == repmgr.SynchronousQuorum && err == nil {
						t.Errorf("row %d was acknowledged", 100+id)
					} else if mode == repmgr.SynchronousOff && err != nil {
						t.Errorf("row %d: %v", 100+id, err)
					}
				})
			}
			if mode == repmgr.SynchronousOff {
				wg.Wait()
			} else {
				pgtest.WaitFor(t, "the commits to wait", func(ctx context.Context) error {
					var n int
					if err := admin.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'app'`).Scan(&n); err != nil || n != 10 {
						return fmt.Errorf("%d wait, %w", n, err)
					}
					return nil
				})
			}
			first.Kill(t)
			wg.Wait()
			require.Error(t, open.Commit(ctx))
			c.WaitForPrimary(t)
			reused := connect(t, c.WaitForPrimary(t).ConnString+" dbname=app")
			for last := uint64(0); last <= unsent[len(unsent)-1].Xid; {
				require.NoError(t, reused.QueryRow(ctx, `INSERT INTO rows VALUES (-1) RETURNING pg_current_xact_id()::text::int8`).Scan(&last))
			}
			check := func() {
				for x, outcome := range want {
					got, err := pgfollow.OutcomeOf(ctx, pool, x)
					require.NoError(t, err, "%+v", x)
					require.Equal(t, outcome, got, "%+v", x)
				}
			}
			for _, x := range unsent {
				var naive string
				require.NoError(t, pool.QueryRow(ctx, `SELECT pg_xact_status($1::text::xid8)`, fmt.Sprint(x.Xid)).Scan(&naive))
				require.Equal(t, "committed", naive, "it is another transaction")
			}
			check()
			told(t, pool, 2)
			tx, second := begin(5)
			require.NoError(t, tx.Commit(ctx))
			want[second] = pgfollow.Committed
			caughtUp(t, c, reused)
			c.KillPrimary(t)
			c.WaitForPrimary(t)
			check()
		})
	}
}

// told waits until clients are told of so many timelines.
func told(t *testing.T, pool *pgxpool.Pool, timelines int) {
	t.Helper()
	pgtest.WaitFor(t, "the timelines", func(ctx context.Context) error {
		var n int
		var text string
		if err := pool.QueryRow(ctx, `SELECT s, cardinality(string_to_array(s, ' ')) FROM current_setting('repmgr.timelines', true) s`).Scan(&text, &n); err != nil || n != timelines {
			return fmt.Errorf("they are %q, %w", text, err)
		}
		return nil
	})
}

// caughtUp waits until all standbys have replayed everything.
func caughtUp(t *testing.T, c *repmgrtest.Cluster, primary *pgx.Conn) {
	t.Helper()
	pgtest.WaitFor(t, "the standbys to catch up", func(ctx context.Context) error {
		var n int
		err := primary.QueryRow(ctx, `SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_insert_lsn()`).Scan(&n)
		if err == nil && n != len(c.Nodes())-1 {
			err = errors.New("not yet")
		}
		return err
	})
}

func connect(t *testing.T, conninfo string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), conninfo)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// run runs statements, each by itself.
func run(t *testing.T, n *repmgrtest.Node, statements ...string) {
	t.Helper()
	conn := connect(t, n.ConnString)
	for _, sql := range statements {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
}
