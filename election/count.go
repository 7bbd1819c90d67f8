package election

import (
	"cmp"
	"math"
	"slices"

	"github.com/pgrepmgr/repmgr/wal"
)

// Unfit names why a node may not be promoted. Empty: it may.
type Unfit string

const (
	UnfitWitness     Unfit = "it holds no data"
	UnfitPriority    Unfit = "its priority is 0"
	UnfitDelayed     Unfit = "it applies WAL with a delay"
	UnfitNoPledge    Unfit = "it could not pledge itself"
	UnfitHung        Unfit = "its server loads no settings: its postmaster hangs"
	UnfitBranch      Unfit = "it is on a branch that no rule knows"
	UnfitUnsure      Unfit = "where its WAL ends, or on which timeline, can not be told"
	UnfitTarget      Unfit = "its replay stops at a recovery target"
	UnfitParameters  Unfit = "its replay waits for settings as large as the primary's (max_connections and others)"
	UnfitPaused      Unfit = "its replay is paused, and why can not be told"
	UnfitOwnWAL      Unfit = "the crash recovery of a rejoin that did not end gave it WAL of its own"
	UnfitManual      Unfit = "its daemon runs with failover=manual"
	UnfitUnmonitored Unfit = "no daemon runs on it, which could fence it"
	UnfitUnable      Unfit = "its daemon can not fence it"
)

// Fit says whether a node may be promoted under the rule. Without quorum only its own daemon
// can stop a primary that is cut off, so the node must have a daemon that is able to.
func (p Policy) Fit(r Rule, o Peer) Unfit {
	switch {
	case !o.data():
		return UnfitWitness
	case o.ID == p.Incumbent && o.NoPledge == "" && !o.PositionUnknown && o.On(r): // priority and the like matter only for another winner
		return ""
	case o.Priority <= 0:
		return UnfitPriority
	case o.Delayed:
		return UnfitDelayed
	case o.NoPledge != "":
		return UnfitNoPledge
	case o.Hung:
		return UnfitHung
	case o.ReplayBlocked != "":
		return o.ReplayBlocked
	case o.ID == p.Adopts:
	case o.PositionUnknown:
		return UnfitUnsure
	case !o.On(r):
		return UnfitBranch
	}
	switch {
	case o.Monitored && !o.Automatic && !p.Forced:
		return UnfitManual
	case !o.Monitored && !r.Quorum && !p.Forced:
		return UnfitUnmonitored
	case !o.CanFence && !r.Quorum && !p.Forced:
		return UnfitUnable
	}
	return ""
}

// Tally is the result of counting the pledges.
type Tally struct {
	Refusal Refusal // why there is no winner
	Winner  int32
	Wait    bool // the former primary may still accept writes: wait until its daemon has stopped it
	Rule    Rule // of the new term
}

// ranking is what the count of an election is based on.
type ranking struct {
	peers []Peer // the pledged voters
	rules []Rule // the rules under which commits may have been acknowledged
	line  Rule   // the rule whose line decides which node has more
	fit   []Peer // the nodes that may be promoted, the winner first
	moved bool   // the first node was put in front because it can serve the others
}

func (p Policy) ranking(r Rule, pledged []Peer) ranking {
	l := ranking{peers: rateService(pledged)}
	for i, o := range l.peers {
		if o.Running == Primary && o.Announced.Compare(o.Rule) > 0 {
			l.peers[i].Rule = o.Announced
		}
	}
	l.rules = relevantRules(r, l.peers)
	l.line = l.rules[len(l.rules)-1]
	for _, o := range l.peers {
		if p.Fit(l.line, o) == "" {
			l.fit = append(l.fit, o)
		}
	}
	slices.SortFunc(l.fit, func(a, b Peer) int { return p.rank(l.line, p.Location, a, b) })
	l.fit, l.moved = p.serveFirst(l.fit, l.rules, l.peers)
	return l
}

// Count chooses the winner and makes the rule of the new term. peers are the pledged voters,
// as seen after their pledges, when their positions no longer change; h is the verdict on
// the former primary.
func (p Policy) Count(r Rule, term int64, h Health, peers []Peer) Tally {
	l := p.ranking(r, peers)
	fit, rules, newest, line, peers := l.fit, l.rules, l.rules[0], l.line, l.peers
	for _, rule := range rules {
		pledged := IDs(countable(rule, peers))
		switch {
		case !rule.Majority(pledged):
			return Tally{Refusal: RefusedPledges}
		case !rule.Covers(IDs(withKnownWAL(rule, countable(rule, peers)))):
			return Tally{Refusal: RefusedSync}
		case len(fit) == 0:
			return Tally{Refusal: RefusedNoneFit}
		case rule.Quorum && !holdsAll(rule, line, fit[0], peers):
			return Tally{Refusal: RefusedBehind}
		}
	}
	winner := fit[0]
	sync := standbys(winner, line, peers)
	next := Rule{Term: term, Seq: 1, Primary: winner.ID, Voters: newest.Voters, Quorum: newest.Quorum, Line: branch(winner)}
	if next.Quorum {
		next.Sync, next.Acks = sync, p.firstAcks(newest, sync, peers)
		if next.Acks == 0 && p.Required {
			next.Sync = missingStandbys(newest, winner.ID, peers)
			next.Acks = min(1, newest.Acks, len(next.Sync))
		}
	}
	pledged := IDs(peers)
	gone := slices.Contains(pledged, newest.Primary) || h.Proven() && r.Primary == newest.Primary
	return Tally{Winner: winner.ID, Rule: next, Wait: !newest.Quorum && (!gone || mayHaveUnknownPrimary(newest, term, pledged))}
}

