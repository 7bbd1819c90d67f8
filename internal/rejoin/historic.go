package rejoin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/wal"
)

// RestoreHistory makes the WAL segments that let the local primary send earlier timelines to
// standbys that did not follow all promotions. PostgreSQL sends the last segment of a timeline
// from the file of the next timeline. Where archive_mode is on, a server that is promoted twice
// within one segment renames that file to .partial, and a standby that missed the first of the
// two promotions is told for ever that its WAL has been removed. But the file of the same
// segment on the timeline after that begins with the same bytes, so the missing file is made
// from it. It is not archived.
func RestoreHistory(dataDirectory string, t wal.Timeline) (mended []string, err error) {
	if t <= 1 {
		return nil, nil
	}
	control, err := pgcontrol.Read(dataDirectory)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(dataDirectory, "pg_wal")
	text, err := os.ReadFile(filepath.Join(dir, wal.HistoryFileName(t)))
	if err != nil {
		return nil, err
	}
	h, err := wal.ParseHistory(text)
	if err != nil {
		return nil, err
	}
	size := control.WALSegmentSize
	for i := len(h) - 2; i >= 0; i-- { // the file of the newest timeline is in use by the server
		next, at, end := h[i+1].Timeline, h[i].SwitchLSN, h[i+1].SwitchLSN
		offset := int64(end) % int64(size)
		if int64(at)%int64(size) == 0 || offset == 0 || int64(at)/int64(size) != int64(end)/int64(size) {
			continue // the whole segment was written on that timeline, so no other file has its bytes
		}
		later := t
		if i+2 < len(h) {
			later = h[i+2].Timeline
		}
		name := wal.SegmentName(next, at, size)
		made, err := makeSegment(dir, name, []string{wal.SegmentName(later, at, size), name + ".partial"}, offset, int64(size))
		if err != nil {
			return mended, fmt.Errorf("make WAL segment %s: %w", name, err)
		}
		if made {
			mended = append(mended, name)
		}
	}
	return mended, nil
}

// makeSegment makes a missing segment from the first bytes of one of the given segments, if one
// of them exists.
func makeSegment(dir, name string, from []string, bytes, size int64) (made bool, err error) {
	if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	var source *os.File
	for _, other := range from {
		if source, err = os.Open(filepath.Join(dir, other)); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // older than the WAL that the server keeps
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = source.Close() }()
	info, err := source.Stat()
	if err != nil {
		return false, err
	}
	tmp := filepath.Join(dir, "xlogtemp.repmgr") // the server removes such files when it starts
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return false, err
	}
	_, err = io.CopyN(out, source, bytes)
	err = errors.Join(err, out.Truncate(size), out.Sync(), out.Close())
	if err == nil { // made before the segment, so that it is never archived
		err = os.WriteFile(filepath.Join(dir, "archive_status", name+".done"), nil, info.Mode().Perm())
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	return err == nil, errors.Join(err, durable.SyncDir(dir))
}
