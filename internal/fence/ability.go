package fence

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/registry"
)

// abilityInterval is the time between two proofs that the server can be stopped.
const abilityInterval = 10 * time.Second

// ability is what was found out about the power to stop the server. What is lacking is
// announced, because nobody may count on a fence that does not come.
type ability struct {
	at    time.Time        // of the proof; zero: none was tried yet
	conn  *registry.Server // over which it was made
	lacks error            // nil: it can be stopped
}

// Prove tries whether this process could stop the server that n leads to, without doing it:
// at the start, over each new connection, and at intervals. tried is false where that is
// not due, or where ctx ended before anything was found out; err says what is lacking.
func (g *Guard) Prove(ctx context.Context, n *registry.Server) (tried bool, err error) {
	g.mu.Lock()
	a, device := g.ability, g.device
	g.mu.Unlock()
	if a.lacks == nil && a.conn == n && device == nil && time.Since(a.at) < abilityInterval {
		return false, nil
	}
	err = g.tryFence(ctx, n)
	if ctx.Err() != nil {
		return false, nil //nolint:nilerr // nothing was found out
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ability = ability{time.Now(), n, err}
	return true, err
}

// tryFence tries all that a fence needs: the server that answers is the one of the data
// directory, its postmaster is a process of this machine (and of this container),
// and this process may signal it.
func (g *Guard) tryFence(ctx context.Context, n *registry.Server) error {
	srv, err := g.settings.Load().Find(g.DataDirectory())
	if err == nil {
		err = srv.MayStop()
	}
	if here := g.servesHere(ctx, srv, n); err == nil {
		err = here
	}
	if err == nil {
		err = g.mayArm()
	}
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.srv = srv
	g.mu.Unlock()
	return nil
}

// servesHere asks whether the server that answers is the one of the data directory
// on this machine: a daemon elsewhere, with the same path, must not stop its own.
func (g *Guard) servesHere(ctx context.Context, srv *postmaster.Server, n *registry.Server) error {
	if srv == nil {
		return nil
	}
	here, err := srv.IsAt(ctx, &n.Server)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.elsewhere = !here
	g.mu.Unlock()
	if !here {
		return failure.WithHint(failure.Of(failure.ErrRefused, "the server that conninfo leads to does not run in %s on this machine", srv.Dir),
			"Run repmgrd on the machine of its server, as the operating system user that runs it, and set data_directory to the server's own.")
	}
	return nil
}

// Lacks is what keeps this process from stopping the server; nil: nothing that is known.
func (g *Guard) Lacks() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ability.lacks
}

// CanFence is what is announced of it. nil: it was not tried yet.
func (g *Guard) CanFence() *bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ability.at.IsZero() {
		return nil
	}
	can := g.ability.lacks == nil
	return &can
}
