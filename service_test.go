package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

// announce lets a node look as if its Monitor ran.
func announce(t *testing.T, n *node, p repmgr.Announcement) *repmgr.Announcer {
	t.Helper()
	a := repmgr.NewAnnouncer(n.cfg.NodeID)
	t.Cleanup(a.Close)
	if p.PID == 0 {
		p.PID = os.Getpid()
	}
	if p.CanFence == nil {
		p.CanFence = new(true)
	}
	require.NoError(t, a.Announce(t.Context(), n.Conninfo(), p))
	return a
}

// setFile sets what ALTER SYSTEM keeps in a file, of a setting that nobody defined.
func setFile(t *testing.T, n *node, name, value string) {
	t.Helper()
	conn := n.Conn(t)
	for _, sql := range []string{"SET " + name + " = ''", "ALTER SYSTEM SET " + name + " = '" + value + "'"} {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.NoError(t, conn.Close(t.Context()))
}

func TestPresence(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	read := func() map[repmgr.NodeID]repmgr.Announcement {
		all, err := repmgr.Presences(t.Context(), s.Conninfo())
		require.NoError(t, err)
		return all
	}
	require.Empty(t, read())
	since := time.Now().Round(0)
	lease := 2.5
	p := repmgr.Announcement{
		PID: 4711, Mode: repmgr.FailoverAutomatic, Phase: "degraded", Reason: "it's \"so\"\n-- schön 😀", Since: since,
		SeenAt: since.Add(-time.Minute), LeaseLeft: &lease, Error: "password=hunter2 at postgres://u:hunter2@h/d and " + strings.Repeat("ü", 3000),
	}
	a := repmgr.NewAnnouncer(7)
	t.Cleanup(a.Close)
	require.NoError(t, a.Announce(t.Context(), s.Conninfo(), p))
	got := read()[7]
	require.Equal(t, 4711, got.PID)
	require.Equal(t, p.Reason, got.Reason)
	require.True(t, since.Equal(got.Since))
	require.Equal(t, repmgr.FailoverAutomatic, got.Mode)
	require.Positive(t, got.Age)
	require.InDelta(t, lease, *got.LeaseLeft, 0, "it is renewed all the time")
	ago, ok := got.SeenAgo()
	require.True(t, ok)
	require.InDelta(t, 60, ago.Seconds(), 30)
	require.True(t, strings.HasPrefix(got.Error, "password=*** at postgres://u:***@h/d and ü"), got.Error)
	require.NotContains(t, s.QueryString(t, `SELECT string_agg(query, ' ') FROM pg_stat_activity WHERE application_name = 'repmgrd'`), "hunter2")

	session := `SELECT pid || ' ' || query_start FROM pg_stat_activity WHERE application_name = 'repmgrd'`
	before := s.QueryString(t, session)
	p.SeenAt = time.Now()
	require.NoError(t, a.Announce(t.Context(), s.Conninfo(), p))
	require.Equal(t, before, s.QueryString(t, session), "no news")
	p.Reason, p.RunsOut = "another", true
	require.NoError(t, a.Announce(t.Context(), s.Conninfo(), p))
	got = read()[7]
	require.Equal(t, "another", got.Reason)
	require.InDelta(t, lease-got.Age, *got.LeaseLeft, 0.001, "it counts down")

	second := repmgr.NewAnnouncer(7)
	t.Cleanup(second.Close)
	err := second.Announce(t.Context(), s.Conninfo(), p)
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "PID 4711")
	a.Close()
	pgtest.WaitFor(t, "its turn, when the server has noticed the end of the first", func(ctx context.Context) error {
		return second.Announce(ctx, s.Conninfo(), p)
	})

	s.Restart()
	pgtest.WaitFor(t, "announcement after a restart", func(ctx context.Context) error {
		p.Error = fmt.Sprint(time.Now()) // news
		if err := second.Announce(ctx, s.Conninfo(), p); err != nil {
			return err
		}
		if read()[7].PID != 4711 {
			return errors.New("not there")
		}
		return nil
	})
	second.Close()
	pgtest.WaitFor(t, "the end of the session", func(context.Context) error {
		if len(read()) > 0 {
			return errors.New("still there")
		}
		return nil
	})
}

