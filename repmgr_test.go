package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// node is one machine of a test: a server, and the Cluster as seen from it.
type node struct {
	*pgtest.Server
	*repmgr.Cluster
	cfg    repmgr.Config
	events *recorder
	daemon *repmgr.Monitor // the last one that was started; nil: none, or it was stopped
	stop   func()          // stops it, once; nil: none was started
}

// recorder is a Notifier that remembers.
type recorder struct{ ch chan repmgr.Event }

func (r *recorder) Notify(ctx context.Context, e repmgr.Event) error {
	select {
	case r.ch <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait returns the next event of that type.
func (r *recorder) wait(t *testing.T, typ repmgr.EventType) repmgr.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(waitLimit))
	defer cancel()
	for {
		select {
		case e := <-r.ch:
			if e.Type == typ {
				return e
			}
		case <-ctx.Done():
			require.FailNow(t, "event did not come", "%s", typ)
		}
	}
}

// waitRejoin leaves out the attempts that failed, as where an overloaded machine answers late.
func (r *recorder) waitRejoin(t *testing.T) repmgr.Event {
	t.Helper()
	for {
		if e := r.wait(t, repmgr.EventNodeRejoin); e.Success {
			return e
		}
	}
}

// config is the manual's three lines for a server, and what tests need beside.
func config(t *testing.T, id repmgr.NodeID, s *pgtest.Server) (repmgr.Config, *recorder) {
	rec := &recorder{ch: make(chan repmgr.Event, 1000)} // more than any test has events
	cfg := repmgr.DefaultConfig()
	cfg.NodeID, cfg.NodeName, cfg.ClusterName, cfg.Conninfo = id, fmt.Sprintf("node%d", id), "test", s.Conninfo()
	cfg.Logger = testLogger(t)
	cfg.MonitorInterval = 50 * millisecond
	cfg.Notifiers = []repmgr.Notifier{rec}
	return cfg, rec
}

func newNode(t *testing.T, id repmgr.NodeID, s *pgtest.Server, change ...func(*repmgr.Config)) *node {
	t.Helper()
	cfg, rec := config(t, id, s)
	for _, f := range change {
		f(&cfg)
	}
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	return &node{Server: s, Cluster: c, cfg: cfg, events: rec}
}

// startPrimary starts a server and registers it.
func startPrimary(t *testing.T, change ...func(*repmgr.Config)) *node {
	t.Helper()
	n := newNode(t, 1, pgtest.Start(t, pgtest.Options{Name: "node1"}), change...)
	_, err := n.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	return n
}

// addStandby clones, starts and registers a standby by the library alone.
func addStandby(t *testing.T, from *node, id repmgr.NodeID, change ...func(*repmgr.Config)) *node {
	t.Helper()
	n := prepareStandby(t, from, id, change...)
	_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: from.Conninfo(), Dir: n.Dir, FastCheckpoint: true})
	require.NoError(t, err)
	n.Start(t)
	_, err = n.RegisterStandby(t.Context(), repmgr.RegisterOptions{WaitSync: time.Minute})
	require.NoError(t, err)
	return n
}

// prepareStandby is a node whose data directory does not exist yet.
func prepareStandby(t *testing.T, from *node, id repmgr.NodeID, change ...func(*repmgr.Config)) *node {
	t.Helper()
	s := &pgtest.Server{Dir: filepath.Join(t.TempDir(), "data"), Port: pgtest.Port(t), BinDir: from.BinDir, Major: from.Major}
	return newNode(t, id, s, change...)
}

// Start starts what was cloned, on the node's port.
func (n *node) Start(t *testing.T) {
	t.Helper()
	n.Server = pgtest.StartDir(t, n.Dir, pgtest.Options{Name: n.cfg.NodeName, Port: n.Port, BinDir: n.BinDir})
}

// status is the view of one node in cluster show.
func (n *node) view(t *testing.T, id repmgr.NodeID) repmgr.NodeView {
	t.Helper()
	st, err := n.Status(t.Context())
	require.NoError(t, err)
	for _, v := range st.Nodes {
		if v.ID == id {
			return v
		}
	}
	require.FailNow(t, "node is not in the status", "%d", id)
	return repmgr.NodeView{}
}

// waitSame waits until the standby has replayed what the primary has written.
func waitSame(t *testing.T, primary, standby *node) {
	t.Helper()
	lsn := pgtest.Query[string](t, primary.Server, `SELECT pg_current_wal_lsn()::text`)
	pgtest.WaitFor(t, "standby to catch up", func(context.Context) error {
		if !pgtest.Query[bool](t, standby.Server, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn) {
			return errors.New("behind")
		}
		return nil
	})
}

// The manual's Examples: two standbys of node1, node1 is lost, node2 is
// promoted, node3 follows it, node4 is cloned from it.
func TestStoryOfTheManual(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	node3 := addStandby(t, node1, 3)
	require.Equal(t, "* running", node1.view(t, 1).Status)
	require.Equal(t, "running", node1.view(t, 2).Status)
	require.Equal(t, "node1", node1.view(t, 3).Upstream)

	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{node1.Conninfo(), node2.Conninfo()}})
	w.WaitForMore(t, 20)
	_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{})
	require.ErrorIs(t, err, repmgr.ErrPrimaryExists)

	w.Stop()
	w.Verify(t, node1.Conninfo())
	waitSame(t, node1, node2)
	waitSame(t, node1, node3)
	node1.Kill()
	promoted, err := node2.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 2, promoted.Timeline)
	require.Equal(t, repmgr.NodeID(1), promoted.FormerPrimary.ID)
	require.Len(t, promoted.Siblings, 1)

	followed, err := node3.Follow(t.Context(), repmgr.FollowOptions{})
	require.NoError(t, err)
	require.True(t, followed.Streaming)
	w.Verify(t, node2.Conninfo())
	w = pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{node2.Conninfo()}, Table: "after"})
	node4 := addStandby(t, node2, 4)
	w.WaitForMore(t, 20)
	w.Stop()
	w.Verify(t, node2.Conninfo())
	for _, n := range []*node{node3, node4} {
		waitSame(t, node2, n)
		for _, table := range []string{"pgtest_writer", "after"} {
			sum := `SELECT count(*) || ' ' || sum(id) FROM ` + table
			require.Equal(t, node2.QueryString(t, sum), n.QueryString(t, sum))
		}
		require.Equal(t, "node2", node2.view(t, n.cfg.NodeID).Upstream)
	}
	require.Equal(t, "- failed", node2.view(t, 1).Status)
}
