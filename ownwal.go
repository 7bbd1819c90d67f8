package repmgr

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/wal"
)

// ownWALSetting says, in the file of ALTER SYSTEM, that crash recovery has given a server
// that was to be rewound some WAL of its own, on which timeline, and behind which place.
// Others may have other WAL there: the end of this server's WAL tells nothing, and it can
// follow nobody until it has been rewound or cloned. The setting is made before that
// recovery and goes with the end of the rejoin; a promotion, which begins another
// timeline, makes it void.
const ownWALSetting = "repmgr.own_wal"

// markOwnWAL keeps what an earlier rejoin has noted: it is not less true.
func (s *localServer) markOwnWAL(behind wal.Position) error {
	if known, err := s.ownWAL(); err != nil || known.Timeline == behind.Timeline {
		return err
	}
	text, err := json.Marshal(behind)
	if err != nil {
		return err
	}
	return postmaster.SetAutoConf(s.Dir, map[string]string{ownWALSetting: string(text)}, nil)
}

func (s *localServer) ownWAL() (behind wal.Position, err error) {
	text, err := postmaster.ReadAutoConf(s.Dir)
	if err != nil {
		return behind, err
	}
	set, err := ballot.FileSettings(text)
	if err != nil {
		return behind, err
	}
	return parseOwnWAL(set)
}

// parseOwnWAL returns timeline 0 where there is no such WAL.
func parseOwnWAL(set map[string]string) (behind wal.Position, err error) {
	text, there := set[ownWALSetting]
	if !there {
		return behind, nil
	}
	if err := json.Unmarshal([]byte(text), &behind); err != nil {
		return behind, fmt.Errorf("parse %s %q: %w", ownWALSetting, text, err)
	}
	return behind, nil
}

// refuseOwnWAL keeps a running server with WAL of its own on its timeline t from following
// target. A login that may not read the file of ALTER SYSTEM finds none.
func (n *Node) refuseOwnWAL(ctx context.Context, node, target Record, t wal.Timeline) error {
	set, err := ballot.ReadSettings(ctx, n.conn)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	own, err := parseOwnWAL(set)
	if err == nil && own.Timeline != t {
		return nil
	}
	return hint(kind(ErrTimelineDiverged, "%s can not follow %s: a rejoin that did not end gave it WAL of its own behind %s", node, target, own),
		"On %s, this goes on with that: %s", node.Name, rejoinCommand(node, target, "--force-rewind"))
}
