package election

import (
	"slices"
	"time"
)

// SyncSetting is a synchronous_standby_names of the form ANY Acks (Standbys). Acks 0 means
// that it is empty. Acks below 0 stands for a setting that no rule asks for, so that it is
// not known which standbys commits wait for.
type SyncSetting struct {
	Acks     int
	Standbys []int32
}

// SyncSetting is the setting that the rule asks for.
func (r Rule) SyncSetting() SyncSetting {
	if !r.Quorum || r.Acks == 0 {
		return SyncSetting{}
	}
	return SyncSetting{r.Acks, r.Sync}
}

// Equal reports whether two settings are the same.
func (s SyncSetting) Equal(o SyncSetting) bool {
	return s.Acks == o.Acks && (s.Acks == 0 || slices.Equal(s.Standbys, o.Standbys))
}

// BlockingSetting is the setting under which every commit waits and none is acknowledged,
// because there is no node 0.
func BlockingSetting() SyncSetting { return SyncSetting{1, []int32{0}} }

// NeedsStandbys reports whether commits wait under the setting, and for standbys that can
// exist: it is false for [BlockingSetting].
func (s SyncSetting) NeedsStandbys() bool { return s.Acks > 0 && !slices.Contains(s.Standbys, 0) }

// PromotionSetting is the setting that must be in force before a promotion or a
// reaffirmation, until the row of the rule is [Held]. It blocks all commits: one that was
// acknowledged earlier could be lost, because voters that do not know of the new term could
// still elect a node without it. Without quorum commits wait for nobody, and none is blocked.
func (r Rule) PromotionSetting() SyncSetting {
	if !r.Quorum {
		return SyncSetting{}
	}
	return BlockingSetting()
}

// Held reports whether every election is certain to find the newest rule, also one that
// starts from the rule before it. The rule that opens a term must have reached a majority,
// because it is not known which older rule an election may start from.
func Held(newest, before Rule, holders []int32) bool {
	if newest.Quorum && newest.Seq == 1 && !newest.Majority(holders) {
		return false
	}
	return newest.HeldBy(holders) && (!before.Known() || before.HeldBy(holders))
}

// Membership is what the monitor of a primary knows when it compares the rule with the nodes that there are.
type Membership struct {
	Rule       Rule        // the newest rule
	Held       bool        // every election is certain to find it: see [Held]
	Set        SyncSetting // in force on the server
	Registered []int32     // all nodes, and the arbiter if there is one
	Healthy    []int32     // standbys that stream and may be promoted
	Duplicated []int32     // standbys under whose name another server streams as well
}

// withoutDuplicates is a setting without the standbys whose acknowledgements may come from
// another server. It is stricter, so it satisfies every rule that the setting satisfies.
func (c Membership) withoutDuplicates(s SyncSetting) SyncSetting {
	if s.Acks <= 0 {
		return s
	}
	if s.Standbys = without(s.Standbys, c.Duplicated); len(s.Standbys) < s.Acks {
		return BlockingSetting()
	}
	return s
}

// Change is one step towards the wanted state. At most one of the two is set; the zero
// value means that there is nothing to do, or that the next step must wait.
type Change struct {
	Set  *SyncSetting // put this setting in force
	Rule *Rule        // commit this rule
}

// Reconcile moves the rule and synchronous_standby_names towards the registered nodes and
// the healthy standbys, one elementary step at a time. The order of the steps keeps every
// acknowledged commit covered by each rule that an election may find: a stricter setting
// is put in force before its rule is written, a weaker one after its rule is held.
func (p Policy) Reconcile(c Membership) Change {
	want, narrows := p.next(c)
	set := c.withoutDuplicates(c.Rule.SyncSetting())
	switch {
	case !c.Set.Equal(c.withoutDuplicates(c.Set)):
		set = c.withoutDuplicates(c.Set)
		return Change{Set: &set}
	case !c.Held:
		return Change{} // an election may find either of two rules, and the setting in force satisfies both
	case want == nil && !c.Set.Equal(set):
		return Change{Set: &set}
	case want == nil:
		return Change{}
	case want.Acks == 0 && c.Set.Acks <= 0:
		return Change{Rule: want} // commits already wait for nobody
	case narrows && !c.Set.Equal(c.withoutDuplicates(want.SyncSetting())):
		set = c.withoutDuplicates(want.SyncSetting())
		return Change{Set: &set}
	case !narrows && !c.Set.Equal(set):
		return Change{Set: &set}
	default:
		return Change{Rule: want}
	}
}

