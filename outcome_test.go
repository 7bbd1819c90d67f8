package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
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

const (
	off    = repmgr.SynchronousOff
	quorum = repmgr.SynchronousQuorum

	behind = `SELECT count(*) FROM pg_stat_replication WHERE flush_lsn IS DISTINCT FROM pg_current_wal_insert_lsn()` // how many do not have all
)

// foretold is a cluster in some trouble, and what becomes of it when its primary dies.
type foretold struct {
	mode    repmgr.SynchronousMode
	nodes   int                                                                // 0: 3
	start   func(t *testing.T, nodes int, mode repmgr.SynchronousMode) []*node // nil: startCluster
	stage   func(t *testing.T, nodes []*node) []*node                          // returns a node that was added
	holds   string                                                             // what standing says then; empty: no matter
	freeze  bool                                                               // the primary falls silent, and is not killed
	ask     int                                                                // index of the standby that is asked; 0: the last one
	winner  repmgr.NodeID                                                      // 0: nobody
	refusal election.Refusal                                                   //
	check   func(e repmgr.Explanation) bool                                    // of the forecast, what else
}

// only stages what adds no node.
func only(f func(t *testing.T, nodes []*node)) func(*testing.T, []*node) []*node {
	return func(t *testing.T, nodes []*node) []*node { f(t, nodes); return nil }
}

