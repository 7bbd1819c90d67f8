package repmgr

import (
	"context"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/wal"
)

// refuseOwnWAL keeps a running server with WAL of its own on its timeline t from following
// target. A login that may not read the file of ALTER SYSTEM finds none.
func (n *server) refuseOwnWAL(ctx context.Context, node, target Record, t wal.Timeline) error {
	set, err := ballot.ReadSettings(ctx, n.Conn)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	own, err := salvage.ParseOwnWAL(set)
	if err == nil && own.Timeline != t {
		return nil
	}
	return hint(kind(ErrTimelineDiverged, "%s can not follow %s: a rejoin that did not end gave it WAL of its own behind %s", node, target, own),
		"On %s, this goes on with that: %s", node.Name, rejoinCommand(node, target, "--force-rewind"))
}
