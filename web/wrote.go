package web

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// wrote remembers where the primary wrote, and when, as each request for metrics saw it. So the lag of a standby can be told
// as a time that is right also where nothing was written for long: the age of the last transaction that was replayed grows
// then, although the standby has everything. It is not safe for concurrent use.
type wrote struct{ marks []mark } // the oldest first; neither the time nor the position ever falls

// mark is where the primary wrote at a moment.
type mark struct {
	at  time.Time
	lsn wal.LSN
}

const marksKept = 512 // when there are more, every second of them is forgotten

// note takes where the primary wrote at a moment. What is not newer than the newest mark changes nothing.
func (w *wrote) note(at time.Time, lsn wal.LSN) {
	n := len(w.marks)
	switch {
	case at.IsZero() || lsn == 0 || n > 0 && !at.After(w.marks[n-1].at):
		return
	case n > 0 && lsn < w.marks[n-1].lsn: // another primary, which had less
		w.marks = w.marks[:0]
	case n > 1 && lsn == w.marks[n-2].lsn: // nothing was written: the first and the last such moment are enough
		w.marks[n-1].at = at
		return
	}
	w.marks = append(w.marks, mark{at, lsn})
	if len(w.marks) <= marksKept {
		return
	}
	kept := w.marks[:0]
	for i, m := range w.marks {
		if i%2 == 0 || i == len(w.marks)-1 {
			kept = append(kept, m)
		}
	}
	w.marks = kept
}

// since says how long before the newest mark the primary wrote at a position, as if it had written evenly between two marks.
// Where that was before the first mark it is how old that one is, which is too little. known is false where nothing is known.
func (w *wrote) since(at wal.LSN) (ago time.Duration, known bool) {
	n := len(w.marks)
	if n == 0 || at == 0 {
		return 0, false
	}
	newest := w.marks[n-1]
	i, _ := slices.BinarySearchFunc(w.marks, at, func(m mark, at wal.LSN) int { // the first mark beyond it
		if m.lsn > at {
			return 1
		}
		return -1
	})
	switch i {
	case n:
		return 0, true
	case 0:
		return newest.at.Sub(w.marks[0].at), n > 1
	}
	before, after := w.marks[i-1], w.marks[i]
	part := float64(at-before.lsn) / float64(after.lsn-before.lsn)
	return newest.at.Sub(before.at) - time.Duration(part*float64(after.at.Sub(before.at))), true
}
