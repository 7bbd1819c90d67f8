package election_test

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// election1 is one election of a coordinator: what it has found out so far.
type election1 struct {
	m        *monitor
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
	c := &election1{m: m, w: m.w, reaffirm: reaffirm}
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
		c.term = max(c.term, v.Term, v.Rule.Term)
		if views[i].Answer == election.Answers {
			c.up = append(c.up, v.ID)
		}
	}
	if c.term > max(m.st.BallotFor, c.rule.Term) && !c.reaffirm {
		c.end(string(election.RefusedElection)) // begun since this one was decided on
		return
	}
	c.term++
	c.mine = ballotOf{c.term, m.candidate()}
	c.health = m.p.Diagnose(m.now(), c.rule, views)
	if why := m.p.Survey(m.now(), c.seen(c.rule, views), c.forget(views)); why != "" && !c.reaffirm {
		c.end(string(why))
		return
	}
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
	}, func() { c.at("recruited", c.count) })
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
	}
	return r
}

func (c *election1) forget(peers []election.Peer) []election.Peer {
	changed := slices.Clone(peers)
	for i, p := range changed {
		changed[i].Rule = c.seen(p.Rule, peers)
		if c.w.bug == "reversed ranking" {
			changed[i].Position.LSN = 1<<40 - p.Position.LSN
		}
	}
	return changed
}

func (c *election1) count() {
	m := c.m
	c.tally = m.p.Count(c.seen(c.rule, c.pledged), c.term, c.health, c.forget(c.pledged))
	if c.tally.Refusal != "" {
		c.end(string(c.tally.Refusal))
		return
	}
	switch c.w.bug {
	case "no quorum", "dead voters not counted":
		c.tally.Rule.Voters = c.rule.Voters
	case "coverage ignored":
		if c.tally.Wait = c.tally.Wait && !c.rule.Quorum; c.rule.Quorum {
			c.tally.Rule.Quorum = true
			for _, p := range c.pledged {
				if p.ID != c.tally.Winner && c.w.host(p.ID).s.data() {
					c.tally.Rule.Sync = append(c.tally.Rule.Sync, p.ID)
				}
			}
			slices.Sort(c.tally.Rule.Sync)
			c.tally.Rule.Acks = (len(c.tally.Rule.Sync) + 1) / 2
		}
	}
	if c.reaffirm && c.tally.Winner != m.h.id {
		c.end("another has more")
		m.fence("another has more")
		return
	}
	c.w.logf("election of %d in term %d: %s %+v of %v", m.h.id, c.term, c.health, c.tally, c.who())
	c.at("counted", func() {
		if c.tally.Wait && !c.reaffirm && c.w.bug != "no wait" {
			c.w.sleep(m.h, &m.proc, m.p.Fence+election.Margin, c.verify)
			return
		}
		c.verify()
	})
}

func (c *election1) who() (all []int32) {
	for _, p := range c.pledged {
		all = append(all, p.ID)
	}
	slices.Sort(all)
	return all
}

// verify asks whether a majority still holds the ballot.
func (c *election1) verify() {
	w, m := c.w, c.m
	var still []int32
	each(c.who(), func(id int32, done func()) {
		s, ok := w.host(id).s, false
		w.rpc(&m.proc, m.h, s, patient, func(ret func()) {
			ok = s.ballot == c.mine && !w.paused
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
	set := c.tally.Rule.Opening()
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
			then()
			return
		}
		c.locked(func(s *server, ret func()) { s.told = c.tally.Rule; s.promote(c.term, ret) }, func() { c.at("promoted", then) })
	}
	if c.w.bug == "set after promote" {
		open(func() { c.write(); c.w.sleep(c.m.h, &c.m.proc, 300*time.Millisecond, func() { settle(func() {}) }) })
		return
	}
	settle(func() { open(c.write) })
}

// write re-points the others, and makes the rule row the primary's first commit.
func (c *election1) write() {
	w, m := c.w, c.m
	for _, p := range c.pledged {
		if p.ID != c.tally.Winner && w.host(p.ID).s.data() {
			m.point(w.host(p.ID).s, c.tally.Winner, c.term, func(bool) {})
		}
	}
	c.locked(func(s *server, ret func()) {
		w.seq++
		c.tally.Rule.Line = s.line()
		rule := c.tally.Rule
		s.commit(rec{id: -int64(w.seq), rule: &rule}, nil)
		w.after(&s.proc, 5*time.Millisecond+s.slow, ret)
	}, func() {
		c.at("written", func() {
			c.open(0)
		})
	})
}

// open lets the primary's commits be acknowledged, when the rule is held.
func (c *election1) open(tries int) {
	held, rule, set := false, c.tally.Rule, c.tally.Rule.SyncSetting()
	if c.rule.Quorum != rule.Quorum || !rule.Quorum {
		c.end("")
		return
	}
	c.locked(func(s *server, ret func()) {
		newest, before := standing(s)
		if newest.Compare(rule) > 0 {
			held = true // the winner's monitor goes on
			ret()
			return
		}
		holders := []int32{s.h.id}
		for _, p := range c.pledged {
			if !c.w.host(p.ID).s.data() {
				holders = append(holders, p.ID)
			}
		}
		for _, id := range s.standbys() {
			if s.senders[id].flush >= s.rules[len(s.rules)-1].lsn {
				holders = append(holders, id)
			}
		}
		if held = election.Held(newest, before, holders); held && newest.Compare(rule) == 0 {
			s.set(set, ret)
			return
		}
		ret()
	}, func() {
		switch {
		case held:
			c.at("opened", func() { c.end("") })
		case tries > 20:
			c.end("the rule is not held")
		default:
			c.w.sleep(c.m.h, &c.m.proc, 10*time.Millisecond, func() { c.open(tries + 1) })
		}
	})
}
