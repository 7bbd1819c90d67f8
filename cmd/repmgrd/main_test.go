package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// asDaemon makes this test binary a repmgrd, started by one that goes to the background.
const asDaemon = "REPMGRD_TEST_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		ctx, stop := cli.SignalContext(context.Background())
		d := &daemon{out: os.Stdout, err: os.Stderr, geteuid: ordinary, closeInherited: cli.CloseInherited}
		code := d.perform(ctx, os.Args[1:])
		stop()
		os.Exit(code)
	}
	pgtest.Main(m)
}

func ordinary() int { return 101 }

// output is a buffer that a test may read while a daemon writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs output
	d := &daemon{out: &out, err: &errs, geteuid: ordinary}
	code = d.perform(t.Context(), args)
	return out.String(), errs.String(), code
}

// config writes a configuration whose server does not run.
func config(t *testing.T, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "repmgr.conf")
	text := "node_id=1\nconninfo='host=/nonexistent port=1 dbname=repmgr user=repmgr'\n" + more
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	require.Eventually(t, done, 20*time.Second, 5*time.Millisecond, what)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	out, errs, code := try(t, "--help")
	require.Equal(t, 0, code)
	require.Empty(t, errs)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile("testdata/help.txt", []byte(out), 0o644))
	}
	want, err := os.ReadFile("testdata/help.txt")
	require.NoError(t, err)
	require.Equal(t, string(want), out)
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	out, _, code := try(t, "--version")
	require.Equal(t, 0, code)
	require.True(t, strings.HasPrefix(out, "repmgrd "), out)
	for line, want := range map[string]string{
		"--foo -Z":                         "ERROR: unknown option --foo\nERROR: unknown option -Z\nHINT: See: repmgrd --help\n",
		"start":                            "too many arguments",
		"-dperhaps":                        "perhaps",
		"-f /nowhere":                      "/nowhere",
		"-L LOUD":                          "is none of DEBUG, INFO",
		"-p x --no-pid-file":               "exclude each other",
		"--daemonize=perhaps --no-pid":     "perhaps",
		"-f " + config(t, "priority=-1\n"): "priority",
	} {
		_, errs, code := try(t, strings.Fields(line)...)
		require.Equal(t, 1, code, line)
		require.Contains(t, errs, want, line)
	}
	conf := config(t, "repmgrd_pid_file='/run/x.pid'\n")
	for line, want := range map[string]string{
		"-s -f " + conf: "/run/x.pid",
		"--show-pid-file --pid-file=/y -f " + conf:   "/y",
		"-s --config_file " + config(t, ""):          repmgr.Config{NodeID: 1}.PidFile(),
		"-vs -d --no-pid-file -m -b /bin -f " + conf: "",
		"-s -dfalse --no-pid-file -f " + conf:        "",
	} {
		out, _, code := try(t, strings.Fields(line)...)
		require.Equal(t, 0, code)
		require.Equal(t, want+"\n", out, line)
	}
}

func TestRootIsRefused(t *testing.T) {
	t.Parallel()
	var out, errs output
	d := &daemon{out: &out, err: &errs, geteuid: func() int { return 0 }}
	require.Equal(t, 1, d.perform(t.Context(), []string{"-f", config(t, "")}))
	require.Contains(t, errs.String(), "runuser -u postgres -- repmgrd")
}

func TestPidFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "repmgrd.pid")
	first, err := takePidFile(path)
	require.NoError(t, err)
	_, err = takePidFile(path)
	var coded *exitError
	require.ErrorAs(t, err, &coded)
	require.Equal(t, cli.ExitPidFile, coded.code)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	first.remove()
	require.NoFileExists(t, path)

	// The pid of a process that lives and is something else: a pid used again.
	require.NoError(t, os.WriteFile(path, fmt.Appendln(nil, os.Getppid()), 0o644))
	second, err := takePidFile(path)
	require.NoError(t, err)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(os.Getpid()), string(text))
	second.remove()

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	_, err = takePidFile(link)
	require.Error(t, err)
	require.NoFileExists(t, path)
}

