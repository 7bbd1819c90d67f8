package repmgr_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const (
	newestRule = `FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`
	// how many voters the newest rule has, how many standbys commits may wait for, and for how many they do
	standing = `SELECT coalesce((SELECT format('%s/%s/%s', cardinality(voters), cardinality(sync_standbys), acks) ` + newestRule + `), 'none')`
)

// set changes settings of a running server.
func (n *node) set(t *testing.T, settings ...string) {
	t.Helper()
	for _, s := range settings {
		n.Exec(t, `ALTER SYSTEM SET `+s)
	}
	n.Exec(t, `SELECT pg_reload_conf()`)
}

// holdReplay lets the conflict of the replay with a session last until that ends:
// the session is held for the rest of the test.
func (n *node) holdReplay(t *testing.T, primary *node) {
	t.Helper()
	n.set(t, `max_standby_streaming_delay = -1`)
	primary.Exec(t, `CREATE TABLE held AS SELECT generate_series(1, 100) AS i`)
	waitSame(t, primary, n)
	c := n.Conn(t)
	_, err := c.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM held`)
	require.NoError(t, err)
	primary.Exec(t, `DELETE FROM held`)
	primary.Exec(t, `VACUUM held`)
	waitValue(t, n, "t", `SELECT coalesce(bool_or(wait_event LIKE 'RecoveryConflict%'), false) FROM pg_stat_activity WHERE backend_type = 'startup'`)
}

// growMaxConnections makes the replay of a standby wait for a setting that it does not have.
func growMaxConnections(t *testing.T, primary, ready, waits *node) {
	t.Helper()
	if primary.Major < 14 {
		t.Skip("before PostgreSQL 14 such a standby ends by itself")
	}
	for _, n := range []*node{ready, primary} {
		n.Exec(t, `ALTER SYSTEM SET max_connections = 110`)
		n.Restart()
	}
	waitValue(t, waits, "t", `SELECT pg_is_wal_replay_paused()`)
	waitValue(t, primary, "2", `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`)
}

// Whatever keeps the replay of a voter from coming to an end, the failover comes: a
// voter only stops, and the replay of the winner is helped. Nothing acknowledged is
// lost, and no server is promoted or ended by being resumed.
func TestFailover_ReplayThatDoesNotEnd(t *testing.T) {
	for name, test := range map[string]struct {
		hinder func(t *testing.T, nodes []*node)
		winner repmgr.NodeID // 0: one of the two
		sync   int           // standbys that commits may wait for
	}{
		"an archive that takes 100 ms": {func(t *testing.T, nodes []*node) {
			if nodes[0].Major < 14 {
				t.Skip("before PostgreSQL 14 restore_command needs a restart")
			}
			for _, n := range nodes[1:] {
				n.set(t, `restore_command = 'sleep 0.1; false'`)
			}
		}, 0, 2},
		"an archive that takes 10 s": {func(t *testing.T, nodes []*node) {
			if nodes[0].Major < 14 {
				t.Skip("before PostgreSQL 14 restore_command needs a restart")
			}
			for _, n := range nodes[1:] {
				n.set(t, `restore_command = 'sleep 10; false'`)
			}
		}, 0, 2},
		"a voter that applies with a delay": {func(t *testing.T, nodes []*node) { nodes[2].set(t, `recovery_min_apply_delay = '1h'`) }, 2, 1},
		"a long query on both": {func(t *testing.T, nodes []*node) {
			nodes[1].holdReplay(t, nodes[0])
			nodes[0].Exec(t, `DROP TABLE held`)
			nodes[2].set(t, `max_standby_streaming_delay = -1`)
		}, 0, 2},
		"a pause by an operator": {func(t *testing.T, nodes []*node) {
			for _, n := range nodes[1:] {
				n.Exec(t, `SELECT pg_wal_replay_pause()`)
			}
		}, 0, 2},
		"much to replay": {func(t *testing.T, nodes []*node) { // as much as REPMGR_TEST_BACKLOG_MB says
			mb, err := strconv.Atoi(cmp.Or(os.Getenv("REPMGR_TEST_BACKLOG_MB"), "20"))
			require.NoError(t, err)
			for _, n := range nodes[1:] {
				n.Exec(t, `SELECT pg_wal_replay_pause()`)
			}
			nodes[0].Exec(t, `CREATE TABLE much (t text)`)
			for range mb {
				nodes[0].Exec(t, `INSERT INTO much SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000) i`)
			}
		}, 0, 2},
		"a recovery target on a voter":     {func(t *testing.T, nodes []*node) { nodes[2].replayToTarget(t, nodes[0]) }, 2, 1},
		"max_connections lower on a voter": {func(t *testing.T, nodes []*node) { growMaxConnections(t, nodes[0], nodes[1], nodes[2]) }, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
			waitSame(t, nodes[0], nodes[2])
			startMonitors(t, nodes)
			waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
			test.hinder(t, nodes)
			waitValue(t, nodes[0], fmt.Sprintf("3/%d/1", test.sync), standing)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
			w.WaitForMore(t, 30)
			explanation, err := nodes[1].Explain(t.Context(), repmgr.ExplainOptions{})
			require.NoError(t, err)
			require.Empty(t, explanation.Blocked)
			nodes[0].Kill()
			nodes[0].stop()
			winner := waitPrimary(t, nodes[1:]...)
			w.WaitForMore(t, 30)
			w.Stop()
			t.Logf("outage %s, foretold %s", w.LongestGap().Duration().Round(time.Millisecond), explanation.Outages[0].Total)
			w.Verify(t, winner.Conninfo())
			if test.winner != 0 { // else it is who has more, of two that are under load
				require.EqualValues(t, test.winner, explanation.Forecast.Winner)
				require.Equal(t, test.winner, winner.cfg.NodeID)
				require.Equal(t, "t", nodes[2].QueryString(t, `SELECT pg_is_in_recovery()`))
			}
		})
	}
}

// amend adds to the postgresql.auto.conf of a server that does not run.
func (n *node) amend(t *testing.T, line string) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(n.Dir, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString(line + "\n")
	require.NoError(t, err)
	require.NoError(t, file.Close())
}

// The archive of a standby is out of force while that streams, and is given back
// when its Monitor ends. One that is set meanwhile does not wait for the next look.
func TestMonitor_KeepsTheArchiveOut(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousOff)
	if nodes[0].Major < 14 {
		t.Skip("before PostgreSQL 14 restore_command needs a restart")
	}
	const command = `sleep 0.1; test '%f' = x`
	nodes[1].set(t, `restore_command = '`+strings.ReplaceAll(command, "'", "''")+`'`)
	nodes[0].monitor(t)
	nodes[1].cfg.MonitorInterval = time.Hour
	m, stop := nodes[1].monitor(t)
	waitValue(t, nodes[1], "", `SELECT current_setting('restore_command')`)
	pgtest.WaitFor(t, "the Monitor to rest", func(context.Context) error {
		if at := m.Status().LookedAt; time.Since(at) < 2*time.Second {
			return fmt.Errorf("it looked at %s", at)
		}
		return nil
	})
	nodes[1].set(t, `restore_command = 'false'`)
	waitValue(t, nodes[1], "=false", `SELECT current_setting('repmgr.saved_restore_command')`)
	stop()
	waitValue(t, nodes[1], "false", `SELECT current_setting('restore_command')`)
}

