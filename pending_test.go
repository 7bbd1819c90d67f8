package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// waitEvent waits until repmgr.events of a primary has an event of a node, and
// returns the time of the last one and how many there are.
func (n *node) waitEvent(t *testing.T, of repmgr.NodeID, e repmgr.EventType, details string) (at time.Time, count int) {
	t.Helper()
	conn := n.Conn(t)
	pgtest.WaitFor(t, fmt.Sprintf("%s of node %d in the table", e, of), func(ctx context.Context) error {
		err := conn.QueryRow(ctx, `SELECT coalesce(max(event_timestamp), 'epoch'), count(*) FROM repmgr.events WHERE node_id = $1 AND event = $2 AND details LIKE '%' || $3 || '%'`,
			int32(of), string(e), details).Scan(&at, &count)
		if err == nil && count == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	return at, count
}

// Who reads the events of the new primary finds there that the former one was
// fenced, and when.
func TestEvents_OfAFenceComeIntoTheTable(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET priority = 0 WHERE node_id = 1`) // it is back soon, and is not to win
	for _, n := range nodes[1:] {
		waitSame(t, nodes[0], n)
	}
	waitLooked(t, nodes)
	nodes[0].Signal(syscall.SIGSTOP)
	fenced := nodes[0].events.wait(t, repmgr.EventFence)
	winner := waitPrimary(t, nodes[1:]...)
	at, count := winner.waitEvent(t, 1, repmgr.EventFence, "hang_timeout")
	require.Equal(t, 1, count)
	require.WithinDuration(t, fenced.At, at, time.Millisecond)
	require.True(t, pgtest.Query[bool](t, winner.Server, `SELECT $1::timestamptz < (SELECT event_timestamp FROM repmgr.events WHERE event = 'repmgrd_failover_promote')`, at))
	pgtest.WaitFor(t, "nothing to be kept any more", func(context.Context) error {
		_, err := os.Stat(filepath.Join(nodes[0].Dir, "repmgr_events.json"))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}

// A refusal that was told while there was no primary outlasts its daemon, and comes
// into the table of the next primary: once, also where a daemon dies before it knows.
func TestEvents_OfARefusalOutlastTheDaemon(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum) // with off the primary's death must be proven, which a question on its way may keep from happening
	_, err := nodes[0].Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	waitLooked(t, nodes)
	nodes[0].stop()
	nodes[0].Kill()
	refused := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
	require.Contains(t, refused.Details, string(election.RefusedPaused))
	nodes[1].stop()
	path := filepath.Join(nodes[1].Dir, "repmgr_events.json")
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(kept), string(election.RefusedPaused))
	_, err = nodes[1].Unpause(t.Context(), repmgr.PauseOptions{})
	require.Error(t, err) // node1 is down
	winner := waitPrimary(t, nodes[1:]...)
	nodes[1].monitor(t)
	at, count := winner.waitEvent(t, 2, repmgr.EventFailoverRefused, string(election.RefusedPaused))
	require.Equal(t, 1, count)
	require.WithinDuration(t, refused.At, at, time.Millisecond)
	require.True(t, pgtest.Query[bool](t, winner.Server, `SELECT $1::timestamptz < (SELECT event_timestamp FROM repmgr.events WHERE event = 'repmgrd_failover_promote')`, at))

	nodes[1].stop()
	require.NoError(t, os.WriteFile(path, kept, 0o600))
	nodes[1].monitor(t)
	pgtest.WaitFor(t, "what was kept to be read", func(context.Context) error {
		if _, err := os.Stat(path); err == nil {
			return errors.New("not yet")
		}
		return nil
	})
	_, count = winner.waitEvent(t, 2, repmgr.EventFailoverRefused, string(election.RefusedPaused))
	require.Equal(t, 1, count)
}

// What the watchdog has fenced while no daemon ran is told by the next one, with the
// time of the fence.
func TestEvents_OfAFenceByTheWatchdog(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	stopMonitors(nodes)
	nodes[0].Kill()
	mark := filepath.Join(nodes[0].Dir, "repmgr_fenced")
	then := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, os.WriteFile(mark, []byte("no contact\n"), 0o600))
	require.NoError(t, os.Chtimes(mark, then, then))
	nodes[0].monitor(t)
	fenced := nodes[0].events.wait(t, repmgr.EventFence)
	require.Equal(t, "no contact", fenced.Details)
	require.True(t, then.Equal(fenced.At), fenced.At)
	require.WithinDuration(t, time.Now(), fenced.Told, time.Minute)
}
