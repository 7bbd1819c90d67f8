package repmgr_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// A switchover goes from any node to any node, loses nothing that was acknowledged, and leaves
// every node streaming from the new primary, without a rewind.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, mode)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
			primary := nodes[0]
			for round, to := range []*node{nodes[1], nodes[2], nodes[0]} {
				res, err := to.Switchover(t.Context(), repmgr.SwitchoverOptions{})
				require.NoError(t, err)
				require.Equal(t, to.cfg.NodeID, res.To.ID)
				require.Equal(t, primary.cfg.NodeID, res.From.ID)
				require.Equal(t, int64(round+2), res.Term)
				require.True(t, res.Returned)
				require.Equal(t, "f", to.QueryString(t, `SELECT pg_is_in_recovery()`))
				for _, n := range nodes {
					if n != to {
						waitStreams(t, to, n)
					}
				}
				require.Equal(t, "0", to.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'node_rejoin' AND details LIKE '%rewind%'`))
				primary = to
			}
			w.Stop()
			w.Verify(t, primary.Conninfo())
			past, err := primary.Failovers(t.Context(), 1)
			require.NoError(t, err)
			at := map[string]time.Duration{}
			for _, s := range past[0].Steps {
				at[s.Step] = s.After
			}
			require.True(t, slices.IsSortedFunc(past[0].Steps, func(a, b repmgr.FailoverStep) int { return cmp.Compare(a.After, b.After) }), past[0])
			require.Less(t, at["stopped"], at["promoted"], past[0])
			require.Less(t, at["promoted"], at["elected"], past[0])
		})
	}
}

// waitStreams waits until a standby streams from the primary.
func waitStreams(t *testing.T, primary, standby *node) {
	t.Helper()
	pgtest.WaitFor(t, standby.cfg.NodeName+" to stream from "+primary.cfg.NodeName, func(context.Context) error {
		if got := primary.QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = $1`, standby.cfg.NodeName); got != "1" {
			return fmt.Errorf("%s streams", got)
		}
		return nil
	})
}

// With two nodes the old primary's vote is needed: its server is started as a standby first.
func TestSwitchover_TwoNodes(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousQuorum)
	res, err := nodes[0].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(2), res.To.ID)
	waitStreams(t, nodes[1], nodes[0])
}

// Everything that stands in the way is named at once, and nothing was changed.
func TestSwitchover_Refused(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	ctx := t.Context()
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET priority = 0 WHERE node_id = 2`)
	waitSame(t, nodes[0], nodes[1])
	waitLooked(t, nodes)
	_, err := nodes[1].Switchover(ctx, repmgr.SwitchoverOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "its priority is 0")
	p, err := nodes[1].PlanSwitchover(ctx, repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	require.Equal(t, "target_unfit", p.Obstacles[0].Code)
	require.Len(t, p.Steps, 7)

	_, err = nodes[0].Switchover(ctx, repmgr.SwitchoverOptions{To: 1})
	require.ErrorContains(t, err, "it is the primary already")
	_, err = nodes[0].Switchover(ctx, repmgr.SwitchoverOptions{To: 9})
	require.ErrorIs(t, err, repmgr.ErrNotRegistered)
	res, err := nodes[0].Switchover(ctx, repmgr.SwitchoverOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(3), res.To.ID, "the one that may be promoted")
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT max(term) FROM repmgr.rules`))

	_, err = nodes[0].Pause(ctx, repmgr.PauseOptions{})
	require.NoError(t, err)
	waitLooked(t, nodes)
	_, err = nodes[2].Switchover(ctx, repmgr.SwitchoverOptions{})
	require.ErrorContains(t, err, "failover is paused")
}

