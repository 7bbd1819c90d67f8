package election_test

import "time"

// inject2 is a fault of what PostgreSQL, its surroundings or the monitors are like,
// rather than of a process, a disk or a link. It reports whether it knows it.
func (w *world) inject2(f fault, h *host, undo func(time.Duration, func())) bool {
	s := h.s
	set := func(flag *bool) {
		*flag = true
		undo(f.d, func() { *flag = false; s.start() })
	}
	switch f.kind {
	case "long query":
		set(&s.query)
	case "pause replay":
		set(&s.paused)
	case "target":
		if s.recovery {
			set(&s.target)
		}
	case "narrow":
		if s.recovery {
			set(&s.narrow)
		}
	case "delay":
		if s.recovery {
			s.wait, s.delay = 2*time.Second, 2*time.Second
			undo(f.d, func() { s.wait, s.delay = 0, 0 })
		}
	case "backlog":
		s.lazy = w.between(time.Second, 4*time.Second)
		undo(f.d, func() { s.lazy = 0 })
	case "copy":
		for _, o := range w.hosts {
			if o.s.primary() && o.s.up && o != h && h.s.data() {
				w.logf("a copy of node %d streams from node %d", h.id, o.id)
				o.s.twins = append(o.s.twins, twin{h.id, w.now, o.s.inc})
			}
		}
	case "broken":
		set(&s.broken)
	case "cascade":
		w.cascade(h, f.b)
	case "outside promotion":
		s.usurp()
	case "outside and back": // killed, and started as a standby, before anybody noticed
		s.usurp()
		w.after(nil, w.between(50*time.Millisecond, time.Second), s.regret)
	case "login changed":
		set(&s.rejects)
	case "full":
		set(&s.full)
	case "endless recovery":
		s.crash()
		set(&s.recovers)
		s.start()
	case "can not fence":
		h.unable = true
	case "manual":
		h.manual, h.m.p.Automatic = true, false
	case "unnamed":
		h.unnamed = true
	case "stalled volume": // of the data; the WAL is on another one
		h.stalled = true
		undo(f.d, func() { h.stalled = false })
	case "suspend":
		w.freeze(f.d, &s.proc, &h.m.proc)
		if w.bug == "monotonic lease" {
			h.lost += min(f.d, 10*time.Second)
		}
	default:
		return false
	}
	return true
}

// cascade points a standby to another standby, as an operator does.
func (w *world) cascade(h *host, to int32) {
	up := w.host(to)
	if !h.s.recovery || !h.s.up || h.s.conninfo == 0 || up == h || !up.s.data() || !up.s.recovery || up.s.conn == 0 || up.s.upstream == h.id {
		return
	}
	h.s.detach()
	h.s.conninfo = to
	h.s.attach()
}

// pause is a word on the pause, from one host to all that it reaches.
func (w *world) pause(from *host, paused bool) {
	w.pauses++
	for _, o := range w.hosts {
		if o == from || w.open(from, o) && w.open(o, from) && o.s.up && !o.s.hung(w.now) {
			o.paused, o.pauseSeq = paused, w.pauses
		}
	}
}

// mend ends what is wrong with a host.
func (w *world) mend(h *host) {
	s := h.s
	s.query, s.paused, s.target, s.narrow, s.wait, s.delay, s.lazy = false, false, false, false, 0, 0, 0
	if up := w.host(s.conninfo); up != nil && up.s.recovery && s.recovery && up.s.conninfo != s.h.id { // the operator takes the cascade back
		s.detach()
		s.conninfo = up.s.conninfo
	}
	s.broken, s.rejects, s.full, s.recovers, s.twins = false, false, false, false, nil
	h.stalled, h.unable, h.manual, h.m.p.Automatic = false, false, false, true
	h.paused, h.pauseSeq = false, w.pauses+1
	if s.rogue || s.back && s.primary() {
		w.judge.excuse(2 * time.Second) // now there is who can stop it
	}
}

// mustServe holds that a stage came to what it is about before all was healed.
func (w *world) mustServe() {
	if w.served == 0 {
		return
	}
	var last ack
	if n := len(w.judge.acks); n > 0 {
		last = w.judge.acks[n-1]
	}
	if w.now-last.at > time.Second || (w.served == another) != (last.srv != 1) {
		w.judge.break_("nobody serves: the last commit was acknowledged by node %d at %v", last.srv, last.at)
	}
}
