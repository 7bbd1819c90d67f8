package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
		freeze(t, primary, syscall.SIGSTOP)
		pgtest.WaitFor(t, "late answers", func(context.Context) error {
			if monitors[1].Status().Health == election.HealthAlive {
				return errors.New("none is")
			}
			return nil
		})
		freeze(t, primary, syscall.SIGCONT)
		waitHealth(t, monitors[1], election.HealthAlive)
	}
	for range 100 {
		const sql = `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'repmgr%' AND backend_type = 'client backend'`
		// Two of each daemon, one that announces it, and some for a moment. It would be three times as many.
		require.LessOrEqual(t, pgtest.Query[int](t, primary.Server, sql), 12)
	}
}

// freeze sends a signal to all processes of a server.
func freeze(t *testing.T, n *node, sig syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "postmaster.pid"))
	require.NoError(t, err)
	postmaster, err := strconv.Atoi(strings.Split(string(text), "\n")[0])
	require.NoError(t, err)
	pids := []int{postmaster}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", postmaster))
	require.NoError(t, err)
	for _, list := range lists {
		children, err := os.ReadFile(list)
		require.NoError(t, err)
		for child := range strings.FieldsSeq(string(children)) {
			pid, err := strconv.Atoi(child)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // one may have ended
	}
}
