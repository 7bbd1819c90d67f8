package salvage

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/wal"
)

// Saved describes the WAL that was saved before a rejoin discarded it. The directory holds
// summary.txt, waldump.txt (the output of pg_waldump), and pg_wal/ with the segments and the
// history files of their timelines.
type Saved struct {
	Dir        string
	Timeline   wal.Timeline
	Fork       wal.LSN  // where the server's WAL and that of the primary part
	End        wal.LSN  // the end of the last whole record, aligned
	Bytes      int64    // of WAL from Fork to End
	Recycled   bool     // the first segments were gone already, and only the rest could be saved
	Commits    []string // "transaction 733 at 2026-01-02 03:04:05.6 UTC", oldest first
	Relations  []string
	Segments   []string
	Unarchived []string // segments that had not been archived yet
}

// Branch is a part of a server's WAL that the other server does not have: a timeline, from the
// position From on.
type Branch struct {
	Timeline wal.Timeline
	From     wal.LSN
	to       wal.LSN // the end of the segments that exist; 0: not looked up yet
}

// LastCommon finds where two servers part: the last timeline that both went through, and the
// end of what they share of it. The target counts up to its LSN, the local server without an
// end. ok is false where they have no common timeline.
func LastCommon(local wal.Timeline, ours wal.History, target wal.Position, theirs wal.History) (t wal.Timeline, fork wal.LSN, ok bool) {
	a := append(slices.Clone(ours), wal.HistoryEntry{Timeline: local, SwitchLSN: math.MaxUint64})
	b := append(slices.Clone(theirs), wal.HistoryEntry{Timeline: target.Timeline, SwitchLSN: target.LSN})
	for i := 0; i < len(a) && i < len(b) && a[i].Timeline == b[i].Timeline; i++ {
		t, fork, ok = a[i].Timeline, min(a[i].SwitchLSN, b[i].SwitchLSN), true
		if a[i].SwitchLSN != b[i].SwitchLSN {
			break
		}
	}
	return t, fork, ok
}

// Branches are the parts of a server's WAL that lie beyond a fork on timeline t.
func Branches(local wal.Timeline, ours wal.History, t wal.Timeline, fork wal.LSN) []Branch {
	list := []Branch{{Timeline: t, From: fork}}
	for i, e := range ours {
		if e.Timeline >= t {
			next := local
			if i+1 < len(ours) {
				next = ours[i+1].Timeline
			}
			list = append(list, Branch{Timeline: next, From: e.SwitchLSN})
		}
	}
	return list
}

// Directory is the directory for what is saved of this server.
func (s *Server) Directory() string {
	return cmp.Or(s.Root, s.Dir+".salvage")
}

// dumpEnded matches the message of pg_waldump, 13 to 18, at the end of the existing WAL.
var dumpEnded = regexp.MustCompile(`error in WAL record at|could not find a valid record after`)

// walDump runs pg_waldump over a branch, as returned by present, up to the end of the existing
// WAL. The segments are named explicitly: otherwise pg_waldump determines their size from any
// file, which may be an empty one.
func (s *Server) walDump(ctx context.Context, b Branch, segmentSize uint32, out io.Writer, args ...string) error {
	program, err := s.Program("pg_waldump")
	if err != nil {
		return err
	}
	args = append([]string{"-p", filepath.Join(s.Dir, "pg_wal"), "-s", b.From.String(), "-e", b.to.String()}, args...)
	cmd := exec.CommandContext(ctx, program, append(args, wal.SegmentName(b.Timeline, b.From, segmentSize), wal.SegmentName(b.Timeline, b.to-1, segmentSize))...)
	var complaint bytes.Buffer
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, &complaint, time.Second
	shell.EndWithGroup(cmd)
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !dumpEnded.Match(complaint.Bytes()):
		return fmt.Errorf("run %s: %w%s", program, err, shell.AfterColon(shell.LastLines(complaint.Bytes(), 3)))
	}
	return nil
}

// WALBeyond says whether the server has a whole record of WAL at or behind b.
func (s *Server) WALBeyond(ctx context.Context, b Branch, segmentSize uint32) (bool, error) {
	have, moved := s.present([]Branch{b}, segmentSize)
	if moved {
		return len(have) > 0, nil // there is a gap: the WAL right behind b was recycled already
	}
	var out bytes.Buffer
	if err := s.walDump(ctx, have[0], segmentSize, &out, "-n", "1"); err != nil {
		return false, fmt.Errorf("look for WAL behind %s on timeline %d: %w", b.From, b.Timeline, err)
	}
	return out.Len() > 0, nil
}

// HasSegment reports whether the segment with an LSN exists, on any timeline. A promotion
// continues its segment under the new timeline's name.
func (s *Server) HasSegment(at wal.LSN, segmentSize uint32) bool {
	_, ok := s.segment(at, segmentSize)
	return ok
}

