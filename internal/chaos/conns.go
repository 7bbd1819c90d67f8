package chaos

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
)

// conns are the harness's connections to the nodes that stay open while it polls them: a new
// one for each poll would cost a small machine more than the clusters do.
type conns struct {
	mu   sync.Mutex
	open map[*node]*pgx.Conn // those not in use
}

type connsKey struct{}

// keepConns makes [node.with] use a connection again for as long as the context that it returns
// is used. end closes them, so that none is open while a fault is made.
func keepConns(ctx context.Context) (_ context.Context, end func()) {
	k := &conns{open: map[*node]*pgx.Conn{}}
	return context.WithValue(ctx, connsKey{}, k), func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for n, c := range k.open {
			drop(c.PgConn())
			delete(k.open, n)
		}
	}
}

// connsOf are the connections that are kept with ctx; nil: none are.
func connsOf(ctx context.Context) *conns {
	k, _ := ctx.Value(connsKey{}).(*conns)
	return k
}

// take returns a connection to n that is not in use; nil: there is none.
func (k *conns) take(n *node) *pgx.Conn {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.open[n]
	delete(k.open, n)
	return c
}

// put keeps a connection that works. It reports whether it did.
func (k *conns) put(n *node, c *pgx.Conn) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open[n] != nil {
		return false
	}
	k.open[n] = c
	return true
}
