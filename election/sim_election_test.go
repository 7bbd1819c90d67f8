package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// election1 is one election of a coordinator: what it has found out so far.
type election1 struct {
	m        *monitor
	p        election.Policy
	w        *world
	reaffirm bool
	rule     election.Rule
	health   election.Health
	term     int64
	mine     ballotOf
	up       []int32 // who answered in the survey
	pledged  []election.Peer
	tally    election.Tally
	token    int64 // of the lock of the winner's ballot
	over     bool
	stopped  time.Time // when the last pledge was there
	hasRow   bool
	holders  []int32
	before   []election.Peer                // as they were before the pledges
	done     func(pledged bool, why string) // of a handover, which it is a part of; nil: it is on its own
}

// each runs call for every id, and then goes on when all are done.
func each(ids []int32, call func(id int32, done func()), then func()) {
	left := len(ids)
	if left == 0 {
		then()
		return
	}
	for _, id := range ids {
		over := false
		call(id, func() {
			if over {
				return
			}
			over = true
			if left--; left == 0 {
				then()
			}
		})
	}
}

func (c *election1) end(why string) {
	if c.over {
		return
	}
	c.over = true
	if c.token != 0 {
		c.m.hangUp(c.w.host(c.tally.Winner).s, c.token)
	}
	if c.done != nil {
		c.done(len(c.pledged) > 0, why)
		return
	}
	verb := election.Elect
	if c.reaffirm {
		verb = election.Reaffirm
	}
	c.m.did(verb, why)
}

// at marks a named step: faults may be planned there. The next step is an event
// of its own, so that a coordinator may be stopped or killed between the two.
func (c *election1) at(step string, next func()) {
	c.w.logf("election of %d in term %d: %s", c.m.h.id, c.term, step)
	planned := c.w.points[step]
	delete(c.w.points, step)
	for _, f := range planned {
		f(c)
	}
	c.w.after(&c.m.proc, 100*time.Microsecond, next)
}

func (m *monitor) elect(reaffirm bool) {
	if m.busy {
		return
	}
	m.busy = true
	p := m.p.ForHandover(m.st, m.now())
	if reaffirm {
		p.Prefer = 0
	}
	m.hold(p, reaffirm, nil)
}

// hold holds an election, on its own or as a part of a handover.
func (m *monitor) hold(p election.Policy, reaffirm bool, done func(pledged bool, why string)) {
	c := &election1{m: m, p: p, w: m.w, reaffirm: reaffirm, done: done}
	began := m.now()
	c.rule = m.newest()
	ids := c.rule.Voters
	each(ids, func(id int32, done func()) { m.look(id, done) }, func() { c.survey(began) })
}

func (c *election1) survey(began time.Time) {
	m := c.m
	c.rule = m.newest()
	views := m.peers(c.rule)
	for i, v := range views {
		if v.Answer == election.Answers && v.SeenAt.Before(began) {
			views[i].Answer = election.Silent
		}
		c.term = max(c.term, v.Term, v.Rule.Term, v.Announced.Term)
	}
	if c.reaffirm && c.w.bug != "an equal one replaces it" {
		c.p.Incumbent = m.h.id
	}
	if me := *m.view[m.h.id]; c.reaffirm && c.rule.Primary != me.ID && !me.Elected(c.rule) {
		c.p.Adopts = me.ID // nobody voted for it: there must be grounds for a failover
	}
	for _, v := range c.p.Electors(c.rule, views) {
		c.up = append(c.up, v.ID)
	}
	if c.term > max(m.st.BallotFor, c.rule.Term) && !c.reaffirm && c.done == nil {
		c.end(string(election.RefusedElection)) // begun since this one was decided on
		return
	}
	c.term++
	c.mine = ballotOf{c.term, m.candidate()}
	c.health = c.p.Diagnose(m.now(), c.rule, views)
	if why := c.p.Survey(m.now(), c.seen(c.rule, views), c.forget(views)); why != "" && (!c.reaffirm || c.p.Adopts != 0) {
		c.end(string(why))
		return
	}
	c.before = views
	c.at("surveyed", c.recruit)
}

