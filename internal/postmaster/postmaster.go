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

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
)

// Options are the operator's settings for the server.
type Options struct {
	BinDir          string        // the directory of PostgreSQL's programs; empty: search for them
	ConfigDirectory string        // the directory of postgresql.conf, if that is not the data directory
	StartCommand    string        // the command to start it; empty: start it directly
	StopCommand     string        // the command to stop it; empty: stop it directly
	PgCtlOptions    string        // for pg_ctl start
	StartTimeout    time.Duration // standby_reconnect_timeout
	StopTimeout     time.Duration // shutdown_check_timeout
	Logger          *slog.Logger
}

// Server is the server of a data directory on this machine, running or not. It looks at the
// processes that work in the directory, and not at a connection, so that it can tell with
// certainty that a server is gone. It keeps no state; its methods may be called at any time.
type Server struct {
	Options
	Dir string // absolute, without symbolic links
}

const (
	// immediateGrace is how long a postmaster may take for an immediate shutdown before all of
	// its processes are killed.
	immediateGrace = 500 * time.Millisecond
	// killLimit limits the wait for processes that were killed. Only a process that hangs in
	// the kernel, for example on a dead disk, takes longer.
	killLimit = 10 * time.Second
	// processPoll is the interval at which processes and the progress of a start are checked.
	processPoll = 2 * time.Millisecond
	// versionLimit limits the wait for a program that is asked for its version.
	versionLimit = 5 * time.Second
	// StartLogName is the file, in the data directory, for the output of a server that we have
	// started, unless it collects its log itself.
	StartLogName = "repmgr-start.log"
)

// MayControl returns an error where this process can not stop and start the server, and so can
// not fence it.
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

// Serves reports whether backend, the process at the other end of a connection (pg_backend_pid),
// belongs to this server. A process on another machine or in another container does not, even
// if its data directory has the same path, and if all containers share the process IDs.
func (s *Server) Serves(backend int) bool {
	cwd := fmt.Sprintf("/proc/%d/cwd", backend)
	if text, err := os.Readlink(cwd); err != nil || text != s.Dir {
		return false
	}
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", backend))
	return ours == theirs || sameDirectory(cwd, s.Dir)
}

// sameDirectory compares what the kernel remembers of two directories. It asks no file system over the network.
func sameDirectory(a, b string) bool {
	var is [2]unix.Statx_t
	for i, path := range []string{a, b} {
		if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &is[i]) != nil {
			return false
		}
	}
	return is[0].Ino == is[1].Ino && is[0].Dev_major == is[1].Dev_major && is[0].Dev_minor == is[1].Dev_minor
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

// Processes are the live processes of the server: those of PostgreSQL that work in its data
// directory, including the remaining processes of a dead postmaster. Zombies do not count.
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

// isPostgres reports whether a process runs a program of PostgreSQL. Others may work in the
// data directory, too, such as somebody's shell or editor.
func isPostgres(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return err == nil && (strings.Contains(name, "postgres") || name == "postmaster")
}

// postmaster is the live postmaster among pids, or 0.
func (s *Server) postmaster(pids []int) int {
	if pid := PID(s.Dir); slices.Contains(pids, pid) {
		return pid
	}
	return 0
}

