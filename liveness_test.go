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
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// startWithSlots is a primary with two standbys that stream through slots, all
// with Monitors. Both standbys have those settings.
func startWithSlots(t *testing.T, mode repmgr.SynchronousMode, settings ...string) (nodes []*node) {
	t.Helper()
	nodes = append(nodes, startPrimary(t, automatic(mode), withSlots))
	for id := repmgr.NodeID(2); id <= 3; id++ {
		nodes = append(nodes, addStandby(t, nodes[0], id, automatic(mode), withSlots))
	}
	for i, n := range nodes {
		for _, set := range settings {
			if i > 0 {
				n.Exec(t, `ALTER SYSTEM SET `+set)
			}
		}
		if i > 0 && len(settings) > 0 {
			n.Stop("fast")
			n.StartAgain()
		}
		n.cfg.DataDirectory = n.Dir
		n.monitor(t)
	}
	waitReady(t, nodes, 3, mode)
	if mode == repmgr.SynchronousOff { // they prove the death of the primary
		waitValue(t, nodes[0], "t", `SELECT count(*) >= 6 FROM pg_stat_activity WHERE application_name = 'repmgr'`) // two each
	}
	return nodes
}

// waitValue waits until a query says what it should.
func waitValue(t *testing.T, n *node, want, sql string) {
	t.Helper()
	pgtest.WaitFor(t, want+" from "+sql, func(context.Context) error {
		if got := n.QueryString(t, sql); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// A winner that can make no slots is promoted all the same, and the other standby
// streams from it without one.
func TestFailover_WithoutFreeSlots(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes := startWithSlots(t, mode, `max_replication_slots = 0`)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
			w.WaitForMore(t, 20)
			nodes[0].Kill()
			winner := waitPrimary(t, nodes[1:]...)
			w.WaitForMore(t, 20)
			waitValue(t, winner, "1", `SELECT count(*) FROM pg_stat_replication WHERE application_name IN ('node2', 'node3') AND state = 'streaming'`)
			w.Stop()
			if mode == repmgr.SynchronousQuorum {
				w.Verify(t, winner.Conninfo())
			}
		})
	}
}

// A standby that follows without its slot is given it as soon as there is room.
func TestMonitor_MakesItsSlotLater(t *testing.T) {
	t.Parallel()
	nodes := startWithSlots(t, repmgr.SynchronousOff, `max_replication_slots = 2`) // one is for the former primary
	for _, n := range nodes[1:] {
		n.Exec(t, `SELECT pg_create_physical_replication_slot('in_the_way'), pg_create_physical_replication_slot('too')`)
	}
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	other := nodes[1]
	if winner == other {
		other = nodes[2]
	}
	waitValue(t, winner, "1", `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`)
	require.Empty(t, other.QueryString(t, `SHOW primary_slot_name`))
	winner.Exec(t, `SELECT pg_drop_replication_slot('in_the_way'), pg_drop_replication_slot('too')`)
	slot := "repmgr_slot_" + other.cfg.NodeID.String()
	waitValue(t, other, slot, `SHOW primary_slot_name`)
	waitValue(t, winner, "t", `SELECT active FROM pg_replication_slots WHERE slot_name = '`+slot+`'`)
}

// A slot whose standby streams from another node now keeps WAL until the disk is full: it is
// dropped. All other slots stay.
func TestMonitor_DropsLeftoverSlots(t *testing.T) {
	t.Parallel()
	nodes := startWithSlots(t, repmgr.SynchronousQuorum)
	nodes[0].Exec(t, `SELECT pg_create_physical_replication_slot('backup', true), pg_create_physical_replication_slot('repmgr_slot_9', true)`)
	_, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	const slots = `SELECT string_agg(slot_name || CASE WHEN active THEN ' in use' ELSE '' END, ', ' ORDER BY slot_name) FROM pg_replication_slots`
	waitValue(t, nodes[1], "repmgr_slot_1 in use, repmgr_slot_3 in use", slots)
	waitValue(t, nodes[0], "backup, repmgr_slot_9", slots)

	dropSlot := `SELECT pg_terminate_backend(active_pid, 10000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'repmgr_slot_3'`
	pgtest.WaitFor(t, "the slot in use to be dropped by hand", func(ctx context.Context) error {
		_, err := nodes[1].Conn(t).Exec(ctx, dropSlot) // its standby may be faster
		return err
	})
	waitValue(t, nodes[1], "repmgr_slot_1 in use, repmgr_slot_3 in use", slots)
}

