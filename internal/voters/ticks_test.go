package voters

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTimerfd(t *testing.T) {
	t.Parallel()
	for name, timer := range map[string]*timerfd{"of the kernel": newTimerfd(), "of Go": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.True(t, timer != nil || name == "of Go")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer timer.close()
			defer context.AfterFunc(ctx, timer.close)()
			for range 3 {
				begun := time.Now()
				require.NoError(t, timer.wait(ctx, 5*time.Millisecond))
				require.GreaterOrEqual(t, time.Since(begun), 5*time.Millisecond)
			}
			over := errors.New("over")
			go cancel(over)
			require.ErrorIs(t, timer.wait(ctx, time.Hour), over)
		})
	}
}

func TestWatch_Lull(t *testing.T) {
	t.Parallel()
	w := &Watch{}
	w.Use(Settings{SilenceTimeout: 40 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	lulls := func(t *testing.T) {
		for _, d := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 35 * time.Millisecond} {
			begun := time.Now()
			require.NoError(t, w.Rest(ctx, d, nil))
			require.GreaterOrEqual(t, time.Since(begun), d-w.heartbeatInterval()/2)
		}
		wake := make(chan struct{}, 1)
		wake <- struct{}{}
		require.NoError(t, w.Rest(ctx, time.Hour, wake))
	}
	lulls(t) // no ticks come
	w.ticks.start()
	w.wg.Go(func() { w.ticks.run(ctx, func() time.Duration { return w.heartbeatInterval() }) })
	lulls(t)
	cancel()
	require.ErrorIs(t, w.Rest(ctx, time.Hour, nil), context.Canceled)
	w.wg.Wait()
}
