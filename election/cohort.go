package election

import (
	"slices"
	"time"
)

// SyncSetting is a synchronous_standby_names of the form ANY Acks (Standbys). Acks
// 0 is none; below 0 is one that is nobody's rule, so that whom commits wait for is not known.
type SyncSetting struct {
	Acks     int
	Standbys []int32
}

// SyncSetting is the setting that a rule asks for.
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

// Closed is the setting under which no commit is acknowledged: there is no node 0.
func Closed() SyncSetting { return SyncSetting{1, []int32{0}} }

// Open reports whether commits wait under the setting, and for standbys that there may be.
func (s SyncSetting) Open() bool { return s.Acks > 0 && !slices.Contains(s.Standbys, 0) }

// Opening is the setting that must be in force before a promotion or a
// reaffirmation, and stay until the rule's row is [Held]. A commit that was
// acknowledged sooner could be outvoted by those who know nothing of the term:
// it may come before the row, which is what makes its branch the later one.
// Without quorum commits wait for nobody, and nothing is closed.
func (r Rule) Opening() SyncSetting {
	if !r.Quorum {
		return SyncSetting{}
	}
	return Closed()
}

// Held reports whether no election can miss the newest rule, where it or the one
// before it may be the newest that is found. The row that opens a term must reach
// a majority: what else may be found is not known.
func Held(newest, before Rule, holders []int32) bool {
	if newest.Quorum && newest.Seq == 1 && !newest.Majority(holders) {
		return false
	}
	return newest.HeldBy(holders) && (!before.Known() || before.HeldBy(holders))
}

// Cohort is what a primary's monitor knows when it looks after the rule.
type Cohort struct {
	Rule       Rule        // the newest
	Held       bool        // so many voters have it that no election can miss it
	Set        SyncSetting // in force on the server
	Registered []int32     // all nodes, and the arbiter where there is one
	Healthy    []int32     // standbys that stream and may be promoted
	Doubled    []int32     // standbys in whose name another server streams, too
}

// sure is a setting without the standbys whose acknowledgement may be another
// server's. It asks for more, so it serves every rule that the setting serves.
func (c Cohort) sure(s SyncSetting) SyncSetting {
	if s.Acks <= 0 {
		return s
	}
	if s.Standbys = without(s.Standbys, c.Doubled); len(s.Standbys) < s.Acks {
		return Closed()
	}
	return s
}

// Change is one step towards what should be. At most one of the two is asked
// for; the zero value means that all is as it should be, or must wait.
type Change struct {
	Set  *SyncSetting // put in force
	Rule *Rule        // commit
}

// Tend moves the rule and synchronous_standby_names towards the registered nodes
// and the healthy standbys, one elementary step at a time, in an order in which
// every acknowledged commit is covered by each rule that an election may find:
// what asks for more is put in force before its rule is written, what asks for
// less after its rule is held.
func (p Policy) Tend(c Cohort) Change {
	want, narrows := p.next(c)
	set := c.sure(c.Rule.SyncSetting())
	switch {
	case !c.Set.Equal(c.sure(c.Set)):
		set = c.sure(c.Set)
		return Change{Set: &set}
	case !c.Held:
		return Change{} // two rules may be found: what is in force serves both
	case want == nil && !c.Set.Equal(set):
		return Change{Set: &set}
	case want == nil:
		return Change{}
	case want.Acks == 0 && c.Set.Acks <= 0:
		return Change{Rule: want} // commits wait for nobody already
	case narrows && !c.Set.Equal(c.sure(want.SyncSetting())):
		set = c.sure(want.SyncSetting())
		return Change{Set: &set}
	case !narrows && !c.Set.Equal(set):
		return Change{Set: &set}
	default:
		return Change{Rule: want}
	}
}

// next is the rule after this one, and whether its commits need more than those
// of this one: a member fewer to choose from, or an ack more.
func (p Policy) next(c Cohort) (next *Rule, narrows bool) {
	r := c.Rule
	r.Seq++
	if !p.Quorum {
		if c.Rule.Quorum { // it was on: it asks for less from now on
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
		r.Acks = 0 // whoever took the setting away, or put another in its place
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
			return &r, false // one more to choose from
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

// voters brings one registered node in, or takes one out that is not registered any more.
func (p Policy) voters(c Cohort, r Rule) (*Rule, bool) {
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

// acks is how many standbys a commit should wait for, of so many that are
// healthy: as many as the operator wants, or half of them, so that the loss of
// the primary and of a minority leaves one that has the commit.
func (p Policy) acks(healthy int) int {
	want := p.Acks
	if want == 0 {
		want = (healthy + 1) / 2
	}
	return min(want, healthy)
}

// LeaseStart is the moment until which the primary is sure that nobody else was
// elected: the voters that it has not reached since, with a ballot that is not of
// a higher term, could elect nobody without it. self is the primary; zero time:
// it was never sure. Where they can elect nobody at all, it is now.
func LeaseStart(now time.Time, r Rule, self int32, peers []Peer) time.Time {
	times := []time.Time{now}
	for _, o := range peers {
		if t := o.unpledged(r); o.ID != self && !t.IsZero() {
			times = append(times, t)
		}
	}
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	for _, t := range times {
		var reached []int32
		for _, o := range peers {
			if at := o.unpledged(r); o.ID != self && !at.IsZero() && !at.Before(t) {
				reached = append(reached, o.ID)
			}
		}
		if !r.CanElect(without(r.Voters, append(reached, self))) {
			return t
		}
	}
	return time.Time{}
}

// unpledged is when the voter was last known to be pledged to nobody in a later
// term. A pledge ends the WAL receiver, so the reply of one is as good as a look.
// One whose server has ended gives no pledge until it is back: to stop the
// standbys is no reason to stop the primary. Neither is it, where commits wait for
// standbys, to reject its login: that proves no vote, but whoever was elected by it
// has ended the receivers that they wait for. Only a cut must not go unnoticed.
func (p Peer) unpledged(r Rule) time.Time {
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
