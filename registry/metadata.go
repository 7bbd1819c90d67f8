package registry

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
)

// metadataSQL reads what is copied to a witness: the nodes, and the rules of the newest term,
// but at least two. As jsonb with times in UTC, equal content is equal text. A witness needs no first_xid, and an older one has no place for it.
const metadataSQL = `SELECT pg_is_in_recovery(), jsonb_build_object(
	'cluster', (SELECT cluster_name FROM repmgr.metadata),
	'nodes', (SELECT coalesce(jsonb_agg(to_jsonb(n) ORDER BY node_id), '[]') FROM repmgr.nodes n),
	'rules', (SELECT coalesce(jsonb_agg(to_jsonb(r) - 'first_xid' || jsonb_build_object('opened_at', r.opened_at AT TIME ZONE 'UTC') ORDER BY term DESC, seq DESC), '[]')
		FROM (SELECT *, row_number() OVER (ORDER BY term DESC, seq DESC) AS age, max(term) OVER () AS newest FROM repmgr.rules) r
		WHERE age <= 2 OR term = newest))::text`

// metadata is the result of metadataSQL on a server.
type metadata struct {
	text       string
	inRecovery bool
	Rules      []election.Rule `json:"rules"` // newest first
}

func (m metadata) newest() election.Rule {
	if len(m.Rules) == 0 {
		return election.Rule{}
	}
	return m.Rules[0]
}

func (n *Server) readMetadata(ctx context.Context) (m metadata, err error) {
	if err := n.NeedSchema(ctx); err != nil {
		return m, err
	}
	if err := n.Conn.QueryRow(ctx, metadataSQL).Scan(&m.inRecovery, &m.text); err != nil {
		return m, n.QueryError("read the metadata", err)
	}
	if err := json.Unmarshal([]byte(m.text), &m); err != nil {
		return m, fmt.Errorf("read the metadata of %s: %w", n.Name, err)
	}
	return m, nil
}

// CopyMetadata updates the copy of the metadata on a witness from the primary. Where nothing
// has changed it costs two statements. Several daemons may call it at once: they take turns by
// a lock, and each reads the primary while it has the lock. The error is a [failure.ErrRefused]
// where the witness knows of a newer rule, because then this is no longer the primary.
func CopyMetadata(ctx context.Context, primary, witness *Server) error {
	from, to, err := bothMetadata(ctx, primary, witness)
	if err != nil || from.text == to.text {
		return err
	}
	err = pgx.BeginFunc(ctx, witness.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE repmgr.nodes, repmgr.rules IN SHARE ROW EXCLUSIVE MODE; SET CONSTRAINTS ALL DEFERRED`); err != nil {
			return witness.QueryError("lock the copy of the metadata", err)
		}
		if from, to, err = bothMetadata(ctx, primary, witness); err != nil || from.text == to.text {
			return err
		}
		for _, sql := range []string{
			`UPDATE repmgr.metadata SET cluster_name = $1::jsonb ->> 'cluster' WHERE cluster_name <> $1::jsonb ->> 'cluster'`,
			`DELETE FROM repmgr.nodes WHERE $1::jsonb IS NOT NULL`,
			`INSERT INTO repmgr.nodes SELECT * FROM jsonb_populate_recordset(NULL::repmgr.nodes, $1::jsonb -> 'nodes')`,
			`DELETE FROM repmgr.rules WHERE $1::jsonb IS NOT NULL`,
			`INSERT INTO repmgr.rules SELECT (r).* FROM (SELECT jsonb_populate_record(NULL::repmgr.rules,
				x || jsonb_build_object('opened_at', (x ->> 'opened_at')::timestamp AT TIME ZONE 'UTC')) AS r FROM jsonb_array_elements($1::jsonb -> 'rules') x) s`,
		} {
			if _, err := tx.Exec(ctx, sql, from.text); err != nil {
				return witness.QueryError("write the copy of the metadata", err)
			}
		}
		return nil
	})
	if err != nil && postgres.SQLState(err) != "" {
		return witness.QueryError("write the copy of the metadata", err)
	}
	return err
}

// bothMetadata reads the metadata of both servers and checks whether the copy may be made.
func bothMetadata(ctx context.Context, primary, witness *Server) (from, to metadata, err error) {
	if to, err = witness.readMetadata(ctx); err != nil {
		return from, to, err
	}
	if from, err = primary.readMetadata(ctx); err != nil {
		return from, to, err
	}
	switch {
	case from.inRecovery:
		err = failure.Of(failure.ErrNotPrimary, "copy the metadata of %s: it is a standby", primary.Name)
	case to.inRecovery:
		err = failure.Of(failure.ErrNotPrimary, "copy the metadata to %s: it is a standby", witness.Name)
	case to.newest().Compare(from.newest()) > 0:
		err = failure.WithHint(failure.Of(failure.ErrRefused, "copy the metadata of %s to %s: the witness knows of term %d, the primary only of term %d",
			primary.Name, witness.Name, to.newest().Term, from.newest().Term), "Another node was made primary meanwhile: see repmgr service status.")
	}
	return from, to, err
}

// ForgetMetadata removes the copy of the metadata on a witness. Its ballot stays, because a
// pledge is never taken back.
func (n *Server) ForgetMetadata(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM repmgr.rules; SET CONSTRAINTS ALL DEFERRED; DELETE FROM repmgr.nodes`)
		return err
	})
	if err != nil {
		return n.QueryError("remove the copy of the metadata", err)
	}
	return nil
}
