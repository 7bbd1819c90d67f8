package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// baseEnv tells the child where the files of this run live. Its presence is
// what makes a process the child.
const baseEnv = "REPMGR_PGTEST_BASE"

// Main runs the tests of a package that uses pgtest and exits. Call it from
// TestMain.
func Main(m *testing.M) { os.Exit(Runner{m}.Run()) }

// Runner makes Main composable: testscript.Main(pgtest.Runner{m}, commands)
// looks at the commands first and then runs the tests as Main does.
type Runner struct{ M interface{ Run() int } }

// Run runs the tests in a child process and returns its exit code.
func (r Runner) Run() int {
	if os.Getenv(baseEnv) != "" {
		return r.M.Run()
	}
	code, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return 1
	}
	return code
}

// supervise runs this very program again as the child, waits for it, and
// clears up after it.
func supervise() (code int, err error) {
	var owner *syscall.Credential
	name := "postgres"
	if os.Getuid() == 0 {
		if owner, err = unprivileged(name); err != nil {
			return 0, err
		}
	}
	base, err := makeBase(owner)
	if err != nil {
		return 0, err
	}
	alive, err := startGuard(base) // for when this process is killed
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(base))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base), alive.Close()) }()

	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find own executable: %w", err)
	}
	args := os.Args[1:]
	deliver := func() error { return nil }
	if owner != nil {
		// What the go tool built, and where it wants the results, is root's.
		own := filepath.Join(base, filepath.Base(exe))
		if err := copyFile(exe, own, 0o755); err != nil {
			return 0, fmt.Errorf("copy test binary: %w", err)
		}
		exe = own
		args, deliver = redirectResults(args, filepath.Join(base, "out"))
	}

	// Orphans become our children: every process that the tests leave behind
	// can be found, ended and reaped, whoever started it.
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return 0, fmt.Errorf("become subreaper: %w", errno)
	}
	dir, err := workingDir(base, owner)
	if err != nil {
		return 0, err
	}
	child, err := os.StartProcess(exe, append([]string{exe}, args...), &os.ProcAttr{
		Dir:   dir,
		Env:   childEnv(base, name),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Credential: owner, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, fmt.Errorf("start tests: %w", err)
	}
	status := await(child)
	left := reap()
	if err := deliver(); err != nil {
		return 0, err
	}
	switch {
	case status.Signaled():
		return 0, fmt.Errorf("the tests were ended by signal: %v", status.Signal())
	case status.ExitStatus() == 0 && len(left) > 0:
		return 0, fmt.Errorf("the tests passed but left running: %s", strings.Join(left, "; "))
	}
	return status.ExitStatus(), nil
}

// workingDir is where the tests run: here, where they can read it. In a checkout
// that only root may enter they get a copy of the package's directory elsewhere.
func workingDir(base string, owner *syscall.Credential) (string, error) {
	here, err := os.Getwd()
	if err != nil || owner == nil {
		return here, err
	}
	closed := false
	for dir := here; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		closed = closed || err != nil || info.Mode()&0o005 != 0o005
	}
	if !closed {
		return here, nil
	}
	dir := filepath.Join(base, "src")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make working directory: %w", err)
	}
	entries, err := os.ReadDir(here)
	for _, e := range entries {
		switch to := filepath.Join(dir, e.Name()); {
		case e.Name() == ".git" || e.Name() == "bin":
		case e.IsDir():
			err = errors.Join(err, os.CopyFS(to, os.DirFS(e.Name())))
		default:
			text, errFile := os.ReadFile(e.Name())
			err = errors.Join(err, errFile, os.WriteFile(to, text, 0o644))
		}
	}
	if err != nil {
		return "", fmt.Errorf("copy the package's directory: %w", err)
	}
	return dir, nil
}

// unprivileged returns the credentials of the OS user name with all its groups.
func unprivileged(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses to run as root and there is no OS user %s: install the package postgresql, or run the tests as another user: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	ids, err3 := u.GroupIds()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("look up OS user %s: %w", name, err)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(n))
		}
	}
	return c, nil
}

