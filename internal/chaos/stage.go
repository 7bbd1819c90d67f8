package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A run happens in three processes, all of them this program:
//
//	outside   in the host's namespaces; it only waits
//	init      PID 1 of new PID, mount, network and IPC namespaces; it reaps
//	inside    the run itself
//
// Whatever happens to any of them, the kernel ends all processes of the run with
// its init, and with the last of them go the networks, the mounts and the shared
// memory. Nothing has a name outside, so nothing stale can stay and no two runs
// can meet.
const stageEnv = "REPMGR_CHAOS_STAGE"

// home is where the files of a run live: a tmpfs of its own over a directory
// that every machine has.
const home = "/run"

// Stage says which of the three this process is: "" is outside, or not isolated at all.
func Stage() string { return os.Getenv(stageEnv) }

// CanIsolate says why namespaces cannot be had, or nil.
func CanIsolate() error {
	if os.Getuid() != 0 {
		return errors.New("not root: network namespaces need it")
	}
	for _, program := range []string{"ip", "iptables-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: scripts/deps chaos installs it", err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{os.Args[0]}
	cmd.Env = append(os.Environ(), stageEnv+"=probe")
	cmd.SysProcAttr = isolated
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make namespaces: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

var isolated = &syscall.SysProcAttr{
	Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
}

// Isolate runs this program again with the same arguments in namespaces of its
// own and returns its exit code. When ctx ends the run is asked to end, and is
// ended a little later.
func Isolate(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, err error) {
	alive, ours, err := os.Pipe() // its other end tells init that we are gone, however we went
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"=init")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{alive}
	cmd.SysProcAttr = isolated
	err = cmd.Start()
	_ = alive.Close()
	if err != nil {
		return 0, fmt.Errorf("make namespaces: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _, _ = ours.Write([]byte("stop\n")) })
	defer stop()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// Probe and init: what TestMain calls when [Stage] says so.

// RunProbe tries what a run needs, and exits.
func RunProbe() {
	if err := ownMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if out, err := exec.Command("ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "ip link add type veth: %v: %s\n", err, out)
		os.Exit(1)
	}
	cmd := exec.Command("iptables-restore")
	cmd.Stdin = strings.NewReader("*filter\n-A INPUT -s 10.77.0.1 -j DROP\nCOMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "iptables-restore: %v: %s\n", err, out)
		os.Exit(1)
	}
	os.Exit(0)
}

// harnessFirst is how much nicer all others are than the harness: the weather that
// it makes and the clients that judge must not depend on how busy the processor is.
const harnessFirst = 15

// behind makes cmd run with the priority that everything usually has.
func behind(cmd *exec.Cmd) {
	if Stage() != "inside" {
		return
	}
	if nice, err := exec.LookPath("nice"); err == nil {
		cmd.Args = append([]string{"nice", "-n", fmt.Sprint(harnessFirst), cmd.Path}, cmd.Args[1:]...)
		cmd.Path = nice
	}
}

// RunInit is PID 1 of a run: it starts the inside, reaps every orphan at once,
// and exits with the inside's code. When the outside is gone or asks for it, the
// inside gets SIGTERM, and ten seconds later everything ends.
func RunInit() {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := ownMounts(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	runtime.LockOSThread() // the child inherits its thread's priority
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -harnessFirst)
	_ = os.Setenv(stageEnv, "inside")
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	go func() {
		_, _ = os.NewFile(3, "alive").Read(make([]byte, 16)) // a word, or the end
		_ = syscall.Kill(child.Pid, syscall.SIGTERM)
		<-time.After(10 * time.Second)
		thawAll()
		os.Exit(1)
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == child.Pid || errors.Is(err, syscall.ECHILD) {
			thawAll()
			if status.Signaled() {
				fmt.Fprintln(os.Stderr, "chaos: the run was ended by signal:", status.Signal())
				os.Exit(1)
			}
			os.Exit(status.ExitStatus())
		}
	}
}

// ownMounts makes the mount namespace ours: no mount leaves it, /proc shows the
// processes of the run only, and home is empty.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("chaos", home, "tmpfs", 0, "mode=755,size=80%"); err != nil {
		return fmt.Errorf("mount %s: %w", home, err)
	}
	return nil
}

// thawAll lets frozen file systems go on: a process that waits for one can not
// even be killed.
func thawAll() {
	for _, dir := range append(globs(filepath.Join(home, "*", "disk")), globs(filepath.Join(home, "*", "wal"))...) {
		_ = freeze(dir, false)
	}
}

// freeze stops or resumes all writing to the file system mounted at dir.
func freeze(dir string, frozen bool) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const fiFreeze, fiThaw = 0xC0045877, 0xC0045878
	request := uint(fiThaw)
	if frozen {
		request = fiFreeze
	}
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		return fmt.Errorf("freeze=%v %s: %w", frozen, dir, err)
	}
	return nil
}
