package registry

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/postgres"
)

// PausedSetting is the server setting that pauses failover. Its value is 'node id/on/n' or
// 'node id/off/n', where n counts the pauses and unpauses of the cluster; the highest n on any
// node counts for all. The setting is in the file of ALTER SYSTEM, so it works on a standby and
// survives restarts. A clone has that of its source, which is ignored because of the node id.
const PausedSetting = "repmgr.paused"

// ParsePaused parses the value of the setting on a node. seq is 0 where the node has no such
// setting of its own.
func ParsePaused(raw string, id NodeID) (paused bool, seq int64) {
	node, word, _ := strings.Cut(raw, "/")
	on, number, _ := strings.Cut(word, "/")
	if node != id.String() {
		return false, 0
	}
	seq, _ = strconv.ParseInt(number, 10, 64)
	return on == "on", seq
}

// PauseSeq reads the number n in the setting of node id from its server.
func (n *Server) PauseSeq(ctx context.Context, id NodeID) (int64, error) {
	set, err := ballot.ReadSettings(ctx, n.Conn)
	if err != nil {
		return 0, n.QueryError("read "+PausedSetting, err)
	}
	_, seq := ParsePaused(set[PausedSetting], id)
	return seq, nil
}

// SetPaused writes the setting of node id on its server, and pauses or unpauses a daemon of
// repmgr 5 there. Repeating it is harmless.
func (n *Server) SetPaused(ctx context.Context, id NodeID, paused bool, seq int64) error {
	if err := n.MayAlterSystem(ctx, []string{PausedSetting}); err != nil {
		return err
	}
	value := fmt.Sprintf("%d/%s/%d", id, map[bool]string{true: "on", false: "off"}[paused], seq)
	if err := ballot.Store(ctx, n.Conn, PausedSetting, value); err != nil {
		return n.QueryError("set "+PausedSetting, err)
	}
	// The setting need not be in force, but a reload lets the daemons notice the change at once.
	if err := n.Reload(ctx); err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
		return err
	}
	return n.PauseForeign(ctx, paused)
}
