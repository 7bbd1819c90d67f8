package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/nowait"
)

// DefaultConnectTimeout limits the time from the first packet to the answer of the first
// query, where conninfo has no connect_timeout.
const DefaultConnectTimeout = 2 * time.Second

// Reach says how a server answered an attempt to connect. A host that refuses connections is
// a different evidence than a silent one. The zero value means that nothing was tried.
type Reach string

const (
	ReachOK          Reach = "ok"
	ReachRefused     Reach = "refused"            // the host answers, but nothing listens on the port
	ReachTimeout     Reach = "timed out"          // no answer, or an incomplete one
	ReachNoRoute     Reach = "unreachable"        // the network reports that there is no route
	ReachNoHost      Reach = "unknown host"       // the name does not resolve
	ReachStarting    Reach = "not accepting"      // starting up, shutting down or recovering
	ReachFull        Reach = "out of connections" // every slot is taken
	ReachRejected    Reach = "rejected"           // the login, the database or the address is not allowed
	ReachNotPostgres Reach = "not PostgreSQL"     // something else listens there
	ReachBroken      Reach = "broken"             // an established connection ended
)

// Answers reports whether the answer came from a running PostgreSQL server.
func (r Reach) Answers() bool {
	switch r {
	case ReachOK, ReachStarting, ReachFull, ReachRejected:
		return true
	case ReachRefused, ReachTimeout, ReachNoRoute, ReachNoHost, ReachNotPostgres, ReachBroken:
		return false
	}
	return false
}

// ConnectError means that a server could not be reached. It matches [failure.ErrConnect].
type ConnectError struct {
	Target string // the server, without secrets: node "node2" (ID: 2), or its address
	Doing  string // what was being done when the connection was lost, such as "read the status"; empty: connecting
	Reach  Reach
	Err    error
}

func (e *ConnectError) Error() string {
	switch {
	case e.Doing == "":
		return "connect to " + e.Target + ": " + Cause(e.Err)
	case e.Reach == ReachTimeout:
		return fmt.Sprintf("%s of %s: no answer in time", e.Doing, e.Target)
	default:
		return fmt.Sprintf("%s of %s: connection lost: %s", e.Doing, e.Target, Cause(e.Err))
	}
}

// Accepted reports whether something accepted the connection before the attempt failed. An
// attempt that got no packet back fails while dialling.
func Accepted(e *ConnectError) bool {
	var op *net.OpError
	return !errors.As(e.Err, &op) || op.Op != "dial"
}

func (e *ConnectError) Unwrap() error        { return e.Err }
func (e *ConnectError) Is(target error) bool { return target == failure.ErrConnect }

// SQLSTATEs that this package tests for.
const (
	CodeInsufficientPrivilege = "42501"
	CodeUndefinedTable        = "42P01"
	CodeNotInState            = "55000" // object_not_in_prerequisite_state: such as a function for recovery on a primary
	CodeInvalidSchema         = "3F000"
	codeUniqueViolation       = "23505"
	codeTooManyConnections    = "53300"
	codeCannotConnectNow      = "57P03"
	CodeDuplicateObject       = "42710"
	codeProtocolViolation     = "08P01"
)

// poolerHint is the hint for a connection pooler. PgBouncer rejects the settings of our
// sessions as a protocol violation, unless it is configured to ignore them.
const poolerHint = "Let conninfo lead to the PostgreSQL server itself: locks and settings of our sessions do not outlast a pooler, and %s seems to be one."

// SQLState is the code with which a server refused a statement, "" for any other error.
func SQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

var dialer = &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}}

// dialNoWait dials for a connection that is used for many queries.
func dialNoWait(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return nowait.Conn(conn), nil
}

// ConnConfig prepares the configuration that all our connections have: an application name,
// the settings of pins, and keepalives that detect a silent peer.
func ConnConfig(info string) (*pgx.ConnConfig, error) {
	if problem := conninfo.Check(info); problem != "" {
		return nil, failure.Of(failure.ErrConfig, "conninfo %q %s", conninfo.Redact(info), problem)
	}
	native, err := conninfo.ForPGX(info)
	if err != nil {
		return nil, failure.Of(failure.ErrConfig, "conninfo %q: %w", conninfo.Redact(info), err)
	}
	cfg, err := pgx.ParseConfig(native)
	if err != nil { // the text of the error may contain the password
		return nil, failure.Of(failure.ErrConfig, "conninfo %q can not be used", conninfo.Redact(info))
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = DefaultConnectTimeout
	}
	cfg.DialFunc = dialer.DialContext
	if _, set := cfg.RuntimeParams["application_name"]; !set {
		cfg.RuntimeParams["application_name"] = "repmgr"
	}
	cfg.Tracer = statementLimit{}
	PinSession(cfg.RuntimeParams)
	cfg.AfterConnect = settleSession
	if conninfo.TargetSessionAttrs(info) == "" {
		cfg.ValidateConnect = nil // of PGTARGETSESSIONATTRS
	}
	return cfg, nil
}

