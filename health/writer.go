package health

import (
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// Writer is the node that clients are to write to, as this Monitor knows it; 0: it does not know. Of its own node
// that is what [View.Primary] says. Of another one it is that it was elected, runs as a primary, has answered
// within silence_timeout, and that of a majority of the voters, which have answered, too, nobody knows of a later election. Where
// an operator decides who is the primary, it is the one that this standby has seen lately.
func (v View) Writer() registry.NodeID {
	if v.NodeID != 0 && v.Primary().OK {
		return v.NodeID
	}
	if !v.Decides() {
		r, _ := registry.ByID(v.Records, v.Upstream.ID)
		if v.Upstream.ID != v.NodeID && r.Role == registry.RolePrimary && v.Lately(v.Upstream.SeenAt) {
			return r.ID
		}
		return 0
	}
	var fresh []int32
	var writer registry.NodeID
	for _, p := range v.Peers {
		if p.Answer != election.Answers || v.At.Sub(p.SeenAt) > v.Silence {
			continue
		}
		fresh = append(fresh, p.ID)
		if p.ID != int32(v.NodeID) && p.Running == election.Primary && p.Role != election.Witness &&
			(p.Rule.Primary == p.ID || p.Elected(p.Rule)) && !p.Deposed(v.Peers).Known() {
			writer = registry.NodeID(p.ID)
		}
	}
	if !v.Rule.Majority(fresh) {
		return 0
	}
	return writer
}

// Gone reports whether the local node is certainly not the primary now: its server is down, or runs as a
// standby, another node was elected, or the lease is over. What is merely not known is not gone.
func (v View) Gone() bool {
	p := v.self()
	switch {
	case v.NodeID == 0, v.Yields, !v.Alive().OK:
		return false
	case p.Answer == election.Refused, p.Answer == election.NotAccepting:
		return true
	case p.Answer != election.Answers:
		return v.leaseOver()
	case v.Runs() == election.Standby:
		return true
	}
	return v.leaseOver() || v.Decides() && p.Deposed(v.Peers).Known()
}

func (v View) leaseOver() bool {
	return v.Automatic && v.Lease.Known && v.Lease.Needed && v.Lease.Left <= 0
}
