package health

import (
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// View is what a Monitor knows at one instant. What belongs to the last turn of the Monitor is up to
// monitor_interval old; Peers and Lease are from the last heartbeat.
type View struct {
	At      time.Time       // when the view was taken
	Cluster string          // key cluster; empty: not set
	NodeID  registry.NodeID // 0: the Monitor has no node
	Node    string

	// Of the last turn.

	LookedAt  time.Time // when it began; zero: there was none
	Interval  time.Duration
	Silence   time.Duration // silence_timeout: how old an answer may be
	Automatic bool          // the Monitor acts: failover=automatic, and no other Monitor acts for the node
	Yields    bool          // another Monitor acts for the node
	Phase     election.Phase
	Reason    string
	Rule      election.Rule     // the newest that is known
	Records   []registry.Record // the registered nodes
	Upstream  Upstream          // of a standby
	WALGone   bool              // of a standby: its upstream does not have the WAL any more that it needs next

	Local       registry.NodeStatus // the server of the node as it was last seen
	LocalAnswer election.Answer     // in the last turn
	LocalSeenAt time.Time

	// Of the last heartbeat.

	Peers []election.Peer // nil where the Monitor does not act
	Lease Lease
}

// Upstream is the primary of a standby as its Monitor last saw it.
type Upstream struct {
	ID     registry.NodeID
	SeenAt time.Time // zero: it was never seen
	LSN    wal.LSN   // where it wrote then
}

// Lease is how long a primary may go on without further contact to the voters. Another node is
// promoted only after that.
type Lease struct {
	Known  bool          // it was computed lately, for a server that ran as a primary
	Needed bool          // another node could be elected
	Proven bool          // this Monitor itself has reached a majority since it was started
	Left   time.Duration // 0 and less: it has run out
}

// self is the local node: among the voters, or as the last turn saw it where there are none.
func (v View) self() election.Peer {
	if v.Automatic {
		return v.Peer(int32(v.NodeID))
	}
	return election.Peer{ID: int32(v.NodeID), Answer: v.LocalAnswer, Tried: v.LookedAt, SeenAt: v.LocalSeenAt}
}

// Peer is a voter as of the last heartbeat.
func (v View) Peer(id int32) election.Peer { return voters.PeerOf(v.Peers, id) }

// Record is the row of the local node; the zero value: it is not registered, or that is not known.
func (v View) Record() registry.Record {
	r, _ := registry.ByID(v.Records, v.NodeID)
	return r
}

// Name is what a node is called.
func (v View) Name(id int32) string {
	if r, ok := registry.ByID(v.Records, registry.NodeID(id)); ok {
		return r.Name
	}
	return registry.NodeID(id).String()
}

// Decides reports whether elections decide who is the primary. Beside a daemon of repmgr 5 they do not.
func (v View) Decides() bool { return v.Automatic && !election.Foreign(v.Peers) }

// Paused reports whether failover is paused.
func (v View) Paused() bool { return election.Paused(v.Peers) }

// Scheduled is the switchover that the primary was asked for and has not begun. ok is false where there is none, or where that is
// not known.
func (v View) Scheduled() (h election.Handover, ok bool) {
	h = v.Peer(v.Rule.Primary).Handover
	return h, v.Rule.Known() && h.Requested(v.At, v.Rule)
}

// Runs is what the local server runs as; empty: it was not seen yet.
func (v View) Runs() election.Role {
	switch {
	case v.Automatic:
		return v.self().Running
	case v.Local.StartedAt.IsZero():
		return ""
	case v.Local.InRecovery:
		return election.Standby
	}
	return election.Primary
}

// Timeline is that of the local server; 0: not known.
func (v View) Timeline() wal.Timeline {
	if p := v.self(); p.Position.Timeline != 0 {
		return p.Position.Timeline
	}
	return v.Local.Timeline
}

// Lag is how far a position of the local standby, what it has received or replayed, is behind what the primary had
// written when it was last seen. known is false where either was never seen.
func (v View) Lag(at wal.LSN) (bytes int64, known bool) {
	if v.Upstream.SeenAt.IsZero() || at == 0 {
		return 0, false
	}
	return max(0, v.Upstream.LSN.Bytes(at)), true
}

// Streams reports whether the local standby receives WAL at this moment.
func (v View) Streams() bool {
	if v.Automatic {
		return v.self().Receiving
	}
	return v.Local.Receiver != nil && v.Local.Receiver.Status == "streaming"
}

// Synchronous reports whether each commit waits for the local standby, and whether commits wait for some of
// several standbys of which it is one.
func (v View) Synchronous() (each, some bool) { return v.WaitsFor(int32(v.NodeID)) }

// WaitsFor is the same for any node.
func (v View) WaitsFor(id int32) (each, some bool) {
	r := v.Rule
	in := r.Acks > 0 && slices.Contains(r.Sync, id)
	return in && r.Acks >= len(r.Sync), in && r.Acks < len(r.Sync)
}

// Reachable are the voters that answer.
func (v View) Reachable() []election.Peer { return voters.Answering(v.Peers) }

// Primaries are the nodes that answer and run as a primary.
func (v View) Primaries() (ids []int32) {
	for _, p := range v.Reachable() {
		if p.Running == election.Primary && p.Role != election.Witness {
			ids = append(ids, p.ID)
		}
	}
	return ids
}
