package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/cli"
)

// heldPidFile is the pid file of a running daemon, locked for as long as it runs:
// the number in it may be reused by another process, the lock can not.
type heldPidFile struct{ f *os.File }

// takePidFile writes our pid to path. A file that a dead daemon left is
// replaced; a daemon that lives is an error with the exit code that says so.
func takePidFile(path string) (*heldPidFile, error) {
	fail := func(format string, args ...any) (*heldPidFile, error) {
		return nil, &exitError{code: cli.ExitPidFile, err: fmt.Errorf(format, args...)}
	}
	for {
		// Not through a symbolic link: the default is in a directory where everybody may make one.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
		if err != nil {
			return fail("open pid file: %w", err)
		}
		old, _ := io.ReadAll(io.LimitReader(f, 32))
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(old)))
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err != nil:
			_ = f.Close()
			return fail("repmgrd runs already, with PID %d, by its pid file %s", pid, path)
		case pid != os.Getpid() && isDaemon(pid):
			_ = f.Close()
			return fail("another repmgrd, one that does not lock its pid file, runs already, with PID %d, by %s", pid, path)
		}
		if !sameFile(f, path) { // its owner removed it while we waited our turn
			_ = f.Close()
			continue
		}
		p := &heldPidFile{f}
		if err := f.Truncate(0); err != nil {
			p.remove()
			return fail("write pid file: %w", err)
		}
		if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
			p.remove()
			return fail("write pid file: %w", err)
		}
		return p, nil
	}
}

// remove ends the claim. It may be called on nil.
func (p *heldPidFile) remove() {
	if p == nil {
		return
	}
	_ = os.Remove(p.f.Name())
	_ = p.f.Close()
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// isDaemon tells whether a process of that number lives and is a repmgrd. A
// dead one that nobody has waited for yet does not live.
func isDaemon(pid int) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(stat, []byte(" (repmgrd) ")) && !bytes.Contains(stat, []byte(") Z "))
}