// A switchover that was asked for is taken back on any node until it begins, and then nothing of it happens: never both. Meanwhile
// all daemons know of it, and another one is refused.
func TestSwitchover_TakenBack(t *testing.T) {
	t.Parallel()
	nodes, monitors := startCluster(t, 3, repmgr.SynchronousQuorum)
	ctx := t.Context()
	_, err := nodes[2].CancelSwitchover(ctx, repmgr.SwitchoverOptions{})
	require.ErrorIs(t, err, repmgr.ErrNotScheduled)
	at := time.Now().Add(time.Hour)
	res, err := nodes[1].Switchover(ctx, repmgr.SwitchoverOptions{At: at})
	require.NoError(t, err)
	require.True(t, res.Scheduled)
	_, err = nodes[2].Switchover(ctx, repmgr.SwitchoverOptions{At: at})
	require.ErrorContains(t, err, "another one was asked for")
	pgtest.WaitFor(t, "all daemons to know of it", func(context.Context) error {
		for _, m := range monitors {
			if h, ok := m.View().Scheduled(); !ok || h.Target != 2 {
				return fmt.Errorf("%s sees %v", m.View().Node, h)
			}
		}
		return nil
	})
	for _, dry := range []bool{true, false} {
		res, err = nodes[2].CancelSwitchover(ctx, repmgr.SwitchoverOptions{DryRun: dry})
		require.NoError(t, err)
		require.Equal(t, []any{repmgr.NodeID(1), repmgr.NodeID(2), dry}, []any{res.From.ID, res.To.ID, res.DryRun})
		require.WithinDuration(t, at, res.At, time.Second)
	}
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'standby_switchover' AND NOT successful AND details LIKE 'request %: it was taken back before it began'`))
	_, err = nodes[2].CancelSwitchover(ctx, repmgr.SwitchoverOptions{})
	require.ErrorIs(t, err, repmgr.ErrNotScheduled)
	waitLooked(t, nodes)
	_, scheduled := monitors[1].View().Scheduled()
	require.False(t, scheduled)

	primary, term := 0, 1
	for range 4 { // now they meet: the one that waits for its outcome is told who was first
		to := (primary + 1) % 3
		outcome := make(chan error, 1)
		go func() {
			_, err := nodes[to].Switchover(ctx, repmgr.SwitchoverOptions{})
			outcome <- err
		}()
		back := errors.New("not tried")
		var failed error
		pgtest.WaitFor(t, "the outcome", func(ctx context.Context) error {
			select {
			case failed = <-outcome:
				return nil
			default:
			}
			if back != nil {
				_, back = nodes[(primary+2)%3].CancelSwitchover(ctx, repmgr.SwitchoverOptions{})
			}
			return errors.New("none yet")
		})
		if back == nil {
			require.ErrorIs(t, failed, repmgr.ErrRefused)
			require.ErrorContains(t, failed, "taken back")
		} else {
			require.NoError(t, failed)
			primary, term = to, term+1
		}
		require.Equal(t, fmt.Sprint(term), nodes[primary].QueryString(t, `SELECT max(term) FROM repmgr.rules`))
		for i, n := range nodes {
			if i != primary {
				waitStreams(t, nodes[primary], n)
			}
		}
	}
}

// What forbids a failover, because the loss of the primary may be none, does not make a switchover stop the primary in vain:
// the daemons have just seen it, no other node is at its location, the command says no, and commits wait for nobody.
func TestSwitchover_AsksNotWhatAFailoverAsks(t *testing.T) {
	t.Parallel()
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, mode)
			for _, n := range nodes {
				n.cfg.PrimaryVisibilityConsensus, n.cfg.FailoverValidationCommand = true, "exit 1"
			}
			nodes[0].Exec(t, `UPDATE repmgr.nodes SET location = 'elsewhere' WHERE node_id = 1`)
			startMonitors(t, nodes)
			waitReady(t, nodes, 3, mode)
			res, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
			require.NoError(t, err)
			require.Equal(t, repmgr.NodeID(2), res.To.ID)
			require.Equal(t, int64(2), res.Term)
			waitStreams(t, nodes[1], nodes[0])
		})
	}
}

// The primary is not stopped for a target that is lost meanwhile: in its checkpoint, however long that takes, or when the others are told.
func TestSwitchover_TargetIsLost(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	primary, target := nodes[0], nodes[1]
	lose := func() error { return nil }
	primary.cfg.HoldClients = func(context.Context) (func(), error) { return func() {}, lose() }
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	started := primary.QueryString(t, `SELECT pg_postmaster_start_time()`)
	goesOn := func(err error, why string) {
		t.Helper()
		require.ErrorIs(t, err, repmgr.ErrRefused)
		require.ErrorContains(t, err, why)
		require.Equal(t, started, primary.QueryString(t, `SELECT pg_postmaster_start_time()`), "it was not stopped")
	}

	ended, goOn := inCheckpoint(t, primary, func() error {
		_, err := primary.Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
		return err
	})
	target.Kill()
	goesOn(<-ended, `node "node2" (ID: 2) is lost: its server`)
	goOn()
	target.StartAgain()
	waitStreams(t, primary, target)
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)

	lose = func() error {
		target.Kill()
		for ctx := t.Context(); ; {
			peers := primary.daemon.View().Peers
			if i := slices.IndexFunc(peers, func(p election.Peer) bool { return p.ID == 2 }); peers[i].Answer != election.Answers {
				return nil
			}
			if err := wait.Pause(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
	_, err := primary.Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
	goesOn(err, `tell node "node2" (ID: 2) that the handover begins: its server`)
}

// A shutdown that hangs is given up: the primary goes on, and the error says why.
func TestSwitchover_ShutdownHangs(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	pid := pgtest.Query[int](t, nodes[0].Server, `SELECT pid FROM pg_stat_replication WHERE application_name = 'node3'`)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	_, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{Timeout: 2 * time.Second})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "goes on as the primary")
	pgtest.WaitFor(t, "the primary to be back", func(ctx context.Context) error {
		s, err := repmgr.Connect(ctx, nodes[0].Conninfo())
		if err != nil {
			return err
		}
		defer s.Close()
		st, err := s.Status(ctx)
		if err == nil && st.InRecovery {
			err = fmt.Errorf("it runs as a standby")
		}
		return err
	})
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT max(term) FROM repmgr.rules`))
}

