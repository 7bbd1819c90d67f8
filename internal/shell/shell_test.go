package shell

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What a daemon starts, a server above all, has the usual timer slack, not the daemon's.
func TestRunShell_TimerSlack(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	require.NoError(t, unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(time.Millisecond), 0, 0, 0))
	out, err := Run(t.Context(), "cat /proc/self/timerslack_ns", nil)
	require.NoError(t, err)
	require.Equal(t, "50000\n", string(out))
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	require.NoError(t, err)
	require.EqualValues(t, time.Millisecond, slack)
}
