package registry

import (
	"context"

	"github.com/pgrepmgr/repmgr/election"
)

// RestartSetting is the server setting by which the monitor of a standby or a witness is asked to restart its server: an
// [election.Restart] as JSON.
const RestartSetting = "repmgr.restart"

// ParseRestart parses the value of the setting. What can not be parsed is no request.
func ParseRestart(text string) election.Restart {
	r := parseRequest[election.Restart](text)
	r.Asked, r.Until = r.Asked.UTC(), r.Until.UTC() // so that two of them can be compared
	return r
}

// SetRestart writes the setting, and lets the daemon notice it. The zero Restart removes it.
func (n *Server) SetRestart(ctx context.Context, r election.Restart) error {
	return setRequest(ctx, n, RestartSetting, r)
}

// DropRestart removes the request of that id. Another one, which was written since, stays.
func (n *Server) DropRestart(ctx context.Context, id string) error {
	if now, err := n.Restart(ctx); err != nil || now.ID != id {
		return err
	}
	return n.SetRestart(ctx, election.Restart{})
}

// Restart reads the setting.
func (n *Server) Restart(ctx context.Context) (election.Restart, error) {
	text, err := readRequest(ctx, n, RestartSetting)
	return ParseRestart(text), err
}