// What a daemon leaves behind that dies in a switchover before it stops its server: the next one
// takes it back and says so, and it does not stand in the way of the next switchover.
func TestSwitchover_LeftBehind(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	for _, n := range nodes {
		server, err := registry.Connect(t.Context(), "", n.Conninfo())
		require.NoError(t, err)
		require.NoError(t, server.SetHandover(t.Context(), election.Handover{ID: "abc", Term: 1, Target: 2, Limit: time.Second, Hold: time.Hour}))
		server.Close()
	}
	pgtest.WaitFor(t, "the event", func(context.Context) error {
		if got := nodes[0].QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'standby_switchover' AND NOT successful AND details LIKE 'request abc: %goes on as the primary%'`); got != "1" {
			return fmt.Errorf("%s events", got)
		}
		return nil
	})
	_, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
}

// A standby that is down in a switchover still has the address of the old primary when it comes
// back. That one feeds it, as a standby: it is to stream from the new primary all the same.
func TestSwitchover_StandbyIsDown(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	nodes[2].Stop("fast")
	_, err := nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	nodes[2].StartAgain()
	waitStreams(t, nodes[1], nodes[2])
}

// From PostgreSQL 17 on a standby keeps copies of logical slots, for which it needs a database in
// primary_conninfo, and a slot: their consumers miss nothing.
func TestSwitchover_KeepsLogicalSlots(t *testing.T) {
	t.Parallel()
	set := map[string]string{"wal_level": "logical", "sync_replication_slots": "on", "hot_standby_feedback": "on"}
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	if s.Major < 17 {
		t.Skip("logical slots do not survive before PostgreSQL 17")
	}
	for name, value := range set {
		s.Exec(t, `ALTER SYSTEM SET `+name+` = '`+value+`'`)
	}
	s.Stop("fast")
	s.StartAgain()
	nodes := []*node{newNode(t, 1, s, automatic(repmgr.SynchronousQuorum), withSlots)}
	_, err := nodes[0].RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	for id := repmgr.NodeID(2); id <= 3; id++ {
		nodes = append(nodes, addStandby(t, nodes[0], id, automatic(repmgr.SynchronousQuorum), withSlots))
	}
	for _, n := range nodes {
		n.cfg.DataDirectory = n.Dir
		n.monitor(t)
	}
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	const changes = `SELECT count(*) FROM pg_logical_slot_get_changes('consumer', NULL, NULL) WHERE data LIKE '%INSERT%'`
	nodes[0].Exec(t, `CREATE TABLE seen (i int)`)
	nodes[0].Exec(t, `SELECT pg_create_logical_replication_slot('consumer', 'test_decoding', false, false, true)`)
	pgtest.WaitFor(t, "the standbys to have a copy of the slot", func(context.Context) error {
		nodes[0].Exec(t, `INSERT INTO seen VALUES (0)`) // a copy is ready when the slot has moved on
		nodes[0].QueryString(t, changes)
		for _, n := range nodes[1:] {
			if got := n.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary`); got != "1" {
				return fmt.Errorf("%s has %s", n.cfg.NodeName, got)
			}
		}
		return nil
	})
	nodes[0].QueryString(t, changes)
	nodes[0].Exec(t, `INSERT INTO seen VALUES (1), (2)`)
	_, err = nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{})
	require.NoError(t, err)
	require.Equal(t, "2", nodes[1].QueryString(t, changes+` AND data ~ '[12]$'`)) // what was read before may come again
	r, err := nodes[1].Doctor(t.Context())
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool { return f.ID == "failover_slot_missing" && f.NodeID == 1 }), r.Findings)
	waitValue(t, nodes[0], "0", `SELECT count(*) FROM pg_replication_slots WHERE failover AND NOT synced`) // which kept it from having a copy
}
