package repmgrtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// WaitForPrimary waits until a primary is in office: it was elected, after [Cluster.KillPrimary], [Cluster.HangPrimary],
// [Cluster.Switchover] and [Node.Kill] a new one, and a commit on it has gone through.
func (c *Cluster) WaitForPrimary(t testing.TB) *Node {
	t.Helper()
	var found *Node
	c.wait(t, "a primary in office", func(ctx context.Context) (err error) {
		if found, err = c.primary(); err != nil {
			return err
		}
		return found.commit(ctx)
	})
	return found
}

// WaitUntilReady waits until all nodes but those that the test has killed as standbys are where they belong, a former primary that
// comes back among them, and a failover is possible. It returns the primary.
func (c *Cluster) WaitUntilReady(t testing.TB) *Node {
	t.Helper()
	var primary *Node
	c.wait(t, "the cluster to be ready for a failover", func(ctx context.Context) (err error) {
		primary, err = c.ready(ctx)
		return err
	})
	return primary
}

// primary is the node that is in office now, in a later term than the one that was lost last.
func (c *Cluster) primary() (*Node, error) {
	var none []string
	for _, n := range c.nodes {
		switch verdict := n.monitor.View().Primary(); {
		case !verdict.OK:
			none = append(none, n.Name+": "+verdict.Why)
		case n.term() <= c.after:
			none = append(none, n.Name+" was lost a moment ago")
		default:
			return n, nil
		}
	}
	return nil, errors.New(strings.Join(none, "; "))
}

// ready returns the primary, or what is not as it should be.
func (c *Cluster) ready(ctx context.Context) (*Node, error) {
	p, err := c.primary()
	if err != nil {
		return nil, err
	}
	rule := p.monitor.Status().Rule
	if len(rule.Voters) != len(c.nodes) {
		return nil, fmt.Errorf("%d of %d nodes are voters", len(rule.Voters), len(c.nodes))
	}
	var up []*Node
	for _, n := range c.nodes {
		if n.down {
			continue
		}
		up = append(up, n)
		switch s := n.monitor.Status(); {
		case !s.Settled || s.Health != election.HealthAlive || s.Rule.Primary != rule.Primary:
			return nil, fmt.Errorf("%s: %s (%s)", n.Name, s.Phase, s.Reason)
		case n != p && rule.Quorum && !slices.Contains(rule.Sync, int32(n.config.NodeID)):
			return nil, fmt.Errorf("commits do not wait for %s yet", n.Name)
		}
	}
	newest, err := p.newestRule(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range up { // one that has not replayed the newest rule would rightly not be promoted
		switch row, err := n.newestRule(ctx); {
		case err != nil:
			return nil, err
		case row != newest:
			return nil, fmt.Errorf("%s has rule %s, and %s has %s", n.Name, row, p.Name, newest)
		}
	}
	explained, err := p.Repmgr.Explain(ctx, repmgr.ExplainOptions{})
	if err != nil {
		return nil, err
	}
	for _, b := range explained.Blocked {
		return nil, fmt.Errorf("a failover is not possible: %s", b.Reason)
	}
	return p, p.commit(ctx)
}

// back returns nil when the node has done, since its start, what the newest rule wants of it.
func (n *Node) back(ctx context.Context, started time.Time) error {
	v, s := n.monitor.View(), n.monitor.Status()
	switch {
	case !v.Running().OK:
		return errors.New(v.Running().Why)
	case !s.LookedAt.After(started) || !s.Settled || s.Health != election.HealthAlive:
		return fmt.Errorf("%s (%s)", s.Phase, s.Reason)
	case v.Primary().OK:
		return n.commit(ctx)
	case !v.Standby().OK:
		return errors.New(v.Primary().Why)
	case !v.Streams():
		return errors.New("it does not stream")
	}
	return nil
}

// term is the newest one that the node's Monitor knows of.
func (n *Node) term() int64 { return n.monitor.View().Rule.Term }

// try is how long one question to a server may take.
const try = 3 * time.Second

// commit commits something that no other session sees.
func (n *Node) commit(ctx context.Context) error {
	return n.query(ctx, `SELECT pg_logical_emit_message(true, 'repmgrtest', '')::text`, new(string))
}

// newestRule is the term and the number of the newest rule that the node has in its tables.
func (n *Node) newestRule(ctx context.Context) (rule string, err error) {
	err = n.query(ctx, `SELECT term || '/' || seq FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`, &rule)
	return rule, err
}

func (n *Node) query(ctx context.Context, sql string, into *string) error {
	ctx, cancel := context.WithTimeout(ctx, pgtest.Timeout(try))
	defer cancel()
	conn, err := pgx.Connect(ctx, n.ConnString)
	if err != nil {
		return fmt.Errorf("ask %s: %w", n.Name, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := conn.QueryRow(ctx, sql).Scan(into); err != nil {
		return fmt.Errorf("ask %s: %w", n.Name, err)
	}
	return nil
}

// wait waits until ok returns nil, and fails the test with all that is known where it does not in time.
func (c *Cluster) wait(t testing.TB, what string, ok func(context.Context) error) {
	t.Helper()
	if err := pgtest.Poll(pgtest.Timeout(limit), ok); err != nil {
		c.fail(t, "waited %s for %s: %v", pgtest.Timeout(limit), what, err)
	}
}

// fail fails the test, with what each node does and the last that its server has logged.
func (c *Cluster) fail(t testing.TB, format string, args ...any) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "repmgrtest: "+format, args...)
	for _, n := range c.nodes {
		fmt.Fprintf(&b, "\n%s (port %d, %s)", n.Name, n.server.Port, map[bool]string{true: "running", false: "down"}[n.server.Started()])
		if n.monitor != nil {
			s := n.monitor.Status()
			fmt.Fprintf(&b, ": its Monitor is %s: %s %s", s.Phase, s.Reason, s.Error)
		}
		for line := range strings.Lines(n.logTail(8)) {
			b.WriteString("\n\t" + strings.TrimSpace(line))
		}
	}
	t.Fatal(b.String())
}

// logTail is the end of the server's log: what it wrote since the test started it, or since its Monitor did.
func (n *Node) logTail(lines int) string {
	byMonitor, _ := os.ReadFile(filepath.Join(n.server.Dir, "repmgr-start.log"))
	return lastLines(n.server.Log()+string(byMonitor), lines)
}

func lastLines(text string, n int) string {
	lines := strings.SplitAfter(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// journal keeps what the Monitors log, until somebody wants to see it.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) tail(n int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return lastLines(j.text.String(), n)
}
