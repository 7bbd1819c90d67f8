package repmgr_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// In bad weather, too, all daemons together leave a server most of the connections
// that it has free. Here that is so little that each makes do with two.
func TestMonitor_LeavesConnectionsToOthers(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	nodes[0].Exec(t, `ALTER SYSTEM SET max_connections = 20`)
	nodes[0].Restart()
	var monitors []*repmgr.Monitor
	for _, n := range nodes {
		m, _ := n.monitor(t)
		monitors = append(monitors, m)
	}
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	primary := nodes[0]
	for range 2 {
		primary.Freeze()
		pgtest.WaitFor(t, "late answers", func(context.Context) error {
			if monitors[1].Status().Health == election.HealthAlive {
				return errors.New("none is")
			}
			return nil
		})
		primary.Thaw()
		waitHealth(t, monitors[1], election.HealthAlive)
	}
	for range 100 {
		const sql = `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'repmgr%' AND backend_type = 'client backend'`
		// Two of each daemon, one that announces it, and some for a moment. It would be three times as many.
		require.LessOrEqual(t, pgtest.Query[int](t, primary.Server, sql), 12)
	}
}
