package follow

import (
	"context"
	"fmt"

	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// LostWAL says why a standby can not go on: the server from which it would stream has removed
// the WAL that comes next.
type LostWAL struct {
	Upstream string `json:"upstream"`       // the node that was asked for the WAL
	Needed   string `json:"needed_segment"` // the first segment that the standby would ask for
	Oldest   string `json:"oldest_segment"` // the first one that the upstream has
	Archive  bool   `json:"archive"`        // the standby has a restore_command: an archive may still bring it
}

func (l LostWAL) String() string {
	text := fmt.Sprintf("%s does not have WAL segment %s any more, only %s and later", l.Upstream, l.Needed, l.Oldest)
	if l.Archive {
		text += ", and restore_command has not brought it from the archive so far"
	}
	return text
}

// FindLostWAL asks the server whether it still has the WAL that the standby of that status
// needs next. nil: it has, or that is unknown. See [postgres.Server.MissingWAL].
func FindLostWAL(ctx context.Context, n *registry.Server, of registry.Record, s registry.NodeStatus) *LostWAL {
	if !s.InRecovery {
		return nil
	}
	needed, oldest := n.MissingWAL(ctx, wal.Position{Timeline: s.Timeline, LSN: registry.NextLSN(s)})
	if oldest == "" {
		return nil
	}
	return &LostWAL{Upstream: of.String(), Needed: needed, Oldest: oldest, Archive: registry.HasArchive(s)}
}
