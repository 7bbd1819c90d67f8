package pgfollow

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// look is what a node said of itself, or why it did not.
type look struct {
	err      error // nil: all else is known
	at       time.Time
	standby  bool
	system   string    // the system identifier of its data directory
	started  time.Time // when its postmaster was started
	timeline uint32    // of a primary
	term     int64     // of the election that a primary won; 0: not known
	lsn      int64     // of a primary: written; of a standby: replayed
}

// state is what is known of all nodes. Its functions have no effects, and belong to one owner at a time.
type state struct {
	names   []string // of the nodes, "host:port"
	nodes   []look
	system  string // of the first primary that was seen
	current int    // the newest primary; -1: none was seen
	best    look   // what it said when it became that
	up      bool   // it answers as the primary now
	since   time.Time
	// generation counts the primaries: connections that were made in an earlier one are stale.
	generation uint64
}

func newState(names []string, now time.Time) *state {
	s := &state{names: names, nodes: make([]look, len(names)), current: -1, since: now}
	for i := range s.nodes {
		s.nodes[i].err = errNotSeen
	}
	return s
}

// see takes over what a node said. changed: there is another primary, or none any more, or one again.
func (s *state) see(node int, l look) (changed bool) {
	if l.err == nil && s.system != "" && l.system != s.system {
		l.err = fmt.Errorf("it belongs to another cluster: its system identifier is %s, and not %s", l.system, s.system)
	}
	s.nodes[node] = l
	primary := l.err == nil && !l.standby
	switch {
	case primary && (s.current < 0 || node != s.current && s.replaces(l)):
		s.system = l.system
		s.current, s.best = node, l
		s.generation++
	case primary && node == s.current:
		if !l.started.Equal(s.best.started) || l.timeline != s.best.timeline {
			s.generation++ // it was started again
		}
		if s.best = l; s.up {
			return false
		}
	case node == s.current && s.up:
		s.up, s.since = false, l.at
		return true
	default:
		return false
	}
	s.up, s.since = true, l.at
	return true
}

// replaces reports whether a node that says it is the primary is a newer one than the newest so far.
// A term counts for more than a timeline, because two nodes that were promoted apart may have
// timelines of one number. A promotion by hand, without repmgr, opens no term: where the primary of
// the higher term is gone, the higher timeline counts.
func (s *state) replaces(l look) bool {
	newer := l.timeline > s.best.timeline
	if l.term == 0 || s.best.term == 0 || l.term == s.best.term {
		return newer
	}
	return l.term > s.best.term || newer && !s.up
}

// stale reports whether a node says that it is the primary, and is not the newest one.
func (s *state) stale(node int) bool {
	return node != s.current && s.nodes[node].err == nil && !s.nodes[node].standby
}

// primary describes the present primary; ok is false where there is none.
func (s *state) primary() (p Primary, ok bool) {
	if !s.up {
		return Primary{}, false
	}
	return Primary{Node: s.names[s.current], Term: s.best.term, Timeline: s.best.timeline, Since: s.since}, true
}

// lag is how many bytes a node lacks of what the primary had when each was last asked. ok: it is a
// standby that answers, and the primary was seen.
func (s *state) lag(node int) (bytes int64, ok bool) {
	l := s.nodes[node]
	if l.err != nil || !l.standby || s.current < 0 {
		return 0, false
	}
	return max(0, s.best.lsn-l.lsn), true
}

// describe says what each node is.
func (s *state) describe() string {
	var all []string
	for i, l := range s.nodes {
		is := "is a standby"
		switch {
		case l.err != nil:
			is = l.err.Error()
		case s.stale(i):
			is = "is a former primary"
		case !l.standby:
			is = "is the primary"
		}
		all = append(all, s.names[i]+": "+is)
	}
	return strings.Join(all, "; ")
}

// parseBallot is the term of repmgr's election that a primary won, by its setting repmgr.ballot:
// node/term/election, with a ! at the end where it won. 0: none.
func parseBallot(setting string) int64 {
	parts := strings.SplitN(setting, "/", 3)
	if len(parts) != 3 || !strings.HasSuffix(parts[2], "!") {
		return 0
	}
	term, _ := strconv.ParseInt(parts[1], 10, 64)
	return max(0, term)
}

// parseTimeline is the timeline in the name of a WAL segment.
func parseTimeline(segment string) (uint32, error) {
	if len(segment) < 8 {
		return 0, fmt.Errorf("%q is no name of a WAL segment", segment)
	}
	n, err := strconv.ParseUint(segment[:8], 16, 32)
	return uint32(n), err
}
