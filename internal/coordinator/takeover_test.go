package coordinator

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/wal"
)

// Where the line of a winner parted from the one before is what PostgreSQL wrote when it was promoted, and what came before is what
// was counted: a file of that may be another primary's.
func TestLineOf(t *testing.T) {
	t.Parallel()
	at := func(t wal.Timeline, lsn wal.LSN) wal.HistoryEntry {
		return wal.HistoryEntry{Timeline: t, SwitchLSN: lsn}
	}
	for what, c := range map[string]struct{ own, counted, want wal.History }{
		"it has replayed more":                 {wal.History{at(1, 10), at(2, 30)}, wal.History{at(1, 10), at(2, 20)}, wal.History{at(1, 10), at(2, 30)}},
		"an earlier file is another primary's": {wal.History{at(1, 12), at(2, 20)}, wal.History{at(1, 10), at(2, 20)}, wal.History{at(1, 10), at(2, 20)}},
		"both":                                 {wal.History{at(1, 5), at(3, 9), at(2, 30)}, wal.History{at(1, 10), at(2, 20)}, wal.History{at(1, 10), at(2, 30)}},
		"it has replayed another timeline":     {wal.History{at(1, 10), at(2, 20), at(3, 40)}, wal.History{at(1, 10), at(2, 15)}, wal.History{at(1, 10), at(2, 20), at(3, 40)}},
		"nothing was counted":                  {wal.History{at(1, 10)}, nil, wal.History{at(1, 10)}},
		"timeline 1":                           {nil, nil, nil},
	} {
		got := lineOf(wal.Lineage{Timeline: 4, Past: c.own, Fingerprint: 7}, c.counted)
		require.Equal(t, wal.Lineage{Timeline: 4, Past: c.want, Fingerprint: 7}, got, what)
	}
}
