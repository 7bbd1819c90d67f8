package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/cli"
	"github.com/pgrepmgr/repmgr/internal/pidfile"
)

// heldPidFile is the pid file of a running daemon, locked for as long as it runs:
// the number in it may be reused by another process, the lock can not.
type heldPidFile struct{ f *os.File }

// takePidFile writes our pid to path, unless a daemon of this node runs that was
// started when the default was another one.
func (d *daemon) takePidFile(path string) (*heldPidFile, error) {
	another := func(hint string) string {
		return fmt.Sprintf("A node has one repmgrd. %s Another node on this machine needs a pid file of its own: repmgrd_pid_file in %s, or --pid-file.", hint, d.cfg.File)
	}
	if pid := pidfile.Read(pidfile.Former()); path != pidfile.Former() && isDaemon(pid) && pid != os.Getpid() && startedWith(pid, d.cfg.File) {
		return nil, &exitError{
			cli.ExitPidFile, fmt.Errorf("repmgrd of node %q (ID: %d) runs already, with PID %d, by its former pid file %s", d.cfg.NodeName, d.cfg.NodeID, pid, pidfile.Former()),
			another(fmt.Sprintf("Stop that one: kill %d.", pid)),
		}
	}
	held, err := takePidFile(path)
	var coded *exitError
	if errors.As(err, &coded) {
		coded.err = fmt.Errorf("node %q (ID: %d): %w", d.cfg.NodeName, d.cfg.NodeID, coded.err)
		coded.hint = another("")
	}
	return held, err
}

// startedWith reports whether a daemon was started with that configuration file.
func startedWith(pid int, config string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && slices.ContainsFunc(bytes.Split(line, []byte{0}), func(arg []byte) bool { return strings.TrimPrefix(string(arg), "--config-file=") == config })
}

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
