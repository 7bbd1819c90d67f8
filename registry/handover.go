package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// HandoverSetting is the server setting by which a primary is asked to hand over, and by which
// other nodes are told that it has begun: an [election.Handover] as JSON. It is in the file of
// ALTER SYSTEM, so it survives a crash of the server and of every daemon; a clone drops it.
const HandoverSetting = "repmgr.switchover"

// ParseHandover parses the value of the setting. What can not be parsed is no handover.
func ParseHandover(text string) election.Handover {
	h := parseRequest[election.Handover](text)
	h.Start, h.Until = h.Start.UTC(), h.Until.UTC() // so that two of them can be compared
	return h
}

// SetHandover writes the setting, and lets the daemons notice it. The zero Handover removes it.
func (n *Server) SetHandover(ctx context.Context, h election.Handover) error {
	return setRequest(ctx, n, HandoverSetting, h)
}

// changeWithin is how long a change of a request may take, with the wait for another one who changes it.
const changeWithin = 10 * time.Second

// ChangeHandover reads the setting, and writes what change makes of it. Of several who do that one after the other
// gets the setting, so that a request is either begun or taken back. An error of change leaves the setting as it is.
func (n *Server) ChangeHandover(ctx context.Context, change func(now election.Handover) (election.Handover, error)) error {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	var failed error
	err := ballot.LockedRequests(ctx, n.Conn, func(set map[string]string) error {
		old := ParseHandover(set[HandoverSetting])
		var next election.Handover
		if next, failed = change(old); failed == nil && next != old {
			failed = n.SetHandover(ctx, next)
		}
		return nil
	})
	if failed == nil && err != nil {
		failed = n.QueryError("change "+HandoverSetting, err)
	}
	return failed
}

// DropHandover removes the handover of that id. Another one, which was written since, stays.
func (n *Server) DropHandover(ctx context.Context, id string) error {
	return n.ChangeHandover(ctx, func(now election.Handover) (election.Handover, error) {
		if now.ID == id {
			now = election.Handover{}
		}
		return now, nil
	})
}

// setRequest writes a request to a daemon as JSON into the file of ALTER SYSTEM. The zero value
// removes it.
func setRequest[T comparable](ctx context.Context, n *Server, setting string, request T) error {
	if err := n.MayAlterSystem(ctx, []string{setting}); err != nil {
		return err
	}
	var none T
	var err error
	if request == none {
		err = ballot.Remove(ctx, n.Conn, setting)
	} else {
		var text []byte
		if text, err = json.Marshal(request); err != nil {
			return fmt.Errorf("write %s: %w", setting, err)
		}
		err = ballot.Store(ctx, n.Conn, setting, string(text))
	}
	if err != nil {
		return n.QueryError("set "+setting, err)
	}
	return n.Reload(ctx)
}

// Handover reads the setting.
func (n *Server) Handover(ctx context.Context) (election.Handover, error) {
	text, err := readRequest(ctx, n, HandoverSetting)
	return ParseHandover(text), err
}

// readRequest reads such a setting. Empty: there is none.
func readRequest(ctx context.Context, n *Server, setting string) (string, error) {
	set, err := ballot.ReadSettings(ctx, n.Conn)
	if err != nil {
		return "", n.QueryError("read "+setting, err)
	}
	return set[setting], nil
}

// parseRequest parses such a setting. What can not be parsed is none.
func parseRequest[T any](text string) (request T) {
	if text == "" || json.Unmarshal([]byte(text), &request) != nil {
		var none T
		return none
	}
	return request
}
