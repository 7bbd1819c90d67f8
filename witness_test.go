package repmgr_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// startWitness starts a server of its own, beside the cluster's.
func startWitness(t *testing.T, id repmgr.NodeID, change ...func(*repmgr.Config)) *node { //nolint:unparam // a node has an id
	t.Helper()
	return newNode(t, id, pgtest.Start(t, pgtest.Options{Name: "witness", Fresh: true}), change...)
}

// nodesOf is a server's own copy of repmgr.nodes, in short.
func nodesOf(t *testing.T, n *node) string {
	t.Helper()
	return n.QueryString(t, `SELECT coalesce(string_agg(node_id || ':' || type || ':' || coalesce(upstream_node_id, 0) || ':' || active, ' ' ORDER BY node_id), '') FROM repmgr.nodes`)
}

func rulesOf(t *testing.T, n *node) string {
	t.Helper()
	return n.QueryString(t, `SELECT coalesce(string_agg(term || '.' || seq || ':' || primary_node_id, ' ' ORDER BY term, seq), '') FROM repmgr.rules`)
}

func addRule(t *testing.T, n *node, term, seq, primary int) {
	t.Helper()
	n.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES ($1, $2, $3, '{1,2,9}', false, '{}', 0)`, term, seq, primary)
}

func TestWitness(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	w := startWitness(t, 9)
	o := repmgr.WitnessOptions{PrimaryConninfo: node2.Conninfo()} // any registered node knows the way
	dry := o
	dry.DryRun = true
	_, err := w.RegisterWitness(t.Context(), dry)
	require.NoError(t, err)
	require.Equal(t, "f", w.QueryString(t, `SELECT to_regnamespace('repmgr') IS NOT NULL`), "a dry run changes nothing")
	require.Equal(t, "1:primary:0:true 2:standby:1:true", nodesOf(t, node1))

	rec, err := w.RegisterWitness(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, repmgr.RoleWitness, rec.Role)
	require.Zero(t, rec.Priority)
	const all = "1:primary:0:true 2:standby:1:true 9:witness:1:true"
	require.Equal(t, all, nodesOf(t, node1))
	require.Equal(t, all, nodesOf(t, w))
	e := w.events.wait(t, repmgr.EventWitnessRegister)
	require.Equal(t, repmgr.NodeID(1), e.PeerID)
	require.Equal(t, "1", node1.QueryString(t, `SELECT count(*) FROM repmgr.events WHERE event = 'witness_register' AND node_id = 9`))
	for _, from := range []*node{node1, w} {
		v := from.view(t, 9)
		require.Equal(t, "* running", v.Status)
		require.Equal(t, "node1", v.Upstream)
		require.Equal(t, repmgr.RoleWitness, v.Running)
	}
	st, err := w.Status(t.Context())
	require.NoError(t, err)
	require.Empty(t, st.Issues)

	_, err = w.RegisterWitness(t.Context(), o)
	require.ErrorIs(t, err, repmgr.ErrRegistered)
	_, err = w.RegisterWitness(t.Context(), repmgr.WitnessOptions{Force: true})
	require.NoError(t, err, "once registered it knows the cluster itself")
	require.Equal(t, all, nodesOf(t, w))

	_, err = node1.UnregisterWitness(t.Context(), repmgr.WitnessOptions{NodeID: 2})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	_, err = w.UnregisterWitness(t.Context(), repmgr.WitnessOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, all, nodesOf(t, node1))
	_, err = w.UnregisterWitness(t.Context(), repmgr.WitnessOptions{})
	require.NoError(t, err)
	require.Equal(t, "1:primary:0:true 2:standby:1:true", nodesOf(t, node1))
	require.Empty(t, nodesOf(t, w))
	w.events.wait(t, repmgr.EventWitnessUnregister)
	_, err = w.RegisterWitness(t.Context(), o)
	require.NoError(t, err, "it left nothing behind")

	w.Kill()
	_, err = node1.UnregisterWitness(t.Context(), repmgr.WitnessOptions{NodeID: 9})
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.Contains(t, repmgr.Hint(err), "--force")
	_, err = node2.UnregisterWitness(t.Context(), repmgr.WitnessOptions{NodeID: 9, Force: true})
	require.NoError(t, err)
	_, err = w.UnregisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: node1.Conninfo(), Force: true})
	require.ErrorIs(t, err, repmgr.ErrNotRegistered)
}

func TestWitness_RefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	o := repmgr.WitnessOptions{PrimaryConninfo: node1.Conninfo(), Force: true}
	w := startWitness(t, 9)
	as := func(id repmgr.NodeID, s *pgtest.Server) error {
		_, err := newNode(t, id, s).RegisterWitness(t.Context(), o)
		return err
	}
	require.ErrorIs(t, as(9, node2.Server), repmgr.ErrNotPrimary)
	require.ErrorIs(t, as(9, node1.Server), repmgr.ErrSystemIdentifier)
	require.ErrorIs(t, as(9, pgtest.Start(t, pgtest.Options{})), repmgr.ErrSystemIdentifier, "the tests' servers are copies of one")
	require.ErrorIs(t, as(2, w.Server), repmgr.ErrRegistered, "another type")
	_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{})
	require.ErrorIs(t, err, repmgr.ErrNotRegistered)

	other := newNode(t, 1, pgtest.Start(t, pgtest.Options{Name: "other", Fresh: true}))
	_, err = other.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	err = as(9, other.Server)
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "of another cluster")
	require.Equal(t, "1:primary:0:true", nodesOf(t, other))
}

// The copy follows the primary, keeps what counts, and never goes back.
func TestWitness_CopyOfTheMetadata(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	w := startWitness(t, 9, func(c *repmgr.Config) { c.ClusterName = "" })
	w.Exec(t, `ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu'`)
	_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: node1.Conninfo()})
	require.NoError(t, err)
	require.Equal(t, "test", w.QueryString(t, `SELECT cluster_name FROM repmgr.metadata`))
	copied := func() error {
		return repmgr.CopyMetadata(t.Context(), node1.Cluster, node1.Conninfo(), w.Conninfo())
	}
	written := func() string { return w.QueryString(t, `SELECT string_agg(xmin::text, ' ') FROM repmgr.nodes`) }

	for term := 1; term <= 4; term++ {
		addRule(t, node1, term, 1, 1)
	}
	require.NoError(t, copied())
	require.Equal(t, "3.1:1 4.1:1", rulesOf(t, w))
	for seq := 2; seq <= 4; seq++ {
		addRule(t, node1, 4, seq, 1)
	}
	require.NoError(t, copied())
	require.Equal(t, "4.1:1 4.2:1 4.3:1 4.4:1", rulesOf(t, w))
	epochs := `SELECT string_agg(extract(epoch FROM opened_at)::text, ' ' ORDER BY seq) FROM repmgr.rules WHERE term = 4`
	require.Equal(t, node1.QueryString(t, epochs), w.QueryString(t, epochs))
	before := written()
	require.NoError(t, copied())
	require.Equal(t, before, written(), "nothing changed, nothing is written")

	node1.Exec(t, `INSERT INTO repmgr.nodes SELECT 7, 9, true, 'node7', 'standby', 'x', 1, 'host=h', 'u', NULL, '' `)
	node1.Exec(t, `UPDATE repmgr.nodes SET upstream_node_id = 7 WHERE node_id = 9`)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = copied() })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, nodesOf(t, node1), nodesOf(t, w))

	addRule(t, w, 5, 1, 2)
	node1.Exec(t, `UPDATE repmgr.nodes SET active = false WHERE node_id = 7`)
	before = written()
	err = copied()
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "the witness knows of term 5, the primary only of term 4")
	require.Equal(t, before, written())
	require.Contains(t, rulesOf(t, w), "5.1:2")
}

