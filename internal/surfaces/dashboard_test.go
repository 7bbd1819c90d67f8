package surfaces

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// The dashboard of each node shows the primary, what the others have answered, and later the failover with its phases. The
// command line prints the same picture.
func TestDashboard(t *testing.T) {
	t.Parallel()
	ports := []int{pgtest.Port(t), pgtest.Port(t), pgtest.Port(t)}
	nodes := daemontest.ClusterOf(t, 3, func(id int) []string {
		return []string{fmt.Sprintf("http_listen='127.0.0.1:%d'", ports[id-1]), "rejoin=rewind"}
	})
	shows := func(port int, path string, words ...string) error {
		page := get(t, port, path)
		for _, word := range words {
			if !strings.Contains(page, word) {
				return fmt.Errorf("%s on port %d does not show %q:\n%s", path, port, word, page)
			}
		}
		return nil
	}
	pgtest.WaitFor(t, "all dashboards", func(context.Context) error {
		for _, port := range ports {
			get(t, port, "/ui/ask")
			if err := shows(port, "/ui", "node1 is the primary of term", "If node1 died now, node", "3 of 3 answer", "may write", `class="stream well"`, "standby: "); err != nil {
				return err
			}
		}
		return nil
	})
	for path, word := range map[string]string{
		"explain": "Expected loss", "why": "What each repmgrd says now", "why-not?node=node2": "Why node2 is not the primary", "doctor": " checks", "matrix": "All nodes reach each other",
		"plan?node=node2": "standby switchover --to=2", "topology.svg": "<svg", "failovers/99": "No failover of term 99",
	} {
		require.NoError(t, shows(ports[2], "/ui/"+path, word))
	}
	picture, code := nodes[1].Sh(t, "repmgr -f $C cluster show --svg")
	require.Equal(t, 0, code, picture)
	require.Equal(t, 2, strings.Count(picture, `class="stream well"`), picture)

	nodes[0].Kill()
	link := regexp.MustCompile(`/ui/failovers/\d+`)
	pgtest.WaitFor(t, "the failover on the dashboard", func(context.Context) error {
		get(t, ports[1], "/ui/ask")
		if err := shows(ports[1], "/ui", "is the primary of term"); err != nil {
			return err
		}
		if shows(ports[1], "/ui", "repmgrd_failover") != nil { // then the other one has held it
			if err := shows(ports[2], "/ui", "repmgrd_failover"); err != nil {
				return err
			}
		}
		return shows(ports[1], link.FindString(get(t, ports[1], "/ui")), "first commit", "pledges", "node1 &rarr; node")
	})
}
