package pgfollow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// start makes a primary with a table, and standbys.
func start(t *testing.T, standbys int) []*pgtest.Server {
	t.Helper()
	all := []*pgtest.Server{pgtest.Start(t, pgtest.Options{Name: "node1"})}
	all[0].Exec(t, `CREATE TABLE rows (id bigint)`)
	for i := range standbys {
		all = append(all, pgtest.NewStandby(t, all[0], pgtest.Options{Name: fmt.Sprintf("node%d", i+2)}))
	}
	return all
}

// follow follows the servers.
func follow(t *testing.T, servers []*pgtest.Server, o ...pgfollow.Option) *pgfollow.Follower {
	t.Helper()
	var hosts, ports []string
	for _, s := range servers {
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, fmt.Sprint(s.Port))
	}
	f, err := pgfollow.New(fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres pool_max_conns=8", strings.Join(hosts, ","), strings.Join(ports, ",")), append([]pgfollow.Option{pgfollow.Hold(pgtest.Timeout(30 * time.Second))}, o...)...)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f
}

func poolOf(t *testing.T, f *pgfollow.Follower) *pgxpool.Pool {
	t.Helper()
	pool, err := f.Pool(t.Context())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// within is what a goroutine says in the end.
func within(t *testing.T, said <-chan error) error {
	t.Helper()
	select {
	case err := <-said:
		return err
	case <-time.After(pgtest.Timeout(30 * time.Second)):
		t.Fatal("it does not end")
		return nil
	}
}

// looked waits until a server was asked by a follower, after it was started.
func looked(t *testing.T, s *pgtest.Server) {
	t.Helper()
	pgtest.WaitFor(t, s.Name+" to be looked at", func(context.Context) error {
		if n := s.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_control_system%' AND pid <> pg_backend_pid()`); n == "0" {
			return errors.New("nobody looks")
		}
		return nil
	})
}

func promote(t *testing.T, s *pgtest.Server) { s.Exec(t, `SELECT pg_promote()`) }

func port(t *testing.T, ctx context.Context, pool *pgxpool.Pool) (p int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(ctx, `SELECT current_setting('port')::int`).Scan(&p))
	return p
}

