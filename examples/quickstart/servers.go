package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr"
)

const (
	startLimit = 60 * time.Second // for a server to answer
	stopLimit  = 10 * time.Second // for a server to be gone
)

// settings of all servers, because standbys inherit them from node1. fsync is
// off for the demo's speed alone.
const settings = `
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = %d
fsync = off
shared_buffers = 64MB
max_wal_size = 256MB
wal_keep_size = 256MB
wal_log_hints = on
dynamic_shared_memory_type = mmap
dynamic_shared_memory_type = mmap
log_min_messages = warning
`

// machine runs the programs that are none of the library's business: initdb,
// postgres, pgbench. All that they write lies in dir.
type machine struct {
	dir     string
	bin     string // where PostgreSQL's programs are
	servers []*server
	tasks   []*task
}

func newMachine() (*machine, error) {
	if os.Geteuid() == 0 {
		return nil, errors.New("PostgreSQL does not run as root: use scripts/demo, or be another user")
	}
	m := &machine{bin: os.Getenv("REPMGR_PG_BINDIR")}
	if m.bin == "" {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
		slices.SortFunc(found, func(a, b string) int { return major(b) - major(a) })
		if len(found) > 0 {
			m.bin = filepath.Dir(found[0])
		} else if path, err := exec.LookPath("postgres"); err == nil {
			m.bin = filepath.Dir(path)
		} else {
			return nil, errors.New("no PostgreSQL server found: install it (scripts/deps does), or set REPMGR_PG_BINDIR")
		}
	}
	dir, err := os.MkdirTemp("", "repmgr-")
	if err != nil {
		return nil, err
	}
	m.dir, err = filepath.EvalSymlinks(dir)
	return m, err
}

