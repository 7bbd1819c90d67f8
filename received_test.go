package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// The startup process waits, and has not looked yet at what the WAL receiver
// wrote before it ended. That counts: it may be acknowledged.
func TestNodeStatus_CountsWhatIsNotReplayedYet(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	waitSame(t, node1, node2)
	pid := pgtest.Query[int](t, node2.Server, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'`)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	node1.Exec(t, `CREATE TABLE acknowledged (i int)`)
	lsn := node1.QueryString(t, `SELECT pg_current_wal_flush_lsn()::text`)
	pgtest.WaitFor(t, "the standby to have it", func(context.Context) error {
		if got := node2.QueryString(t, `SELECT pg_last_wal_receive_lsn()::text`); got != lsn {
			return fmt.Errorf("it has %s of %s", got, lsn)
		}
		return nil
	})
	node1.Kill()
	pgtest.WaitFor(t, "the WAL receiver to end", func(context.Context) error {
		if n := node2.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`); n != "0" {
			return errors.New("it runs")
		}
		return nil
	})
	n, err := repmgr.Connect(t.Context(), node2.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	status, err := n.Status(t.Context())
	require.NoError(t, err)
	require.Less(t, status.ReplayedLSN, status.ReceivedLSN, "else this test is about nothing")
	require.Equal(t, lsn, status.ReceivedLSN.String())
}
