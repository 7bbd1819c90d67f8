package election_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

const shutdownLimit = 2 * time.Second // of a handover

// plotHandover adds a switchover, or a restart of the primary in its place, to some clusters, and alone to a few;
// and after it another one, which may come in the same term. It has dice of its own, so that the other clusters
// stay what they were.
func (w *world) plotHandover() {
	kind, ok := map[uint64]string{2: "switchover", 3: "restart"}[w.seed%5]
	if !ok || w.name == "harmless" {
		return
	}
	dice := rand.New(rand.NewPCG(w.seed, 11))
	somebody := func() int32 { return w.hosts[dice.IntN(len(w.hosts))].id }
	alone := dice.IntN(4) == 0
	if alone {
		w.plan, w.name = nil, kind
	}
	first := fault{kind: kind, at: 2*time.Second + time.Duration(dice.IntN(7000))*time.Millisecond, a: 1, b: somebody()}
	w.plan = append(w.plan, first)
	if !alone && dice.IntN(2) == 0 {
		w.plan = append(w.plan, fault{
			kind: stepFault[dice.IntN(len(stepFault))], step: []string{"noticed", "stopped", "received"}[dice.IntN(3)], a: int32(dice.IntN(4)),
			d: time.Duration(200+dice.IntN(6000)) * time.Millisecond,
		})
	}
	if dice.IntN(2) == 0 {
		first.at += time.Duration(300+dice.IntN(5000)) * time.Millisecond
		first.kind, first.b = []string{"switchover", "restart"}[dice.IntN(2)], somebody()
		if alone { // it is to be known what came of it
			first.kind = kind
		}
		w.plan = append(w.plan, first)
	}
}

// askHandover is an operator who asks the primary to hand over to a node, or to another one where that can not be; or
// to restart in its place, so that the node is elected only where that does not work.
func (w *world) askHandover(to int32, restart bool) {
	for _, o := range w.hosts {
		s := o.s
		if !s.up || !s.primary() || s.starting || s.closing || s.hung(w.now) || s.rogue || s.handover.ID != "" && s.handover.Term == s.rule().Term {
			continue
		}
		if t := w.host(to); t == nil || !t.s.data() || t == o {
			i := slices.IndexFunc(w.hosts, func(h *host) bool { return h != o && h.s.data() })
			if i < 0 {
				return
			}
			to = w.hosts[i].id
		}
		w.seq++
		w.asked++
		now := w.clock(o)
		s.handover = election.Handover{ID: fmt.Sprint(w.seq), Term: s.rule().Term, Target: to, Start: now, Until: now.Add(10 * time.Second), Limit: shutdownLimit, Restart: restart}
		w.logf("node %d is asked to hand over to node %d, restart %v", o.id, to, restart)
		return
	}
}

// shutDown is the shutdown of a server in order: it takes no more commits, and ends when all that stream from it
// have everything.
func (s *server) shutDown() {
	s.closing = true
	s.w.seq++
	s.commit(rec{id: -int64(s.w.seq), stop: true}, nil)
	s.endWhenSent()
}

func (s *server) endWhenSent() {
	s.w.after(&s.proc, 10*time.Millisecond, func() {
		late := func(id int32) bool { return s.senders[id].flush < len(s.wal) }
		if len(s.wal) == 0 || !s.wal[len(s.wal)-1].stop || slices.ContainsFunc(s.standbys(), late) {
			s.endWhenSent()
			return
		}
		s.crash()
	})
}

// at is a named step of a handover: faults may be planned there.
func (m *monitor) at(step string, h election.Handover, next func()) {
	(&election1{m: m, w: m.w, rule: m.newest(), term: h.Term, tally: election.Tally{Winner: h.Target}}).at(step, next)
}

