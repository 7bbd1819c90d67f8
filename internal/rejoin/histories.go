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
// it: on a primary see [RestoreHistory], on a standby [MendHistories].
func MendHistory(dataDirectory string, standby bool, t wal.Timeline, line wal.Lineage, log *slog.Logger) (err error) {
	var files []string
	what := "WAL segments of earlier timelines were made anew, for standbys that have not been there yet"
	if standby {
		what = "history files of another primary were replaced by those of the line that this standby follows"
		files, err = MendHistories(dataDirectory, line)
	} else {
		files, err = RestoreHistory(dataDirectory, t)
	}
	if len(files) > 0 {
		log.Info(what, "files", files)
	}
	return err
}

// MendHistories replaces the history files of the local standby that are not those of its line.
// A standby that is given a primary fetches the history files of that primary's timelines
// before it receives any WAL, and PostgreSQL never fetches a file that is there. Where that
// primary was lost at once, and the next one began a timeline with the same number, the standby
// follows the new one with the history of the old. Everybody who reads that file, pg_rewind too,
// then takes the standby for one that has diverged. line must have come with the WAL itself: it
// is that of a rule that the standby has replayed, on the timeline that it receives.
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
		if err := durable.Write(path, past.File()); err != nil {
			return mended, fmt.Errorf("put the history of timeline %d right: %w", t, err)
		}
		mended = append(mended, wal.HistoryFileName(t))
	}
	return mended, nil
}