// What says that a daemon runs already names the node, and the option for another one.
func TestPidFileNamesTheNode(t *testing.T) {
	t.Parallel()
	d := &daemon{cfg: repmgr.Config{NodeID: 7, NodeName: "node7", File: "/etc/repmgr.conf"}}
	path := filepath.Join(t.TempDir(), "repmgrd-7.pid")
	first, err := d.takePidFile(path)
	require.NoError(t, err)
	defer first.remove()
	_, err = d.takePidFile(path)
	var coded *exitError
	require.ErrorAs(t, err, &coded)
	require.Equal(t, cli.ExitPidFile, coded.code)
	require.ErrorContains(t, err, `node "node7" (ID: 7): repmgrd runs already, with PID `)
	require.Contains(t, coded.hint, "repmgrd_pid_file in /etc/repmgr.conf, or --pid-file")
	require.False(t, startedWith(os.Getpid(), "/etc/repmgr.conf"))
	require.True(t, startedWith(os.Getpid(), os.Args[0]))
}

// A repmgrd that does not lock its pid file is respected while it lives: not
// when it is dead and only its parent has not noticed.
func TestPidFileOfAnotherProgram(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Symlink(sleep, filepath.Join(dir, "repmgrd"))) // a process is named by what was started
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "repmgrd"), "60")
	require.NoError(t, cmd.Start())
	path := filepath.Join(dir, "pid")
	require.NoError(t, os.WriteFile(path, fmt.Appendln(nil, cmd.Process.Pid), 0o644))
	_, err = takePidFile(path)
	require.ErrorContains(t, err, "runs already")
	require.NoError(t, cmd.Process.Kill())
	eventually(t, "a dead one does not count", func() bool {
		p, err := takePidFile(path)
		if err == nil {
			p.remove()
		}
		return err == nil
	})
	_ = cmd.Wait()
}

// The daemon starts before the server does, tells systemd what it does, takes a
// new configuration over, keeps the old one where the new one is wrong, reopens
// its log, and stops with code 0. Not parallel: SIGHUP goes to the whole process.
func TestDaemon(t *testing.T) {
	dir := t.TempDir()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	defer func() { _ = socket.Close() }()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "100000")
	require.NoError(t, os.Unsetenv("WATCHDOG_PID"))
	heard := func(want string) {
		t.Helper()
		require.NoError(t, socket.SetReadDeadline(time.Now().Add(20*time.Second)))
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			require.NoError(t, err, "waiting for "+want)
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	pid := filepath.Join(dir, "repmgrd.pid")
	logPath := filepath.Join(dir, "log")
	conf := config(t, "log_format=json\nlog_file='"+logPath+"'\n")
	logged := func(text string) func() bool {
		return func() bool { b, _ := os.ReadFile(logPath); return strings.Contains(string(b), text) }
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	var errs output
	ended := make(chan int, 1)
	go func() {
		d := &daemon{out: &errs, err: &errs, geteuid: ordinary}
		ended <- d.perform(ctx, []string{"-f", conf, "--daemonize=false", "-p", pid})
	}()
	heard("READY=1")
	text, err := os.ReadFile(pid)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(os.Getpid()), string(text))
	heard("WATCHDOG=1")

	hangUp := func() {
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		heard("RELOADING=1\nMONOTONIC_USEC=")
		heard("READY=1")
	}
	require.NoError(t, os.Rename(logPath, logPath+".1"))
	hangUp()
	eventually(t, "the log is a new file", logged("configuration reloaded"))
	require.NoError(t, os.WriteFile(conf, []byte("node_id=-1\n"), 0o600))
	hangUp()
	eventually(t, "a wrong configuration is refused", logged("the old one stays"))
	eventually(t, "what to do is said", logged(`"hint":"Mend the file`))

	cancel(&cli.SignalError{Signal: syscall.SIGTERM})
	heard("STOPPING=1")
	require.Equal(t, 0, <-ended, errs.String())
	require.NoFileExists(t, pid)
	all, err := os.ReadFile(logPath + ".1")
	require.NoError(t, err)
	for line := range strings.Lines(string(all)) {
		var record map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &record), line)
		require.Contains(t, []any{"DEBUG", "INFO", "NOTICE", "WARNING", "ERROR"}, record["level"])
	}
}

