package reconcile

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// A short receiver timeout that a dead coordinator has left behind ends with the next step of
// the standby's own daemon, which sees it in the state that it reads anyway.
func TestStandby_RestoresTheReceiverTimeout(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "standby"})
	n, err := registry.Connect(t.Context(), "standby", standby.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	w := voters.New(t.Context(), voters.Settings{Self: 2, SilenceTimeout: 2 * time.Second}, nil, func() {})
	defer w.Close()
	l := Standby{Options: Options{Self: 2, SilenceTimeout: 2 * time.Second, Watch: w, Report: func(what string, err error) { require.NoError(t, err, what) }}}
	shortened := func(want bool) {
		pgtest.WaitFor(t, "the setting to be read", func(ctx context.Context) error {
			status, err := n.Status(ctx)
			if err == nil && registry.ReceiverTimeoutShortened(status) != want {
				err = errors.New("not yet")
			}
			l.look.Status = status
			return err
		})
	}
	shortened(false)
	require.NoError(t, ballot.ShortenReceiverTimeout(t.Context(), n.Conn))
	shortened(true)
	require.NoError(t, l.Step(t.Context(), Look{Server: n, Status: l.look.Status}, time.Time{}))
	shortened(false)
}
