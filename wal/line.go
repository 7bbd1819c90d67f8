package wal

// Line is one way through the branches of the log: the timeline that it is on,
// and the forks by which it came there. A Timeline of 0 stands for the one that
// begins at the last fork, whatever its number will be.
type Line struct {
	Timeline Timeline `json:"timeline,omitempty"` // 0: the one that begins at the last fork
	Past     History  `json:"past"`
	// Mark tells it from a line of the same numbers: two servers that are promoted
	// where the log of both ends begin the same timeline at the same place. It is the
	// checksum of the first record after the last fork. 0: not known.
	Mark uint32 `json:"mark,omitempty"`
}

// Known reports whether l says anything. Timeline 1 has no past.
func (l Line) Known() bool { return l.Timeline != 0 || len(l.Past) > 0 }

// Shared is where the log of a server, which ends at end on the line o, leaves l:
// up to there the server has what is on l. Where that is end itself, the server
// is on l with all that it has. Zero: they have nothing in common.
func (l Line) Shared(o Line, end LSN) (upto LSN) {
	ours := append(o.Past[:len(o.Past):len(o.Past)], HistoryEntry{Timeline: o.Timeline, SwitchLSN: end})
	for i, e := range ours {
		switch last := i == len(l.Past); {
		case last && i == len(o.Past) && l.Mark != 0 && o.Mark != 0 && l.Mark != o.Mark && end > upto:
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

// Extends reports whether l went through all of o and further: where it left o
// the log of o may go on, on another branch.
func (l Line) Extends(o Line) bool {
	return len(l.Past) > len(o.Past) && l.Past.Extends(o.Past) && l.Past[len(o.Past)].Timeline == o.Timeline
}

// Evidence is what a standby shows of the timeline that it is on.
type Evidence struct {
	At       Position // surely so: from pg_control, a row that it has replayed, or its WAL receiver
	Replayed LSN      // the end of what it has replayed
	Forks    []Line   // the lines of newer timelines whose history files it has, in the order of their timelines
}

// Timeline tells on which timeline a server is that receives nothing. The name of
// a file alone is no evidence: a server that was rewound keeps segments and
// histories of the branch that it left. sure is false where what it has replayed
// beyond the fork may be of either branch.
func (e Evidence) Timeline() (t Timeline, sure bool) {
	t, sure = e.At.Timeline, true
	for _, l := range e.Forks {
		fork, ok := l.Past.Fork(t)
		switch {
		case !ok || l.Timeline <= t:
		case fork < e.At.LSN: // it went on past that fork
		case e.Replayed <= fork: // it has not come there
		default:
			t, sure = l.Timeline, false
		}
	}
	return t, sure
}
