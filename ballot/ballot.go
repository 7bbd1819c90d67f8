// Package ballot keeps a node's durable vote in its own PostgreSQL.
//
// The vote is a setting of the server, repmgr.ballot, written by ALTER SYSTEM:
// that works on a hot standby, is on disk before it returns and survives a
// restart. It is read from the file that ALTER SYSTEM writes, and nowhere else:
// see [SettingsSQL]. A session advisory lock makes read, compare and
// write one step; it ends with its session, whatever becomes of that.
//
// A pledge of a standby is more than a note: its WAL receiver stops for good,
// so that the standby can never again acknowledge a commit of the old primary.
package ballot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Setting is the name of the server setting that holds the vote.
const Setting = "repmgr.ballot"

// lockKey is the advisory lock around a ballot.
const lockKey = 0x7265706d62616c6c // "repmball"

var (
	// ErrTerm: the node has pledged itself in this term or a higher one.
	ErrTerm = errors.New("pledged in this term or a higher one")
	// ErrRole: the node does not run as what was expected; a living primary pledges to nobody but itself.
	ErrRole = errors.New("runs in another role")
)

// Ballot is a vote: this node's promise to one candidate in one term. The zero
// value means that it never voted.
type Ballot struct {
	Node      int32  `json:"node_id"` // whose it is: a clone brings its source's
	Term      int64  `json:"term"`
	Candidate string `json:"candidate"` // the election that it was given to
}

// String is the value of the setting, "2/17/node2.4711".
func (b Ballot) String() string {
	if b.Term == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d/%s", b.Node, b.Term, b.Candidate)
}

// Parse reads a setting. The empty string is the zero Ballot.
func Parse(s string) (Ballot, error) {
	if s == "" {
		return Ballot{}, nil
	}
	parts := strings.SplitN(s, "/", 3)
	if len(parts) != 3 {
		return Ballot{}, fmt.Errorf("parse ballot %q: want node/term/candidate", s)
	}
	node, err := strconv.ParseInt(parts[0], 10, 32)
	if err != nil {
		return Ballot{}, fmt.Errorf("parse ballot %q: node: %w", s, err)
	}
	term, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || term < 1 {
		return Ballot{}, fmt.Errorf("parse ballot %q: the term must be a number of 1 or more", s)
	}
	return Ballot{int32(node), term, parts[2]}, nil
}

// Read returns the ballot of a server.
func Read(ctx context.Context, conn *pgx.Conn) (Ballot, error) {
	var text string
	err := conn.QueryRow(ctx, `SELECT `+SettingsSQL).Scan(&text)
	return parseFile(text, err)
}

// parseFile finds the ballot in what SettingsSQL returned, if that worked.
func parseFile(text string, err error) (Ballot, error) {
	if err != nil {
		return Ballot{}, fmt.Errorf("read ballot: %w", unreadable(err))
	}
	set, err := Settings(text)
	if err != nil {
		return Ballot{}, fmt.Errorf("read ballot: %w", err)
	}
	return Parse(set[Setting])
}

// lockSQL also makes the placeholder that a setting needs which no module has defined.
const (
	lockSQL   = `SELECT pg_catalog.set_config('` + Setting + `', '', false), pg_catalog.pg_advisory_lock($1)`
	unlockSQL = `SELECT pg_catalog.pg_advisory_unlock($1)`
)

// Locked runs f while nobody else can change or act upon the server's ballot,
// and gives it the ballot. The wait for the lock ends with ctx. It refuses with
// [ErrUnreadable] where the ballot is not known for certain, and with
// [ErrUnheeded] where the server would not do what it is told.
func Locked(ctx context.Context, conn *pgx.Conn, f func(Ballot) error) error {
	return locked(ctx, conn, FaultSQL, func(b Ballot, _ bool) error { return f(b) })
}

// LockedAgain is Locked for who has pledged the server a moment ago: whether it
// heeds a new setting is not asked again.
func LockedAgain(ctx context.Context, conn *pgx.Conn, f func(Ballot) error) error {
	return locked(ctx, conn, `NULL`, func(b Ballot, _ bool) error { return f(b) })
}

