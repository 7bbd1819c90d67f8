package repmgrtest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
	"github.com/pgrepmgr/repmgr/repmgrtest"
)

// bareEnv makes this program one whose TestMain knows nothing of repmgrtest.
const bareEnv = "REPMGRTEST_BARE"

func TestMain(m *testing.M) {
	if os.Getenv(bareEnv) != "" {
		os.Exit(m.Run())
	}
	repmgrtest.Main(m)
}

// service is what somebody may have who uses this package: it adds rows all the time, and knows which of them were acknowledged.
type service struct {
	pool *pgxpool.Pool
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	acked []int64
	last  error
}

func startService(t *testing.T, connString string) *service {
	t.Helper()
	f, err := pgfollow.New(connString)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	ctx, stop := context.WithCancel(t.Context())
	s := &service{stop: stop}
	s.pool, err = f.Pool(t.Context())
	require.NoError(t, err)
	t.Cleanup(s.pool.Close)
	_, err = s.pool.Exec(t.Context(), `CREATE TABLE orders (id bigint PRIMARY KEY)`)
	require.NoError(t, err)
	for client := range int64(2) {
		s.wg.Go(func() {
			for id := client; ctx.Err() == nil; id += 2 {
				err := pgfollow.Retry(ctx, s.pool, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1)`, id)
					return err
				})
				s.mu.Lock()
				if s.last = err; err == nil {
					s.acked = append(s.acked, id)
				}
				s.mu.Unlock()
			}
		})
	}
	t.Cleanup(s.wg.Wait)
	t.Cleanup(stop)
	return s
}

// mustWork waits until 50 more orders were acknowledged.
func (s *service) mustWork(t *testing.T) {
	t.Helper()
	count := func() (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.acked), s.last
	}
	before, _ := count()
	pgtest.WaitFor(t, "more orders", func(context.Context) error {
		if n, last := count(); n < before+50 {
			return fmt.Errorf("%d more, last error %w", n-before, last)
		}
		return nil
	})
}

// verify looks for all orders that were acknowledged.
func (s *service) verify(t *testing.T) {
	t.Helper()
	s.stop()
	s.wg.Wait()
	var missing int
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT count(*) FROM unnest($1::bigint[]) AS acked (id) LEFT JOIN orders USING (id) WHERE orders.id IS NULL`, s.acked).Scan(&missing))
	require.Zero(t, missing, "of %d orders that were acknowledged", len(s.acked))
}

// dataDirectory is where a node has its files.
func dataDirectory(t *testing.T, n *repmgrtest.Node) (dir string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), n.ConnString)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	require.NoError(t, conn.QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir))
	return dir
}

// left is an error where the directory is still there, or a process that works in it.
func left(dir string) error {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			return fmt.Errorf("%s works in %s", filepath.Dir(link), cwd)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		return errors.New(dir + " is there")
	}
	return nil
}

// A service goes on through a crash, a switchover, restarts and a server that hangs; no order that was acknowledged is lost; and
// nothing is left of the cluster.
func TestCluster(t *testing.T) {
	t.Parallel()
	var dir string
	t.Run("story", func(t *testing.T) {
		var mu sync.Mutex
		told := map[repmgr.EventType]int{}
		c := repmgrtest.Start(t, repmgrtest.Options{Configure: func(cfg *repmgr.Config) {
			cfg.Notifiers = append(cfg.Notifiers, repmgr.NotifierFunc(func(_ context.Context, e repmgr.Event) error {
				mu.Lock()
				defer mu.Unlock()
				told[e.Type]++
				return nil
			}))
		}})
		dir = filepath.Dir(dataDirectory(t, c.Nodes()[0]))
		require.Error(t, left(dir), "this test sees what is there")
		svc := startService(t, c.ConnString())
		svc.mustWork(t)

		killed := c.KillPrimary(t)
		require.Equal(t, "node1", killed.Name)
		second := c.WaitForPrimary(t)
		require.NotSame(t, killed, second)
		svc.mustWork(t)
		past, err := second.Repmgr.Failovers(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, "node1", past[0].Former)

		third := c.Switchover(t)
		require.NotSame(t, second, third)
		require.Same(t, third, c.WaitForPrimary(t))
		svc.mustWork(t)

		third.Restart(t)
		require.Same(t, third, c.WaitUntilReady(t))
		svc.mustWork(t)
		for _, n := range c.Nodes() {
			if n != third {
				n.Kill(t)
				svc.mustWork(t)
				n.Restart(t)
				break
			}
		}

		require.Same(t, third, c.HangPrimary(t))
		fourth := c.WaitForPrimary(t)
		require.NotSame(t, third, fourth)
		svc.mustWork(t)
		require.Same(t, fourth, c.WaitUntilReady(t), "the one that hung comes back as a standby")
		svc.verify(t)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, 2, told[repmgr.EventFailoverPromote])
		require.Equal(t, 1, told[repmgr.EventSwitchover])
	})
	require.NotEmpty(t, dir)
	require.NoError(t, left(dir))
}

