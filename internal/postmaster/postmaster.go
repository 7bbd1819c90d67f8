package postmaster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
)

// Options are what an operator may say of the server.
type Options struct {
	BinDir          string        // of PostgreSQL's programs. Empty: they are looked for.
	ConfigDirectory string        // where postgresql.conf lies outside of the data directory
	StartCommand    string        // in the place of starting it ourselves
	StopCommand     string        // and of stopping it
	PgCtlOptions    string        // for pg_ctl start
	StartTimeout    time.Duration // standby_reconnect_timeout
	StopTimeout     time.Duration // shutdown_check_timeout
	Logger          *slog.Logger
}

// Server is the server of a data directory on this machine, running or
// not. It goes by the processes that work in the directory, not by what a
// connection says: that is how it can tell that a server is really gone. It
// keeps no state; its methods may be called at any time.
type Server struct {
	Options
	Dir string // absolute, without symbolic links
}

const (
	// immediateGrace is how long a postmaster gets to end its processes itself,
	// once told to stop immediately, before all of them are killed.
	immediateGrace = 500 * time.Millisecond
	// killLimit bounds the wait for processes that were killed. Only one that
	// hangs in the kernel, on a dead disk, takes longer.
	killLimit = 10 * time.Second
	// processPoll is how often processes and the state of a start are looked at.
	processPoll = 2 * time.Millisecond
	// startLogName is the file, in the data directory, that takes what a server
	// started by us writes where it does not collect its log itself.
	startLogName = "repmgr-start.log"
)

// MayControl says whether this process can stop and start the server at all: an
// error means that it can not fence.
func (s *Server) MayControl() error {
	info, err := os.Stat(s.Dir)
	if err != nil {
		return failure.WithHint(failure.Of(failure.ErrDirectory, "look at the data directory: %w", err), "Is data_directory in repmgr.conf right, and does this user see it?")
	}
	if _, err := os.Stat("/proc/self/cwd"); err != nil {
		return failure.WithHint(failure.Of(failure.ErrRefused, "there is no /proc here: the processes of %s can not be found", s.Dir), "Mount /proc.")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return failure.WithHint(failure.Of(failure.ErrRefused, "%s belongs to user ID %d, and this process runs as %d: it can not stop or start that server", s.Dir, st.Uid, os.Geteuid()),
			"Run it as the operating system user that runs PostgreSQL.")
	}
	return nil
}

// Serves says whether backend, the process at the other end of a connection
// (pg_backend_pid), is one of this server. On another machine, or in another
// container, it is not, whatever the paths are called.
func (s *Server) Serves(backend int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", backend))
	return err == nil && cwd == s.Dir
}

// IsAt reports whether the server at the other end of n is this one. A session that
// ends meanwhile, as that of a server which is being stopped, is an error: its process
// is gone, and that says nothing of where it ran.
func (s *Server) IsAt(ctx context.Context, n *postgres.Server) (bool, error) {
	var backend int
	ask := func() error {
		if err := n.Conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
			return n.QueryError("ask for the process", err)
		}
		return nil
	}
	if err := ask(); err != nil || s.Serves(backend) {
		return err == nil, err
	}
	return false, ask()
}

// Processes are the living processes of the server: those of PostgreSQL that
// work in its data directory, orphans of a dead postmaster too. What ended and
// was not waited for yet (a zombie) works nowhere any more.
func (s *Server) Processes() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && s.Serves(pid) && isPostgres(pid) && processAlive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isPostgres keeps a shell or an editor that somebody has open in the data
// directory from being taken for a part of the server.
func isPostgres(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return err == nil && (strings.Contains(name, "postgres") || name == "postmaster")
}

// postmaster is the living postmaster among pids, or 0.
func (s *Server) postmaster(pids []int) int {
	if pid := PID(s.Dir); slices.Contains(pids, pid) {
		return pid
	}
	return 0
}

// chief is the postmaster among the processes of one server, or 0. Unlike
// [Server.postmaster] it reads nothing on the server's disk. What a postmaster
// starts is its child and calls itself "postgres: ".
func chief(pids []int) int {
	for _, pid := range pids {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && !strings.HasPrefix(string(title), "postgres: ") && !slices.Contains(pids, parentOf(pid)) {
			return pid
		}
	}
	return 0
}

