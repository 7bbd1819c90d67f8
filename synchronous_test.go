package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

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

// A winner whose checkpointer has not read the setting does not open its term.
func TestQuorum_OpensNoTermBeforeACommitWaits(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3, repmgr.SynchronousQuorum)
	_, stop := nodes[0].monitor(t)
	waitSync(t, nodes[0], `ANY 1 ("node2", "node3")`, 1)
	goOn := stopCheckpointer(t, nodes[1])
	stop()
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
	at := winner.QueryString(t, `SELECT at FROM repmgr.heartbeat`)
	pgtest.WaitFor(t, "the daemon to look again", func(context.Context) error {
		if winner.QueryString(t, `SELECT at FROM repmgr.heartbeat`) == at {
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