// A login that may not see other sessions, or a server that shows only the
// beginning of a statement, still tells that a Monitor runs.
func TestPresence_HalfReadable(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: map[string]string{"track_activity_query_size": "100"}})
	s.Exec(t, `CREATE ROLE eve LOGIN`)
	a := repmgr.NewAnnouncer(1)
	t.Cleanup(a.Close)
	require.NoError(t, a.Announce(t.Context(), s.Conninfo(), repmgr.Announcement{PID: 4711}))
	for _, conninfo := range []string{s.Conninfo(), s.Conninfo("user=eve")} {
		all, err := repmgr.Presences(t.Context(), conninfo)
		require.NoError(t, err)
		require.Contains(t, all, repmgr.NodeID(1))
		require.Zero(t, all[1].PID)
		require.Contains(t, all[1].Reason, "can not be read")
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	setFile(t, node1, "repmgr.paused", "1/on") // what a clone brings
	node2 := addStandby(t, node1, 2)
	paused := func() string {
		st, err := node1.ServiceStatus(t.Context())
		require.NoError(t, err)
		var all []string
		for _, n := range st.Nodes {
			if n.Paused == nil {
				all = append(all, "?")
				continue
			}
			all = append(all, fmt.Sprint(*n.Paused))
		}
		return strings.Join(all, " ")
	}
	require.Equal(t, "true false", paused(), "the flag of another node does not count")
	_, err := node1.Pause(t.Context(), repmgr.PauseOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, "true false", paused())
	by := func() *election.Pause {
		st, err := node1.ServiceStatus(t.Context())
		require.NoError(t, err)
		return st.PausedBy
	}
	require.Nil(t, by(), "no pause of this program")
	res, err := node2.Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	require.Equal(t, []repmgr.PausedNode{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2"}}, res.Nodes)
	require.Equal(t, "true true", paused())
	require.WithinDuration(t, time.Now(), by().Since, time.Minute)
	require.Equal(t, registry.Caller(), by().By)
	require.Regexp(t, `.+@.+`, by().By)
	node2.Restart()
	require.Equal(t, "true true", paused(), "it survives a restart")
	_, err = node2.Unpause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	require.Equal(t, "false false", paused())
	require.Nil(t, by())

	node2.Stop("fast")
	res, err = node1.Pause(t.Context(), repmgr.PauseOptions{By: "it's \"Ada\"\n\u00e9 " + strings.Repeat("x", 300)})
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.Empty(t, res.Nodes[0].Error)
	require.Contains(t, res.Nodes[1].Error, "connection refused")
	require.Equal(t, "true ?", paused(), "the others stay changed")
	node2.StartAgain()
	require.Equal(t, "true true", paused(), "the newest word counts for all")
	require.Regexp(t, `^it's "Ada"\?\?+ x+$`, by().By, "it is one line that every encoding has")
	node1.Exec(t, `ALTER SYSTEM RESET repmgr.paused_by`)
	require.Nil(t, by(), "a node may not say it")
}

func TestServiceStatus(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	issues := func(from *node) string {
		st, err := from.ServiceStatus(t.Context())
		require.NoError(t, err)
		return strings.Join(st.Issues, "\n")
	}
	require.Empty(t, issues(node1), "nobody has asked for failover: without a daemon nothing is missing but the lag")
	auto := repmgr.Announcement{Mode: repmgr.FailoverAutomatic, Phase: "watching", Reason: "all is well", SeenAt: time.Now()}
	announce(t, node1, auto)
	require.Contains(t, issues(node1), "repmgrd is not running on node \"node2\" (ID: 2)")
	two := announce(t, node2, auto)
	require.Equal(t, "can not fail over by itself: 2 votes, a majority is 2; add a witness (repmgr witness register) or etcd", issues(node2))

	w := startWitness(t, 9)
	_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: node1.Conninfo()})
	require.NoError(t, err)
	announce(t, w, repmgr.Announcement{Mode: repmgr.FailoverManual})
	require.Equal(t, "failover is automatic on node1, node2, manual on node9", issues(w))

	node1.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (3, 2, 1, '{1,2,9}', true, '{2}', 1)`)
	waitSame(t, node1, node2)
	setFile(t, node2, "repmgr.ballot", "2/4/node2.1")
	two.Close()
	setFile(t, w, "repmgr.paused", "9/on")
	st, err := w.ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Equal(t, "term 3: primary node1; votes 3; commits wait for 1 of node2", st.RuleText())
	require.EqualValues(t, 4, st.Nodes[1].Ballot.Term)
	require.EqualValues(t, 3, st.Nodes[1].Rule.Term)
	require.Nil(t, st.Nodes[2].Rule)
	require.Equal(t, os.Getpid(), st.Nodes[0].Monitor.PID)
	require.False(t, *st.Nodes[1].Monitored)
	require.Contains(t, strings.Join(st.Issues, "\n"), "failover is paused on node9; to end that: repmgr service unpause")

	w.Stop("fast")
	require.Contains(t, issues(node1), "without the primary 1 of 3 votes answer, a majority is 2")
	node1.Stop("fast")
	st, err = node2.ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Nil(t, st.Nodes[0].Monitored)
	require.Nil(t, st.Nodes[0].Paused)
	require.False(t, st.OnePrimary())
}

// What a node says of its daemon is not lost because another node is slow: by then
// the first may have stopped itself.
func TestServiceStatus_SlowNode(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	host, port := pgtest.Blackhole(t)
	node1.Exec(t, fmt.Sprintf(`INSERT INTO repmgr.nodes (node_id, upstream_node_id, node_name, type, location, priority, conninfo, repluser, config_file)
		VALUES (2, 1, 'node2', 'standby', 'default', 100, 'host=%s port=%d user=postgres connect_timeout=3', 'postgres', '')`, host, port))
	announce(t, node1, repmgr.Announcement{Mode: repmgr.FailoverAutomatic, SeenAt: time.Now()})
	node1.set(t, `log_disconnections = on`)
	waitValue(t, node1, "on", `SHOW log_disconnections`)
	ended := func() int { return strings.Count(node1.Log(), "repmgr LOG:  disconnection: ") }
	before := ended()
	var wg sync.WaitGroup
	wg.Go(func() {
		pgtest.WaitFor(t, "the rows and node1 to be read", func(context.Context) error {
			if n := ended() - before; n < 2 {
				return fmt.Errorf("%d sessions have ended", n)
			}
			return nil
		})
		node1.Kill()
	})
	st, err := node1.ServiceStatus(t.Context())
	wg.Wait()
	require.NoError(t, err)
	require.Equal(t, repmgr.ReachTimeout, st.Nodes[1].Reach)
	require.NotNil(t, st.Nodes[0].Monitor, st.Nodes[0].ServiceError)
}

// A login that is no superuser is told, before it matters, all that it lacks;
// what the hint says makes it fit.
func TestFailoverPrivileges(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	if node1.Major < 15 {
		t.Skip("before PostgreSQL 15 only a superuser may ALTER SYSTEM")
	}
	node1.Exec(t, `CREATE ROLE "re-p" LOGIN REPLICATION`)
	node2 := addStandby(t, node1, 2)
	login := func(n *node) string { return n.Conninfo("user=re-p") }
	require.NoError(t, repmgr.FailoverPrivileges(t.Context(), node1.Conninfo()))
	err := repmgr.FailoverPrivileges(t.Context(), login(node2))
	require.ErrorIs(t, err, repmgr.ErrQuery)
	for _, lack := range []string{"pg_monitor", "repmgr.ballot", "repmgr.paused", "repmgr.sync", "synchronous_standby_names", "pg_file_settings", "pg_promote", "the tables of repmgr"} {
		require.ErrorContains(t, err, lack)
	}
	_, grants, _ := strings.Cut(repmgr.Hint(err), "\n")
	node1.Exec(t, grants)
	waitSame(t, node1, node2)
	require.NoError(t, repmgr.FailoverPrivileges(t.Context(), login(node2)))

	conninfo := func(c *repmgr.Config) { c.Conninfo += " user=re-p" }
	as := newNode(t, 2, node2.Server, conninfo)
	node1.Exec(t, `UPDATE repmgr.nodes SET conninfo = conninfo || ' user=''re-p'''`)
	waitSame(t, node1, node2)
	_, err = as.Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err, "who paused is noted by those who may")
	require.Equal(t, "0", node1.QueryString(t, `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.paused_by'`))
	node1.Exec(t, `GRANT ALTER SYSTEM ON PARAMETER repmgr.paused_by TO "re-p"`)
	waitSame(t, node1, node2)
	_, err = as.Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	require.Equal(t, "1", node1.QueryString(t, `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.paused_by'`))
	node1.Exec(t, `REVOKE ALL ON PARAMETER repmgr.paused FROM "re-p"; REVOKE ALL ON pg_file_settings FROM "re-p"`)
	res, err := as.Unpause(t.Context(), repmgr.PauseOptions{})
	require.ErrorIs(t, err, repmgr.ErrQuery)
	require.Contains(t, res.Nodes[0].Error, "may not")
	require.Contains(t, repmgr.Hint(err), "GRANT ALTER SYSTEM ON PARAMETER repmgr.paused TO")
	announce(t, node1, repmgr.Announcement{PID: 4711})
	st, err := as.ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4711, st.Nodes[0].Monitor.PID)
	require.Nil(t, st.Nodes[0].Paused)
	require.Contains(t, st.Nodes[0].ServiceError, "may not")
}