// stray promotes a node outside the rules, lets it write, ends it and starts it as
// a standby again, of a primary that it can not follow any more.
func (n *node) stray(t *testing.T, stop func()) {
	t.Helper()
	n.Exec(t, `SELECT pg_promote()`)
	n.Exec(t, `SET synchronous_commit = local; CREATE TABLE astray AS SELECT generate_series(1, 10000) AS i`)
	stop()
	require.NoError(t, os.WriteFile(filepath.Join(n.Dir, "standby.signal"), nil, 0o600))
	n.StartAgain()
}

// A node that somebody promoted by hand and made a standby again votes and never
// wins, however new its timeline is, and its shutdown says nothing of the primary's.
func TestFailover_StrayNeverWins(t *testing.T) {
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
			_, stop1 := nodes[0].monitor(t)
			nodes[1].monitor(t)
			_, stop3 := nodes[2].monitor(t)
			waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
			stop3()
			nodes[2].stray(t, map[string]func(){"killed": nodes[2].Kill, "stopped": func() { nodes[2].Stop("fast") }}[how])
			waitValue(t, nodes[0], "{2}/1", `SELECT coalesce((SELECT format('%s/%s', sync_standbys, acks) `+newestRule+`), 'none')`)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo()}})
			w.WaitForMore(t, 30)
			explanation, err := nodes[1].Explain(t.Context(), repmgr.ExplainOptions{})
			require.NoError(t, err)
			require.EqualValues(t, 2, explanation.Forecast.Winner)
			nodes[0].Kill()
			stop1()
			require.Equal(t, repmgr.NodeID(2), waitPrimary(t, nodes[1:]...).cfg.NodeID)
			w.WaitForMore(t, 30)
			w.Stop()
			w.Verify(t, nodes[1].Conninfo())
		})
	}
}