func forecasts() map[string]foretold {
	record := func(column, value string, id int) func(*testing.T, []*node) {
		return func(t *testing.T, nodes []*node) {
			nodes[0].Exec(t, fmt.Sprintf(`UPDATE repmgr.nodes SET %s = '%s' WHERE node_id = %d`, column, value, id))
			for _, n := range nodes[1:] {
				waitValue(t, n, value, fmt.Sprintf(`SELECT %s::text FROM repmgr.nodes WHERE node_id = %d`, column, id))
			}
		}
	}
	broken := func(ids ...int) func(*testing.T, []*node) {
		return func(t *testing.T, nodes []*node) {
			for _, id := range ids {
				breakConfig(t, nodes[id-1])
				nodes[id-1].events.wait(t, repmgr.EventPledgeAbility)
			}
		}
	}
	return map[string]foretold{
		"plain, off":                          {mode: off, winner: 2},
		"plain, quorum":                       {mode: quorum, holds: "3/2/1", winner: 2},
		"priority 0":                          {mode: quorum, stage: only(record("priority", "0", 2)), holds: "3/1/1", winner: 3},
		"priority 0, off":                     {mode: off, stage: only(record("priority", "0", 2)), winner: 3},
		"a higher priority":                   {mode: off, stage: only(record("priority", "101", 3)), winner: 3},
		"another location than the primary's": {mode: off, stage: only(record("location", "elsewhere", 2)), winner: 3},
		"nobody of the primary's location": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			record("location", "elsewhere", 2)(t, nodes)
			record("location", "elsewhere", 3)(t, nodes)
		}), refusal: election.RefusedLocation},
		"a delay":                          {mode: quorum, stage: only(func(t *testing.T, nodes []*node) { nodes[1].set(t, `recovery_min_apply_delay = '1h'`) }), holds: "3/1/1", winner: 3},
		"replay paused, off":               {mode: off, stage: only(func(t *testing.T, nodes []*node) { nodes[1].Exec(t, `SELECT pg_wal_replay_pause()`) }), winner: 2},
		"replay paused, quorum":            {mode: quorum, stage: only(func(t *testing.T, nodes []*node) { nodes[1].Exec(t, `SELECT pg_wal_replay_pause()`) }), holds: "3/2/1", winner: 2},
		"one broken configuration of two":  {mode: off, stage: only(broken(2)), refusal: election.RefusedNoPledge},
		"two broken configurations of two": {mode: quorum, stage: only(broken(2, 3)), refusal: election.RefusedNoPledge},
		"one broken configuration of four": {mode: off, nodes: 5, stage: only(broken(2)), winner: 3},
		"a promotion that was undone": {mode: quorum, stage: only(func(t *testing.T, nodes []*node) {
			nodes[2].stop()
			nodes[2].stray(t, nodes[2].Kill)
		}), holds: "3/1/1", ask: 1, winner: 2},
		"no slots on the likely winner": {
			mode: off, start: func(t *testing.T, _ int, mode repmgr.SynchronousMode) []*node { return startWithSlots(t, mode) },
			stage: only(func(t *testing.T, nodes []*node) {
				nodes[1].Exec(t, `ALTER SYSTEM SET max_replication_slots = 0`)
				nodes[1].Restart()
			}), winner: 3,
			check: func(e repmgr.Explanation) bool { return e.Forecast.Candidates[1].Key == election.KeyServes },
		},
		"a standby that takes no connections": {mode: off, stage: only(func(t *testing.T, nodes []*node) { nodes[1].closeToAll(t, nodes[0]) }), refusal: election.RefusedNoMajority},
		"one of four takes no connections":    {mode: quorum, nodes: 5, stage: only(func(t *testing.T, nodes []*node) { nodes[1].closeToAll(t, nodes[0]) }), holds: "5/3/2", winner: 3},
		"a setting that is not in force": {
			mode: quorum, start: func(t *testing.T, nodes int, mode repmgr.SynchronousMode) []*node {
				all := startNodes(t, nodes, mode)
				stopCheckpointer(t, all[0])
				startMonitors(t, all)
				all[0].events.wait(t, repmgr.EventSyncUnproven)
				return all
			}, holds: "3/2/0", refusal: election.RefusedSync,
		},
		"a twin of a standby": {mode: quorum, start: startWithTwin, holds: "3/1/1", winner: 2},
		"a name that PostgreSQL reads differently": {mode: quorum, start: func(t *testing.T, nodes int, mode repmgr.SynchronousMode) []*node {
			all := startNodes(t, nodes, mode)
			all[0].Exec(t, `UPDATE repmgr.nodes SET node_name = '*' WHERE node_id = 2`)
			all[1].set(t, `primary_conninfo = '`+strings.ReplaceAll(all[0].Conninfo("application_name=*"), "'", "''")+`'`)
			startMonitors(t, []*node{all[0], all[2]})
			return all
		}, holds: "3/1/1", winner: 2},
		"a witness": {mode: quorum, nodes: 2, stage: func(t *testing.T, nodes []*node) []*node {
			w := startWitness(t, 9, automatic(quorum))
			_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: nodes[0].Conninfo()})
			require.NoError(t, err)
			w.monitor(t)
			waitValue(t, w, "3/1/1", standing)
			return []*node{w}
		}, holds: "3/1/1", ask: 1, winner: 2},
		"a manual daemon on the primary": {mode: off, freeze: true, stage: only(func(t *testing.T, nodes []*node) {
			nodes[0].stop()
			nodes[0].cfg.Failover = repmgr.FailoverManual
			nodes[0].monitor(t)
		}), refusal: election.RefusedUnfenced, check: func(e repmgr.Explanation) bool { return e.Forecast.Unfenced == election.UnguardedManual }},
		"a manual daemon on the likely winner": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			nodes[1].stop()
			nodes[1].cfg.Failover = repmgr.FailoverManual
			nodes[1].monitor(t)
		}), winner: 3},
		"no daemon on the likely winner, off":    {mode: off, stage: only(func(_ *testing.T, nodes []*node) { nodes[1].stop() }), winner: 3},
		"no daemon on the likely winner, quorum": {mode: quorum, stage: only(func(_ *testing.T, nodes []*node) { nodes[1].stop() }), winner: 2},
		"paused": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			_, err := nodes[0].Pause(t.Context(), repmgr.PauseOptions{})
			require.NoError(t, err)
		}), refusal: election.RefusedPaused},
		"a cascade": {mode: quorum, nodes: 4, start: func(t *testing.T, nodes int, mode repmgr.SynchronousMode) []*node {
			all := startNodes(t, nodes, mode)
			_, err := all[3].Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 3})
			require.NoError(t, err)
			startMonitors(t, all)
			return all
		}, holds: "4/2/1", winner: 2},
		"WAL that is gone": {mode: off, start: startWithLostWAL(2), winner: 3, check: func(e repmgr.Explanation) bool {
			return e.Voters[1].LostWAL != nil && e.Voters[2].LostWAL == nil && e.Forecast.Candidates[1].BehindBest > 0
		}},
		"WAL that is gone, of both": {mode: off, start: startWithLostWAL(3), winner: 3, check: func(e repmgr.Explanation) bool {
			return e.Voters[1].LostWAL != nil && e.Voters[2].LostWAL != nil && e.Loss.Bytes > 0
		}},
		"a recovery target":       {mode: quorum, stage: only(func(t *testing.T, nodes []*node) { nodes[1].replayToTarget(t, nodes[0]) }), holds: "3/1/1", winner: 3},
		"max_connections too low": {mode: quorum, stage: only(func(t *testing.T, nodes []*node) { growMaxConnections(t, nodes[0], nodes[2], nodes[1]) }), holds: "3/1/1", winner: 3},
		"another primary that nobody can stop": {mode: off, nodes: 5, stage: only(func(t *testing.T, nodes []*node) {
			nodes[4].stop()
			nodes[4].Exec(t, `SELECT pg_promote()`)
		}), ask: 1, refusal: election.RefusedUsurper},
		"a long query on the likely winner": {mode: off, stage: only(func(t *testing.T, nodes []*node) { nodes[1].holdReplay(t, nodes[0]) }), winner: 2},
		"a slow archive": {mode: quorum, stage: only(func(t *testing.T, nodes []*node) {
			if nodes[0].Major < 14 {
				t.Skip("before PostgreSQL 14 restore_command needs a restart")
			}
			for _, n := range nodes[1:] {
				n.set(t, `restore_command = 'sleep 1; false'`)
			}
		}), holds: "3/2/1", winner: 2},
		"a likely winner that rejects replication": {mode: quorum, start: func(t *testing.T, count int, mode repmgr.SynchronousMode) []*node {
			nodes := startNodes(t, count, mode)
			_ = breakReplication(t, nodes[1])
			startMonitors(t, nodes)
			waitReady(t, nodes, count, mode)
			return nodes
		}, winner: 3, check: func(e repmgr.Explanation) bool {
			return e.Forecast.Candidates[1].Key == election.KeyServes && len(e.AtRisk) > 0
		}},
		"a daemon that can not stop the likely winner": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			nodes[1].stop()
			nodes[1].cfg.DataDirectory = t.TempDir()
			nodes[1].monitor(t)
			nodes[1].events.wait(t, repmgr.EventFenceAbility)
		}), winner: 3},
		"a witness, off": {mode: off, nodes: 2, stage: func(t *testing.T, nodes []*node) []*node {
			w := startWitness(t, 9, automatic(off))
			_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: nodes[0].Conninfo()})
			require.NoError(t, err)
			w.monitor(t)
			waitValue(t, w, "3/0/0", standing)
			return []*node{w}
		}, ask: 1, winner: 2},
		"a primary that falls silent": {mode: quorum, freeze: true, holds: "3/2/1", winner: 2},
		"failovers_per_hour":          {mode: off, start: startWith(func(c *repmgr.Config) { c.FailoversPerHour = 0 }), refusal: election.RefusedTooMany},
		"maximum_lag_on_failover": {mode: off, start: startWith(func(c *repmgr.Config) { c.MaximumLagOnFailover = 1 << 20 }), stage: only(func(t *testing.T, nodes []*node) {
			_ = breakReplication(t, nodes[0])
			nodes[0].Exec(t, `CREATE TABLE not_sent AS SELECT generate_series(1, 100000)`)
		}), refusal: election.RefusedLag},
		"no majority": {mode: quorum, stage: only(func(_ *testing.T, nodes []*node) {
			nodes[2].stop()
			nodes[2].Stop("fast")
		}), holds: "3/1/1", ask: 1, refusal: election.RefusedNoMajority},
		"the user's own synchronous_standby_names": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			for _, n := range nodes {
				n.set(t, `synchronous_standby_names = 'ANY 1 (*)'`)
			}
		}), winner: 2},
		"WAL that no standby has received": {mode: off, stage: only(func(t *testing.T, nodes []*node) {
			_ = breakReplication(t, nodes[0])
			nodes[0].Exec(t, `CREATE TABLE not_sent AS SELECT generate_series(1, 10000)`)
		}), winner: 2, check: func(e repmgr.Explanation) bool { return e.Loss.Bytes > 100000 }},
	}
}

