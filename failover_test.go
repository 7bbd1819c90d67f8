package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// automatic is the configuration of a node that fails over.
func automatic(mode repmgr.SynchronousMode) func(*repmgr.Config) {
	return func(c *repmgr.Config) {
		c.Failover, c.SynchronousMode = repmgr.FailoverAutomatic, mode
		c.HangTimeout = 2 * time.Second
	}
}

// startNodes is a primary with standbys, without Monitors.
func startNodes(t *testing.T, nodes int, mode repmgr.SynchronousMode) (all []*node) {
	t.Helper()
	all = append(all, startPrimary(t, automatic(mode)))
	for id := 2; id <= nodes; id++ {
		all = append(all, addStandby(t, all[0], repmgr.NodeID(id), automatic(mode)))
	}
	for _, n := range all {
		n.cfg.DataDirectory = n.Dir
	}
	return all
}

// startCluster is a primary with standbys, all with Monitors, that is ready to fail over.
func startCluster(t *testing.T, nodes int, mode repmgr.SynchronousMode) (all []*node, monitors []*repmgr.Monitor) {
	t.Helper()
	all = startNodes(t, nodes, mode)
	for _, n := range all {
		m, _ := n.monitor(t)
		monitors = append(monitors, m)
	}
	waitReady(t, all, nodes, mode)
	return all, monitors
}

// waitReady waits until so many nodes are voters, the daemons of those given see
// the first one as their primary, and, with quorum, its commits wait for the others.
func waitReady(t *testing.T, all []*node, nodes int, mode repmgr.SynchronousMode) {
	t.Helper()
	primary := all[0]
	sync := 0
	if mode == repmgr.SynchronousQuorum {
		sync = nodes - 1
	}
	pgtest.WaitFor(t, "the rule to name everybody", func(context.Context) error {
		got := primary.QueryString(t, `SELECT coalesce((SELECT format('%s voters, %s sync, %s acks, set %s, %s heartbeat', cardinality(voters), cardinality(sync_standbys), acks, current_setting('synchronous_standby_names') <> '', (SELECT count(*) FROM repmgr.heartbeat))
			FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1), 'no rule')`)
		want := fmt.Sprintf("%d voters, %d sync, %d acks, set %s, 1 heartbeat", nodes, sync, (sync+1)/2, map[bool]string{true: "t", false: "f"}[sync > 0])
		if got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		for _, n := range all {
			if n.daemon == nil || n.cfg.Failover != repmgr.FailoverAutomatic {
				continue
			}
			if s := n.daemon.Status(); s.Health != election.HealthAlive || s.Rule.Primary != int32(primary.cfg.NodeID) {
				return fmt.Errorf("the daemon of %s sees: %s (%s), primary %q", n.cfg.NodeName, s.Phase, s.Error, s.Health)
			}
			// The row of a rule waits for nobody. Whoever has only the rule before does not replace a primary on whose standbys no commit waited.
			const newest = `SELECT coalesce((SELECT format('%s/%s', term, seq) ` + newestRule + `), 'none')`
			if n == primary || sync == 0 {
				continue
			}
			if rule := primary.QueryString(t, newest); n.QueryString(t, newest) != rule {
				return fmt.Errorf("%s lacks rule %s", n.cfg.NodeName, rule)
			}
		}
		return nil
	})
}

// waitLooked waits until every daemon has gone on long enough to have seen what is so
// now: it asks each node twice meanwhile.
func waitLooked(t *testing.T, nodes []*node) {
	t.Helper()
	now := time.Now()
	pgtest.WaitFor(t, "the daemons to look again", func(context.Context) error {
		for _, n := range nodes {
			if n.daemon != nil && n.daemon.Status().LookedAt.Sub(now) < n.cfg.SilenceTimeout/2 {
				return errors.New(n.cfg.NodeName + " has not yet")
			}
		}
		return nil
	})
}

