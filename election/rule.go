package election

import (
	"cmp"
	"slices"

	"github.com/pgrepmgr/repmgr/wal"
)

// Arbiter is the id of the voter that is an etcd and not a PostgreSQL server.
const Arbiter int32 = -1

// Rule is a row of repmgr.rules. The first rule of a term opens it; later ones change
// who takes part. A rule says which node is the primary, which nodes vote, and which
// standbys acknowledge commits. The zero value means that no rule is known.
//
// A rule is newer than another if its (Term, Seq) is higher. A rule is held when the
// voters that do not have it are too few to elect anybody: from then on every election
// finds it.
type Rule struct {
	Term    int64   `json:"term"` // at most one primary in each
	Seq     int     `json:"seq"`  // counts the changes within a term
	Primary int32   `json:"primary_node_id"`
	Voters  []int32 `json:"voters"` // all registered nodes, including dead ones
	Quorum  bool    `json:"quorum"` // synchronous_mode=quorum
	Sync    []int32 `json:"sync_standbys"`
	Acks    int     `json:"acks"` // so many of Sync must acknowledge a commit; 0: commits do not wait

	// Line is the line of WAL that the primary writes. A node whose WAL left this line
	// is on a branch that no rule knows: it votes and never wins, and only what it has
	// before the point where it left counts. In a rule that is announced before the
	// promotion the new timeline has no number yet. Line is unknown in rules that an
	// older version wrote: then the number of the timeline decides.
	Line wal.Lineage `json:"line,omitzero"`

	// FirstXid is the lowest id of a transaction whose end had not reached the primary when it was promoted in this
	// term: of that id and above, every transaction that it knows is of its own timeline. 0: not known. No decision depends on it.
	FirstXid uint64 `json:"first_xid,omitempty"`
}

// Known reports whether there is a rule at all.
func (r Rule) Known() bool { return r.Term > 0 }

// Compare orders rules by age: positive if r is newer than other.
func (r Rule) Compare(other Rule) int {
	return cmp.Or(cmp.Compare(r.Term, other.Term), cmp.Compare(r.Seq, other.Seq))
}

// shared is the position up to which the WAL of the peer is on the line of the rule. Where
// the line is not known that is all of its WAL.
func (r Rule) shared(p Peer) wal.LSN {
	switch {
	case !r.Line.Known():
		return p.Position.LSN
	case len(p.Past) == 0 && p.Position.Timeline > 1: // the history of its timeline can not be read
		if p.Position.Timeline != r.Line.Timeline {
			return 0
		}
		return p.Position.LSN
	}
	return r.Line.Shared(p.Line(), p.Position.LSN)
}

// Line is the line of WAL that the peer is on.
func (p Peer) Line() wal.Lineage {
	return wal.Lineage{Timeline: p.Position.Timeline, Past: p.Past, Fingerprint: p.Mark}
}

// WithAnnounced returns the peer after a rule was announced to it. Where its WAL continues
// past the fork at which the line of the rule begins, the node has all of the line before
// that fork, and the rule counts as one that it holds in its WAL. Otherwise the node only
// knows of the rule, as a witness does.
func (p Peer) WithAnnounced(told Rule) Peer {
	switch {
	case told.Compare(p.Rule) <= 0:
	case p.Running == Standby && p.data() && told.Line.Extends(p.Rule.Line) && p.On(told) && p.Position.LSN > told.Line.Past[len(told.Line.Past)-1].SwitchLSN:
		p.Rule = told
	case p.Running == Standby && told.Primary != p.ID, p.Running == Primary && told.Primary == p.ID && p.On(told): // the rule is announced to the winner before its promotion
		p.Announced = told
	}
	return p
}

// NewestRule is the newest rule that the peer can report. For a primary that is the newest
// row in its own table.
func (p Peer) NewestRule() Rule {
	if p.Running == Standby && p.Announced.Compare(p.Rule) > 0 {
		return p.Announced
	}
	return p.Rule
}

// Holds reports whether every later pledge of the peer will show the rule. A peer that has
// already pledged in a later term does not count, because it may have learned of the rule
// only after that pledge.
func (p Peer) Holds(r Rule) bool { return p.NewestRule().Compare(r) == 0 && p.Term <= r.Term }

// On reports whether all WAL of the peer is on the line of the rule.
func (p Peer) On(r Rule) bool { return r.shared(p) == p.Position.LSN }

// weight is how many votes a voter has. The arbiter is an etcd cluster, which survives the
// loss of a machine; so it has enough votes to be a majority together with any one node,
// and all nodes together are a majority without it.
func (r Rule) weight(id int32) int {
	if id == Arbiter {
		return max(1, len(r.Voters)-2)
	}
	return 1
}

// Votes returns how many votes these nodes have under the rule, and how many there are in all.
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

// Covers reports whether every commit that was acknowledged under the rule is certain to be
// on one of these nodes. With Quorum they must include the primary, or so many of Sync that
// every possible set of Acks standbys has a member among them.
func (r Rule) Covers(ids []int32) bool {
	return !r.Quorum || slices.Contains(ids, r.Primary) || r.Acks > 0 && count(r.Sync, ids) >= len(r.Sync)-r.Acks+1
}

// CanElect reports whether the pledges of these nodes are enough for a new term.
func (r Rule) CanElect(ids []int32) bool { return r.Majority(ids) && r.Covers(ids) }

// HeldBy reports whether every election under the rule must include one of these nodes,
// because the other voters can elect nobody.
func (r Rule) HeldBy(ids []int32) bool { return !r.CanElect(without(r.Voters, ids)) }

// count returns how many of these are among those.
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
