package election

import (
	"slices"
	"time"
)

// Screening says why a server that was a primary may, or may not, be started as a primary.
type Screening string

const (
	ScreenedClear   Screening = "no other node can have been elected"
	ScreenedManual  Screening = "no other node is seen to run as the primary, and with failover=manual none is elected"
	ScreenedRunning Screening = "another node runs as the primary"
	ScreenedDeposed Screening = "another node was elected"
	ScreenedPledged Screening = "voters have pledged themselves in an election"
	ScreenedAlone   Screening = "the voters that do not answer could have elected another primary"
)

// Screen decides whether a server that is down and was a primary may be started as a primary
// again. It may only if no voter that answers knows of a later primary, and the voters that
// do not answer are too few to have elected one.
//
// own has what is known without the server, such as its ballot. known are the rules that it
// last held; that includes the one before the newest where an election might not have found
// the newest. voters are all registered voters, for a cluster without any rule.
func (p Policy) Screen(now time.Time, own Peer, known []Rule, voters []int32, peers []Peer) Screening {
	peers = slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.ID == own.ID || o.SeenAt.IsZero() })
	rules := slices.Clone(known)
	for _, o := range peers {
		if o.Rule.Known() {
			rules = append(rules, o.Rule)
		}
	}
	if len(rules) == 0 {
		rules = []Rule{{Primary: own.ID, Voters: voters}}
	}
	newest := Rule{Primary: own.ID}
	if own.WonElection { // it won an election, and ended before it wrote the rule
		newest.Term = own.Term
	}
	for _, r := range rules {
		if r.Compare(newest) > 0 {
			newest = r
		}
	}
	switch {
	case slices.ContainsFunc(peers, func(o Peer) bool {
		return o.data() && o.Running == Primary && (newest.Primary != own.ID || o.Rule.Term >= newest.Term)
	}):
		return ScreenedRunning
	case !p.Automatic:
		return ScreenedManual
	case newest.Primary != own.ID:
		return ScreenedDeposed
	case own.Term > newest.Term:
		return ScreenedPledged
	}
	for _, r := range rules { // an election may have started from any of them
		r.Primary, r.Term = own.ID, newest.Term
		switch start := LeaseStart(now, r, own.ID, peers); {
		case !start.IsZero() && now.Sub(start) <= p.Silence:
		case slices.ContainsFunc(peers, func(o Peer) bool { return o.Term > newest.Term }):
			return ScreenedPledged
		default:
			return ScreenedAlone
		}
	}
	return ScreenedClear
}