// waitPrimary waits until one of the nodes runs as primary of a later term.
func waitPrimary(t *testing.T, nodes ...*node) *node {
	t.Helper()
	var found *node
	pgtest.WaitFor(t, "a new primary in office", func(ctx context.Context) error {
		err := errors.New("none")
		for _, n := range nodes {
			conn, errConn := pgx.Connect(ctx, n.Conninfo())
			if errConn != nil {
				continue
			}
			var yes bool
			errQuery := conn.QueryRow(ctx, `SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM repmgr.rules WHERE term > 1)`).Scan(&yes)
			_ = conn.Close(ctx)
			if yes {
				found = n
				return nil
			}
			if errQuery != nil {
				err = errQuery
			}
		}
		return err
	})
	if found == nil {
		require.FailNow(t, "no primary")
	}
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
			pgtest.WaitFor(t, "the other standby to follow", func(context.Context) error {
				if got := winner.QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`); got == "0" {
					return errors.New("nobody does")
				}
				return nil
			})
			t.Logf("outage %s", w.LongestGap().Duration().Round(time.Millisecond))
			w.Stop()
			if mode == repmgr.SynchronousQuorum {
				w.Verify(t, winner.Conninfo())
			}
		})
	}
}

// waitHealth waits until a Monitor has come to that verdict on the primary.
func waitHealth(t *testing.T, m *repmgr.Monitor, want election.Health) {
	t.Helper()
	pgtest.WaitFor(t, "the verdict "+string(want), func(context.Context) error {
		if s := m.Status(); s.Health != want {
			return fmt.Errorf("%q: %s (%s)", s.Health, s.Reason, s.Error)
		}
		return nil
	})
}

// An operator's shutdown of the primary is no failure. With Force it is taken over all the same.
func TestFailover_NotAfterAShutdownInOrder(t *testing.T) {
	t.Parallel()
	nodes, monitors := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Stop("fast")
	waitHealth(t, monitors[1], election.HealthShutDown)
	waitHealth(t, monitors[2], election.HealthShutDown)
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
	nodes[0].StartAgain()
	waitHealth(t, monitors[1], election.HealthAlive)

	pgtest.WaitFor(t, "the refusal", func(context.Context) error {
		_, err := nodes[1].Failover(t.Context(), repmgr.FailoverOptions{})
		var refusal *repmgr.RefusalError
		require.ErrorAs(t, err, &refusal)
		if refusal.Health != election.HealthAlive { // an answer was late
			return err
		}
		return nil
	})
	// Only a standby that streams receives the end of the primary's WAL, which says that it was in order.
	pgtest.WaitFor(t, "both standbys to stream again", func(context.Context) error {
		if n := nodes[0].QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`); n != "2" {
			return errors.New(n)
		}
		return nil
	})
	nodes[0].Stop("fast")
	res, err := nodes[2].Failover(t.Context(), repmgr.FailoverOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(2), res.Winner.ID)
	require.Len(t, res.Following, 1)
}

// Two nodes are no majority of each other.
func TestFailover_TwoNodesNever(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousOff)
	nodes[0].Kill()
	e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
	require.Contains(t, e.Details, string(election.RefusedNoMajority))
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
	_, err := nodes[1].Failover(t.Context(), repmgr.FailoverOptions{Force: true})
	require.ErrorIs(t, err, repmgr.ErrNoQuorum)
	require.NotEmpty(t, repmgr.Hint(err))
}

// With a witness they are, and the old primary comes back as a standby by itself.
func TestFailover_WitnessAndRejoin(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes, _ := startCluster(t, 2, repmgr.SynchronousQuorum)
	w := startWitness(t, 9, automatic(repmgr.SynchronousQuorum))
	_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: nodes[0].Conninfo()})
	require.NoError(t, err)
	w.monitor(t)
	pgtest.WaitFor(t, "the witness to be a voter and to know it", func(context.Context) error {
		if got := w.QueryString(t, `SELECT coalesce((SELECT voters::text FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1), 'none')`); got != "{1,2,9}" {
			return errors.New(got)
		}
		return nil
	})
	writer := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo()}})
	writer.WaitForMore(t, 20)
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1])
	writer.WaitForMore(t, 20)
	nodes[0].events.waitRejoin(t)
	pgtest.WaitFor(t, "the old primary to be a standby that commits wait for", func(context.Context) error {
		if got := winner.QueryString(t, `SELECT current_setting('synchronous_standby_names')`); got != `ANY 1 ("node1")` {
			return errors.New(got)
		}
		return nil
	})
	writer.WaitForMore(t, 20)
	writer.Stop()
	writer.Verify(t, winner.Conninfo())
	waitSame(t, winner, nodes[0])
	writer.Verify(t, nodes[0].Conninfo())
}

// Pause means no automatic action; unpause, and it comes.
func TestFailover_Paused(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	_, err := nodes[0].Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	pgtest.WaitFor(t, "those who would notice its death", func(context.Context) error {
		if !pgtest.Query[bool](t, nodes[0].Server, `SELECT count(*) >= 6 FROM pg_stat_activity WHERE application_name = 'repmgr'`) { // two each
			return errors.New("not yet")
		}
		return nil
	})
	nodes[0].Kill()
	e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
	require.Contains(t, e.Details, string(election.RefusedPaused))
	_, err = nodes[1].Failover(t.Context(), repmgr.FailoverOptions{})
	require.ErrorIs(t, err, repmgr.ErrPaused)
	_, err = nodes[1].Unpause(t.Context(), repmgr.PauseOptions{})
	require.Error(t, err) // node1 is down
	waitPrimary(t, nodes[1:]...)
	nodes[0].events.waitRejoin(t)
	pgtest.WaitFor(t, "node1 to learn that the pause is over", func(context.Context) error {
		flag := nodes[0].QueryString(t, `SELECT setting FROM pg_file_settings WHERE name = 'repmgr.paused' ORDER BY seqno DESC LIMIT 1`)
		if !strings.HasPrefix(flag, "1/off/") {
			return errors.New(flag)
		}
		return nil
	})
}

