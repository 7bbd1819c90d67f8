package rejoin

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/wal"
)

// MendHistory makes the history of the local server, which is on timeline t, fit for what others may ask of
// it: see [MendHistories] and, for a primary, [RestoreHistory]. line is that of the rule that it has.
func MendHistory(dataDirectory string, standby bool, t wal.Timeline, line wal.Lineage, log *slog.Logger) error {
	if line.Timeline == t && line.Fingerprint != 0 {
		files, err := MendHistories(dataDirectory, line)
		if len(files) > 0 {
			log.Info("history files of another primary were replaced by those of the line that this server is on", "files", files)
		}
		if err != nil {
			return err
		}
	}
	if standby {
		return nil
	}
	files, err := RestoreHistory(dataDirectory, t)
	if len(files) > 0 {
		log.Info("WAL segments of earlier timelines were made anew, for standbys that have not been there yet", "files", files)
	}
	return err
}

// MendHistories replaces the history files of the local server that are not those of its line.
// A standby that is given a primary fetches the history files of that primary's timelines
// before it receives any WAL, and PostgreSQL never fetches a file that is there. Where that
// primary was lost at once, and the next one began a timeline with the same number, the standby
// follows the new one with the history of the old. Everybody who reads that file, pg_rewind too,
// then takes the standby for one that has diverged. line must have come with the WAL itself: it
// is that of a rule that the server has replayed, or written, on the timeline that it is on.
func MendHistories(dataDirectory string, line wal.Lineage) (mended []string, err error) {
	dir := filepath.Join(dataDirectory, "pg_wal")
	for i := range line.Past {
		t, past := line.Timeline, line.Past
		if i+1 < len(line.Past) {
			t, past = line.Past[i+1].Timeline, line.Past[:i+1]
		}
		path := filepath.Join(dir, wal.HistoryFileName(t))
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return mended, err
		}
		if h, err := wal.ParseHistory(text); err == nil && len(h) == len(past) && h.Extends(past) {
			continue
		}
		if err := replace(path, past.File()); err != nil {
			return mended, fmt.Errorf("put the history of timeline %d right: %w", t, err)
		}
		mended = append(mended, wal.HistoryFileName(t))
	}
	return mended, nil
}

// replace replaces a file, and keeps its mode.
func replace(path string, text []byte) error {
	info, err := os.Stat(path)
	if err == nil {
		err = durable.Write(path, text)
	}
	if err == nil {
		err = os.Chmod(path, info.Mode().Perm())
	}
	return err
}