// A primary that was lost before it sent any WAL has left a history file with a standby, and the
// next primary has begun a timeline with the same number elsewhere. The standby follows that
// one, and is not taken for one that has diverged: it wins the next election, or follows who does.
func TestMonitor_ReplacesTheHistoryOfAnotherPrimary(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	_, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	waitStreams(t, nodes[1], nodes[2])
	path := filepath.Join(nodes[2].Dir, "pg_wal", "00000002.history")
	right, err := os.ReadFile(path)
	require.NoError(t, err)
	stopMonitors(nodes) // they have read the file
	require.NoError(t, os.WriteFile(path, []byte("1\t0/1000028\tno recovery target specified\n"), 0o640))
	require.NoError(t, os.Chmod(path, 0o640))
	explained, err := nodes[0].Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.NotContains(t, fmt.Sprint(explained), string(election.UnfitBranch), "the rule that it has replayed counts, and not that file")
	startMonitors(t, nodes)
	pgtest.WaitFor(t, "the history to be put right", func(context.Context) error {
		now, err := os.ReadFile(path)
		if err == nil && strings.Fields(string(now))[1] != strings.Fields(string(right))[1] {
			err = errors.New(string(now))
		}
		return err
	})
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.Mode().Perm())
	waitReady(t, []*node{nodes[1], nodes[0], nodes[2]}, 3, repmgr.SynchronousQuorum)
	nodes[1].Kill()
	winner, other := waitPrimary(t, nodes[0], nodes[2]), nodes[2]
	if winner == other {
		other = nodes[0]
	}
	waitStreams(t, winner, other)
	require.Equal(t, "0", winner.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'node_rejoin'`))
}

// breakReplication lets no standby stream from the node any more, and leaves all
// other logins alone. It returns what mends it.
func breakReplication(t *testing.T, n *node) (mend func()) {
	t.Helper()
	path := filepath.Join(n.Dir, "pg_hba.conf")
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append([]byte("local replication all reject\nhost replication all all reject\n"), old...), 0o600))
	n.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the standbys to be cut off", func(context.Context) error {
		if got := n.QueryString(t, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication`); got != "0" {
			return errors.New(got)
		}
		return nil
	})
	return func() {
		require.NoError(t, os.WriteFile(path, old, 0o600))
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
}

// A follow that waits, or hangs in follow_command, is ended as soon as the primary is lost.
func TestFailover_AFollowGivesWay(t *testing.T) {
	for name, command := range map[string]string{"waiting to stream": "", "hanging in follow_command": "sleep 1000"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			var monitors []*repmgr.Monitor
			for _, n := range nodes {
				n.cfg.StandbyFollowTimeout, n.cfg.FollowCommand = time.Hour, command
				m, _ := n.monitor(t)
				monitors = append(monitors, m)
			}
			waitReady(t, nodes, 3, repmgr.SynchronousOff)
			_ = breakReplication(t, nodes[0])
			for _, m := range monitors[1:] {
				pgtest.WaitFor(t, "a follow to be under way", func(context.Context) error {
					if s := m.Status(); s.Doing != string(election.Follow) {
						return fmt.Errorf("doing %q: %s", s.Doing, s.Reason)
					}
					return nil
				})
			}
			nodes[0].Kill()
			waitPrimary(t, nodes[1:]...)
		})
	}
}

