package salvage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/wal"
)

// Server is a server on this machine that is down.
type Server struct {
	postmaster.Server
	Root string // the directory for what is saved; empty: one beside the data directory
}

// LastChange is when anything in the data directory was last changed.
func (s *Server) LastChange() (last time.Time, err error) {
	err = filepath.WalkDir(s.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if at := time.Unix(st.Ctim.Sec, st.Ctim.Nsec); at.After(last) {
				last = at
			}
		}
		return nil
	})
	return last, err
}

// Control reads pg_control. It tries again where the checksum is wrong, because a running
// server may just be writing the file.
func (s *Server) Control(ctx context.Context) (pgcontrol.ControlFile, error) {
	for try := 0; ; try++ {
		c, err := pgcontrol.Read(s.Dir)
		if !errors.Is(err, pgcontrol.ErrChecksum) || try == 5 {
			return c, err
		}
		if err := wait.Pause(ctx, controlAgain); err != nil {
			return c, err
		}
	}
}

// Line is the newest timeline of which the server has WAL, and its history. pg_control is not
// enough, because it may not have the promotion right before a crash.
func (s *Server) Line(c pgcontrol.ControlFile) (wal.Timeline, wal.History, error) {
	newest := max(c.Timeline, c.MinRecoveryTimeline)
	entries, err := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	if err != nil {
		return 0, nil, err
	}
	for _, e := range entries {
		if t, _, err := wal.ParseSegmentName(e.Name(), c.WALSegmentSize); err == nil {
			newest = max(newest, t)
		}
	}
	if newest <= 1 {
		return newest, nil, nil
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, "pg_wal", wal.HistoryFileName(newest)))
	if err != nil {
		return 0, nil, err
	}
	h, err := wal.ParseHistory(text)
	return newest, h, err
}

// WALEnd is approximately where the WAL of the server ends: behind the last whole page, counted
// from the position in pg_control. A segment that was left early, as by the end of a base backup, has nothing
// but zeros behind that.
func (s *Server) WALEnd(c pgcontrol.ControlFile) wal.LSN {
	size := wal.LSN(c.WALSegmentSize)
	end := s.pagesFrom(wal.PageStart(c.Position().LSN), c.WALSegmentSize)
	for {
		next := (end + size - 1) / size * size
		behind := s.pagesFrom(next, c.WALSegmentSize)
		if behind == next {
			return end
		}
		end = behind
	}
}

// pagesFrom is where the pages end that follow each other in one segment, from the page at an LSN on.
func (s *Server) pagesFrom(at wal.LSN, segmentSize uint32) wal.LSN {
	const page = 8 << 10
	size := wal.LSN(segmentSize)
	start := at / size * size
	name, ok := s.segment(at, segmentSize)
	if !ok {
		return at
	}
	f, err := os.Open(name)
	if err != nil {
		return at
	}
	defer f.Close()
	header := make([]byte, 16)
	for at < start+size {
		if _, err := f.ReadAt(header, int64(at-start)); err != nil || !wal.IsPage(header, at) {
			break
		}
		at += page
	}
	return at
}

// KeepWAL saves the server's segments up to the fork in the directory to. Recovery of the
// rewound data begins before the fork, and older releases of pg_rewind delete the segments that
// the primary no longer has. Those of timelines that began behind the fork are left out: see
// [Server.RemoveUnchanged].
func (s *Server) KeepWAL(ctx context.Context, to string, fork wal.Position, segmentSize uint32) error {
	entries, err := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		timeline, start, err := wal.ParseSegmentName(e.Name(), segmentSize)
		if err != nil || start > fork.LSN || timeline > fork.Timeline {
			continue
		}
		from := filepath.Join(s.Dir, "pg_wal", e.Name())
		if err := os.Link(from, filepath.Join(to, e.Name())); err == nil {
			continue // a hard link is enough: pg_rewind only removes the other name, or writes the primary's segment of that name into it
		}
		if err := copyFile(ctx, from, filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// SegmentsBehind are the server's segments of timelines that began behind the fork.
func (s *Server) SegmentsBehind(fork wal.Position, segmentSize uint32) (segments []os.FileInfo, err error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	for _, e := range entries {
		if t, _, errName := wal.ParseSegmentName(e.Name(), segmentSize); errName == nil && t > fork.Timeline {
			info, errInfo := e.Info()
			segments, err = append(segments, info), errors.Join(err, errInfo)
		}
	}
	return segments, err
}

// RemoveUnchanged removes those of them that pg_rewind has left as they were: releases that keep the segments which
// they have read do that. The next primary may give its timeline the same number, and recovery would take
// such a segment for one of that timeline, and never end.
func (s *Server) RemoveUnchanged(segments []os.FileInfo) error {
	for _, before := range segments {
		path := filepath.Join(s.Dir, "pg_wal", before.Name())
		now, err := os.Stat(path)
		if err == nil && durable.Unchanged(before, now) {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(filepath.Join(s.Dir, "pg_wal"))
}

// ReturnWAL puts back those kept segments that recovery needs and that are gone.
func (s *Server) ReturnWAL(ctx context.Context, from string, segmentSize uint32) error {
	label, err := os.ReadFile(filepath.Join(s.Dir, "backup_label"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // pg_rewind found nothing to rewind, and changed nothing
	}
	if err != nil {
		return err
	}
	m := startOfRecovery.FindSubmatch(label)
	if m == nil {
		return errors.New("backup_label does not say where recovery begins")
	}
	begin, err := wal.ParseLSN(string(m[1]))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, start, err := wal.ParseSegmentName(e.Name(), segmentSize)
		to := filepath.Join(s.Dir, "pg_wal", e.Name())
		if _, there := os.Stat(to); err != nil || there == nil || start+wal.LSN(segmentSize) <= begin {
			continue
		}
		if err := copyFile(ctx, filepath.Join(from, e.Name()), to); err != nil {
			return err
		}
	}
	return durable.SyncDir(filepath.Join(s.Dir, "pg_wal"))
}

// startOfRecovery is the line of backup_label in which pg_rewind writes where recovery begins.
var startOfRecovery = regexp.MustCompile(`(?m)^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) `)

// controlAgain is the time between two attempts to read a pg_control that is being written.
const controlAgain = 5 * time.Millisecond
