package pgfollow

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
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
	reset    int64     // see office
}

// state is what is known of all nodes. Its functions have no effects, and belong to one owner at a time.
type state struct {
	names     []string // of the nodes, "host:port"
	nodes     []look
	standbyAt []time.Time // when each node last said that it is a standby
	decideAt  time.Time   // until then the first primary is chosen only when every node was asked

	current int // the newest primary; -1: none was seen
	best    look
	bestAt  time.Time // when it became that
	up      bool      // it answers as the primary now, or lives and has no connection left for the question
	stopped bool      // its server said something else since, or let nobody in: another server may be there by now
	since   time.Time
	// generation counts the primaries: connections that were made in an earlier one are stale.
	generation uint64
	offices    map[uint32]office // who wrote each timeline last
}

func newState(names []string, now time.Time, patience time.Duration) *state {
	s := &state{names: names, nodes: make([]look, len(names)), standbyAt: make([]time.Time, len(names)), current: -1, since: now, offices: map[uint32]office{}, decideAt: now.Add(patience)}
	for i := range s.nodes {
		s.nodes[i].err = errNotSeen
	}
	return s
}

// see takes over what a node said. changed: there is another primary, or none any more, or one again.
func (s *state) see(node int, l look) (changed bool) {
	var refused *pgconn.ConnectError
	if node == s.current && !alive(l.err) && (l.err == nil || errors.As(l.err, &refused)) {
		s.stopped = true
	}
	defer func() {
		if s.up {
			s.stopped = false
			s.offices[s.best.timeline] = office{node: s.current, reset: s.best.reset}
		}
	}()
	if s.current >= 0 && l.err == nil && l.system != s.best.system {
		l.err = fmt.Errorf("it belongs to another cluster: its system identifier is %s, and not %s", l.system, s.best.system)
	}
	if before := s.nodes[node]; node == s.current && before.err == nil && l.err == nil && l.started.Equal(s.best.started) && l.timeline == s.best.timeline {
		l.term = max(l.term, s.best.term) // a later election that leaves it in office hides for a while that it has won one
	}
	if s.nodes[node] = l; l.err == nil && l.standby {
		s.standbyAt[node] = l.at
	}
	primary := l.err == nil && !l.standby
	switch {
	case s.current < 0:
		return s.choose(l.at)
	case primary && node != s.current && s.replaces(node, l):
		s.take(node, l)
	case primary && node == s.current:
		same := l.started.Equal(s.best.started) && l.timeline == s.best.timeline
		if !same {
			s.generation++ // it was started again
		}
		told := s.up && same && l.term == s.best.term
		if s.best = l; told {
			return false
		}
	case node == s.current && !s.stopped && alive(l.err): // the connections to it go on
		told := s.up
		if s.best.at = l.at; told {
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

// choose takes the first primary, when every node was asked or has had the time to answer: a former
// primary may be the first that does.
func (s *state) choose(now time.Time) (chosen bool) {
	systems := map[string]int{}
	for _, l := range s.nodes {
		if errors.Is(l.err, errNotSeen) && now.Before(s.decideAt) {
			return false
		}
		if l.err == nil {
			systems[l.system]++
		}
	}
	for i, l := range s.nodes {
		switch {
		case !s.claims(i):
		case s.current < 0, systems[l.system] > systems[s.best.system], l.system == s.best.system && s.replaces(i, l):
			s.take(i, l)
		}
	}
	if s.current < 0 {
		return false
	}
	s.generation, s.up, s.since = 1, true, now
	return true
}

func (s *state) take(node int, l look) {
	s.current, s.best, s.bestAt = node, l, l.at
	s.generation++
}

// alive reports whether an error proves that the server of the node lives: it has no connection left.
func alive(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "53300"
}

// replaces reports whether a node that says it is the primary is a newer one than the newest so far.
// A term counts for more than a timeline, because two nodes that were promoted apart may have
// timelines of one number. A promotion by hand, without repmgr, opens no term: where the primary of
// the higher term is gone, the higher timeline counts, and one that was seen as a standby since.
func (s *state) replaces(node int, l look) bool {
	newer := l.timeline > s.best.timeline
	silent := !s.claims(s.current)
	later := silent && s.standbyAt[node].After(s.bestAt)
	if l.term == 0 || s.best.term == 0 || l.term == s.best.term {
		return newer || later
	}
	return l.term > s.best.term || silent && (newer || later)
}

// claims reports whether a node says that it is the primary.
func (s *state) claims(node int) bool { return s.nodes[node].err == nil && !s.nodes[node].standby }

// stale reports whether a node says that it is the primary, and is not the newest one.
func (s *state) stale(node int) bool { return node != s.current && s.claims(node) }

// origin is the generation of a connection that is made to a node now: 0 where it is not the primary.
func (s *state) origin(node int) uint64 {
	if s.up && node == s.current {
		return s.generation
	}
	return 0
}

// primary describes the present primary; ok is false where there is none. What was said longer ago than
// fresh does not count: this process may have stood still.
func (s *state) primary(now time.Time, fresh time.Duration) (p Primary, ok bool) {
	if !s.up || now.Sub(s.best.at) > fresh {
		return Primary{}, false
	}
	return Primary{Node: s.names[s.current], Term: s.best.term, Timeline: s.best.timeline, Since: s.since}, true
}

// lag is how many bytes a node lacks of what the primary had when each was last asked; 0 where none was
// seen. ok: it is a standby that answers.
func (s *state) lag(node int) (bytes int64, ok bool) {
	l := s.nodes[node]
	if l.err != nil || !l.standby {
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
			is = oneLine(l.err)
		case s.stale(i):
			is = "is a former primary"
		case !l.standby:
			is = "is the primary"
		}
		all = append(all, s.names[i]+": "+is)
	}
	return strings.Join(all, "; ")
}

// oneLine is the text of an error in one line, with each line of it once: a node that is tried with TLS and without often gives the same twice.
func oneLine(err error) string {
	var all []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	return strings.Join(all, " ")
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
