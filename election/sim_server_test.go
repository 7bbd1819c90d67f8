package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// rec is a commit in the WAL. Its LSN is its index plus one.
type rec struct {
	id   int64
	rule *election.Rule
	stop bool // a shutdown in order
}

type ballotOf struct {
	term      int64
	candidate string
}

// sender is what a primary knows of a standby that streams from it.
type sender struct {
	conn  int64
	flush int
	busy  bool // WAL is on its way
}

// waiter is a client whose commit waits for acknowledgement.
type waiter struct {
	id  int64
	lsn int
	ack func()
}

type ruleAt struct {
	rule election.Rule
	lsn  int
}

// server is a virtual PostgreSQL, a witness's, or an arbiter. What is above the
// blank line is on its disk.
type server struct {
	role     election.Role // as registered: primary at first, standby, witness
	priority int
	location string
	wal      []rec
	tl       wal.Timeline
	past     wal.History
	mark     uint32   // of the line
	rules    []ruleAt // in the WAL; or the copies of a witness
	recovery bool
	conninfo int32
	ssn      election.SyncSetting
	ballot   ballotOf
	chosen   int64         // the term that it won: a mark on the ballot
	told     election.Rule // that its WAL has, though its tables may not show it

	proc
	w        *world
	h        *host
	starting bool
	was      election.SyncSetting // in force in some backends until wasUntil
	wasUntil time.Duration
	replayed int
	replays  bool
	upstream int32 // of the WAL receiver
	conn     int64 // of the WAL receiver; 0: none
	heard    time.Duration
	senders  map[int32]*sender
	waiting  []waiter
	locked   int64 // token of the session that holds the ballot lock
	holder   *proc
	queue    []func()
	slow     time.Duration // of its disk
	lazy     time.Duration // of its replay
	diverged bool
	reign    int64 // term in which it was made primary; the judge's
	bound    int64 // term of its last complete pledge; the judge's
	writing  *span
}

func (s *server) data() bool { return s.role != election.Witness && s.h.id != election.Arbiter }

func (s *server) primary() bool { return s.data() && !s.recovery }

// rule is the newest that its tables show.
func (s *server) rule() election.Rule {
	r := election.Rule{}
	for i := len(s.rules) - 1; i >= 0 && !r.Known(); i-- {
		if !s.data() || s.rules[i].lsn <= s.replayed {
			r = s.rules[i].rule
		}
	}
	return r
}

func (s *server) fsync() time.Duration {
	return s.w.between(300*time.Microsecond, 2*time.Millisecond) + s.slow
}

// look is what a monitor reads in one snapshot.
func (s *server) look(id int32) election.Peer {
	p := election.Peer{
		ID: id, Role: s.role, Priority: s.priority, Location: s.location, Running: election.Primary,
		Term: s.ballot.term, Candidate: s.ballot.candidate, Rule: s.rule(), Paused: s.w.paused,
		Monitored: s.h.m.up, Automatic: true, CanFence: true,
	}
	if s.data() {
		p.Position, p.Past, p.Chosen = wal.Position{Timeline: s.tl, LSN: wal.LSN(len(s.wal))}, s.past, s.chosen == s.ballot.term && s.chosen > 0
		p.Mark = s.mark

		p.ShutDown = len(s.wal) > 0 && s.wal[len(s.wal)-1].stop
		if s.recovery {
			p.Running = election.Standby
			p.Streams, p.Receiving, p.Receives, p.Heard = s.conn != 0, s.conn != 0, s.upstream, s.w.now-s.heard
			p.Detached = s.conninfo == 0
		}
	}
	return p.Learned(s.told)
}

// lock runs f in a session that holds the ballot lock.
func (s *server) lock(holder *proc, f func(token int64)) {
	take := func() {
		s.w.seq++
		s.locked, s.holder = int64(s.w.seq), holder
		f(s.locked)
	}
	if s.locked != 0 {
		s.queue = append(s.queue, take)
		return
	}
	take()
}

func (s *server) unlock(token int64) {
	if s.locked != token {
		return
	}
	s.locked, s.holder = 0, nil
	if len(s.queue) > 0 {
		next := s.queue[0]
		s.queue = s.queue[1:]
		next()
	}
}

