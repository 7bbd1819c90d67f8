package repmgr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/postgres"
)

// primaryConninfo is how a standby of that name reaches its upstream: the
// upstream's registered address, its replication role, and the name by which
// the upstream will know the standby. It holds a password only where the
// configuration asks for that.
func (c *Cluster) primaryConninfo(upstream Record, name string) (string, error) {
	params, err := ParseConninfo(upstream.Conninfo)
	if err != nil {
		return "", kind(ErrConfig, "conninfo of %s: %w", upstream, err)
	}
	for _, key := range []string{"dbname", "replication", "password", "options", "application_name", "fallback_application_name", "target_session_attrs"} {
		delete(params, key)
	}
	params["user"] = upstream.ReplicationUser
	if params["user"] == "" {
		delete(params, "user")
	}
	if name != "" {
		params["application_name"] = name[:min(len(name), 63)]
	}
	if c.cfg.Passfile != "" {
		params["passfile"] = c.cfg.Passfile
	}
	if c.cfg.UsePrimaryConninfoPassword {
		params["password"] = os.Getenv("PGPASSWORD")
		if ours, err := ParseConninfo(c.cfg.Conninfo); err == nil && params["password"] == "" {
			params["password"] = ours["password"]
		}
	}
	return FormatConninfo(params), nil
}

// standbySettings are the server settings that make a data directory a standby
// of upstream. An empty value is meant: it stands against one in postgresql.conf.
func (c *Cluster) standbySettings(upstream Record, name, slot string) (map[string]string, error) {
	conninfo, err := c.primaryConninfo(upstream, name)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"primary_conninfo":         conninfo,
		"primary_slot_name":        slot,
		"recovery_target_timeline": "latest",
	}, nil
}

// recoverySettings are the settings that only a new standby is given.
func (c *Cluster) recoverySettings(set map[string]string, minApplyDelay string) {
	if d := c.cfg.RecoveryMinApplyDelay; minApplyDelay == "" && d > 0 {
		minApplyDelay = fmt.Sprintf("%dms", d.Milliseconds())
	}
	for key, value := range map[string]string{"restore_command": c.cfg.RestoreCommand, "archive_cleanup_command": c.cfg.ArchiveCleanupCommand, "recovery_min_apply_delay": minApplyDelay} {
		if value != "" {
			set[key] = value
		}
	}
	for _, key := range []string{"recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"} {
		set[key] = "" // a leftover of the source would stop recovery half-way
	}
}

// alterSystem changes settings of a running server, durably, and reloads them.
// Those that have the value already need no privilege. What the session says
// counts only where the file does not say otherwise: a session that was idle, or one
// of a server whose configuration has an error, may not have read the newest settings.
func (n *server) alterSystem(ctx context.Context, set map[string]string) error {
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
func (n *server) mayAlterSystem(ctx context.Context, names []string) error {
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
func (n *server) heeds(ctx context.Context) error {
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
func (n *server) withBallot(ctx context.Context, f func(ballot.Ballot) error) error {
	err := ballot.Locked(ctx, n.conn, n.heeding(f))
	if errors.Is(err, ballot.ErrUnheeded) {
		return hint(fmt.Errorf("change the settings of %s: %w", n.name, err), heedHint)
	}
	return err
}

// withPledge is withBallot for a server that has pledged itself a moment ago.
func (n *server) withPledge(ctx context.Context, f func(ballot.Ballot) error) error {
	return ballot.LockedAgain(ctx, n.conn, n.heeding(f))
}

// heeding is f on a server of which it is known that it heeds a new setting.
func (n *server) heeding(f func(ballot.Ballot) error) func(ballot.Ballot) error {
	return func(b ballot.Ballot) error {
		n.heeded = true
		defer func() { n.heeded = false }()
		return f(b)
	}
}

// reload makes the server read its settings again. It also wakes a startup
// process that sleeps between two attempts, which is why callers repeat it.
func (n *server) reload(ctx context.Context) error {
	if _, err := n.conn.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
		return n.queryError("reload the settings", err)
	}
	return nil
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
