package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// guarded is where a process has its files that no [Main] supervises.
var guarded struct {
	sync.Mutex
	base  string   // empty: there is none yet
	alive *os.File // the end of a pipe that is open as long as this process lives
}

// base is the directory of this run; empty: neither [Main] nor [Guard] has made one.
func base() string {
	if dir := os.Getenv(baseEnv); dir != "" {
		return dir
	}
	guarded.Lock()
	defer guarded.Unlock()
	return guarded.base
}

// guardScript waits for the end of the tests, however that comes, and clears up after them: what works in their directory is told
// to stop, a frozen process too, and is killed after two seconds; then the directory is removed.
const guardScript = `trap '' INT TERM HUP QUIT
read -r never
[ -d "$1" ] || exit 0
tries=0
while [ $tries -lt 100 ]; do
	tries=$((tries + 1)) left=
	for p in /proc/[0-9]*; do
		case $(readlink "$p/cwd" 2>/dev/null) in "$1"/*) left="$left ${p#/proc/}" ;; esac
	done
	[ -n "$left" ] || break
	if [ $tries -eq 1 ]; then kill -QUIT $left; kill -CONT $left; fi
	[ $tries -lt 20 ] || kill -KILL $left
	sleep 0.1
done 2>/dev/null
rm -rf -- "$1"`

// Usable says why this process can start no servers; nil: it can. binDir is as in [Options].
func Usable(binDir string) error {
	if os.Getuid() == 0 {
		return errors.New("PostgreSQL refuses to run as root, and these tests do: give the package func TestMain(m *testing.M) { repmgrtest.Main(m) }, which runs them as the OS user postgres, or start them as another user")
	}
	_, err := findInstall(binDir)
	return err
}

// Guard lets this process start servers without [Main], for packages whose TestMain is not ours. A process of its own
// ends the servers and removes the files when this one has ended, also by a panic, a timeout of the tests or SIGKILL.
// It may be called again, and does nothing then.
func Guard() error {
	if base() != "" {
		return nil
	}
	guarded.Lock()
	defer guarded.Unlock()
	if guarded.base != "" {
		return nil
	}
	dir, err := os.MkdirTemp(place(), "pgtest-")
	if err != nil {
		return fmt.Errorf("make directory for the run: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return fmt.Errorf("make directory for the run: %w", err)
	}
	alive, err := startGuard(dir)
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	guarded.base, guarded.alive = dir, alive
	return nil
}

// startGuard starts a process that clears up in dir when this one has ended. It is nobody's child here: [reap] would wait for it.
func startGuard(dir string) (alive *os.File, err error) {
	waits, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer waits.Close()
	cmd := exec.Command("/bin/sh", "-c", "(\n"+guardScript+"\n) <&3 3<&- &", "pgtest-guard", dir)
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{waits}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ctrl-C is for the tests
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the guard of the tests: %w", err), alive.Close())
	}
	return alive, nil
}

// TempDir makes a directory with a short path, which can hold Unix sockets, among the files of this run.
func TempDir() (string, error) { return os.MkdirTemp(base(), "d") }

// ShortDir is [TempDir] until the test ends.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := TempDir()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