func (s *server) vote(b ballotOf) {
	s.w.judge.voted(s, b)
	s.ballot = b
}

// pledge stores a ballot; a standby's receiver stops and what it has is replayed.
func (s *server) pledge(from *proc, b ballotOf, self bool, done func(ok bool)) {
	s.lock(from, func(token int64) {
		if b.term <= s.ballot.term || s.primary() && !self || !s.primary() && self {
			s.unlock(token)
			done(false)
			return
		}
		s.w.after(&s.proc, s.fsync(), func() {
			s.vote(b)
			if !s.data() || s.primary() {
				s.unlock(token)
				done(true)
				return
			}
			s.conninfo = 0
			s.w.after(&s.proc, s.w.between(time.Millisecond, 20*time.Millisecond)+s.slow/4, func() {
				if s.w.bug != "pledge keeps the receiver" {
					s.detach()
				}
				s.unlock(token)
				s.drain(b, done)
			})
		})
	})
}

func (s *server) drain(b ballotOf, done func(bool)) {
	if s.w.bug == "pledge keeps the receiver" {
		s.replayed = len(s.wal)
	}
	if s.replayed < len(s.wal) {
		s.w.after(&s.proc, 5*time.Millisecond, func() { s.drain(b, done) })
		return
	}
	s.bound = max(s.bound, b.term)
	done(s.recovery)
}

func (s *server) detach() {
	if up := s.w.host(s.upstream); up != nil && s.conn != 0 {
		if snd := up.s.senders[s.h.id]; snd != nil && snd.conn == s.conn {
			delete(up.s.senders, s.h.id)
		}
	}
	s.conn, s.upstream = 0, 0
}

// attach tries to stream from the upstream of primary_conninfo.
func (s *server) attach() {
	if !s.up || !s.recovery || s.conninfo == 0 || s.conn != 0 || s.starting {
		return
	}
	w, target := s.w, s.conninfo
	up := w.host(target)
	w.rpc(&s.proc, s.h, up.s, time.Second, func(ret func()) {
		if s.conninfo != target || s.conn != 0 || !s.recovery || up.s.recovery || !up.s.data() {
			return // there it is refused; the standby tries again
		}
		if n := len(s.wal); n > len(up.s.wal) || n > 0 && s.wal[n-1].id != up.s.wal[n-1].id {
			s.diverged = true
			return
		}
		w.seq++
		s.diverged, s.upstream, s.conn, s.heard = false, target, int64(w.seq), w.now
		s.setLine(up.s.line())
		up.s.senders[s.h.id] = &sender{conn: s.conn, flush: len(s.wal)}
		up.s.pump(s.h.id)
		up.s.release()
		ret()
	}, func(election.Answer) {})
	w.after(&s.proc, w.between(150*time.Millisecond, 400*time.Millisecond), func() {
		if s.conninfo == target {
			s.attach()
		}
	})
}

// pump sends WAL to a standby, as it is flushed here.
func (s *server) pump(id int32) {
	snd, to := s.senders[id], s.w.host(id)
	if snd == nil || snd.busy || !s.w.open(s.h, to) {
		return
	}
	snd.busy = true
	s.w.after(&s.proc, s.w.between(0, time.Millisecond), func() {
		recs, line, conn := s.wal[:len(s.wal):len(s.wal)], s.line(), snd.conn
		s.w.send(s.h, to, &to.s.proc, func() { to.s.receive(conn, recs, line) })
		if s.senders[id] == snd {
			snd.busy = false
		}
	})
}

func (s *server) line() wal.Line { return wal.Line{Timeline: s.tl, Past: s.past, Mark: s.mark} }

func (s *server) setLine(l wal.Line) { s.tl, s.past, s.mark = l.Timeline, l.Past, l.Mark }

func (s *server) receive(conn int64, recs []rec, line wal.Line) {
	if s.conn != conn {
		return
	}
	s.heard = s.w.now
	s.w.after(&s.proc, s.fsync(), func() {
		if s.conn != conn {
			return
		}
		for i := len(s.wal); i < len(recs); i++ {
			s.append(recs[i])
		}
		s.setLine(line)
		s.replay()
		s.reply(conn)
	})
}