// The operator's command has the last word.
func TestFailover_ValidationCommand(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	_, err := nodes[0].Pause(t.Context(), repmgr.PauseOptions{}) // the Monitors leave it to us
	require.NoError(t, err)
	nodes[0].Kill()
	cfg := nodes[1].cfg
	cfg.FailoverValidationCommand = `test "%n %a %v %u %t" = "2 node2 3 2 4"`
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	_, err = c.Failover(t.Context(), repmgr.FailoverOptions{Force: true})
	require.ErrorContains(t, err, string(election.RefusedValidation))
	cfg.FailoverValidationCommand = `test "%n %a %v %u %t" = "2 node2 2 1 3"`
	c, err = repmgr.New(cfg)
	require.NoError(t, err)
	res, err := c.Failover(t.Context(), repmgr.FailoverOptions{Force: true, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(2), res.Winner.ID)
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
	_, err = c.Failover(t.Context(), repmgr.FailoverOptions{Force: true})
	require.NoError(t, err)
}

// A postmaster that hangs still serves who is in, and its standbys: nobody is
// elected until its own Monitor has killed it.
func TestFailover_HungPostmaster(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Signal(syscall.SIGSTOP)
	e := nodes[0].events.wait(t, repmgr.EventFence)
	require.Contains(t, e.Details, "hang_timeout")
	waitPrimary(t, nodes...)
}

// A former primary that somebody starts again gives way, with what it has of its own saved.
func TestFailover_OldPrimaryReturns(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	nodes[0].events.waitRejoin(t)
	waitSame(t, winner, nodes[0])
	winner.Exec(t, `CREATE TABLE after_the_failover (i int)`)
	waitSame(t, winner, nodes[0])
	require.Equal(t, "running", winner.view(t, 1).Status)
}

// A follow_command that fails, as one of repmgr 5 does where a node has diverged, keeps nobody away.
func TestFailover_FollowCommandFails(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	for _, n := range nodes {
		n.cfg.FollowCommand = "exit 23"
		n.monitor(t)
	}
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	nodes[2].Exec(t, `SELECT pg_promote()`) // by hand
	nodes[2].events.waitRejoin(t)
	waitSame(t, nodes[0], nodes[2])
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	for _, n := range nodes {
		if n != winner {
			pgtest.WaitFor(t, "all to follow", func(context.Context) error {
				if v := winner.view(t, n.cfg.NodeID); v.Attached != "streaming" {
					return errors.New(v.Upstream)
				}
				return nil
			})
		}
	}
}

// A former primary whose new clone failed half-way, because its source was lost or
// its daemon was killed, has no data any more: its daemon clones it all the same.
func TestFailover_OldPrimaryReturnsWithoutData(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	nodes[0].cfg.PgBindir = nodes[0].BinDir // nothing in its directory says where its programs are
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	state := filepath.Join(nodes[0].Dir+".salvage", "incomplete-node1", "config") // what a rejoin keeps meanwhile
	require.NoError(t, os.MkdirAll(state, 0o700))
	nodes[0].Kill()
	entries, err := os.ReadDir(nodes[0].Dir)
	require.NoError(t, err)
	for _, e := range entries {
		path := filepath.Join(nodes[0].Dir, e.Name())
		if filepath.Ext(path) == ".conf" {
			require.NoError(t, os.Rename(path, filepath.Join(state, e.Name())))
			continue
		}
		require.NoError(t, os.RemoveAll(path))
	}
	winner := waitPrimary(t, nodes[1:]...)
	nodes[0].events.waitRejoin(t)
	waitSame(t, winner, nodes[0])
}

// A Monitor on a machine without a node holds the election when the nodes' own are gone.
func TestFailover_Observer(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t, automatic(repmgr.SynchronousQuorum))
	node1.cfg.DataDirectory = node1.Dir
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	_, stop := node1.monitor(t)
	waitReady(t, []*node{node1, node2, node3}, 3, repmgr.SynchronousQuorum)
	cfg := repmgr.Config{Conninfo: node2.Conninfo(), Failover: repmgr.FailoverAutomatic, SynchronousMode: repmgr.SynchronousQuorum, Logger: testLogger(t)}
	observer, err := repmgr.NewMonitor(cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- observer.Run(ctx) }()
	waitPhase(t, observer, election.Observing)
	stop()
	node1.Kill()
	waitPrimary(t, node2, node3)
	cancel()
	require.NoError(t, <-done)
}
