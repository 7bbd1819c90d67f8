package ballot_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestParse(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "2/17/node2.4711!", "9/1/a/b"} {
		b, err := ballot.Parse(text)
		require.NoError(t, err)
		require.Equal(t, text, b.String())
	}
	for _, text := range []string{"x", "1/2", "x/1/a", "1/0/a", "1/-3/a", "1/x/a"} {
		_, err := ballot.Parse(text)
		require.ErrorContains(t, err, fmt.Sprintf("%q", text))
	}
}

// A pledge of a standby is on disk, survives a restart, and ends its stream for good.
func TestPledge_IsDurableAndDetaches(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "standby"})
	ctx := t.Context()
	b := ballot.Ballot{Node: 2, Term: 5, Candidate: "node3.1"}
	require.ErrorIs(t, ballot.Pledge(ctx, standby.Conn(t), b, ballot.Witness), ballot.ErrRole)
	require.ErrorIs(t, ballot.Pledge(ctx, primary.Conn(t), b, ballot.Standby), ballot.ErrRole)
	require.NoError(t, ballot.Pledge(ctx, standby.Conn(t), b, ballot.Standby))
	for _, again := range []ballot.Ballot{b, {Node: 2, Term: 5, Candidate: "node2.1"}, {Node: 2, Term: 4, Candidate: "node3.1"}} {
		require.ErrorIs(t, ballot.Pledge(ctx, standby.Conn(t), again, ballot.Standby), ballot.ErrTerm)
	}
	standby.Kill()
	standby.StartAgain()
	got, err := ballot.Read(ctx, standby.Conn(t))
	require.NoError(t, err)
	require.Equal(t, b, got)
	require.Equal(t, "0", standby.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`))
	require.Equal(t, "", standby.QueryString(t, `SELECT current_setting('primary_conninfo')`))
}

// A coordinator that dies while it waits for the end of a receiver leaves a timeout behind with
// which no standby can stream. Whoever points the standby to a primary reverts that, or its own
// daemon does once it is pointed there; while it is detached, the election goes on.
func TestHurryReceiver_LeftBehind(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "standby"})
	ctx, conn := t.Context(), standby.Conn(t)
	in := func(want string) {
		t.Helper()
		pgtest.WaitFor(t, "wal_receiver_timeout = "+want, func(context.Context) error {
			if got := standby.QueryString(t, `SELECT setting FROM pg_settings WHERE name = 'wal_receiver_timeout'`); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	require.NoError(t, ballot.ShortenReceiverTimeout(ctx, conn))
	in("1")
	require.NoError(t, ballot.RestoreReceiverTimeoutAttached(ctx, conn))
	in("60000")
	require.NoError(t, ballot.Pledge(ctx, conn, ballot.Ballot{Node: 2, Term: 5, Candidate: "node3.1"}, ballot.Standby))
	require.NoError(t, ballot.ShortenReceiverTimeout(ctx, conn))
	in("1")
	require.NoError(t, ballot.RestoreReceiverTimeoutAttached(ctx, conn))
	in("1")
	require.NoError(t, ballot.ResumeReplay(ctx, conn))
	in("60000")
}

// Whoever races for a term: one gets the pledge.
func TestPledge_OneCandidateATerm(t *testing.T) {
	t.Parallel()
	witness := pgtest.Start(t, pgtest.Options{})
	for term := int64(1); term <= 20; term++ {
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			conn := witness.Conn(t)
			wg.Go(func() {
				errs[i] = ballot.Pledge(t.Context(), conn, ballot.Ballot{Node: 9, Term: term, Candidate: fmt.Sprint("c", i)}, ballot.Witness)
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
				got, err := ballot.Read(t.Context(), witness.Conn(t))
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint("c", i), got.Candidate)
			} else if !errors.Is(err, ballot.ErrTerm) {
				require.NoError(t, err)
			}
		}
		require.Equal(t, 1, won, "term %d", term)
	}
}