// handOver carries out what the local primary was asked for: see package switchover.
func (m *monitor) handOver() {
	if m.busy {
		return
	}
	s, r := m.h.s, m.newest()
	h := m.view[m.h.id].Handover
	m.busy = true
	target := m.view[h.Target]
	switch {
	case h.LeftBehind(r):
		m.forget(h.ID, func() { m.did(election.HandOver, "left behind") })
		return
	case target == nil, target.Answer != election.Answers, !target.Receiving, m.p.Fit(r, *target) != "":
		m.forget(h.ID, func() { m.did(election.HandOver, "the target is not fit") })
		return
	}
	began := m.w.now
	h.Begun, h.Hold, h.Until = true, h.Limit+3*m.p.Silence, m.now().Add(h.Limit)
	told := false
	m.note(s, h, func(ok bool) {
		if !ok {
			m.forget(h.ID, func() { m.did(election.HandOver, "its own server does not answer") })
			return
		}
		each(m.others(), func(id int32, done func()) {
			m.note(m.w.host(id).s, h, func(ok bool) { told = told || ok && id == h.Target; done() })
		}, func() {
			if !told || m.w.now-began > m.p.Silence {
				m.forget(h.ID, func() { m.did(election.HandOver, "the target was not told in time") })
				return
			}
			m.at("noticed", h, func() { m.stop(h) })
		})
	})
}

// others are the nodes that answer, but for this one.
func (m *monitor) others() (ids []int32) {
	for _, h := range m.w.hosts {
		if h != m.h && h.id != election.Arbiter && m.view[h.id].Answer == election.Answers {
			ids = append(ids, h.id)
		}
	}
	return ids
}

// note writes a request or a notice on a server.
func (m *monitor) note(s *server, h election.Handover, done func(ok bool)) {
	m.w.rpc(&m.proc, m.h, s, m.p.Silence, func(ret func()) {
		m.w.after(&s.proc, s.fsync(), func() { s.handover = h; ret() })
	}, func(a election.Answer) { done(a == election.Answers) })
}

// forget removes the request, and its notices: those of a later one stay.
func (m *monitor) forget(id string, then func()) {
	each(append(m.others(), m.h.id), func(of int32, done func()) {
		s := m.w.host(of).s
		m.w.rpc(&m.proc, m.h, s, m.p.Silence, func(ret func()) {
			m.w.after(&s.proc, s.fsync(), func() {
				if of == m.h.id || s.handover.ID == id {
					s.handover = election.Handover{}
				}
				ret()
			})
		}, func(election.Answer) { done() })
	}, then)
}

// stop shuts the server down. Its lease is not kept meanwhile.
func (m *monitor) stop(h election.Handover) {
	m.handing = true
	s, late := m.h.s, m.w.now+h.Limit
	m.w.after(&s.proc, time.Millisecond, s.shutDown)
	var wait func()
	wait = func() {
		switch {
		case !s.up && len(s.wal) > 0 && s.wal[len(s.wal)-1].stop:
			m.at("stopped", h, func() { m.receive(h, m.w.now+m.p.Silence) })
		case !s.up, m.w.now > late:
			m.goOn(h, "the server did not end in order")
		default:
			m.w.sleep(m.h, &m.proc, 20*time.Millisecond, wait)
		}
	}
	m.w.sleep(m.h, &m.proc, 5*time.Millisecond, wait)
}

// receive waits until the target is seen to have the record of the shutdown, and the server to refuse connections.
func (m *monitor) receive(h election.Handover, late time.Duration) {
	each([]int32{h.Target, m.h.id}, func(id int32, done func()) { m.look(id, done) }, func() {
		switch {
		case m.view[h.Target].ShutDown && m.view[m.h.id].Answer == election.Refused:
			m.at("received", h, func() { m.afterStop(h) })
		case m.w.now > late:
			m.goOn(h, "the target lacks the shutdown")
		default:
			m.w.sleep(m.h, &m.proc, 25*time.Millisecond, func() { m.receive(h, late) })
		}
	})
}

