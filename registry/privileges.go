package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
)

// What a login that is no superuser needs for a failover. The parameters are
// those that a daemon sets by ALTER SYSTEM.
var (
	failoverParameters = append(slices.Clone(ballot.Parameters), PausedSetting, ballot.SyncMark, AnnouncedRuleSetting, "primary_slot_name", "recovery_target_timeline", "synchronous_standby_names")
	failoverFunctions  = []string{
		"pg_show_all_file_settings()", "pg_reload_conf()", "pg_promote(boolean, integer)", "pg_wal_replay_resume()",
		"pg_read_binary_file(text)", "pg_read_binary_file(text, bigint, bigint, boolean)", "pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)",
	}
	failoverRoles = []string{"pg_monitor", "pg_checkpoint", "pg_signal_backend"}
)

// FailoverPrivileges says what this login lacks for a failover, or its server. The
// hint has the statements that grant it: on a standby nobody can, once the primary
// is lost.
func (n *Server) FailoverPrivileges(ctx context.Context) error {
	if err := n.Heeds(ctx); err != nil {
		return fmt.Errorf("failover: %w", err)
	}
	if n.Conn.PgConn().ParameterStatus("is_superuser") == "on" {
		return nil
	}
	login := n.Conn.Config().User
	var archive bool
	if err := n.Conn.QueryRow(ctx, `SELECT current_setting('restore_command') <> ''`).Scan(&archive); err != nil {
		return n.QueryError("look at the privileges", err)
	}
	needed := failoverParameters
	if archive {
		needed = append(slices.Clone(needed), ballot.ArchiveParameters...)
	}
	if postgres.Major(n.Conn.PgConn()) < 15 {
		return failure.WithHint(failure.Of(failure.ErrQuery, "failover on %s: user %q is no superuser, and before PostgreSQL 15 nobody else may ALTER SYSTEM", n.Name, login),
			"Make it a superuser: ALTER ROLE %s SUPERUSER;", pgx.Identifier{login}.Sanitize())
	}
	var parameters, functions, roles []string
	var files, tables, replication bool
	err := n.Conn.QueryRow(ctx, `SELECT
		ARRAY(SELECT name FROM unnest($1::text[]) WITH ORDINALITY u (name, i) WHERE NOT has_parameter_privilege(name, 'ALTER SYSTEM') ORDER BY i),
		ARRAY(SELECT name FROM unnest($2::text[]) WITH ORDINALITY u (name, i) WHERE NOT has_function_privilege(name, 'EXECUTE') ORDER BY i),
		ARRAY(SELECT name FROM unnest($3::text[]) WITH ORDINALITY u (name, i) WHERE NOT pg_has_role(name, 'USAGE') ORDER BY i),
		has_table_privilege('pg_file_settings', 'SELECT'),
		(SELECT coalesce(bool_and(has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
				AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')), true)
			FROM pg_class WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'repmgr')),
		(SELECT rolreplication FROM pg_roles WHERE rolname = current_user)`,
		needed, failoverFunctions, failoverRoles).Scan(&parameters, &functions, &roles, &files, &tables, &replication)
	if err != nil {
		return n.QueryError("look at the privileges", err)
	}
	var lacks, grants []string
	lack := func(what, grant string) {
		lacks = append(lacks, what)
		grants = append(grants, fmt.Sprintf("%s TO %s;", grant, pgx.Identifier{login}.Sanitize()))
	}
	if !replication {
		lacks = append(lacks, "replicate")
		grants = append(grants, fmt.Sprintf("ALTER ROLE %s REPLICATION;", pgx.Identifier{login}.Sanitize()))
	}
	if list := strings.Join(roles, ", "); list != "" {
		lack("be "+list, "GRANT "+list)
	}
	if list := strings.Join(parameters, ", "); list != "" {
		lack("ALTER SYSTEM SET "+list, "GRANT ALTER SYSTEM ON PARAMETER "+list)
	}
	if !files {
		lack("read pg_file_settings", "GRANT SELECT ON pg_file_settings")
	}
	if list := strings.Join(functions, ", "); list != "" {
		lack("call "+list, "GRANT EXECUTE ON FUNCTION "+list)
	}
	if !tables {
		lack("write the tables of repmgr", "GRANT USAGE ON SCHEMA repmgr TO "+pgx.Identifier{login}.Sanitize()+"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA repmgr")
	}
	if len(lacks) == 0 {
		return nil
	}
	return failure.WithHint(failure.Of(failure.ErrQuery, "failover on %s: user %q may not %s", n.Name, login, strings.Join(lacks, "; may not ")),
		"Connect as a superuser. Or run once, as one, in database %q of the primary, and of each witness:\n%s", n.Conn.Config().Database, strings.Join(grants, "\n"))
}
