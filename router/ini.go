package router

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/failure"
)

var (
	sectionLine  = regexp.MustCompile(`^\s*\[(.*)\]`)
	databaseLine = regexp.MustCompile(`^(\s*("(?:[^"]|"")*"|[^"\s=;#\[%][^"\s=]*)\s*=)(.*)$`)
	pairOfLine   = regexp.MustCompile(`(?:^|\s+)(\w+)\s*=\s*(?:'(?:[^']|'')*'|\S*)`)
)

// rewrite gives each database of a file of PgBouncer the host and the port of the primary. What else a line says, and every
// other line, stays. A file without sections is one that the section of databases includes.
func rewrite(text, host, port string) (out string, names map[string]bool) {
	if strings.ContainsAny(host, " '") {
		host = "'" + strings.ReplaceAll(host, "'", "''") + "'"
	}
	names = map[string]bool{}
	lines, section := strings.Split(text, "\n"), "databases"
	for i, line := range lines {
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		m := databaseLine.FindStringSubmatch(line)
		if m == nil || section != "databases" {
			continue
		}
		name := m[2]
		if strings.HasPrefix(name, `"`) {
			name = strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
		}
		names[name] = true
		rest := pairOfLine.ReplaceAllStringFunc(m[3], func(pair string) string {
			if key, _, _ := strings.Cut(pair, "="); slices.Contains([]string{"host", "port"}, strings.TrimSpace(key)) {
				return ""
			}
			return pair
		})
		if rest != "" && rest[0] > ' ' {
			rest = " " + rest
		}
		lines[i] = fmt.Sprintf("%s host=%s port=%s%s", m[1], host, port, rest)
	}
	return strings.Join(lines, "\n"), names
}

// readFile reads a file of databases, and their names. It says beforehand, and not only in the next failover, that the file
// can not be replaced. Anything but a file, such as a FIFO, would be waited for without end.
func readFile(path string) (real, text string, names map[string]bool, err error) {
	if real, err = filepath.EvalSymlinks(path); err != nil {
		return "", "", nil, err
	}
	info, err := os.Stat(real)
	if err == nil && !info.Mode().IsRegular() {
		err = failure.WithHint(fmt.Errorf("%s is no file", real), "Set router_pgbouncer_file to pgbouncer.ini, or to a file that it includes.")
	}
	if err != nil {
		return "", "", nil, err
	}
	data, err := os.ReadFile(real)
	if err != nil {
		return "", "", nil, err
	}
	if _, names = rewrite(string(data), "", ""); len(names) == 0 {
		return "", "", nil, failure.WithHint(fmt.Errorf("%s has no line of a database", real), "Write one for each, such as: app = dbname=app")
	}
	if err := unix.Access(filepath.Dir(real), unix.W_OK); err != nil {
		return "", "", nil, failure.WithHint(fmt.Errorf("%s can not be replaced: its directory: %w", real, err), "Let the user of repmgrd write to %s, or move the file to another directory.", filepath.Dir(real))
	}
	return real, string(data), names, nil
}

// rewriting has a channel for each file, which is full while a router of this process replaces that file.
var rewriting sync.Map

// rewriteFile is rewrite for a file, which keeps its mode and its group. Routers that have one file together replace it one after
// the other, and the next one finds nothing to do; on a disk that hangs it waits for no longer than ctx.
func rewriteFile(ctx context.Context, path, host, port string) (names map[string]bool, err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	made, _ := rewriting.LoadOrStore(path, make(chan struct{}, 1))
	turn, _ := made.(chan struct{})
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	path, text, names, err := readFile(path)
	now, _ := rewrite(text, host, port)
	if err == nil && now != text {
		err = replace(path, []byte(now))
	}
	<-turn
	if err == nil && now != text {
		err = durable.SyncDir(filepath.Dir(path))
	}
	return names, err
}

// replace writes a file anew, so that a reader finds the old one or the new one, also after a crash: the new one for certain when
// its directory is synced.
func replace(path string, data []byte) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s.%d.repmgr", path, os.Getpid()) // the same each time: an error that names it is no new one
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(name)
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()))
	if s, ok := info.Sys().(*syscall.Stat_t); ok && err == nil {
		err = f.Chown(-1, int(s.Gid))
		if errors.Is(err, fs.ErrPermission) && info.Mode().Perm()&0o004 != 0 { // everybody may read it
			err = nil
		} else if err != nil {
			err = failure.WithHint(err, "Let the user of repmgrd be a member of the group of the file.")
		}
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(name, path)
	}
	return err
}