// What the operator hooked in and hangs has a deadline: no validation is no
// failover, by name; an event's command holds nothing up.
func TestFailover_HooksHang(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	for _, n := range nodes {
		n.cfg.FailoverValidationCommand, n.cfg.EventNotificationCommand, n.cfg.EventNotificationTimeout = "sleep 1000", "sleep 1000", time.Second
	}
	_, stop1 := nodes[0].monitor(t)
	m2, _ := nodes[1].monitor(t)
	nodes[2].monitor(t)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	nodes[0].Kill()
	stop1()
	e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
	require.Contains(t, e.Details, string(election.RefusedValidation))
	require.Contains(t, e.Details, "no answer within event_notification_timeout (1s)")
	cfg := nodes[1].cfg
	cfg.FailoverValidationCommand = ""
	_, err := m2.Reload(cfg)
	require.NoError(t, err)
	waitPrimary(t, nodes[1:]...)
}

// A promote_command that hangs, or fails, costs its time once: the next election does without it.
// One that fails after it has promoted leaves a primary without a rule, which a later election
// confirms: that is told and recorded as the failover that it is.
func TestFailover_PromoteCommandFails(t *testing.T) {
	for name, command := range map[string]func(n *node) string{
		"hangs":           func(*node) string { return "sleep 1000" },
		"fails":           func(*node) string { return "false" },
		"promotes, fails": func(n *node) string { return filepath.Join(n.BinDir, "pg_ctl") + " -w -D " + n.Dir + " promote; false" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
			for _, n := range nodes {
				n.cfg.PromoteCommand, n.cfg.PromoteCheckTimeout = command(n), time.Second
				n.monitor(t)
			}
			waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
			nodes[0].Kill()
			winner := waitPrimary(t, nodes[1:]...)
			past := newestFailover(t, winner)
			require.Equal(t, repmgr.NodeID(1), past.FormerID)
			require.Positive(t, past.Outage)
			require.NotNil(t, past.LostBytes)
			t.Logf("\n%s", past)
			require.Equal(t, "1", winner.QueryString(t, `SELECT count(*) FROM repmgr.failovers`))
			waitValue(t, winner, "1", `SELECT count(*) FROM repmgr.events WHERE event = 'repmgrd_failover_promote' AND successful`)
		})
	}
}

// A primary that goes on in a higher term completes a failover only where nothing tells yet how it came into office.
func TestReaffirm_Completes(t *testing.T) {
	for name, test := range map[string]struct {
		promote func(t *testing.T, nodes []*node) // node2
		former  repmgr.NodeID                     // in the history; 0: nothing is recorded
		outage  bool
	}{
		"an operator promoted it": {func(t *testing.T, nodes []*node) {
			_, err := nodes[1].Pause(t.Context(), repmgr.PauseOptions{})
			require.NoError(t, err)
			nodes[0].Kill()
			nodes[0].stop()
			_, err = nodes[1].Promote(t.Context(), repmgr.PromoteOptions{Force: true, SiblingsFollow: true})
			require.NoError(t, err)
			_, _ = nodes[1].Unpause(t.Context(), repmgr.PauseOptions{}) // node1 is down
		}, 0, false},
		"a failover left no record": {func(t *testing.T, nodes []*node) {
			nodes[0].Kill()
			nodes[0].stop()
			require.Equal(t, nodes[1], waitPrimary(t, nodes[1:]...))
			newestFailover(t, nodes[1])
			nodes[1].Exec(t, `DELETE FROM repmgr.failovers`)
		}, 1, true},
		"a switchover left no record": {func(t *testing.T, nodes []*node) {
			_, err := nodes[0].Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
			require.NoError(t, err)
			newestFailover(t, nodes[1])
			pgtest.WaitFor(t, "node1 to stream", func(ctx context.Context) error { return nodes[1].StreamsTo(ctx, "node1") })
			nodes[1].Exec(t, `DELETE FROM repmgr.failovers`)
		}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
			nodes[0].Exec(t, `UPDATE repmgr.nodes SET priority = 0 WHERE node_id = 3`)
			waitValue(t, nodes[1], "0", `SELECT priority::text FROM repmgr.nodes WHERE node_id = 3`)
			killed := time.Now()
			test.promote(t, nodes)
			pgtest.WaitFor(t, "node3 to stream", func(ctx context.Context) error { return nodes[1].StreamsTo(ctx, "node3") })
			const office = `SELECT clock_timestamp() - min(opened_at) > interval '3 s' FROM repmgr.rules WHERE primary_node_id = 2`
			waitValue(t, nodes[1], "t", office)
			require.NoError(t, ballot.Pledge(t.Context(), nodes[2].Conn(t), ballot.Ballot{Node: 3, Term: 10, Candidate: "gone.1"}, ballot.Standby))
			waitValue(t, nodes[1], "t", `SELECT max(term) > 10 FROM repmgr.rules`)
			if test.former == 0 {
				nodes[1].events.wait(t, repmgr.EventTermReaffirmed)
				require.Equal(t, "0", nodes[1].QueryString(t, `SELECT count(*) FROM repmgr.failovers`))
				return
			}
			past := newestFailover(t, nodes[1])
			t.Logf("\n%s", past)
			require.Equal(t, election.HealthInterrupted, past.Reason)
			require.Equal(t, []repmgr.NodeID{test.former, 2}, []repmgr.NodeID{past.FormerID, past.PrimaryID})
			require.Less(t, past.Outage, past.StartedAt.Sub(killed), "it had ended long before")
			require.Equal(t, test.outage, past.Outage > 0)
			waitValue(t, nodes[1], "1", `SELECT count(*)::text FROM repmgr.events WHERE event = 'repmgrd_failover_promote' AND details ~ 'left no record'`)
		})
	}
}

