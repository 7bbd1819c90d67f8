package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

const (
	pulse   = 500 * time.Millisecond
	patient = time.Second // for an answer
)

// monitor is a virtual Monitor: it looks, asks the kernel, and acts.
type monitor struct {
	proc
	w    *world
	h    *host
	p    election.Policy
	st   election.State
	view map[int32]*election.Peer
	last election.Outcome
	busy bool
	soon bool
	name string
	self time.Time // since when the local server is seen as a primary

	seen map[int32]time.Duration // when a standby was last seen streaming
}

func (m *monitor) start() {
	if m.up || m.h.down {
		return
	}
	w := m.w
	m.up, m.st, m.last, m.busy, m.soon, m.self = true, election.State{}, election.Outcome{}, false, false, time.Time{}
	m.view, m.seen = map[int32]*election.Peer{}, map[int32]time.Duration{}
	m.p = w.policy
	for _, h := range w.hosts {
		m.view[h.id] = &election.Peer{ID: h.id, Role: h.s.role, Priority: h.s.priority, Location: h.s.location}
	}
	w.after(&m.proc, w.between(0, pulse), m.round)
	w.sleep(m.h, &m.proc, 100*time.Millisecond, m.guard)
}

// die ends the monitor with its sessions; their locks end when the servers notice.
func (m *monitor) crash() {
	if !m.up {
		return
	}
	w := m.w
	m.die()
	for _, h := range w.hosts {
		h := h
		if h.s.holder != &m.proc {
			continue
		}
		m.hangUp(h.s, h.s.locked)
	}
}

// hangUp ends a session, and with it its lock, as soon as the server notices.
func (m *monitor) hangUp(s *server, token int64) {
	d := 5 * time.Millisecond
	if !m.w.open(m.h, s.h) {
		d = 3 * time.Second // keepalives
	}
	m.w.after(&s.proc, d, func() { s.unlock(token) })
}

func (m *monitor) now() time.Time { return m.w.clock(m.h) }

// round looks at all, and again after a pulse.
func (m *monitor) round() {
	for _, h := range m.w.hosts {
		m.look(h.id, nil)
	}
	m.w.sleep(m.h, &m.proc, 20*time.Millisecond, m.decide)
	m.w.sleep(m.h, &m.proc, pulse, m.round)
	if s := m.h.s; m.h.s.up && s.primary() && !s.starting && s.until <= m.w.now {
		m.w.seq++
		s.commit(rec{id: -int64(m.w.seq)}, nil) // a heartbeat
	}
}

// look takes a fresh view of one voter.
func (m *monitor) look(id int32, done func()) {
	w, s, at := m.w, m.w.host(id).s, m.now()
	var got election.Peer
	w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
		got = s.look(id)
		ret()
	}, func(ans election.Answer) {
		v := m.view[id]
		change := v.Answer != ans
		if v.Tried.After(at) {
			ans = v.Answer // an older look that took longer
		} else {
			v.Tried, v.Answer = at, ans
		}
		if ans == election.Answers && !got.Detached && got.ID != 0 || got.ID != 0 {
			seen := at
			if w.bug == "lease from the end of the round" {
				seen = m.now()
			}
			if !seen.Before(v.SeenAt) {
				change = change || got.Term != v.Term || got.Running != v.Running || got.Rule.Compare(v.Rule) != 0
				tried, answer := v.Tried, v.Answer
				*v = got
				v.Tried, v.Answer, v.SeenAt = tried, answer, seen
			}
		}
		if change {
			m.wake()
		}
		if done != nil {
			done()
		}
	})
}

// ended: the server has ended our connection.
func (m *monitor) ended(id int32) {
	m.view[id].Ended = true
	m.look(id, nil)
	m.wake()
}

func (m *monitor) wake() {
	if m.soon {
		return
	}
	m.soon = true
	m.w.after(&m.proc, time.Millisecond, func() {
		m.soon = false
		m.decide()
	})
}

func (m *monitor) newest() (r election.Rule) {
	for _, h := range m.w.hosts {
		if k := m.view[h.id].Knows(); k.Compare(r) > 0 {
			r = k
		}
	}
	return r
}

// peers are the views of the rule's voters.
func (m *monitor) peers(r election.Rule) (all []election.Peer) {
	for _, h := range m.w.hosts {
		if slices.Contains(r.Voters, h.id) || h == m.h {
			all = append(all, *m.view[h.id])
		}
	}
	return all
}

