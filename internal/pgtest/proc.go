package pgtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// process is a row of /proc.
type process struct {
	pid, parent int
	state       byte // as in /proc/PID/stat; Z is dead but not reaped
}

// command is the command line, or empty when the process is gone.
func (p process) command() string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

func processes() (all []process) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// "PID (name with anything) STATE PPID ..."
		_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
		var p process
		if _, err := fmt.Sscanf(rest, "%c %d", &p.state, &p.parent); err != nil {
			continue
		}
		p.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
		all = append(all, p)
	}
	return all
}

// running returns the live processes whose working directory is dir: for a data
// directory, PostgreSQL's postmaster and all its children, orphaned or not.
func running(dir string) (pids []int) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() && worksIn(pid, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// worksIn reports whether the working directory of a process is dir. A zombie has none.
func worksIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	return err == nil && cwd == dir
}

// stop sends SIGSTOP and waits until no thread of the process goes on: the signal
// is delivered a moment after it was sent. It reports whether there was a process.
func stop(pid int) bool {
	if syscall.Kill(pid, syscall.SIGSTOP) != nil {
		return false
	}
	for goes := true; goes; {
		goes = false
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, t := range threads {
			text, _ := os.ReadFile(t) // empty: the thread has ended
			_, state, _ := strings.Cut(string(text), ") ")
			goes = goes || state != "" && !strings.Contains("TtZX", state[:1])
		}
	}
	return true
}

// copyTree copies a file or a directory with its modes. Files for which skip
// says true by their path inside the tree are left out, and so are those that
// vanish meanwhile.
func copyTree(from, to string, skip func(rel string) bool) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if rel != "." && skip != nil && skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err == nil {
			target := filepath.Join(to, rel)
			switch {
			case d.IsDir():
				if err = os.Mkdir(target, info.Mode().Perm()); errors.Is(err, fs.ErrExist) {
					err = nil
				}
			case d.Type().IsRegular():
				err = copyFile(path, target, info.Mode().Perm())
			default:
				return fmt.Errorf("copy %s: neither file nor directory", path)
			}
		}
		if errors.Is(err, fs.ErrNotExist) && path != from {
			if _, gone := os.Lstat(path); gone != nil {
				return nil
			}
		}
		return err
	})
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Chmod(mode); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}

// startTied starts cmd so that it gets the signal when this process dies, and
// returns a channel that is closed when it has ended and is reaped. The signal
// is tied to the OS thread that started it, which must therefore live as long.
func startTied(cmd *exec.Cmd, atOurDeath syscall.Signal) (<-chan struct{}, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: atOurDeath, Setpgid: true}
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended shows in its log
		}
	}()
	return ended, <-started
}