// A standby below another one does not keep a dead primary alive, however the
// address of its upstream is written.
func TestFailover_CascadeByAnotherAddress(t *testing.T) {
	for name, spell := range map[string]func(*node) string{
		"a name":       func(up *node) string { return fmt.Sprintf("host=localhost port=%d", up.Port) },
		"of two hosts": func(up *node) string { return fmt.Sprintf("host=127.0.0.9,localhost port=1,%d", up.Port) },
		"a socket":     func(up *node) string { return fmt.Sprintf("host=%s port=%d", up.SocketDir, up.Port) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 4, repmgr.SynchronousOff)
			_, err := nodes[3].Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 2})
			require.NoError(t, err)
			nodes[3].Exec(t, fmt.Sprintf(`ALTER SYSTEM SET primary_conninfo = '%s user=postgres application_name=node4'`, spell(nodes[1])))
			nodes[3].Exec(t, `SELECT pg_reload_conf()`)
			waitValue(t, nodes[3], "1", `SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host <> '127.0.0.1'`)
			startMonitors(t, nodes)
			waitReady(t, nodes, 4, repmgr.SynchronousOff)
			nodes[0].Signal(syscall.SIGKILL)
			waitPrimary(t, nodes[1:]...)
		})
	}
}

// A primary whose shutdown hangs is replaced after primary_start_timeout, in both
// modes: with off once its daemon has stopped it.
func TestFailover_ShutdownHangs(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			first := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: map[string]string{"archive_mode": "on", "archive_command": "sleep 1000"}})
			// The first election may come to nothing; then its own daemon has made it a standby before the next one.
			nodes := []*node{newNode(t, 1, first, automatic(mode))}
			_, err := nodes[0].RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
			require.NoError(t, err)
			nodes[0].Exec(t, `UPDATE repmgr.nodes SET priority = 0`)
			nodes = append(nodes, addStandby(t, nodes[0], 2, automatic(mode)), addStandby(t, nodes[0], 3, automatic(mode)))
			for _, n := range nodes {
				n.cfg.DataDirectory, n.cfg.PrimaryStartTimeout = n.Dir, time.Second
				n.monitor(t)
			}
			waitReady(t, nodes, 3, mode)
			nodes[0].Exec(t, `SELECT pg_switch_wal()`)
			nodes[0].Signal(syscall.SIGINT)
			winner := waitPrimary(t, nodes[1:]...)
			pgtest.WaitFor(t, "the record of the failover", func(context.Context) error {
				got := winner.QueryString(t, `SELECT coalesce((SELECT reason FROM repmgr.failovers ORDER BY term DESC LIMIT 1), 'none')`)
				if !slices.Contains([]election.Health{election.HealthStuck, election.HealthRefused, election.HealthDead, election.HealthDemoted}, election.Health(got)) {
					return errors.New(got)
				}
				return nil
			})
		})
	}
}

