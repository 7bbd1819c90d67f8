package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Options say how a server differs from the usual one. The zero value is a
// server that trusts every connection of this machine, without fsync, ready for
// ten standbys.
type Options struct {
	Name             string            // label in the test's log, and application_name of a standby. Defaults to "pgPORT".
	Dir              string            // data directory to make. Defaults to one in t.TempDir().
	Port             int               // Defaults to Port(t).
	BinDir           string            // directory of initdb and postgres. Defaults to REPMGR_PG_BINDIR; see the package.
	Settings         map[string]string // for postgresql.conf
	HBA              []string          // lines for pg_hba.conf, before the usual ones
	Password         string            // when set, TCP connections of every user need it (scram-sha-256)
	Locale           string            // Defaults to C.UTF-8.
	WALSegmentSizeMB int               // Defaults to initdb's 16.
	InitdbArgs       []string          // further arguments for initdb
	Fresh            bool              // run initdb: without it all servers here have the same system identifier
	Slot             string            // for NewStandby: the physical slot to make on the primary and to use
}

// Server is one PostgreSQL server on 127.0.0.1. It is stopped when its test
// ends, and its log is shown if the test failed. Not safe for concurrent use,
// except for Conninfo, Conn, Exec and the queries.
type Server struct {
	Name      string
	Dir       string // data directory, without symbolic links
	Port      int
	BinDir    string
	SocketDir string // of its Unix socket; connections through it are always trusted
	Major     int

	t        testing.TB
	password string
	log      string          // path
	ended    <-chan struct{} // closed when the postmaster that we started has ended; nil before
}

// Start makes and starts a primary and waits until it answers.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, in := newServer(t, o)
	if err := dataDirectory(in, s.Dir, o); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s.configure(o, usual)
	if err := s.writeHBA(o); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s.StartAgain()
	if o.Password != "" {
		c := s.connectLocally()
		defer c.Close(context.Background())
		if _, err := c.Exec(context.Background(), `SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD '`+strings.ReplaceAll(o.Password, "'", "''")+`'`); err != nil {
			t.Fatalf("pgtest: set password: %v", err)
		}
	}
	return s
}

// StartDir starts an existing data directory, such as a clone, and waits until
// it answers. The port, the socket's directory and o.Settings are added at the
// end of its postgresql.conf; pg_hba.conf stays as it is.
func StartDir(t testing.TB, dir string, o Options) *Server {
	t.Helper()
	s := Prepare(t, dir, o)
	s.StartAgain()
	return s
}

// Prepare is StartDir without starting: the program under test, or StartAgain,
// does that.
func Prepare(t testing.TB, dir string, o Options) *Server {
	t.Helper()
	o.Dir = dir
	s, _ := newServer(t, o)
	s.configure(o, nil)
	return s
}

func newServer(t testing.TB, o Options) (*Server, install) {
	t.Helper()
	base := base()
	if base == "" {
		t.Fatal("pgtest: the package's TestMain must call pgtest.Main")
	}
	in, err := findInstall(o.BinDir)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s := &Server{Name: o.Name, Dir: o.Dir, Port: o.Port, BinDir: in.dir, Major: in.major, t: t, password: o.Password}
	if s.Port == 0 {
		s.Port = Port(t)
	}
	if s.Name == "" {
		s.Name = fmt.Sprintf("pg%d", s.Port)
	}
	if s.Dir == "" {
		s.Dir = filepath.Join(t.TempDir(), "data")
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(s.Dir))
	if err != nil {
		t.Fatalf("pgtest: find data directory: %v", err)
	}
	s.Dir = filepath.Join(parent, filepath.Base(s.Dir))
	if s.SocketDir, err = os.MkdirTemp(base, "s"); err != nil {
		t.Fatalf("pgtest: make socket directory: %v", err)
	}
	s.log = filepath.Join(s.SocketDir, "log")
	t.Cleanup(s.cleanup)
	return s, in
}

// usual settings of a new server: small, quick, and all that replication needs.
var usual = map[string]string{
	"fsync": "off", "shared_buffers": "16MB", "huge_pages": "off", "jit": "off", "max_connections": "100",
	"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "hot_standby": "on", "wal_log_hints": "on",
	"timezone": "UTC", "log_timezone": "UTC", "lc_messages": "C", "log_line_prefix": "%m [%p] %q%a ", "logging_collector": "off",
	// Killed servers leave nothing behind in /dev/shm.
	"dynamic_shared_memory_type": "mmap",
}

// configure adds to postgresql.conf: ALTER SYSTEM still overrides it, and a
// server that others start listens in the same place.
func (s *Server) configure(o Options, usual map[string]string) {
	s.t.Helper()
	settings := map[string]string{"listen_addresses": "127.0.0.1", "port": strconv.Itoa(s.Port), "unix_socket_directories": s.SocketDir}
	maps.Copy(settings, usual)
	maps.Copy(settings, o.Settings)
	var b strings.Builder
	b.WriteString("\n# pgtest\n")
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = %s\n", k, quoteSetting(settings[k]))
	}
	if err := appendFile(filepath.Join(s.Dir, "postgresql.conf"), b.String()); err != nil {
		s.t.Fatalf("pgtest: configure %s: %v", s.Name, err)
	}
}

