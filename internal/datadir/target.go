package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
)

// A clone is made in a staging directory inside the target, and moved up in one short last
// step, with global/ (which has pg_control) at the very end. So the target may be a mount point
// or the current directory, an incomplete copy can not be started, and everything in the
// staging directory may be removed.
const (
	StagingName = ".repmgr-clone"
	journalName = "journal" // in the staging directory: lists what we use outside of it
)

// Lines of the journal begin with one of these words. After the first two follow the device and
// inode of the directory and its quoted name, so that only a directory that was claimed is ever
// removed, and neither another one of that name nor one from an incomplete line.
const (
	journalMade   = "made"   // we made the directory
	journalFilled = "filled" // it existed, and was empty
	journalCommit = "commit" // from now on the copy is being moved up
)

// Target is the future data directory.
type Target struct {
	dir     string
	staging string
	Data    string // the directory that the Cloner fills
	force   bool
	made    bool     // dir itself did not exist
	Replace []string // the old entries of dir, which Begin deletes
	moved   []string // the entries that Commit has moved into place
	lock    *os.File // dir, locked against a second clone
}

// Open checks the directory and changes nothing. The error says why it can not be used. With
// runs, a server that runs in the directory is no error.
func Open(dir string, force, runs bool) (*Target, error) {
	t := &Target{dir: dir, staging: filepath.Join(dir, StagingName), force: force}
	t.Data = filepath.Join(t.staging, "data")
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.made = true
		return t, usable(Nearest(dir))
	case err != nil:
		return nil, failure.Of(failure.ErrDirectory, "read directory: %w", err)
	}
	if err := usable(dir); err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !tolerated(dir, e) {
			t.Replace = append(t.Replace, e.Name())
		}
	}
	if pid := postmaster.PID(dir); pid != 0 && !runs {
		return nil, failure.Of(failure.ErrDirectory, "a server runs in %s (pid %d)", dir, pid)
	}
	data := slices.DeleteFunc(slices.Clone(t.Replace), isNote)
	switch {
	case len(data) == 0:
		return t, nil
	case t.interrupted():
		return t, nil // an earlier clone was killed in its last step, and all of this is its data
	case !force:
		return nil, failure.Of(failure.ErrDirectory, "%s is not empty: it holds %s", dir, Some(data))
	case !slices.Contains(data, "PG_VERSION"):
		return nil, failure.Of(failure.ErrDirectory, "%s is not a PostgreSQL data directory (it holds %s, and no PG_VERSION): even --force does not delete it", dir, Some(data))
	default:
		return t, nil
	}
}

// tolerated reports whether an entry may stay in the directory: our staging directory, the
// lost+found of a mount point, and the program and its configuration, for people who run
// ./repmgr in the future data directory.
func tolerated(dir string, e fs.DirEntry) bool {
	switch e.Name() {
	case StagingName, "lost+found", "repmgr.conf":
		return true
	case "repmgr", "repmgrd":
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	}
	return false
}

// isNote reports whether a name is that of a file in which repmgrd keeps its state. Such a file
// can remain where the data was removed while repmgrd was running.
func isNote(name string) bool {
	name = strings.TrimSuffix(name, ".tmp")
	return name == postmaster.NodesFile || name == postmaster.EventsFile || name == postmaster.DamagedEventsFile
}

// Some lists the first few of many names, for messages.
func Some(names []string) string {
	if len(names) > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:4], ", "), len(names)-4)
	}
	return strings.Join(names, ", ")
}

// usable returns an error where we may not write in the directory.
func usable(dir string) error {
	const write, search = 2, 1
	if err := syscall.Access(dir, write|search); err != nil {
		return failure.Of(failure.ErrDirectory, "%s is not writable for this user: %w", dir, err)
	}
	return nil
}

// tablespaceContents matches the names in a tablespace of PostgreSQL: a directory for each release.
var tablespaceContents = regexp.MustCompile(`^PG_\d+(\.\d+)?_\d{9}$`)

