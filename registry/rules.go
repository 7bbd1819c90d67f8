package registry

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
)

// RulesSQL reads the rules of a server as JSON, the newest first. Tables of an older version may
// lack columns, which are then zero.
const RulesSQL = `SELECT to_json(r) FROM repmgr.rules r ORDER BY term DESC, seq DESC`

// AnnouncedRuleSetting is the server setting with a rule that was announced to a data node before its
// tables show it: see [election.Peer.WithAnnounced]. It is JSON, in the file of ALTER SYSTEM.
const AnnouncedRuleSetting = "repmgr.rule"

// Rules are the newest two rules of a server, the newest first.
func (n *Server) Rules(ctx context.Context) ([]election.Rule, error) {
	if ok, err := n.HasSchema(ctx); !ok {
		return nil, err
	}
	rows, err := n.Conn.Query(ctx, RulesSQL+` LIMIT 2`)
	if err != nil {
		return nil, n.QueryError("read the rules", err)
	}
	rules, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r election.Rule, err error) {
		var text []byte
		if err := row.Scan(&text); err != nil {
			return r, err
		}
		return r, json.Unmarshal(text, &r)
	})
	if err != nil {
		return nil, n.QueryError("read the rules", err)
	}
	return rules, nil
}

// RuleInsertSQL writes a rule if it is newer than all others, and never changes a row. Columns
// that the tables of an older version do not have are left out.
const RuleInsertSQL = `INSERT INTO repmgr.rules SELECT r.* FROM jsonb_populate_record(NULL::repmgr.rules,
		$1::jsonb || jsonb_build_object('coordinator', $2::text, 'opened_at', now())) r
	 WHERE NOT EXISTS (SELECT FROM repmgr.rules WHERE (term, seq) >= (r.term, r.seq))`

// RuleArgs are the arguments of [RuleInsertSQL].
func RuleArgs(r election.Rule, coordinator string) ([]any, error) {
	if r.Voters == nil {
		r.Voters = []int32{}
	}
	if r.Sync == nil {
		r.Sync = []int32{}
	}
	text, err := json.Marshal(r)
	return []any{string(text), coordinator}, err
}

// WriteRule writes a rule. It does nothing where there are only the tables of repmgr 5, which
// have no place for rules. The error is [ErrSuperseded] where there is a rule that is as new or newer.
func (n *Server) WriteRule(ctx context.Context, r election.Rule, coordinator string) error {
	if ok, err := n.HasSchema(ctx); !ok {
		return err
	}
	args, err := RuleArgs(r, coordinator)
	if err != nil {
		return err
	}
	tag, err := n.Conn.Exec(ctx, RuleInsertSQL, args...)
	if err != nil {
		return n.QueryError("write the rule", err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("write the rule of term %d: %s has one as new: %w", r.Term, n.Name, ErrSuperseded)
	}
	return nil
}

// ErrSuperseded means that another election has begun since this one.
var ErrSuperseded = failure.Of(failure.ErrRefused, "another election has begun since")
