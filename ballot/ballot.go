// Package ballot keeps the vote of a node durably in its own PostgreSQL server.
//
// The vote is a server setting, repmgr.ballot, written by ALTER SYSTEM, which works on a hot
// standby, is on disk before it returns and survives a restart. It is read only from the file
// that ALTER SYSTEM writes: see [SettingsSQL]. A session advisory lock makes reading, comparing
// and writing one step; PostgreSQL releases it when the session ends for any reason.
//
// When a standby pledges, its WAL receiver also stops, so that the standby can never again
// acknowledge a commit of the old primary.
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
	// ErrTerm means that the node has already pledged in this term or a higher one.
	ErrTerm = errors.New("pledged in this term or a higher one")
	// ErrRole means that the node runs in another role than expected. A running primary pledges only to itself.
	ErrRole = errors.New("runs in another role")
)

// Ballot is a vote: the promise of a node to one candidate in one term. The zero value means
// that the node never voted.
type Ballot struct {
	Node      int32  `json:"node_id"` // the voter; a clone may still have the ballot of its source
	Term      int64  `json:"term"`
	Candidate string `json:"candidate"` // names the election that it was given to
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

// lockSQL also creates the placeholder in the session that ALTER SYSTEM needs for a setting
// that no loaded module defines.
const (
	lockSQL   = `SELECT pg_catalog.set_config('` + Setting + `', '', false), pg_catalog.pg_advisory_lock($1)`
	unlockSQL = `SELECT pg_catalog.pg_advisory_unlock($1)`
)

// Locked calls f with the server's ballot, while nobody else can change the ballot or act on
// it. The wait for the lock ends with ctx. The error is an [ErrUnreadable] where the ballot can
// not be read with certainty, and an [ErrUnheeded] where new settings would have no effect.
func Locked(ctx context.Context, conn *pgx.Conn, f func(Ballot) error) error {
	return locked(ctx, conn, FaultSQL, func(b Ballot, _ uint64) error { return f(b) })
}

// LockedAgain is [Locked] for a server that has pledged a moment ago: it does not check again
// whether new settings have an effect.
func LockedAgain(ctx context.Context, conn *pgx.Conn, f func(Ballot) error) error {
	return LockedWinner(ctx, conn, func(b Ballot, _ uint64) error { return f(b) })
}

// LockedWinner is [LockedAgain] for the winner of an election. f is also given the lowest id of a
// transaction whose end the standby has not replayed; 0: it is no standby.
func LockedWinner(ctx context.Context, conn *pgx.Conn, f func(b Ballot, firstXid uint64) error) error {
	return locked(ctx, conn, `NULL`, f)
}

// firstXidSQL is never 0 on a standby, where a snapshot ends behind the newest transaction whose end was
// replayed. The snapshot is older than the answer that the server is one.
const firstXidSQL = `CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8 ELSE 0 END`

func locked(ctx context.Context, conn *pgx.Conn, faultSQL string, f func(b Ballot, firstXid uint64) error) error {
	var text, fault string
	var firstXid uint64
	read := func(row pgx.Row) error { return row.Scan(&text, &fault, &firstXid) }
	return withLock(ctx, conn, lockKey, `SELECT `+SettingsSQL+`, coalesce(`+faultSQL+`, ''), `+firstXidSQL, read, func(err error) error {
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
		return f(b, firstXid)
	})
}

// requestKey is the advisory lock around a request to a daemon.
const requestKey = 0x7265706d72657175 // "repmrequ"

// LockedRequests calls f with our settings in the file of ALTER SYSTEM, while nobody else changes a request
// to a daemon in this way. The wait for the lock ends with ctx.
func LockedRequests(ctx context.Context, conn *pgx.Conn, f func(map[string]string) error) error {
	var text string
	read := func(row pgx.Row) error { return row.Scan(&text) }
	return withLock(ctx, conn, requestKey, `SELECT `+SettingsSQL, read, func(err error) error {
		if err != nil {
			return unreadable(err)
		}
		set, err := Settings(text)
		if err != nil {
			return err
		}
		return f(set)
	})
}

// withLock takes the lock, runs sql in the same round trip, and calls f with the error of
// reading its row. The lock is held until f returns.
func withLock(ctx context.Context, conn *pgx.Conn, key int64, sql string, read func(pgx.Row) error, f func(error) error) (err error) {
	var b pgx.Batch
	b.Queue(lockSQL, key)
	b.Queue(sql)
	res := conn.SendBatch(ctx, &b)
	_, lockErr := res.Exec()
	readErr := read(res.QueryRow())
	if closeErr := res.Close(); lockErr != nil || conn.IsClosed() {
		return fmt.Errorf("lock our settings: %w", cmp.Or(lockErr, readErr, closeErr))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if _, unlockErr := conn.Exec(ctx, unlockSQL, key); err == nil && unlockErr != nil {
			err = fmt.Errorf("unlock our settings: %w", unlockErr)
		}
	}()
	return f(readErr)
}

// Role is the role in which the server must run to give its pledge.
type Role string

const (
	Standby Role = "standby" // the pledge stops its WAL receiver
	Primary Role = "primary" // it pledges only to itself
	Witness Role = "witness"
)

// Pledge stores b on the server. On a standby it also ends the stream from the old primary and
// the use of the archive; the WAL receiver ends shortly after, see [ShortenReceiverTimeout]. When Pledge
// returns nil the vote is on disk. The error is [ErrTerm] where the term is not higher than that
// of the stored ballot, for whichever candidate, and [ErrRole] where the server runs in another role.
func Pledge(ctx context.Context, conn *pgx.Conn, b Ballot, as Role) error {
	return locked(ctx, conn, FaultSQL, func(old Ballot, firstXid uint64) error {
		inRecovery := firstXid != 0
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

// Restore writes back a vote that the server's file has lost, and creates the file where it is
// missing. It does nothing where there is a ballot of the same term or a later one.
func Restore(ctx context.Context, conn *pgx.Conn, kept Ballot) error {
	var text string
	read := func(row pgx.Row) error { return row.Scan(&text) }
	return withLock(ctx, conn, lockKey, `SELECT `+SettingsSQL, read, func(err error) error {
		b, err := parseFile(text, err)
		if err != nil && !errors.Is(err, ErrMissing) || b.Term >= kept.Term {
			return err
		}
		return Write(ctx, conn, kept)
	})
}

// Write stores b without comparing it with the stored ballot. Call it only inside [Locked].
func Write(ctx context.Context, conn *pgx.Conn, b Ballot) error {
	if _, err := conn.Exec(ctx, `ALTER SYSTEM SET `+Setting+` = '`+strings.ReplaceAll(b.String(), "'", "''")+`'`); err != nil {
		return fmt.Errorf("store ballot: %w", err)
	}
	return nil
}
