package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// breakConfig puts a typing error into a server's configuration.
func breakConfig(t *testing.T, n *node) (mend func()) {
	t.Helper()
	path := filepath.Join(n.Dir, "postgresql.conf")
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(old, "work_mem = '4MB\n"...), 0o600))
	return func() { require.NoError(t, os.WriteFile(path, old, 0o600)) }
}

// A server whose configuration has an error would not heed a pledge. Where a
// majority has one, no election is begun, and everybody who asks is told why;
// once it is mended, the failover comes by itself.
func TestFailover_BrokenConfiguration(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	ctx := t.Context()
	_, err := nodes[0].Explain(ctx, repmgr.ExplainOptions{})
	require.NoError(t, err)
	mend2 := breakConfig(t, nodes[1])
	e := nodes[1].events.wait(t, repmgr.EventPledgeAbility)
	require.False(t, e.Success)
	require.Contains(t, e.Details, "its configuration file has an error: "+filepath.Join(nodes[1].Dir, "postgresql.conf")+" line ")
	x, err := nodes[0].Explain(ctx, repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Equal(t, election.RefusedNoPledge, x.Forecast.Refusal) // with the primary gone two are needed
	require.Contains(t, x.Blocked[0].Reason, "node2: its configuration file has an error")
	require.Contains(t, x.String(), "node2 could not pledge itself: its configuration file has an error")
	st, err := nodes[2].ServiceStatus(ctx)
	require.NoError(t, err)
	require.Contains(t, strings.Join(st.Issues, "\n"), `node "node2" (ID: 2) could not pledge itself in an election: its configuration file has an error`)

	mend3 := breakConfig(t, nodes[2])
	nodes[2].events.wait(t, repmgr.EventPledgeAbility)
	nodes[0].Kill()
	for {
		if e := nodes[1].events.wait(t, repmgr.EventFailoverRefused); strings.Contains(e.Details, string(election.RefusedNoPledge)) {
			break
		}
	}
	for _, n := range nodes[1:] {
		text, err := os.ReadFile(filepath.Join(n.Dir, "postgresql.auto.conf"))
		require.NoError(t, err)
		require.NotContains(t, string(text), "repmgr.ballot", n.cfg.NodeName)
	}
	mend2()
	mend3()
	waitPrimary(t, nodes[1:]...)
	e = nodes[1].events.wait(t, repmgr.EventPledgeAbility)
	require.True(t, e.Success)
}

// A vote that a node has given is kept a second time: where somebody takes it
// from the server, it is written back, with a later restart in between, too, and
// everybody hears of it. So they do of the settings that a standby needs.
func TestVote_IsNotForgotten(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousOff)
	node2 := nodes[1]
	_, stop := node2.monitor(t)
	ctx := t.Context()
	first := ballot.Ballot{Node: 2, Term: 5, Candidate: "node1.1"}
	give := func(b ballot.Ballot) {
		t.Helper()
		conn := node2.Conn(t)
		require.NoError(t, ballot.Locked(ctx, conn, func(ballot.Ballot) error { return ballot.Write(ctx, conn, b) }))
		waitKept(t, node2, b)
	}
	give(first)

	node2.Exec(t, `ALTER SYSTEM RESET ALL`)
	e := node2.events.wait(t, repmgr.EventVoteLost)
	require.True(t, e.Success)
	require.Contains(t, e.Details, `the vote "2/5/node1.1" was gone from postgresql.auto.conf`)
	got, err := ballot.Read(ctx, node2.Conn(t))
	require.NoError(t, err)
	require.Equal(t, first, got)

	second := ballot.Ballot{Node: 2, Term: 6, Candidate: "node3.1"}
	auto := filepath.Join(node2.Dir, "postgresql.auto.conf")
	old, err := os.ReadFile(auto)
	require.NoError(t, err)
	give(second)
	require.NoError(t, os.WriteFile(auto, old, 0o600)) // as a program does that knows the file as it was
	node2.events.wait(t, repmgr.EventVoteLost)
	got, err = ballot.Read(ctx, node2.Conn(t))
	require.NoError(t, err)
	require.Equal(t, second, got)

	stop()
	require.NoError(t, os.Remove(auto))
	_, stop = node2.monitor(t)
	node2.events.wait(t, repmgr.EventVoteLost)
	got, err = ballot.Read(ctx, node2.Conn(t))
	require.NoError(t, err)
	require.Equal(t, second, got)

	stop() // and given twice while nobody watched
	conn := node2.Conn(t)
	require.NoError(t, ballot.Write(ctx, conn, ballot.Ballot{Node: 2, Term: 6, Candidate: "node1.2"}))
	node2.monitor(t)
	e = node2.events.wait(t, repmgr.EventVoteLost)
	require.False(t, e.Success)
	require.Contains(t, e.Details, "this node gave two votes in term 6")
}