// Four clients write through the pool while the primary is killed: each row that was acknowledged is on
// the next primary, nothing was written anywhere else after it was known, and Retry needed no error of
// the client. The former primary comes back as one, and is not used.
func TestFollower_Failover(t *testing.T) {
	t.Parallel()
	s := start(t, 2)
	s[0].Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (node2)'`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	f := follow(t, s)
	pool := poolOf(t, f)
	before, err := f.Wait(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, before.Timeline)

	var wg sync.WaitGroup
	var mu sync.Mutex
	var acked []int64
	var unknown int
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for client := range int64(4) {
		wg.Go(func() {
			for id := client; ctx.Err() == nil; id += 4 {
				err := pgfollow.Retry(ctx, pool, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, `INSERT INTO rows VALUES ($1)`, id)
					return err
				})
				var lost *pgfollow.CommitUnknownError
				mu.Lock()
				switch {
				case err == nil:
					acked = append(acked, id)
				case ctx.Err() != nil: // the test has ended, and the commit with it
				case errors.As(err, &lost):
					unknown++
				default:
					t.Errorf("row %d: %v", id, err)
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	written := func(what string, n int) {
		t.Helper()
		pgtest.WaitFor(t, what, func(context.Context) error {
			if count() < n {
				return fmt.Errorf("%d rows", count())
			}
			return nil
		})
	}
	written("rows on the first primary", 100)
	s[0].Kill()
	promote(t, s[1])
	written("rows on the second one", count()+100)

	require.NoError(t, os.RemoveAll(filepath.Join(s[0].Dir, "standby.signal")))
	s[0].StartAgain() // as if nothing had happened
	s[0].Exec(t, `ALTER SYSTEM RESET synchronous_standby_names`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	looked(t, s[0])
	strayed := s[0].QueryString(t, `SELECT count(*) FROM rows`)
	written("rows while there are two", count()+100)
	require.Equal(t, strayed, s[0].QueryString(t, `SELECT count(*) FROM rows`))
	after, err := f.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("127.0.0.1:%d", s[1].Port), after.Node)
	require.EqualValues(t, 2, after.Timeline)
	cancel()
	wg.Wait()
	require.LessOrEqual(t, unknown, 4, "each client had one transaction under way")
	have := map[int64]bool{}
	rows, err := s[1].Conn(t).Query(t.Context(), `SELECT id FROM rows`)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	for _, id := range ids {
		have[id] = true
	}
	for _, id := range acked {
		require.True(t, have[id], "row %d was acknowledged", id)
	}
}

// A primary that hangs is held on to by nobody: what waits for it gets an error as soon as another one is
// known, and when it goes on nobody sends it anything. So do readers that had no standby.
func TestFollower_FrozenPrimary(t *testing.T) {
	t.Parallel()
	s := start(t, 1)
	f := follow(t, s)
	pool := poolOf(t, f)
	require.Equal(t, s[0].Port, port(t, t.Context(), pool))
	reads, err := f.StandbyPool(t.Context(), pgfollow.Standbys{OrPrimary: true})
	require.NoError(t, err)
	t.Cleanup(reads.Close)
	s[1].Stop("fast")
	waiting := map[*pgxpool.Pool]chan error{pool: make(chan error, 1), reads: make(chan error, 1)}
	conns := map[*pgxpool.Pool]*pgxpool.Conn{}
	for p := range waiting {
		conns[p], err = p.Acquire(t.Context())
		require.NoError(t, err)
		t.Cleanup(conns[p].Release)
	}
	s[1].StartAgain()
	onStandby := uint32(0)
	reader := func(ctx context.Context) (pid uint32, at string) {
		require.NoError(t, reads.QueryRow(ctx, `SELECT pg_backend_pid(), current_setting('port')`).Scan(&pid, &at))
		return pid, at
	}
	pgtest.WaitFor(t, "a read on the standby", func(ctx context.Context) error {
		pid, at := reader(ctx)
		if at != fmt.Sprint(s[1].Port) {
			return errors.New(at)
		}
		onStandby = pid
		return nil
	})
	s[0].Freeze()
	defer s[0].Thaw()
	for p, done := range waiting {
		go func() {
			_, err := conns[p].Exec(t.Context(), `SELECT count(*) FROM rows`)
			done <- err
		}()
	}
	promote(t, s[1])
	for _, done := range waiting {
		lost := within(t, done)
		require.Error(t, lost)
		require.False(t, pgconn.SafeToRetry(lost), "it was sent")
	}
	require.Equal(t, s[1].Port, port(t, t.Context(), pool))
	pid, at := reader(t.Context())
	require.Equal(t, fmt.Sprint(s[1].Port), at)
	require.NotEqual(t, onStandby, pid, "it was made to a standby, and would not be cut")
	s[0].Thaw()
	require.Equal(t, s[1].Port, port(t, t.Context(), pool))
	looked(t, s[0])
	for range 10 {
		require.Equal(t, s[1].Port, port(t, t.Context(), pool))
	}
}

// While there is no primary, connections are waited for, and the error says what each node is. The same
// primary gets its connections back.
func TestFollower_Hold(t *testing.T) {
	t.Parallel()
	s := start(t, 1)
	f := follow(t, s)
	pool := poolOf(t, f)
	require.Equal(t, s[0].Port, port(t, t.Context(), pool))
	s[0].Stop("fast")
	pgtest.WaitFor(t, "the loss to be seen", func(ctx context.Context) error {
		p := pgfollow.Primary{}
		for p = range f.Changes(ctx) {
			break
		}
		if p.Node != "" {
			return errors.New(p.Node)
		}
		return nil
	})
	for _, hold := range []time.Duration{0, 200 * time.Millisecond} {
		impatient := follow(t, s, pgfollow.Hold(hold))
		pgtest.WaitFor(t, "the error", func(ctx context.Context) error {
			_, err := poolOf(t, impatient).Exec(ctx, `SELECT 1`)
			var none *pgfollow.NoPrimaryError
			if !errors.As(err, &none) || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "not asked yet") {
				return fmt.Errorf("it says: %w", err)
			}
			require.NoError(t, none.Unwrap(), "the caller would have waited")
			require.True(t, pgconn.SafeToRetry(err))
			require.ErrorContains(t, err, fmt.Sprintf("127.0.0.1:%d: is a standby", s[1].Port))
			return nil
		})
	}
	held := make(chan error, 1)
	go func() {
		_, err := pool.Exec(t.Context(), `SELECT 1`)
		held <- err
	}()
	s[0].StartAgain()
	require.NoError(t, within(t, held))
	atOnce := follow(t, s, pgfollow.Hold(0))
	pgtest.WaitFor(t, "a connection without a wait", func(ctx context.Context) error {
		_, err := poolOf(t, atOnce).Exec(ctx, `SELECT 1`)
		return err
	})
	f.Close()
	_, err := f.Wait(t.Context())
	require.NoError(t, err, "what was known last")
}

// Only the follower's own connection ends: those of the pool stay.
func TestFollower_KeepsConnections(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	f := follow(t, s)
	pool := poolOf(t, f)
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	pid := conn.Conn().PgConn().PID()
	conn.Release()
	lost := make(chan pgfollow.Primary, 10)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range f.Changes(ctx) {
			lost <- p
		}
	})
	require.NotEmpty(t, (<-lost).Node)
	s[0].Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_is_in_recovery%' AND pid <> pg_backend_pid() AND pid <> $1`, pid)
	for p := range lost { // it is lost, and there again; the first may be missed
		if p.Node != "" {
			break
		}
	}
	conn, err = pool.Acquire(t.Context())
	require.NoError(t, err)
	require.Equal(t, pid, conn.Conn().PgConn().PID())
	conn.Release()
	cancel()
	wg.Wait()
}

