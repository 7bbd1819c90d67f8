package task_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/task"
)

// A task that only waits gives way; one that is firm does not, and ends when it is told to.
func TestTask(t *testing.T) {
	t.Parallel()
	woken := make(chan struct{}, 1)
	start := func(firm bool) *task.Task {
		return task.Start(t.Context(), election.Rejoin, "", firm, func(ctx context.Context, _ *task.Task) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}, func() { woken <- struct{}{} })
	}
	a := start(false)
	require.True(t, a.Interruptible())
	require.True(t, a.Is(election.Elect, election.Rejoin))
	over, _ := a.Outcome()
	require.False(t, over)
	a.GiveWay()
	<-woken
	require.False(t, a.Is(election.Rejoin))
	over, err := a.Outcome()
	require.True(t, over)
	require.ErrorContains(t, err, "gives way")

	a = start(true)
	require.False(t, a.Interruptible())
	a.GiveWay()
	over, _ = a.Outcome()
	require.False(t, over)
	require.True(t, errors.Is(a.End(), context.Canceled))
}

// What must not be ended half-way does not begin once the task was told to end.
func TestTask_Hold(t *testing.T) {
	t.Parallel()
	told := make(chan struct{})
	a := task.Start(t.Context(), election.Rejoin, "", false, func(ctx context.Context, a *task.Task) error {
		if err := a.Hold(ctx, true); err != nil {
			return err
		}
		<-told
		if a.Interruptible() {
			return errors.New("it holds nothing")
		}
		return a.Hold(ctx, false)
	}, func() {})
	require.Eventually(t, func() bool { return !a.Interruptible() }, time.Minute, time.Millisecond)
	a.GiveWay()
	close(told)
	err := errors.New("it is not over")
	require.Eventually(t, func() (over bool) { over, err = a.Outcome(); return over }, time.Minute, time.Millisecond)
	require.NoError(t, err)
}

// Nothing under way can be asked as well.
func TestTask_None(t *testing.T) {
	t.Parallel()
	var none *task.Task
	none.GiveWay()
	over, err := none.Outcome()
	require.False(t, over || none.Interruptible() || none.Is(election.Elect))
	require.NoError(t, err)
}