func (m *monitor) observe() election.Observation {
	r, me := m.newest(), *m.view[m.h.id]
	o := election.Observation{
		Now: m.now(), Self: m.h.id, Rule: r, Peers: m.peers(r), RowKnown: true, Busy: m.busy, Last: m.last, Candidate: m.candidate(),
		Local: election.View{Up: me.Answer == election.Answers, InRecovery: me.Running == election.Standby, Position: me.Position},
		Node:  election.Node{Registered: true, Role: me.Role, Active: true}, WasPrimary: m.h.s.primary(), Diverged: m.h.s.diverged,
	}
	if !m.h.s.data() {
		o.Local.InRecovery = false
	} else if o.Local.Up {
		o.Node.Role = me.Running
	}
	o.Upstream.Up = m.view[r.Primary] != nil && m.view[r.Primary].Answer == election.Answers
	return o
}

func (m *monitor) candidate() string { return m.h.m.name }

func (m *monitor) decide() {
	w, o := m.w, m.observe()
	if w.bug == "old primary trusted" {
		o.Self = m.h.id
		for i := range o.Peers {
			if o.Local.Up && !o.Local.InRecovery && m.h.s.data() {
				o.Peers[i].Rule = m.h.s.rule()
			}
		}
		if o.Local.Up && !o.Local.InRecovery && m.h.s.data() {
			o.Rule = m.h.s.rule()
		}
	}
	d := m.p.Step(m.st, o)
	if w.tracing && d.Reason != m.st.Reason {
		w.logf("monitor %d: %s (%s)", m.h.id, d.Reason, d.Next.Health)
	}
	m.st = d.Next
	for _, a := range d.Actions {
		switch a.Verb {
		case election.Fence:
			m.fence(string(d.Reason))
		case election.Elect:
			m.elect(false)
		case election.Reaffirm:
			m.elect(true)
		case election.Follow:
			m.follow(a.Child)
		case election.Rejoin:
			m.rejoin(a.Child)
		case election.Tend:
			m.tend()
		}
	}
}

// did ends a long action.
func (m *monitor) did(v election.Verb, why string) {
	m.busy = false
	m.last = election.Outcome{Verb: v, At: m.now(), OK: why == "", Reason: election.Reason(why)}
	m.w.logf("monitor %d: %s ended: %s", m.h.id, v, why)
	m.wake()
}

// fence makes the local server a standby of nobody, whatever it is doing.
func (m *monitor) fence(why string) {
	s := m.h.s
	if m.w.bug == "no fence" || s.recovery || m.busy {
		return
	}
	m.w.logf("monitor %d: fences: %s", m.h.id, why)
	m.busy = true
	s.crash()
	m.w.after(&m.proc, m.w.between(20*time.Millisecond, 100*time.Millisecond), func() {
		if !s.up {
			s.recovery, s.conninfo = true, 0
			s.start()
		}
		m.did(election.Fence, "")
	})
}

// standing are the rules under which an election may be held while the newest is
// not held: it and the one before.
func standing(s *server) (newest, before election.Rule) {
	for i := len(s.rules) - 1; i >= 0; i-- {
		switch {
		case s.rules[i].lsn > s.replayed:
		case !newest.Known():
			newest = s.rules[i].rule
		default:
			return newest, s.rules[i].rule
		}
	}
	return newest, before
}

// guard fences a primary without a majority, where its commits wait for nobody.
func (m *monitor) guard() {
	m.w.sleep(m.h, &m.proc, 100*time.Millisecond, m.guard)
	s := m.h.s
	if !s.data() || !s.up || s.recovery || s.starting || m.busy && m.last.Verb == election.Fence {
		m.self = time.Time{}
		return
	}
	if m.self.IsZero() {
		m.self = m.now()
	}
	newest, before := standing(s)
	if s.chosen == s.ballot.term { // it won that election, whether or not its rule is written yet
		newest.Term = max(newest.Term, s.chosen)
	}
	var views []election.Peer
	for _, h := range m.w.hosts {
		views = append(views, *m.view[h.id])
	}
	lease := election.LeaseStart(m.now(), newest, m.h.id, views)
	held := m.held(newest, before)
	if !held && before.Known() {
		if l := election.LeaseStart(m.now(), before, m.h.id, views); before.Primary == m.h.id && l.Before(lease) {
			lease = l
		}
	}
	if newest.Quorum && (held || before.Quorum) {
		return // nobody else can have an acknowledged commit
	}
	if lease.IsZero() {
		lease = m.self
	}
	if m.now().Sub(lease) > m.p.Fence {
		m.busy = false
		m.fence("no majority for fence_timeout")
	}
}

// held: no election can miss the newest rule.
func (m *monitor) held(newest, before election.Rule) bool {
	return election.Held(newest, before, m.holders(newest))
}

