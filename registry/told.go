package registry

import (
	"context"
	"encoding/json"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// TellRule tells a data node of a rule that its tables do not show yet. One that
// has pledged itself in a later term hears nothing: its pledge was counted without.
func (n *Server) TellRule(ctx context.Context, r election.Rule) error {
	return ballot.Locked(ctx, n.Conn, func(b ballot.Ballot) error {
		if b.Term > r.Term {
			return nil // an election goes on: the ballots tell
		}
		return n.StoreRuleAndReload(ctx, r)
	})
}

// StoreRuleAndReload is [Server.TellRule] for who holds the ballot's lock. Nobody needs it in
// force, but where the server reads its settings the Monitors notice that something changed.
func (n *Server) StoreRuleAndReload(ctx context.Context, r election.Rule) error {
	if err := n.StoreRule(ctx, r); err != nil {
		return err
	}
	return n.Reload(ctx)
}

// StoreRule is [Server.StoreRuleAndReload] without the reload: whatever is written next brings one.
func (n *Server) StoreRule(ctx context.Context, r election.Rule) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return ballot.Store(ctx, n.Conn, ToldSetting, string(text))
}
