package election

import (
	"slices"
	"time"
)

// Handover is a planned change of the primary. On the primary it is the request of an operator:
// the primary's own monitor stops its server in order, and holds an election. On the other nodes
// it is the notice that such a handover has begun: for the time in Hold their monitors leave the
// election to the one that carries it out. The zero value means that there is none.
type Handover struct {
	ID      string        `json:"id"`                // of the request
	Term    int64         `json:"term"`              // of the rule under which it was asked for; in any other term it is void
	Target  int32         `json:"target,omitempty"`  // the node that is to be the primary
	Start   time.Time     `json:"start,omitzero"`    // of a request: the earliest time to begin, by the clock of the primary's server
	Until   time.Time     `json:"until,omitzero"`    // of a request: the latest time to begin; of a notice: the latest time for the server to have ended
	Limit   time.Duration `json:"limit_ns"`          // how long the shutdown of the primary may take
	Begun   bool          `json:"begun,omitempty"`   // of a request: the monitor of the primary carries it out
	Restart bool          `json:"restart,omitempty"` // the server is started again as the primary: it is restarted in its place. Only where that does not work, the target is elected.
	Force   bool          `json:"force,omitempty"`   // of a request: begin although a check fails that an operator may override
	Hold    time.Duration `json:"hold_ns,omitempty"` // of a notice: how long others leave the election to the monitor that carries it out; 0: it is a request
}

// handoverAgain is the time after a handover that failed in which the same request is not begun
// again, in case it could not be removed.
const handoverAgain = 10 * time.Second

// Due reports whether the monitor of the primary is to begin the handover.
func (h Handover) Due(now time.Time, r Rule) bool {
	return h.ID != "" && h.Hold == 0 && !h.Begun && h.Term == r.Term && !now.Before(h.Start) && now.Before(h.Until)
}

// Pending reports whether the handover may still be begun, or is under way.
func (h Handover) Pending(now time.Time, r Rule) bool {
	return h.ID != "" && h.Term == r.Term && (h.Begun || now.Before(h.Until))
}

// Requested reports whether this is a switchover that an operator has asked for, which has not begun and may still begin.
func (h Handover) Requested(now time.Time, r Rule) bool {
	return h.Pending(now, r) && h.Hold == 0 && !h.Begun && !h.Restart
}

// LeftBehind reports whether the handover was begun in the term of the rule, and not ended: the
// monitor of the primary that carried it out ended first, while its server went on.
func (h Handover) LeftBehind(r Rule) bool {
	return h.ID != "" && (h.Hold > 0 || h.Begun) && h.Term == r.Term
}

// Noticed is the newest handover that the primary of the rule has begun, as the other nodes were told.
func Noticed(r Rule, peers []Peer) (h Handover, ok bool) {
	for _, o := range peers {
		if o.ID != r.Primary && o.Answer == Answers && o.Handover.Hold > 0 && o.Handover.Term == r.Term && (!ok || o.Handover.Until.After(h.Until)) {
			h, ok = o.Handover, true
		}
	}
	return h, ok
}

// mustHandOver reports whether the local primary begins a handover now, or ends one that another
// monitor has left behind.
func (p Policy) mustHandOver(s State, o Observation) bool {
	me := find(o.Peers, o.Self)
	return p.Automatic && !o.Busy && me.Answer == Answers && me.Running == Primary && o.Rule.Primary == o.Self &&
		(me.Handover.Due(o.Now, o.Rule) || me.Handover.LeftBehind(o.Rule)) && !Paused(o.Peers) &&
		(me.Handover.ID != s.HandoverBegun || !p.waits(o, HandOver, handoverAgain))
}

// noteHandover remembers since when a handover is known that the primary has begun: its time goes on from then, also
// where its notice is not seen for a while and comes back with a node that could not be told that it is over. It is over
// when the primary runs and does not have it any more, because its notice may stay on a node that
// could not be reached then; and when the primary runs although the time of the handover has passed,
// because its monitor died.
func (p Policy) noteHandover(s State, o Observation) State {
	h, ok := Noticed(o.Rule, o.Peers)
	if ok && h.ID != s.Handover.ID {
		s.Handover, s.HandoverAt, s.HandoverOver = h, o.Now, false
	}
	s.HandoverGone = !ok
	primary := find(o.Peers, o.Rule.Primary)
	if seen := primary.SeenAt.Sub(s.HandoverAt); primary.Answer == Answers && primary.Running == Primary && (seen > s.Handover.Hold || seen > p.Silence && primary.Handover.ID != s.Handover.ID) {
		s.HandoverOver = true
	}
	return s
}

// HandsOver reports whether the primary was shut down for a handover, if it was shut down in
// order. Such a shutdown is followed by an election.
func (s State) HandsOver() bool { return s.Handover.ID != "" && !s.HandoverOver && !s.HandoverGone }

// Handing is the policy of the election with which the primary hands over to the target, once its server was shut down in order.
func (p Policy) Handing(target int32) Policy {
	p.OnShutdown, p.Prefer, p.TooMany = true, target, false
	return p
}

// HandoverRefused says why that election would have no winner: with the pledge of the former primary, which
// is started as a standby for it where that is needed, or without.
func (p Policy) HandoverRefused(now time.Time, r Rule, peers []Peer, target int32, pledges bool) Refusal {
	p = p.Handing(target)
	p.MaxLag = 0 // the target receives everything before
	after := slices.Clone(peers)
	for i := range after {
		after[i].Streams = false // one that still seems open was seen before the shutdown, and proves no life
		switch former := after[i].ID == r.Primary; {
		case former && pledges:
			after[i].Answer, after[i].Running = Answers, Standby
		case former:
			after[i].Answer, after[i].Ended = Refused, true
		}
	}
	return p.Survey(now, r, after)
}

// ForHandover is the policy of an election that goes on with a handover which the monitor of the
// primary did not complete. When its time is over, a server that still shuts down is not waited for.
func (p Policy) ForHandover(s State, now time.Time) Policy {
	if !s.HandsOver() {
		return p
	}
	p = p.Handing(s.Handover.Target)
	if now.Sub(s.HandoverAt) >= s.Handover.Hold {
		p.Start = time.Nanosecond
	}
	return p
}

// handoverRest is how many times silence_timeout a handover may take once the server has ended, or
// its machine is silent.
const handoverRest = 3

// heldBack is how much longer this monitor leaves the election to the one that carries out a
// handover: for the time in the notice, by its own clock from when it first saw that, while the
// server of the primary says that it shuts down, or recovers because the handover was given up; and
// only for a short time where it says anything else, or nothing.
func (p Policy) heldBack(s State, o Observation) time.Duration {
	left := s.Handover.Hold - o.Now.Sub(s.HandoverAt)
	primary := find(o.Peers, o.Rule.Primary)
	if !s.HandsOver() || primary.Answer == Answers && primary.Handover.ID != s.Handover.ID { // it was given up
		return 0
	}
	if primary.Answer != NotAccepting {
		left = min(left, handoverRest*p.Silence-o.Now.Sub(primary.Since))
	}
	return left
}

// Best is the node that would be put first among these, of those that may be promoted. 0: none may.
func (p Policy) Best(r Rule, peers []Peer) int32 {
	if fit := p.ranking(r, peers).fit; len(fit) > 0 {
		return fit[0].ID
	}
	return 0
}
