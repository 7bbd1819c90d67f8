package router

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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

// databasesOf are the names of the databases in a file.
func databasesOf(path string) (map[string]bool, error) {
	text, err := os.ReadFile(path)
	_, names := rewrite(string(text), "", "")
	return names, err
}

// rewriteFile is rewrite for a file, which keeps its mode and its group. It says beforehand, and not only in the
// next failover, that the file can not be replaced.
func rewriteFile(path, host, port string) (names map[string]bool, err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	now, names := rewrite(string(text), host, port)
	if len(names) == 0 {
		return nil, failure.WithHint(fmt.Errorf("%s has no line of a database", path), "Write one for each, such as: app = dbname=app")
	}
	if err := unix.Access(filepath.Dir(path), unix.W_OK); err != nil {
		return nil, failure.WithHint(fmt.Errorf("%s can not be replaced: its directory: %w", path, err), "Let the user of repmgrd write to %s, or move the file to another directory.", filepath.Dir(path))
	}
	if now != string(text) {
		err = replace(path, []byte(now))
	}
	return names, err
}

// replace writes a file anew, so that a reader finds the old one or the new one, also after a crash.
func replace(path string, data []byte) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.repmgr")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
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
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