func locked(ctx context.Context, conn *pgx.Conn, faultSQL string, f func(b Ballot, inRecovery bool) error) error {
	var text, fault string
	var inRecovery bool
	read := func(row pgx.Row) error { return row.Scan(&text, &fault, &inRecovery) }
	return withLock(ctx, conn, `SELECT `+SettingsSQL+`, coalesce(`+faultSQL+`, ''), pg_catalog.pg_is_in_recovery()`, read, func(err error) error {
		if err != nil {
			return fmt.Errorf("read ballot: %w", unreadable(err))
		}
		set, err := Settings(text)
		if err != nil {
			return fmt.Errorf("read ballot: %w", err)
		}
		if fault != "" {
			return fmt.Errorf("%w: %s", ErrUnheeded, fault)
		}
		b, err := Parse(set[Setting])
		if err != nil {
			return err
		}
		return f(b, inRecovery)
	})
}

// withLock runs f while nobody else has the lock, with what came of reading what sql
// says was there then: one round trip for both.
func withLock(ctx context.Context, conn *pgx.Conn, sql string, read func(pgx.Row) error, f func(error) error) (err error) {
	var b pgx.Batch
	b.Queue(lockSQL, int64(lockKey))
	b.Queue(sql)
	res := conn.SendBatch(ctx, &b)
	_, lockErr := res.Exec()
	readErr := read(res.QueryRow())
	if closeErr := res.Close(); lockErr != nil || conn.IsClosed() {
		return fmt.Errorf("lock ballot: %w", cmp.Or(lockErr, readErr, closeErr))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if _, unlockErr := conn.Exec(ctx, unlockSQL, int64(lockKey)); err == nil && unlockErr != nil {
			err = fmt.Errorf("unlock ballot: %w", unlockErr)
		}
	}()
	return f(readErr)
}

// Role is as what the server must run to give its pledge.
type Role string

const (
	Standby Role = "standby" // its WAL receiver is stopped for good
	Primary Role = "primary" // only to itself
	Witness Role = "witness"
)

// Pledge stores b on its server and, on a standby, cuts off the old primary: its
// stream and its archive. The receiver ends soon after: see [HurryReceiver]. It refuses with [ErrTerm] a term that is not higher than the stored
// one, whoever's that is, and with [ErrRole] a server in another role. When it
// returns nil the vote is on disk.
func Pledge(ctx context.Context, conn *pgx.Conn, b Ballot, as Role) error {
	return locked(ctx, conn, FaultSQL, func(old Ballot, inRecovery bool) error {
		if b.Term <= old.Term {
			return fmt.Errorf("term %d: %w: it holds %q", b.Term, ErrTerm, old)
		}
		if inRecovery != (as == Standby) {
			return fmt.Errorf("pledge as %s: %w", as, ErrRole)
		}
		if err := Write(ctx, conn, b); err != nil {
			return err
		}
		if as == Standby {
			if _, err := conn.Exec(ctx, `ALTER SYSTEM SET primary_conninfo = ''`); err != nil {
				return fmt.Errorf("detach: %w", err)
			}
			if err := stopArchive(ctx, conn); err != nil {
				return fmt.Errorf("detach: %w", err)
			}
		}
		return reload(ctx, conn)
	})
}

// Restore writes a vote of the server's own back that its file has lost, and makes
// that file anew where it is gone. It does nothing where it finds one of the same
// term or a later one.
func Restore(ctx context.Context, conn *pgx.Conn, kept Ballot) error {
	var text string
	read := func(row pgx.Row) error { return row.Scan(&text) }
	return withLock(ctx, conn, `SELECT `+SettingsSQL, read, func(err error) error {
		b, err := parseFile(text, err)
		if err != nil && !errors.Is(err, ErrMissing) || b.Term >= kept.Term {
			return err
		}
		return Write(ctx, conn, kept)
	})
}

// Write stores b without looking at what is there. Only inside [Locked].
func Write(ctx context.Context, conn *pgx.Conn, b Ballot) error {
	if _, err := conn.Exec(ctx, `ALTER SYSTEM SET `+Setting+` = '`+strings.ReplaceAll(b.String(), "'", "''")+`'`); err != nil {
		return fmt.Errorf("store ballot: %w", err)
	}
	return nil
}