// parentOf is the parent of a process, or 0.
func parentOf(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndex(string(stat), ") "); i >= 0 {
		if fields := strings.Fields(string(stat[i+2:])); len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			return parent
		}
	}
	return 0
}

// Runs says whether the server has a living postmaster.
func (s *Server) Runs() bool { return s.postmaster(s.Processes()) != 0 }

// Fence makes the server unable to accept writes, at once: see stopImmediate.
func (s *Server) Fence(ctx context.Context) error { return s.stopImmediate(ctx) }

// stopImmediate ends every process of the server. When it returns nil none is
// left, so nothing that a client asks for can be committed any more. It works
// on a stopped (SIGSTOP) postmaster, and on what a dead one left behind, which
// can go on committing for seconds.
func (s *Server) stopImmediate(ctx context.Context) error {
	pids := s.Processes()
	if len(pids) == 0 {
		return nil
	}
	if pm := chief(pids); pm != 0 && State(pm) != 'T' {
		if err := syscall.Kill(pm, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return s.mayNotSignal(pm, err)
		}
		grace, cancel := context.WithTimeout(ctx, immediateGrace)
		err := s.waitGone(grace, pids, s.Processes)
		cancel()
		if err == nil {
			return nil
		}
	}
	return s.kill(ctx, s.Processes)
}

// leftovers are the processes that outlived their postmaster.
func (s *Server) leftovers() []int {
	if pids := s.Processes(); s.postmaster(pids) == 0 {
		return pids
	}
	return nil
}

// kill kills the processes that which names, and waits until it names none any more.
func (s *Server) kill(ctx context.Context, which func() []int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, killLimit, fmt.Errorf("not gone within %s", killLimit))
	defer cancel()
	for {
		pids := which()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return s.mayNotSignal(pid, err)
			}
		}
		if err := s.waitGone(ctx, pids, which); err != nil {
			return failure.WithHint(failure.Of(failure.ErrTimeout, "kill the processes %v of %s: %w", which(), s.Dir, err),
				"A process that does not die hangs in the kernel, mostly on its disk. Only a reset of the machine ends it for certain.")
		}
	}
}

// waitGone waits until the processes are gone, and which names no other ones.
func (s *Server) waitGone(ctx context.Context, pids []int, which func() []int) error {
	for {
		for len(pids) > 0 && !processAlive(pids[0]) {
			pids = pids[1:]
		}
		if len(pids) == 0 {
			if pids = which(); len(pids) == 0 {
				return nil
			}
		}
		if err := wait.Pause(ctx, processPoll); err != nil {
			return err
		}
	}
}

// ForgetDead removes the lock files of a postmaster that is dead but that nobody
// has waited for: PostgreSQL takes it for alive and refuses to start.
func (s *Server) ForgetDead() {
	locks := []string{filepath.Join(s.Dir, "postmaster.pid")}
	text, _ := os.ReadFile(locks[0])
	lines := strings.Split(string(text), "\n")
	if len(lines) > 4 && lines[4] != "" { // port and first socket directory
		locks = append(locks, filepath.Join(lines[4], ".s.PGSQL."+lines[3]+".lock"))
	}
	for _, path := range locks {
		text, _ := os.ReadFile(path)
		first, _, _ := strings.Cut(string(text), "\n")
		if pid, err := strconv.Atoi(strings.TrimSpace(first)); err == nil && State(pid) == 'Z' {
			_ = os.Remove(path)
		}
	}
}

func (s *Server) mayNotSignal(pid int, err error) error {
	return failure.WithHint(failure.Of(failure.ErrRefused, "signal process %d of %s: %w", pid, s.Dir, err), "Run it as the operating system user that runs PostgreSQL.")
}

// State is the letter of /proc/PID/stat, 'T' for one stopped by a signal; 0: not known.
func State(pid int) byte {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndex(string(stat), ") "); i >= 0 && i+2 < len(stat) {
		return stat[i+2]
	}
	return 0
}

// Stop shuts the server down in order: service_stop_command, or a fast
// shutdown. It waits no longer than shutdown_check_timeout.
func (s *Server) Stop(ctx context.Context) error {
	pids := s.Processes()
	pm := s.postmaster(pids)
	if pm == 0 {
		return s.kill(ctx, s.Processes)
	}
	limit := s.StopTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "the server in %s is still there after shutdown_check_timeout (%s)", s.Dir, limit),
		"Its log says what it waits for: often a standby that does not receive, or an archive_command that hangs."))
	defer cancel()
	if s.StopCommand != "" {
		if out, err := shell.Run(ctx, s.StopCommand, nil); err != nil {
			return failure.Of(failure.ErrServerControl, "service_stop_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 5)))
		}
	} else if err := syscall.Kill(pm, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return s.mayNotSignal(pm, err)
	}
	return s.waitGone(ctx, pids, s.Processes)
}

