package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// anySync stands on the standbys of a quorum, and anybody is everybody's name.
var anySync = election.SyncSetting{Acks: 1, Standbys: []int32{anybody}}

const anybody int32 = -2

// inForce is synchronous_standby_names as the processes of a server have it. A
// session sees what was set; whether commits wait at all is up to the
// checkpointer, which may be busy.
type inForce struct {
	ssn      election.SyncSetting // as a session sees it
	was      election.SyncSetting // in force in some backends until wasUntil
	wasUntil time.Duration
	idle     time.Duration // commits wait for nobody until then, whatever is set
}

// twin is a copy of a standby that streams in its name, from near the server.
type twin struct {
	of    int32
	since time.Duration
	inc   int // of the server that it streams from
}

// release answers the commits that enough standbys have.
func (s *server) release() {
	for len(s.waiting) > 0 && s.up && !s.recovery {
		first := s.waiting[0]
		if !s.answers(first.lsn, true) {
			return
		}
		s.waiting = s.waiting[1:]
		s.weak = !s.answers(first.lsn, false)
		if first.ack != nil {
			first.ack()
		}
	}
}

// answers reports whether a commit is acknowledged, the acknowledgements of twins
// counted or not.
func (s *server) answers(lsn int, twins bool) bool {
	return s.w.now < s.idle || s.satisfied(s.ssn, lsn, twins) || s.w.now < s.wasUntil && s.satisfied(s.was, lsn, twins)
}

func (s *server) satisfied(set election.SyncSetting, lsn int, twins bool) bool {
	n := 0
	for _, h := range s.w.hosts {
		if !slices.Contains(set.Standbys, h.id) && !slices.Contains(set.Standbys, anybody) {
			continue
		}
		if snd := s.senders[h.id]; snd != nil && snd.flush >= lsn {
			n++
		}
		if twins && s.doubled(h.id) {
			n++
		}
	}
	return n >= set.Acks
}

// doubled reports whether a copy of the standby streams from here.
func (s *server) doubled(id int32) bool {
	return slices.ContainsFunc(s.twins, func(t twin) bool { return t.of == id && t.inc == s.inc && s.primary() })
}

// noticed reports whether the copy was there for so long that the primary's
// monitor must have seen it.
func (s *server) noticed(id int32, after time.Duration) bool {
	return slices.ContainsFunc(s.twins, func(t twin) bool { return t.of == id && t.inc == s.inc && s.w.now-t.since > after })
}

// promised reports whether the acknowledgement just given counts: not one that a
// copy gave in a standby's name before anybody could have noticed it.
func (s *server) promised() bool {
	return !s.weak || !slices.ContainsFunc(s.twins, func(t twin) bool { return !s.noticed(t.of, 5*time.Second) })
}

// set changes synchronous_standby_names. The processes of the server read it one
// after another; ret is called when the session that asked has. Where it leaves
// "none" commits do not wait before the checkpointer has seen to it.
func (s *server) set(set election.SyncSetting, ret func()) {
	s.w.after(&s.proc, s.fsync(), func() {
		if s.broken {
			return // the configuration does not parse: nothing comes in force
		}
		lag := s.w.between(0, 20*time.Millisecond)
		if s.ssn.Acks == 0 && set.Acks > 0 {
			if s.w.busy && s.w.chance(30) {
				lag = s.w.between(time.Second, 8*time.Second)
			}
			s.idle = max(s.idle, s.w.now+lag)
		}
		s.was, s.wasUntil, s.ssn = s.ssn, s.w.now+min(lag, 20*time.Millisecond), set
		s.w.logf("node %d: synchronous_standby_names = ANY %d %v, commits wait after %v", s.h.id, set.Acks, set.Standbys, s.idle)
		s.release()
		if ret != nil {
			ret()
		}
	})
}

// probe is a commit of a session of our own under the closed setting: it is seen
// to wait, or it is not.
func (s *server) probe(limit time.Duration, ret func(waits bool)) {
	waits := s.w.now >= s.idle && s.w.now >= s.wasUntil && s.ssn.Equal(election.BlockingSetting())
	if waits || limit <= 0 {
		ret(waits)
		return
	}
	s.w.after(&s.proc, 20*time.Millisecond, func() { s.probe(limit-20*time.Millisecond, ret) })
}

// believed is the setting that the monitor of a primary counts on: one under which
// no commit was seen to wait is as good as none.
func (m *monitor) believed(r election.Rule) election.SyncSetting {
	s, set := m.h.s, m.h.s.ssn
	if m.w.bug == "believes the setting" {
		return set
	}
	if !m.begun && set.Equal(r.SyncSetting()) {
		m.proven = set // whoever wrote the rule saw it
	}
	if m.begun = true; !set.Equal(m.proven) {
		m.proven = election.SyncSetting{}
	}
	if set = s.ssn; set.NeedsStandbys() && !set.Equal(m.proven) {
		set.Acks = -1
	}
	return set
}

// put puts a setting in force: what asks for more is believed only when a commit
// was seen to wait under the closed one.
func (m *monitor) put(r election.Rule, now, set election.SyncSetting) {
	s, w := m.h.s, m.w
	m.tending = w.now + 3*time.Second
	mine := m.tending
	step := func(f func()) func() { // a step of ours is taken as long as we live, and are not late
		return func() {
			w.after(&m.proc, 0, func() {
				if m.tending == mine && w.now < mine {
					f()
				}
			})
		}
	}
	finish := func(ok bool) func() {
		return step(func() {
			if m.tending = 0; ok {
				m.proven = set
			}
		})
	}
	if set.Acks == 0 || now.NeedsStandbys() && set.Acks <= now.Acks || w.bug == "believes the setting" {
		s.set(set, finish(true))
		return
	}
	if w.now < m.again {
		m.tending = 0
		return
	}
	waits := false
	s.set(election.BlockingSetting(), step(func() {
		s.probe(m.p.Silence/2, func(ok bool) {
			waits = ok
			step(func() {
				if waits {
					s.set(set, finish(true))
					return
				}
				m.again = w.now + m.p.Silence
				s.set(r.SyncSetting(), finish(false))
			})()
		})
	}))
}
