package postmaster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/postgres"
)

// serverOf is the local server of a test's PostgreSQL.
func serverOf(t *testing.T, s *pgtest.Server, change ...func(*Options)) *Server {
	t.Helper()
	o := Options{BinDir: s.BinDir, StartTimeout: time.Minute, StopTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	dir, err := filepath.EvalSymlinks(s.Dir)
	require.NoError(t, err)
	server := &Server{o, dir}
	require.NoError(t, server.MayControl())
	return server
}

// keepCommitting leaves a backend behind that commits row after row, and never
// sleeps: only then does it not notice the death of its postmaster.
func keepCommitting(t *testing.T, s *pgtest.Server) {
	t.Helper()
	s.Exec(t, `CREATE TABLE busy (at timestamptz)`)
	conn := s.Conn(t)
	ctx, cancel := context.WithTimeout(context.Background(), pgtest.Timeout(waitBusy))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = conn.Exec(ctx, `DO $$ BEGIN FOR i IN 1..1000000 LOOP INSERT INTO busy VALUES (clock_timestamp()); COMMIT; END LOOP; END $$`)
	}()
	t.Cleanup(func() { cancel(); <-done })
	pgtest.WaitFor(t, "the backend to commit", func(context.Context) error {
		if pgtest.Query[int](t, s, `SELECT count(*) FROM busy`) < 5 {
			return errors.New("no rows yet")
		}
		return nil
	})
}

const waitBusy = 30 * time.Second

func postmasterPID(t *testing.T, s *pgtest.Server) int {
	t.Helper()
	pid := PID(s.Dir)
	require.NotZero(t, pid)
	return pid
}

// A busy backend goes on committing when its postmaster is dead. Afterwards
// nothing of the server lives, and it can be started.
func TestServer_EndsWhatADeadPostmasterLeaves(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Server, context.Context) error{
		"kill":  func(s *Server, ctx context.Context) error { return s.kill(ctx, s.Processes) },
		"fence": (*Server).Fence,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pg := pgtest.Start(t, pgtest.Options{})
			server := serverOf(t, pg)
			keepCommitting(t, pg)
			require.Empty(t, server.leftovers(), "the postmaster lives")
			before := postmasterPID(t, pg)
			require.NoError(t, server.kill(t.Context(), server.leftovers), "somebody else has started it")
			require.Equal(t, before, postmasterPID(t, pg), "a server that runs is left alone")
			require.NoError(t, syscall.Kill(postmasterPID(t, pg), syscall.SIGKILL))
			pgtest.WaitFor(t, "the postmaster to die", func(context.Context) error {
				if server.Runs() {
					return errors.New("it runs")
				}
				return nil
			})
			left := server.leftovers()
			require.NotEmpty(t, left, "a busy backend survives its postmaster")
			start := time.Now()
			require.NoError(t, end(server, t.Context()))
			t.Logf("%d leftovers gone after %s", len(left), time.Since(start))
			require.Empty(t, server.Processes())

			start = time.Now()
			require.NoError(t, server.Start(t.Context()))
			t.Logf("started after %s", time.Since(start))
			require.True(t, server.Runs())
			require.NoError(t, server.Start(t.Context()), "twice is harmless")
			require.GreaterOrEqual(t, pgtest.Query[int](t, pg, `SELECT count(*) FROM busy`), 5)
		})
	}
}

// The fence holds also where the postmaster can not do anything any more.
func TestServer_FencesAStoppedPostmaster(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.Options{})
	server := serverOf(t, pg)
	keepCommitting(t, pg)
	pg.Signal(syscall.SIGSTOP)
	pgtest.WaitFor(t, "the postmaster to stop", func(context.Context) error {
		if state := State(postmasterPID(t, pg)); state != 'T' {
			return fmt.Errorf("state %c", state)
		}
		return nil
	})
	start := time.Now()
	require.NoError(t, server.Fence(t.Context()))
	t.Logf("fenced after %s", time.Since(start))
	require.Empty(t, server.Processes())
}

