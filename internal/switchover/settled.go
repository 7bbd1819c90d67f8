package switchover

import (
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
)

// UnderWay reports whether the primary of the rule may still begin a handover, or has begun one and not ended
// it. A notice that another node has beside that is an old one.
func UnderWay(peers []election.Peer, r election.Rule, now time.Time) bool {
	h := voters.PeerOf(peers, r.Primary).Handover
	return h.Pending(now, r) || h.LeftBehind(r)
}

// InOffice reports whether the primary of the rule answers, runs as a primary, and holds the rule.
func InOffice(peers []election.Peer, r election.Rule) bool {
	p := voters.PeerOf(peers, r.Primary)
	return r.Known() && p.Answer == election.Answers && p.Running == election.Primary && p.Rule.Compare(r) == 0
}

// Settled reports whether this node is where the newest rule puts it, as far as it sees: no handover is
// under way, and it is the primary of the rule, which is in office, or streams. Before there is a rule
// nothing was begun.
func Settled(self int32, peers []election.Peer, now time.Time) bool {
	r, me := voters.NewestRule(peers), voters.PeerOf(peers, self)
	return me.Answer == election.Answers && (!r.Known() || !UnderWay(peers, r, now) && InOffice(peers, r) && (r.Primary == self || me.Receiving))
}