// childOf finds a process of a server by its title.
func childOf(t *testing.T, n *node, title string) int {
	t.Helper()
	var pid int
	pgtest.WaitFor(t, "a process called "+title, func(context.Context) (err error) {
		pid, err = findChild(n, title)
		return err
	})
	return pid
}

func findChild(n *node, title string) (pid int, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if dir, err := os.Readlink(name); err != nil || dir != n.Dir {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		if strings.Contains(string(line), title) {
			return strconv.Atoi(filepath.Base(filepath.Dir(name)))
		}
	}
	return 0, errors.New("none")
}

// recoverForEver sends the server into a crash recovery that does not end. One that
// has ended before it could be stopped is begun again.
func recoverForEver(t *testing.T, n *node) {
	t.Helper()
	crash := func() {
		n.Exec(t, `CHECKPOINT`)
		n.Exec(t, `DROP TABLE IF EXISTS to_recover`)
		n.Exec(t, `CREATE TABLE to_recover AS SELECT generate_series(1, 1000000)`)
		require.NoError(t, syscall.Kill(childOf(t, n, "walwriter"), syscall.SIGKILL))
	}
	crash()
	pgtest.WaitFor(t, "a recovery that stands", func(ctx context.Context) error {
		const title = ": startup"
		var err error
		for range 50 { // a recovery is short
			var pid int
			if pid, err = findChild(n, title); err == nil {
				_ = syscall.Kill(pid, syscall.SIGSTOP)
				if _, err = findChild(n, title); err == nil {
					return nil
				}
			}
		}
		if conn, err := pgx.Connect(ctx, n.Conninfo()); err == nil {
			_ = conn.Close(ctx)
			crash()
		}
		return err
	})
}

// A primary that recovers without end is given up when an operator says so, and is stopped.
func TestFailover_RecoveryWithoutEnd(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes, monitors := startCluster(t, 3, mode)
			recoverForEver(t, nodes[0])
			waitHealth(t, monitors[1], election.HealthNotAccepting)
			operator, err := repmgr.New(repmgr.Config{Conninfo: nodes[1].Conninfo(), SynchronousMode: mode, Logger: testLogger(t)}) // of a process of its own
			require.NoError(t, err)
			_, err = operator.Failover(t.Context(), repmgr.FailoverOptions{})
			var refusal *repmgr.RefusalError
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, election.HealthNotAccepting, refusal.Health)
			require.Contains(t, repmgr.Hint(err), "--force")
			res, err := operator.Failover(t.Context(), repmgr.FailoverOptions{Force: true})
			require.NoError(t, err)
			require.Equal(t, election.HealthStuck, res.Health)
			nodes[0].events.wait(t, repmgr.EventFence)
		})
	}
}

// What may be lost has a limit where the operator sets one: it is foretold, it
// refuses by name, and an operator lifts it.
func TestFailover_MaximumLag(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	nodes[0].monitor(t)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	_ = breakReplication(t, nodes[0])
	nodes[0].Exec(t, `CREATE TABLE not_sent AS SELECT generate_series(1, 100000)`)
	for _, n := range nodes[1:] {
		n.cfg.MaximumLagOnFailover = 1 << 20
		m, _ := n.monitor(t)
		waitHealth(t, m, election.HealthAlive)
	}
	c, err := repmgr.New(nodes[1].cfg)
	require.NoError(t, err)
	e, err := c.Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Equal(t, election.RefusedLag, e.Forecast.Refusal)
	require.Contains(t, e.String(), "lacks")
	nodes[0].Kill()
	require.Contains(t, nodes[1].events.wait(t, repmgr.EventFailoverRefused).Details, string(election.RefusedLag))
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
	operator, err := repmgr.New(repmgr.Config{Conninfo: nodes[1].Conninfo(), MaximumLagOnFailover: 1 << 20, Logger: testLogger(t)})
	require.NoError(t, err)
	_, err = operator.Failover(t.Context(), repmgr.FailoverOptions{Force: true})
	require.NoError(t, err)
}

