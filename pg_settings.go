package repmgr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/postgres"
)

// alterSystem changes settings of a running server, durably, and reloads them.
// Those that have the value already need no privilege. What the session says
// counts only where the file does not say otherwise: a session that was idle, or one
// of a server whose configuration has an error, may not have read the newest settings.
func (n *pgServer) alterSystem(ctx context.Context, set map[string]string) error {
	set = maps.Clone(set)
	rows, err := n.conn.Query(ctx, `SELECT name, coalesce(current_setting(name, true), '') FROM unnest($1::text[]) AS name WHERE name <> 'primary_conninfo'`, sortedKeys(set))
	if err != nil {
		return n.queryError("read the settings", err)
	}
	var name, value string
	var same []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		if set[name] == value {
			same = append(same, name)
		}
		return nil
	}); err != nil {
		return n.queryError("read the settings", err)
	}
	if len(same) > 0 {
		written, err := ballot.ReadSettings(ctx, n.conn)
		if err != nil && !errors.Is(err, ballot.ErrUnreadable) && !errors.Is(err, ballot.ErrMissing) {
			return n.queryError("read the settings", err)
		}
		for _, name := range same {
			if file, ok := written[name]; !ok || file == set[name] {
				delete(set, name)
			}
		}
	}
	if err := n.mayAlterSystem(ctx, sortedKeys(set)); err != nil {
		return err
	}
	if len(set) > 0 && !n.heeded {
		if err := n.heeds(ctx); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(set) {
		sql := fmt.Sprintf("ALTER SYSTEM SET %s = %s", name, quoteLiteral(set[name]))
		if _, err := n.conn.Exec(ctx, sql); err != nil {
			return n.queryError("set "+name, err)
		}
	}
	return n.reload(ctx)
}

// mayAlterSystem asks for the privileges before the first setting is changed.
func (n *pgServer) mayAlterSystem(ctx context.Context, names []string) error {
	sql := `SELECT name FROM unnest($1::text[]) AS name WHERE NOT has_parameter_privilege(name, 'ALTER SYSTEM')`
	if n.conn.PgConn().ParameterStatus("is_superuser") == "on" {
		return nil
	}
	if version := n.conn.PgConn().ParameterStatus("server_version"); version < "15" {
		sql = `SELECT name FROM unnest($1::text[]) AS name` // only superusers, before 15
	}
	rows, err := n.conn.Query(ctx, sql, names)
	if err != nil {
		return n.queryError("look at the privileges", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		return n.queryError("look at the privileges", err)
	case len(missing) > 0:
		return hint(kind(ErrQuery, "set %s on %s: user %q may not", strings.Join(missing, ", "), n.name, n.conn.Config().User),
			"Connect as a superuser. Or, from PostgreSQL 15 on, once, on the primary: GRANT ALTER SYSTEM ON PARAMETER %s TO %s;", strings.Join(missing, ", "), n.conn.Config().User)
	}
	return nil
}

// heeds says whether the server would heed a new setting. A login that may not look finds nothing wrong.
func (n *pgServer) heeds(ctx context.Context) error {
	var fault string
	err := n.conn.QueryRow(ctx, `SELECT coalesce(`+ballot.FaultSQL+`, '')`).Scan(&fault)
	switch {
	case err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege:
		return n.queryError("look at the configuration", err)
	case fault != "":
		return hint(kind(ErrQuery, "%s would heed no new setting: %s", n.name, fault), heedHint)
	}
	return nil
}

const heedHint = "Correct that on its machine. Then, on it: SELECT pg_reload_conf();"

// withBallot runs f while nobody else can change or act upon the server's ballot.
func (n *pgServer) withBallot(ctx context.Context, f func(ballot.Ballot) error) error {
	err := ballot.Locked(ctx, n.conn, n.heeding(f))
	if errors.Is(err, ballot.ErrUnheeded) {
		return hint(fmt.Errorf("change the settings of %s: %w", n.name, err), heedHint)
	}
	return err
}

// withPledge is withBallot for a server that has pledged itself a moment ago.
func (n *pgServer) withPledge(ctx context.Context, f func(ballot.Ballot) error) error {
	return ballot.LockedAgain(ctx, n.conn, n.heeding(f))
}

// heeding is f on a server of which it is known that it heeds a new setting.
func (n *pgServer) heeding(f func(ballot.Ballot) error) func(ballot.Ballot) error {
	return func(b ballot.Ballot) error {
		n.heeded = true
		defer func() { n.heeded = false }()
		return f(b)
	}
}

// reload makes the server read its settings again. It also wakes a startup
// process that sleeps between two attempts, which is why callers repeat it.
func (n *pgServer) reload(ctx context.Context) error {
	if _, err := n.conn.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
		return n.queryError("reload the settings", err)
	}
	return nil
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
