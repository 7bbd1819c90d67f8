package fence

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/registry"
)

// abilityInterval is the time between two tests of the ability to stop the server.
const abilityInterval = 10 * time.Second

// ability is the result of the last test whether this process can stop the server. What is
// missing is announced, because no other node may rely on a fence that does not come.
type ability struct {
	at    time.Time        // when it was tested; zero: not yet
	conn  *registry.Server // the connection over which it was tested
	lacks error            // nil: it can be stopped
}

// Prove tests, without stopping anything, whether this process could stop the server that n
// leads to: at the start, over each new connection, and at intervals. tried is false where no
// test is due, or where ctx or the connection ended before there was a result, because the server
// was stopped; err says what is missing.
func (g *Guard) Prove(ctx context.Context, n *registry.Server) (tried bool, err error) {
	g.mu.Lock()
	a, device := g.ability, g.device
	g.mu.Unlock()
	if a.lacks == nil && a.conn == n && device == nil && time.Since(a.at) < abilityInterval {
		return false, nil
	}
	err = g.tryFence(ctx, n)
	if ctx.Err() != nil || n.Conn.IsClosed() {
		return false, nil //nolint:nilerr // nothing was found out
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ability = ability{time.Now(), n, err}
	return true, err
}

// tryFence tests everything that a fence needs: the server that answers is the one of the data
// directory, its postmaster is a process of this machine (and of this container), and this
// process may send it signals.
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

// servesHere checks that the server that answers is the one of the data directory on this
// machine: a daemon on another machine, with the same path, must not stop its own server.
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

// Lacks is the reason why this process can not stop the server. nil: none is known.
func (g *Guard) Lacks() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ability.lacks
}

// CanFence is the ability as it is announced. nil: it was not tested yet.
func (g *Guard) CanFence() *bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ability.at.IsZero() {
		return nil
	}
	can := g.ability.lacks == nil
	return &can
}