// Of two standbys with the same WAL the one wins from which the other can stream:
// what stands in the way of the other is tried beforehand, and named.
func TestFailover_WinnerThatCanServe(t *testing.T) {
	tests := map[string]struct {
		harm func(*testing.T, *node)
		risk string
	}{
		"a rejected login": {func(t *testing.T, n *node) { _ = breakReplication(t, n) }, "could not stream from it"},
		"no slots": {func(t *testing.T, n *node) {
			n.Exec(t, `ALTER SYSTEM SET max_replication_slots = 0`)
			n.Restart()
		}, "replication slots for 0 of 1 standby"},
		"no senders": {func(t *testing.T, n *node) {
			for range 10 { // all that it has
				conn, err := pgconn.Connect(t.Context(), n.Conninfo("replication=true"))
				require.NoError(t, err)
				t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
			}
		}, "WAL senders for 0 of 1 standby"},
	}
	for name, test := range tests {
		for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				t.Parallel()
				nodes := []*node{startPrimary(t, automatic(mode), withSlots)}
				for id := repmgr.NodeID(2); id <= 3; id++ {
					nodes = append(nodes, addStandby(t, nodes[0], id, automatic(mode), withSlots))
				}
				test.harm(t, nodes[1])
				var stop1 func()
				for _, n := range nodes {
					n.cfg.DataDirectory = n.Dir
					_, stop := n.monitor(t)
					if stop1 == nil {
						stop1 = stop
					}
				}
				waitReady(t, nodes, 3, mode)
				c, err := repmgr.New(nodes[2].cfg)
				require.NoError(t, err)
				pgtest.WaitFor(t, "the forecast to name it", func(ctx context.Context) error {
					e, err := c.Explain(ctx, repmgr.ExplainOptions{})
					if err == nil && (e.Forecast.Winner != 3 || !slices.ContainsFunc(e.AtRisk, func(b repmgr.Blocker) bool { return strings.Contains(b.Reason, test.risk) })) {
						err = errors.New(e.String())
					}
					return err
				})
				if name == "a rejected login" {
					require.Contains(t, nodes[2].events.wait(t, repmgr.EventStreamAbility).Details, "rejects replication connection")
				}
				stop1() // no heartbeat any more, so that both have the same
				waitSame(t, nodes[0], nodes[1])
				waitSame(t, nodes[0], nodes[2])
				if mode == repmgr.SynchronousOff { // without its daemon only they prove its death
					waitValue(t, nodes[0], "t", `SELECT count(*) >= 4 FROM pg_stat_activity WHERE application_name = 'repmgr' AND state = 'idle'`)
				}
				nodes[0].Kill()
				require.Same(t, nodes[2], waitPrimary(t, nodes[1:]...))
				waitValue(t, nodes[2], "1", `SELECT count(*) FROM pg_stat_replication WHERE application_name = 'node2' AND state = 'streaming'`)
			})
		}
	}
}

