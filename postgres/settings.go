package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
)

// AlterSystem changes settings of a running server, durably, and reloads them.
// Those that have the value already need no privilege. What the session says
// counts only where the file does not say otherwise: a session that was idle, or one
// of a server whose configuration has an error, may not have read the newest settings.
func (n *Server) AlterSystem(ctx context.Context, set map[string]string) error {
	set = maps.Clone(set)
	rows, err := n.Conn.Query(ctx, `SELECT name, coalesce(current_setting(name, true), '') FROM unnest($1::text[]) AS name WHERE name <> 'primary_conninfo'`, slices.Sorted(maps.Keys(set)))
	if err != nil {
		return n.QueryError("read the settings", err)
	}
	var name, value string
	var same []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		if set[name] == value {
			same = append(same, name)
		}
		return nil
	}); err != nil {
		return n.QueryError("read the settings", err)
	}
	if len(same) > 0 {
		written, err := ballot.ReadSettings(ctx, n.Conn)
		if err != nil && !errors.Is(err, ballot.ErrUnreadable) && !errors.Is(err, ballot.ErrMissing) {
			return n.QueryError("read the settings", err)
		}
		for _, name := range same {
			if file, ok := written[name]; !ok || file == set[name] {
				delete(set, name)
			}
		}
	}
	if err := n.MayAlterSystem(ctx, slices.Sorted(maps.Keys(set))); err != nil {
		return err
	}
	if len(set) > 0 && !n.Heeded {
		if err := n.Heeds(ctx); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		sql := fmt.Sprintf("ALTER SYSTEM SET %s = %s", name, QuoteLiteral(set[name]))
		if _, err := n.Conn.Exec(ctx, sql); err != nil {
			return n.QueryError("set "+name, err)
		}
	}
	return n.Reload(ctx)
}

// MayAlterSystem asks for the privileges before the first setting is changed.
func (n *Server) MayAlterSystem(ctx context.Context, names []string) error {
	sql := `SELECT name FROM unnest($1::text[]) AS name WHERE NOT has_parameter_privilege(name, 'ALTER SYSTEM')`
	if n.Conn.PgConn().ParameterStatus("is_superuser") == "on" {
		return nil
	}
	if version := n.Conn.PgConn().ParameterStatus("server_version"); version < "15" {
		sql = `SELECT name FROM unnest($1::text[]) AS name` // only superusers, before 15
	}
	rows, err := n.Conn.Query(ctx, sql, names)
	if err != nil {
		return n.QueryError("look at the privileges", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		return n.QueryError("look at the privileges", err)
	case len(missing) > 0:
		return failure.WithHint(failure.Of(failure.ErrQuery, "set %s on %s: user %q may not", strings.Join(missing, ", "), n.Name, n.Conn.Config().User),
			"Connect as a superuser. Or, from PostgreSQL 15 on, once, on the primary: GRANT ALTER SYSTEM ON PARAMETER %s TO %s;", strings.Join(missing, ", "), n.Conn.Config().User)
	}
	return nil
}

// Heeds says whether the server would heed a new setting. A login that may not look finds nothing wrong.
func (n *Server) Heeds(ctx context.Context) error {
	var fault string
	err := n.Conn.QueryRow(ctx, `SELECT coalesce(`+ballot.FaultSQL+`, '')`).Scan(&fault)
	switch {
	case err != nil && SQLState(err) != CodeInsufficientPrivilege:
		return n.QueryError("look at the configuration", err)
	case fault != "":
		return failure.WithHint(failure.Of(failure.ErrQuery, "%s would heed no new setting: %s", n.Name, fault), heedHint)
	}
	return nil
}

const heedHint = "Correct that on its machine. Then, on it: SELECT pg_reload_conf();"

// WithBallot runs f while nobody else can change or act upon the server's ballot.
func (n *Server) WithBallot(ctx context.Context, f func(ballot.Ballot) error) error {
	err := ballot.Locked(ctx, n.Conn, n.heeding(f))
	if errors.Is(err, ballot.ErrUnheeded) {
		return failure.WithHint(fmt.Errorf("change the settings of %s: %w", n.Name, err), heedHint)
	}
	return err
}

// WithPledge is WithBallot for a server that has pledged itself a moment ago.
func (n *Server) WithPledge(ctx context.Context, f func(ballot.Ballot) error) error {
	return ballot.LockedAgain(ctx, n.Conn, n.heeding(f))
}

// heeding is f on a server of which it is known that it heeds a new setting.
func (n *Server) heeding(f func(ballot.Ballot) error) func(ballot.Ballot) error {
	return func(b ballot.Ballot) error {
		n.Heeded = true
		defer func() { n.Heeded = false }()
		return f(b)
	}
}

// Reload makes the server read its settings again. It also wakes a startup
// process that sleeps between two attempts, which is why callers repeat it.
func (n *Server) Reload(ctx context.Context) error {
	if _, err := n.Conn.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
		return n.QueryError("reload the settings", err)
	}
	return nil
}

// QuoteLiteral writes a string as a literal of SQL.
func QuoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