// A primary that has no connection left for the follower lives: those that a pool has go on.
func TestFollower_NoConnectionLeft(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	s[0].Exec(t, `CREATE ROLE app LOGIN`)
	f, err := pgfollow.New(s[0].Conninfo("user=app"), pgfollow.Hold(pgtest.Timeout(30*time.Second)), pgfollow.Interval(50*time.Millisecond), pgfollow.Silence(300*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(f.Close)
	pool := poolOf(t, f)
	pid := func() (pid uint32) {
		require.NoError(t, pool.AcquireFunc(t.Context(), func(c *pgxpool.Conn) error {
			pid = c.Conn().PgConn().PID()
			return nil
		}))
		return pid
	}
	first := pid()
	s[0].Exec(t, `ALTER ROLE app CONNECTION LIMIT 0`)
	s[0].Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND pid <> $1`, first)
	pgtest.WaitFor(t, "the follower to be refused for longer than an answer counts", func(context.Context) error {
		if n := strings.Count(s[0].Log(), "too many connections for role"); n < 20 {
			if n > 0 {
				require.Equal(t, first, pid(), "after %d refusals", n)
			}
			return fmt.Errorf("%d refusals", n)
		}
		return nil
	})
	s[0].Exec(t, `ALTER ROLE app CONNECTION LIMIT -1`)
	looked(t, s[0])
	require.Equal(t, first, pid())
}

// A node of another cluster is never used, and it is said why.
func TestFollower_AnotherCluster(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	at := pgtest.Port(t)
	f := follow(t, []*pgtest.Server{s[0], {Port: at}})
	pool := poolOf(t, f)
	require.Equal(t, s[0].Port, port(t, t.Context(), pool))
	pgtest.Start(t, pgtest.Options{Name: "alien", Fresh: true, Port: at})
	s[0].Kill()
	pgtest.WaitFor(t, "the error", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err := f.Wait(ctx)
		if err == nil || !strings.Contains(err.Error(), "belongs to another cluster") {
			return fmt.Errorf("it says: %w", err)
		}
		return nil
	})
}

// Standbys are read from, but for those that lag too much; what was written is read when that is asked for.
func TestFollower_Standbys(t *testing.T) {
	t.Parallel()
	s := start(t, 1)
	f := follow(t, s, pgfollow.Interval(50*time.Millisecond))
	pool := poolOf(t, f)
	reads, err := f.StandbyPool(t.Context(), pgfollow.Standbys{MaxLag: 1 << 20, OrPrimary: true})
	require.NoError(t, err)
	t.Cleanup(reads.Close)
	onPort := func(ctx context.Context, want int) error {
		var got int
		if err := reads.QueryRow(ctx, `SELECT current_setting('port')::int`).Scan(&got); err != nil || got != want {
			return fmt.Errorf("port %d, %w", got, err)
		}
		return nil
	}
	pgtest.WaitFor(t, "reads on the standby", func(ctx context.Context) error { return onPort(ctx, s[1].Port) })
	for id := range 20 { // each read sees the write before it
		_, err := pool.Exec(t.Context(), `INSERT INTO rows VALUES ($1)`, id)
		require.NoError(t, err)
		lsn, err := pgfollow.Position(t.Context(), pool)
		require.NoError(t, err)
		var n, port int
		require.NoError(t, reads.QueryRow(pgfollow.After(t.Context(), lsn), `SELECT count(*), current_setting('port')::int FROM rows`).Scan(&n, &port))
		require.Equal(t, id+1, n, "on port %d", port)
	}
	sleep := func(on *pgtest.Server) (end func()) { // also where no statement goes any more
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := reads.Exec(ctx, `SELECT pg_sleep(3600)`)
			done <- err
		}()
		asleep := func(want string) {
			pgtest.WaitFor(t, want+" statements on "+on.Name, func(context.Context) error {
				if n := on.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)' AND state = 'active'`); n != want {
					return errors.New(n)
				}
				return nil
			})
		}
		asleep("1")
		return func() {
			cancel()
			require.ErrorIs(t, within(t, done), context.Canceled)
			asleep("0")
		}
	}
	cancelOnStandby := sleep(s[1])
	s[1].Exec(t, `SELECT pg_wal_replay_pause()`)
	_, err = pool.Exec(t.Context(), `INSERT INTO rows SELECT generate_series(1, 100000)`)
	require.NoError(t, err)
	pgtest.WaitFor(t, "reads on the primary", func(ctx context.Context) error { return onPort(ctx, s[0].Port) })
	cancelOnStandby()
	cancelOnPrimary := sleep(s[0])
	s[1].Exec(t, `SELECT pg_wal_replay_resume()`)
	pgtest.WaitFor(t, "reads on the standby again", func(ctx context.Context) error { return onPort(ctx, s[1].Port) })
	cancelOnPrimary()
}

