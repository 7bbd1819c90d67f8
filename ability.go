package repmgr

import (
	"context"
	"fmt"
	"time"

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