// What is run on a witness is done on the primary: its own rows are a copy.
func TestWitness_IsNoPrimary(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	w := startWitness(t, 9)
	_, err := w.RegisterWitness(t.Context(), repmgr.WitnessOptions{PrimaryConninfo: node1.Conninfo()})
	require.NoError(t, err)
	node1.Exec(t, `INSERT INTO repmgr.nodes SELECT 7, 1, false, 'node7', 'standby', 'x', 1, 'host=/nonexistent', 'u', NULL, ''`)
	_, err = w.UnregisterStandby(t.Context(), repmgr.UnregisterOptions{NodeID: 7})
	require.NoError(t, err)
	require.Equal(t, "1:primary:0:true 9:witness:1:true", nodesOf(t, node1))
	_, err = newNode(t, 9, w.Server).RegisterPrimary(t.Context(), repmgr.RegisterOptions{Force: true})
	require.ErrorIs(t, err, repmgr.ErrPrimaryExists)

	// It is not told what a primary is told.
	_, err = w.Promote(t.Context(), repmgr.PromoteOptions{})
	requireError(t, err, repmgr.ErrNotStandby, "is a witness")
	_, err = w.Follow(t.Context(), repmgr.FollowOptions{})
	requireError(t, err, repmgr.ErrNotStandby, "is a witness")
	_, err = node1.UnregisterStandby(t.Context(), repmgr.UnregisterOptions{NodeID: 9})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.Equal(t, "Use: repmgr witness unregister --node-id=9", repmgr.Hint(err))
}
