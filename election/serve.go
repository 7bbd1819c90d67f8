package election

import (
	"cmp"
	"slices"

	"github.com/pgrepmgr/repmgr/wal"
)

// Capacity is how many standbys a server can serve. The zero value means not known.
type Capacity struct {
	Known   bool
	Senders int // WAL senders that are free or already serve registered nodes
	Slots   int // replication slots that are free or already belong to registered nodes
}

// servable is how many of the peers could stream from o, and whether there are slots for all
// of them that need one, as far as that is known.
func servable(o Peer, peers []Peer) (n int, slots bool) {
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

// rateService sets for each node how well it could serve the others. A missing slot counts
// less than a missing stream.
func rateService(peers []Peer) []Peer {
	peers = slices.Clone(peers)
	for i, o := range peers {
		n, slots := servable(o, peers)
		peers[i].serves = 2 * n
		if slots {
			peers[i].serves++
		}
	}
	return peers
}

// serveFirst moves the best candidate to the front that has everything that was acknowledged
// and can serve as many standbys as its first commit needs; under another one that commit
// would wait for ever. Where there is no such candidate the order stays as it is, because the
// logins that were tried beforehand are no proof of what the servers can do.
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
		n, _ := servable(o, slices.DeleteFunc(slices.Clone(peers), func(f Peer) bool { return !slices.Contains(sync, f.ID) }))
		return n >= p.firstAcks(newest, sync, peers)
	}
	if i := slices.IndexFunc(fit, can); i > 0 {
		first := fit[i]
		return append([]Peer{first}, slices.Delete(fit, i, i+1)...), true
	}
	return fit, false
}

// standbys are the nodes that commits can wait for once o is the primary. A node on another
// branch is left out, because it can not stream before it was rewound.
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
	LackLogin   Lack = "replication login" // a standby can not log in
	LackSenders Lack = "WAL senders"
	LackSlots   Lack = "replication slots" // some standbys would stream without a slot
)

// Unserved is a node that could not serve all standbys if it were promoted.
type Unserved struct {
	Winner int32  `json:"winner_node_id"`
	Lacks  Lack   `json:"lacks"`
	Node   int32  `json:"node_id,omitempty"` // for a login: the standby that can not log in
	Why    string `json:"reason,omitempty"`  // for a login: the error
	Have   int    `json:"has,omitempty"`     // for senders and slots: the number that it has for standbys
	Need   int    `json:"needs,omitempty"`   // for senders and slots: the number that it needs
}

// unserved lists what the nodes that may be promoted lack for their standbys, in the order of
// their ids.
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

// WALSource is the standby that has all WAL on the line of the rule up to a position, and the most of it: from it another standby
// gets what it needs when the primary is lost. 0: there is none.
func WALSource(r Rule, peers []Peer, self int32, upTo wal.Position) int32 {
	var best Peer
	for _, p := range peers {
		serves := p.Answer == Answers && p.Running == Standby && p.data() && p.ReplayBlocked == "" && find(peers, self).NoStream[p.ID] == ""
		has := !p.PositionUnknown && p.On(r) && p.Position.Timeline == upTo.Timeline && p.Position.LSN >= upTo.LSN
		if serves && has && p.ID != self && (best.ID == 0 || p.Position.LSN > best.Position.LSN) {
			best = p
		}
	}
	return best.ID
}
