package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// replaying is what holds the replay of a standby up.
type replaying struct {
	replayed int
	replays  bool
	lazy     time.Duration // it is slow
	wait     time.Duration // recovery_min_apply_delay, as the operator has set it
	delay    time.Duration // and as it is in force
	query    bool          // it waits for a session of the standby
	paused   bool          // by an operator
	target   bool          // at a recovery target: to resume it promotes the server
	narrow   bool          // max_connections are fewer than the primary's: to resume it ends the server
}

// stands reports whether the replay goes on by nobody's doing.
func (r replaying) stands() bool { return r.query || r.paused || r.target || r.narrow }

// halt says why the replay can not be brought to its end.
func (r replaying) halt() election.Unfit {
	switch {
	case r.target:
		return election.UnfitTarget
	case r.narrow:
		return election.UnfitParameters
	}
	return ""
}

func (s *server) replay() {
	if s.replays || s.replayed >= len(s.wal) || !s.recovery {
		return
	}
	s.replays = true
	upto := len(s.wal)
	s.w.after(&s.proc, s.w.between(100*time.Microsecond, 3*time.Millisecond)+s.lazy+s.delay, func() {
		if s.replays = false; !s.stands() {
			s.replayed = max(s.replayed, min(upto, len(s.wal)))
		}
		if s.stands() {
			s.w.after(&s.proc, 50*time.Millisecond, s.replay)
			return
		}
		s.replay()
	})
}

// pledge stores a ballot; a standby's receiver ends, and the archive is cut off.
// Nothing must be replayed for that, and nothing is resumed.
func (s *server) pledge(from *proc, b ballotOf, self bool, done func(ok bool)) {
	s.lock(from, func(token int64) {
		known, blind := s.ballot, s.w.bug == "unreadable ballot votes" && s.broken
		if blind {
			known = ballotOf{}
		}
		if b.term <= known.term || s.broken && !blind || s.primary() != self && s.data() {
			s.unlock(token)
			done(false)
			return
		}
		s.w.after(&s.proc, s.fsync(), func() {
			s.vote(b)
			if !s.data() || s.primary() || blind { // a configuration that is not read detaches nobody
				s.unlock(token)
				done(true)
				return
			}
			s.conninfo = 0
			s.cutoff = s.w.bug != "archive stays attached"
			s.unlock(token)
			s.stop(b, s.conn, done)
		})
	})
}

// stop ends the WAL receiver that runs: what the standby has is read from its disk.
func (s *server) stop(b ballotOf, conn int64, done func(ok bool)) {
	d := s.w.between(time.Millisecond, 20*time.Millisecond) + s.slow/4
	if s.stands() {
		d += 60 * time.Millisecond // its startup process is busy: a short timeout ends the receiver
	}
	s.w.after(&s.proc, d, func() {
		keeps := s.w.bug == "pledge keeps the receiver"
		if s.conn == conn && !keeps {
			s.detach()
		}
		switch {
		case s.w.bug == "pledge waits for replay":
			s.resume()
			s.drained(func() { s.stopped(b, done) })
		case s.w.blind():
			s.resume()
			s.stopped(b, done)
		case s.conn != 0 && !keeps: // it was pointed elsewhere since
			done(false)
		default:
			s.stopped(b, done)
		}
	})
}

func (s *server) stopped(b ballotOf, done func(ok bool)) {
	s.bound = max(s.bound, b.term)
	s.forgot = false
	done(s.recovery || s.w.blind())
}

// blind: a pledge resumes whatever stands.
func (w *world) blind() bool { return w.bug == "blind resume" || w.bug == "elected at its target" }

// resume is pg_wal_replay_resume, whatever the pause is for.
func (s *server) resume() {
	switch {
	case s.target:
		s.target = false
		s.wal = s.wal[:s.replayed:s.replayed]
		s.rules = slices.DeleteFunc(s.rules, func(r ruleAt) bool { return r.lsn > s.replayed })
		s.usurp()
	case s.narrow:
		s.crash()
	}
	s.paused = false
}

// drained calls then when everything is replayed.
func (s *server) drained(then func()) {
	if s.replayed >= len(s.wal) {
		then()
		return
	}
	s.replay()
	s.w.after(&s.proc, 5*time.Millisecond, func() { s.drained(then) })
}

// drain replays all that the winner has, and helps: it alone needs that.
func (s *server) drain(then func()) {
	if s.halt() == "" {
		s.paused, s.delay, s.query = false, 0, false
	}
	s.drained(then)
}

// drain lets the winner replay, and counts once more: it may show a newer rule.
func (c *election1) drain(then func()) {
	w, m, s := c.w, c.m, c.w.host(c.tally.Winner).s
	if c.reaffirm {
		then()
		return
	}
	var view election.Peer
	w.rpc(&m.proc, m.h, s, 10*time.Second, func(ret func()) {
		s.drain(func() {
			view = s.look(s.h.id)
			ret()
		})
	}, func(ans election.Answer) {
		if ans != election.Answers {
			c.end("the winner does not replay")
			return
		}
		i := slices.IndexFunc(c.pledged, func(p election.Peer) bool { return p.ID == s.h.id })
		view.Answer, view.SeenAt = ans, m.now()
		c.pledged[i] = view
		before := c.tally.Winner
		if c.tally = c.tallied(); c.tally.Refusal != "" || c.tally.Winner != before {
			c.end("what the winner has replayed makes another one it")
			return
		}
		c.at("drained", then)
	})
}

// archived is what a primary has archived. It is reached from everywhere.
type archived struct {
	recs  []rec
	line  wal.Lineage
	reign int64
}

// archive stores what a primary has, and gives a standby that receives nothing
// what goes on from its own.
func (w *world) archive() {
	w.after(nil, 300*time.Millisecond, w.archive)
	for _, h := range w.hosts {
		switch s := h.s; {
		case !s.data() || !s.up || s.starting || s.hung(w.now):
		case s.primary():
			w.archives[h.id] = archived{s.wal[:len(s.wal):len(s.wal)], s.line(), s.reign}
		case s.conn == 0 && !s.cutoff:
			s.restore()
		}
	}
}

func (s *server) restore() {
	for _, h := range s.w.hosts {
		a, n := s.w.archives[h.id], len(s.wal)
		if len(a.recs) <= n || n == 0 || a.recs[n-1].id != s.wal[n-1].id {
			continue
		}
		s.w.logf("node %d: restores %d records of node %d", s.h.id, len(a.recs)-n, h.id)
		s.w.judge.restored(s, a)
		for _, r := range a.recs[n:] {
			s.append(r)
		}
		s.setLine(a.line)
		s.replay()
		return
	}
}