// In the background the daemon outlives its starter, which tells how the start went.
func TestBackground(t *testing.T) {
	t.Setenv(asDaemon, "1")
	dir := t.TempDir()
	pid := filepath.Join(dir, "repmgrd.pid")
	conf := config(t, "log_file='"+filepath.Join(dir, "log")+"'\nrepmgrd_pid_file='"+pid+"'\n")
	start := func() (string, int) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-f", conf)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil {
			require.True(t, errors.As(err, &exit), "%v", err)
			return string(out), exit.ExitCode()
		}
		return string(out), 0
	}
	out, code := start()
	require.Equal(t, 0, code, out)
	text, err := os.ReadFile(pid)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("repmgrd runs in the background with PID %s; pid file %s; log %s\n", strings.TrimSpace(string(text)), pid, filepath.Join(dir, "log")), out)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	stopped := false
	defer func() {
		if !stopped {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}()
	session, err := syscall.Getpgid(n)
	require.NoError(t, err)
	require.Equal(t, n, session, "it leads a session of its own")

	out, code = start()
	require.Equal(t, cli.ExitPidFile, code, out)
	require.Contains(t, out, strconv.Itoa(n))

	require.NoError(t, syscall.Kill(n, syscall.SIGTERM))
	eventually(t, "it stops and removes its pid file", func() bool { _, err := os.Stat(pid); return os.IsNotExist(err) })
	stopped = true
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err)
	require.Regexp(t, `\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[NOTICE\] repmgrd started `, string(log))
	require.Contains(t, string(log), "repmgrd stopped")
}

// registerPrimary registers the node of that configuration file.
func registerPrimary(t *testing.T, conf string) {
	t.Helper()
	cfg, err := repmgr.LoadConfig(conf)
	require.NoError(t, err)
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	_, err = c.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
}

// What whoever starts the daemon has open, neither the daemon keeps, nor its hooks:
// the other end of a pipe hears at once that nobody has it any more.
func TestDaemonKeepsNothingOpen(t *testing.T) {
	for _, background := range []bool{true, false} {
		t.Run(fmt.Sprintf("background %v", background), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Name: "node1"})
			dir := t.TempDir()
			hook, pid, conf := filepath.Join(dir, "hook"), filepath.Join(dir, "pid"), filepath.Join(dir, "repmgr.conf")
			require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil,
				"node_id=1\nnode_name=node1\nconninfo='%s'\nlog_file='%s'\nevent_notification_command='ls -l /proc/self/fd > %s.new; mv %s.new %s'\nevent_notifications='repmgrd_start'\n",
				server.Conninfo(), filepath.Join(dir, "log"), hook, hook, hook), 0o600))
			registerPrimary(t, conf)

			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer func() { _ = r.Close() }()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-f", conf, "-d"+strconv.FormatBool(background), "-p", pid)
			cmd.Env = append(os.Environ(), asDaemon+"=1")
			cmd.ExtraFiles = []*os.File{w, w}
			require.NoError(t, cmd.Start())
			require.NoError(t, w.Close())
			var number int
			eventually(t, "the daemon runs", func() bool {
				text, _ := os.ReadFile(pid)
				number, _ = strconv.Atoi(strings.TrimSpace(string(text)))
				return number > 0
			})
			defer func() {
				require.NoError(t, syscall.Kill(number, syscall.SIGTERM))
				require.NoError(t, cmd.Wait())
				eventually(t, "it has ended", func() bool { _, err := os.Stat(pid); return os.IsNotExist(err) })
			}()
			var open string
			eventually(t, "the hook has run", func() bool { text, _ := os.ReadFile(hook); open = string(text); return open != "" })
			require.NotContains(t, open, "pipe:["+strconv.FormatUint(inode(t, r), 10)+"]")
			require.NoError(t, r.SetReadDeadline(time.Now().Add(pgtest.Timeout(20*time.Second))))
			_, err = r.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF, "somebody keeps it open while the daemon runs")
		})
	}
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	info, err := f.Stat()
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