// segment is the file that holds the WAL at an LSN, on the newest timeline that has it.
func (s *Server) segment(at wal.LSN, segmentSize uint32) (path string, ok bool) {
	found, _ := filepath.Glob(filepath.Join(s.Dir, "pg_wal", "????????"+wal.SegmentName(0, at, segmentSize)[8:]))
	if len(found) == 0 {
		return "", false
	}
	return slices.Max(found), true
}

// present reduces each branch to the segments that the server still has; a branch without any
// is left out. moved reports whether something was missing. This is necessary because
// pg_waldump waits five seconds for a missing segment.
func (s *Server) present(list []Branch, segmentSize uint32) (have []Branch, moved bool) {
	entries, _ := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	for _, b := range list {
		b.to = 0
		for _, e := range entries { // sorted by name, and so by LSN within a timeline
			t, start, err := wal.ParseSegmentName(e.Name(), segmentSize)
			end := start + wal.LSN(segmentSize)
			switch {
			case err != nil || t != b.Timeline || end <= b.From:
			case b.to == 0:
				moved = moved || start > b.From
				b.From, b.to = max(b.From, start), end
			case start == b.to:
				b.to = end
			}
		}
		if b.to == 0 {
			moved = true
			continue
		}
		have = append(have, b)
	}
	return have, moved
}

// Save saves all of the server's WAL from the fork on, and the segments that were not archived
// yet. The directory gets its final name when it is complete. Where an earlier attempt has
// saved exactly the same, that directory is used.
func (s *Server) Save(ctx context.Context, node string, id int, list []Branch, segmentSize uint32) (sv Saved, err error) {
	fork := list[0]
	list, recycled := s.present(list, segmentSize)
	sv = Saved{Timeline: fork.Timeline, Fork: fork.From, End: fork.From, Commits: []string{}, Relations: []string{}, Segments: []string{}, Unarchived: []string{}, Recycled: recycled}
	root := s.Directory()
	name := fmt.Sprintf("-tl%d-%s", fork.Timeline, strings.Replace(fork.From.String(), "/", "_", 1))
	tmp := filepath.Join(root, fmt.Sprintf("unfinished-node%d%s", id, name))
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(filepath.Join(tmp, "pg_wal"), 0o700)); err != nil {
		return sv, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(tmp)
		}
	}()
	if err := s.describe(ctx, list, segmentSize, filepath.Join(tmp, "waldump.txt"), &sv); err != nil {
		return sv, err
	}
	if err := s.copyWAL(ctx, list, segmentSize, filepath.Join(tmp, "pg_wal"), &sv); err != nil {
		return sv, err
	}
	summary := sv.summary(node)
	if sv.Dir = sameSalvage(root, name, summary); sv.Dir != "" {
		return sv, os.RemoveAll(tmp)
	}
	head := fmt.Sprintf("saved: %s\n", time.Now().UTC().Format(time.RFC3339))
	if err := durable.Write(filepath.Join(tmp, "summary.txt"), []byte(head+summary)); err != nil {
		return sv, err
	}
	sv.Dir = filepath.Join(root, time.Now().UTC().Format("20060102T150405.000Z")+name)
	return sv, errors.Join(os.Rename(tmp, sv.Dir), durable.SyncDir(root))
}

// sameSalvage finds the directory of an earlier attempt that has the same summary, except for
// the time.
func sameSalvage(root, name, summary string) string {
	dirs, _ := filepath.Glob(filepath.Join(root, "*Z"+name))
	for _, dir := range dirs {
		text, _ := os.ReadFile(filepath.Join(dir, "summary.txt"))
		if _, rest, _ := strings.Cut(string(text), "\n"); rest == summary {
			return dir
		}
	}
	return ""
}

