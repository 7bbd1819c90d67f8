package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// History is the ancestry of one timeline, oldest first, as its .history file
// tells it. Timeline 1 has no ancestors and no file: its history is nil.
type History []HistoryEntry

// HistoryEntry says where the line of a timeline's ancestors left Timeline.
type HistoryEntry struct {
	Timeline Timeline `json:"timeline"`
	// SwitchLSN is the end of the shared log: everything before it was written
	// on Timeline, everything from it on belongs to the next timeline.
	SwitchLSN LSN `json:"switch_lsn"`
	// Reason is PostgreSQL's remark, such as "no recovery target specified".
	Reason string `json:"-"`
}

// ParseHistory reads the content of a .history file by PostgreSQL's own rules:
// blank lines and lines that begin with # are skipped, timelines must grow from
// line to line. The error names the first malformed line by its number.
func ParseHistory(b []byte) (History, error) {
	var h History
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseHistoryEntry(line)
		if err != nil {
			return nil, fmt.Errorf("parse timeline history: line %d: %w", n, err)
		}
		if len(h) > 0 && e.Timeline <= h[len(h)-1].Timeline {
			return nil, fmt.Errorf("parse timeline history: line %d: timeline %d after timeline %d: want growing timelines", n, e.Timeline, h[len(h)-1].Timeline)
		}
		h = append(h, e)
	}
	return h, nil
}

// File is the content of a .history file with h.
func (h History) File() (b []byte) {
	for _, e := range h {
		reason := e.Reason
		if reason == "" {
			reason = "no recovery target specified"
		}
		b = fmt.Appendf(b, "%d\t%s\t%s\n", e.Timeline, e.SwitchLSN, reason)
	}
	return b
}

func parseHistoryEntry(line string) (HistoryEntry, error) {
	tli, rest := cutField(line)
	lsn, reason := cutField(rest)
	t, err := strconv.ParseUint(tli, 10, 32)
	if err != nil || t == 0 {
		return HistoryEntry{}, fmt.Errorf("timeline %q: want a positive number", tli)
	}
	l, err := ParseLSN(lsn)
	if err != nil {
		return HistoryEntry{}, err
	}
	return HistoryEntry{Timeline: Timeline(t), SwitchLSN: l, Reason: reason}, nil
}

// cutField splits at the first run of blanks.
func cutField(s string) (field, rest string) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], " \t")
}

// Fork returns where the line of h left timeline t, and false when t is not
// among the ancestors.
func (h History) Fork(t Timeline) (LSN, bool) {
	for _, e := range h {
		if e.Timeline == t {
			return e.SwitchLSN, true
		}
	}
	return 0, false
}

// Extends reports whether h is the history of a server that went through older:
// whether it begins with the same forks. Two servers that were promoted apart can
// both be on timeline 2; only this tells their timelines 2 from each other.
func (h History) Extends(older History) bool {
	if len(h) < len(older) {
		return false
	}
	for i, e := range older {
		if h[i].Timeline != e.Timeline || h[i].SwitchLSN != e.SwitchLSN {
			return false
		}
	}
	return true
}
