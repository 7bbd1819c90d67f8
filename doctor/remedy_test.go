package doctor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// What doctor prints is typed at 3 a.m.: it must not make a second primary, promote a standby, or stop one.
func TestRemedy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code   report.FindingCode
		change func(f *Facts, n *Node)
		says   string
		never  string
	}{
		"a standby that is down is started":                   {report.Unreachable, func(_ *Facts, n *Node) { n.Record.Active = true }, "node service --action=start", ""},
		"one that may have been the primary is not":           {report.Unreachable, func(_ *Facts, n *Node) {}, "node rejoin", "--action=start"},
		"a registered primary is not, while another one runs": {report.Unreachable, func(_ *Facts, n *Node) { n.Record.Active, n.Record.Role = true, registry.RolePrimary }, "node rejoin", "--action=start"},
		"without a primary nobody is": {report.Unreachable, func(f *Facts, n *Node) {
			n.Record.Active = true
			f.Nodes[0].Answer = false
		}, "cluster explain", "--action=start"},
		"replay that somebody has paused":        {report.ReplayPaused, func(_ *Facts, n *Node) { n.Peer.SeenAt = now }, "pg_wal_replay_resume", ""},
		"replay at a recovery target":            {report.ReplayPaused, func(_ *Facts, n *Node) { n.Peer.SeenAt, n.Peer.ReplayBlocked = now, election.UnfitTarget }, "promote", "pg_wal_replay_resume"},
		"replay that waits for a larger setting": {report.ReplayPaused, func(_ *Facts, n *Node) { n.Peer.SeenAt, n.Peer.ReplayBlocked = now, election.UnfitParameters }, "raise", "pg_wal_replay_resume"},
		"a router that fails":                    {report.RouterFailing, func(_ *Facts, n *Node) {}, "docs/routers.md", ""},
		"replay of which nothing is known":       {report.ReplayPaused, func(_ *Facts, n *Node) {}, "raise", "pg_wal_replay_resume"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := healthy()
			c.change(&f, &f.Nodes[2])
			got := f.remedy(report.Finding{Code: c.code, NodeID: 3})
			require.Contains(t, got, c.says)
			if c.never != "" {
				require.NotContains(t, got, c.never)
			}
		})
	}
}
