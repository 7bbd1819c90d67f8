package repmgr

import (
	"context"
	//nolint:gosec // the server's own md5: it tells two texts apart, no more
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/wal"
)

// Two standbys that were promoted out of each other's sight from the same point
// are on timelines of one number, with histories that read the same. Only their
// WAL tells: the first record of a timeline has the time of its promotion in it.

// refuseTwin compares the logs of a running standby and its new upstream, on the
// timeline of the standby. beginning is where that began; 0: it is timeline 1.
func (c *Cluster) refuseTwin(ctx context.Context, n, up *server, node, target Record, t wal.Timeline, beginning, to wal.LSN) error {
	if t <= 1 || beginning == 0 || to <= beginning {
		return nil
	}
	segSize, err := n.WALSegmentSize(ctx)
	if err != nil {
		return err
	}
	twin, err := salvage.Twins(ctx, n.WALSum, up.WALSum, t, beginning, to, segSize)
	switch {
	case postgres.SQLState(err) == postgres.CodeInsufficientPrivilege:
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
