package election

import "time"

// Restart is the request of an operator to restart the server of a standby or a witness, which the
// node's own monitor carries out. A primary is restarted by a [Handover] that says so. The zero
// value means that there is none.
type Restart struct {
	ID    string        `json:"id"`              // of the request
	Term  int64         `json:"term"`            // of the rule under which it was asked for; in any other term it is void
	Asked time.Time     `json:"asked"`           // by the clock of the server: it is done when the server was started later
	Until time.Time     `json:"until"`           // the latest time to begin
	Limit time.Duration `json:"limit_ns"`        // how long the shutdown may take before it is ended by force
	Begun bool          `json:"begun,omitempty"` // the monitor has told the server to end
}

// Due reports whether the server, which was started at that time, is to be restarted now.
func (r Restart) Due(now, started time.Time, rule Rule) bool {
	return r.Pending(now, started) && !r.Begun && r.Term == rule.Term && now.Before(r.Until) && r.Limit > 0
}

// Pending reports whether the request may still be carried out, or is being carried out.
func (r Restart) Pending(now, started time.Time) bool {
	return r.ID != "" && started.Before(r.Asked) && now.Before(r.Until.Add(2*r.Limit)) // the checkpoint and the shutdown
}

// Restarting reports whether the server of the node was asked to restart under the rule, and has not done so yet.
func (p Peer) Restarting(now time.Time, r Rule) bool {
	return p.Restart.Term == r.Term && p.Restart.Pending(now, p.Started)
}

// restarts adds to a decision that the local server is to be restarted, while the primary lives
// and no other node is asked to. A request is begun once.
func (p Policy) restarts(d Decision, o Observation) Decision {
	me := find(o.Peers, o.Self)
	standby := d.Next.Phase == AsStandby && o.Local.InRecovery && o.Rule.Primary != o.Self
	if !p.Automatic || o.Busy || !standby && d.Next.Phase != AsWitness || d.Next.Health != HealthAlive || Paused(o.Peers) || d.Next.HandsOver() ||
		me.Answer != Answers || !me.Restart.Due(o.Now, me.Started, o.Rule) || me.Restart.ID == d.Next.RestartBegun {
		return d
	}
	var rest []int32 // without this node the primary needs a majority
	for _, peer := range o.Peers {
		if peer.ID != o.Self && (peer.Restarting(o.Now, o.Rule) || peer.Handover.Pending(o.Now, o.Rule)) {
			return d
		}
		if peer.ID != o.Self && peer.Answer == Answers {
			rest = append(rest, peer.ID)
		}
	}
	if !o.Rule.HeldBy(rest) {
		return d
	}
	for _, a := range d.Actions {
		switch a.Verb {
		case HandOver, Reaffirm, Elect, Follow, Rejoin, Fence:
			return d
		}
	}
	d.Next.RestartBegun = me.Restart.ID
	d.Actions = append(d.Actions, Action{Verb: RestartServer})
	return d
}
