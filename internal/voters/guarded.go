package voters

import (
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// Guarded is what the state file keeps about the primary's daemon. A process that starts while
// the primary can not be reached has no other evidence whether that daemon would stop its
// server.
type Guarded struct {
	ID        registry.NodeID `json:"node_id"`
	Monitored bool            `json:"monitored"`
	Automatic bool            `json:"automatic"`
	CanFence  bool            `json:"can_fence"`
	Paused    bool            `json:"paused"`
	PauseSeq  int64           `json:"pause_seq"`
	Until     time.Time       `json:"until"` // when the daemon that wrote it last watched the primary
}

const (
	guardedRenewal  = time.Minute     // the time between two writes of the same values
	guardedValidity = 5 * time.Minute // after that time without a daemon that watches, something may have changed unseen
)

func GuardedOf(p election.Peer) *Guarded {
	return &Guarded{registry.NodeID(p.ID), p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq, time.Now().Round(0)}
}

// Same reports whether now says the same, and is not so much newer that it must be written
// again.
func (g *Guarded) Same(now *Guarded) bool {
	if g == nil || now == nil {
		return g == now
	}
	was := *g
	was.Until = now.Until
	return was == *now && now.Until.Sub(g.Until) < guardedRenewal
}

// recall fills in what the state file says about the node, where that is recent.
func (g *Guarded) recall(p *election.Peer) {
	if g == nil || g.ID != registry.NodeID(p.ID) || time.Since(g.Until).Abs() > guardedValidity {
		return
	}
	p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq = g.Monitored, g.Automatic, g.CanFence, g.Paused, g.PauseSeq
}
