package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// node is one machine with one server and one daemon. Safe for concurrent use,
// except for what starts and stops the server.
type node struct {
	id      int
	witness bool
	c       *cluster
	m       *machine
	dir     string
	port    int

	mu     sync.Mutex
	daemon *daemon
	keep   bool      // the daemon is to be started again when it ends
	env    []string  // of the next daemon only
	unable inability // of the daemons that are started from now on
	deaths []string  // ends of the daemon that we did not cause
}

// daemon is one process of repmgrd.
type daemon struct {
	cmd   *exec.Cmd
	ours  bool // that it ends is our doing
	ended chan struct{}
}

// inability is what keeps a daemon from ending its server.
type inability string

const (
	foreignUser  inability = "as another OS user"
	foreignSpace inability = "in a PID namespace of its own"
)

// restartAfter is when a supervisor starts a dead daemon again.
const restartAfter = time.Second

// number is the id; 0 of nobody.
func (n *node) number() int {
	if n == nil {
		return 0
	}
	return n.id
}

func (n *node) name() string     { return fmt.Sprintf("node%d", n.id) }
func (n *node) disk() string     { return filepath.Join(n.dir, "disk") }
func (n *node) wal() string      { return filepath.Join(n.dir, "wal") }
func (n *node) data() string     { return filepath.Join(n.disk(), "data") }
func (n *node) confFile() string { return filepath.Join(n.dir, "repmgr.conf") }
func (n *node) logFile() string  { return filepath.Join(n.dir, "log", "server.log") }

func (n *node) conninfo(user, db string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", n.m.ip, n.port, user, db)
}

// connect goes through the Unix socket: no fault of the network is in its way.
func (n *node) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=repmgr dbname=repmgr application_name=chaos", n.dir, n.port))
}

// with lends fn a connection for at most two seconds: a kept one, where [keepConns] keeps any.
func (n *node) with(ctx context.Context, fn func(ctx context.Context, c *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, fmt.Errorf("%s: no answer within 2s", n.name()))
	defer cancel()
	kept := connsOf(ctx)
	c := kept.take(n)
	if c == nil {
		var err error
		if c, err = n.connect(ctx); err != nil {
			return err
		}
	}
	err := fn(ctx, c)
	if err != nil || !kept.put(n, c) {
		_ = c.Close(ctx)
	}
	return err
}

// command is a program run as the servers' OS user.
func (n *node) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = n.dir, time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // ours then shows where it waits
	cmd.Env = append(n.c.env, "HOME="+n.dir, fmt.Sprintf("PGPORT=%d", n.port))
	return cmd
}

// run runs a program to its end, for at most a minute.
func (n *node) run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return n.m.output(n.command(ctx, program, args...), n.c.user)
}

// repmgr runs the command line of the suite.
func (n *node) repmgr(ctx context.Context, args ...string) error {
	return n.run(ctx, n.c.o.Suite.Repmgr, append([]string{"-f", n.confFile()}, args...)...)
}