// A standby that hangs is waited for as long as Hold says, or the caller.
func TestFollower_AfterEnds(t *testing.T) {
	t.Parallel()
	s := start(t, 1)
	f := follow(t, s, pgfollow.Hold(time.Second), pgfollow.Silence(time.Minute))
	cfg, err := pgxpool.ParseConfig(s[1].Conninfo())
	require.NoError(t, err)
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	f.AttachStandbys(cfg, pgfollow.Standbys{})
	reads, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(reads.Close)
	pgtest.WaitFor(t, "the standby", reads.Ping)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, reads.Ping(pgfollow.After(short, "FFFFFFFF/0")), context.DeadlineExceeded)
	pgtest.WaitFor(t, "a connection", reads.Ping)
	s[1].Freeze()
	defer s[1].Thaw()
	said := make(chan error, 1)
	go func() { said <- reads.Ping(pgfollow.After(t.Context(), "0/0")) }()
	require.ErrorContains(t, within(t, said), "has not replayed 0/0")
}

// A COMMIT without an answer is never repeated; everything before it is.
func TestRetry(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	f := follow(t, s)
	pool := poolOf(t, f)
	tries := 0
	require.NoError(t, pgfollow.Retry(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO rows VALUES (1)`)
		require.NoError(t, err)
		if tries++; tries == 3 {
			return nil
		}
		s[0].Exec(t, `SELECT pg_terminate_backend($1)`, tx.Conn().PgConn().PID())
		_, err = tx.Exec(t.Context(), `SELECT pg_sleep(30)`)
		require.Error(t, err)
		return err
	}))
	require.Equal(t, 3, tries)
	require.Equal(t, "1", s[0].QueryString(t, `SELECT count(*) FROM rows`))

	mine := errors.New("mine")
	require.ErrorIs(t, pgfollow.Retry(t.Context(), pool, func(pgx.Tx) error { return mine }), mine)

	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, pgfollow.Retry(short, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL transaction_read_only = on`); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `INSERT INTO rows VALUES (2)`)
		return err
	}), pgfollow.ErrNotCommitted)

	// Both commits wait for a standby that does not exist when the server ends, and are repeated by nobody.
	s[0].Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	s[0].Exec(t, `SELECT pg_reload_conf()`)
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	retried, plain := make(chan error, 1), make(chan error, 1)
	for done, insert := range map[chan error]func() error{
		retried: func() error {
			return pgfollow.Retry(t.Context(), pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO rows VALUES (3)`)
				return err
			})
		},
		plain: func() error {
			_, err := db.ExecContext(t.Context(), `INSERT INTO rows VALUES (4)`)
			return err
		},
	} {
		go func() {
			var err error
			for err == nil { // until the setting is in force
				err = insert()
			}
			done <- err
		}()
	}
	pgtest.WaitFor(t, "the commits to wait", func(context.Context) error {
		if n := s[0].QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`); n != "2" {
			return fmt.Errorf("%s wait", n)
		}
		return nil
	})
	before := s[0].QueryString(t, `SELECT count(*) FROM rows WHERE id > 2`)
	s[0].Stop("fast")
	var unknown *pgfollow.CommitUnknownError
	require.ErrorAs(t, within(t, retried), &unknown)
	require.NotZero(t, unknown.Xid)
	require.ErrorContains(t, unknown, "the connection was lost while the answer to COMMIT was awaited")
	require.Error(t, within(t, plain))
	s[0].StartAgain()
	require.Equal(t, "committed", s[0].QueryString(t, fmt.Sprintf(`SELECT pg_xact_status('%d'::xid8)`, unknown.Xid)))
	require.Equal(t, before+" and 2", s[0].QueryString(t, `SELECT count(*) - 2 || ' and 2' FROM rows WHERE id > 2`))
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"host=a port=x", "postgres://a:b:c", "host=a pool_max_conns=0"} {
		_, err := pgfollow.New(bad)
		require.Error(t, err, bad)
	}
	_, err := pgfollow.New("host=a", pgfollow.Interval(0))
	require.ErrorContains(t, err, "Interval (0s)")
}
