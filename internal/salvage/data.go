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

// Server is a server of this machine that does not run.
type Server struct {
	postmaster.Server
	Root string // of what is saved of it. Empty: beside the data directory.
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

// Control reads pg_control; that of a running server may be in the middle of a write.
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

// Line is the newest timeline that the server has WAL of, and its history.
// pg_control alone may not know yet of a promotion right before a crash.
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

// WALEnd is about where the WAL of a server that is down ends: behind the last of
// its pages that are whole, from its control file's position on.
func (s *Server) WALEnd(c pgcontrol.ControlFile) wal.LSN {
	const page = 8 << 10
	size := wal.LSN(c.WALSegmentSize)
	end := wal.PageStart(c.Position().LSN)
	for {
		start := end / size * size
		name, ok := s.segment(start, c.WALSegmentSize)
		if !ok {
			return end
		}
		f, err := os.Open(name)
		if err != nil {
			return end
		}
		header := make([]byte, 16)
		for end < start+size {
			if _, err := f.ReadAt(header, int64(end-start)); err != nil || !wal.IsPage(header, end) {
				break
			}
			end += page
		}
		_ = f.Close()
		if end < start+size {
			return end
		}
	}
}

// KeepWAL keeps the server's segments up to the fork: recovery of the rewound
// data begins before it, and older releases of pg_rewind delete what the primary
// does not have any more.
func (s *Server) KeepWAL(ctx context.Context, to string, fork wal.LSN, segmentSize uint32) error {
	entries, err := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		_, start, err := wal.ParseSegmentName(e.Name(), segmentSize)
		if err != nil || start > fork {
			continue
		}
		from := filepath.Join(s.Dir, "pg_wal", e.Name())
		if err := os.Link(from, filepath.Join(to, e.Name())); err == nil {
			continue // pg_rewind removes the other name, or writes the primary's own segment into it
		}
		if err := copyFile(ctx, from, filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// ReturnWAL puts back the kept segments that recovery begins with, where they are gone.
func (s *Server) ReturnWAL(ctx context.Context, from string, segmentSize uint32) error {
	label, err := os.ReadFile(filepath.Join(s.Dir, "backup_label"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it found nothing to rewind, and touched nothing
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

// startOfRecovery is what pg_rewind writes of it into backup_label.
var startOfRecovery = regexp.MustCompile(`(?m)^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) `)

// controlAgain is the time between two attempts to read a pg_control that is being written.
const controlAgain = 5 * time.Millisecond
