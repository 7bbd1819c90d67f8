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

// pin is a setting that every session of ours brings along, so that no default
// of the server, the database or the role changes what it does, or ends it.
type pin struct {
	name, value string
	since       int  // the first major that knows it; 0: all that are supported
	superuser   bool // only a superuser may set it
	why         string
}

// pins are all of them. What all versions know goes along in the packet that
// opens a session, and costs nothing; a server refuses a session that names one
// that it does not know, or that this login may not set: those are set after the
// login.
//
// Not here is what changes how fast an answer comes or what is logged, but not
// the answer (work_mem, plans, log_*), or what no statement of ours meets
// (xmlbinary, to_char's locale, triggers: session_replication_role,
// event_triggers). lc_messages is not, because no text of a server is read for
// its meaning. role is not: it is how some give a login its rights, and a wrong
// one is refused like a missing grant. What can not be undone from within is
// session_preload_libraries, and a login trigger (17): both run before us.
var pins = []pin{
	{name: "default_transaction_isolation", value: "read committed", why: "a standby refuses every statement of a serializable session"},
	{name: "default_transaction_read_only", value: "off", why: "we write metadata"},
	{name: "default_transaction_deferrable", value: "off", why: "may wait before it begins"},
	{name: "statement_timeout", value: "0", why: "statementLimit has the deadlines"},
	{name: "lock_timeout", value: "10s", why: "nobody is held up by a lock on a table of ours"},
	{name: "idle_in_transaction_session_timeout", value: "0", why: "ends the session"},
	{name: "idle_session_timeout", value: "0", since: 14, why: "ends the session: those that only listen, and the monitor's word"},
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
	{name: "track_activities", value: "on", superuser: true, why: "a monitor's word is the text of its statement"},
	// So that a server does not keep the sessions, and the locks, of a client that
	// it was cut off from.
	{name: "tcp_keepalives_idle", value: "5", why: "see above"},
	{name: "tcp_keepalives_interval", value: "5", why: "see above"},
	{name: "tcp_keepalives_count", value: "3", why: "see above"},
	{name: "tcp_user_timeout", value: "20000", why: "see above; ms"},
}

// PinSession puts into the packet that opens a session what belongs there.
func PinSession(parameters map[string]string) {
	for _, p := range pins {
		if p.since == 0 && !p.superuser {
			parameters[p.name] = p.value
		}
	}
}

// PinOptions are the pins for a program of PostgreSQL's, as the options of its
// conninfo. What those of the user say comes first, so that ours count.
func PinOptions(theirs string, major int) string {
	all := []string{theirs}
	for _, p := range pins {
		if p.since <= major && !p.superuser && p.value != "" {
			all = append(all, "-c "+p.name+"="+strings.ReplaceAll(p.value, " ", `\ `))
		}
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// pinSQL sets the others. Its first column is the process that answers.
func pinSQL(conn *pgconn.PgConn) string {
	sql := `SELECT pg_catalog.pg_backend_pid()`
	for _, p := range pins {
		if p.since > 0 && p.since <= Major(conn) || p.superuser && conn.ParameterStatus("is_superuser") == "on" {
			sql += fmt.Sprintf(`, pg_catalog.set_config('%s', '%s', false)`, p.name, p.value)
		}
	}
	return sql
}

// Major is the major version of the server, as it said at the login. 0: not known.
func Major(conn *pgconn.PgConn) int {
	digits := strings.IndexFunc(conn.ParameterStatus("server_version")+".", func(r rune) bool { return r < '0' || r > '9' })
	major, _ := strconv.Atoi(conn.ParameterStatus("server_version")[:digits])
	return major
}

// settleSession makes a new session ours. It is the driver's hook after each login.
func settleSession(ctx context.Context, conn *pgconn.PgConn) error {
	res, err := conn.Exec(ctx, pinSQL(conn)).ReadAll()
	if err != nil {
		return err
	}
	return checkDirect(conn, res)
}

// errPooled: between us and the server stands something that ends our sessions
// and makes its own.
var errPooled = errors.New("a connection pooler such as PgBouncer answers there, not the server itself")

// checkDirect compares the process that answered with the one that greeted us.
// A pooler greets in a name of its own; what only hands packets on (a port that is
// forwarded, HAProxy) does not.
func checkDirect(conn *pgconn.PgConn, res []*pgconn.Result) error {
	if len(res) == 0 || len(res[0].Rows) != 1 {
		return errors.New("settle the session: no answer")
	}
	if pid := string(res[0].Rows[0][0]); pid != fmt.Sprint(conn.PID()) {
		return fmt.Errorf("%w: process %d greeted us, and %s answers", errPooled, conn.PID(), pid)
	}
	return nil
}

// LookFirst is settleSession and a question of one row and one column in one round trip.
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
