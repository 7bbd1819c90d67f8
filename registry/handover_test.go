package registry

import (
	"context"
	"errors"
	"testing"
	"time"

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

// A request is either begun or taken back, however close together both are.
func TestChangeHandover(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := pgtest.Start(t, pgtest.Options{})
	open := func() *Server {
		n, err := Connect(ctx, "", server.Conninfo())
		require.NoError(t, err)
		t.Cleanup(n.Close)
		return n
	}
	daemon, operator := open(), open()
	late := errors.New("too late")
	begin := func(h election.Handover) (election.Handover, error) {
		if h.ID == "" {
			return h, late
		}
		h.Begun = true
		return h, nil
	}
	takeBack := func(h election.Handover) (election.Handover, error) {
		if h.Begun {
			return h, late
		}
		return election.Handover{}, nil
	}
	for range 50 {
		require.NoError(t, daemon.SetHandover(ctx, election.Handover{ID: "x", Term: 1}))
		begun := make(chan error)
		go func() { begun <- daemon.ChangeHandover(ctx, begin) }()
		errBack := operator.ChangeHandover(ctx, takeBack)
		errBegun := <-begun
		h, err := operator.Handover(ctx)
		require.NoError(t, err)
		if errBegun == nil {
			require.ErrorIs(t, errBack, late)
			require.True(t, h.Begun)
		} else {
			require.ErrorIs(t, errBegun, late)
			require.NoError(t, errBack)
			require.Zero(t, h)
		}
	}

	// The wait for another one who changes it has an end.
	holding, release, over := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		over <- daemon.ChangeHandover(ctx, func(h election.Handover) (election.Handover, error) {
			close(holding)
			<-release
			return h, nil
		})
	}()
	<-holding
	limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, operator.ChangeHandover(limited, takeBack), context.DeadlineExceeded)
	close(release)
	require.NoError(t, <-over)
}
