package registry

import (
	"context"
	"encoding/json"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// AnnounceRule announces to a data node a rule that its tables do not show yet. It does nothing
// where the node has pledged in a later term, because its pledge was counted without this rule.
func (n *Server) AnnounceRule(ctx context.Context, r election.Rule) error {
	return ballot.Locked(ctx, n.Conn, func(b ballot.Ballot) error {
		if b.Term > r.Term {
			return nil // the ballots show that an election is going on
		}
		return n.StoreRuleAndReload(ctx, r)
	})
}

// StoreRuleAndReload is [Server.AnnounceRule] for a caller that holds the lock of the ballot. The
// setting need not be in force; the reload lets the Monitors notice that something has changed.
func (n *Server) StoreRuleAndReload(ctx context.Context, r election.Rule) error {
	if err := n.StoreRule(ctx, r); err != nil {
		return err
	}
	return n.Reload(ctx)
}

// StoreRule is [Server.StoreRuleAndReload] without the reload, for a caller that writes another
// setting next and reloads then.
func (n *Server) StoreRule(ctx context.Context, r election.Rule) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return ballot.Store(ctx, n.Conn, AnnouncedRuleSetting, string(text))
}
