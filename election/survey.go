package election

import (
	"slices"
	"time"
)

// Refusal names why there is no failover although the primary is lost. Empty: nothing prevents it.
type Refusal string

const (
	RefusedHealth     Refusal = "the primary is not lost"
	RefusedPaused     Refusal = "failover is paused"
	RefusedNoMajority Refusal = "no majority of the voters answers"
	RefusedNoPledge   Refusal = "no majority of the voters could pledge itself"
	RefusedSync       Refusal = "the nodes that answer may lack acknowledged commits"
	RefusedNoneFit    Refusal = "no node that answers may be promoted"
	RefusedUnfenced   Refusal = "nobody is sure to stop the primary, which may still accept writes"
	RefusedLocation   Refusal = "no node of the primary's location answers"
	RefusedTooMany    Refusal = "too many failovers in the last hour"
	RefusedVisible    Refusal = "a node still sees the primary" // primary_visibility_consensus
	RefusedValidation Refusal = "failover_validation_command said no"
	RefusedElection   Refusal = "another election is going on"
	RefusedPledges    Refusal = "not enough voters pledged themselves"
	RefusedUsurper    Refusal = "another node was promoted by nobody's vote, and no daemon there can stop it"
	RefusedLag        Refusal = "the best node that may be promoted may lack more of the primary's WAL than maximum_lag_on_failover"
	RefusedForeign    Refusal = "a repmgrd of repmgr 5 runs beside ours, and may promote another node"
	RefusedBehind     Refusal = "no node that may be promoted has all acknowledged commits"
)

// NeedsVoter reports whether one more voter that pledges itself, the former primary say, could make the election possible.
func (r Refusal) NeedsVoter() bool {
	return r == RefusedNoMajority || r == RefusedNoPledge || r == RefusedSync || r == RefusedLocation
}

// Survey says whether an election may begin, before any voter is asked for a pledge. An
// election without a winner would detach standbys for nothing.
func (p Policy) Survey(now time.Time, r Rule, peers []Peer) Refusal {
	primary, asked := find(peers, r.Primary), p.Electors(r, peers)
	fit := p.ranking(r, AbleToPledge(asked)).fit
	up, able := IDs(asked), IDs(AbleToPledge(asked))
	here := slices.ContainsFunc(asked, func(o Peer) bool { return o.Location == primary.Location || o.ID == Arbiter })
	h := p.Diagnose(now, r, peers)
	switch {
	case !h.Lost():
		return RefusedHealth
	case Foreign(peers) && !p.Forced:
		return RefusedForeign
	case Paused(peers) && !p.Forced:
		return RefusedPaused
	case !r.Majority(up):
		return RefusedNoMajority
	case !r.Majority(able):
		return RefusedNoPledge
	case !r.Covers(able):
		return RefusedSync
	// Where commits wait for no standby, and it is not certain that the primary accepts no more
	// writes, somebody must be sure to stop it. An operator may insist, but not where the primary
	// itself says that it is alive.
	case !r.Quorum && !h.Proven() && h != HealthDemoted && Unfenced(primary, peers) != "" && (!p.Forced && p.Adopts == 0 || h == HealthStuck):
		return RefusedUnfenced
	case !r.Quorum && unelectedUnguarded(r, peers, p.Adopts) && !p.Forced:
		return RefusedUsurper
	case !here:
		return RefusedLocation
	case len(fit) == 0:
		return RefusedNoneFit
	case p.LacksTooMuch(r, primary, fit[0]):
		return RefusedLag
	case p.TooMany && !p.Forced:
		return RefusedTooMany
	}
	return ""
}

// Electors are the voters that an election under the rule asks for their pledges: all that
// answer. A primary that nobody elected is left out, because it gives no pledge.
func (p Policy) Electors(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.Answer != Answers || o.Unelected(r) && o.ID != p.Adopts })
}

// AbleToPledge are the peers that are not known to be unable to pledge.
func AbleToPledge(peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.NoPledge != "" })
}

