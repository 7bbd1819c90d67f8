package router

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/internal/wait"
)

const (
	tellLimit  = 2 * time.Second       // how long a router may take for what it is told
	holdLimit  = 5 * time.Second       // how long queries under way are waited for before a switchover
	retryAfter = time.Second           // after an attempt that failed
	lookEvery  = 25 * time.Millisecond // how often the memory of the Monitor is looked at
)

// A Router is something that clients reach the primary through. Its methods are not called at the same time.
type Router interface {
	fmt.Stringer
	// Point sends clients to the primary, and cuts those that are connected elsewhere. It may be called again for the same
	// destination. Without a primary it is called where the node of this daemon was it last: its clients are sent away.
	Point(ctx context.Context, d Destination) error
}

// A Holder is a Router that can hold clients back.
type Holder interface {
	// Hold holds new queries back, and returns when those under way have ended, or with ctx. The next Point ends that.
	Hold(ctx context.Context) error
}

// renewer is a Router that forgets what it was told, unless it is told again in time.
type renewer interface {
	renewAfter(d Destination) time.Duration
}

// Routers are those of one daemon.
type Routers struct {
	all []*keeper
	log *slog.Logger
}

// New makes Routers of some. [FromConfig] makes those of a configuration.
func New(log *slog.Logger, all ...Router) *Routers {
	r := &Routers{log: log}
	for _, one := range all {
		r.all = append(r.all, &keeper{Router: one})
	}
	return r
}

// Run tells all routers what look says, until ctx ends.
func (r *Routers) Run(ctx context.Context, look func() health.View) {
	var wg sync.WaitGroup
	for _, k := range r.all {
		wg.Go(func() { k.run(ctx, look, trouble.Log{Logger: r.log, Hint: repmgr.Hint}) })
	}
	wg.Wait()
}

// HoldClients is for [repmgr.Config.HoldClients]: it holds clients back for a switchover, and waits for at most 5
// seconds for their transactions. Those that take longer are cut by the shutdown of the primary. nil: no router can do that.
func (r *Routers) HoldClients() func(ctx context.Context) (release func()) {
	var able []*keeper
	for _, k := range r.all {
		if _, ok := k.Router.(Holder); ok {
			able = append(able, k)
		}
	}
	if len(able) == 0 {
		return nil
	}
	return func(ctx context.Context) (release func()) {
		ctx, cancel := context.WithTimeoutCause(ctx, holdLimit, fmt.Errorf("transactions are still under way after %s", holdLimit))
		defer cancel()
		var wg sync.WaitGroup
		for _, k := range able {
			wg.Go(func() {
				if err := k.hold(ctx); err != nil {
					r.log.Warn("the switchover goes on although clients are not all held back", "router", k.String(), "err", err)
				}
			})
		}
		wg.Wait()
		return func() {
			for _, k := range able {
				k.release()
			}
		}
	}
}

// keeper is one router, and what it was told.
type keeper struct {
	Router

	mu      sync.Mutex // held while the router is told something
	told    Destination
	known   bool // told was told, and holds
	held    bool // Hold was called, and Point not since
	handing bool // a switchover is under way: this node is the primary, and will soon not be
	next    time.Time
}

func (k *keeper) run(ctx context.Context, look func() health.View, troubles trouble.Log) {
	for wait.Pause(ctx, lookEvery) == nil {
		k.tell(ctx, destination(look()), &troubles)
	}
	k.release()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held { // whoever ends must not leave the clients waiting
		_ = k.point(context.WithoutCancel(ctx), k.told)
	}
}

// tell points the router to a destination where that is due.
func (k *keeper) tell(ctx context.Context, d Destination, troubles *trouble.Log) {
	k.mu.Lock()
	defer k.mu.Unlock()
	begun := time.Now()
	if !k.due(d, begun) {
		return
	}
	news := !k.known || d.Primary.ID != k.told.Primary.ID
	err := k.point(ctx, d)
	if ctx.Err() != nil {
		return
	}
	if troubles.Report(k.String(), err); err != nil {
		k.next = time.Now().Add(retryAfter)
		return
	}
	if news {
		troubles.Logger.Log(ctx, repmgr.LevelNotice, "a router was told where the primary is", "router", k.String(), "primary", d.name(), "within", time.Since(begun).Round(time.Millisecond))
	}
	k.told, k.known, k.next = d, true, time.Time{}
	if r, ok := k.Router.(renewer); ok && d.Here {
		k.next = begun.Add(r.renewAfter(d))
	}
}

// due reports whether the router is to be told of a destination now.
func (k *keeper) due(d Destination, now time.Time) bool {
	_, renews := k.Router.(renewer)
	same := k.known && k.told.same(d)
	switch {
	case k.handing && same:
		return false
	case d.Primary.ID == 0 && !k.told.Here: // clients of another node stay: whether it serves them is not known here
		return false
	case !same || k.held:
		return !now.Before(k.next)
	}
	return renews && d.Here && !now.Before(k.next)
}

func (k *keeper) point(ctx context.Context, d Destination) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tellLimit, fmt.Errorf("no answer within %s", tellLimit))
	defer cancel()
	err := k.Point(ctx, d)
	switch {
	case err == nil:
		k.held = k.held && d.Primary.ID == 0
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return err
}

func (k *keeper) hold(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held, k.handing = true, true
	err := k.Router.(Holder).Hold(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

func (k *keeper) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.handing = false
}
