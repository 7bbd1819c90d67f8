package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const (
	controlFile       = "global/pg_control"
	controlUnfinished = "global/pg_control.unfinished"
	manifestFile      = "backup_manifest"
	tablespaceDir     = "pg_tblspc"

	maxPending = 64 // pieces in one write
)

// target is the data directory in the making. Every path from the source goes
// through an os.Root, so that no name and no symbolic link can lead out of the
// data directory or the tablespace it belongs to. It belongs to one goroutine;
// the WAL goroutine uses only walDir, walFile and walDone.
type target struct {
	o     Options
	meter *meter

	dir      string
	dirMode  os.FileMode // the most that a directory may be open to
	fileMode os.FileMode

	base    *os.Root
	roots   map[uint32]*os.Root   // of the tablespaces, by oid
	spaces  map[uint32]tablespace // as the source has them
	outside map[uint32]string     // where they went; without those in place
	linked  map[uint32]bool
	disks   *syncer

	root    *os.Root // of the current archive
	file    *os.File // the current file
	name    string   // and its name, for errors
	written int64
	kicked  int64 // of written, what the kernel was told to write out
	pending [][]byte

	sawControl bool
}

// newTarget makes the directory.
func newTarget(o Options, s source, m *meter) (_ *target, err error) {
	t := &target{
		o: o, meter: m, dirMode: 0o700, fileMode: 0o600,
		roots: map[uint32]*os.Root{}, spaces: map[uint32]tablespace{}, outside: map[uint32]string{}, linked: map[uint32]bool{},
		disks: newSyncer(!o.NoSync),
	}
	if s.groupAccess {
		t.dirMode, t.fileMode = 0o750, 0o640
	}
	if t.dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("make target directory: %w", err)
	}
	if t.base, err = t.makeDir(t.dir); err != nil {
		return nil, fmt.Errorf("make target directory: %w", explainFile(err))
	}
	t.root = t.base
	// WAL comes from its own goroutine, before or after the archive names them.
	for _, d := range []string{walDir, archiveDir} {
		if err := t.mkdir(tarHeader{name: d, mode: uint32(t.dirMode)}); err != nil {
			t.close()
			return nil, fmt.Errorf("make target directory: %w", explainFile(err))
		}
	}
	return t, nil
}

