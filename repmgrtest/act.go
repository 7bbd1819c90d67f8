package repmgrtest

import (
	"context"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// KillPrimary waits until another node could take over, and kills all processes of the primary at once, as a crash does. It
// returns the node that was killed, and does not wait for the next primary: see [Cluster.WaitForPrimary]. The Monitor of the node
// that was killed brings it back as a standby of the next one.
func (c *Cluster) KillPrimary(t testing.TB) *Node {
	t.Helper()
	n := c.WaitUntilReady(t)
	n.Kill(t)
	return n
}

// HangPrimary is [Cluster.KillPrimary] with a server that hangs: its connections stay open, and nothing answers any more, as after a
// network is cut. After two seconds its Monitor kills it. A service that waits without a deadline is found out by this.
func (c *Cluster) HangPrimary(t testing.TB) *Node {
	t.Helper()
	n := c.WaitUntilReady(t)
	c.after = n.term()
	if err := n.server.TryFreeze(); err != nil {
		c.fail(t, "let the primary hang: %v", err)
	}
	return n
}

// Switchover waits until the cluster is ready, makes a standby the primary and the primary its standby, as before maintenance, and
// returns the new primary. Commits fail or wait for a moment; none that was acknowledged is lost.
func (c *Cluster) Switchover(t testing.TB) *Node {
	t.Helper()
	from := c.WaitUntilReady(t)
	c.after = from.term()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(limit))
	defer cancel()
	res, err := from.Repmgr.Switchover(ctx, repmgr.SwitchoverOptions{})
	if err != nil {
		c.fail(t, "switchover from %s: %v %s", from.Name, err, repmgr.Hint(err))
	}
	for _, n := range c.nodes {
		if n.config.NodeID == res.To.ID {
			return n
		}
	}
	c.fail(t, "switchover from %s: nobody knows %s", from.Name, res.To)
	return nil
}

// Kill kills all processes of the node's server at once. A primary is replaced, and its Monitor brings it back as a standby; a
// standby stays down until [Node.Restart], and counts as a node that is lost.
func (n *Node) Kill(t testing.TB) {
	t.Helper()
	c := n.cluster
	if rule := n.monitor.View().Rule; rule.Primary == int32(n.config.NodeID) {
		c.after = rule.Term
	} else {
		n.down = true
	}
	if err := n.server.TryKill(); err != nil {
		c.fail(t, "kill: %v", err)
	}
}

// Restart shuts the node's server down in order, where it runs, starts it again, and waits until it does what it did before: a
// primary stays the primary, because a shutdown in order is no failure. It is not meant for a former primary that is about to come back.
func (n *Node) Restart(t testing.TB) {
	t.Helper()
	c := n.cluster
	if n.server.Started() {
		if err := n.server.TryStop("fast"); err != nil {
			c.fail(t, "restart: %v", err)
		}
	}
	if err := n.server.TryStart(); err != nil {
		c.fail(t, "restart: %v", err)
	}
	n.down = false
	started := time.Now()
	c.wait(t, n.Name+" to be back", func(ctx context.Context) error { return n.back(ctx, started) })
}