// makeBase makes the directory of this run. Its path is short, because the path
// of a Unix socket under it may have 107 bytes.
func makeBase(owner *syscall.Credential) (string, error) {
	base, err := os.MkdirTemp(place(), "pgtest-")
	if err != nil {
		return "", fmt.Errorf("make directory for the run: %w", err)
	}
	for _, d := range []string{base, base + "/home", base + "/tmp", base + "/out"} {
		if d != base {
			err = errors.Join(err, os.Mkdir(d, 0o755))
		}
		err = errors.Join(err, os.Chmod(d, 0o755))
		if owner != nil {
			err = errors.Join(err, os.Chown(d, int(owner.Uid), int(owner.Gid)))
		}
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("make directory for the run: %w", err), os.RemoveAll(base))
	}
	return base, nil
}

// place is where all files go: TMPDIR, else memory when there is plenty and
// programs may run from it (a server starts ten times faster there than on a
// slow disk), else /tmp.
func place() string {
	const memory, plenty, noExec = "/dev/shm", 4 << 30, 8
	if dir := os.Getenv("TMPDIR"); dir != "" && len(dir) <= 40 {
		return dir
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err == nil && fs.Flags&noExec == 0 && fs.Bavail*uint64(fs.Bsize) > plenty {
		return memory
	}
	return "/tmp"
}

// childEnv is our environment without what could lead a test to the caller's
// servers, passwords or files.
func childEnv(base, name string) []string {
	var env []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(k, "PG") || strings.HasPrefix(k, "XDG_") || slices.Contains([]string{"HOME", "TMPDIR", "GOCACHE", "GOTMPDIR", "SSH_AUTH_SOCK"}, k) {
			continue
		}
		if os.Getuid() == 0 && (k == "USER" || k == "LOGNAME") {
			kv = k + "=" + name
		}
		env = append(env, kv)
	}
	return append(env, baseEnv+"="+base, "HOME="+base+"/home", "TMPDIR="+base+"/tmp")
}

// redirectResults points the flags that name output files (profiles, coverage,
// the log for the go tool's cache) into dir. deliver copies what was written
// to the places that were asked for.
func redirectResults(args []string, dir string) (child []string, deliver func() error) {
	files := []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "testlogfile", "gocoverdir"}
	wanted := map[string]string{} // flag: path
	outputDir := "."
	for _, a := range args {
		flag, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		flag, isTest := strings.CutPrefix(flag, "test.")
		switch {
		case isTest && flag == "outputdir":
			outputDir = value
		case isTest && slices.Contains(files, flag) && value != "":
			wanted[flag] = value
			child = append(child, "-test."+flag+"="+filepath.Join(dir, flag))
		default:
			child = append(child, a)
		}
	}
	if wanted["gocoverdir"] != "" {
		if err := os.Mkdir(filepath.Join(dir, "gocoverdir"), 0o777); err == nil {
			_ = os.Chmod(filepath.Join(dir, "gocoverdir"), 0o777)
		}
	}
	return child, func() error {
		for flag, path := range wanted {
			if !filepath.IsAbs(path) && flag != "gocoverdir" {
				path = filepath.Join(outputDir, path)
			}
			from := filepath.Join(dir, flag)
			if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
				continue // the tests did not get that far
			}
			if err := copyTree(from, path, nil); err != nil {
				return fmt.Errorf("hand over -test.%s: %w", flag, err)
			}
		}
		return nil
	}
}

// await forwards signals to the child and reaps orphans until the child ends.
func await(child *os.Process) syscall.WaitStatus {
	signals := make(chan os.Signal, 4) // a burst; more may be dropped
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	forwarded := make(chan struct{}) // closed when the forwarder has ended
	go func() {
		defer close(forwarded)
		for s := range signals {
			_ = syscall.Kill(child.Pid, s.(syscall.Signal))
		}
	}()
	defer func() { signal.Stop(signals); close(signals); <-forwarded }()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == child.Pid || (err != nil && !errors.Is(err, syscall.EINTR)) {
			return status
		}
	}
}

// reap gives orphans a moment to end by themselves, ends the others, and
// returns the command lines of those.
func reap() (left []string) {
	const grace, limit = time.Second, 10 * time.Second
	for start := time.Now(); time.Since(start) < limit; {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			return left
		case pid > 0 || errors.Is(err, syscall.EINTR):
			continue
		case time.Since(start) > grace:
			for _, p := range processes() {
				if p.parent == os.Getpid() && p.state != 'Z' {
					left = append(left, fmt.Sprintf("%d %s", p.pid, p.command()))
					_ = syscall.Kill(p.pid, syscall.SIGKILL)
				}
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return left
}
