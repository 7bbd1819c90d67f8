package repmgr

import (
	"context"
	"crypto/md5" //nolint:gosec // the server's own md5: it tells two texts apart, no more
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/wal"
)

// Two standbys that were promoted out of each other's sight from the same point
// are on timelines of one number, with histories that read the same. Only their
// WAL tells: the first record of a timeline has the time of its promotion in it.

// walSum is the MD5 of a piece of a WAL segment. ok is false where the segment is not there.
type walSum func(ctx context.Context, segment string, offset, length int64) (sum string, ok bool, err error)

// walSum asks the server. A login that may not read files gets an error.
func (n *Node) walSum(ctx context.Context, segment string, offset, length int64) (string, bool, error) {
	var sum *string
	if err := n.conn.QueryRow(ctx, `SELECT md5(pg_read_binary_file('pg_wal/' || $1, $2, $3, true))`, segment, offset, length).Scan(&sum); err != nil {
		return "", false, n.queryError("read the WAL", err)
	}
	if sum == nil {
		return "", false, nil
	}
	return *sum, true, nil
}

// walSum reads the files of a server that is down.
func (s *localServer) walSum(_ context.Context, segment string, offset, length int64) (string, bool, error) {
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

// pieces of the log that are compared: the beginning of the timeline and the end
// of what both have.
const (
	headPiece = 8 << 10
	tailPiece = 64 << 10
)

// twins reports whether what two servers call timeline t, from its beginning to
// an end that both have, is not the same log. What one of them does not have any
// more is not compared.
func twins(ctx context.Context, a, b walSum, t wal.Timeline, from, to wal.LSN, segSize uint32) (bool, error) {
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

// refuseTwin compares the logs of a running standby and its new upstream, on the
// timeline of the standby. beginning is where that began; 0: it is timeline 1.
func (c *Cluster) refuseTwin(ctx context.Context, n, up *Node, node, target Record, t wal.Timeline, beginning, to wal.LSN) error {
	if t <= 1 || beginning == 0 || to <= beginning {
		return nil
	}
	segSize, err := n.walSegmentSize(ctx)
	if err != nil {
		return err
	}
	twin, err := twins(ctx, n.walSum, up.walSum, t, beginning, to, segSize)
	switch {
	case sqlState(err) == codeInsufficientPrivilege:
		c.log.Warn("could not compare the WAL of the two servers: this login may not read it", "hint", "GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean)")
		return nil
	case err != nil:
		return err
	case twin:
		return hint(kind(ErrTimelineDiverged, "%s can not follow %s: they were promoted apart, and what both call timeline %d is not one log", node, target, t),
			"Decide which of the two branches holds the data that counts. If it is that of %s, on %s: %s", target.Name, node.Name, recloneCommand(node, target))
	}
	return nil
}
