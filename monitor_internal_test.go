package repmgr

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/task"
)

// What changes while its own election is under way wakes no monitor; the end of that does.
func TestMonitor_RestsUntilItsElectionEnds(t *testing.T) {
	m := &Monitor{control: control{wake: make(chan struct{}, 1)}, cluster: &Cluster{cfg: Config{SilenceTimeout: time.Hour}}}
	end := make(chan struct{})
	m.tasks.current = task.Start(t.Context(), election.Elect, "", true, func(context.Context, *task.Task) error { <-end; return nil }, m.lookNow)
	rested := make(chan error, 1)
	m.lookNow()
	go func() { rested <- m.wait(t.Context(), time.Hour) }()
	require.Eventually(t, func() bool { return len(m.control.wake) == 0 }, time.Minute, time.Millisecond)
	close(end)
	require.NoError(t, <-rested)
	require.Empty(t, m.control.wake, "it is for its end that it returns")
}
