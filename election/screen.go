package election

import (
	"slices"
	"time"
)

// Screening is why a server that was a primary may be started as one, or may not.
type Screening string

const (
	ScreenedClear   Screening = "no other node can have become the primary"
	ScreenedDeposed Screening = "another node is the primary"
	ScreenedPledged Screening = "voters have pledged themselves in an election"
	ScreenedAlone   Screening = "the voters that do not answer could have elected another primary"
)

// Screen decides as what a server is to be started that is down and was a
// primary: again as one only where nobody that answers knows a later one, and
// those that do not could have elected none. own is what is known without the
// server, its ballot; voters are all registered ones, for where nobody has a rule.
func Screen(now time.Time, own Peer, voters []int32, peers []Peer) Screening {
	peers = slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return p.ID == own.ID || p.SeenAt.IsZero() })
	newest := Rule{Primary: own.ID, Voters: voters}
	if own.Chosen { // and died before it could say so
		newest.Term = own.Term
	}
	var rules []Rule
	for _, p := range peers {
		if p.data() && p.Running == Primary {
			return ScreenedDeposed
		}
		if p.Rule.Known() {
			rules = append(rules, p.Rule)
		}
		if p.Rule.Compare(newest) > 0 {
			newest = p.Rule
		}
	}
	switch {
	case newest.Primary != own.ID:
		return ScreenedDeposed
	case own.Term > newest.Term && len(rules) == 0:
		return ScreenedAlone
	case own.Term > newest.Term:
		return ScreenedPledged
	case len(rules) == 0:
		rules = []Rule{newest}
	}
	for _, r := range rules { // an election may have known an older one only
		r.Primary, r.Term = own.ID, newest.Term
		switch {
		case !LeaseStart(now, r, own.ID, peers).IsZero():
		case slices.ContainsFunc(peers, func(p Peer) bool { return p.Term > newest.Term }):
			return ScreenedPledged
		default:
			return ScreenedAlone
		}
	}
	return ScreenedClear
}