// prepare makes the node's directories anew, with an empty disk of its own where
// mounts are possible, and its repmgr.conf.
func (n *node) prepare() error {
	if err := n.clear(); err != nil {
		return err
	}
	for _, dir := range []string{n.dir, n.disk(), filepath.Join(n.dir, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if n.m.fd >= 0 {
		if err := n.mountDisk(); err != nil {
			return fmt.Errorf("mount the disk of %s: %w", n.name(), err)
		}
	}
	if err := os.WriteFile(n.confFile(), []byte(n.c.o.Suite.conf(n)), 0o644); err != nil {
		return err
	}
	n.mu.Lock()
	n.unable = ""
	n.mu.Unlock()
	if err := n.configure(); err != nil {
		return err
	}
	return n.own(append(n.disks(), n.dir, filepath.Join(n.dir, "log"))...)
}

// disks are where data and WAL are: two where they can be frozen.
func (n *node) disks() []string {
	if n.c.o.Ext4 {
		return []string{n.disk(), n.wal()}
	}
	return []string{n.disk()}
}

func (n *node) thaw() {
	for _, disk := range n.disks() {
		_ = freeze(disk, false)
	}
}

// mountDisk mounts a tmpfs, or an ext4 in a file of one: only that can be frozen.
func (n *node) mountDisk() error {
	size := strconv.FormatInt(diskBytes, 10)
	if !n.c.o.Ext4 {
		return unix.Mount("chaos", n.disk(), "tmpfs", 0, "mode=700,size="+size)
	}
	for _, disk := range n.disks() {
		if err := mountExt4(disk+".image", size, disk); err != nil {
			return err
		}
	}
	return nil
}

// moveWAL moves the WAL of a server that does not run to its own disk, where there is one.
func (n *node) moveWAL(ctx context.Context) error {
	if !n.c.o.Ext4 || n.m.fd < 0 {
		return nil
	}
	from, to := filepath.Join(n.data(), "pg_wal"), filepath.Join(n.wal(), "pg_wal")
	return n.run(ctx, "sh", "-c", fmt.Sprintf("cp -a %q %q && rm -r %q && ln -s %q %q", from, to, from, to, from))
}

func mountExt4(image, size, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "-s", size, image},
		{"mkfs.ext4", "-q", image},
		{"mount", "-o", "loop", image, dir},
		{"rmdir", filepath.Join(dir, "lost+found")},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func (n *node) own(paths ...string) error {
	if n.c.user == nil {
		return nil
	}
	for _, p := range paths {
		if err := os.Chown(p, int(n.c.user.Uid), int(n.c.user.Gid)); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) clear() error {
	n.thaw()
	for _, disk := range n.disks() {
		_ = unix.Unmount(disk, unix.MNT_DETACH)
	}
	return os.RemoveAll(n.dir)
}

// diskBytes is the size of a node's disk.
const diskBytes = 2 << 30

// startServer starts the server and waits until it answers.
func (n *node) startServer(ctx context.Context) error {
	if err := n.launchServer(ctx); err != nil {
		return err
	}
	return waitFor(ctx, 20*time.Second, n.name()+" to answer", func(ctx context.Context) error {
		return n.with(ctx, func(ctx context.Context, c *pgx.Conn) error { return c.Ping(ctx) })
	})
}

// launchServer starts the server, as its service would, and waits for nothing.
func (n *node) launchServer(ctx context.Context) error {
	if n.c.o.Screened && !n.witness {
		if err := n.repmgr(ctx, "node", "screen"); err != nil {
			return err
		}
	}
	return n.launchUnscreened(ctx)
}

func (n *node) launchUnscreened(ctx context.Context) error {
	return n.run(ctx, filepath.Join(n.c.o.BinDir, "pg_ctl"), "-D", n.data(), "-W", "-s", "-l", filepath.Join(n.dir, "log", "start.log"), "start")
}

// configure gives the server these settings besides those that it has, or takes
// them back: none. It does not wait until they are in force.
func (n *node) configure(settings ...string) error {
	err := os.WriteFile(filepath.Join(n.dir, "chaos.conf"), []byte(strings.Join(settings, "\n")+"\n"), 0o644)
	if pid := n.postmaster(); err == nil && pid != 0 {
		err = syscall.Kill(pid, syscall.SIGHUP)
	}
	return err
}

// stopServer is an operator's clean shutdown.
func (n *node) stopServer(ctx context.Context) error {
	return n.run(ctx, filepath.Join(n.c.o.BinDir, "pg_ctl"), "-D", n.data(), "-s", "-m", "fast", "-t", "30", "stop")
}

// serverProcesses are the postmaster and all of its children, orphaned or not.
func (n *node) serverProcesses() []int { return pids(worksIn(n.data())) }

// postmaster returns its process id, or 0 where none lives.
func (n *node) postmaster() int {
	b, err := os.ReadFile(filepath.Join(n.data(), "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, _ := strconv.Atoi(first)
	if pid <= 1 || isZombie(pid) || !worksIn(n.data())(pid) {
		return 0
	}
	return pid
}

// killPostmaster waits for one that another fault of the same moment has ended.
func (n *node) killPostmaster(ctx context.Context) error {
	return waitFor(ctx, 10*time.Second, "a postmaster to kill on "+n.name(), func(context.Context) error {
		if pid := n.postmaster(); pid != 0 {
			return syscall.Kill(pid, syscall.SIGKILL)
		}
		return errors.New("none runs")
	})
}

// processes are all of the machine: the server, the daemon, and what they run.
func (n *node) processes() []int {
	inode := fmt.Sprintf("net:[%d]", n.m.inode)
	return pids(func(pid int) bool {
		if n.m.fd < 0 {
			return worksIn(n.data())(pid) || worksIn(n.dir)(pid)
		}
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err == nil && ns == inode
	})
}

// idle tells whether there is no server, and nobody at work to bring one back: the
// daemon's watchdog brings back nothing.
func (n *node) idle() bool {
	n.mu.Lock()
	daemon := 0
	if n.daemon != nil {
		daemon = n.daemon.cmd.Process.Pid
	}
	n.mu.Unlock()
	return !slices.ContainsFunc(n.processes(), func(pid int) bool { return pid != daemon && !strings.HasSuffix(title(pid), "--watchdog") })
}

// startDaemon starts repmgrd, and starts it again whenever it ends, until stopDaemon.
func (n *node) startDaemon() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keep = true
	if n.daemon != nil {
		return nil
	}
	return n.launchDaemon()
}

// launchDaemon needs the lock.
func (n *node) launchDaemon() error {
	log, err := os.OpenFile(filepath.Join(n.dir, "log", "daemon.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	program, as := []string{n.c.o.Suite.Repmgrd, "-f", n.confFile(), "--daemonize=false", "--no-pid-file"}, n.c.user
	switch n.unable {
	case foreignUser:
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
	case foreignSpace:
		program = append([]string{
			"unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
			"setpriv", fmt.Sprintf("--reuid=%d", as.Uid), fmt.Sprintf("--regid=%d", as.Gid), "--clear-groups", "--pdeathsig", "KILL",
		}, program...)
		as = nil
	}
	cmd := n.command(context.Background(), program[0], program[1:]...)
	cmd.Env = append(cmd.Env, n.env...)
	toDie := len(n.env) > 0 // its end is wanted
	n.env = nil
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.m.start(cmd, as); err != nil {
		return fmt.Errorf("start repmgrd of %s: %w", n.name(), err)
	}
	d := &daemon{cmd: cmd, ours: toDie, ended: make(chan struct{})}
	n.daemon = d
	n.c.wg.Go(func() { n.watch(d) })
	return nil
}

// watch waits for the end of a daemon and is its supervisor.
func (n *node) watch(d *daemon) {
	err := d.cmd.Wait()
	n.mu.Lock()
	n.daemon = nil
	close(d.ended)
	if !d.ours && n.keep {
		n.deaths = append(n.deaths, fmt.Sprintf("repmgrd of %s ended by itself: %v", n.name(), err))
	}
	n.mu.Unlock()
	if wait.Pause(n.c.ctx, restartAfter) != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.keep && n.daemon == nil {
		if err := n.launchDaemon(); err != nil {
			n.deaths = append(n.deaths, err.Error())
		}
	}
}

// signalDaemon sends a signal to the daemon. One that kills is our doing.
func (n *node) signalDaemon(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.daemon == nil {
		return
	}
	n.daemon.ours = n.daemon.ours || s == syscall.SIGKILL || s == syscall.SIGTERM
	_ = n.daemon.cmd.Process.Signal(s)
}

// stopDaemon ends the daemon with a signal and keeps it down.
func (n *node) stopDaemon(ctx context.Context, s syscall.Signal) error {
	n.mu.Lock()
	n.keep = false
	d := n.daemon
	n.mu.Unlock()
	if d == nil {
		return nil
	}
	n.signalDaemon(s)
	select {
	case <-d.ended:
		return nil
	case <-time.After(15 * time.Second):
		return fmt.Errorf("repmgrd of %s did not end within 15s of %s", n.name(), s)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mayDie makes the daemon anew with REPMGR_TEST_DIE_AT: it kills itself at that step, once.
func (n *node) mayDie(ctx context.Context, step string) error {
	if err := n.stopDaemon(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	n.mu.Lock()
	n.env = []string{"REPMGR_TEST_DIE_AT=" + step}
	n.mu.Unlock()
	return n.startDaemon()
}

// power cuts it: everything on the machine dies at once and stays down.
func (n *node) power(ctx context.Context) error {
	n.mu.Lock()
	n.keep = false
	if n.daemon != nil {
		n.daemon.ours = true
	}
	n.mu.Unlock()
	return killAll(ctx, "all processes of "+n.name(), n.processes)
}

// takeDeaths returns how daemons ended by themselves since the last call.
func (n *node) takeDeaths() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.deaths
	n.deaths = nil
	return d
}

// nodeView is what a node's server says of itself.
type nodeView struct {
	Up         bool
	InRecovery bool
	Timeline   int
	LSN        uint64 // written or replayed
	Streams    bool   // a standby receives WAL, on Timeline
	Err        error
}

const viewSQL = `SELECT r,
	CASE WHEN r THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()))
	     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
	(CASE WHEN r THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)::bigint,
	coalesce((SELECT status = 'streaming' FROM pg_stat_wal_receiver), false)
FROM pg_is_in_recovery() r`

func (n *node) view(ctx context.Context) (v nodeView) {
	v.Err = n.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		var lsn int64
		err := c.QueryRow(ctx, viewSQL).Scan(&v.InRecovery, &v.Timeline, &lsn, &v.Streams)
		v.LSN, v.Up = uint64(lsn), err == nil
		return err
	})
	if v.Err != nil && !v.Up {
		v.Err = errors.Join(fmt.Errorf("%s does not answer", n.name()), v.Err)
	}
	return v
}