// With what the hint grants, and no more, a failover and the rejoin after it work,
// also where the standbys have an archive.
func TestFailover_Unprivileged(t *testing.T) {
	needRejoin(t)
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			node1 := startPrimary(t)
			if node1.Major < 15 {
				t.Skip("before PostgreSQL 15 only a superuser may ALTER SYSTEM")
			}
			node1.Exec(t, `CREATE ROLE "re-p" LOGIN REPLICATION`)
			as := []func(*repmgr.Config){automatic(mode), func(c *repmgr.Config) { c.Conninfo += " user=re-p"; c.RestoreCommand = "false" }}
			_, grants, _ := strings.Cut(repmgr.Hint(repmgr.FailoverPrivileges(t.Context(), node1.Conninfo("user=re-p"))), "\n")
			node1.Exec(t, grants)
			require.NoError(t, repmgr.FailoverPrivileges(t.Context(), node1.Conninfo("user=re-p")))
			node1.Exec(t, `UPDATE repmgr.nodes SET conninfo = conninfo || ' user=re-p', repluser = 're-p'`)
			nodes := []*node{newNode(t, 1, node1.Server, as...)}
			for id := repmgr.NodeID(2); id <= 3; id++ {
				nodes = append(nodes, addStandby(t, nodes[0], id, as...))
			}
			err := repmgr.FailoverPrivileges(t.Context(), nodes[1].Conninfo("user=re-p"))
			require.ErrorContains(t, err, "may not ALTER SYSTEM SET restore_command, repmgr.saved_restore_command")
			_, grants, _ = strings.Cut(repmgr.Hint(err), "\n")
			node1.Exec(t, grants)
			waitSame(t, nodes[0], nodes[1])
			require.NoError(t, repmgr.FailoverPrivileges(t.Context(), nodes[1].Conninfo("user=re-p")))
			for _, n := range nodes {
				n.cfg.DataDirectory = n.Dir
				n.monitor(t)
			}
			waitReady(t, nodes, 3, mode)
			nodes[0].Kill()
			winner := waitPrimary(t, nodes[1:]...)
			nodes[0].events.waitRejoin(t)
			waitSame(t, winner, nodes[0])
			winner.Exec(t, `CREATE TABLE after_the_failover (i int)`)
			for _, n := range nodes {
				if n != winner {
					waitSame(t, winner, n)
				}
			}
		})
	}
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	dir := t.TempDir()
	a := repmgr.NewAnnouncer(1)
	t.Cleanup(a.Close)
	cluster := func(start, stop string) *repmgr.Cluster {
		return newNode(t, 1, node1.Server, func(c *repmgr.Config) { c.RepmgrdServiceStartCommand, c.RepmgrdServiceStopCommand = start, stop }).Cluster
	}
	_, err := cluster("", "").StartDaemon(t.Context(), repmgr.DaemonOptions{})
	require.ErrorIs(t, err, repmgr.ErrConfig)
	_, err = cluster("exit 3", "").StartDaemon(t.Context(), repmgr.DaemonOptions{})
	require.ErrorContains(t, err, "repmgrd_service_start_command")
	started, stopped := filepath.Join(dir, "started"), filepath.Join(dir, "stopped")
	c := cluster("touch "+started, "touch "+stopped)
	_, err = c.StartDaemon(t.Context(), repmgr.DaemonOptions{DryRun: true})
	require.NoError(t, err)
	require.NoFileExists(t, started)
	_, err = c.StopDaemon(t.Context(), repmgr.DaemonOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	_, err = c.StartDaemon(t.Context(), repmgr.DaemonOptions{Wait: 100 * millisecond})
	require.ErrorIs(t, err, repmgr.ErrTimeout)

	require.NoError(t, os.Remove(started))
	done := make(chan error, 1)
	go func() {
		_, err := c.StartDaemon(t.Context(), repmgr.DaemonOptions{})
		done <- err
	}()
	pgtest.WaitFor(t, "the command", func(context.Context) error { _, err := os.Stat(started); return err })
	require.NoError(t, a.Announce(t.Context(), node1.Conninfo(), repmgr.Announcement{PID: 4711}))
	require.NoError(t, <-done)
	_, err = c.StartDaemon(t.Context(), repmgr.DaemonOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "PID 4711")

	go func() {
		_, err := c.StopDaemon(t.Context(), repmgr.DaemonOptions{})
		done <- err
	}()
	pgtest.WaitFor(t, "the command", func(context.Context) error { _, err := os.Stat(stopped); return err })
	a.Close()
	require.NoError(t, <-done)
}