// electTarget lets a majority elect the target; where there is none without this node, its server is started as a standby first.
func (m *monitor) electTarget(h election.Handover) {
	r, p := m.newest(), m.p
	p.OnShutdown, p.Prefer = true, h.Target
	hold := func() {
		m.hold(p, false, func(pledged bool, why string) {
			switch {
			case why == "":
				m.forget(h.ID, func() { m.handedOver("") })
			case !pledged && !m.h.s.up:
				m.goOn(h, why)
			default:
				m.handedOver(why)
			}
		})
	}
	if r.Majority(m.others()) {
		hold()
		return
	}
	m.asStandby()
	late := m.w.now + m.p.Silence
	var wait func()
	wait = func() {
		m.look(m.h.id, func() {
			switch v := m.view[m.h.id]; {
			case v.Answer == election.Answers && v.Running == election.Standby:
				hold()
			case m.w.now > late:
				m.handedOver("the former primary does not answer as a standby")
			default:
				m.w.sleep(m.h, &m.proc, 25*time.Millisecond, wait)
			}
		})
	}
	wait()
}

// asStandby starts the server as a standby of nobody, so that it has a vote.
func (m *monitor) asStandby() {
	if s := m.h.s; !s.up {
		s.recovery, s.conninfo, s.rogue = true, 0, false
		s.start()
	}
}

// handedOver ends a handover after which the server is a standby.
func (m *monitor) handedOver(why string) {
	if s := m.h.s; !s.up {
		if why == "" {
			s.handover = election.Handover{}
		}
		m.asStandby()
	}
	m.handing = false
	m.did(election.HandOver, why)
}

// afterStop starts a server again that was only to be restarted. Where it may not run, or ends again, the target is elected.
func (m *monitor) afterStop(h election.Handover) {
	if !h.Restart {
		m.electTarget(h)
		return
	}
	m.mayRun(func(may bool) {
		switch {
		case !may:
			m.electTarget(h)
		case m.w.rng.IntN(8) == 0:
			m.w.name += ", and a crash" // which may lose what was committed between
			m.h.s.start()
			m.w.sleep(m.h, &m.proc, 200*time.Millisecond, func() {
				m.h.s.crash()
				m.electTarget(h)
			})
		default:
			m.runAgain(h, func() { m.w.restarts++; m.did(election.HandOver, "") })
		}
	})
}

// goOn starts the server again as the primary, if nobody else can have been elected.
func (m *monitor) goOn(h election.Handover, why string) {
	m.h.s.crash() // a shutdown that hangs can not be taken back
	m.mayRun(func(may bool) {
		if !may {
			m.handedOver(why)
			return
		}
		m.runAgain(h, func() { m.did(election.HandOver, why) })
	})
}

// runAgain starts the server as the primary. Its lease counts again.
func (m *monitor) runAgain(h election.Handover, then func()) {
	m.h.s.start()
	m.w.sleep(m.h, &m.proc, 250*time.Millisecond, func() {
		m.forget(h.ID, func() {
			m.handing = m.w.bug == "no lease after a handover"
			then()
		})
	})
}

// mayRun says whether the server, which is down, may be started as the primary: nobody else can have been elected.
func (m *monitor) mayRun(then func(may bool)) {
	s := m.h.s
	var ids []int32
	for _, h := range m.w.hosts {
		if h != m.h {
			ids = append(ids, h.id)
		}
	}
	each(ids, func(id int32, done func()) { m.look(id, done) }, func() {
		newest, before := standing(s)
		own := election.Peer{ID: m.h.id, Role: s.role, Term: s.ballot.term, WonElection: s.chosen > 0 && s.chosen == s.ballot.term}
		known := []election.Rule{newest}
		if before.Known() {
			known = append(known, before)
		}
		var views []election.Peer
		for _, id := range ids {
			views = append(views, *m.view[id])
		}
		then(m.w.bug == "restarts without a look" || m.p.Screen(m.now(), own, known, m.w.voters(), views) == election.ScreenedClear && !s.up)
	})
}

// resume gives up a handover whose monitor died after it had told the server to end.
func (m *monitor) resume() {
	s := m.h.s
	if m.handing || m.busy || !s.primary() || s.handover.Hold == 0 || s.handover.Term != s.rule().Term {
		return
	}
	if s.up && s.closing && m.now().After(s.handover.Until) {
		s.crash()
	}
	if !s.up && len(s.wal) > 0 && s.wal[len(s.wal)-1].stop {
		s.handover = election.Handover{}
		m.asStandby()
	}
}