// StatementTimeout limits every statement, so that a server which stops answering in the
// middle blocks nobody. Exempt are statements that may take long: backups, the deletes of
// Cleanup, checkpoints, and the first commit of a term, which waits for standbys and has the
// deadline of its election.
const StatementTimeout = 15 * time.Second

// statementLimit gives each statement its deadline. It is a tracer of the driver, so no caller
// can forget it.
type statementLimit struct{}

type (
	noLimitKey struct{}
	cancelKey  struct{}
)

// Unlimited returns ctx for a statement without a deadline.
func Unlimited(ctx context.Context) context.Context {
	return context.WithValue(ctx, noLimitKey{}, true)
}

// LimitStatement returns ctx with the deadline of a statement, for calls that bypass the
// driver's tracer. [EndStatement] releases it.
func LimitStatement(ctx context.Context) context.Context {
	if ctx.Value(noLimitKey{}) != nil {
		return ctx
	}
	ctx, cancel := context.WithTimeoutCause(ctx, StatementTimeout, fmt.Errorf("no answer within %s", StatementTimeout))
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// EndStatement releases the context of [LimitStatement].
func EndStatement(ctx context.Context) {
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

func (statementLimit) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return LimitStatement(ctx)
}

func (statementLimit) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	EndStatement(ctx)
}

func (statementLimit) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return LimitStatement(ctx)
}
func (statementLimit) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (statementLimit) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	EndStatement(ctx)
}

// earlyTimeouts are the settings whose defaults can end a session before our own values are
// set, by the SQLSTATE that the server then reports. A server that reports one knows the
// setting, so the next attempt can set it.
var earlyTimeouts = map[string]string{"25P04": "transaction_timeout", "57P05": "idle_session_timeout"}

// Dial connects to a server within connect_timeout for each host that conninfo lists.
func Dial(ctx context.Context, target, conninfo string) (*pgx.Conn, error) {
	cfg, err := ConnConfig(conninfo)
	if err != nil {
		return nil, err
	}
	return DialConfig(ctx, target, cfg)
}

// DialConfig connects as cfg says, which [ConnConfig] has made.
func DialConfig(ctx context.Context, target string, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	return dialBy(ctx, target, cfg, dialNoWait)
}

// DialUncancelled is [DialConfig] for programs with many connections. Normally the driver opens
// a new connection for each one that timed out or ended, to cancel the statement that runs
// there. A server that is slow, or has just restarted after a crash, would get all of those at
// once and fork a process for each. Here no cancel requests are sent; a statement that still
// runs is ended by the limits of its session (see pins).
func DialUncancelled(ctx context.Context, target string, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	var open atomic.Bool
	defer open.Store(true)
	return dialBy(ctx, target, cfg, func(ctx context.Context, network, address string) (net.Conn, error) {
		if open.Load() {
			return nil, net.ErrClosed
		}
		return dialNoWait(ctx, network, address)
	})
}

func dialBy(ctx context.Context, target string, cfg *pgx.ConnConfig, dial pgconn.DialFunc) (*pgx.Conn, error) {
	ctx, cancel := Limit(ctx, cfg)
	defer cancel()
	cfg.DialFunc = dial
	conn, err := pgx.ConnectConfig(ctx, cfg)
	for range earlyTimeouts {
		if name := earlyTimeouts[SQLState(err)]; name != "" {
			cfg.RuntimeParams[name] = "0"
			conn, err = pgx.ConnectConfig(ctx, cfg)
		}
	}
	if err != nil {
		return nil, Explained(ctx, target, cfg, err)
	}
	return conn, nil
}

// Limit returns ctx with the deadline of a connection attempt: connect_timeout for each host
// that conninfo lists.
func Limit(ctx context.Context, cfg *pgx.ConnConfig) (context.Context, context.CancelFunc) {
	hosts := map[string]bool{fmt.Sprint(cfg.Host, cfg.Port): true}
	for _, f := range cfg.Fallbacks {
		hosts[fmt.Sprint(f.Host, f.Port)] = true
	}
	return context.WithTimeoutCause(ctx, time.Duration(len(hosts))*cfg.ConnectTimeout, errNoAnswer(cfg))
}

func errNoAnswer(cfg *pgx.ConnConfig) error {
	return fmt.Errorf("no answer within connect_timeout (%s)", cfg.ConnectTimeout)
}

// noTLS is the end of the driver's error for a server without TLS. The driver has no type for it.
const noTLS = "server refused TLS connection"