// A node with WAL of its own, which the crash recovery of a rejoin gave it, votes and
// never wins, and the end of that WAL, a shutdown in order, says nothing of the primary.
func TestFailover_OwnWALNeverWins(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	require.NoError(t, ballot.Store(t.Context(), nodes[1].Conn(t), "repmgr.own_wal", `{"timeline": 1, "lsn": "0/1000000"}`))
	pgtest.WaitFor(t, "the forecast to name another winner", func(ctx context.Context) error {
		e, err := nodes[2].Explain(ctx, repmgr.ExplainOptions{})
		if err == nil && (e.Forecast.Winner != 3 || !slices.ContainsFunc(e.Forecast.Candidates, func(c election.Candidate) bool { return c.ID == 2 && c.Unfit == election.UnfitOwnWAL })) {
			err = fmt.Errorf("%+v", e.Forecast)
		}
		return err
	})
	waitValue(t, nodes[0], "{3}/1", `SELECT coalesce((SELECT format('%s/%s', sync_standbys, acks) `+newestRule+`), 'none')`)
	nodes[0].Kill()
	nodes[0].stop()
	require.Equal(t, repmgr.NodeID(3), waitPrimary(t, nodes[1:]...).cfg.NodeID)
	waitValue(t, nodes[2], "streaming", `SELECT coalesce((SELECT state FROM pg_stat_replication WHERE application_name = 'node2'), 'none')`)
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT current_setting('repmgr.own_wal', true) IS NULL`))
}

// A node that keeps segments and the history of a branch that it has left, as
// pg_rewind leaves them, is not taken for one that is on that branch.
func TestFailover_FileNamesAreNoEvidence(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	segment := nodes[0].QueryString(t, `SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 9)`)
	lsn := nodes[1].QueryString(t, `SELECT pg_last_wal_replay_lsn()`)
	nodes[0].Exec(t, `CREATE TABLE beyond AS SELECT generate_series(1, 1000) AS i`)
	waitSame(t, nodes[0], nodes[1])
	nodes[1].Stop("fast")
	text, err := os.ReadFile(filepath.Join(nodes[1].Dir, "pg_wal", "00000001"+segment))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(nodes[1].Dir, "pg_wal", "00000009"+segment), text, 0o600))
	waitValue(t, nodes[0], "{3}/1", `SELECT coalesce((SELECT format('%s/%s', sync_standbys, acks) `+newestRule+`), 'none')`)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[2].Conninfo()}})
	w.WaitForMore(t, 30)
	nodes[0].Kill()
	nodes[0].stop()
	nodes[1].StartAgain() // the history comes when it runs: it would go there at its start
	require.NoError(t, os.WriteFile(filepath.Join(nodes[1].Dir, "pg_wal", "00000009.history"), []byte("1\t"+lsn+"\tno recovery target specified\n"), 0o600))
	require.Equal(t, repmgr.NodeID(3), waitPrimary(t, nodes[1:]...).cfg.NodeID)
	w.WaitForMore(t, 10)
	w.Stop()
	w.Verify(t, nodes[2].Conninfo())
}

// A primary that nobody elected is stopped where another one is in office, and comes back as a standby.
func TestUnelected_GivesWay(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[2].Exec(t, `SELECT pg_promote(false)`) // with true, the fence may end the session before it answers
	e := nodes[2].events.wait(t, repmgr.EventFence)
	require.Contains(t, e.Details, string(election.Unelected))
	back := nodes[2].events.waitRejoin(t)
	require.Contains(t, back.Details, "by rewind") // what its control file names does not make it a new clone
	require.Equal(t, "f", nodes[0].QueryString(t, `SELECT pg_is_in_recovery()`))
	nodes[0].Exec(t, `CREATE TABLE after (i int)`)
	waitSame(t, nodes[0], nodes[2])
}

// Where the primary is lost, it is elected, or another one is: in the end there is
// one primary, which the rule names, and who is not it follows.
func TestUnelected_IsElectedOrGivesWay(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			needRejoin(t)
			nodes, _ := startCluster(t, 3, mode)
			stopMonitors(nodes)
			nodes[0].Kill()
			nodes[1].Exec(t, `SELECT pg_promote()`)
			nodes[1].monitor(t)
			nodes[2].monitor(t)
			pgtest.WaitFor(t, "one primary, of a new rule, that the other one follows", func(ctx context.Context) error {
				var seen []string
				for _, n := range nodes[1:] {
					c, err := pgx.Connect(ctx, n.Conninfo())
					if err != nil {
						return err
					}
					var text string
					err = c.QueryRow(ctx, `SELECT format('%s %s %s', pg_is_in_recovery(), (SELECT term > 1 AND primary_node_id = $1 `+newestRule+`), EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming'))`, int32(n.cfg.NodeID)).Scan(&text)
					_ = c.Close(ctx)
					if err != nil {
						return err
					}
					seen = append(seen, text)
				}
				if (seen[0] != "f t t" || !strings.HasPrefix(seen[1], "t f")) && (seen[1] != "f t t" || !strings.HasPrefix(seen[0], "t f")) {
					return fmt.Errorf("in recovery, named by the newest rule, streams to another: %q", seen)
				}
				return nil
			})
		})
	}
}

// A standby below another one does not keep the new term from opening: all stream
// from the winner until it is.
func TestFailover_Cascade(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 4, repmgr.SynchronousQuorum)
	_, err := nodes[3].Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 3})
	require.NoError(t, err)
	startMonitors(t, nodes)
	waitValue(t, nodes[0], "4/2/1", standing)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
	w.WaitForMore(t, 30)
	nodes[0].Kill()
	nodes[0].stop()
	winner := waitPrimary(t, nodes[1:]...)
	w.WaitForMore(t, 30)
	w.Stop()
	w.Verify(t, winner.Conninfo())
	waitSame(t, winner, nodes[3])
}