func (m *monitor) holders(r election.Rule) []int32 {
	s, all := m.h.s, []int32{m.h.id}
	lsn := 0
	for _, at := range s.rules {
		if at.rule.Compare(r) == 0 {
			lsn = at.lsn
		}
	}
	for _, h := range m.w.hosts {
		switch snd := s.senders[h.id]; {
		case snd != nil && snd.flush >= lsn && lsn > 0:
			all = append(all, h.id)
		case !h.s.data() && m.view[h.id].Rule.Compare(r) == 0:
			all = append(all, h.id)
		}
	}
	return all
}

// tend does one step of what the kernel asks for.
func (m *monitor) tend() {
	w, s := m.w, m.h.s
	if s.hung(w.now) || !s.up || s.starting || s.recovery || s.locked != 0 {
		return
	}
	newest, before := standing(s)
	if newest.Primary != m.h.id || s.ballot.term > newest.Term {
		return
	}
	set := s.ssn
	if w.now < s.wasUntil {
		return // not in force everywhere
	}
	c := election.Cohort{Rule: newest, Held: m.held(newest, before), Set: set, Registered: w.voters()}
	for _, h := range w.hosts {
		if s.senders[h.id] != nil && h.s.data() {
			m.seen[h.id] = w.now
		}
		if at, ok := m.seen[h.id]; ok && h.s.data() && h.s.priority > 0 && w.now-at <= w.patience() {
			c.Healthy = append(c.Healthy, h.id)
		}
	}
	for _, h := range w.hosts {
		if !h.s.data() && slices.Contains(newest.Voters, h.id) && m.view[h.id].Rule.Compare(newest) < 0 {
			m.tell(h.s, newest, func(bool) {})
		}
	}
	change := m.p.Tend(c)
	if w.bug == "lower first" && change == (election.Change{}) == false && change.Rule != nil && !change.Rule.SyncSetting().Equal(s.ssn) {
		s.set(change.Rule.SyncSetting(), nil)
	}
	switch {
	case change.Set != nil:
		s.set(*change.Set, nil)
	case change.Rule != nil:
		w.logf("node %d: rule %+v", m.h.id, *change.Rule)
		w.seq++
		s.commit(rec{id: -int64(w.seq), rule: change.Rule}, nil)
	}
}

func (w *world) patience() time.Duration {
	if w.seed%2 == 0 {
		return 0
	}
	return 2 * w.policy.Silence
}

// tell gives a witness the rule.
func (m *monitor) tell(s *server, r election.Rule, done func(bool)) {
	ok := false
	m.w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
		s.lock(&m.proc, func(token int64) {
			m.w.after(&s.proc, s.fsync(), func() {
				ok = s.tell(r)
				s.unlock(token)
				ret()
			})
		})
	}, func(ans election.Answer) { done(ok && ans == election.Answers) })
}

// follow points the local standby to the primary that the newest rule names.
func (m *monitor) follow(to int32) {
	m.busy = true
	m.point(m.h.s, to, m.newest().Term, func(ok bool) {
		why := ""
		if !ok {
			why = "refused"
		}
		m.w.after(&m.proc, 200*time.Millisecond, func() {
			if why == "" && m.h.s.conn == 0 {
				why = "does not stream"
			}
			m.did(election.Follow, why)
		})
	})
}

// point sets primary_conninfo of a standby that has pledged nothing later.
func (m *monitor) point(s *server, to int32, term int64, done func(bool)) {
	w, ok := m.w, false
	w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
		s.lock(&m.proc, func(token int64) {
			w.after(&s.proc, s.fsync(), func() {
				if s.recovery && s.data() && (s.ballot.term <= term || w.bug == "follows an older term") {
					ok = true
					if s.conninfo != to {
						s.detach()
						s.conninfo = to
					}
					s.attach()
				}
				s.unlock(token)
				ret()
			})
		})
	}, func(ans election.Answer) { done(ok && ans == election.Answers) })
}

// rejoin makes the local server a standby of the winner, by pg_rewind or a clone.
func (m *monitor) rejoin(to int32) {
	w, s, from := m.w, m.h.s, m.w.host(to).s
	term := m.newest().Term
	if s.ballot.term > term {
		return
	}
	m.busy = true
	w.logf("monitor %d: rejoins node %d", m.h.id, to)
	ok := false
	var wal []rec
	line := from.line()
	w.rpc(&m.proc, m.h, from, 5*time.Second, func(ret func()) {
		if !from.primary() || from.rule().Term < term {
			ret()
			return
		}
		w.after(&from.proc, w.between(200*time.Millisecond, 800*time.Millisecond), func() {
			ok, wal, line = from.primary(), from.wal, from.line()
			ret()
		})
	}, func(ans election.Answer) {
		if !ok || ans != election.Answers || s.ballot.term > term {
			m.did(election.Rejoin, "no source")
			return
		}
		s.crash()
		s.copyFrom(wal, line, to)
		s.start()
		m.did(election.Rejoin, "")
	})
}