// attempts are the errors of the single attempts behind an error of the driver. With
// sslmode=prefer, the default, an attempt with TLS is followed by one without it. Only the
// second one is informative, so attempts that failed for lack of TLS are left out.
func attempts(err error) error {
	var joined interface{ Unwrap() []error }
	var ce *pgconn.ConnectError
	if !errors.As(err, &ce) || !errors.As(ce.Unwrap(), &joined) {
		return err
	}
	informative := slices.DeleteFunc(slices.Clone(joined.Unwrap()), func(one error) bool {
		return strings.HasSuffix(one.Error(), noTLS) || strings.Contains(one.Error(), "tls error: ") && Classify(one) == ReachBroken
	})
	if len(informative) == 0 || len(informative) == len(joined.Unwrap()) {
		return err
	}
	return errors.Join(informative...)
}

// Explained turns the error of a connection attempt into a [ConnectError] with a hint.
func Explained(ctx context.Context, target string, cfg *pgx.ConnConfig, err error) error {
	ce := &ConnectError{Target: target, Reach: Classify(err), Err: attempts(err)}
	switch {
	case ctx.Err() != nil:
		ce.Reach = ReachTimeout
		ce.Err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		if errors.Is(context.Cause(ctx), context.Canceled) {
			return ce
		}
	case ce.Reach == ReachTimeout: // the driver's own deadline came first
		ce.Err = fmt.Errorf("%w: %w", errNoAnswer(cfg), err)
	}
	where := fmt.Sprintf("%s port %d", cfg.Host, cfg.Port)
	switch ce.Reach {
	case ReachRefused:
		return failure.WithHint(ce, "Nothing listens at %s. Is PostgreSQL running there, and are host and port right?", where)
	case ReachTimeout:
		if Accepted(ce) {
			return failure.WithHint(ce, "Something accepts connections at %s and then says nothing: a server that hangs, or not PostgreSQL. Look at its process and its log there.", where)
		}
		return failure.WithHint(ce, "Check the network and the firewall on the way to %s, and whether that host is up.", where)
	case ReachNoRoute:
		return failure.WithHint(ce, "Check the network and the firewall on the way to %s, and whether that host is up.", where)
	case ReachNoHost:
		return failure.WithHint(ce, "Host name %q does not resolve here. Correct it, or add it to DNS or /etc/hosts.", cfg.Host)
	case ReachStarting:
		return failure.WithHint(ce, "The server is starting up or shutting down. Its log says what it waits for.")
	case ReachFull:
		return failure.WithHint(ce, "Raise max_connections (or max_wal_senders for replication) there, or end idle sessions.")
	case ReachRejected:
		if SQLState(err) == codeProtocolViolation {
			return failure.WithHint(ce, poolerHint, where)
		}
		return failure.WithHint(ce, "Check user %q and database %q at %s: password (passfile, PGPASSWORD) and pg_hba.conf.", cfg.User, cfg.Database, where)
	case ReachBroken:
		return failure.WithHint(ce, "It closed the connection at once. Is %s a PostgreSQL server, and was it just stopped, or has it crashed? See its log.", where)
	case ReachNotPostgres:
		if errors.Is(err, errPooled) {
			return failure.WithHint(ce, poolerHint, where)
		}
		if strings.HasSuffix(err.Error(), noTLS) {
			return failure.WithHint(ce, "The server at %s has no TLS, and this conninfo wants it: set sslmode=prefer there, or ssl = on in its postgresql.conf.", where)
		}
		return failure.WithHint(ce, "What answers at %s is not a PostgreSQL server. Check host and port.", where)
	default:
		return ce
	}
}

// Classify turns the error of a connection or a query into a [Reach].
func Classify(err error) Reach {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch {
		case pg.Code == codeCannotConnectNow, strings.HasPrefix(pg.Code, "57P"):
			return ReachStarting
		case pg.Code == codeTooManyConnections:
			return ReachFull
		default:
			return ReachRejected
		}
	}
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return ReachNoHost
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return ReachTimeout
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return ReachRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return ReachNoRoute
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, pgconn.ErrConnClosed), pgconn.SafeToRetry(err):
		return ReachBroken
	default:
		return ReachNotPostgres
	}
}

// Cause is the reason of an error in the words of the server or the system, on one line and
// without repetitions.
func Cause(err error) string {
	var pg *pgconn.PgError
	var op *net.OpError
	var dns *net.DNSError
	var ce *pgconn.ConnectError
	text := err.Error()
	switch {
	case errors.As(err, &pg):
		return pg.Message
	case errors.Is(err, errPooled):
		text = text[strings.Index(text, errPooled.Error()):]
	case errors.As(err, &dns):
		return fmt.Sprintf("host name %q: %s", dns.Name, dns.Err)
	case errors.As(err, &op) && !op.Timeout() && op.Op == "dial":
		return fmt.Sprintf("%s: %s", op.Addr, op.Err)
	case errors.As(err, &ce) && strings.HasSuffix(text, ce.Error()) && text != ce.Error():
		text = strings.TrimSuffix(text, ": "+ce.Error()) // our own message already contains it
	case errors.As(err, &ce):
		text = ce.Unwrap().Error()
	}
	first, _, _ := strings.Cut(text, "\n")
	return first
}
