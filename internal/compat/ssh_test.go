package compat

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// Where no daemon runs, as in many clusters of repmgr 5, a switchover starts them over ssh, and
// leaves none behind. What it can not do it says beforehand.
func TestSwitchoverWithoutDaemons(t *testing.T) {
	t.Parallel()
	for _, count := range []int{2, 3} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			t.Parallel()
			sshd := pgtest.StartSSHD(t)
			var nodes []*daemontest.Host
			for id := 1; id <= count; id++ {
				var s *pgtest.Server
				if name := fmt.Sprintf("node%d", id); id == 1 {
					s = pgtest.Start(t, pgtest.Options{Name: name})
				} else {
					s = pgtest.NewStandby(t, nodes[0].Server, pgtest.Options{Name: name})
				}
				h := daemontest.NewHost(t, id, s, fmt.Sprintf("ssh_options='%s'", strings.Join(sshd.Options, " ")), fmt.Sprintf("repmgr_bindir='%s'", os.Getenv(daemontest.BinEnv)), fmt.Sprintf("repmgrd_pid_file='%s/pid'", s.Dir))
				text, err := os.ReadFile(h.Conf())
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(h.Conf(), bytes.Replace(text, []byte("failover=automatic"), []byte("failover=manual"), 1), 0o600))
				nodes = append(nodes, h)
				if id == 1 {
					h.Must(t, "repmgr -f $C primary register")
				} else {
					h.Must(t, "repmgr -f $C standby register --wait-sync=30")
				}
			}
			to := nodes[count-1]
			out := to.Must(t, "repmgr -f $C standby switchover --dry-run")
			require.Contains(t, out, fmt.Sprintf("step 1, daemons, on node1: repmgrd is started over ssh, with %s,", nodes[0].Conf()))
			require.Contains(t, out, "prerequisites for executing STANDBY SWITCHOVER are met")
			require.Equal(t, "f", nodes[0].QueryString(t, `SELECT EXISTS (SELECT FROM repmgr.rules)`), "nothing is done yet")

			out, code := to.Sh(t, "repmgr -f $C standby switchover -R nobody_here --dry-run 2>&1")
			require.Equal(t, 18, code, out)
			require.Contains(t, out, `repmgrd can not be started on the machine of node "node1" (ID: 1)`)
			require.Contains(t, out, "This must work there, without a password (-R, ssh_options, repmgr_bindir)")

			nodes[0].Exec(t, `UPDATE repmgr.nodes SET type = 'standby' WHERE node_id = 1`)
			out, code = to.Sh(t, "repmgr -f $C standby switchover 2>&1")
			require.Equal(t, 18, code, out)
			require.Contains(t, out, "runs as a primary, and is registered as a standby")
			nodes[0].Exec(t, `UPDATE repmgr.nodes SET type = 'primary' WHERE node_id = 1`)

			// Whoever has started them is gone before anything was begun: they end in a moment.
			onePrimary := func(context.Context) error {
				all, primaries := "", 0
				for _, h := range nodes {
					if got, _ := h.Sh(t, fmt.Sprintf(`psql -XAtc 'SELECT pg_is_in_recovery()' %q`, h.Conninfo())); strings.TrimSpace(got) == "f" {
						primaries++
					}
				}
				if all, _ = to.Sh(t, "repmgr -f $C service status 2>&1"); primaries != 1 || strings.Count(all, "| not running |") != count {
					return fmt.Errorf("%d primaries: %s", primaries, all)
				}
				return nil
			}
			out, _ = to.Sh(t, `repmgr -f $C standby switchover > log 2>&1 & p=$!
				until grep -q 'starting repmgrd' log; do sleep 0.1; done
				until repmgr -f $C service status 2>&1 | grep -q '| running |'; do sleep 0.1; done
				kill -9 $p; wait $p; psql -XAtc "SELECT current_setting('repmgr.switchover', true) <> ''" `+"'"+nodes[0].Conninfo()+"'")
			require.NotContains(t, out, "t\n", "it was killed too late")
			pgtest.WaitFor(t, "one primary, and no daemon", onePrimary)
			require.Equal(t, "f", nodes[0].QueryString(t, `SELECT pg_is_in_recovery()`), "nothing was begun")

			// The operator gives up in the middle: the daemons end what they have begun, and are stopped.
			out, code = to.Sh(t, `repmgr -f $C standby switchover > log 2>&1 & p=$!
				until grep -q 'starting repmgrd' log; do sleep 0.1; done
				while kill -0 $p 2>/dev/null && ! psql -XAtc "SELECT current_setting('repmgr.switchover', true) <> ''" `+"'"+nodes[0].Conninfo()+"'"+` | grep -q t; do sleep 0.1; done
				kill -INT $p 2>/dev/null; wait $p; echo "rc $?"; cat log`)
			require.Zero(t, code, out)
			pgtest.WaitFor(t, "one primary, and no daemon", onePrimary)
			if to.QueryString(t, `SELECT pg_is_in_recovery()`) == "f" { // it was too late for that
				nodes[0].Must(t, "repmgr -f $C standby switchover")
			}

			out = to.Must(t, "repmgr -f $C standby switchover")
			require.Contains(t, out, "STANDBY SWITCHOVER has completed successfully")
			require.Equal(t, "f", to.QueryString(t, `SELECT pg_is_in_recovery()`))
			pgtest.WaitFor(t, "all nodes to be well, and no daemon", func(context.Context) error {
				if out, code := to.Sh(t, "repmgr -f $C cluster show 2>&1"); code != 0 {
					return fmt.Errorf("%s", out)
				}
				if out, _ := to.Sh(t, "repmgr -f $C service status 2>&1"); strings.Count(out, "| not running |") != count {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
			out = nodes[0].Must(t, "repmgr -f $C standby switchover") // and back
			require.Contains(t, out, "STANDBY SWITCHOVER has completed successfully")
		})
	}
}