func waitKept(t *testing.T, n *node, b ballot.Ballot) {
	t.Helper()
	pgtest.WaitFor(t, "the second copy of the vote", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(n.Dir, "repmgr_nodes.json"))
		if err == nil && !strings.Contains(string(text), `"candidate":"`+b.Candidate+`"`) {
			err = errors.New("not there")
		}
		return err
	})
}

// Settings that a standby needs are missed when they are gone from the file of ALTER SYSTEM.
func TestVote_SettingsLost(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousOff)
	m, _ := nodes[1].monitor(t)
	waitPhase(t, m, election.AsStandby)
	require.Equal(t, "1", nodes[1].QueryString(t, `SELECT count(*) FROM pg_file_settings WHERE name = 'primary_conninfo'`))
	nodes[1].Exec(t, `ALTER SYSTEM RESET ALL`)
	e := nodes[1].events.wait(t, repmgr.EventSettingsLost)
	require.Regexp(t, `^primary_conninfo, port, recovery_target, .* gone from postgresql.auto.conf`, e.Details)
	require.Contains(t, e.Details, fmt.Sprintf("ALTER SYSTEM SET port = '%d'", nodes[1].Port))
	require.Contains(t, e.Details, "repmgr standby follow")
}

// Until a lost vote is back, nobody counts on a pledge of that node, and its term
// is not taken for free.
func TestVote_LostIsNotCounted(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousOff)
	a := repmgr.NewAnnouncer(2)
	t.Cleanup(a.Close)
	require.NoError(t, a.Announce(t.Context(), nodes[1].Conninfo(), repmgr.Announcement{PID: 4711, LostVote: "2/9/node3.1"}))
	x, err := nodes[0].Explain(t.Context(), repmgr.ExplainOptions{})
	require.NoError(t, err)
	require.Equal(t, "its server has lost its vote of term 9", x.Voters[1].NoPledge)
}

// Where ALTER SYSTEM is not allowed (17), or the configuration has an error, that is
// said to superusers, too, and no command changes half of what it should.
func TestVote_SettingsNotHeeded(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 2, repmgr.SynchronousOff)
	ctx := t.Context()
	refused := func(why string) {
		t.Helper()
		require.ErrorContains(t, repmgr.FailoverPrivileges(ctx, nodes[1].Conninfo()), why)
		_, err := nodes[1].Follow(ctx, repmgr.FollowOptions{})
		require.ErrorContains(t, err, why)
		require.NotEmpty(t, repmgr.Hint(err))
		x, err := nodes[0].Explain(ctx, repmgr.ExplainOptions{})
		require.NoError(t, err)
		require.Contains(t, x.Voters[1].NoPledge, why)
		st, err := nodes[0].ServiceStatus(ctx)
		require.NoError(t, err)
		require.Contains(t, strings.Join(st.Issues, "\n"), why)
	}
	nodes[0].Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (1, 1, 1, '{1,2}', false, '{}', 0)`)
	mend := breakConfig(t, nodes[1])
	refused("its configuration file has an error")
	mend()
	require.NoError(t, repmgr.FailoverPrivileges(ctx, nodes[1].Conninfo()))
	if nodes[1].Major >= 17 {
		f, err := os.OpenFile(filepath.Join(nodes[1].Dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("allow_alter_system = off\n")
		require.NoError(t, errors.Join(err, f.Close()))
		nodes[1].Exec(t, `SELECT pg_reload_conf()`)
		waitValue(t, nodes[1], "off", `SHOW allow_alter_system`)
		refused("allow_alter_system is off")
	}

	breakConfig(t, nodes[1])
	waitSame(t, nodes[0], nodes[1])
	nodes[0].Kill()
	_, err := nodes[1].Promote(ctx, repmgr.PromoteOptions{})
	require.ErrorIs(t, err, ballot.ErrUnheeded)
	require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
	_, err = nodes[1].Promote(ctx, repmgr.PromoteOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, "2", nodes[1].QueryString(t, `SELECT primary_node_id FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`))
}
