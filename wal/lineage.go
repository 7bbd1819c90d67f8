package wal

// Lineage is one path through the branches of the write-ahead log: the timeline at its end, and
// the forks that lead there. A Timeline of 0 stands for the timeline that begins at the last
// fork, whatever its number will be.
type Lineage struct {
	Timeline Timeline `json:"timeline,omitempty"` // 0: the one that begins at the last fork
	Past     History  `json:"past"`
	// Mark tells this line from another one with the same numbers: two servers that are
	// promoted independently at the same position begin timelines with the same number at the
	// same place. It is the checksum of the first record after the last fork. 0: not known.
	Fingerprint uint32 `json:"mark,omitempty"`
}

// Known reports whether l is a known line. Timeline 1 has no past.
func (l Lineage) Known() bool { return l.Timeline != 0 || len(l.Past) > 0 }

// Shared is where the log of a server leaves l. That log is on the line o and ends at end. Up
// to the returned position the log is the same as l; if that is end, all of the server's log is
// on l. Zero means that they have nothing in common.
func (l Lineage) Shared(o Lineage, end LSN) (upto LSN) {
	ours := append(o.Past[:len(o.Past):len(o.Past)], HistoryEntry{Timeline: o.Timeline, SwitchLSN: end})
	for i, e := range ours {
		switch last := i == len(l.Past); {
		case last && i == len(o.Past) && l.Fingerprint != 0 && o.Fingerprint != 0 && l.Fingerprint != o.Fingerprint && end > upto:
			return upto
		case last && (e.Timeline == l.Timeline || l.Timeline == 0 && i > 0 && e.Timeline > ours[i-1].Timeline):
			return e.SwitchLSN // l goes on without end
		case last || l.Past[i].Timeline != e.Timeline:
			return upto
		case l.Past[i].SwitchLSN != e.SwitchLSN:
			return min(l.Past[i].SwitchLSN, e.SwitchLSN)
		}
		upto = e.SwitchLSN
	}
	return upto
}

// Extends reports whether l contains all forks of o and continues past them, from the timeline
// of o to another one. The log of o may itself go on after that fork, on another branch.
func (l Lineage) Extends(o Lineage) bool {
	return len(l.Past) > len(o.Past) && l.Past.Extends(o.Past) && l.Past[len(o.Past)].Timeline == o.Timeline
}

// Evidence is what a standby shows of the timeline that it is on.
type Evidence struct {
	At       Position  // certain: from pg_control, a replayed row, or the WAL receiver
	Replayed LSN       // the end of what it has replayed
	Forks    []Lineage // the lines of newer timelines whose history files it has, in the order of their timelines
}

// Timeline determines the timeline of a server that receives nothing. The name of a file alone
// is no evidence, because a server that was rewound keeps segments and histories of the branch
// that it left. sure is false where the server has replayed past a fork and that WAL may be of
// either branch.
func (e Evidence) Timeline() (t Timeline, sure bool) {
	t, sure = e.At.Timeline, true
	for _, l := range e.Forks {
		fork, ok := l.Past.Fork(t)
		switch {
		case !ok || l.Timeline <= t:
		case fork < e.At.LSN: // it is known to have stayed on its timeline past that fork
		case e.Replayed <= fork: // it has not reached that fork
		default:
			t, sure = l.Timeline, false
		}
	}
	return t, sure
}