// recording is a test whose failure is only noted.
type recording struct {
	testing.TB
	said string
}

func (r *recording) Helper()                           {}
func (r *recording) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }
func (r *recording) Fatal(args ...any) {
	r.said = fmt.Sprint(args...)
	runtime.Goexit()
}

// failure is how f fails its test.
func failure(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	r := &recording{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(r)
	}()
	<-ended
	return r.said
}

// A test that waits in vain is told why, with the logs of the servers.
func TestWaitForPrimary_Deadline(t *testing.T) {
	c := repmgrtest.Start(t, repmgrtest.Options{Settings: map[string]string{"log_min_messages": "log"}})
	c.Nodes()[1].Kill(t)
	c.Nodes()[0].Kill(t)
	t.Setenv("REPMGR_TEST_TIMEOUT_SCALE", "0.02")
	said := failure(t, func(tb testing.TB) { c.WaitForPrimary(tb) })
	for _, want := range []string{"waited 1.2s for a primary in office: ", "node3: this node is a standby", "\nnode1 (port ", ", down): its Monitor is ", "\nnode3 (port ", ", running): ", "\n\t20", "WAL stream"} {
		require.Contains(t, said, want)
	}
	said = failure(t, func(tb testing.TB) { c.KillPrimary(tb) })
	require.Contains(t, said, "for the cluster to be ready for a failover: ")
}

func TestStart_Refuses(t *testing.T) {
	require.Contains(t, failure(t, func(tb testing.TB) { repmgrtest.Start(tb, repmgrtest.Options{Nodes: 2}) }), "a cluster of 2 nodes can not fail over")
	require.Contains(t, failure(t, func(tb testing.TB) { repmgrtest.Start(tb, repmgrtest.Options{BinDir: "/nowhere"}) }), "ask the PostgreSQL server in /nowhere for its version")
	require.NoError(t, repmgrtest.Available())
	t.Setenv("PGTARGETSESSIONATTRS", "read-write")
	require.ErrorContains(t, repmgrtest.Available(), "unset it")
	t.Setenv("PGTARGETSESSIONATTRS", "")
	t.Setenv("REPMGR_PG_BINDIR", "/nowhere")
	require.ErrorContains(t, repmgrtest.Available(), "/nowhere (REPMGR_PG_BINDIR)")
	t.Setenv("REPMGR_PG_BINDIR", "")
	require.Contains(t, failure(t, func(tb testing.TB) {
		repmgrtest.Start(tb, repmgrtest.Options{Configure: func(cfg *repmgr.Config) { cfg.Failover = repmgr.FailoverManual }})
	}), "leave it automatic")
}

// TestBare is what TestGuard runs in a process of its own.
func TestBare(t *testing.T) {
	how := os.Getenv(bareEnv)
	if how == "" {
		t.Skip("only TestGuard runs it")
	}
	c := repmgrtest.Start(t, repmgrtest.Options{})
	fmt.Fprintln(os.Stderr, "ready", dataDirectory(t, c.Nodes()[0]))
	switch how {
	case "panic":
		go func() { panic("elsewhere") }() // no cleanup runs
		select {}
	case "kill":
		c.KillPrimary(t) // the Monitor starts that again: it is no child of this process
		c.WaitUntilReady(t)
		c.HangPrimary(t)
		fmt.Fprintln(os.Stderr, "hangs")
		select {}
	}
}

// However the process of the tests ends, nothing is left of it, also where its TestMain is not ours.
func TestGuard(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"end", "panic", "kill"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBare$")
			for _, kv := range os.Environ() {
				if !strings.HasPrefix(kv, "REPMGR_PGTEST_BASE=") {
					cmd.Env = append(cmd.Env, kv)
				}
			}
			cmd.Env = append(cmd.Env, bareEnv+"="+how)
			var said bytes.Buffer
			cmd.Stdout = &said
			out, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			var base, last string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				t.Log(lines.Text())
				if last == "" || strings.HasPrefix(lines.Text(), "panic: ") || lines.Text() == "hangs" {
					last, _, _ = strings.Cut(lines.Text(), " ")
				}
				if dir, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
					base = filepath.Dir(filepath.Dir(dir))
					require.Error(t, left(base))
				}
				if lines.Text() == "hangs" {
					require.NoError(t, cmd.Process.Kill())
				}
			}
			err = cmd.Wait()
			require.Equal(t, how == "end", err == nil, "%v\n%s", err, &said)
			require.Equal(t, map[string]string{"end": "ready", "panic": "panic:", "kill": "hangs"}[how], last, &said)
			require.NotEmpty(t, base)
			require.True(t, strings.HasPrefix(filepath.Base(base), "pgtest-"), base)
			pgtest.WaitFor(t, "nothing to be left", func(context.Context) error { return left(base) })
		})
	}
}
