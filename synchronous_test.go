package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// stopCheckpointer keeps a server's checkpointer from reading its settings, as a
// long checkpoint does. The function that it returns lets it go on.
func stopCheckpointer(t *testing.T, n *node) (goOn func()) {
	t.Helper()
	pid := pgtest.Query[int](t, n.Server, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	goOn = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(goOn)
	return goOn
}

// waitSync waits until synchronous_standby_names is that, and the newest rule says so many acks.
func waitSync(t *testing.T, n *node, value string, acks int) {
	t.Helper()
	pgtest.WaitFor(t, "the setting and the rule", func(context.Context) error {
		got := n.QueryString(t, `SELECT format('%s, acks %s', current_setting('synchronous_standby_names'), (SELECT acks FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1))`)
		if want := fmt.Sprintf("%s, acks %d", value, acks); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

// A setting is believed when a commit was seen to wait: where the checkpointer has
// not read it, sessions do not wait for anybody, and the rule says so.
func TestQuorum_BelievesASettingWhenACommitWaits(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	goOn := stopCheckpointer(t, nodes[0])
	for _, n := range nodes {
		n.monitor(t)
	}
	e := nodes[0].events.wait(t, repmgr.EventSyncUnproven)
	require.Contains(t, e.Details, "commits do not wait")
	require.Equal(t, "0", nodes[0].QueryString(t, `SELECT max(acks) FROM repmgr.rules`))
	nodes[0].Exec(t, `CREATE TABLE alone (i int)`) // acknowledged, whoever has it
	ex, err := nodes[0].Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Equal(t, election.RefusedSync, ex.Forecast.Refusal)
	st, err := nodes[0].ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(st.Issues), "commits do not wait")
	before := nodes[0].QueryString(t, `SELECT at FROM repmgr.heartbeat`)
	pgtest.WaitFor(t, "the next heartbeat", func(context.Context) error {
		if nodes[0].QueryString(t, `SELECT at FROM repmgr.heartbeat`) == before {
			return errors.New("none yet")
		}
		return nil
	})
	goOn()
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)
	ex, err = nodes[0].Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Empty(t, ex.Forecast.Refusal)

	// What somebody has taken away is believed again only after a commit has waited again.
	seq := nodes[0].QueryString(t, `SELECT max(seq) FROM repmgr.rules`)
	nodes[0].Exec(t, `ALTER SYSTEM SET synchronous_standby_names = ''`)
	nodes[0].Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the rule to say that commits wait for nobody", func(context.Context) error {
		if nodes[0].QueryString(t, `SELECT count(*) FROM repmgr.rules WHERE acks = 0 AND seq > $1::int`, seq) == "0" {
			return errors.New("it does not")
		}
		return nil
	})
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)
}