func (sv Saved) summary(node string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node: %s\ntimeline: %d\nfork: %s\nend: %s\nbytes: %d\ncommits: %d\n", node, sv.Timeline, sv.Fork, sv.End, sv.Bytes, len(sv.Commits))
	if sv.Recycled {
		b.WriteString("recycled: the WAL next to the fork was gone already, and what it held is not counted\n")
	}
	for _, part := range []struct {
		head  string
		lines []string
	}{{"lost transactions", sv.Commits}, {"relations touched (tablespace/database/file)", sv.Relations}, {"segments", sv.Segments}, {"not archived yet", sv.Unarchived}} {
		fmt.Fprintf(&b, "\n%s:\n", part.head)
		for _, line := range part.lines {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	return b.String()
}

// Patterns for the output of pg_waldump, 13 to 18.
var (
	dumpRecord   = regexp.MustCompile(`len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+)`)
	dumpCommit   = regexp.MustCompile(`desc: COMMIT(?:_PREPARED)? (?:gid .*?: )?(\d{4}-[^;]*)`)
	dumpRelation = regexp.MustCompile(`rel (\d+/\d+/\d+)`)
)

// describe writes the output of pg_waldump for the branches to a file, and collects the
// commits, the relations and the end of the WAL from it.
func (s *Server) describe(ctx context.Context, list []Branch, segmentSize uint32, path string, sv *Saved) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := &lineWriter{to: bufio.NewWriter(f), line: func(line string) {
		m := dumpRecord.FindStringSubmatch(line)
		if m == nil {
			return
		}
		if at, err := wal.ParseLSN(m[3]); err == nil {
			length, _ := strconv.ParseUint(m[1], 10, 32)
			sv.End = (at + wal.LSN(length) + 7) &^ 7
		}
		if c := dumpCommit.FindStringSubmatch(line); c != nil {
			sv.Commits = append(sv.Commits, fmt.Sprintf("transaction %s at %s", m[2], strings.TrimSpace(c[1])))
		}
		for _, rel := range dumpRelation.FindAllStringSubmatch(line, -1) {
			if !slices.Contains(sv.Relations, rel[1]) {
				sv.Relations = append(sv.Relations, rel[1])
			}
		}
	}}
	for _, b := range list {
		if err := s.walDump(ctx, b, segmentSize, lines); err != nil {
			return err
		}
	}
	sv.Bytes = sv.End.Bytes(sv.Fork)
	return errors.Join(lines.to.Flush(), f.Sync())
}

// lineWriter passes on what is written to it, and calls line for each line.
type lineWriter struct {
	to   *bufio.Writer
	line func(string)
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return w.to.Write(p)
		}
		w.line(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

// copyWAL copies the segments of the branches, their history files, and the segments that are
// marked as not archived yet.
func (s *Server) copyWAL(ctx context.Context, list []Branch, segmentSize uint32, to string, sv *Saved) error {
	from := filepath.Join(s.Dir, "pg_wal")
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	ready, _ := filepath.Glob(filepath.Join(from, "archive_status", "*.ready"))
	for _, e := range entries {
		t, start, err := wal.ParseSegmentName(e.Name(), segmentSize)
		lost := slices.ContainsFunc(list, func(b Branch) bool {
			if b.Timeline > 1 && e.Name() == wal.HistoryFileName(b.Timeline) {
				return true
			}
			return err == nil && t == b.Timeline && start+wal.LSN(segmentSize) > b.From && start < max(sv.End, b.From+1)
		})
		unarchived := slices.Contains(ready, filepath.Join(from, "archive_status", e.Name()+".ready"))
		if !lost && !unarchived {
			continue
		}
		if err := copyFile(ctx, filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
		if lost {
			sv.Segments = append(sv.Segments, e.Name())
		}
		if unarchived {
			sv.Unarchived = append(sv.Unarchived, e.Name())
		}
	}
	return durable.SyncDir(to)
}

// copyFile copies a file and syncs the copy.
func copyFile(ctx context.Context, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return in.Read(p)
	}))
	return errors.Join(err, out.Sync(), out.Close())
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// serverFiles are the files at the top of a data directory that belong to the server and not
// to the operator.
var serverFiles = []string{
	"PG_VERSION", "postmaster.pid", "backup_label", "backup_label.old", "backup_manifest", "tablespace_map", "tablespace_map.old",
	"standby.signal", "recovery.signal", "recovery.done", "current_logfiles",
}

// ownFileLimit is the size, in bytes, up to which a file is kept as configuration.
const ownFileLimit = 1 << 20

// SaveConfig copies the node's own files: its configuration, certificates and other files that
// an operator put at the top of the data directory, all of conf.d, and the files of extra. They
// must survive when the data is replaced by that of another server, which brings its own.
func (s *Server) SaveConfig(ctx context.Context, to string, extra []string) error {
	names := slices.Clone(extra)
	for _, dir := range []string{".", "conf.d"} {
		entries, err := os.ReadDir(filepath.Join(s.Dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err == nil && info.Mode().IsRegular() && info.Size() <= ownFileLimit && !slices.Contains(serverFiles, e.Name()) && !strings.HasSuffix(e.Name(), ".tmp") {
				names = append(names, filepath.Join(dir, e.Name()))
			}
		}
	}
	for _, name := range names {
		if filepath.IsAbs(name) {
			rel, err := filepath.Rel(s.Dir, name)
			if err != nil || strings.HasPrefix(rel, "..") {
				continue // outside the data directory, so nothing will overwrite it
			}
			name = rel
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := copyFile(ctx, filepath.Join(s.Dir, name), path); err != nil {
			return err
		}
	}
	return nil
}

// RestoreConfig puts back what [Server.SaveConfig] has saved.
func (s *Server) RestoreConfig(ctx context.Context, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		to := filepath.Join(s.Dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		return copyFile(ctx, path, to)
	})
}

// Parent is the timeline from which t was forked; 0 where h does not say.
func Parent(h wal.History, t wal.Timeline) (p wal.Timeline) {
	for _, e := range h {
		if e.Timeline < t {
			p = e.Timeline
		}
	}
	return p
}