// major is the version in a path like /usr/lib/postgresql/15/bin/postgres.
func major(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// close stops whatever runs and removes the directory.
func (m *machine) close() error {
	var errs []error
	for _, t := range m.tasks {
		t.kill()
	}
	for _, s := range slices.Backward(m.servers) {
		errs = append(errs, s.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

// program is a command that can not outlive us, and that ctrl-C does not reach
// before we have heard of it ourselves.
func (m *machine) program(name string, args ...string) *exec.Cmd {
	path := filepath.Join(m.bin, name)
	if _, err := os.Stat(path); err != nil && name == "pgbench" {
		path = name // not every installation keeps it with the server; that of another version does as well
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = m.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start starts cmd; the channel is closed when it has ended. Pdeathsig means
// the death of the thread that started it: that one waits here as long.
func start(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its output says why it ended
		}
	}()
	return done, <-started
}

// run runs a program to its end.
func (m *machine) run(ctx context.Context, name string, args ...string) error {
	var out bytes.Buffer
	cmd := m.program(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	ended, err := start(cmd)
	if err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		return fmt.Errorf("run %s: %w", name, context.Cause(ctx))
	}
	if !cmd.ProcessState.Success() {
		return fmt.Errorf("run %s: %s: %s", name, cmd.ProcessState, strings.TrimSpace(out.String()))
	}
	return nil
}

// task is a program in the background. It is ended with the machine at the latest.
type task struct {
	cmd   *exec.Cmd
	ended <-chan struct{}
	out   bytes.Buffer
}

func (m *machine) background(name string, args ...string) (*task, error) {
	t := &task{cmd: m.program(name, args...)}
	t.cmd.Stdout, t.cmd.Stderr = &t.out, &t.out
	var err error
	if t.ended, err = start(t.cmd); err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	m.tasks = append(m.tasks, t)
	return t, nil
}

// wait waits for the program's end, and returns what it printed.
func (t *task) wait(ctx context.Context) (string, error) {
	select {
	case <-t.ended:
		return t.out.String(), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (t *task) kill() {
	_ = t.cmd.Process.Kill()
	<-t.ended
}

// server is a PostgreSQL server, or the place where one will be.
type server struct {
	m     *machine
	name  string
	port  int
	dir   string // data directory
	ended <-chan struct{}
}

// place makes room for a server, with its three lines of repmgr.conf.
func (m *machine) place(id int) (*server, string, error) {
	port, err := m.freePort()
	if err != nil {
		return nil, "", err
	}
	s := &server{m: m, name: fmt.Sprintf("node%d", id), port: port}
	home := filepath.Join(m.dir, s.name)
	s.dir = filepath.Join(home, "data")
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, "", err
	}
	m.servers = append(m.servers, s)
	conf := filepath.Join(home, "repmgr.conf")
	text := fmt.Sprintf("cluster=demo\nnode=%d\nconninfo='%s'\n", id, s.conninfo())
	return s, conf, os.WriteFile(conf, []byte(text), 0o600)
}

// freePort looks for one that nobody listens on, at no address, below the ports that the kernel gives to outgoing connections.
func (m *machine) freePort() (int, error) {
	var err error
	for range 1000 {
		port := 10_000 + rand.IntN(10_000)
		if slices.ContainsFunc(m.servers, func(s *server) bool { return s.port == port }) {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

func (s *server) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", s.port)
}

// initdb makes the data directory of a new primary.
func (s *server) initdb(ctx context.Context) error {
	if err := s.m.run(ctx, "initdb", "-D", s.dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, settings, s.port)
	return errors.Join(err, f.Close())
}

// start starts the server as our child and waits until it answers.
func (s *server) start(ctx context.Context) error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.m.program("postgres", "-D", s.dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // PostgreSQL's immediate stop, of its children too
	ended, err := start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.ended = ended
	return until(ctx, startLimit, s.name+" to answer", func(ctx context.Context) error {
		select {
		case <-s.ended:
			return final{fmt.Errorf("start %s: the server ended", s.name)}
		default:
		}
		n, err := repmgr.Connect(ctx, s.conninfo())
		if err == nil {
			n.Close()
		}
		return err
	})
}

func (s *server) logFile() string { return filepath.Join(s.m.dir, s.name, "log") }

// logTail is the end of the server's log.
func (s *server) logTail(n int) string {
	b, _ := os.ReadFile(s.logFile())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// stop ends the server at once. Its data is to be thrown away.
func (s *server) stop() error {
	if s.ended == nil {
		return nil
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "postmaster.pid")); err == nil {
		first, _, _ := strings.Cut(string(b), "\n")
		if pid, err := strconv.Atoi(first); err == nil && slices.Contains(s.processes(), pid) {
			_ = syscall.Kill(pid, syscall.SIGQUIT)
			err := until(context.Background(), stopLimit, s.name+" to stop", s.gone)
			if err == nil {
				return nil
			}
		}
	}
	_, err := s.kill()
	return err
}

// kill is a power cut: SIGKILL for every process of the server, not only the
// postmaster, whose orphans would go on and could still commit. It returns
// how many there were, when all are gone.
func (s *server) kill() (int, error) {
	segment := s.sharedMemory()
	killed := map[int]bool{}
	err := until(context.Background(), stopLimit, s.name+" to be gone", func(ctx context.Context) error {
		pids := s.processes()
		if len(pids) > 0 { // the postmaster first, which would start others; then whoever came last
			slices.Reverse(pids[1:])
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			killed[pid] = true
		}
		return s.gone(ctx)
	})
	if segment != 0 && err == nil { // the kernel keeps it for a server that never comes back
		_, _ = unix.SysvShmCtl(segment, unix.IPC_RMID, nil)
	}
	return len(killed), err
}

func (s *server) gone(context.Context) error {
	if n := len(s.processes()); n > 0 {
		return fmt.Errorf("%d processes", n)
	}
	<-s.ended
	return nil
}

// processes are those whose working directory is the data directory: the
// postmaster and all its children, in the order in which they were started.
func (s *server) processes() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && cwd == s.dir {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// sharedMemory is the id of the server's System V segment, as postmaster.pid has it.
func (s *server) sharedMemory() int {
	b, _ := os.ReadFile(filepath.Join(s.dir, "postmaster.pid"))
	if lines := strings.Split(string(b), "\n"); len(lines) > 6 {
		if f := strings.Fields(lines[6]); len(f) == 2 {
			id, _ := strconv.Atoi(f[1])
			return id
		}
	}
	return 0
}

// final is an error that waiting does not mend.
type final struct{ error }

// until calls ok every 10 milliseconds until it returns nil.
func until(ctx context.Context, limit time.Duration, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok(ctx)
		if err == nil || errors.As(err, new(final)) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (%w)", what, context.Cause(ctx), err)
		}
	}
}
