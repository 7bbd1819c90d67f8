package repmgr

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The newest are kept, and how many gave way for them; what is written meanwhile
// takes out no others.
func TestPending_KeepsTheNewest(t *testing.T) {
	t.Parallel()
	var p pending
	start := time.Now()
	for i := range pendingMax + 5 {
		p.add(Event{Type: EventFence, At: start.Add(time.Duration(i)), Details: fmt.Sprint(i)})
	}
	require.Len(t, p.Events, pendingMax)
	require.Equal(t, "5", p.Events[0].Details)
	batch := p.oldest()
	require.Len(t, batch, pendingBatch)
	p.add(Event{Type: EventFence, At: start.Add(time.Hour), Details: "new"}) // the oldest gives way
	require.Equal(t, 6, p.done(batch))
	require.Zero(t, p.Dropped)
	require.Len(t, p.Events, pendingMax+1-pendingBatch)
	require.Equal(t, fmt.Sprint(5+pendingBatch), p.Events[0].Details)
}
