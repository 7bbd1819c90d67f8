package repmgr

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// abilityEvery is the time between two proofs that this Monitor can stop its server.
const abilityEvery = 10 * time.Second

// ability is what a Monitor has found out about its power to stop its server. What
// it lacks is announced, because nobody may count on a fence that does not come.
// It is owned by the goroutine of Run.
type ability struct {
	at    time.Time        // of the proof; zero: none was tried yet
	conn  *registry.Server // over which it was made
	lacks error            // nil: it can
	told  bool             // that it can not
}

// proveFence tries whether this Monitor could stop the local server, without doing
// it: at the start, after each new connection, and at intervals.
func (m *Monitor) proveFence(ctx context.Context) {
	a := &m.ability
	if m.cluster.cfg.NodeID == 0 || m.local == nil || m.dataDirectory() == "" && m.cluster.cfg.DataDirectory == "" {
		return
	}
	if a.lacks == nil && a.conn == m.local.Server && m.deviceTrouble() == nil && time.Since(a.at) < abilityEvery {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	err := m.tryFence(ctx)
	if ctx.Err() != nil {
		return // nothing was found out
	}
	a.at, a.conn, a.lacks = time.Now(), m.local.Server, err
	if m.cluster.cfg.Failover != FailoverAutomatic || m.self.Role == RoleWitness {
		return // nobody counts on it
	}
	m.report("fencing", err)
	if was := a.told; was != (err != nil) {
		a.told = err != nil
		e := Event{Type: EventFenceAbility, Success: err == nil, Details: "this daemon can stop its server"}
		if err != nil {
			e.Details = fmt.Sprintf("this daemon can not stop its server: %v", err)
		}
		m.tell(e)
	}
}

// tryFence is all that a fence needs: the server that answers is the one of the data
// directory, its postmaster is a process of this machine (and of this container),
// and this process may signal it.
func (m *Monitor) tryFence(ctx context.Context) error {
	srv, err := m.cluster.localServer(m.dataDirectory())
	if err == nil {
		err = srv.MayStop()
	}
	if here := m.servesHere(ctx, srv); err == nil {
		err = here
	}
	if err == nil {
		err = m.mayArm()
	}
	if err != nil {
		return err
	}
	m.shared.mu.Lock()
	m.shared.srv = srv
	m.shared.mu.Unlock()
	return nil
}

// canFence is what is announced of it. nil: it was not tried yet.
func (a *ability) canFence() *bool {
	if a.at.IsZero() {
		return nil
	}
	can := a.lacks == nil
	return &can
}

// guarded is what is kept of the primary's daemon: who starts during a cut has
// nothing else to judge by whether that will stop its server.
type guarded struct {
	ID        NodeID    `json:"node_id"`
	Monitored bool      `json:"monitored"`
	Automatic bool      `json:"automatic"`
	CanFence  bool      `json:"can_fence"`
	Paused    bool      `json:"paused"`
	PauseSeq  int64     `json:"pause_seq"`
	Until     time.Time `json:"until"` // when the Monitor that wrote it still watched
}

const (
	guardedEvery = time.Minute     // between two notes of the same
	guardedLasts = 5 * time.Minute // without a Monitor that watches: later something may have changed unseen
)

func guardedOf(p election.Peer) *guarded {
	return &guarded{NodeID(p.ID), p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq, time.Now().Round(0)}
}

// same reports whether there is nothing new, and it needs no renewal.
func (g *guarded) same(now *guarded) bool {
	if g == nil || now == nil {
		return g == now
	}
	was := *g
	was.Until = now.Until
	return was == *now && now.Until.Sub(g.Until) < guardedEvery
}

// recall fills in what was kept of the node, where that is fresh.
func (g *guarded) recall(p *election.Peer) {
	if g == nil || g.ID != NodeID(p.ID) || time.Since(g.Until).Abs() > guardedLasts {
		return
	}
	p.Monitored, p.Automatic, p.CanFence, p.Paused, p.PauseSeq = g.Monitored, g.Automatic, g.CanFence, g.Paused, g.PauseSeq
}
