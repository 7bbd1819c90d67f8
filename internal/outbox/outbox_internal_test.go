package outbox

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
)

// The newest are kept, and how many gave way for them; what is written meanwhile
// takes out no others.
func TestOutbox_KeepsTheNewest(t *testing.T) {
	t.Parallel()
	b := New()
	start := time.Now()
	for i := range maxEvents + 5 {
		b.Add(registry.Event{Type: registry.EventFence, At: start.Add(time.Duration(i)), Details: fmt.Sprint(i)}, nil)
	}
	require.Len(t, b.rows.Events, maxEvents)
	require.Equal(t, "5", b.rows.Events[0].Details)
	first := b.nextBatch()
	require.Len(t, first, batchSize)
	b.Add(registry.Event{Type: registry.EventFence, At: start.Add(time.Hour), Details: "new"}, nil) // the oldest gives way
	require.Equal(t, 6, b.removeWritten(first))
	require.Zero(t, b.rows.Dropped)
	require.Len(t, b.rows.Events, maxEvents+1-batchSize)
	require.Equal(t, fmt.Sprint(5+batchSize), b.rows.Events[0].Details)
}