// Start starts the server and returns when it accepts connections, or in
// recovery when it has begun; no later than standby_reconnect_timeout. The
// server outlives this process. A server that runs is no error.
func (s *Server) Start(ctx context.Context) error {
	if s.Runs() {
		return nil
	}
	if err := s.kill(ctx, s.leftovers); err != nil {
		return err
	}
	if s.Runs() { // somebody else, such as the watchdog of this daemon, has started it meanwhile
		return nil
	}
	s.ForgetDead()
	limit := s.StartTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrServerControl, "the server in %s is not up after standby_reconnect_timeout (%s)", s.Dir, limit),
		"It may still be recovering: its log says how far it is. Give it more time with standby_reconnect_timeout."))
	defer cancel()
	logged := s.logSize()
	var launched int
	var err error
	switch {
	case s.StartCommand != "":
		var out []byte
		if out, err = shell.Run(ctx, s.StartCommand, nil); err != nil {
			return s.StartError(logged, fmt.Errorf("service_start_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 5))))
		}
	case s.PgCtlOptions != "":
		if err = s.pgCtlStart(ctx); err != nil {
			return s.StartError(logged, err)
		}
	default:
		if launched, err = s.launch(ctx); err != nil {
			return s.StartError(logged, err)
		}
	}
	if err = s.awaitStarted(ctx, launched, logged); err == nil && s.StartCommand == "" {
		s.Logger.Info("the server was started", "directory", s.Dir, "output", filepath.Join(s.Dir, startLogName),
			"detail", "Unless it collects its log itself (logging_collector), output is its log from now on.")
	}
	return err
}

// awaitStarted reads what the postmaster writes of its state into its pid file.
func (s *Server) awaitStarted(ctx context.Context, launched int, logged int64) error {
	for {
		text, _ := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
		lines := strings.Split(string(text), "\n")
		if pid := PID(s.Dir); len(lines) > 7 && pid != 0 && (pid == launched || launched == 0 && s.Serves(pid)) {
			if state := strings.TrimSpace(lines[7]); state == "ready" || state == "standby" {
				return nil
			}
		}
		if launched != 0 && !processAlive(launched) {
			return s.StartError(logged, errors.New("it ended at once"))
		}
		if err := wait.Pause(ctx, processPoll); err != nil {
			return s.StartError(logged, err)
		}
	}
}

// launch starts the postmaster in a session of its own. The shell in between
// hands it over to init and tells us its number: its death is then known at
// once, and nobody has to wait for it.
func (s *Server) launch(ctx context.Context) (pid int, err error) {
	postgres, err := s.Program("postgres")
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, startLogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) // it may hold data
	if err != nil {
		return 0, err
	}
	_ = log.Close()
	args := append([]string{"-c", `log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!`, "repmgr", filepath.Join(s.Dir, startLogName), postgres}, s.Args()...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Dir, cmd.WaitDelay = s.Dir, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	defer shell.UsualSlack()()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", postgres, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// pgCtlStart is launch where pg_ctl_options are to be heeded.
func (s *Server) pgCtlStart(ctx context.Context) error {
	pgCtl, err := s.Program("pg_ctl")
	if err != nil {
		return err
	}
	values := map[byte]shell.Value{
		'c': {Env: "REPMGR_PG_CTL", Text: pgCtl},
		'D': {Env: "REPMGR_DIR", Text: cmp.Or(s.ConfigDirectory, s.Dir)},
		'l': {Env: "REPMGR_LOG", Text: filepath.Join(s.Dir, startLogName)},
	}
	out, err := shell.Run(ctx, `%c -W -s -D %D -l %l `+strings.ReplaceAll(s.PgCtlOptions, "%", "%%")+` start`, values)
	if err != nil {
		return fmt.Errorf("pg_ctl start: %w%s", err, shell.AfterColon(shell.LastLines(out, 5)))
	}
	return nil
}

// Args are what the postmaster is started with: config_directory, else those
// that it had the last time, as pg_ctl restart does it.
func (s *Server) Args() []string {
	if s.ConfigDirectory != "" {
		return []string{"-D", s.ConfigDirectory}
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, "postmaster.opts"))
	_, quoted, ok := strings.Cut(strings.TrimSpace(string(text)), ` "`)
	if err != nil || !ok {
		return []string{"-D", s.Dir}
	}
	args := strings.Split(strings.TrimSuffix(quoted, `"`), `" "`)
	for i := range args {
		if i > 0 && args[i-1] == "-D" && !filepath.IsAbs(args[i]) {
			args[i] = s.Dir // it was relative to where somebody stood
		}
	}
	return args
}

// Program finds one of PostgreSQL's programs of the version of the data
// directory: in pg_bindir, where the server ran from, where packages put it, in PATH.
func (s *Server) Program(name string) (string, error) {
	var dirs []string
	if s.BinDir != "" {
		dirs = []string{s.BinDir}
	} else {
		opts, _ := os.ReadFile(filepath.Join(s.Dir, "postmaster.opts"))
		if path, _, ok := strings.Cut(string(opts), ` "`); ok {
			dirs = append(dirs, filepath.Dir(path))
		}
		if major, err := pgcontrol.ReadVersion(s.Dir); err == nil {
			dirs = append(dirs, fmt.Sprintf("/usr/lib/postgresql/%d/bin", major), fmt.Sprintf("/usr/pgsql-%d/bin", major))
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	if s.BinDir == "" {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", failure.WithHint(failure.Of(failure.ErrServerControl, "program %s was not found in %s", name, strings.Join(dirs, ", ")), "Set pg_bindir in repmgr.conf to the directory of PostgreSQL's programs.")
}

// StartError says why the server did not start, in the words of its log.
func (s *Server) StartError(logged int64, err error) error {
	text := ""
	if b, e := os.ReadFile(filepath.Join(s.Dir, startLogName)); e == nil && int64(len(b)) > logged {
		text = shell.AfterColon(shell.LastLines(b[logged:], 6))
	}
	return failure.WithHint(failure.Of(failure.ErrServerControl, "start the server in %s: %w%s", s.Dir, err, text), "%s", cmp.Or(failure.Hint(err), "See the log of the server; "+filepath.Join(s.Dir, startLogName)+" has what it said before it had one."))
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(filepath.Join(s.Dir, startLogName))
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return 0
	}
	return info.Size()
}

// KillChildren kills the server's processes that are no postmaster, and waits
// until they are gone: a postmaster goes by its command line, what it starts calls
// itself "postgres: ".
func (s *Server) KillChildren(ctx context.Context) (killed int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, killLimit, fmt.Errorf("not gone within %s", killLimit))
	defer cancel()
	var pids []int
	for _, pid := range s.Processes() {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(title), "postgres: ") && !s.Runs() && syscall.Kill(pid, syscall.SIGKILL) == nil {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		for processAlive(pid) {
			if err := wait.Pause(ctx, processPoll); err != nil {
				return len(pids), context.Cause(ctx)
			}
		}
	}
	return len(pids), nil
}

// MayStop says whether this process can end those of the server.
func (s *Server) MayStop() error {
	if err := s.MayControl(); err != nil && os.Geteuid() != 0 {
		return err
	}
	pid := PID(s.Dir)
	if pid == 0 {
		return failure.WithHint(failure.Of(failure.ErrRefused, "no process holds the data directory %s here", s.Dir),
			"Is data_directory in repmgr.conf the server's own? Run repmgrd on the machine, and in the container (the PID namespace), of its server.")
	}
	if !s.Serves(pid) {
		return failure.WithHint(failure.Of(failure.ErrRefused, "process %d, which %s names, does not work in that directory here", pid, filepath.Join(s.Dir, "postmaster.pid")),
			"Run repmgrd in the container (the PID namespace) of its server.")
	}
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
		return s.mayNotSignal(pid, err)
	}
	return nil
}

// PID is the process that holds a data directory, or 0.
func PID(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if pid < 0 {
		pid = -pid // a single-user server writes it so
	}
	if err != nil || pid == 0 || !processAlive(pid) {
		return 0
	}
	return pid
}

// processAlive says whether a process runs. One that has ended and that nobody
// has waited for yet does not.
func processAlive(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // no /proc here: the signal is all the evidence there is
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}
