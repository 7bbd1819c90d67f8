package repmgr

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/registry"
)

func init() { reconcile.LeftoverGrace = 5 * time.Second }

// What only a Monitor does, for tests that see the package from outside.

// Announcer announces as a Monitor does.
type Announcer struct{ p registry.Announcer }

func NewAnnouncer(id NodeID) *Announcer { return &Announcer{registry.Announcer{Node: id}} }

func (a *Announcer) Announce(ctx context.Context, conninfo string, s Announcement) error {
	return a.p.Announce(ctx, func(ctx context.Context) (*registry.Server, error) { return registry.Connect(ctx, "", conninfo) }, s)
}

func (a *Announcer) Close() { a.p.Close() }

func Presences(ctx context.Context, conninfo string) (all map[NodeID]Announcement, err error) {
	return all, withNode(ctx, conninfo, func(n *registry.Server) error { all, err = registry.ReadAnnouncements(ctx, n); return err })
}

func FailoverPrivileges(ctx context.Context, conninfo string) error {
	return withNode(ctx, conninfo, func(n *registry.Server) error { return n.FailoverPrivileges(ctx) })
}

func WeakCommits(ctx context.Context, conninfo string) (all []string, err error) {
	return all, withNode(ctx, conninfo, func(n *registry.Server) error { all, err = n.WeakCommits(ctx); return err })
}

func CopyMetadata(ctx context.Context, c *Cluster, primary, witness string) error {
	return withNode(ctx, primary, func(p *registry.Server) error {
		return withNode(ctx, witness, func(w *registry.Server) error { return registry.CopyMetadata(ctx, p, w) })
	})
}

func withNode(ctx context.Context, conninfo string, f func(*registry.Server) error) error {
	n, err := registry.Connect(ctx, "", conninfo)
	if err != nil {
		return err
	}
	defer n.Close()
	return f(n)
}