// Where nobody can serve, somebody is promoted all the same, the cause is named once,
// and all goes on as soon as it is mended.
func TestFailover_NobodyCanServe(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, mode)
			mend2, mend3 := breakReplication(t, nodes[1]), breakReplication(t, nodes[2])
			monitors := map[*node]*repmgr.Monitor{}
			for _, n := range nodes {
				monitors[n], _ = n.monitor(t)
			}
			waitReady(t, nodes, 3, mode)
			for _, n := range nodes[1:] {
				require.Contains(t, n.events.wait(t, repmgr.EventStreamAbility).Details, "rejects replication connection")
			}
			nodes[0].Kill()
			winner, other := nodes[1], nodes[2]
			pgtest.WaitFor(t, "one of the two to be promoted", func(context.Context) error {
				if nodes[2].QueryString(t, `SELECT pg_is_in_recovery()`) == "f" {
					winner, other = nodes[2], nodes[1]
				}
				if winner.QueryString(t, `SELECT pg_is_in_recovery()`) == "t" {
					return errors.New("none is")
				}
				return nil
			})
			if mode == repmgr.SynchronousOff {
				pgtest.WaitFor(t, "the other one to know whom it should follow", func(context.Context) error {
					if s := monitors[other].Status(); s.Reason != string(election.FollowingWinner) {
						return errors.New(s.Reason)
					}
					return nil
				})
			}
			mend2()
			mend3()
			waitValue(t, winner, "1", `SELECT count(*) FROM pg_stat_replication WHERE application_name = '`+other.cfg.NodeName+`' AND state = 'streaming'`)
			winner.Exec(t, `CREATE TABLE it_goes_on ()`)
			require.Equal(t, "t", winner.QueryString(t, `SELECT count(*) <= 2 FROM repmgr.events WHERE event = 'repmgrd_upstream_reconnect' AND node_id = `+other.cfg.NodeID.String()))
		})
	}
}

// A primary that meets a ballot of an election without an outcome stays in office,
// without a restart: while it stands for the next term its standbys may receive what
// it writes, and an equal one of a higher priority is no reason to replace it.
func TestMonitor_StandsForAHigherTerm(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET priority = 200 WHERE node_id = 2`)
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	const (
		started = `SELECT pg_postmaster_start_time()::text`
		rule    = `SELECT format('%s/%s', term, primary_node_id) FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`
	)
	since := nodes[0].QueryString(t, started)
	var w *pgtest.Writer
	for term := int64(10); term < 100; term += 10 {
		switch {
		case term == 20: // the first time nobody writes, and both have as much
			w = pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo()}})
			fallthrough
		case w != nil:
			w.WaitForMore(t, 30)
		}
		require.NoError(t, ballot.Pledge(t.Context(), nodes[2].Conn(t), ballot.Ballot{Node: 3, Term: term, Candidate: "gone.1"}, ballot.Standby))
		waitValue(t, nodes[0], fmt.Sprintf("%d/1", term+1), rule)
		require.Equal(t, since, nodes[0].QueryString(t, started))
		waitValue(t, nodes[0], "2", `SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming'`)
	}
	w.WaitForMore(t, 30)
	w.Stop()
	w.Verify(t, nodes[0].Conninfo())
}

// A node whose postmaster hangs answers on the connections that are open: it pledges
// itself, and has as much. It is found out by that, and its equal is elected.
func TestFailover_WinnerThatHangs(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, mode)
			nodes[0].Exec(t, `CREATE TABLE kept AS SELECT 1 AS i`)
			waitSame(t, nodes[0], nodes[1])
			waitSame(t, nodes[0], nodes[2])
			waitValue(t, nodes[1], "t", `SELECT count(*) >= 6 FROM pg_stat_activity WHERE application_name = 'repmgr' AND backend_type = 'client backend'`) // two of each daemon
			nodes[1].Signal(syscall.SIGSTOP)
			t.Cleanup(func() { nodes[1].Signal(syscall.SIGCONT) })
			nodes[0].Kill() // its daemon was there: it need not be known for certain that it is dead
			nodes[0].stop()
			winner := waitPrimary(t, nodes[2])
			waitValue(t, winner, "1", `SELECT count(*)::text FROM kept`)
			winner.Exec(t, `INSERT INTO kept VALUES (2)`)
			nodes[1].Signal(syscall.SIGCONT)
			waitValue(t, nodes[1], "2", `SELECT count(*)::text FROM kept`)
		})
	}
}
