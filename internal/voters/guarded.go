package voters

import (
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// Guarded is what is kept of the primary's daemon: who starts during a cut has
// nothing else to judge by whether that will stop its server.
type Guarded struct {
	ID        registry.NodeID `json:"node_id"`
	Monitored bool            `json:"monitored"`
	Automatic bool            `json:"automatic"`
	CanFence  bool            `json:"can_fence"`
	Paused    bool            `json:"paused"`
	PauseSeq  int64           `json:"pause_seq"`
	Until     time.Time       `json:"until"` // when the Monitor that wrote it still watched
}

const (
	guardedRenewal  = time.Minute     // between two notes of the same
	guardedValidity = 5 * time.Minute // without a Monitor that watches: later something may have changed unseen
)

func GuardedOf(p election.Peer) *Guarded {
	return &Guarded{registry.NodeID(p.ID), p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq, time.Now().Round(0)}
}

// Same reports whether there is nothing new, and it needs no renewal.
func (g *Guarded) Same(now *Guarded) bool {
	if g == nil || now == nil {
		return g == now
	}
	was := *g
	was.Until = now.Until
	return was == *now && now.Until.Sub(g.Until) < guardedRenewal
}

// recall fills in what was kept of the node, where that is fresh.
func (g *Guarded) recall(p *election.Peer) {
	if g == nil || g.ID != registry.NodeID(p.ID) || time.Since(g.Until).Abs() > guardedValidity {
		return
	}
	p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq = g.Monitored, g.Automatic, g.CanFence, g.Paused, g.PauseSeq
}