// OwnTablespaces are the directories outside of the old data that have its tablespaces: with
// force their contents are deleted, too. A directory that has anything else in it, or that
// another running server uses, is left out.
func (t *Target) OwnTablespaces() (dirs []string) {
	if !t.force {
		return nil
	}
	for _, dir := range tablespacesOf(t.dir) {
		entries, err := os.ReadDir(dir)
		foreign := func(e fs.DirEntry) bool { return !e.IsDir() || !tablespaceContents.MatchString(e.Name()) }
		if err == nil && !slices.ContainsFunc(entries, foreign) && !usedElsewhere(dir, t.dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// tablespacesOf are the tablespace directories of a data directory that lie outside of it,
// without symbolic links.
func tablespacesOf(data string) (dirs []string) {
	links, _ := filepath.Glob(filepath.Join(data, "pg_tblspc", "*"))
	for _, link := range links {
		if dir, err := filepath.EvalSymlinks(link); err == nil && !Within(dir, Resolve(data)) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// usedElsewhere reports whether a server on this machine with another data directory has a
// tablespace in dir.
func usedElsewhere(dir, data string) bool {
	works, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range works {
		cwd, err := os.Readlink(link)
		if err == nil && cwd != Resolve(data) && slices.Contains(tablespacesOf(cwd), dir) {
			return true
		}
	}
	return false
}

// UsableTablespace returns an error where a tablespace can not be put into dir.
func UsableTablespace(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usable(Nearest(dir))
	case err != nil:
		return failure.Of(failure.ErrDirectory, "read directory: %w", err)
	case len(entries) > 0:
		return failure.Of(failure.ErrDirectory, "%s is not empty", dir)
	default:
		return usable(dir)
	}
}

// Begin makes the staging directory; with force it deletes the old data. mode is the
// data_directory_mode of the source.
func (t *Target) Begin(mode string) error {
	perm := os.FileMode(0o700)
	if mode == "0750" {
		perm = 0o750
	}
	if err := os.MkdirAll(t.dir, perm); err != nil {
		return failure.Of(failure.ErrDirectory, "make the directory: %w", err)
	}
	if err := t.acquire(); err != nil {
		return err
	}
	if err := os.Chmod(t.dir, perm); err != nil {
		return failure.Of(failure.ErrDirectory, "set the directory's mode: %w", err)
	}
	now, err := Open(t.dir, t.force, false) // the directory may have changed since the first check
	if err != nil {
		return err
	}
	t.Replace = now.Replace
	t.clear()
	// pg_control is deleted first, so that the remaining data can not be started. PG_VERSION is
	// deleted last, so that --force still accepts the directory after an interruption.
	if len(t.Replace) > 0 {
		_ = os.Remove(filepath.Join(t.dir, "global", "pg_control"))
	}
	for _, dir := range t.OwnTablespaces() { // while the data still says which they are
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return failure.Of(failure.ErrDirectory, "delete the old data of a tablespace: %w", err)
			}
		}
	}
	slices.SortStableFunc(t.Replace, func(a, b string) int { return strings.Compare(versionLast(a), versionLast(b)) })
	for _, name := range t.Replace {
		if err := os.RemoveAll(filepath.Join(t.dir, name)); err != nil {
			return failure.Of(failure.ErrDirectory, "delete the old data: %w", err)
		}
	}
	if err := os.MkdirAll(t.Data, perm); err != nil {
		return failure.Of(failure.ErrDirectory, "make the staging directory: %w", err)
	}
	return nil
}

// acquire locks the directory against a second clone, for as long as this process has it open.
func (t *Target) acquire() error {
	f, err := os.Open(t.dir)
	if err != nil {
		return failure.Of(failure.ErrDirectory, "open the directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return failure.Of(failure.ErrDirectory, "another clone is under way in %s", t.dir)
	}
	t.lock = f
	return nil
}

// interrupted reports whether a clone was killed while it moved its copy up.
func (t *Target) interrupted() bool {
	journal, _ := os.ReadFile(filepath.Join(t.staging, journalName))
	_, err := os.Stat(filepath.Join(t.dir, "global"))
	return strings.HasSuffix(string(journal), journalCommit+"\n") && errors.Is(err, fs.ErrNotExist)
}

func versionLast(name string) string {
	if name == "PG_VERSION" {
		return "1"
	}
	return "0"
}

// note adds a line to the journal and syncs it.
func (t *Target) note(line string) error {
	f, err := os.OpenFile(filepath.Join(t.staging, journalName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Sync(), f.Close(), durable.SyncDir(t.staging))
}

// Claim reserves a directory outside of the target for this clone, and makes it where it is
// missing. It is recorded in the journal on disk, so that it can be cleared away if the clone is
// killed.
func (t *Target) Claim(dir string) error {
	if err := UsableTablespace(dir); err != nil {
		return err
	}
	how := journalFilled
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		how = journalMade
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return failure.Of(failure.ErrDirectory, "make the directory: %w", err)
		}
	}
	id, err := inode(dir)
	if err != nil {
		return failure.Of(failure.ErrDirectory, "look at the directory: %w", err)
	}
	return t.note(fmt.Sprintf("%s %s %q", how, id, dir))
}

// inode identifies a directory by its device and inode.
func inode(dir string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil {
		return "", err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return "", fmt.Errorf("%s is not a directory", dir)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// Claimed are the directories outside of the target that the journal lists and that are still
// the same ones, and whether we made them.
func (t *Target) Claimed() map[string]bool {
	ours := map[string]bool{}
	journal, _ := os.ReadFile(filepath.Join(t.staging, journalName))
	for line := range strings.Lines(string(journal)) {
		how, rest, _ := strings.Cut(line, " ")
		id, quoted, _ := strings.Cut(rest, " ")
		dir, err := strconv.Unquote(strings.TrimSuffix(quoted, "\n"))
		if err != nil || !strings.HasSuffix(line, "\n") || !filepath.IsAbs(dir) || how != journalMade && how != journalFilled {
			continue
		}
		if now, err := inode(dir); err == nil && now == id {
			ours[dir] = how == journalMade
		}
	}
	return ours
}

// Commit moves the finished copy into its place.
func (t *Target) Commit() error {
	entries, err := os.ReadDir(t.Data)
	if err != nil {
		return failure.Of(failure.ErrCopy, "read the copy: %w", err)
	}
	if err := t.note(journalCommit); err != nil {
		return failure.Of(failure.ErrCopy, "write the journal: %w", err)
	}
	last := func(e fs.DirEntry) int { return map[string]int{"PG_VERSION": 1, "global": 2}[e.Name()] }
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int { return last(a) - last(b) })
	for _, e := range entries {
		if e.Name() == "global" {
			// Everything else must be in place and on disk before the server can be started.
			if err := durable.SyncDir(t.dir); err != nil {
				return failure.Of(failure.ErrCopy, "sync %s: %w", t.dir, err)
			}
		}
		if _, err := os.Lstat(filepath.Join(t.dir, e.Name())); err == nil {
			if tolerated(t.dir, e) {
				continue // the source has such an entry, too; the one here stays
			}
			return failure.Of(failure.ErrCopy, "move the copy into its place: %s has appeared in %s meanwhile", e.Name(), t.dir)
		}
		if err := os.Rename(filepath.Join(t.Data, e.Name()), filepath.Join(t.dir, e.Name())); err != nil {
			return failure.Of(failure.ErrCopy, "move the copy into its place: %w", err)
		}
		t.moved = append(t.moved, e.Name())
	}
	if err := errors.Join(os.RemoveAll(t.staging), durable.SyncDir(t.dir)); err != nil {
		return failure.Of(failure.ErrCopy, "finish the copy: %w", err)
	}
	_ = t.lock.Close()
	return nil
}

// Abandon removes what this clone made.
func (t *Target) Abandon() {
	if t.lock == nil {
		return // Begin was not called
	}
	defer func() { _ = t.lock.Close() }()
	slices.Reverse(t.moved) // global first, so that the rest can not be started
	for _, name := range t.moved {
		_ = os.RemoveAll(filepath.Join(t.dir, name))
	}
	t.clear()
	if t.made {
		_ = os.Remove(t.dir) // succeeds only if the directory is empty
	}
}

// clear removes the staging directory, and what the journal in it claims.
func (t *Target) clear() {
	for dir, made := range t.Claimed() {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
		if made {
			_ = os.Remove(dir)
		}
	}
	_ = os.RemoveAll(t.staging)
}
