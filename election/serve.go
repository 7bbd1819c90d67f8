package election

import (
	"cmp"
	"slices"
)

// Room is what a server has left for standbys. The zero value: it is not known.
type Capacity struct {
	Known   bool
	Senders int // WAL senders that are free, or serve registered nodes already
	Slots   int // replication slots that are free, or are those of registered nodes already
}

// served is how many of the others could stream from o, and whether each of them
// would have the slot that it wants, as far as it is known.
func served(o Peer, peers []Peer) (n int, slots bool) {
	want := 0
	for _, f := range peers {
		if f.ID == o.ID || !f.data() {
			continue
		}
		if f.NeedsSlot {
			want++
		}
		if _, fails := f.NoStream[o.ID]; !fails {
			n++
		}
	}
	if !o.Capacity.Known {
		return n, true
	}
	return max(0, min(n, o.Capacity.Senders)), want <= o.Capacity.Slots
}

// weigh notes how well each node could serve the others. A slot that can not be
// had counts less than a stream.
func weigh(peers []Peer) []Peer {
	peers = slices.Clone(peers)
	for i, o := range peers {
		n, slots := served(o, peers)
		peers[i].serves = 2 * n
		if slots {
			peers[i].serves++
		}
	}
	return peers
}

// serveFirst puts the first candidate in front that has all that was acknowledged
// and from which so many could stream as the first commit of its term needs: the
// commits of another one would wait for ever. Where there is none such, the order
// stays: a login that was tried is no proof of what the servers can do.
func (p Policy) serveFirst(fit []Peer, rules []Rule, peers []Peer) (order []Peer, moved bool) {
	newest, line := rules[0], rules[len(rules)-1]
	if !newest.Quorum || len(fit) > 0 && fit[0].ID == p.Incumbent {
		return fit, false
	}
	can := func(o Peer) bool {
		for _, r := range rules {
			if r.Quorum && !holdsAll(r, line, o, peers) {
				return false
			}
		}
		sync := standbys(o, line, peers)
		n, _ := served(o, slices.DeleteFunc(slices.Clone(peers), func(f Peer) bool { return !slices.Contains(sync, f.ID) }))
		return n >= p.firstAcks(newest, sync, peers)
	}
	if i := slices.IndexFunc(fit, can); i > 0 {
		first := fit[i]
		return append([]Peer{first}, slices.Delete(fit, i, i+1)...), true
	}
	return fit, false
}

// standbys are the nodes that commits of a term of o can wait for. One on a branch
// streams from nobody before it was brought back.
func standbys(o Peer, line Rule, peers []Peer) (ids []int32) {
	for _, f := range peers {
		if f.ID != o.ID && f.data() && electable(f) && f.On(line) {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// Lack is what keeps a node from serving its standbys.
type Lack string

const (
	LackLogin   Lack = "replication login" // one of them can not log in
	LackSenders Lack = "WAL senders"
	LackSlots   Lack = "replication slots" // they would stream without
)

// Unserved is a node that could not serve all standbys if it were promoted.
type Unserved struct {
	Winner int32  `json:"winner_node_id"`
	Lacks  Lack   `json:"lacks"`
	Node   int32  `json:"node_id,omitempty"` // of a login: whose
	Why    string `json:"reason,omitempty"`  // of a login: what came of it
	Have   int    `json:"has,omitempty"`     // of senders and slots: for so many standbys
	Need   int    `json:"needs,omitempty"`   // of so many
}

// unserved says what the nodes that may be promoted lack, in the order of their ids.
func (p Policy) unserved(r Rule, peers []Peer) []Unserved {
	all := []Unserved{}
	for _, o := range slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) }) {
		if p.Fit(r, o) != "" {
			continue
		}
		need, want := 0, 0
		for _, f := range peers {
			if f.ID == o.ID || !f.data() {
				continue
			}
			need++
			if f.NeedsSlot {
				want++
			}
			if why, fails := f.NoStream[o.ID]; fails {
				all = append(all, Unserved{Winner: o.ID, Lacks: LackLogin, Node: f.ID, Why: why})
			}
		}
		if o.Capacity.Known && o.Capacity.Senders < need {
			all = append(all, Unserved{Winner: o.ID, Lacks: LackSenders, Have: max(0, o.Capacity.Senders), Need: need})
		}
		if o.Capacity.Known && o.Capacity.Slots < want {
			all = append(all, Unserved{Winner: o.ID, Lacks: LackSlots, Have: max(0, o.Capacity.Slots), Need: want})
		}
	}
	return all
}
