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
	conn    int64
	flush   int
	replied time.Duration // when it last said so
	busy    bool          // WAL is on its way
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
	cutoff   bool // restore_command is out of force
	ballot   ballotOf
	chosen   int64             // the term that it won: a mark on the ballot
	told     election.Rule     // that its WAL has, though its tables may not show it
	segment  wal.Timeline      // of the highest segment that a rewind left behind
	broken   bool              // its configuration does not parse
	handover election.Handover // that it was asked for, or told of
	inForce
	replaying

	proc
	w        *world
	h        *host
	starting bool
	closing  bool  // it shuts down in order
	rejects  bool  // the login of the monitors has changed
	full     bool  // no connection is free
	recovers bool  // from a crash, and does not come to an end
	upstream int32 // of the WAL receiver
	conn     int64 // of the WAL receiver; 0: none
	heard    time.Duration
	senders  map[int32]*sender
	waiting  []waiter
	locked   int64 // token of the session that holds the ballot lock
	holder   *proc
	queue    []func()
	slow     time.Duration // of its disk
	twins    []twin
	weak     bool // the acknowledgement that is being given is a twin's
	forgot   bool // it takes WAL from the archive again, long after its pledge
	back     bool // a primary that came back by itself
	rogue    bool // made a primary by nobody's vote
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
		Term: s.ballot.term, Candidate: s.ballot.candidate, Rule: s.rule(), Paused: s.h.paused, PauseSeq: s.h.pauseSeq,
		Monitored: s.h.m.up, Automatic: !s.h.manual || s.w.bug == "manual is replaced", CanFence: !s.h.unable || s.w.bug == "fence is believed",
	}
	if p.Handover = s.handover; s.w.bug == "a handover is forgotten" && !s.primary() {
		p.Handover = election.Handover{}
	}
	if s.broken {
		if p.NoPledge = "its configuration does not parse"; s.w.bug == "unreadable ballot votes" {
			p.NoPledge, p.Term, p.Candidate = "", 0, ""
		}
	}
	if s.data() {
		p.Position, p.Past, p.WonElection = wal.Position{Timeline: s.tl, LSN: wal.LSN(len(s.wal))}, s.past, s.chosen == s.ballot.term && s.chosen > 0
		p.Mark, p.Feeds = s.mark, s.standbys()
		if s.w.bug == "unknown sender is life" {
			p.Feeds = nil
		}
		if s.w.bug == "a segment names the timeline" {
			p.Position.Timeline = max(s.tl, s.segment)
		}
		p.Replayed, p.Idle, p.ReplayBlocked, p.Delayed, p.ReplayPaused = wal.LSN(s.replayed), s.replayed >= len(s.wal), s.halt(), s.wait > 0, s.paused || s.target
		p.ShutDown = len(s.wal) > 0 && s.wal[len(s.wal)-1].stop
		if s.recovery {
			p.Running = election.Standby
			p.Streams, p.Receiving, p.Receives, p.Heard = s.conn != 0, s.conn != 0, s.upstream, s.w.now-s.heard
			if s.h.unnamed {
				p.Receives = 0
			}
			p.Detached = s.conninfo == 0
		}
	}
	return p.WithAnnounced(s.told)
}

// lock runs f in a session that holds the ballot lock.
func (s *server) lock(holder *proc, f func(token int64)) {
	take := func() {
		s.w.seq++
		s.locked, s.holder = int64(s.w.seq), holder
		if token := s.locked; !holder.up { // its session was under way when it died
			s.w.after(&s.proc, 5*time.Millisecond, func() { s.unlock(token) })
			return
		}
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

// append puts a record into the flushed WAL.
func (s *server) append(r rec) {
	s.wal = append(s.wal, r)
	if r.rule != nil {
		s.rules = append(s.rules, ruleAt{*r.rule, len(s.wal)})
	}
	if !s.recovery {
		if s.replayed = len(s.wal); r.rule != nil && r.rule.Primary == s.h.id {
			s.rogue, s.reign = false, max(s.reign, r.rule.Term)
		}
	}
}

// commit writes a record as a session of a primary does. ack is called when the
// session gets its answer.
func (s *server) commit(r rec, ack func()) {
	s.w.after(&s.proc, s.fsync(), func() {
		if s.recovery || s.closing && !r.stop || r.rule != nil && len(s.rules) > 0 && s.rules[len(s.rules)-1].rule.Compare(*r.rule) >= 0 {
			return // a row is only ever the newest
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

// promote ends recovery on a new timeline.
func (s *server) promote(term int64, ret func()) {
	s.w.after(&s.proc, s.w.between(15*time.Millisecond, 40*time.Millisecond), func() {
		if !s.recovery {
			ret()
			return
		}
		s.detach()
		s.conninfo, s.chosen = 0, term
		s.branch()
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
	s.starting, s.closing, s.replays, s.writing = false, false, false, nil
	s.idle, s.wasUntil = 0, 0
}

// start brings the server up as what its data directory is.
func (s *server) start() {
	if s.up || s.h.down || s.broken || s.narrow && s.recovery {
		return
	}
	s.up, s.starting, s.delay = true, true, s.wait
	if !s.recovery || !s.target {
		s.replayed = len(s.wal)
	}
	if s.w.bug == "vote not durable" && s.data() {
		s.ballot = ballotOf{}
	}
	s.w.judge.restarted(s)
	s.w.logf("node %d: server starts, standby=%v", s.h.id, s.recovery)
	s.ready()
	s.client()
}

// ready lets clients in, when what the server recovers from is behind it.
func (s *server) ready() {
	s.w.after(&s.proc, s.w.between(20*time.Millisecond, 200*time.Millisecond), func() {
		if s.recovers && s.primary() {
			s.ready()
			return
		}
		s.starting = false
		if s.back = s.primary() && s.w.now > time.Second; s.primary() {
			s.w.judge.returned(s)
		}
		s.attach()
	})
}

// client writes on the server's own host as long as the server accepts it.
func (s *server) client() {
	if !s.data() {
		return
	}
	s.w.after(&s.proc, s.w.between(20*time.Millisecond, 60*time.Millisecond), func() {
		if s.primary() && !s.starting {
			s.w.judge.read(s)
		}
		if s.primary() && !s.starting && len(s.waiting) < 20 {
			s.w.seq++
			id := int64(s.w.seq)
			s.commit(rec{id: id}, func() { s.w.judge.acknowledged(s, id) })
		}
		s.client()
	})
}

// copyFrom makes the data directory that of another server, as pg_rewind or a
// clone does. The ballot stays the node's own.
func (s *server) copyFrom(recs []rec, line wal.Lineage, upstream int32) {
	s.wal, s.replayed, s.rules = slices.Clone(recs), len(recs), nil
	for i, r := range s.wal {
		if r.rule != nil {
			s.rules = append(s.rules, ruleAt{*r.rule, i + 1})
		}
	}
	s.segment = max(s.segment, s.tl) // a segment that straddles the fork stays
	s.recovery, s.conninfo, s.diverged, s.rogue = true, upstream, false, false
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