// recruit asks all voters that answer, at once.
func (c *election1) recruit() {
	w, m := c.w, c.m
	each(c.up, func(id int32, done func()) {
		s, ok := w.host(id).s, false
		var view election.Peer
		w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
			s.pledge(&m.proc, c.mine, c.reaffirm && id == m.h.id, func(pledged bool) {
				ok = pledged
				view = s.look(id)
				ret()
			})
		}, func(ans election.Answer) {
			if ok && ans == election.Answers {
				view.Answer = ans
				view.SeenAt = m.now()
				c.pledged = append(c.pledged, view)
			}
			done()
		})
	}, func() {
		c.stopped = m.now()
		for i, v := range c.pledged {
			if c.reaffirm && v.ID == m.h.id && w.bug != "what it had before" { // it went on writing
				c.pledged[i].Position = m.h.s.look(m.h.id).Position
			}
		}
		c.at("recruited", c.count)
	})
}

// seen and forget are where faults of counting are planted.
func (c *election1) seen(r election.Rule, peers []election.Peer) election.Rule {
	switch c.w.bug {
	case "no quorum", "dead voters not counted":
		r.Voters = nil
		for _, p := range peers {
			if p.Answer == election.Answers {
				r.Voters = append(r.Voters, p.ID)
			}
		}
		if c.w.bug == "no quorum" && len(r.Voters) > 0 {
			r.Voters = r.Voters[:1]
		}
	case "coverage ignored":
		r.Quorum = false
	case "stray may win", "a segment names the timeline", "elected at its target":
		r.Line = wal.Lineage{}
	}
	return r
}

func (c *election1) forget(peers []election.Peer) []election.Peer {
	changed := slices.Clone(peers)
	for i, p := range changed {
		changed[i].Rule, changed[i].Announced = c.seen(p.Rule, peers), c.seen(p.Announced, peers)
		if c.w.bug == "reversed ranking" {
			changed[i].Position.LSN = 1<<40 - p.Position.LSN
		}
	}
	return changed
}

// tallied is the outcome of the pledges, with what is planted in it.
func (c *election1) tallied() election.Tally {
	t := c.p.Count(c.seen(c.rule, c.pledged), c.term, c.health, c.forget(c.pledged))
	if t.Refusal != "" {
		return t
	}
	switch c.w.bug {
	case "no quorum", "dead voters not counted":
		t.Rule.Voters = c.rule.Voters
	case "coverage ignored":
		if t.Wait = t.Wait && !c.rule.Quorum; c.rule.Quorum {
			t.Rule.Quorum = true
			for _, p := range c.pledged {
				if p.ID != t.Winner && c.w.host(p.ID).s.data() {
					t.Rule.Sync = append(t.Rule.Sync, p.ID)
				}
			}
			slices.Sort(t.Rule.Sync)
			t.Rule.Acks = (len(t.Rule.Sync) + 1) / 2
		}
	}
	return t
}

func (c *election1) count() {
	m := c.m
	if c.reaffirm && !slices.Contains(c.who(), m.h.id) && c.w.bug != "silent and so behind" {
		c.end(string(election.RefusedPledges))
		return
	}
	if c.tally = c.tallied(); c.tally.Refusal != "" {
		c.end(string(c.tally.Refusal))
		return
	}
	if c.reaffirm && c.tally.Winner != m.h.id {
		if i := slices.IndexFunc(c.pledged, func(p election.Peer) bool { return p.ID == m.h.id }); i < 0 || c.p.Fit(c.rule, c.pledged[i]) == "" {
			m.w.judge.displaced(m.h.s, c.pledged)
		}
		c.end("another has more")
		m.fence("another has more")
		return
	}
	c.w.logf("election of %d in term %d: %s %+v of %v", m.h.id, c.term, c.health, c.tally, c.who())
	c.at("counted", func() {
		c.drain(func() {
			if c.tally.Wait && !c.reaffirm && c.w.bug != "no wait" {
				c.w.sleep(m.h, &m.proc, m.p.Fence+election.Margin, c.verify)
				return
			}
			c.verify()
		})
	})
}

func (c *election1) who() (all []int32) {
	for _, p := range c.pledged {
		all = append(all, p.ID)
	}
	slices.Sort(all)
	return all
}

