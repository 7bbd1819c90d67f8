package salvage

import (
	"testing"

	"github.com/pgrepmgr/repmgr/wal"
)

// pg_rewind of 15 and older goes by the control file's timeline: where that hides
// the fork from it, the server is recovered first.
func TestRewindSees(t *testing.T) {
	t.Parallel()
	left := func(entries ...wal.HistoryEntry) wal.History { return entries }
	at := func(t wal.Timeline, lsn wal.LSN) wal.HistoryEntry {
		return wal.HistoryEntry{Timeline: t, SwitchLSN: lsn}
	}
	for name, c := range map[string]struct {
		control, replayed, timeline wal.Timeline
		ours, theirs                wal.History
		target                      wal.Timeline
		want                        bool
	}{
		"on timeline 1, left by the primary":    {1, 1, 1, nil, left(at(1, 100)), 2, true},
		"promoted apart, and it knows":          {3, 3, 3, left(at(1, 10), at(2, 100)), left(at(1, 10), at(2, 150)), 3, true},
		"promoted apart before, and named late": {2, 2, 3, left(at(1, 10), at(2, 100)), left(at(1, 10), at(2, 150)), 3, false},
		"promoted apart later, and named late":  {2, 2, 3, left(at(1, 10), at(2, 150)), left(at(1, 10), at(2, 100)), 3, true},
		"promoted apart later, and replayed":    {2, 3, 3, left(at(1, 10), at(2, 150)), left(at(1, 10), at(2, 100)), 3, false},
		"two promotions behind":                 {1, 1, 2, left(at(1, 10)), left(at(1, 10), at(2, 100)), 3, false},
		"nothing in common":                     {1, 1, 2, left(at(1, 10)), left(at(5, 10)), 6, false},
	} {
		got := RewindSees(c.control, c.replayed, c.timeline, c.ours, wal.Position{Timeline: c.target, LSN: 1000}, c.theirs)
		if got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
