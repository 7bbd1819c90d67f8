package election_test

import (
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

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
		if s.conninfo != target || s.conn != 0 || !s.recovery || !up.s.data() || up == s.h {
			return // there it is refused; the standby tries again
		}
		switch n, has := len(s.wal), len(up.s.wal); {
		case n > has && up.s.recovery && (has == 0 || s.wal[has-1].id == up.s.wal[has-1].id):
			return // it is ahead of a standby
		case n > has || n > 0 && s.wal[n-1].id != up.s.wal[n-1].id:
			s.diverged = true
			return
		}
		w.seq++
		s.diverged, s.upstream, s.conn, s.heard = false, target, int64(w.seq), w.now
		s.setLine(up.s.line())
		s.cutoff = true
		up.s.senders[s.h.id] = &sender{conn: s.conn, flush: len(s.wal), replied: w.now}
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

func (s *server) line() wal.Lineage {
	return wal.Lineage{Timeline: s.tl, Past: s.past, Fingerprint: s.mark}
}

func (s *server) setLine(l wal.Lineage) { s.tl, s.past, s.mark = l.Timeline, l.Past, l.Fingerprint }

func (s *server) receive(conn int64, recs []rec, line wal.Lineage) {
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
		for _, id := range s.standbys() {
			s.pump(id)
		}
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
		if !up.s.recovery {
			s.w.judge.acked(s, up.s)
		}
		snd.flush, snd.replied = max(snd.flush, flush), s.w.now
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

// watchReceiver ends a WAL receiver that hears nothing for wal_receiver_timeout,
// and gives a standby a keepalive now and then.
func (s *server) watchReceiver() {
	s.w.after(nil, 500*time.Millisecond, func() {
		up := s.w.host(s.upstream)
		if s.up && s.conn != 0 && s.until <= s.w.now {
			alive := up != nil && up.s.up && up.s.until <= s.w.now && up.s.senders[s.h.id] != nil && up.s.senders[s.h.id].conn == s.conn
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

// receiverTimeout is wal_receiver_timeout: that of the operator, or PostgreSQL's.
func (w *world) receiverTimeout() time.Duration {
	if w.seed%3 == 0 {
		return time.Minute
	}
	return w.policy.Silence - 500*time.Millisecond
}
