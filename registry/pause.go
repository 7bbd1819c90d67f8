package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
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

// PausedBySetting is the server setting that says who paused failover, and when: an [election.Pause] as JSON. It is for
// people only, so a login that may not write it pauses all the same.
const PausedBySetting = "repmgr.paused_by"

// ParsePausedBy parses the value of that setting. What can not be parsed says nothing.
func ParsePausedBy(text string) election.Pause {
	p := parseRequest[election.Pause](text)
	p.Since = p.Since.UTC() // so that two of them can be compared
	return p
}

// Caller is who runs this process: the user and the host, as in "postgres@node1".
func Caller() string {
	name := strconv.Itoa(os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return name + "@" + host
}

// SetPaused writes the setting of node id on its server, and pauses or unpauses a daemon of
// repmgr 5 there. Repeating it is harmless. by says who pauses; its number is that of the pause or unpause.
func (n *Server) SetPaused(ctx context.Context, id NodeID, paused bool, by election.Pause) error {
	if err := n.MayAlterSystem(ctx, []string{PausedSetting}); err != nil {
		return err
	}
	if n.MayAlterSystem(ctx, []string{PausedBySetting}) == nil {
		n.notePause(ctx, paused, by)
	}
	value := fmt.Sprintf("%d/%s/%d", id, map[bool]string{true: "on", false: "off"}[paused], by.Seq)
	if err := ballot.Store(ctx, n.Conn, PausedSetting, value); err != nil {
		return n.QueryError("set "+PausedSetting, err)
	}
	// The setting need not be in force, but a reload lets the daemons notice the change at once.
	if err := n.Reload(ctx); err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
		return err
	}
	return n.PauseForeign(ctx, paused)
}

// notePause writes who pauses, or removes it where nobody does, or that is not known. Letters that the server may not have in its encoding are left out.
func (n *Server) notePause(ctx context.Context, paused bool, by election.Pause) {
	if !paused || by.By == "" {
		_ = ballot.Remove(ctx, n.Conn, PausedBySetting)
		return
	}
	by.By = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, by.By[:min(len(by.By), longestName)])
	if text, err := json.Marshal(by); err == nil {
		_ = ballot.Store(ctx, n.Conn, PausedBySetting, string(text))
	}
}

const longestName = 200 // of whoever pauses