// reply tells the sender how far this standby has flushed.
func (s *server) reply(conn int64) {
	up := s.w.host(s.upstream)
	flush := len(s.wal)
	if up == nil || !s.w.open(s.h, up) {
		return // with the next one, or when the link is healed
	}
	s.w.send(s.h, up, &up.s.proc, func() {
		snd := up.s.senders[s.h.id]
		if snd == nil || snd.conn != conn {
			return
		}
		s.w.judge.acked(s, up.s)
		snd.flush = max(snd.flush, flush)
		up.s.release()
	})
}

func (s *server) linkHealed(a, b int32) {
	if s.up && s.h.id == a {
		s.pump(b)
	}
	if s.up && s.h.id == a && s.conn != 0 && s.upstream == b {
		s.reply(s.conn)
	}
}

// append puts a record into the flushed WAL.
func (s *server) append(r rec) {
	s.wal = append(s.wal, r)
	if r.rule != nil {
		s.rules = append(s.rules, ruleAt{*r.rule, len(s.wal)})
	}
	if !s.recovery {
		s.replayed = len(s.wal)
	}
}

func (s *server) replay() {
	if s.replays || s.replayed == len(s.wal) {
		return
	}
	s.replays = true
	s.w.after(&s.proc, s.w.between(100*time.Microsecond, 3*time.Millisecond)+s.lazy, func() {
		s.replays, s.replayed = false, len(s.wal)
	})
}

// commit writes a record as a session of a primary does. ack is called when the
// session gets its answer.
func (s *server) commit(r rec, ack func()) {
	s.w.after(&s.proc, s.fsync(), func() {
		if s.recovery {
			return
		}
		s.append(r)
		if r.rule == nil {
			s.w.judge.accepted(s)
		}
		s.waiting = append(s.waiting, waiter{r.id, len(s.wal), ack})
		for _, id := range s.standbys() {
			s.pump(id)
		}
		s.release()
	})
}

func (s *server) standbys() []int32 {
	var all []int32
	for _, h := range s.w.hosts {
		if s.senders[h.id] != nil {
			all = append(all, h.id)
		}
	}
	return all
}

// release answers the commits that enough standbys have.
func (s *server) release() {
	for len(s.waiting) > 0 && s.up && !s.recovery {
		first := s.waiting[0]
		if !s.satisfied(s.ssn, first.lsn) && (s.w.now >= s.wasUntil || !s.satisfied(s.was, first.lsn)) {
			return
		}
		s.waiting = s.waiting[1:]
		if first.ack != nil {
			first.ack()
		}
	}
}

func (s *server) satisfied(set election.SyncSetting, lsn int) bool {
	n := 0
	for _, id := range set.Standbys {
		if snd := s.senders[id]; snd != nil && snd.flush >= lsn {
			n++
		}
	}
	return n >= set.Acks
}

// set changes synchronous_standby_names. The processes of the server read it one
// after another; ret is called when the session that asked has.
func (s *server) set(set election.SyncSetting, ret func()) {
	s.w.after(&s.proc, s.fsync(), func() {
		s.was, s.wasUntil, s.ssn = s.ssn, s.w.now+s.w.between(0, 20*time.Millisecond), set
		s.w.logf("node %d: synchronous_standby_names = ANY %d %v", s.h.id, set.Acks, set.Standbys)
		s.release()
		if ret != nil {
			ret()
		}
	})
}

// promote ends recovery on a new timeline.
func (s *server) promote(term int64, ret func()) {
	s.w.after(&s.proc, s.w.between(15*time.Millisecond, 40*time.Millisecond), func() {
		if !s.recovery {
			ret()
			return
		}
		s.detach()
		s.conninfo, s.recovery, s.chosen = 0, false, term
		s.past = append(slices.Clone(s.past), wal.HistoryEntry{Timeline: s.tl, SwitchLSN: wal.LSN(len(s.wal))})
		s.tl++
		s.w.seq++
		s.mark = uint32(s.w.seq)
		s.append(rec{id: -int64(s.w.seq)})
		s.w.judge.promoted(s, term)
		s.w.logf("node %d: promoted in term %d at %d on timeline %d", s.h.id, term, len(s.wal), s.tl)
		ret()
	})
}