// verify looks whether the former primary answers again, and asks whether a
// majority still holds the ballot.
func (c *election1) verify() {
	if c.reaffirm || c.rule.Quorum && !c.tally.Wait || c.w.bug == "no wait" || c.w.bug == "lease from the end of the round" {
		c.still()
		return
	}
	looked := false
	then := func() {
		if looked {
			return
		}
		looked = true
		if v := c.m.view[c.rule.Primary]; v.Answer == election.Answers && v.Running == election.Primary && v.SeenAt.After(c.stopped) {
			c.end(string(election.RefusedHealth))
			return
		}
		c.still()
	}
	c.m.look(c.rule.Primary, then)
	c.w.sleep(c.m.h, &c.m.proc, c.m.p.Silence/4, then)
}

func (c *election1) still() {
	w, m := c.w, c.m
	var still []int32
	each(c.who(), func(id int32, done func()) {
		s, ok := w.host(id).s, false
		w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
			ok = s.ballot == c.mine && !s.h.paused
			ret()
		}, func(ans election.Answer) {
			if ok && ans == election.Answers {
				still = append(still, id)
			}
			done()
		})
	}, func() {
		if !c.seen(c.rule, c.pledged).Majority(still) && w.bug != "ballot not checked" {
			c.end(string(election.RefusedPledges))
			return
		}
		c.at("verified", c.tell)
	})
}

// tell gives the rule to the voters that do not stream, before there is a primary.
func (c *election1) tell() {
	if c.w.bug == "witness told late" {
		c.promote()
		return
	}
	c.tellAll(c.promote)
}

func (c *election1) tellAll(then func()) {
	var ids []int32
	for _, p := range c.pledged {
		if !c.w.host(p.ID).s.data() {
			ids = append(ids, p.ID)
		}
	}
	all := true
	each(ids, func(id int32, done func()) {
		c.m.tell(c.w.host(id).s, c.tally.Rule, func(ok bool) { all = all && ok; done() })
	}, func() {
		if !all {
			c.end("a witness could not be told")
			return
		}
		c.at("told", then)
	})
}

// locked is one statement in the session that holds the lock of the winner's
// ballot. It fails when the session has ended.
func (c *election1) locked(f func(s *server, ret func()), then func()) {
	s, ok := c.w.host(c.tally.Winner).s, false
	c.w.rpc(&c.m.proc, c.m.h, s, 3*patient, func(ret func()) {
		if s.locked != c.token && c.w.bug != "ballot not checked" {
			ret()
			return
		}
		f(s, func() { ok = true; ret() })
	}, func(ans election.Answer) {
		if !ok || ans != election.Answers {
			c.end("lost the session with the winner")
			return
		}
		then()
	})
}

func (c *election1) promote() {
	w, m, s, ok := c.w, c.m, c.w.host(c.tally.Winner).s, false
	w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
		s.lock(&m.proc, func(token int64) {
			ok = s.ballot == c.mine || w.bug == "ballot not checked"
			c.token = token
			if c.over {
				c.m.hangUp(s, token)
			}
			ret()
		})
	}, func(ans election.Answer) {
		if !ok || ans != election.Answers {
			c.end("the winner is pledged elsewhere")
			return
		}
		c.at("locked", c.prepare)
	})
}

// prepare puts synchronous_standby_names in force, and then ends recovery.
func (c *election1) prepare() {
	set := c.tally.Rule.PromotionSetting()
	if c.w.bug == "open at once" || c.w.bug == "set after promote" {
		set = c.tally.Rule.SyncSetting()
	}
	settle := func(then func()) {
		c.locked(func(s *server, ret func()) { s.set(set, ret) }, func() { c.at("set", then) })
	}
	open := func(then func()) {
		if c.reaffirm {
			c.w.host(c.tally.Winner).s.chosen = c.term
			c.w.judge.reaffirmed(c.w.host(c.tally.Winner).s, c.term)
			c.point()
			then()
			return
		}
		c.point()
		c.locked(func(s *server, ret func()) { s.told = c.tally.Rule; s.promote(c.term, ret) }, func() { c.at("promoted", then) })
	}
	if c.w.bug == "set after promote" {
		open(func() {
			c.write()
			c.w.sleep(c.m.h, &c.m.proc, 300*time.Millisecond, func() { c.ask(func(s *server, ret func()) { s.set(set, ret) }, func() {}) })
		})
		return
	}
	settle(func() { open(c.write) })
}

// ask does something on the winner, over a session without the lock.
func (c *election1) ask(f func(s *server, ret func()), then func()) {
	c.w.rpc(&c.m.proc, c.m.h, c.w.host(c.tally.Winner).s, 6*patient, func(ret func()) {
		f(c.w.host(c.tally.Winner).s, ret)
	}, func(ans election.Answer) {
		if ans != election.Answers {
			c.end("lost the session with the winner")
			return
		}
		then()
	})
}