// An ordinary server is fenced in well under the grace that its postmaster gets,
// and comes back as a standby of nobody.
func TestServer_FencesAndStartsDetached(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.Options{})
	server := serverOf(t, pg)
	keepCommitting(t, pg)
	start := time.Now()
	require.NoError(t, server.Fence(t.Context()))
	t.Logf("fenced after %s", time.Since(start))
	require.Empty(t, server.Processes())
	require.NoError(t, server.Fence(t.Context()), "twice is harmless")
	start = time.Now()
	require.NoError(t, server.Detach())
	var said bytes.Buffer
	server.Logger = slog.New(slog.NewTextHandler(&said, nil))
	require.NoError(t, server.Start(t.Context()))
	t.Logf("started detached after %s", time.Since(start))
	output := filepath.Join(pg.Dir, "repmgr-start.log")
	require.Contains(t, said.String(), "output="+output)
	text, err := os.ReadFile(output)
	require.NoError(t, err)
	require.Contains(t, string(text), "entering standby mode", "it collects no log")
	pgtest.WaitFor(t, "the standby to answer", func(ctx context.Context) error {
		n, err := pgx.Connect(ctx, pg.Conninfo())
		if err == nil {
			_ = n.Close(ctx)
		}
		return err
	})
	require.True(t, pgtest.Query[bool](t, pg, `SELECT pg_is_in_recovery()`))
	require.Equal(t, "0", pg.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`))
	require.True(t, server.Serves(int(pg.Conn(t).PgConn().PID()))) // of a session that stays
	require.False(t, server.Serves(os.Getpid()))
	require.NoError(t, server.Stop(t.Context()))
	require.Empty(t, server.Processes())
}

// Containers that share the process IDs have the same path of the data directory, and another directory there.
func TestServer_ServesThisDirectory(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	server := &Server{Dir: dir}
	for name, c := range map[string]struct {
		script string
		want   bool
	}{
		"the directory, in another mount namespace":     {"cd " + dir, true},
		"another directory, in another mount namespace": {"mount --bind " + other + " " + dir + " && cd " + dir, false},
	} {
		cmd := exec.Command("unshare", "--map-root-user", "--mount", "sh", "-c", c.script+" && pwd && exec cat")
		stay, err := cmd.StdinPipe()
		require.NoError(t, err)
		said, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(said).ReadString('\n')
		require.NoError(t, err, "unshare needs user namespaces")
		require.Equal(t, dir+"\n", line)
		got := server.Serves(cmd.Process.Pid)
		require.NoError(t, stay.Close())
		require.NoError(t, cmd.Wait())
		require.Equal(t, c.want, got, name)
	}
}

// A server that does not start says why, at once.
func TestServer_SaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.Options{})
	pg.Stop("fast")
	broken := serverOf(t, pg, func(o *Options) { o.StartCommand = "echo not today; exit 3" })
	err := broken.Start(t.Context())
	require.ErrorIs(t, err, failure.ErrServerControl)
	require.ErrorContains(t, err, "not today")

	ctl := serverOf(t, pg, func(o *Options) { o.PgCtlOptions = fmt.Sprintf("-o '-p %d'", pg.Port) })
	require.NoError(t, ctl.Start(t.Context()))
	require.Equal(t, "1", pg.QueryString(t, `SELECT 1`))
	require.NoError(t, ctl.Stop(t.Context()))

	conf := filepath.Join(pg.Dir, "postgresql.auto.conf")
	require.NoError(t, os.WriteFile(conf, []byte("no_such_setting = 1\n"), 0o600))
	start := time.Now()
	err = serverOf(t, pg).Start(t.Context())
	require.ErrorIs(t, err, failure.ErrServerControl)
	require.ErrorContains(t, err, "no_such_setting")
	require.NotEmpty(t, failure.Hint(err))
	t.Logf("told after %s", time.Since(start))
}

// A shell in the data directory, and a server of another directory, are not ours.
func TestServer_TouchesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	one, two := pgtest.Start(t, pgtest.Options{}), pgtest.Start(t, pgtest.Options{})
	require.NoError(t, serverOf(t, one).Fence(t.Context()))
	require.Equal(t, "1", two.QueryString(t, `SELECT 1`))
	require.Error(t, (&Server{Dir: "/proc/1"}).MayControl(), "it is another user's")
}

// endsSession is a server that is stopped between its answer and the look at its processes.
type endsSession struct{ stop func() }

func (e endsSession) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (e endsSession) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { e.stop() }

// A server that is being stopped is not taken for one of another machine.
func TestServer_IsAt(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.Options{})
	server := serverOf(t, pg)
	n := &postgres.Server{Name: "the server", Conninfo: pg.Conninfo(), Conn: pg.Conn(t)}
	here, err := server.IsAt(t.Context(), n)
	require.NoError(t, err)
	require.True(t, here)
	here, err = (&Server{server.Options, t.TempDir()}).IsAt(t.Context(), n)
	require.NoError(t, err)
	require.False(t, here)

	cfg, err := postgres.ConnConfig(pg.Conninfo())
	require.NoError(t, err)
	cfg.Tracer, cfg.AfterConnect = endsSession{sync.OnceFunc(func() { pg.Stop("immediate") })}, nil
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	n.Conn = conn
	_, err = server.IsAt(t.Context(), n)
	require.ErrorIs(t, err, failure.ErrConnect)
}