// crash ends the server at once: what it has flushed stays.
func (s *server) crash() {
	if !s.up {
		return
	}
	s.w.logf("node %d: server ends", s.h.id)
	for _, h := range s.w.hosts {
		h := h
		if h.s.conn != 0 && h.s.upstream == s.h.id && h.s.up {
			conn := h.s.conn
			gone := func() {
				if h.s.conn == conn {
					h.s.conn, h.s.upstream = 0, 0
					h.s.attach()
				}
			}
			if s.w.open(s.h, h) {
				s.w.send(s.h, h, &h.s.proc, gone)
			} else {
				s.w.after(&h.s.proc, s.w.policy.Silence, gone)
			}
		}
		if h.m.up && s.w.open(s.h, h) && h.id != s.h.id {
			s.w.send(s.h, h, &h.m.proc, func() { h.m.ended(s.h.id) })
		}
	}
	s.detach()
	s.die()
	s.senders, s.waiting, s.locked, s.holder, s.queue = map[int32]*sender{}, nil, 0, nil, nil
	s.starting, s.replays, s.writing = false, false, nil
}

// start brings the server up as what its data directory is.
func (s *server) start() {
	if s.up || s.h.down {
		return
	}
	s.up, s.starting, s.replayed = true, true, len(s.wal)
	if s.w.bug == "vote not durable" && s.data() {
		s.ballot = ballotOf{}
	}
	s.w.judge.restarted(s)
	s.w.logf("node %d: server starts, standby=%v", s.h.id, s.recovery)
	s.w.after(&s.proc, s.w.between(20*time.Millisecond, 200*time.Millisecond), func() {
		s.starting = false
		if s.primary() {
			s.w.judge.returned(s)
		}
		s.attach()
	})
	s.client()
}

// client writes on the server's own host as long as the server accepts it.
func (s *server) client() {
	if !s.data() {
		return
	}
	s.w.after(&s.proc, s.w.between(20*time.Millisecond, 60*time.Millisecond), func() {
		if s.primary() && !s.starting && len(s.waiting) < 20 {
			s.w.seq++
			id := int64(s.w.seq)
			s.commit(rec{id: id}, func() { s.w.judge.acknowledged(s, id) })
		}
		s.client()
	})
}

// watchReceiver ends a WAL receiver that hears nothing for wal_receiver_timeout,
// and gives a standby a keepalive now and then.
func (s *server) watchReceiver() {
	s.w.after(nil, 500*time.Millisecond, func() {
		up := s.w.host(s.upstream)
		if s.up && s.conn != 0 && s.until <= s.w.now {
			alive := up != nil && up.s.up && !up.s.recovery && up.s.until <= s.w.now && up.s.senders[s.h.id] != nil && up.s.senders[s.h.id].conn == s.conn
			if alive && s.w.open(up, s.h) && s.w.open(s.h, up) {
				up.s.pump(s.h.id)
			} else if s.w.now-s.heard > s.w.receiverTimeout() {
				s.detach()
				s.attach()
			}
		}
		s.watchReceiver()
	})
}

// copyFrom makes the data directory that of another server, as pg_rewind or a
// clone does. The ballot stays the node's own.
func (s *server) copyFrom(recs []rec, line wal.Line, upstream int32) {
	s.wal = slices.Clone(recs)
	s.rules = nil
	for i, r := range s.wal {
		if r.rule != nil {
			s.rules = append(s.rules, ruleAt{*r.rule, i + 1})
		}
	}
	s.recovery, s.conninfo, s.diverged = true, upstream, false
	s.setLine(line)
}

// tell stores a rule on a witness.
func (s *server) tell(r election.Rule) bool {
	if s.ballot.term > r.Term && s.w.bug != "ballot not checked" {
		return false
	}
	if r.Compare(s.rule()) > 0 {
		s.rules = append(s.rules, ruleAt{rule: r})
	}
	return true
}

// receiverTimeout is wal_receiver_timeout: that of the operator, or PostgreSQL's.
func (w *world) receiverTimeout() time.Duration {
	if w.seed%3 == 0 {
		return time.Minute
	}
	return w.policy.Silence - 500*time.Millisecond
}