// next is the rule that should follow the present one, or nil. narrows reports whether its
// commits are harder to acknowledge: one standby fewer to choose from, or one ack more.
func (p Policy) next(c Membership) (next *Rule, narrows bool) {
	r := c.Rule
	r.Seq++
	if !p.Quorum {
		if c.Rule.Quorum { // it was switched off: commits need no acknowledgements from now on
			r.Quorum, r.Sync, r.Acks = false, nil, 0
			return &r, false
		}
		return p.voters(c, r)
	}
	if !c.Rule.Quorum {
		r.Quorum, r.Sync, r.Acks = true, nil, 0
		return &r, false
	}
	if c.Set.Acks <= 0 && c.Rule.Acks > 0 && !p.Required {
		r.Acks = 0 // somebody has removed or replaced the setting, so commits wait for nobody already
		return &r, false
	}
	healthy := slices.DeleteFunc(slices.Clone(c.Healthy), func(id int32) bool { return !slices.Contains(c.Rule.Voters, id) || id == c.Rule.Primary })
	slices.Sort(healthy)
	acks := p.acks(len(healthy))
	if p.Required && r.Acks > 0 {
		acks = max(1, acks)
	}
	for _, id := range healthy {
		if !slices.Contains(r.Sync, id) {
			r.Sync = append(slices.Clone(r.Sync), id)
			slices.Sort(r.Sync)
			return &r, false
		}
	}
	gone := without(c.Rule.Sync, healthy)
	switch {
	case acks < r.Acks:
		r.Acks--
		return &r, false
	case len(gone) > 0 && len(r.Sync)-1 >= r.Acks:
		r.Sync = without(r.Sync, gone[:1])
		return &r, r.Acks > 0
	case acks > r.Acks:
		r.Acks++
		return &r, true
	}
	return p.voters(c, r)
}

// voters adds one registered node to the voters, or removes one that is no longer registered.
func (p Policy) voters(c Membership, r Rule) (*Rule, bool) {
	for _, id := range c.Registered {
		if !slices.Contains(r.Voters, id) {
			r.Voters = append(slices.Clone(r.Voters), id)
			slices.Sort(r.Voters)
			return &r, false
		}
	}
	for _, id := range r.Voters {
		if !slices.Contains(c.Registered, id) && id != r.Primary && !slices.Contains(r.Sync, id) {
			r.Voters = without(r.Voters, []int32{id})
			return &r, false
		}
	}
	return nil, false
}

// acks is how many standbys a commit should wait for when so many are healthy: as many as
// the operator wants, or half of them. Then a standby with the commit remains after the
// loss of the primary and of a minority of the standbys.
func (p Policy) acks(healthy int) int {
	want := p.Acks
	if want == 0 {
		want = (healthy + 1) / 2
	}
	return min(want, healthy)
}

// LeaseStart is the latest moment at which the primary, self, was certain that no other node
// had been elected: the voters that it has not reached since, or that hold a ballot of a
// higher term, are too few to elect anybody without it. That is now where all other voters
// together are too few, and the zero time where the primary was never certain.
func LeaseStart(now time.Time, r Rule, self int32, peers []Peer) time.Time {
	times := []time.Time{now}
	for _, o := range peers {
		if t := o.lastUnpledged(r); o.ID != self && !t.IsZero() {
			times = append(times, t)
		}
	}
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	for _, t := range times {
		var reached []int32
		for _, o := range peers {
			if at := o.lastUnpledged(r); o.ID != self && !at.IsZero() && !at.Before(t) {
				reached = append(reached, o.ID)
			}
		}
		if !r.CanElect(without(r.Voters, append(reached, self))) {
			return t
		}
	}
	return time.Time{}
}

// lastUnpledged is when the voter was last known to have no pledge in a later term.
//
// A pledge ends the WAL receiver, so a reply of the receiver is as good as an answer of the
// voter. A voter whose server has ended can not pledge before it is back; so stopping the
// standbys does not stop the primary. Where commits wait for standbys a rejected login counts
// as contact, too: it does not exclude a vote, but whoever was elected has ended the receivers
// that commits wait for, so nothing can be acknowledged. Only a cut of the network must be noticed.
func (p Peer) lastUnpledged(r Rule) time.Time {
	switch {
	case p.Term > r.Term:
		return time.Time{}
	case p.Answer == Rejects && r.Quorum && r.Acks > 0:
		return p.Tried
	case p.Answer == Refused && p.Ended && !p.SeenAt.IsZero():
		return p.Tried
	case p.Replied.After(p.SeenAt):
		return p.Replied
	default:
		return p.SeenAt
	}
}