// What is foretold is what happens: whatever the trouble, the one wins that was
// named, or nobody does for the reason that was named, and no more is lost.
func TestExplain_ForecastIsTheOutcome(t *testing.T) {
	for name, test := range forecasts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

func (f foretold) run(t *testing.T) {
	nodes := f.begin(t)
	if f.stage != nil {
		nodes = append(nodes, f.stage(t, nodes)...)
	}
	if f.holds != "" {
		waitValue(t, nodes[0], f.holds, standing)
	}
	nodes[0].Exec(t, `CREATE TABLE acknowledged AS SELECT generate_series(1, 100) AS i`)
	asked := nodes[len(nodes)-1]
	if f.ask != 0 {
		asked = nodes[f.ask]
	}
	if f.mode == quorum { // with off it must be there: else nobody takes over who has not seen the death
		nodes[0].stop()
	}
	waitLooked(t, nodes)
	quiet(t, nodes)
	var err error
	asked.Cluster, err = repmgr.New(asked.cfg)
	require.NoError(t, err)
	wrote, unflushed := "", int64(0)
	e := explained(t, asked, repmgr.ExplainOptions{}, func(e repmgr.Explanation) bool {
		last := wrote // to look may write, too: hints on pages
		wrote = nodes[0].QueryString(t, `SELECT pg_current_wal_insert_lsn() || ' ' || (`+behind+`)`)
		if wrote == last && strings.HasSuffix(wrote, " 0") && f.is(e) && (f.check == nil || f.check(e)) {
			return true
		}
		unflushed, err = strconv.ParseInt(nodes[0].QueryString(t, `SELECT (pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn())::bigint`), 10, 64) // it may reach the disk after the next look
		require.NoError(t, err)
		return false
	})
	t.Logf("\n%s", e)
	if f.freeze {
		nodes[0].Freeze()
	} else {
		nodes[0].Kill()
	}
	if f.refusal != "" {
		for !strings.Contains(asked.events.wait(t, repmgr.EventFailoverRefused).Details, string(f.refusal)) {
		}
		require.Equal(t, "t", asked.QueryString(t, `SELECT pg_is_in_recovery()`))
		return
	}
	winner := waitPrimary(t, slices.DeleteFunc(nodes[1:], func(n *node) bool { return n.cfg.NodeName == "node9" })...)
	require.Equal(t, f.winner, winner.cfg.NodeID)
	f.loss(t, e, unflushed, winner)
}

// is says whether that is the forecast. Of a primary that falls silent and that
// nobody is sure to stop it has a word of its own.
func (f foretold) is(e repmgr.Explanation) bool {
	if f.refusal == election.RefusedUnfenced {
		return e.Forecast.Refusal == "" && e.Forecast.Unfenced != ""
	}
	return e.Forecast.Refusal == f.refusal && e.Forecast.Winner == int32(f.winner) && (f.mode == quorum || e.Forecast.Unfenced == "" || f.refusal == election.RefusedPaused)
}

func (f foretold) begin(t *testing.T) (nodes []*node) {
	if f.nodes == 0 {
		f.nodes = 3
	}
	if f.start != nil {
		return f.start(t, f.nodes, f.mode)
	}
	nodes, _ = startCluster(t, f.nodes, f.mode)
	return nodes
}

// startWith starts a cluster with that in its configuration.
func startWith(change func(*repmgr.Config)) func(*testing.T, int, repmgr.SynchronousMode) []*node {
	return func(t *testing.T, count int, mode repmgr.SynchronousMode) []*node {
		t.Helper()
		nodes := startNodes(t, count, mode)
		for _, n := range nodes {
			change(&n.cfg)
		}
		startMonitors(t, nodes)
		waitReady(t, nodes, count, mode)
		return nodes
	}
}

// quiet lets the primary write nothing any more, waits until those that stream have
// all.
func quiet(t *testing.T, nodes []*node) {
	t.Helper()
	nodes[0].Exec(t, `CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`) // what the daemons write there
	for _, table := range []string{"standby_state", "events", "heartbeat"} {
		nodes[0].Exec(t, `CREATE TRIGGER quiet BEFORE INSERT OR UPDATE ON repmgr.`+table+` FOR EACH ROW EXECUTE FUNCTION nothing()`)
	}
	waitValue(t, nodes[0], "0", behind)
}

// loss holds what is lost against what was foretold, and what the primary had in
// memory only.
func (f foretold) loss(t *testing.T, e repmgr.Explanation, unflushed int64, winner *node) {
	t.Helper()
	past := newestFailover(t, winner)
	require.Equal(t, f.winner, past.PrimaryID)
	require.Equal(t, f.mode == quorum || e.Loss.Bytes == 0, winner.QueryString(t, `SELECT to_regclass('acknowledged') IS NOT NULL`) == "t")
	require.NotNil(t, past.LostBytes)
	if f.mode == off {
		require.GreaterOrEqual(t, e.Loss.Bytes+unflushed, *past.LostBytes)
	}
}

// newestFailover waits for a failover in the history of a new primary.
func newestFailover(t *testing.T, winner *node) repmgr.FailoverRecord {
	t.Helper()
	var past []repmgr.FailoverRecord
	pgtest.WaitFor(t, "the failover in the history", func(ctx context.Context) (err error) {
		if past, err = winner.Failovers(ctx, 1); err == nil && len(past) == 0 {
			err = errors.New("none")
		}
		return err
	})
	return past[0]
}

// replayToTarget makes a standby one that stops its replay at a recovery target.
// The target is made while the standby is down: a server does not start whose target
// lies before what it replayed already.
func (n *node) replayToTarget(t *testing.T, primary *node) {
	t.Helper()
	n.Stop("fast")
	primary.Exec(t, `SELECT pg_create_restore_point('here')`)
	n.amend(t, `recovery_target_name = 'here'`)
	n.StartAgain()
	waitValue(t, n, "t", `SELECT pg_is_wal_replay_paused()`)
}

// closeToAll makes a standby one that streams and takes no connections.
func (n *node) closeToAll(t *testing.T, primary *node) {
	t.Helper()
	n.stop()
	n.Exec(t, `ALTER SYSTEM SET hot_standby = off`)
	n.Stop("fast")
	out, err := exec.Command(filepath.Join(n.BinDir, "pg_ctl"), "start", "-W", "-D", n.Dir, "-l", filepath.Join(t.TempDir(), "log")).CombinedOutput()
	require.NoError(t, err, string(out))
	t.Cleanup(n.Kill)
	pgtest.WaitFor(t, "it to stream", func(ctx context.Context) error { return primary.StreamsTo(ctx, n.cfg.NodeName) })
}

// startWithTwin is a cluster in which a copy of node2 streams under its name.
func startWithTwin(t *testing.T, count int, mode repmgr.SynchronousMode) []*node {
	t.Helper()
	nodes := startNodes(t, count, mode)
	nodes[1].Stop("fast")
	dir := filepath.Join(t.TempDir(), "twin")
	out, err := exec.Command("cp", "-a", nodes[1].Dir, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	nodes[1].StartAgain()
	startMonitors(t, nodes)
	waitReady(t, nodes, count, mode)
	pgtest.StartDir(t, dir, pgtest.Options{Name: "twin", Port: pgtest.Port(t), BinDir: nodes[1].BinDir})
	return nodes
}

// startWithLostWAL is a cluster in which the standbys up to that one were down too
// long, the last of them not as long as the others.
func startWithLostWAL(last int) func(*testing.T, int, repmgr.SynchronousMode) []*node {
	return func(t *testing.T, count int, mode repmgr.SynchronousMode) []*node {
		t.Helper()
		server := pgtest.Start(t, pgtest.Options{Name: "node1", WALSegmentSizeMB: 1, Settings: map[string]string{"max_wal_size": "2MB", "min_wal_size": "2MB", "wal_keep_size": "64MB"}})
		nodes := []*node{newNode(t, 1, server, automatic(mode))}
		_, err := nodes[0].RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
		require.NoError(t, err)
		for id := 2; id <= count; id++ {
			nodes = append(nodes, addStandby(t, nodes[0], repmgr.NodeID(id), automatic(mode)))
		}
		for _, n := range nodes {
			n.cfg.DataDirectory = n.Dir
		}
		for _, n := range nodes[1:last] {
			waitSame(t, nodes[0], n)
			n.Stop("fast")
			nodes[0].Exec(t, fmt.Sprintf(`CREATE TABLE missed_by_%s (i int)`, n.cfg.NodeName))
		}
		if last < count {
			nodes[0].Exec(t, `SELECT pg_create_physical_replication_slot('kept', true)`) // for the others
			nodes[count-1].set(t, `primary_slot_name = 'kept'`)
			waitValue(t, nodes[0], "t", `SELECT active FROM pg_replication_slots`)
		}
		nodes[0].set(t, `wal_keep_size = 0`)
		recycle(t, nodes[0])
		for _, n := range nodes[1:last] {
			n.StartAgain()
		}
		startMonitors(t, nodes)
		waitReady(t, nodes, count, mode)
		return nodes
	}
}
