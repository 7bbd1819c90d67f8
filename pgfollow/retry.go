package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// CommitUnknownError is the error of a transaction whose COMMIT was sent, and not answered: it may have
// taken effect, now or in a moment. [OutcomeOf] its Transaction says which. Never repeat it before.
type CommitUnknownError struct {
	Transaction

	Err error
}

func (e *CommitUnknownError) Error() string {
	which := "the transaction"
	if e.Xid != 0 {
		which = fmt.Sprintf("transaction %d", e.Xid)
	}
	return fmt.Sprintf("the connection was lost while the answer to COMMIT was awaited: whether %s was committed is not known: %v", which, e.Err)
}

func (e *CommitUnknownError) Unwrap() error { return e.Err }

// attempts is how often a transaction is tried: with the pauses, for about five seconds beside what the
// pool waits for.
const attempts = 10

// ErrNotCommitted is the error of a transaction that certainly was not committed, and may be repeated.
var ErrNotCommitted = errors.New("the transaction was not committed")

// Retry runs a transaction on a pool of a [Follower], and again, on the next primary, where it certainly
// was not committed: the connection was lost, or the server refused to write, before COMMIT was sent.
// It ends with the first other error of f; with a [CommitUnknownError]; or with an [ErrNotCommitted],
// where the pool has no connection, which waits for a primary as [Hold] says, and after ten attempts.
//
// f may run several times: it must have no effect besides the transaction, and must not end it.
func Retry(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	rest := searchInterval
	for try := 1; ; try++ {
		again, err := once(ctx, pool, f)
		if !again || try == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rest):
		}
		rest = min(2*rest, time.Second)
	}
}

func once(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) (again bool, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		var none *NoPrimaryError
		var answer *pgconn.PgError
		var login *pgconn.ConnectError // the node was lost, or changed its role, while the connection was made
		again = errors.As(err, &login) && ctx.Err() == nil && !errors.As(err, &none) && (!errors.As(err, &answer) || ended(answer))
		return again, fmt.Errorf("%w: %w", ErrNotCommitted, err)
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return refused(conn, err)
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback(ctx) // otherwise the pool closes the connection, which is the same
		return refused(conn, err)
	}
	t, err := Identify(ctx, tx) // asked for before COMMIT, whose answer may be lost
	if err != nil {
		return refused(conn, err)
	}
	err = tx.Commit(ctx)
	var answer *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, pgx.ErrTxCommitRollback):
		return false, err
	case pgconn.SafeToRetry(err): // nothing was sent; before pgx 5.13 a lost answer passed for that, too
		return true, fmt.Errorf("%w: %w", ErrNotCommitted, err)
	case errors.As(err, &answer) && answer.SeverityUnlocalized == "ERROR" && !ended(answer): // a deferred constraint, for example
		return false, err
	}
	return false, &CommitUnknownError{Transaction: t, Err: err}
}

// refused is the error of a transaction that did not get as far as COMMIT. It may be repeated where the
// server gave it because it ends or is not the primary, and where the connection is gone.
func refused(conn *pgxpool.Conn, err error) (again bool, _ error) {
	var answer *pgconn.PgError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false, err
	case errors.As(err, &answer):
		again = ended(answer)
	default:
		again = conn.Conn().IsClosed()
	}
	if again {
		err = fmt.Errorf("%w: %w", ErrNotCommitted, err)
	}
	return again, err
}

// ended reports whether a server gives this error because it ends, is not there yet, or is a standby. As
// the answer to COMMIT it proves nothing: a server that ends while a commit waits for a standby has
// committed it.
func ended(answer *pgconn.PgError) bool {
	return slices.Contains([]string{
		"25006",                            // read_only_sql_transaction
		"57P01", "57P02", "57P03", "57P05", // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
		"08000", "08003", "08006", "08007", // connection exceptions, of a pooler
		"40003", // statement_completion_unknown
	}, answer.Code)
}
