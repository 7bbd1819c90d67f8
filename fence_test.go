package repmgr_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// freeze stops every process of the server: it falls silent, and is not dead.
func (n *node) freeze(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	frozen := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == n.Dir && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			frozen++
		}
	}
	require.Positive(t, frozen)
}

// patient lets the Monitor of a frozen server leave it alone.
func patient(c *repmgr.Config) { c.HangTimeout = time.Hour }

// A primary that is silent, and that nobody is sure to stop, is replaced only
// where an operator forces it: why is said by name, beforehand as well.
func TestFailover_NotFromAPrimaryThatNobodyStops(t *testing.T) {
	tests := map[string]struct {
		change    func(t *testing.T, c *repmgr.Config)
		unguarded election.Unguarded
	}{
		"manual": {func(_ *testing.T, c *repmgr.Config) { c.Failover = repmgr.FailoverManual }, election.UnguardedManual},
		"unable": {func(t *testing.T, c *repmgr.Config) { c.DataDirectory = t.TempDir() }, election.UnguardedUnable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			_, stop := nodes[0].monitor(t)
			for _, n := range nodes[1:] {
				n.monitor(t)
			}
			waitReady(t, nodes[0], 3, repmgr.SynchronousOff)
			stop()
			test.change(t, &nodes[0].cfg)
			nodes[0].monitor(t)
			pgtest.WaitFor(t, "explain to foretell it", func(ctx context.Context) error {
				e, err := nodes[1].Explain(ctx, repmgr.ExplainOptions{})
				if err == nil && e.Forecast.Unfenced != test.unguarded {
					err = fmt.Errorf("unfenced: %q", e.Forecast.Unfenced)
				}
				return err
			})
			st, err := nodes[1].ServiceStatus(t.Context())
			require.NoError(t, err)
			require.Nil(t, st.Nodes[0].Monitor.LeaseLeft, "it does not stop itself")
			nodes[0].freeze(t)
			e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
			require.Contains(t, e.Details, string(election.RefusedUnfenced))
			require.Contains(t, e.Details, string(test.unguarded))
			require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
			_, err = nodes[2].Failover(t.Context(), repmgr.FailoverOptions{})
			require.ErrorContains(t, err, string(election.RefusedUnfenced))
			_, err = nodes[2].Failover(t.Context(), repmgr.FailoverOptions{Force: true})
			require.NoError(t, err)
		})
	}
}

// Daemons that were restarted while the primary is cut off go by what was kept of
// it; where that is missing, they refuse by name.
func TestFailover_OfAPrimaryThatWasNotSeenSince(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprintf("kept %v", kept), func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			patient(&nodes[0].cfg)
			nodes[0].monitor(t)
			var stops []func()
			for _, n := range nodes[1:] {
				_, stop := n.monitor(t)
				stops = append(stops, stop)
			}
			waitReady(t, nodes[0], 3, repmgr.SynchronousOff)
			for _, n := range nodes[1:] {
				pgtest.WaitFor(t, "what is kept of the primary", func(context.Context) error {
					if k := readKept(t, n); k.Guard == nil || !k.Guard.CanFence || len(k.Nodes) != 3 {
						return fmt.Errorf("%+v", k)
					}
					return nil
				})
			}
			for _, stop := range stops {
				stop()
			}
			if !kept {
				for _, n := range nodes[1:] {
					require.NoError(t, os.Remove(filepath.Join(n.Dir, "repmgr_nodes.json")))
				}
			}
			nodes[0].freeze(t)
			for _, n := range nodes[1:] {
				n.monitor(t)
			}
			if kept {
				waitPrimary(t, nodes[1:]...)
				return
			}
			e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
			require.Contains(t, e.Details, string(election.UnguardedUnknown))
		})
	}
}

func readKept(t *testing.T, n *node) (k struct {
	Nodes []repmgr.Record `json:"nodes"`
	Guard *struct {
		CanFence bool `json:"can_fence"`
	} `json:"guard"`
}) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "repmgr_nodes.json"))
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return k
}
