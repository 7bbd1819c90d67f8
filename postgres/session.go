package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// pin is a setting that each of our sessions sets, so that no default of the server, the
// database or the role changes its results or ends it.
type pin struct {
	name, value string
	since       int  // the first major version that knows it; 0: all supported versions
	superuser   bool // only a superuser may set it
	why         string
}

// pins are all settings that our sessions set. Settings that all versions know are sent in the
// startup packet, which costs nothing. A server refuses a startup packet with a setting that it
// does not know or that the login may not set, so those are set after the login.
//
// Left out are settings that only affect the speed or the log (work_mem, plans, log_*), or
// that no statement of ours depends on (xmlbinary, the locale of to_char, triggers:
// session_replication_role, event_triggers). lc_messages is left out because no text of a
// server is interpreted. role is left out because some installations give a login its rights
// by it; a wrong one is refused like a missing grant. Out of reach are
// session_preload_libraries and login triggers (17), because they run before we can set anything.
var pins = []pin{
	{name: "default_transaction_isolation", value: "read committed", why: "a standby refuses every statement of a serializable session"},
	{name: "default_transaction_read_only", value: "off", why: "we write metadata"},
	{name: "default_transaction_deferrable", value: "off", why: "may wait before it begins"},
	{name: "statement_timeout", value: "0", why: "statementLimit has the deadlines"},
	{name: "lock_timeout", value: "10s", why: "nobody is held up by a lock on a table of ours"},
	{name: "idle_in_transaction_session_timeout", value: "0", why: "ends the session"},
	{name: "idle_session_timeout", value: "0", since: 14, why: "ends the session: those that only listen, and the one that holds the monitor's announcement"},
	{name: "transaction_timeout", value: "0", since: 17, why: "ends the session"},
	{name: "exit_on_error", value: "off", why: "ends the session with the first refused statement"},
	{name: "synchronous_commit", value: "local", why: "bookkeeping waits for no standby"},
	{name: "search_path", value: "", why: "somebody else's functions and operators"},
	{name: "row_security", value: "on", why: "off refuses where a policy would hide rows"},
	{name: "client_encoding", value: "UTF8", why: "names and texts as we know them"},
	{name: "datestyle", value: "ISO, MDY", why: "times are read as text"},
	{name: "intervalstyle", value: "postgres", why: "intervals are read as text"},
	{name: "timezone", value: "UTC", why: "times in texts are of one zone"},
	{name: "bytea_output", value: "hex", why: "files of the server are read as bytea"},
	{name: "extra_float_digits", value: "1", why: "seconds are read as floating point text"},
	{name: "standard_conforming_strings", value: "on", why: "literals are quoted for that"},
	{name: "quote_all_identifiers", value: "off", why: "names are compared"},
	{name: "array_nulls", value: "on", why: "arrays are sent as text"},
	{name: "transform_null_equals", value: "off", why: "another meaning of ="},
	{name: "check_function_bodies", value: "on", why: "the schema is refused whole if it is refused"},
	{name: "default_tablespace", value: "", why: "where the metadata is made"},
	{name: "default_table_access_method", value: "heap", why: "how the metadata is stored"},
	{name: "temp_tablespaces", value: "", why: "one may be gone"},
	{name: "local_preload_libraries", value: "", why: "somebody else's code"},
	{name: "client_min_messages", value: "warning", why: "a debug level sends more than it answers"},
	{name: "jit", value: "off", why: "compiling a look takes longer than the look"},
	{name: "wal_sender_timeout", value: "60s", why: "ends the stream of a clone"},
	{name: "track_activities", value: "on", superuser: true, why: "a monitor announces itself in the text of its statement"},
	// With these a server soon ends the sessions, and so the locks, of a client that it was
	// cut off from.
	{name: "tcp_keepalives_idle", value: "5", why: "see above"},
	{name: "tcp_keepalives_interval", value: "5", why: "see above"},
	{name: "tcp_keepalives_count", value: "3", why: "see above"},
	{name: "tcp_user_timeout", value: "20000", why: "see above; ms"},
}

// PinSession adds the pins that all versions know to the parameters of a startup packet.
func PinSession(parameters map[string]string) {
	for _, p := range pins {
		if p.since == 0 && !p.superuser {
			parameters[p.name] = p.value
		}
	}
}

// PinOptions are the pins for one of PostgreSQL's programs, as the options of its conninfo. The
// user's options come first, so that ours override them.
func PinOptions(theirs string, major int) string {
	all := []string{theirs}
	for _, p := range pins {
		if p.since <= major && !p.superuser && p.value != "" {
			all = append(all, "-c "+p.name+"="+strings.ReplaceAll(p.value, " ", `\ `))
		}
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// pinSQL sets the other pins after the login. Its first column is the process ID of the server process that answers.
func pinSQL(conn *pgconn.PgConn) string {
	sql := `SELECT pg_catalog.pg_backend_pid()`
	for _, p := range pins {
		if p.since > 0 && p.since <= Major(conn) || p.superuser && conn.ParameterStatus("is_superuser") == "on" {
			sql += fmt.Sprintf(`, pg_catalog.set_config('%s', '%s', false)`, p.name, p.value)
		}
	}
	return sql
}

// Major is the major version that the server reported at the login; 0 means not known.
func Major(conn *pgconn.PgConn) int {
	digits := strings.IndexFunc(conn.ParameterStatus("server_version")+".", func(r rune) bool { return r < '0' || r > '9' })
	major, _ := strconv.Atoi(conn.ParameterStatus("server_version")[:digits])
	return major
}

// settleSession sets the remaining pins and refuses a pooler. The driver calls it after each login.
func settleSession(ctx context.Context, conn *pgconn.PgConn) error {
	res, err := conn.Exec(ctx, pinSQL(conn)).ReadAll()
	if err != nil {
		return err
	}
	return checkDirect(conn, res)
}

// errPooled means that something between us and the server ends our sessions and opens its own.
var errPooled = errors.New("a connection pooler such as PgBouncer answers there, not the server itself")

// checkDirect compares the process ID that answered with the one that was announced at the
// login. A pooler announces a process ID of its own. A forwarded port or a proxy for TCP, such as
// HAProxy, only passes packets on and is accepted.
func checkDirect(conn *pgconn.PgConn, res []*pgconn.Result) error {
	if len(res) == 0 || len(res[0].Rows) != 1 {
		return errors.New("settle the session: no answer")
	}
	if pid := string(res[0].Rows[0][0]); pid != fmt.Sprint(conn.PID()) {
		return fmt.Errorf("%w: process %d greeted us, and %s answers", errPooled, conn.PID(), pid)
	}
	return nil
}

// LookFirst does what settleSession does, and a query of one row and one column, in one round trip.
func LookFirst(ctx context.Context, conn *pgconn.PgConn, sql string) (text []byte, err error) {
	ctx = LimitStatement(ctx) // below the driver's tracer
	defer EndStatement(ctx)
	var b pgconn.Batch
	for _, q := range []string{pinSQL(conn), sql} {
		b.ExecParams(q, nil, nil, nil, nil)
	}
	res, err := conn.ExecBatch(ctx, &b).ReadAll()
	if err != nil {
		return nil, err
	}
	if err := checkDirect(conn, res); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(res[1:], func(r *pgconn.Result) bool { return len(r.Rows) == 1 && len(r.Rows[0]) == 1 }); i != 0 {
		return nil, errors.New("want one row of one column")
	}
	return res[1].Rows[0][0], nil
}