func quoteSetting(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(v) + "'"
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (s *Server) writeHBA(o Options) error {
	method := "trust"
	if o.Password != "" {
		method = "scram-sha-256"
	}
	lines := append(slices.Clone(o.HBA),
		"local all all trust", "local replication all trust",
		"host all all 127.0.0.1/32 "+method, "host replication all 127.0.0.1/32 "+method)
	return os.WriteFile(filepath.Join(s.Dir, "pg_hba.conf"), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// StartAgain starts a stopped server and waits until it answers.
func (s *Server) StartAgain() {
	s.t.Helper()
	if err := s.TryStart(); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
}

// TryStart is StartAgain for a server that may refuse to start. The error ends
// with the end of the server's log.
func (s *Server) TryStart() error {
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.BinDir, "postgres"), "-D", s.Dir, "-p", strconv.Itoa(s.Port)) // a clone may bring a port in its postgresql.auto.conf
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	// SIGQUIT: a server whose test is dead stops at once and frees its memory.
	if s.ended, err = startTied(cmd, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	err = poll(patience(), func(ctx context.Context) error {
		select {
		case <-s.ended:
			return final{errors.New("the server ended")}
		default:
		}
		return s.answers(ctx)
	})
	if err == nil {
		err = s.listens()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w\n%s", s.Name, err, tail(s.Log(), 30))
	}
	return nil
}

// answers tries a whole query through the Unix socket.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout(5*time.Second))
	defer cancel()
	c, err := pgx.Connect(ctx, s.socketConninfo())
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && strings.HasPrefix(refused.Code, "28") {
		return nil // pg_hba.conf is not ours, but the server does answer
	}
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	return c.Ping(ctx)
}

// listens tries that what listens on the port is the server, or that nothing is:
// a test may have chosen other addresses.
func (s *Server) listens() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout(5*time.Second))
	defer cancel()
	c, err := pgx.Connect(ctx, s.Conninfo("sslmode=disable"))
	if err != nil {
		return nil //nolint:nilerr // nobody can write there
	}
	defer c.Close(ctx)
	return s.owns(c)
}

// owns proves that a connection leads to the server and to no other one that has
// got its port: the process at its end works in the data directory.
func (s *Server) owns(c *pgx.Conn) error {
	if s.Dir == "" {
		return nil // nobody knows
	}
	want, err := filepath.EvalSymlinks(s.Dir)
	if err != nil {
		return fmt.Errorf("prove that port %d is that of %s: %w", s.Port, s.Name, err)
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.PgConn().PID()))
	switch {
	case err != nil:
		return fmt.Errorf("the server on port %d is not %s, or has just died: %w", s.Port, s.Name, err)
	case dir != want:
		return fmt.Errorf("the server on port %d is not %s in %s: it works in %s", s.Port, s.Name, want, dir)
	}
	return nil
}

func (s *Server) socketConninfo() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable application_name=pgtest", s.SocketDir, s.Port)
}

// Conninfo is the conninfo for TCP, followed by extra keywords, such as
// "application_name=node2"; they win over the usual ones.
func (s *Server) Conninfo(extra ...string) string {
	c := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", s.Port)
	if s.password != "" {
		c += " password=" + quoteConninfo(s.password)
	}
	return strings.Join(append([]string{c}, extra...), " ")
}

func quoteConninfo(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// Conn connects through TCP. The connection is closed when t ends.
func (s *Server) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	c := connect(t, s.Conninfo("sslmode=disable"))
	if err := s.owns(c); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return c
}

func (s *Server) connectLocally() *pgx.Conn {
	s.t.Helper()
	return connect(s.t, s.socketConninfo())
}

func connect(t testing.TB, conninfo string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	c, err := pgx.Connect(ctx, conninfo)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

// Exec executes sql in a connection of its own. Several statements, joined by
// semicolons, may go without args.
func (s *Server) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	err := s.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, sql, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %s: %v", s.Name, sql, err)
	}
}

