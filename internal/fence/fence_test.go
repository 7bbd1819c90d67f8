package fence

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// A suspend shows in CLOCK_BOOTTIME, a machine that was stopped from outside at
// most in the wall clock; what was seen before is older by that.
func TestSleeps(t *testing.T) {
	t.Parallel()
	now := time.Now()
	from := reading{now, time.Hour}
	wall := now.Add(time.Second) // with both clocks
	forward := time.Unix(0, wall.UnixNano()).Add(time.Minute)
	require.Zero(t, sleptBetween(from, reading{wall, time.Hour + time.Second}, time.Second))
	require.Zero(t, sleptBetween(from, reading{wall, time.Hour + time.Second + 5*time.Millisecond}, time.Second), "read a moment apart")
	require.Equal(t, 9*time.Second, sleptBetween(from, reading{wall, time.Hour + 10*time.Second}, time.Second))
	require.Zero(t, forward.Sub(forward.Round(0)))

	var s sleeps
	require.Zero(t, s.note(from, time.Second))
	require.Equal(t, 9*time.Second, s.note(reading{wall, time.Hour + 10*time.Second}, time.Second))
	require.Equal(t, now.Add(-9*time.Second), s.adjusted(now))
	require.Equal(t, wall, s.adjusted(wall))
	require.Zero(t, s.adjusted(time.Time{}))
	for i := range 2 * sleepsKept {
		s.note(reading{wall, time.Hour + time.Duration(i+2)*10*time.Second}, time.Second)
	}
	require.Len(t, s.past, sleepsKept)
}

// A reply is of a node only where nobody else has its name, and where it comes
// from the node's address; it is as old as the newest moment whose WAL it has.
func TestContact(t *testing.T) {
	t.Parallel()
	senders := []walSender{{"node2", "10.0.0.2", 100}, {"node3", "10.0.0.3", 100}, {"node3", "10.0.0.4", 100}}
	s, ok := soleSender(senders, "node2")
	require.True(t, ok)
	require.Equal(t, wal.LSN(100), s.Write)
	for _, name := range []string{"node3", "node4"} {
		_, ok = soleSender(senders, name)
		require.False(t, ok, name)
	}
	var c contact
	start := time.Now()
	for i := range 3 * marksKept {
		c.mark(walMark{start.Add(time.Duration(i) * time.Second), wal.LSN(10 * i)})
	}
	require.Len(t, c.marks, marksKept)
	last := 3*marksKept - 1
	require.Equal(t, start.Add(time.Duration(last)*time.Second), c.since(wal.LSN(10*last+1)))
	require.Equal(t, start.Add(time.Duration(last-1)*time.Second), c.since(wal.LSN(10*last)), "it may have been there before")
	require.Zero(t, c.since(5), "it is older than all that is known")
	for _, test := range []struct {
		conninfo, address string
		want              bool
	}{
		{"host=10.0.0.2", "10.0.0.2", true},
		{"host=10.0.0.2", "10.0.0.3", false},
		{"host=db2 hostaddr=10.0.0.2", "10.0.0.2", true},
		{"host=::1", "0:0:0:0:0:0:0:1", true},
		{"host=localhost", "127.0.0.1", true},
		{"host=localhost", "10.0.0.2", false},
		{"host=/run/postgresql", "", true},
		{"host=/run/postgresql", "127.0.0.1", false},
		{"host=10.0.0.2", "", false},
		{"host=a,b", "10.0.0.2", false},
	} {
		require.Equal(t, test.want, c.isAt(t.Context(), registry.Record{Conninfo: test.conninfo}, test.address), "%s at %s", test.address, test.conninfo)
	}
}

// Between two renewals, and a late answer, a lease does not run out: two looks have
// to have failed. It is said at the latest when half of silence_timeout is left.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	s := Settings{SilenceTimeout: 2 * time.Second}
	for _, fence := range []time.Duration{s.SilenceTimeout, 2500 * time.Millisecond, 24 * time.Hour} {
		s.FenceTimeout = fence
		for since, want := range map[time.Duration]bool{0: false, 500: false, 990: false, 1010: true, 2000: true} {
			if got := s.runsOut(fence - since*time.Millisecond); got != want {
				t.Errorf("fence_timeout %s, no contact for %d ms: %v", fence, since, got)
			}
		}
	}
}
