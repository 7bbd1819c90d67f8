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

// DefaultConnectTimeout bounds reaching a server, from the first packet to the
// answer of its first query, where conninfo has no connect_timeout of its own.
const DefaultConnectTimeout = 2 * time.Second

// Reach says how a server answered an attempt to connect. It is evidence: a
// host that refuses is not a host that is silent. The zero value means not tried.
type Reach string

const (
	ReachOK          Reach = "ok"
	ReachRefused     Reach = "refused"            // the host answers, nothing listens there
	ReachTimeout     Reach = "timed out"          // no answer, or one that never ended
	ReachNoRoute     Reach = "unreachable"        // the network says that there is no way
	ReachNoHost      Reach = "unknown host"       // the name does not resolve
	ReachStarting    Reach = "not accepting"      // starting up, shutting down or recovering
	ReachFull        Reach = "out of connections" // every slot is taken
	ReachRejected    Reach = "rejected"           // the login, the database or the address is not allowed
	ReachNotPostgres Reach = "not PostgreSQL"     // something else listens there
	ReachBroken      Reach = "broken"             // an established connection ended
)

// Answers reports whether a living PostgreSQL stands behind the answer.
func (r Reach) Answers() bool {
	switch r {
	case ReachOK, ReachStarting, ReachFull, ReachRejected:
		return true
	case ReachRefused, ReachTimeout, ReachNoRoute, ReachNoHost, ReachNotPostgres, ReachBroken:
		return false
	}
	return false
}

// ConnectError is a server that could not be reached. errors.Is finds it by [failure.ErrConnect].
type ConnectError struct {
	Target string // which server, without secrets: node "node2" (ID: 2), or its address
	Doing  string // what a connection was lost over, such as "read the status"; empty: connecting
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

// Accepted reports whether something took the connection that then came to
// nothing: an attempt that got no packet back ends in dialling.
func Accepted(e *ConnectError) bool {
	var op *net.OpError
	return !errors.As(e.Err, &op) || op.Op != "dial"
}

func (e *ConnectError) Unwrap() error        { return e.Err }
func (e *ConnectError) Is(target error) bool { return target == failure.ErrConnect }

// SQLSTATEs that this package asks for.
const (
	CodeInsufficientPrivilege = "42501"
	CodeUndefinedTable        = "42P01"
	CodeInvalidSchema         = "3F000"
	codeUniqueViolation       = "23505"
	codeTooManyConnections    = "53300"
	codeCannotConnectNow      = "57P03"
	CodeDuplicateObject       = "42710"
	codeProtocolViolation     = "08P01"
)

// poolerHint: a PgBouncer that was not told to ignore them refuses the settings
// of our sessions as a violation of the protocol.
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

// dialNoWait dials for a connection that is asked again and again.
func dialNoWait(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return nowait.Conn(conn), nil
}

// ConnConfig prepares a connection the way all of ours are made: with a name,
// the settings of pins, and a way to notice a silent peer.
func ConnConfig(info string) (*pgx.ConnConfig, error) {
	if problem := conninfo.Check(info); problem != "" {
		return nil, failure.Of(failure.ErrConfig, "conninfo %q %s", conninfo.Redact(info), problem)
	}
	native, err := conninfo.ForPGX(info)
	if err != nil {
		return nil, failure.Of(failure.ErrConfig, "conninfo %q: %w", conninfo.Redact(info), err)
	}
	cfg, err := pgx.ParseConfig(native)
	if err != nil { // its text may hold the password
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

// StatementTimeout bounds every statement on a server, so that one that stopped
// answering in the middle holds nobody. Exempt is what may rightly take long: backups,
// what Cleanup deletes, a checkpoint, and the first commit of a term, which waits for
// standbys and has the deadline of its election.
const StatementTimeout = 15 * time.Second

// statementLimit gives each statement its deadline. It hangs in the driver, so
// that no call can forget it.
type statementLimit struct{}

type (
	noLimitKey struct{}
	cancelKey  struct{}
)

// Unlimited is ctx for a statement that may take as long as it likes.
func Unlimited(ctx context.Context) context.Context {
	return context.WithValue(ctx, noLimitKey{}, true)
}

// LimitStatement is ctx with the deadline of a statement, for what goes below the driver's tracer. [EndStatement] releases it.
func LimitStatement(ctx context.Context) context.Context {
	if ctx.Value(noLimitKey{}) != nil {
		return ctx
	}
	ctx, cancel := context.WithTimeoutCause(ctx, StatementTimeout, fmt.Errorf("no answer within %s", StatementTimeout))
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// EndStatement releases what [LimitStatement] has made.
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

// hasty are the settings whose default can end a session before it has its own,
// by the SQLSTATE with which they do that: a server that says so knows them.
var hasty = map[string]string{"25P04": "transaction_timeout", "57P05": "idle_session_timeout"}

// Dial connects within connect_timeout, whatever conninfo lists or the peer does.
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

// DialUncancelled is dialConfig for a connection of which there are many: for each one
// that is late, or has ended, the driver asks the server over a new connection to cancel
// what runs there. A server that has just recovered from the crash of a process, or is
// slow, gets all of those at once, and forks a process for each. Here those are not
// dialled. What still runs there ends by its own limits (see pins).
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
	for range hasty {
		if name := hasty[SQLState(err)]; name != "" {
			cfg.RuntimeParams[name] = "0"
			conn, err = pgx.ConnectConfig(ctx, cfg)
		}
	}
	if err != nil {
		return nil, Explained(ctx, target, cfg, err)
	}
	return conn, nil
}

// Limit is connect_timeout for each host that conninfo lists.
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

// noTLS is what the driver says of a server that has no TLS, which it makes no type for.
const noTLS = "server refused TLS connection"

// attempts are the errors of the attempts that an error of the driver is of, without
// those that asked for TLS and got no answer, or that there is none: with sslmode=prefer,
// which is the default, one without it follows, and that is the one that tells.
func attempts(err error) error {
	var joined interface{ Unwrap() []error }
	var ce *pgconn.ConnectError
	if !errors.As(err, &ce) || !errors.As(ce.Unwrap(), &joined) {
		return err
	}
	telling := slices.DeleteFunc(slices.Clone(joined.Unwrap()), func(one error) bool {
		return strings.HasSuffix(one.Error(), noTLS) || strings.Contains(one.Error(), "tls error: ") && Classify(one) == ReachBroken
	})
	if len(telling) == 0 || len(telling) == len(joined.Unwrap()) {
		return err
	}
	return errors.Join(telling...)
}

// Explained is the error of an attempt to connect as a [ConnectError], with what to do about it.
func Explained(ctx context.Context, target string, cfg *pgx.ConnConfig, err error) error {
	ce := &ConnectError{Target: target, Reach: Classify(err), Err: attempts(err)}
	switch {
	case ctx.Err() != nil:
		ce.Reach = ReachTimeout
		ce.Err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		if errors.Is(context.Cause(ctx), context.Canceled) {
			return ce
		}
	case ce.Reach == ReachTimeout: // the driver's own clock was quicker
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

// Classify turns the error of a connection or a query into evidence.
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
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), pgconn.SafeToRetry(err):
		return ReachBroken
	default:
		return ReachNotPostgres
	}
}

// Cause says why in the server's or the system's words, once, on one line.
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
		text = strings.TrimSuffix(text, ": "+ce.Error()) // ours says it
	case errors.As(err, &ce):
		text = ce.Unwrap().Error()
	}
	first, _, _ := strings.Cut(text, "\n")
	return first
}