// What was acknowledged while no commit waits is with the primary alone: nobody
// takes its place, and nothing is missing when it is back.
func TestQuorum_LosesNothingWhileNoCommitWaits(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	goOn := stopCheckpointer(t, nodes[0])
	for _, n := range nodes {
		n.monitor(t)
	}
	nodes[0].events.wait(t, repmgr.EventSyncUnproven)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo()}})
	w.WaitForMore(t, 20)
	nodes[0].Kill()
	w.Stop()
	e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
	require.Contains(t, e.Details, string(election.RefusedSync))
	goOn()
	nodes[0].StartAgain()
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT max(term) FROM repmgr.rules`))
	w.Verify(t, nodes[0].Conninfo())
}

// A winner whose checkpointer has not read the setting does not open its term.
func TestQuorum_OpensNoTermBeforeACommitWaits(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	_, stop := nodes[0].monitor(t)
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)
	goOn := stopCheckpointer(t, nodes[1])
	stop()
	waitSame(t, nodes[0], nodes[2])
	waitSame(t, nodes[0], nodes[1]) // where node3 had more, it would win
	nodes[0].Kill()
	_, err := nodes[1].Failover(t.Context(), repmgr.FailoverOptions{})
	require.ErrorContains(t, err, "commits do not wait")
	require.Equal(t, "f 1", nodes[1].QueryString(t, `SELECT left(pg_is_in_recovery()::text, 1) || ' ' || max(term) FROM repmgr.rules`))
	goOn()
	nodes[1].monitor(t)
	nodes[2].monitor(t)
	pgtest.WaitFor(t, "node2 to take office", func(context.Context) error {
		if got := nodes[1].QueryString(t, `SELECT primary_node_id || ' ' || acks FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`); got != "2 1" {
			return errors.New(got)
		}
		return nil
	})
}

// With synchronous_mode=off a user's own setting is nobody else's business, not on
// a standby, not at a failover; what is left of a quorum goes.
func TestSynchronousOff_LeavesTheUsersSetting(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	for _, n := range nodes {
		n.Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'`)
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	now := nodes[0].QueryString(t, `SELECT now()::text`)
	pgtest.WaitFor(t, "both daemons to have looked since", func(context.Context) error {
		if got := nodes[0].QueryString(t, `SELECT count(*) FROM repmgr.standby_state WHERE last_monitor_time > $1::timestamptz + interval '0.2 s'`, now); got != "2" {
			return errors.New(got)
		}
		return nil
	})
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	for _, n := range nodes[1:] {
		require.Equal(t, "ANY 1 (*)", n.QueryString(t, `SHOW synchronous_standby_names`))
	}
	winner.Exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ("node1", "node2", "node3")'`)
	winner.Exec(t, `SELECT pg_reload_conf()`)
	winner.Exec(t, `CREATE TABLE waits (i int)`)
	at := winner.QueryString(t, `SELECT coalesce((SELECT at::text FROM repmgr.heartbeat), '')`)
	pgtest.WaitFor(t, "the daemon to look again", func(context.Context) error {
		if winner.QueryString(t, `SELECT coalesce((SELECT at::text FROM repmgr.heartbeat), '')`) == at {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, `ANY 1 ("node1", "node2", "node3")`, winner.QueryString(t, `SHOW synchronous_standby_names`))
}

// In a quorum it is replaced, and that is told; when the quorum is over, what is
// in postgresql.conf counts again.
func TestQuorum_ReplacesTheUsersSettingWithAWord(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousQuorum)
	for _, n := range nodes {
		f, err := os.OpenFile(filepath.Join(n.Dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("synchronous_standby_names = 'FIRST 1 (node2, other)'\n")
		require.NoError(t, errors.Join(err, f.Close()))
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	m, _ := nodes[0].monitor(t)
	_, stop := nodes[1].monitor(t)
	e := nodes[0].events.wait(t, repmgr.EventSyncReplaced)
	require.Contains(t, e.Details, "FIRST 1 (node2, other)")
	require.Contains(t, e.Details, "postgresql.conf line")
	waitSync(t, nodes[0], `ANY 1 ("node2")`, 1)
	require.Equal(t, "FIRST 1 (node2, other)", nodes[1].QueryString(t, `SHOW synchronous_standby_names`))

	stop()
	cfg := nodes[0].cfg
	cfg.SynchronousMode = repmgr.SynchronousOff
	_, err := m.Reload(cfg)
	require.NoError(t, err)
	waitSync(t, nodes[0], "FIRST 1 (node2, other)", 0)
	require.Equal(t, "0", nodes[0].QueryString(t, `SELECT count(*) FROM pg_file_settings WHERE name = 'repmgr.sync'`))
}

// waitRuleSync waits until the newest rule has exactly these standbys.
func waitRuleSync(t *testing.T, n *node, want string) {
	t.Helper()
	pgtest.WaitFor(t, "the rule to have the standbys "+want, func(context.Context) error {
		if got := n.QueryString(t, `SELECT sync_standbys FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// A copy of a standby that is started somewhere streams under its name, and
// PostgreSQL takes its word for that of the standby: no commit waits for that name.
func TestQuorum_TwoServersOfOneName(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	nodes[1].Stop("fast")
	dir := filepath.Join(t.TempDir(), "twin")
	out, err := exec.Command("cp", "-a", nodes[1].Dir, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	nodes[1].StartAgain()
	for _, n := range nodes {
		n.monitor(t)
	}
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)

	twin := pgtest.StartDir(t, dir, pgtest.Options{Name: "twin", Port: pgtest.Port(t), BinDir: nodes[1].BinDir})
	e := nodes[0].events.wait(t, repmgr.EventDuplicateNode)
	require.Contains(t, e.Details, `2 servers stream under the name of node "node2" (ID: 2), from 127.0.0.1`)
	waitRuleSync(t, nodes[0], "{3}")
	waitSync(t, nodes[0], `ANY 1 ("node3")`, 1)
	for _, issues := range [][]string{serviceIssues(t, nodes[0]), clusterIssues(t, nodes[0])} {
		require.Contains(t, fmt.Sprint(issues), `under the name of node "node2" (ID: 2)`)
	}
	twin.Stop("fast")
	waitRuleSync(t, nodes[0], "{2,3}")
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)

	// Nor does it count alone: node2 itself does not answer.
	nodes[1].Stop("fast")
	twin.StartAgain()
	waitRuleSync(t, nodes[0], "{3}")
	pgtest.WaitFor(t, "the twin to have all", func(context.Context) error {
		if got := nodes[0].QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE application_name = 'node2' AND flush_lsn >= (SELECT pg_current_wal_flush_lsn())`); got != "1" {
			return errors.New(got)
		}
		return nil
	})
	require.Equal(t, "{3}", nodes[0].QueryString(t, `SELECT sync_standbys FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`))
}

func serviceIssues(t *testing.T, n *node) []string {
	t.Helper()
	st, err := n.ServiceStatus(t.Context())
	require.NoError(t, err)
	return st.Issues
}

func clusterIssues(t *testing.T, n *node) []string {
	t.Helper()
	st, err := n.Status(t.Context())
	require.NoError(t, err)
	return st.Issues
}

// A standby that takes no connections gives no pledge, so no commit waits for it.
func TestQuorum_CountsOnlyStandbysThatAnswer(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	f, err := os.OpenFile(filepath.Join(nodes[1].Dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("hot_standby = off\n")
	require.NoError(t, errors.Join(err, f.Close()))
	nodes[1].Stop("fast")
	out, err := exec.Command(filepath.Join(nodes[1].BinDir, "pg_ctl"), "start", "-W", "-D", nodes[1].Dir, "-l", filepath.Join(t.TempDir(), "log")).CombinedOutput()
	require.NoError(t, err, string(out))
	t.Cleanup(func() { nodes[1].Kill() })
	pgtest.WaitFor(t, "node2 to stream", func(ctx context.Context) error { return nodes[0].StreamsTo(ctx, "node2") })
	nodes[0].monitor(t)
	nodes[2].monitor(t)
	waitSync(t, nodes[0], `ANY 1 ("node3")`, 1)
}

// A name that PostgreSQL would read differently is told, and no commit waits for it.
func TestQuorum_BadNames(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET node_name = '*' WHERE node_id = 2`)
	nodes[1].Exec(t, `ALTER SYSTEM SET primary_conninfo = '`+strings.ReplaceAll(nodes[0].Conninfo("application_name=*"), "'", "''")+`'`)
	nodes[1].Exec(t, `SELECT pg_reload_conf()`)
	m, _ := nodes[0].monitor(t)
	nodes[2].monitor(t)
	waitSync(t, nodes[0], `ANY 1 ("node3")`, 1)
	pgtest.WaitFor(t, "the daemon to name it", func(context.Context) error {
		if e := m.Status().Error; !strings.Contains(e, `node_name "*" of node ID 2 is not of letters`) || !strings.Contains(e, "register --force") {
			return fmt.Errorf("it says %q", e)
		}
		return nil
	})
	require.Contains(t, fmt.Sprint(serviceIssues(t, nodes[0])), `node_name "*" of node ID 2`)

	// One with a comma and a blank, in S by an earlier hand, keeps nothing else from being true.
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET node_name = 'a, b' WHERE node_id = 2`)
	nodes[1].Exec(t, `ALTER SYSTEM SET primary_conninfo = '`+strings.ReplaceAll(nodes[0].Conninfo("application_name='a, b'"), "'", "''")+`'`)
	nodes[1].Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the daemon to name it", func(context.Context) error {
		if e := m.Status().Error; !strings.Contains(e, `node_name "a, b" of node ID 2`) {
			return fmt.Errorf("it says %q", e)
		}
		return nil
	})
	waitSync(t, nodes[0], `ANY 1 ("node3")`, 1)
}

// With durability=required a commit waits where nobody is left who could have it,
// and goes on when somebody is back; with preferred it does not wait.
func TestQuorum_Durability(t *testing.T) {
	for _, durability := range []repmgr.Durability{repmgr.DurabilityPreferred, repmgr.DurabilityRequired} {
		t.Run(string(durability), func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 2, repmgr.SynchronousQuorum)
			for _, n := range nodes {
				if n.cfg.Durability = durability; durability == repmgr.DurabilityRequired {
					n.cfg.SynchronousMode, n.cfg.Durability = repmgr.SynchronousStrict, ""
				}
				n.monitor(t)
			}
			waitSync(t, nodes[0], `ANY 1 ("node2")`, 1)
			c, err := repmgr.New(nodes[0].cfg)
			require.NoError(t, err)
			ex, err := c.Explain(t.Context(), repmgr.ExplainOptions{})
			require.NoError(t, err)
			require.Contains(t, ex.String(), "durability="+string(durability))
			st, err := c.ServiceStatus(t.Context())
			require.NoError(t, err)
			require.Contains(t, st.RuleText(), "commits wait for 1 of node2 (durability "+string(durability)+")")
			nodes[1].Stop("fast")
			if durability == repmgr.DurabilityPreferred {
				waitSync(t, nodes[0], "", 0)
				nodes[0].Exec(t, `CREATE TABLE t (i int)`)
				return
			}
			done := make(chan error, 1)
			conn := nodes[0].Conn(t)
			go func() { _, err := conn.Exec(context.WithoutCancel(t.Context()), `CREATE TABLE t (i int)`); done <- err }()
			pgtest.WaitFor(t, "two looks after the standby was given up", func(context.Context) error {
				if got := nodes[0].QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND clock_timestamp() - query_start > 2.5 * interval '2 s'`); got == "0" {
					return errors.New("no commit waits so long yet")
				}
				return nil
			})
			waitSync(t, nodes[0], `ANY 1 ("node2")`, 1)
			nodes[1].StartAgain()
			require.NoError(t, <-done)
		})
	}
}

// What makes commits wait for less than the disk of a standby is named at the start.
func TestQuorum_NamesWeakCommits(t *testing.T) {
	t.Parallel()
	n := startPrimary(t, automatic(repmgr.SynchronousQuorum))
	weak, err := repmgr.WeakCommits(t.Context(), n.Conninfo())
	require.NoError(t, err)
	require.Empty(t, weak)
	for _, sql := range []string{
		`CREATE DATABASE "A"`, `CREATE ROLE fast`, `ALTER SYSTEM SET synchronous_commit = remote_write`, `ALTER DATABASE "A" SET synchronous_commit = local`,
		`ALTER ROLE fast SET synchronous_commit = off`, `ALTER ROLE fast IN DATABASE "A" SET synchronous_commit = on`, `ALTER ROLE ALL SET synchronous_commit = remote_apply`,
	} {
		n.Exec(t, sql)
	}
	weak, err = repmgr.WeakCommits(t.Context(), n.Conninfo())
	require.NoError(t, err)
	require.Len(t, weak, 3)
	require.Equal(t, []string{`database "A" has local`, "role fast has off"}, weak[:2])
	require.Regexp(t, `^the server \(.*postgresql.auto.conf line \d+\) has remote_write$`, weak[2])
	var log lockedBuffer
	n.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	n.monitor(t)
	pgtest.WaitFor(t, "the warning", func(context.Context) error {
		if text := log.String(); !strings.Contains(text, "synchronous_commit is weaker than on") || !strings.Contains(text, "role fast has off") {
			return errors.New(text)
		}
		return nil
	})
}

// A configuration that can not be read any more changes nothing that is in force,
// although sessions that were idle since read it in vain: the rule stays, and so
// does the failover.
func TestQuorum_OutlivesABrokenConfiguration(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	require.Equal(t, "1", nodes[0].QueryString(t, `SELECT min(acks) FROM repmgr.rules WHERE term = 1 AND acks > 0`))
	last := `SELECT term || '/' || seq || ', acks ' || acks FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`
	before := nodes[0].QueryString(t, last)
	breakConfig(t, nodes[0])
	nodes[0].Exec(t, `SELECT pg_reload_conf()`)
	nodes[0].events.wait(t, repmgr.EventPledgeAbility)
	since := time.Now()
	pgtest.WaitFor(t, "some looks", func(context.Context) error {
		if at := nodes[0].daemon.Status().LookedAt; at.Sub(since) < 2*nodes[0].cfg.SilenceTimeout {
			return fmt.Errorf("looked last at %s", at)
		}
		return nil
	})
	require.Equal(t, before, nodes[0].QueryString(t, last))
	nodes[0].Kill()
	waitPrimary(t, nodes[1:]...)
}

// Neither a new term nor a new daemon of its primary makes commits wait for less,
// because nobody has looked at the standbys yet.
func TestQuorum_WaitsOnAcrossTermsAndDaemons(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	_, stop := nodes[0].monitor(t)
	nodes[1].monitor(t)
	nodes[2].monitor(t)
	waitReady(t, nodes, 3, repmgr.SynchronousQuorum)
	looks := func(n *node) {
		t.Helper()
		pgtest.WaitFor(t, "the daemon of the primary to look", func(context.Context) error {
			if s := n.daemon.Status(); s.Phase != election.AsPrimary || s.LookedAt.Sub(s.Since) < n.cfg.SilenceTimeout {
				return fmt.Errorf("%s since %s", s.Phase, s.Since)
			}
			return nil
		})
	}
	seq := nodes[0].QueryString(t, `SELECT max(seq) FROM repmgr.rules`)
	stop()
	nodes[0].monitor(t)
	looks(nodes[0])
	require.Equal(t, "0", nodes[0].QueryString(t, `SELECT count(*) FROM repmgr.rules WHERE seq > $1::int AND acks = 0`, seq))
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	looks(winner)
	require.Equal(t, "1", winner.QueryString(t, `SELECT min(acks) FROM repmgr.rules WHERE term = 2`))
}
