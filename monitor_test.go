package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// monitor runs a Monitor for the node until the returned func is called, or the test ends.
func (n *node) monitor(t *testing.T) (*repmgr.Monitor, func()) {
	t.Helper()
	m, err := repmgr.NewMonitor(n.cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	n.daemon = m
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			if n.daemon == m {
				n.daemon = nil
			}
			cancel(errors.New("stopped by the test"))
			require.NoError(t, <-done)
		}
	}
	n.stop = stop
	t.Cleanup(stop)
	return m, stop
}

// startMonitors runs one for each node; its field stop ends it.
func startMonitors(t *testing.T, nodes []*node) {
	t.Helper()
	for _, n := range nodes {
		n.monitor(t)
	}
}

func stopMonitors(nodes []*node) {
	for _, n := range nodes {
		n.stop()
	}
}

func waitPhase(t *testing.T, m *repmgr.Monitor, want election.Phase) {
	t.Helper()
	pgtest.WaitFor(t, "phase "+string(want), func(context.Context) error {
		if s := m.Status(); s.Phase != want {
			return fmt.Errorf("phase %q: %s (%s)", s.Phase, s.Reason, s.Error)
		}
		return nil
	})
}

// repmgrd registers its standby if it is not, as the manual says; it starts before
// the servers do; and the manual's query shows the lag of every standby. A server
// that nothing streams from may be meant for a witness: it is left alone.
func TestMonitor_RegistersAndRecordsLag(t *testing.T) {
	t.Parallel()
	node1 := newNode(t, 1, pgtest.Start(t, pgtest.Options{Name: "node1"}))
	m1, _ := node1.monitor(t)
	pgtest.WaitFor(t, "the monitor to say that it does not register this", func(context.Context) error {
		if s := m1.Status(); s.Phase != election.Unregistered || !strings.Contains(s.Error, "it may be meant for a primary or for a witness") {
			return fmt.Errorf("%s: %s", s.Phase, s.Error)
		}
		return nil
	})
	require.Equal(t, "f", node1.QueryString(t, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'repmgr')`))
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node2 := prepareStandby(t, node1, 2, func(c *repmgr.Config) { c.MonitoringHistory = true })
	m2, _ := node2.monitor(t)
	waitPhase(t, m2, election.Waiting)
	_, err = node2.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: node2.Dir, FastCheckpoint: true})
	require.NoError(t, err)
	node2.Start(t)
	waitPhase(t, m2, election.AsStandby)
	waitPhase(t, m1, election.AsPrimary)
	node1.events.wait(t, repmgr.EventChildConnect)

	pgtest.WaitFor(t, "repl_status to say that the standby is in step", func(context.Context) error {
		got := node1.QueryString(t, `SELECT primary_node || ' ' || standby_node || ' ' || replication_lag || ' ' || apply_lag || ' ' || time_lag FROM repl_status`)
		if got != "1 2 0 0 0.0" {
			return fmt.Errorf("repl_status is %q", got)
		}
		return nil
	})
	pgtest.WaitFor(t, "history on the standby", func(context.Context) error {
		if pgtest.Query[int](t, node2.Server, `SELECT count(*) FROM repl_monitor WHERE standby_node = 2`) < 2 {
			return errors.New("fewer than two rows")
		}
		return nil
	})

	node2.Exec(t, `SELECT pg_wal_replay_pause()`)
	node1.Exec(t, `CREATE TABLE lag AS SELECT generate_series(1, 10000)`)
	pgtest.WaitFor(t, "repl_status to say that the standby is behind", func(context.Context) error {
		if !pgtest.Query[bool](t, node1.Server, `SELECT apply_lag > 100000 AND replication_lag < 100000 AND time_lag > 0 FROM repl_status`) {
			return errors.New(node1.QueryString(t, `SELECT repl_status::text FROM repl_status`))
		}
		return nil
	})
}

// A standby whose server is gone is marked, and comes back by itself.
func TestMonitor_LivesThroughRestarts(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	m1, _ := node1.monitor(t)
	m2, stop2 := node2.monitor(t)
	waitPhase(t, m1, election.AsPrimary)
	waitPhase(t, m2, election.AsStandby)

	node2.Stop("fast")
	node2.events.wait(t, repmgr.EventStandbyFailure)
	node1.events.wait(t, repmgr.EventChildDisconnect)
	pgtest.WaitFor(t, "row to be inactive", func(context.Context) error {
		if v := node1.view(t, 2); v.Status != "- failed" {
			return errors.New(v.Status)
		}
		return nil
	})
	node2.StartAgain()
	node2.events.wait(t, repmgr.EventStandbyRecovery)
	waitPhase(t, m2, election.AsStandby)
	require.Equal(t, "running", node1.view(t, 2).Status)

	node1.Kill()
	node2.events.wait(t, repmgr.EventUpstreamDisconnect)
	waitPhase(t, m2, election.Orphaned)
	node1.StartAgain()
	node2.events.wait(t, repmgr.EventUpstreamReconnect)
	waitPhase(t, m2, election.AsStandby)
	waitPhase(t, m1, election.AsPrimary)

	stop2()
	node2.events.wait(t, repmgr.EventDaemonShutdown)
	events, err := node1.Events(t.Context(), repmgr.EventFilter{NodeID: 2, Limit: 1})
	require.NoError(t, err)
	require.Equal(t, repmgr.EventDaemonShutdown, events[0].Type)
	require.Contains(t, events[0].Details, "stopped by the test")
}

// A monitor goes on as what its server has become.
func TestMonitor_FollowsAPromotion(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	m2, _ := node2.monitor(t)
	m3, _ := node3.monitor(t)
	waitPhase(t, m2, election.AsStandby)
	waitPhase(t, m3, election.AsStandby)
	node1.Stop("fast") // sends all it has: neither of the two is ahead
	res, err := node2.Promote(t.Context(), repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	require.Len(t, res.Following, 1)
	waitPhase(t, m2, election.AsPrimary)
	waitPhase(t, m3, election.AsStandby)
	pgtest.WaitFor(t, "the sample to name the new primary", func(context.Context) error {
		if got := node2.QueryString(t, `SELECT string_agg(primary_node || '>' || standby_node, ' ') FROM repl_status WHERE standby_node = 3`); got != "2>3" {
			return errors.New(got)
		}
		return nil
	})
	require.True(t, strings.HasPrefix(m3.Status().Primary, `node "node2"`), m3.Status().Primary)
}

// Old history goes, by the daemon, in batches.
func TestMonitor_PrunesHistory(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t, func(c *repmgr.Config) { c.MonitoringHistoryRetention = 24 * 3600 * 1000 * millisecond })
	node1.Exec(t, `INSERT INTO repmgr.monitoring_history SELECT 1, 2, now() - make_interval(hours => n), now(), '0/1', '0/1', 0, 0 FROM generate_series(1, 20000) n`)
	node1.monitor(t)
	pgtest.WaitFor(t, "old rows to go", func(context.Context) error {
		if n := pgtest.Query[int](t, node1.Server, `SELECT count(*) FROM repmgr.monitoring_history`); n > 24 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
}

// A reload takes over what may change, and keeps what was when the new file is wrong; that is said to everybody, too.
func TestMonitor_Reload(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	m, _ := node1.monitor(t)
	waitPhase(t, m, election.AsPrimary)
	cfg := node1.cfg
	cfg.NodeName, cfg.MonitoringHistory = "other", true
	restart, err := m.Reload(cfg)
	require.NoError(t, err)
	require.Equal(t, []string{"node_name"}, restart)
	node1.events.wait(t, repmgr.EventDaemonReload)
	rejected := func(want bool) {
		t.Helper()
		pgtest.WaitFor(t, fmt.Sprint("a rejected configuration is an issue: ", want), func(ctx context.Context) error {
			st, err := node1.ServiceStatus(ctx)
			if issues := strings.Join(st.Issues, "\n"); err == nil && strings.Contains(issues, "node \"node1\" (ID: 1) has rejected the configuration in its file") != want {
				err = errors.New(issues)
			}
			return err
		})
	}
	cfg.MonitorInterval = -1
	_, err = m.Reload(cfg)
	require.ErrorIs(t, err, repmgr.ErrConfig)
	rejected(true)
	require.Contains(t, m.Status().Rejected, "monitor_interval_secs")
	_, err = m.Reload(node1.cfg)
	require.NoError(t, err)
	rejected(false)
}

// A second daemon of a node changes nothing, also where it loses its primary, until
// the first one has ended. Then it does all that the first one did.
func TestMonitor_SecondOfANode(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	firsts := map[*node]func(){}
	for _, n := range nodes {
		n.set(t, `wal_keep_size = '64MB'`) // a slow rejoin finds it
		_, firsts[n] = n.monitor(t)
	}
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	yields := func(n *node, want bool) {
		pgtest.WaitFor(t, fmt.Sprintf("whether the second daemon of %s yields: %t", n.cfg.NodeName, want), func(context.Context) error {
			if s := n.daemon.Status(); s.LookedAt.IsZero() || strings.Contains(s.Error, "watches") != want {
				return fmt.Errorf("it says %q", s.Error)
			}
			return nil
		})
	}
	const rules = `SELECT count(*) || ' ' || max(seq) FROM repmgr.rules`
	before := nodes[0].QueryString(t, rules)
	for _, n := range nodes {
		n.monitor(t)
		yields(n, true)
	}
	waitLooked(t, nodes)
	require.Equal(t, before, nodes[0].QueryString(t, rules))
	status, err := nodes[0].ServiceStatus(t.Context())
	require.NoError(t, err)
	var twice []repmgr.NodeID
	for _, f := range status.Findings {
		if f.Code == repmgr.FindingSecondDaemon {
			twice = append(twice, f.NodeID)
			require.Contains(t, f.Text, strconv.Itoa(os.Getpid()))
		}
	}
	require.Equal(t, []repmgr.NodeID{1, 2, 3}, twice)

	firsts[nodes[0]]()
	nodes[0].stop()
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	waitValue(t, winner, "1", `SELECT count(*)::text FROM repmgr.failovers`)
	for _, n := range nodes[1:] {
		yields(n, true)
		firsts[n]()
	}
	for _, n := range nodes[1:] {
		yields(n, false)
	}
	nodes[0].monitor(t)
	nodes[0].events.waitRejoin(t)
	winner.Kill()
	others := slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == winner })
	waitPrimary(t, others...)
}

// A daemon that hangs keeps its session. Of two more one takes its place, and only
// one: what it says is what everybody reads, and the other one waits for it.
func TestMonitor_TakesThePlaceOfOneThatHangs(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 1, repmgr.SynchronousOff)
	n := nodes[0]
	hangs := n.Conn(t)
	_, err := hangs.Exec(t.Context(), fmt.Sprintf(`SELECT pg_advisory_lock(1919250541, %d)`, n.cfg.NodeID))
	require.NoError(t, err)
	const waiting = `SELECT count(*)::text FROM pg_stat_activity WHERE application_name ~ '^repmgrd [0-9]+ waits$'`
	speaks, hang := context.WithCancel(t.Context())
	silent := make(chan error, 1)
	go func() {
		for speaks.Err() == nil {
			if _, err := hangs.Exec(t.Context(), `SELECT pg_sleep(0.1)`); err != nil {
				silent <- err
				return
			}
		}
		silent <- nil
	}()
	first, _ := n.monitor(t)
	waitValue(t, n, "1", waiting)
	waitLooked(t, nodes)
	require.NoFileExists(t, filepath.Join(n.Dir, "repmgr_nodes.json")) // that is the other one's
	hang()
	require.NoError(t, <-silent)
	second, _ := n.monitor(t)
	waitValue(t, n, "2", waiting)
	pgtest.WaitFor(t, "one of them to act", func(context.Context) error {
		a, b := strings.Contains(first.Status().Error, "watches"), strings.Contains(second.Status().Error, "watches")
		if a == b || n.QueryString(t, waiting) != "1" {
			return fmt.Errorf("they say %q and %q", first.Status().Error, second.Status().Error)
		}
		return nil
	})
	require.ErrorContains(t, hangs.Ping(t.Context()), "57P01")
	status, err := n.ServiceStatus(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, status.Nodes[0].Monitor.ID)
	pgtest.WaitFor(t, "what it keeps", func(context.Context) error {
		_, err := os.Stat(filepath.Join(n.Dir, "repmgr_nodes.json"))
		return err
	})
}

// A primary that has lost its standbys runs the command that the operator has set for that, once.
func TestMonitor_ChildNodesDisconnectCommand(t *testing.T) {
	t.Parallel()
	primary := startPrimary(t)
	standby := addStandby(t, primary, 2)
	out := filepath.Join(t.TempDir(), "out")
	primary.cfg.ChildNodesDisconnectCommand, primary.cfg.ChildNodesDisconnectTimeout = `echo "%p lost them" >> `+out+`; echo a reason; false`, 0
	primary.monitor(t)
	primary.events.wait(t, repmgr.EventDaemonStart)
	standby.Stop("fast")
	e := primary.events.wait(t, repmgr.EventChildNodesDisconnectCommand)
	require.False(t, e.Success)
	require.Contains(t, e.Details, "a reason")
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, "1 lost them\n", string(text))
}
