package registry

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A command gets the time of an event as repmgr 5 gives it: as PostgreSQL prints
// that of the row, and otherwise in whole seconds.
func TestEventTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 10, 41, 53, 546_720_000, time.UTC)
	require.Equal(t, "2026-11-28 10:41:53+0000", EventTime(Event{At: at}))
	require.Equal(t, "2026-11-28 10:41:53.54672+00", EventTime(Event{At: at, written: true}))
	require.Equal(t, "2026-11-28 16:11:53.54672+05:30", EventTime(Event{At: at.In(time.FixedZone("", 19800)), written: true}))
}