// startWithLog starts a daemon on a primary of its own, whose log goes to w.
func startWithLog(t *testing.T, w *os.File) (*pgtest.Server, *exec.Cmd) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Options{Name: "node1"})
	conf := filepath.Join(t.TempDir(), "repmgr.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "node_id=1\nnode_name=node1\nconninfo='%s'\n", server.Conninfo()), 0o600))
	registerPrimary(t, conf)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-f", conf, "-dfalse", "--no-pid-file")
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	cmd.Stdout, cmd.Stderr = w, w
	require.NoError(t, cmd.Start())
	return server, cmd
}

// The reader of the log may end, as an ssh session does: the daemon goes on.
func TestOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	server, cmd := startWithLog(t, w)
	require.NoError(t, w.Close())
	_, err = r.Read(make([]byte, 1)) // it has begun to write
	require.NoError(t, err)
	require.NoError(t, r.Close())
	eventually(t, "it monitors", func() bool {
		return server.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'repmgrd_start'`) == "1"
	})
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP)) // it says that it has read the configuration again
	eventually(t, "it goes on", func() bool {
		return server.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'repmgrd' AND state_change > now() - interval '3 s'`) != "0"
	})
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
}

// A reader of the log that is stopped holds nothing up: neither what the daemon does, nor its end.
func TestOutlivesALogThatStalls(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	fill, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	require.NoError(t, fill.SetWriteDeadline(time.Now().Add(time.Second)))
	_, err = fill.Write(make([]byte, 1<<21)) // more than a pipe holds
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	server, cmd := startWithLog(t, w)
	eventually(t, "it monitors", func() bool {
		return server.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'repmgrd_start'`) == "1"
	})
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
		require.NoError(t, err)
	case <-time.After(pgtest.Timeout(20 * time.Second)):
		t.Fatal("it does not end")
	}
}

// What did not fit while the log could not be written is counted, and the log says so.
func TestLog_SaysWhatIsMissing(t *testing.T) {
	r, w := io.Pipe() // a write to it waits for a read
	l, err := openLog(repmgr.Config{LogLevel: repmgr.LogInfo}, w)
	require.NoError(t, err)
	for i := range 2*logQueue + 1 {
		l.logger.Info("record", "number", i)
	}
	sum := regexp.MustCompile(`records are missing before this one records=(\d+)`)
	for lines, n := bufio.NewScanner(r), 0; lines.Scan(); n++ {
		if m := sum.FindStringSubmatch(lines.Text()); m != nil {
			missing, _ := strconv.Atoi(m[1])
			require.Equal(t, 2*logQueue+1, n+missing)
			l.close()
			return
		}
	}
	t.Fatal("the log does not say it")
}

// A notification command that hangs is not waited for when the daemon is told to stop.
func TestStopsThoughAHookHangs(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Name: "node1"})
	hook := filepath.Join(t.TempDir(), "hook")
	conf := filepath.Join(t.TempDir(), "repmgr.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil,
		"node_id=1\nnode_name=node1\nconninfo='%s'\nevent_notification_command='echo $$ > %s; exec sleep 60'\nevent_notifications='repmgrd_start'\nevent_notification_timeout=60\n",
		server.Conninfo(), hook), 0o600))
	registerPrimary(t, conf)

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-f", conf, "-dfalse", "--no-pid-file")
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	var errs output
	cmd.Stdout, cmd.Stderr = &errs, &errs
	cmd.WaitDelay = time.Second
	require.NoError(t, cmd.Start())
	var pid int
	eventually(t, "the hook runs", func() bool {
		text, _ := os.ReadFile(hook)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 0
	})
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	told := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), errs.String())
	require.Less(t, time.Since(told), 8*time.Second)
	require.Contains(t, errs.String(), "repmgrd stopped")
}
