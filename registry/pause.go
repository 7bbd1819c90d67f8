package registry

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/postgres"
)

// PausedSetting is the server setting that keeps daemons from acting by themselves:
// 'node id/on/n' is the n-th time that a pause began or ended. The newest that any node
// has counts for all. It is in the file of ALTER SYSTEM, so it works on a standby and
// survives restarts; a clone brings that of its source, which does not count.
const PausedSetting = "repmgr.paused"

// ParsePaused reads the value of the setting as that node's. seq 0: it has said nothing.
func ParsePaused(raw string, id NodeID) (paused bool, seq int64) {
	node, word, _ := strings.Cut(raw, "/")
	on, number, _ := strings.Cut(word, "/")
	if node != id.String() {
		return false, 0
	}
	seq, _ = strconv.ParseInt(number, 10, 64)
	return on == "on", seq
}

// PauseSeq reads from the server of node id how new its setting is.
func (n *Server) PauseSeq(ctx context.Context, id NodeID) (int64, error) {
	set, err := ballot.ReadSettings(ctx, n.Conn)
	if err != nil {
		return 0, n.QueryError("read "+PausedSetting, err)
	}
	_, seq := ParsePaused(set[PausedSetting], id)
	return seq, nil
}

// SetPaused writes the setting of node id to its server, and tells a daemon of repmgr 5
// there. Repeating it is harmless.
func (n *Server) SetPaused(ctx context.Context, id NodeID, paused bool, seq int64) error {
	if err := n.MayAlterSystem(ctx, []string{PausedSetting}); err != nil {
		return err
	}
	value := fmt.Sprintf("%d/%s/%d", id, map[bool]string{true: "on", false: "off"}[paused], seq)
	if err := ballot.Store(ctx, n.Conn, PausedSetting, value); err != nil {
		return n.QueryError("set "+PausedSetting, err)
	}
	// Nobody needs it in force, but the daemons notice at once that something changed.
	if err := n.Reload(ctx); err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
		return err
	}
	return n.PauseForeign(ctx, paused)
}