// postmasterOf is the postmaster among the processes of one server, or 0. Unlike
// [Server.postmaster] it reads nothing from the server's disk. The processes that a postmaster
// starts are its children and have a title that begins with "postgres: ".
func postmasterOf(pids []int) int {
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

// Runs reports whether the server has a live postmaster.
func (s *Server) Runs() bool { return s.postmaster(s.Processes()) != 0 }

// Fence stops the server at once, so that it can accept no more writes: see stopImmediate.
func (s *Server) Fence(ctx context.Context) error { return s.stopImmediate(ctx) }

// stopImmediate ends every process of the server. When it returns nil no process is left, so
// no client can commit anything any more. It also works on a postmaster that is stopped
// (SIGSTOP), and on the remaining processes of a dead one, which can go on committing for seconds.
func (s *Server) stopImmediate(ctx context.Context) error {
	pids := s.Processes()
	if len(pids) == 0 {
		return nil
	}
	if pm := postmasterOf(pids); pm != 0 && State(pm) != 'T' {
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

// leftovers are the processes that remain after their postmaster has died.
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

// waitGone waits until these processes are gone, and which returns no others.
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

// ForgetDead removes the lock files of a postmaster that is a zombie. PostgreSQL takes a zombie
// for a running postmaster and refuses to start.
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

// State is the state of a process, as the letter in /proc/PID/stat: 'T' for one that was stopped
// by a signal; 0 means not known.
func State(pid int) byte {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndex(string(stat), ") "); i >= 0 && i+2 < len(stat) {
		return stat[i+2]
	}
	return 0
}

// Stop does a clean shutdown of the server, by service_stop_command or as a fast shutdown. It
// waits no longer than shutdown_check_timeout.
func (s *Server) Stop(ctx context.Context) error {
	pids := s.Processes()
	pm := s.postmaster(pids)
	if pm == 0 {
		return s.kill(ctx, s.Processes)
	}
	limit := s.StopTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "the server in %s has not ended within %s", s.Dir, limit),
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
		s.Logger.Info("the server was started", "directory", s.Dir, "output", filepath.Join(s.Dir, StartLogName),
			"detail", "Unless it collects its log itself (logging_collector), output is its log from now on.")
	}
	return err
}

// awaitStarted waits until the postmaster has written into its pid file that it is ready.
func (s *Server) awaitStarted(ctx context.Context, launched int, logged int64) error {
	for {
		if pid := PID(s.Dir); pid != 0 && (pid == launched || launched == 0 && s.Serves(pid)) {
			if state := s.pidFileState(); state == "ready" || state == "standby" {
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

// pidFileState is what the postmaster has written of itself into its pid file: starting, stopping,
// ready or standby. Empty: not known.
func (s *Server) pidFileState() string {
	text, _ := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	lines := strings.Split(string(text), "\n")
	if len(lines) <= 7 {
		return ""
	}
	return strings.TrimSpace(lines[7])
}

// EndedAt is when pg_control was last written; of a server that is down, about when it ended. Zero: not known.
func (s *Server) EndedAt() time.Time {
	info, err := os.Stat(filepath.Join(s.Dir, "global", "pg_control"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// ShutsDown reports whether the server runs and is being shut down.
func (s *Server) ShutsDown() bool { return s.Runs() && s.pidFileState() == "stopping" }

// launch starts the postmaster in a session of its own and returns its process ID. The shell in
// between makes it a child of init: so its death is noticed at once, and it leaves no zombie.
func (s *Server) launch(ctx context.Context) (pid int, err error) {
	postgres, err := s.Program("postgres")
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, StartLogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) // it may hold data
	if err != nil {
		return 0, err
	}
	_ = log.Close()
	args := append([]string{"-c", `log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!`, "repmgr", filepath.Join(s.Dir, StartLogName), postgres}, s.Args()...)
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
		'l': {Env: "REPMGR_LOG", Text: filepath.Join(s.Dir, StartLogName)},
	}
	out, err := shell.Run(ctx, `%c -W -s -D %D -l %l `+strings.ReplaceAll(s.PgCtlOptions, "%", "%%")+` start`, values)
	if err != nil {
		return fmt.Errorf("pg_ctl start: %w%s", err, shell.AfterColon(shell.LastLines(out, 5)))
	}
	return nil
}

// Args are the arguments for the postmaster: config_directory, or else those of its last start,
// as pg_ctl restart does it.
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
			args[i] = s.Dir // it was relative to the working directory of that start
		}
	}
	return args
}

// Program finds one of PostgreSQL's programs of the version of the data
// directory: in pg_bindir, where the server ran from, where packages put it, in PATH. What PATH
// has may be of another version, which could not start the server.
func (s *Server) Program(name string) (string, error) {
	var dirs []string
	major := 0
	if s.BinDir != "" {
		dirs = []string{s.BinDir}
	} else {
		opts, _ := os.ReadFile(filepath.Join(s.Dir, "postmaster.opts"))
		if path, _, ok := strings.Cut(string(opts), ` "`); ok {
			dirs = append(dirs, filepath.Dir(path))
		}
		if version, err := pgcontrol.ReadVersion(s.Dir); err == nil {
			major = version
			dirs = append(dirs, fmt.Sprintf("/usr/lib/postgresql/%d/bin", major), fmt.Sprintf("/usr/pgsql-%d/bin", major))
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	other := ""
	if s.BinDir == "" {
		path, err := exec.LookPath(name)
		if err == nil && (major == 0 || majorOf(path) == major) {
			return path, nil
		}
		if err == nil {
			other = fmt.Sprintf("; %s is not of PostgreSQL %d, which made the data directory", path, major)
		}
	}
	return "", failure.WithHint(failure.Of(failure.ErrServerControl, "program %s was not found in %s%s", name, strings.Join(dirs, ", "), other), "Set pg_bindir in repmgr.conf to the directory of PostgreSQL's programs.")
}

// majorOf is the major version of one of PostgreSQL's programs, or 0.
func majorOf(path string) int {
	ctx, cancel := context.WithTimeout(context.Background(), versionLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output() // such as "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
	_, version, ok := strings.Cut(string(out), ") ")
	if err != nil || !ok {
		return 0
	}
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	major, _ := strconv.Atoi(version[:max(0, digits)])
	return major
}

// StartError is the error of a server that did not start, with the last lines of its log.
func (s *Server) StartError(logged int64, err error) error {
	text := ""
	if b, e := os.ReadFile(filepath.Join(s.Dir, StartLogName)); e == nil && int64(len(b)) > logged {
		text = shell.AfterColon(shell.LastLines(b[logged:], 6))
	}
	return failure.WithHint(failure.Of(failure.ErrServerControl, "start the server in %s: %w%s", s.Dir, err, text), "%s", cmp.Or(failure.Hint(err), "See the log of the server; "+filepath.Join(s.Dir, StartLogName)+" has what it said before it had one."))
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(filepath.Join(s.Dir, StartLogName))
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return 0
	}
	return info.Size()
}

// KillChildren kills the processes of a server whose postmaster is dead, and waits until they
// are gone. It spares a process whose title does not begin with "postgres: ", because that is
// a postmaster.
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

// MayStop returns an error where this process can not end the processes of the server.
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

// PID is the live process that postmaster.pid of a data directory names, or 0.
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

// processAlive reports whether a process runs. A zombie does not.
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
