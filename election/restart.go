package election

import "time"

// Restart is the request of an operator to restart the server of a node. The node's own monitor
// carries it out. The zero value means that there is none.
type Restart struct {
	ID    string        `json:"id"`       // of the request
	Asked time.Time     `json:"asked"`    // by the clock of the server: it is done when the server was started later
	Until time.Time     `json:"until"`    // the latest time to begin
	Limit time.Duration `json:"limit_ns"` // how long the shutdown may take before it is ended by force
}

// Due reports whether the server, which was started at that time, is to be restarted now.
func (r Restart) Due(now, started time.Time) bool {
	return r.ID != "" && started.Before(r.Asked) && now.Before(r.Until)
}

// Over reports whether the request was carried out, or is too old for that.
func (r Restart) Over(now, started time.Time) bool {
	return r.ID != "" && (started.After(r.Asked) || !now.Before(r.Until))
}

// restarts adds to a decision that the local server is to be restarted, while all is well with
// the primary. A request is begun once.
func (p Policy) restarts(d Decision, o Observation) Decision {
	me := find(o.Peers, o.Self)
	settled := d.Next.Phase == AsPrimary || d.Next.Phase == AsStandby || d.Next.Phase == AsWitness
	if !p.Automatic || o.Busy || !settled || d.Next.Health.Lost() || Paused(o.Peers) || d.Next.HandsOver() ||
		me.Answer != Answers || !me.Restart.Due(o.Now, me.Started) || me.Restart.ID == d.Next.RestartBegun {
		return d
	}
	d.Next.RestartBegun = me.Restart.ID
	d.Actions = append(d.Actions, Action{Verb: RestartServer})
	return d
}
