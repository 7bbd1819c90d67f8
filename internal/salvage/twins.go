package salvage

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/wal"
)

// Two standbys that were promoted independently at the same position are on timelines with the
// same number and equal histories. Only their WAL differs: the first record of a timeline
// contains the time of its promotion.

// WALSum is the MD5 of a piece of a WAL segment. ok is false where the segment is not there.
type WALSum func(ctx context.Context, segment string, offset, length int64) (sum string, ok bool, err error)

// The sizes of the pieces of WAL that are compared: the beginning of the timeline, and the end
// of what both servers have.
const (
	headPiece = 8 << 10
	tailPiece = 64 << 10
)

// WALSum is a [WALSum] that reads the files of a server that is down.
func (s *Server) WALSum(_ context.Context, segment string, offset, length int64) (string, bool, error) {
	f, err := os.Open(filepath.Join(s.Dir, "pg_wal", segment))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer func() { _ = f.Close() }()
	piece := make([]byte, length)
	if _, err := f.ReadAt(piece, offset); err != nil && !errors.Is(err, io.EOF) {
		return "", false, err
	}
	sum := md5.Sum(piece)
	return hex.EncodeToString(sum[:]), true, nil
}

// LogsDiffer reports whether two servers have different WAL on what both call timeline t,
// from its beginning to an end that both have. Segments that one of them no longer has are not
// compared.
func LogsDiffer(ctx context.Context, a, b WALSum, t wal.Timeline, from, to wal.LSN, segSize uint32) (bool, error) {
	if segSize == 0 {
		segSize = wal.DefaultSegmentSize
	}
	for _, piece := range [][2]wal.LSN{{from, min(to, from+headPiece)}, {max(from, to-min(to, tailPiece)), to}} {
		for at := piece[0]; at < piece[1]; {
			end := min(piece[1], (at/wal.LSN(segSize)+1)*wal.LSN(segSize))
			name, offset, length := wal.SegmentName(t, at, segSize), int64(at%wal.LSN(segSize)), int64(end-at)
			at = end
			ours, have, err := a(ctx, name, offset, length)
			if err != nil {
				return false, err
			}
			theirs, haveToo, err := b(ctx, name, offset, length)
			if err != nil {
				return false, err
			}
			if have && haveToo && ours != theirs {
				return true, nil
			}
		}
	}
	return false, nil
}

// RewindSees reports whether pg_rewind of PostgreSQL 15 and older finds the correct fork, and the
// WAL of the server behind it. It takes the timeline of the last checkpoint, control, for that of the
// server, which is wrong where there was no checkpoint or restartpoint since the last promotion.
// Then it looks for what was replayed since, up to a position on the timeline replayed, in segments that do not have it.
func RewindSees(control, replayed, timeline wal.Timeline, ours wal.History, target wal.Position, theirs wal.History) bool {
	if replayed > control {
		return false
	}
	var named wal.History
	for _, e := range ours {
		if e.Timeline < control {
			named = append(named, e)
		}
	}
	common, fork, ok := LastCommon(timeline, ours, target, theirs)
	seen, at, okSeen := LastCommon(control, named, target, theirs)
	return ok && okSeen && seen == common && at == fork
}
