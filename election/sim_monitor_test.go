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

	tending time.Duration // a setting is being put in force, until then at most
	again   time.Duration // when to try that again
	fencing bool
	handing bool // a handover stops and starts the server
	begun   bool
	proven  election.SyncSetting // under which commits were seen to wait
	ruled   election.Rule        // the newest
	ruledAt time.Duration
}

func (m *monitor) start() {
	if m.up || m.h.down {
		return
	}
	w := m.w
	m.up, m.st, m.last, m.busy, m.soon, m.self = true, election.State{}, election.Outcome{}, false, false, time.Time{}
	m.view, m.seen = map[int32]*election.Peer{}, map[int32]time.Duration{}
	m.p = w.policy
	m.p.Automatic = !m.h.manual
	m.fencing, m.handing = false, false
	m.tending, m.again, m.begun, m.proven, m.ruled = 0, 0, false, election.SyncSetting{}, election.Rule{}
	for _, h := range w.hosts {
		if h.s.holder == &m.proc { // of the process before
			m.hangUp(h.s, h.s.locked)
		}
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
	m.resume()
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
			if ans != v.Answer {
				v.Since = at
			}
			v.Tried, v.Answer = at, ans
			if ans != election.NotAccepting {
				v.Starting = time.Time{}
			} else if v.Starting.IsZero() {
				v.Starting = at
			}
		}
		if ans == election.Answers && !got.Detached && got.ID != 0 || got.ID != 0 {
			seen := at
			if w.bug == "lease from the end of the round" {
				seen = m.now()
			}
			if !seen.Before(v.SeenAt) {
				change = change || got.Term != v.Term || got.Running != v.Running || got.Rule.Compare(v.Rule) != 0
				was := *v
				*v = got
				v.Tried, v.Answer, v.Since, v.Starting, v.SeenAt = was.Tried, was.Answer, was.Since, was.Starting, seen
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
		if k := m.view[h.id].NewestRule(); k.Compare(r) > 0 {
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
		if w.bug == "rogue is left alone" && (d.Reason == election.Unelected || d.Reason == election.Claiming) {
			continue
		}
		switch a.Verb {
		case election.Fence:
			m.fence(string(d.Reason))
		case election.Elect:
			m.elect(false)
		case election.Reaffirm:
			m.elect(true)
		case election.HandOver:
			m.handOver()
		case election.Follow:
			m.follow(a.Child)
		case election.Rejoin:
			m.rejoin(a.Child)
		case election.Reconcile:
			m.tend()
		case election.PrepareStandby:
			m.tendStandby(o, d.Next)
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
	if m.w.bug == "no fence" || s.recovery || m.busy || m.h.unable {
		return
	}
	m.w.logf("monitor %d: fences: %s", m.h.id, why)
	if m.h.stalled && m.w.bug == "markers before the kill" {
		return
	}
	m.busy, m.fencing = true, true
	s.crash()
	m.restart()
}

// restart makes the stopped server a standby of nobody, and starts it.
func (m *monitor) restart() {
	s := m.h.s
	m.w.after(&m.proc, m.w.between(20*time.Millisecond, 100*time.Millisecond), func() {
		if m.h.stalled {
			m.restart()
			return
		}
		if !s.up {
			s.recovery, s.conninfo, s.rogue = true, 0, false
			s.start()
		}
		m.fencing = false
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
	if !s.data() || !s.up || s.recovery || s.starting || m.h.manual || m.fencing || m.handing {
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
	views := m.contacts()
	lease, held := m.lease(newest, views), m.held(newest, before)
	if !held && before.Known() && before.Primary == m.h.id {
		if l := m.lease(before, views); l.Before(lease) {
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

// lease is the last sure contact by a rule. A pause that nobody could outvote suspends it.
func (m *monitor) lease(r election.Rule, views []election.Peer) time.Time {
	if r.PausePreventsElection(m.h.id, views) || m.w.bug == "one-sided pause" && election.Paused(views) {
		return m.now()
	}
	return election.LeaseStart(m.now(), r, m.h.id, views)
}

// contacts are the views, with what the WAL senders have heard.
func (m *monitor) contacts() (views []election.Peer) {
	for _, h := range m.w.hosts {
		v := *m.view[h.id]
		if snd := m.h.s.senders[h.id]; snd != nil && m.w.bug != "rejected is fenced" {
			v.Replied = m.h.at(snd.replied)
		}
		views = append(views, v)
	}
	return views
}

// held: no election can miss the newest rule.
func (m *monitor) held(newest, before election.Rule) bool {
	return election.Held(newest, before, m.holders(newest))
}

// holders are the voters whose tables show the rule, or that were told of it.
func (m *monitor) holders(r election.Rule) []int32 {
	all := []int32{m.h.id}
	for _, h := range m.w.hosts {
		streams := !h.s.data() || m.h.s.senders[h.id] != nil || m.w.bug != "cascade left in place"
		if h != m.h && m.holds(h.id, r) && streams {
			all = append(all, h.id)
		}
	}
	return all
}

func (m *monitor) holds(id int32, r election.Rule) bool {
	if m.w.bug == "held by a later pledge" {
		return m.view[id].NewestRule().Compare(r) == 0
	}
	return m.view[id].Holds(r)
}

// tend does one step of what the kernel asks for.
func (m *monitor) tend() {
	w, s := m.w, m.h.s
	if s.hung(w.now) || !s.up || s.starting || s.recovery || s.full || m.tending > w.now {
		return
	}
	newest, before := standing(s)
	if newest.Primary != m.h.id {
		return
	}
	if m.ruled.Compare(newest) != 0 {
		m.ruled, m.ruledAt = newest, w.now
	}
	c := election.Membership{Rule: newest, Held: m.held(newest, before), Registered: w.voters(), Healthy: m.healthy(), Duplicated: m.doubled()}
	if m.p.Quorum || newest.Quorum || before.Quorum {
		c.Set = m.believed(newest)
	}
	m.push(newest)
	change := m.p.Reconcile(c)
	if w.bug == "lower first" && change.Rule != nil && !change.Rule.SyncSetting().Equal(s.ssn) {
		s.set(change.Rule.SyncSetting(), nil)
	}
	switch {
	case change.Set != nil:
		m.put(newest, c.Set, *change.Set)
	case change.Rule != nil:
		w.logf("node %d: rule %+v", m.h.id, *change.Rule)
		w.seq++
		s.commit(rec{id: -int64(w.seq), rule: change.Rule}, nil)
	}
}

// healthy are the standbys that stream, answer and may be promoted, and in whose
// name nobody else streams.
func (m *monitor) healthy() (ids []int32) {
	w, s := m.w, m.h.s
	for _, h := range w.hosts {
		v := m.view[h.id]
		switch {
		case s.noticed(h.id, time.Second) && w.bug != "duplicate counts":
			delete(m.seen, h.id)
		case s.senders[h.id] != nil && h.s.data() && v.Answer == election.Answers:
			m.seen[h.id] = w.now
		}
		if at, ok := m.seen[h.id]; ok && h.s.data() && h.s.priority > 0 && !v.Delayed && v.ReplayBlocked == "" && w.now-at <= w.patience() {
			ids = append(ids, h.id)
		}
	}
	return ids
}

// doubled are the standbys in whose name a copy is seen to stream.
func (m *monitor) doubled() (ids []int32) {
	for _, h := range m.w.hosts {
		if m.h.s.noticed(h.id, time.Second) && m.w.bug != "duplicate counts" {
			ids = append(ids, h.id)
		}
	}
	return ids
}

// push gives the rule to witnesses, and tells it to standbys that do not show it.
func (m *monitor) push(r election.Rule) {
	for _, h := range m.w.hosts {
		v := m.view[h.id]
		if !slices.Contains(r.Voters, h.id) || v.Answer != election.Answers || v.NewestRule().Compare(r) >= 0 {
			continue
		}
		switch {
		case !h.s.data():
			m.tell(h.s, r, func(bool) {})
		case v.Running == election.Standby && m.w.now-m.ruledAt > pulse:
			m.inform(h.s, r, func(bool) {})
		}
	}
}

// inform tells a data node of a rule that its tables do not show yet.
func (m *monitor) inform(s *server, r election.Rule, done func(bool)) {
	ok := false
	m.w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
		s.lock(&m.proc, func(token int64) {
			m.w.after(&s.proc, s.fsync(), func() {
				if ok = s.ballot.term <= r.Term || m.w.bug == "held by a later pledge"; ok {
					s.told = r
				}
				s.unlock(token)
				ret()
			})
		})
	}, func(ans election.Answer) { done(ok && ans == election.Answers) })
}

// tendStandby keeps the local standby ready for its promotion.
func (m *monitor) tendStandby(o election.Observation, st election.State) {
	s := m.h.s
	switch none := s.ssn.Acks == 0; {
	case o.Rule.Quorum && none && m.w.bug != "set after promote":
		s.set(anySync, nil)
	case !o.Rule.Quorum && !none:
		s.set(election.SyncSetting{}, nil)
	}
	if !st.DisconnectedAt.IsZero() && m.now().Sub(st.DisconnectedAt) > 2*m.p.Silence && st.Health == election.HealthAlive && s.cutoff {
		s.lock(&m.proc, func(token int64) {
			if s.ballot.term <= o.Rule.Term {
				s.cutoff, s.forgot = false, true
			}
			s.unlock(token)
		})
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
					if s.halt() == "" {
						s.delay = s.wait
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