// LacksTooMuch reports whether the winner lacks, or may lack, more of the former primary's
// WAL than maximum_lag_on_failover allows; where the primary was never seen it may. With
// quorum there is no limit, because the winner has everything that was acknowledged.
func (p Policy) LacksTooMuch(r Rule, former, winner Peer) bool {
	if p.MaxLag <= 0 || r.Quorum || p.Forced || winner.ID == former.ID {
		return false
	}
	lacks := behind(winner, former)
	return lacks < 0 || lacks > p.MaxLag
}

// Unguarded names why it is not certain that a primary which is cut off stops itself.
type Unguarded string

const (
	UnguardedUnknown Unguarded = "what runs there is not known: it was not seen since this process began to look"
	UnguardedAlone   Unguarded = "no daemon ran there when it was last seen"
	UnguardedManual  Unguarded = "its daemon runs with failover=manual"
	UnguardedUnable  Unguarded = "its daemon can not stop it"
	UnguardedPaused  Unguarded = "failover is paused there, or may be"
)

// Unfenced says why it is not certain that a primary which is cut off stops itself. Empty:
// its daemon will stop it. Where the primary may not know of the newest pause or unpause it
// may still be paused, and a pause suspends its lease.
func Unfenced(primary Peer, peers []Peer) Unguarded {
	switch {
	case !primary.Monitored && primary.SeenAt.IsZero():
		return UnguardedUnknown
	case !primary.Monitored:
		return UnguardedAlone
	case !primary.Automatic:
		return UnguardedManual
	case !primary.CanFence:
		return UnguardedUnable
	case primary.Paused, primary.PauseSeq < LastPause(peers):
		return UnguardedPaused
	}
	return ""
}

// unelectedUnguarded reports whether a node runs as a primary that nobody elected, and has
// no daemon that would stop it after an election.
func unelectedUnguarded(r Rule, peers []Peer, adopts int32) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool {
		return o.ID != adopts && o.Unelected(r) && (!o.Monitored || !o.Automatic)
	})
}

// Unelected reports whether the node runs as a primary that nobody elected. Such a node
// pledges to nobody.
func (p Peer) Unelected(r Rule) bool {
	return p.ID != r.Primary && p.data() && p.Answer == Answers && p.Running == Primary && !p.Elected(r)
}

// Foreign reports whether a daemon of repmgr 5 runs with any node that answers.
func Foreign(peers []Peer) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Foreign && o.Answer == Answers })
}

// Paused reports whether failover is paused. Only the newest pause or unpause counts: a node
// that was down when the others were unpaused may still be marked as paused.
func Paused(peers []Peer) bool {
	newest := LastPause(peers)
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Paused && o.PauseSeq == newest })
}

// Pause says who has paused failover, and when. The zero value: that is not known.
type Pause struct {
	Seq   int64     `json:"seq"`            // the number of the pause
	Since time.Time `json:"since,omitzero"` // by the clock of whoever paused
	By    string    `json:"by,omitempty"`   // such as postgres@node1
}

// PausedBy says who has given the newest pause; the zero value where nothing is paused, or nobody has noted it.
func PausedBy(peers []Peer) Pause {
	newest := LastPause(peers)
	for _, o := range peers {
		if o.Paused && o.PauseSeq == newest && o.PausedBy.Seq == newest {
			return o.PausedBy
		}
	}
	return Pause{}
}

// LastPause is the number of the newest pause or unpause that any peer knows of.
func LastPause(peers []Peer) (newest int64) {
	for _, o := range peers {
		newest = max(newest, o.PauseSeq)
	}
	return newest
}

// PausePreventsElection reports whether a pause excludes every election under the rule: the
// voters that are not known to be paused are too few to elect anybody without the primary,
// self. This stays true when the views are old. After an unpause that has not reached the
// primary, the others count it as [UnguardedPaused] and do not replace it.
func (r Rule) PausePreventsElection(self int32, peers []Peer) bool {
	hold, newest := []int32{self}, LastPause(peers)
	for _, o := range peers {
		if o.Paused && o.PauseSeq == newest {
			hold = append(hold, o.ID)
		}
	}
	return Paused(peers) && !r.CanElect(without(r.Voters, hold))
}