// QueryString returns the only value of sql's result as psql would print it;
// NULL is the empty string.
func (s *Server) QueryString(t testing.TB, sql string, args ...any) string {
	t.Helper()
	v := Query[*string](t, s, sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if v == nil {
		return ""
	}
	return *v
}

// Query returns the only value of sql's result.
func Query[T any](t testing.TB, s *Server, sql string, args ...any) (value T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	err := s.with(ctx, func(c *pgx.Conn) error { return c.QueryRow(ctx, sql, args...).Scan(&value) })
	if err != nil {
		t.Fatalf("%s: %s: %v", s.Name, sql, err)
	}
	return value
}

// with lends fn a new TCP connection.
func (s *Server) with(ctx context.Context, fn func(*pgx.Conn) error) error {
	c, err := pgx.Connect(ctx, s.Conninfo("sslmode=disable"))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if err := s.owns(c); err != nil {
		return err
	}
	return fn(c)
}

// Started says whether any process of the server lives.
func (s *Server) Started() bool { return len(running(s.Dir)) > 0 }

// Freeze stops all processes of the server, also those that it forks meanwhile.
func (s *Server) Freeze() {
	s.t.Helper()
	if err := s.TryFreeze(); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
}

// TryFreeze is Freeze with an error.
func (s *Server) TryFreeze() error {
	stopped := map[int]bool{}
	for more := true; more; {
		more = false
		for _, pid := range running(s.Dir) {
			if !stopped[pid] && stop(pid) {
				stopped[pid], more = true, true
			}
		}
	}
	if len(stopped) == 0 {
		return fmt.Errorf("freeze %s: it does not run", s.Name)
	}
	return nil
}

// Thaw lets them go on.
func (s *Server) Thaw() {
	for _, pid := range running(s.Dir) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// Signal sends a signal to the postmaster, whoever started it.
func (s *Server) Signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.signal(signal); err != nil {
		s.t.Fatalf("pgtest: signal %s: %v", s.Name, err)
	}
}

func (s *Server) signal(signal syscall.Signal) error {
	b, err := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return fmt.Errorf("read postmaster.pid: %w", err)
	}
	return syscall.Kill(pid, signal)
}

// Stop stops the server and waits until all its processes are gone. The mode is
// pg_ctl's: smart, fast or immediate.
func (s *Server) Stop(mode string) {
	s.t.Helper()
	if err := s.TryStop(mode); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
}

// TryStop is Stop with an error.
func (s *Server) TryStop(mode string) error {
	signal, ok := map[string]syscall.Signal{"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("stop mode is %q, want smart, fast or immediate", mode)
	}
	err := s.signal(signal)
	if err == nil {
		err = s.gone(func([]int) {})
	}
	if err != nil {
		return fmt.Errorf("stop %s (%s): %w", s.Name, mode, err)
	}
	return nil
}

// Kill sends SIGKILL to every process of the server and waits until all are
// gone, as after a power cut.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.TryKill(); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
}

// TryKill is Kill with an error.
func (s *Server) TryKill() error {
	if err := s.gone(killAll); err != nil {
		return fmt.Errorf("kill %s: %w", s.Name, err)
	}
	return nil
}

func killAll(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// gone waits until no process of the server lives and our child is reaped. It calls each with
// those that are left. Looking through all processes of the machine costs much, so it is done
// again only when those that were found are gone.
func (s *Server) gone(each func(pids []int)) error {
	var left []int
	return poll(patience(), func(context.Context) error {
		if left = slices.DeleteFunc(left, func(pid int) bool { return !worksIn(pid, s.Dir) }); len(left) == 0 {
			left = running(s.Dir)
		}
		if each(left); len(left) > 0 {
			return fmt.Errorf("still running: %v", left)
		}
		if s.ended != nil {
			<-s.ended
		}
		return nil
	})
}

// Restart stops the server fast and starts it.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop("fast")
	s.StartAgain()
}

// Log is what the server has written to its log so far, as far as we started it.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.log)
	return string(b)
}

func (s *Server) cleanup() {
	if s.t.Failed() {
		s.t.Logf("log of %s (port %d, %s):\n%s", s.Name, s.Port, s.Dir, tail(s.Log(), 200))
	}
	segment := s.sharedMemory()
	if s.Started() {
		_ = s.signal(syscall.SIGCONT)
		_ = s.signal(syscall.SIGQUIT)
	}
	deadline := time.Now().Add(Timeout(3 * time.Second))
	err := s.gone(func(left []int) {
		if time.Now().After(deadline) {
			killAll(left)
		}
	})
	if err != nil {
		s.t.Errorf("pgtest: stop %s: %v", s.Name, err)
	}
	if segment != 0 {
		// A killed server's System V segment stays; there are only so many.
		const ipcRmid = 0
		_, _, _ = syscall.Syscall(syscall.SYS_SHMCTL, segment, ipcRmid, 0)
	}
	_ = os.RemoveAll(s.SocketDir)
}

// sharedMemory is the identifier of the System V segment that postmaster.pid
// names in its seventh line, or 0.
func (s *Server) sharedMemory() uintptr {
	b, _ := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	lines := strings.Split(string(b), "\n")
	if len(lines) < 7 {
		return 0
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return 0
	}
	id, _ := strconv.Atoi(fields[1])
	return uintptr(id)
}

// tail is the last n lines of text.
func tail(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n-1):], "")
}
