package chaos

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// limited keeps the last 4 kB that were written to it. Safe for concurrent use.
type limited struct {
	mu sync.Mutex
	b  []byte
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if over := len(l.b) - 4096; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.b))
}

// waitFor calls ok every few milliseconds until it returns nil. When limit is
// over it returns what was waited for and the last error.
func waitFor(ctx context.Context, limit time.Duration, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	pause := 5 * time.Millisecond
	var err error
	for {
		last := ok(ctx)
		if last == nil {
			return nil
		}
		if err == nil || ctx.Err() == nil { // what fails because the time is over tells nothing
			err = last
		}
		if cause := wait.Pause(ctx, pause); cause != nil {
			return fmt.Errorf("wait for %s: %w: %w", what, cause, err)
		}
		pause = min(pause*3/2, 50*time.Millisecond)
	}
}

// pids returns the processes that ok says yes to, never ourselves. Dead ones
// that were not waited for yet do not count.
func pids(ok func(pid int) bool) (found []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid > 1 && pid != os.Getpid() && ok(pid) && !isZombie(pid) {
			found = append(found, pid)
		}
	}
	return found
}

func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // gone
	}
	rest := b[bytes.LastIndexByte(b, ')')+1:]
	return len(rest) > 1 && rest[1] == 'Z'
}

// worksIn tells whether the process has this working directory, as postmaster
// and all its children have the data directory.
func worksIn(dir string) func(pid int) bool {
	return func(pid int) bool {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return err == nil && cwd == dir
	}
}

// title is the command line of a process: PostgreSQL's processes say what they are.
func title(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// signalAll sends a signal to each that is a process: 0 would be ourselves.
func signalAll(pids []int, s syscall.Signal) {
	for _, pid := range pids {
		if pid > 1 {
			_ = syscall.Kill(pid, s)
		}
	}
}

// killAll kills until none is left: they may have started others meanwhile.
func killAll(ctx context.Context, what string, list func() []int) error {
	return waitFor(ctx, 10*time.Second, what+" to be gone", func(context.Context) error {
		left := list()
		if len(left) == 0 {
			return nil
		}
		signalAll(left, syscall.SIGKILL)
		return fmt.Errorf("still there: %v", left)
	})
}