// point points the others to the winner, which is still to be promoted.
func (c *election1) point() {
	for _, p := range c.pledged {
		if p.ID != c.tally.Winner && c.w.host(p.ID).s.data() {
			c.m.point(c.w.host(p.ID).s, c.upstream(p.ID), c.term, func(bool) {})
		}
	}
}

// write makes the rule row the primary's first commit.
func (c *election1) write() {
	w, m := c.w, c.m
	w.host(c.tally.Winner).s.unlock(c.token)
	c.token = 0
	for _, p := range c.pledged {
		if p.ID != c.tally.Winner && w.host(p.ID).s.data() {
			c.follows(p.ID, 0)
		}
	}
	waits := false
	c.ask(func(s *server, ret func()) {
		if !c.tally.Rule.Quorum || w.bug == "believes the setting" || w.bug == "set after promote" || w.bug == "open at once" {
			waits = true
			ret()
			return
		}
		s.probe(2*m.p.Silence, func(ok bool) { waits = ok; ret() })
	}, func() {
		if !waits {
			c.end("no commit was seen to wait")
			return
		}
		c.row()
	})
}

func (c *election1) row() {
	written := false
	c.ask(func(s *server, ret func()) {
		c.w.seq++
		if c.tally.Rule.Line = s.line(); s.rule().Compare(c.tally.Rule) >= 0 {
			ret()
			return
		}
		rule := c.tally.Rule
		written = true
		s.commit(rec{id: -int64(c.w.seq), rule: &rule}, nil)
		c.w.after(&s.proc, 5*time.Millisecond+s.slow, ret)
	}, func() {
		if !written {
			c.end("it has a rule as new")
			return
		}
		c.hasRow = true
		c.at("written", func() { c.open(0) })
	})
}

// upstream is from whom a standby is to receive: from the winner, until the term is open.
func (c *election1) upstream(id int32) int32 {
	for _, p := range c.before {
		if up := c.w.host(p.Receives); c.w.bug == "cascade left in place" && p.ID == id && up != nil && up.s.recovery && p.Receives != c.tally.Winner {
			return p.Receives
		}
	}
	return c.tally.Winner
}

// follows waits until a standby that was re-pointed knows of the rule, and tells
// it to one that is slow to show it.
func (c *election1) follows(id int32, tries int) {
	s := c.w.host(id).s
	shows := false
	c.w.rpc(&c.m.proc, c.m.h, s, patient, func(ret func()) {
		shows = s.rule().Term >= c.term && (s.ballot.term <= c.term || c.w.bug == "held by a later pledge")
		ret()
	}, func(ans election.Answer) {
		switch {
		case c.over || tries > 40:
		case shows && ans == election.Answers:
			c.holders = append(c.holders, id)
		case c.hasRow && tries > 4 && ans == election.Answers:
			c.m.inform(s, c.tally.Rule, func(ok bool) {
				if ok {
					c.holders = append(c.holders, id)
				}
			})
		default:
			c.w.sleep(c.m.h, &c.m.proc, 25*time.Millisecond, func() { c.follows(id, tries+1) })
		}
	})
}

// open lets the primary's commits be acknowledged, when the rule is held.
func (c *election1) open(tries int) {
	rule := c.tally.Rule
	if c.rule.Quorum != rule.Quorum || !rule.Quorum {
		c.end("")
		return
	}
	holders := []int32{c.tally.Winner}
	for _, p := range c.pledged {
		if !c.w.host(p.ID).s.data() {
			holders = append(holders, p.ID)
		}
	}
	if c.w.bug == "cascade left in place" {
		holders = append(holders, c.w.host(c.tally.Winner).s.standbys()...)
	} else {
		holders = append(holders, c.holders...)
	}
	switch {
	case election.Held(rule, c.rule, holders):
		c.at("held", func() {
			c.ask(func(s *server, ret func()) { s.set(rule.SyncSetting(), ret) }, func() {
				c.at("opened", func() { c.end("") })
			})
		})
	case tries > 200:
		c.end("the rule is not held")
	default:
		c.w.sleep(c.m.h, &c.m.proc, 25*time.Millisecond, func() { c.open(tries + 1) })
	}
}
