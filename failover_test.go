package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// automatic is the configuration of a node that fails over.
func automatic(mode repmgr.SynchronousMode) func(*repmgr.Config) {
	return func(c *repmgr.Config) {
		c.Failover, c.SynchronousMode = repmgr.FailoverAutomatic, mode
	}
}

// startCluster is a primary with standbys, all with Monitors, that is ready to fail over.
func startCluster(t *testing.T, nodes int, mode repmgr.SynchronousMode) (all []*node, monitors []*repmgr.Monitor) {
	t.Helper()
	all = append(all, startPrimary(t, automatic(mode)))
	all[0].cfg.DataDirectory = all[0].Dir
	for id := 2; id <= nodes; id++ {
		all = append(all, addStandby(t, all[0], repmgr.NodeID(id), automatic(mode)))
	}
	for _, n := range all {
		n.cfg.DataDirectory = n.Dir
		m, _ := n.monitor(t)
		monitors = append(monitors, m)
	}
	waitReady(t, all[0], nodes, mode)
	return all, monitors
}

// waitReady waits until all nodes are voters, and, with quorum, commits wait for them.
func waitReady(t *testing.T, primary *node, nodes int, mode repmgr.SynchronousMode) {
	t.Helper()
	sync := 0
	if mode == repmgr.SynchronousQuorum {
		sync = nodes - 1
	}
	pgtest.WaitFor(t, "the rule to name everybody", func(context.Context) error {
		got := primary.QueryString(t, `SELECT coalesce((SELECT format('%s voters, %s sync, set %s', cardinality(voters), cardinality(sync_standbys), current_setting('synchronous_standby_names') <> '')
			FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1), 'no rule')`)
		want := fmt.Sprintf("%d voters, %d sync, set %s", nodes, sync, map[bool]string{true: "t", false: "f"}[sync > 0])
		if got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

func waitPrimary(t *testing.T, nodes ...*node) *node {
	t.Helper()
	var found *node
	pgtest.WaitFor(t, "a new primary in office", func(context.Context) error {
		for _, n := range nodes {
			if n.QueryString(t, `SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM repmgr.rules WHERE term > 1)`) == "t" {
				found = n
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}

// A dead postmaster is replaced at once, no acknowledged row is missing, and the
// other standby follows.
func TestFailover_DeadPostmaster(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, mode)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
			w.WaitForMore(t, 50)
			nodes[0].Signal(syscall.SIGKILL)
			winner := waitPrimary(t, nodes[1:]...)
			w.WaitForMore(t, 50)
			t.Logf("outage %s", w.LongestGap().Duration().Round(time.Millisecond))
			w.Stop()
			if mode == repmgr.SynchronousQuorum {
				w.Verify(t, winner.Conninfo())
			}
		})
	}
}
