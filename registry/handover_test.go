package registry

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// Who removes a request that is over removes no other one, which was written since.
func TestDropRequest(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n, err := Connect(ctx, "", pgtest.Start(t, pgtest.Options{}).Conninfo())
	require.NoError(t, err)
	defer n.Close()
	require.NoError(t, n.DropHandover(ctx, "none"))
	require.NoError(t, n.SetHandover(ctx, election.Handover{ID: "newer", Term: 1}))
	require.NoError(t, n.SetRestart(ctx, election.Restart{ID: "newer", Term: 1}))
	for _, step := range []struct{ dropped, left string }{{"older", "newer"}, {"newer", ""}} {
		require.NoError(t, n.DropHandover(ctx, step.dropped))
		require.NoError(t, n.DropRestart(ctx, step.dropped))
		h, err := n.Handover(ctx)
		require.NoError(t, err)
		require.Equal(t, step.left, h.ID)
		r, err := n.Restart(ctx)
		require.NoError(t, err)
		require.Equal(t, step.left, r.ID)
	}
}
