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

// AlterSystem changes settings of a running server durably, and reloads them. Settings that
// already have the value need no privilege. A value that the session shows is trusted only if
// the file agrees: a session that was idle, or a server whose configuration has an error, may
// not have read the newest settings.
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

// MayAlterSystem checks the privileges for all settings before the first one is changed.
func (n *Server) MayAlterSystem(ctx context.Context, names []string) error {
	sql := `SELECT name FROM unnest($1::text[]) AS name WHERE NOT has_parameter_privilege(name, 'ALTER SYSTEM')`
	if n.Conn.PgConn().ParameterStatus("is_superuser") == "on" {
		return nil
	}
	if version := n.Conn.PgConn().ParameterStatus("server_version"); version < "15" {
		sql = `SELECT name FROM unnest($1::text[]) AS name` // before 15 only superusers may
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

// Heeds returns an error where a new setting would have no effect on the server. With a login
// that is not allowed to check this, it returns nil.
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

// WithBallot calls f while nobody else can change the server's ballot or act on it.
func (n *Server) WithBallot(ctx context.Context, f func(ballot.Ballot) error) error {
	err := ballot.Locked(ctx, n.Conn, n.heeding(f))
	if errors.Is(err, ballot.ErrUnheeded) {
		return failure.WithHint(fmt.Errorf("change the settings of %s: %w", n.Name, err), heedHint)
	}
	return err
}

// WithPledge is [Server.WithBallot] for a server that has pledged a moment ago.
func (n *Server) WithPledge(ctx context.Context, f func(ballot.Ballot) error) error {
	return ballot.LockedAgain(ctx, n.Conn, n.heeding(f))
}

// WithVictory is [Server.WithPledge] for the winner of an election: see [ballot.LockedWinner].
func (n *Server) WithVictory(ctx context.Context, f func(b ballot.Ballot, firstXid uint64) error) error {
	return ballot.LockedWinner(ctx, n.Conn, func(b ballot.Ballot, firstXid uint64) error {
		return n.heeding(func(b ballot.Ballot) error { return f(b, firstXid) })(b)
	})
}

// heeding wraps f: while it runs, new settings are known to have an effect on the server.
func (n *Server) heeding(f func(ballot.Ballot) error) func(ballot.Ballot) error {
	return func(b ballot.Ballot) error {
		n.Heeded = true
		defer func() { n.Heeded = false }()
		return f(b)
	}
}

// Reload makes the server read its settings again. It also wakes a startup process that
// sleeps between two attempts; callers repeat it for that.
func (n *Server) Reload(ctx context.Context) error {
	if _, err := n.Conn.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
		return n.QueryError("reload the settings", err)
	}
	return nil
}

// QuoteLiteral returns a string as an SQL literal.
func QuoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
