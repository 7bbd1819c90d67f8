package repmgr

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A command gets the time of an event as repmgr 5 gives it: as PostgreSQL prints
// that of the row, and otherwise in whole seconds.
func TestEvent_Stamp(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 10, 41, 53, 546_720_000, time.UTC)
	require.Equal(t, "2026-11-28 10:41:53+0000", Event{At: at}.stamp())
	require.Equal(t, "2026-11-28 10:41:53.54672+00", Event{At: at, written: true}.stamp())
	require.Equal(t, "2026-11-28 16:11:53.54672+05:30", Event{At: at.In(time.FixedZone("", 19800)), written: true}.stamp())
}
