package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// branch ends recovery on a timeline of its own.
func (s *server) branch() {
	s.recovery = false
	s.past = append(slices.Clone(s.past), wal.HistoryEntry{Timeline: s.tl, SwitchLSN: wal.LSN(len(s.wal))})
	s.tl++
	s.w.seq++
	s.mark = uint32(s.w.seq)
	s.append(rec{id: -int64(s.w.seq)})
}

// usurp promotes a standby by nobody's vote: by hand, or with another tool.
// primary_conninfo stays as it was.
func (s *server) usurp() {
	if !s.up || !s.recovery || s.starting || !s.data() {
		return
	}
	s.detach()
	s.branch()
	s.rogue = true
	s.w.logf("node %d: promoted by nobody's vote at %d on timeline %d", s.h.id, len(s.wal), s.tl)
	s.w.judge.excuse(2 * time.Second) // it is to be noticed within seconds
}

// regret kills a server that was promoted so, and starts it as a standby again.
func (s *server) regret() {
	if !s.rogue || !s.primary() {
		return
	}
	s.crash()
	s.recovery, s.rogue = true, false
	s.start()
}

// leads reports whether the standby streams from one, over other standbys or not.
func (s *server) leads(one *server) bool {
	for n := 0; n <= len(s.w.hosts) && s != one; n++ {
		up := s.w.host(s.upstream)
		if s.conn == 0 || up == nil || up.s.senders[s.h.id] == nil {
			return false
		}
		s = up.s
	}
	return s == one
}
