package election

import (
	"cmp"
	"slices"

	"github.com/pgrepmgr/repmgr/wal"
)

// Arbiter is the id of the voter that is no PostgreSQL server: an etcd.
const Arbiter int32 = -1

// Rule is the committed row that opens a term, or changes what counts in it. It
// says who the primary is, whose votes count, and which standbys hold what is
// acknowledged. The zero value means that no rule is known.
//
// A rule is newer than another if its (Term, Seq) is. It is held when so many
// voters have it that those who have not can elect nobody: from then on every
// election knows of it.
type Rule struct {
	Term    int64   `json:"term"` // at most one primary in each
	Seq     int     `json:"seq"`  // counts the changes within a term
	Primary int32   `json:"primary_node_id"`
	Voters  []int32 `json:"voters"` // all registered nodes, the dead ones too
	Quorum  bool    `json:"quorum"` // synchronous_mode=quorum
	Sync    []int32 `json:"sync_standbys"`
	Acks    int     `json:"acks"` // of Sync, that a commit waits for; 0: for nobody

	// Line is the primary's. A node elsewhere is on a branch that no rule knows: it
	// votes, never wins, and counts for what it has up to where it left the line. Of
	// a rule that is told before the promotion the timeline has no number yet. Unknown
	// where a former version wrote the rule: then the timeline's number decides.
	Line wal.Line `json:"line,omitzero"`
}

// Known reports whether there is a rule at all.
func (r Rule) Known() bool { return r.Term > 0 }

// Compare orders rules by age: positive if r is newer than other.
func (r Rule) Compare(other Rule) int {
	return cmp.Or(cmp.Compare(r.Term, other.Term), cmp.Compare(r.Seq, other.Seq))
}

// shared is up to where the peer has the rule's line, all of it where that is not known.
func (r Rule) shared(p Peer) wal.LSN {
	switch {
	case !r.Line.Known():
		return p.Position.LSN
	case len(p.Past) == 0 && p.Position.Timeline > 1: // its history can not be read
		if p.Position.Timeline != r.Line.Timeline {
			return 0
		}
		return p.Position.LSN
	}
	return r.Line.Shared(p.Line(), p.Position.LSN)
}

// Line is the line that the peer is on.
func (p Peer) Line() wal.Line {
	return wal.Line{Timeline: p.Position.Timeline, Past: p.Past, Mark: p.Mark}
}

// Learned is the peer, once it was told of a rule. What a node was told counts as
// what its WAL has where that went on past the fork that the rule's line begins
// with: whoever has that has all of the line before. Else it knows of the rule, as
// a witness does.
func (p Peer) Learned(told Rule) Peer {
	switch {
	case told.Compare(p.Rule) <= 0:
	case p.Running == Standby && p.data() && told.Line.Extends(p.Rule.Line) && p.On(told) && p.Position.LSN > told.Line.Past[len(told.Line.Past)-1].SwitchLSN:
		p.Rule = told
	case p.Running == Standby && told.Primary != p.ID, p.Running == Primary && told.Primary == p.ID && p.On(told): // a winner is told before its promotion
		p.Told = told
	}
	return p
}

// Knows is the newest rule that the peer can tell of. A primary tells of its own row.
func (p Peer) Knows() Rule {
	if p.Running == Standby && p.Told.Compare(p.Rule) > 0 {
		return p.Told
	}
	return p.Rule
}

// Holds reports whether every later pledge of the peer shows the rule. One that has
// pledged itself in a later term may have learned of it since, and its pledge is
// counted without.
func (p Peer) Holds(r Rule) bool { return p.Knows().Compare(r) == 0 && p.Term <= r.Term }

// On reports whether all WAL of the peer is on the line of the rule.
func (p Peer) On(r Rule) bool { return r.shared(p) == p.Position.LSN }

// weight is how many votes a voter has. An arbiter survives what a node does
// not, so it and any one node are a majority, and so are all nodes without it.
func (r Rule) weight(id int32) int {
	if id == Arbiter {
		return max(1, len(r.Voters)-2)
	}
	return 1
}

// Votes are how many of the rule's votes these nodes have, and how many there are.
func (r Rule) Votes(ids []int32) (have, all int) {
	for _, id := range r.Voters {
		all += r.weight(id)
		if slices.Contains(ids, id) {
			have += r.weight(id)
		}
	}
	return have, all
}

// Majority reports whether these nodes have more than half of the votes.
func (r Rule) Majority(ids []int32) bool {
	have, all := r.Votes(ids)
	return 2*have > all
}

// Covers reports whether these nodes are sure to hold every commit that was
// acknowledged under the rule: with Quorum, the primary itself, or so many of
// Sync that each set of Acks has one among them.
func (r Rule) Covers(ids []int32) bool {
	return !r.Quorum || slices.Contains(ids, r.Primary) || r.Acks > 0 && count(r.Sync, ids) >= len(r.Sync)-r.Acks+1
}

// CanElect reports whether the pledges of these nodes are enough for a new term.
func (r Rule) CanElect(ids []int32) bool { return r.Majority(ids) && r.Covers(ids) }

// HeldBy reports whether what these nodes have can not be missed by any
// election under the rule: the voters without them can elect nobody.
func (r Rule) HeldBy(ids []int32) bool { return !r.CanElect(without(r.Voters, ids)) }

// count is how many of these are among those.
func count(these, those []int32) (n int) {
	for _, id := range these {
		if slices.Contains(those, id) {
			n++
		}
	}
	return n
}

func without(these, those []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(these), func(id int32) bool { return slices.Contains(those, id) })
}