// makeDir makes an empty directory, or takes one, and opens it.
func (t *target) makeDir(dir string) (*os.Root, error) {
	if err := checkEmpty(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, t.dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Chmod(dir, t.dirMode); err != nil { // whatever it was, and the umask is
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := t.disks.add(dir); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// addTablespace decides where a tablespace goes, and makes its directory.
func (t *target) addTablespace(s tablespace) error {
	if s.oid == 0 {
		return nil
	}
	if _, ok := t.spaces[s.oid]; ok {
		return fmt.Errorf("add tablespace %d: it came twice", s.oid)
	}
	t.spaces[s.oid] = s
	inPlace := filepath.Join(tablespaceDir, strconv.FormatUint(uint64(s.oid), 10))
	if s.location == inPlace {
		if err := t.base.MkdirAll(inPlace, t.dirMode); err != nil {
			return fmt.Errorf("add tablespace %d: %w", s.oid, explainFile(err))
		}
		root, err := t.base.OpenRoot(inPlace)
		t.roots[s.oid] = root
		return err
	}
	path := s.location
	if t.o.TablespaceMap != nil {
		if p := t.o.TablespaceMap(s.oid, s.location); p != "" {
			path = p
		}
	}
	if !filepath.IsAbs(path) {
		return fmt.Errorf("add tablespace %d: %w: directory %q is not absolute", s.oid, ErrUnsafePath, path)
	}
	path = filepath.Clean(path)
	for oid, other := range t.outside {
		if other == path {
			return fmt.Errorf("add tablespace %d: tablespace %d goes to %s too", s.oid, oid, path)
		}
	}
	if t.o.OnTablespace != nil {
		if err := t.o.OnTablespace(path); err != nil {
			return fmt.Errorf("add tablespace %d: %w", s.oid, err)
		}
	}
	root, err := t.makeDir(path)
	if err != nil {
		return fmt.Errorf("add tablespace %d: %w", s.oid, explainFile(err))
	}
	t.roots[s.oid], t.outside[s.oid] = root, path
	return nil
}

// enter makes s the tablespace that the next entries belong to.
func (t *target) enter(s tablespace) error {
	t.root = t.base
	if s.oid != 0 {
		t.root = t.roots[s.oid]
	}
	if t.root == nil {
		return fmt.Errorf("unpack tablespace %d: it was not announced", s.oid)
	}
	return nil
}

// entry makes a directory or a symbolic link, or opens a file.
func (t *target) entry(h tarHeader) (err error) {
	switch h.kind {
	case tarDirectory:
		err = t.mkdir(h)
	case tarSymlink:
		err = t.symlink(h)
	default:
		err = t.create(h)
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", h.name, explainFile(err))
	}
	return nil
}

func (t *target) mkdir(h tarHeader) error {
	if h.name == "." {
		return nil
	}
	mode := os.FileMode(h.mode)&t.dirMode | 0o700
	err := t.root.Mkdir(h.name, mode)
	if errors.Is(err, fs.ErrExist) {
		info, serr := t.root.Lstat(h.name)
		if serr != nil || !info.IsDir() {
			return err
		}
		return nil // ours: pg_wal, or a tablespace in place
	}
	if err == nil && mode&0o077 != 0 {
		err = t.root.Chmod(h.name, mode) // whatever the umask is
	}
	return err
}

// symlink makes the link of a tablespace. The source sends no other ones, and
// this one only to where it said the tablespace is.
func (t *target) symlink(h tarHeader) error {
	dir, name := filepath.Split(h.name)
	oid, err := strconv.ParseUint(name, 10, 32)
	s, ok := t.spaces[uint32(oid)]
	if err != nil || !ok || t.root != t.base || dir != tablespaceDir+"/" || h.link != s.location {
		return fmt.Errorf("%w: symbolic link to %q", ErrUnsafePath, h.link)
	}
	t.linked[s.oid] = true
	return t.base.Symlink(t.outside[s.oid], h.name)
}

func (t *target) create(h tarHeader) error {
	name := h.name
	if t.root == t.base && name == controlFile {
		name, t.sawControl = controlUnfinished, true
	}
	return t.openFile(t.root, name, os.FileMode(h.mode)&t.fileMode|0o600)
}

func (t *target) openFile(root *os.Root, name string, mode os.FileMode) (err error) {
	t.name, t.written, t.kicked = name, 0, 0
	t.file, err = root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err == nil && mode&0o077 != 0 {
		err = t.file.Chmod(mode) // whatever the umask is
	}
	return err
}

// contents remembers p, which the connection keeps until it calls flush: one
// large write costs the kernel much less than many small ones.
func (t *target) contents(p []byte) error {
	t.pending = append(t.pending, p)
	t.meter.bytes.Add(int64(len(p)))
	if len(t.pending) == maxPending {
		return t.flush()
	}
	return nil
}

// flush writes what contents remembered.
func (t *target) flush() error {
	if len(t.pending) == 0 {
		return nil
	}
	n, err := writeAll(t.file, t.pending)
	t.pending = t.pending[:0]
	t.written += n
	if err != nil {
		return fmt.Errorf("unpack %s: %w", t.name, explainFile(err))
	}
	if !t.o.NoSync && t.written-t.kicked >= writeoutSize {
		startWriteout(t.file, t.kicked, t.written-t.kicked)
		t.kicked = t.written
	}
	return nil
}

func (t *target) endFile() error {
	if err := t.flush(); err != nil {
		return err
	}
	if !t.o.NoSync && t.written > t.kicked {
		startWriteout(t.file, t.kicked, t.written-t.kicked)
	}
	err := t.file.Close()
	t.file = nil
	t.meter.files.Add(1)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", t.name, explainFile(err))
	}
	return nil
}

// beginManifest opens backup_manifest; manifestWrite takes its contents.
func (t *target) beginManifest() error {
	if err := t.openFile(t.base, manifestFile, t.fileMode); err != nil {
		return fmt.Errorf("write manifest: %w", explainFile(err))
	}
	return nil
}

func (t *target) manifestWrite(p []byte) (int, error) {
	n, err := t.file.Write(p)
	if err != nil {
		err = fmt.Errorf("write manifest: %w", explainFile(err))
	}
	return n, err
}

// complete checks that all there should be has come.
func (t *target) complete() error {
	if t.file != nil { // the manifest
		err := t.file.Close()
		t.file = nil
		if err != nil {
			return fmt.Errorf("write manifest: %w", explainFile(err))
		}
	}
	if !t.sawControl {
		return fmt.Errorf("end backup: the source sent no %s", controlFile)
	}
	for oid := range t.outside {
		if !t.linked[oid] {
			return fmt.Errorf("end backup: the source sent no link of tablespace %d", oid)
		}
	}
	return nil
}

// finish puts everything on disk, then gives pg_control its name.
func (t *target) finish(ctx context.Context) error {
	if err := t.sync(); err != nil {
		return fmt.Errorf("sync %s: %w", t.dir, explainFile(err))
	}
	// From here on the copy is complete; a caller that gave up must not find
	// one that starts.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := t.base.Rename(controlUnfinished, controlFile); err != nil {
		return fmt.Errorf("finish copy: %w", explainFile(err))
	}
	if t.o.NoSync {
		return nil
	}
	if err := syncDir(filepath.Join(t.dir, filepath.Dir(controlFile))); err != nil {
		return fmt.Errorf("finish copy: %w", err)
	}
	return nil
}

func (t *target) sync() error {
	if t.o.NoSync {
		return nil
	}
	dirs := []string{t.dir}
	for _, d := range t.outside {
		dirs = append(dirs, d)
	}
	if err := t.disks.sync(dirs); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

// syncDir puts a directory's names on disk.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (t *target) close() {
	if t.file != nil {
		t.file.Close()
	}
	for _, r := range t.roots {
		if r != nil {
			r.Close()
		}
	}
	t.disks.close()
	t.base.Close()
}