// branch is the line of WAL of the winner after its promotion: a standby begins a new
// timeline where its WAL ends, and a primary stays on its line.
func branch(winner Peer) wal.Lineage {
	if winner.Running == Primary {
		return winner.Line()
	}
	if winner.Position.Timeline > 1 && len(winner.Past) == 0 {
		return wal.Lineage{} // its history can not be read
	}
	return wal.Lineage{Past: append(slices.Clone(winner.Past), wal.HistoryEntry{Timeline: winner.Position.Timeline, SwitchLSN: winner.Position.LSN})}
}

// withKnownWAL are the peers of which it is known how much of the rule's line they have.
func withKnownWAL(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.data() && o.unsure(r) })
}

// unsure reports whether it is not known how much of the rule's line the peer has. A peer
// with own WAL is certain only if the rule's line has left its line before that WAL begins.
func (p Peer) unsure(r Rule) bool {
	return p.PositionUnknown || p.ReplayBlocked == UnfitOwnWAL && (!r.Line.Known() || r.Line.Shared(p.Line(), math.MaxUint64) > p.Position.LSN)
}

// countable are the peers whose votes count under the rule. An arbiter that knows a different
// list of voters is left out, because the weight of its vote depends on that list.
func countable(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool {
		return o.ID == Arbiter && o.Rule.Known() && !slices.Equal(o.Rule.Voters, r.Voters)
	})
}

// mayHaveUnknownPrimary reports whether a primary of a term between the newest rule and this
// election may run: there were pledges since that rule, and one of the voters that have not
// pledged now may have won them.
func mayHaveUnknownPrimary(newest Rule, term int64, pledged []int32) bool {
	return term > newest.Term+1 && len(without(newest.Voters, append([]int32{Arbiter}, pledged...))) > 0
}

// relevantRules are the rules under which commits may have been acknowledged: the newest of
// all, and the newest that a data node has. The two differ where a rule was announced to a
// witness and has reached no standby.
func relevantRules(r Rule, peers []Peer) []Rule {
	newest, onData := r, Rule{}
	for _, o := range peers {
		if o.NewestRule().Compare(newest) > 0 {
			newest = o.NewestRule()
		}
		if o.data() && o.Rule.Compare(onData) > 0 {
			onData = o.Rule
		}
	}
	if !onData.Known() || onData.Compare(newest) == 0 {
		return []Rule{newest}
	}
	return []Rule{newest, onData}
}

// electable reports whether the acknowledgements of a standby may count: it could be promoted
// with what it has acknowledged, and nobody else can acknowledge under its name.
func electable(o Peer) bool {
	return o.data() && o.Priority > 0 && !o.Delayed && !o.ReplayPaused && o.ReplayBlocked == "" && !o.Misnamed && !o.Hung
}

// holdsAll reports whether no peer that may hold acknowledged commits has more of the line
// than best. The former primary may have more where enough synchronous standbys have pledged:
// the rest was then never acknowledged, unless commits waited for nobody.
func holdsAll(r, line Rule, best Peer, peers []Peer) bool {
	for _, o := range peers {
		must := slices.Contains(r.Sync, o.ID) || o.ID == r.Primary && count(r.Sync, IDs(peers)) < len(r.Sync)-r.Acks+1 || o.ID == r.Primary && r.Acks == 0
		if must && compareProgress(line, o, best) > 0 {
			return false
		}
	}
	return true
}

// missingStandbys are the synchronous standbys of a new term where no standby is available
// and durability=required forbids commits without one: those of the last term, so that
// commits wait until the first of them is back.
func missingStandbys(r Rule, winner int32, peers []Peer) []int32 {
	all := slices.DeleteFunc(append(slices.Clone(r.Sync), r.Primary), func(id int32) bool {
		return id == winner || !slices.Contains(r.Voters, id) || find(peers, id).Misnamed
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// firstAcks is how many acknowledgements the first commits of a term need: so many that the
// voters that do not know of the term can elect nobody without a node that has the commit.
func (p Policy) firstAcks(r Rule, sync []int32, peers []Peer) int {
	held := []int32{}
	for _, o := range peers {
		if !o.data() {
			held = append(held, o.ID) // the rule is announced to witnesses before the promotion
		}
	}
	have, all := r.Votes(held)
	need := all/2 + 1 - have - 1 // the winner itself
	return min(len(sync), max(need, min(p.acks(len(sync)), len(sync))))
}

// rank orders the candidates, and the first one wins. What a node has counts first, then
// whether it is the target of a handover, or the primary already, then how well it can serve the others, then the
// operator's preferences.
func (p Policy) rank(line Rule, location string, a, b Peer) int {
	return cmp.Or(
		compareProgress(line, b, a),
		compareTrue(a.ID == p.Prefer, b.ID == p.Prefer),
		compareTrue(a.ID == p.Incumbent, b.ID == p.Incumbent),
		cmp.Compare(b.serves, a.serves),
		cmp.Compare(b.Priority, a.Priority),
		compareTrue(a.Location == location, b.Location == location),
		cmp.Compare(a.ID, b.ID),
	)
}

// compareProgress is positive if a has more of the rule's line than b; WAL on another branch
// does not count. Where the line is not known the term of the rule decides, then the number
// of the timeline, then the LSN.
func compareProgress(line Rule, a, b Peer) int {
	if line.Line.Known() {
		return cmp.Compare(line.shared(a), line.shared(b))
	}
	return cmp.Or(cmp.Compare(a.Rule.Term, b.Rule.Term), comparePosition(a.Position, b.Position))
}

func comparePosition(a, b wal.Position) int {
	return cmp.Or(cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.LSN, b.LSN))
}

// compareTrue puts true first.
func compareTrue(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}
