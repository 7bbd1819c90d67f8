package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	dialLimit  = time.Second           // how long a connection may take
	tellLimit  = 2 * time.Second       // how long a router may take for what it is told
	holdLimit  = 5 * time.Second       // how long transactions under way are waited for before a switchover
	retryAfter = time.Second           // after an attempt that failed
	lookEvery  = 25 * time.Millisecond // how often the memory of the Monitor is looked at
)

// A Router is something that clients reach the primary through. Its methods are not called at the same time.
type Router interface {
	fmt.Stringer
	// Point sends new clients to the primary of d, and those that are connected elsewhere as far as it can. It may be called again for
	// the same destination, and by several daemons.
	Point(ctx context.Context, d Destination) error
}

// A Leaver is a Router that can send clients away from a node that is certainly not the primary any more,
// where it is not known yet who is. It must leave every other node as it is.
type Leaver interface {
	Leave(ctx context.Context, former registry.Record) error
}

// A Holder is a Router that can hold clients back.
type Holder interface {
	// Hold holds new transactions back, and returns when those under way have ended, or with ctx. The next Point ends that.
	Hold(ctx context.Context) error
	// Release lets go on what Hold has held back, wherever that leads.
	Release(ctx context.Context) error
}

// renewer is a Router that forgets what it was told, unless it is told again in time.
type renewer interface {
	renewAfter() time.Duration
}

// partial is the error of a Router that has done what it was told, but for something.
type partial struct{ error }

func (p partial) Unwrap() error { return p.error }

// Routers are those of one daemon.
type Routers struct {
	all []*keeper
	log *slog.Logger
}

// New makes Routers of some. [FromConfig] makes those of a configuration.
func New(log *slog.Logger, all ...Router) *Routers {
	r := &Routers{log: log}
	for _, one := range all {
		r.all = append(r.all, &keeper{Router: one, troubles: trouble.Log{Logger: log, Hint: repmgr.Hint}})
	}
	return r
}

// Run tells all routers what look says, until ctx ends.
func (r *Routers) Run(ctx context.Context, look func() health.View) {
	var wg sync.WaitGroup
	for _, k := range r.all {
		wg.Go(func() {
			for wait.Pause(ctx, lookEvery) == nil {
				k.tell(ctx, k.destination(look()))
			}
			k.end(context.WithoutCancel(ctx), look)
		})
	}
	wg.Wait()
}

// State is whether each router took what it was told last. It waits for none of them.
func (r *Routers) State() (all []health.Router) {
	for _, k := range r.all {
		one := health.Router{Name: k.String()}
		one.Kind, one.Destination = place(k.Router)
		if told := k.toldAt.Load(); told != nil {
			one.Told = *told
		}
		if failed := k.failed.Load(); failed != nil {
			one.Failed = (*failed).Error()
		}
		all = append(all, one)
	}
	return all
}

// Failing is for [repmgr.Config.RoutersFailing].
func (r *Routers) Failing() map[string]string {
	all := map[string]string{}
	for _, one := range r.State() {
		if one.Failed != "" {
			all[one.Name] = one.Failed
		}
	}
	return all
}

func place(r Router) (kind, destination string) {
	switch r := r.(type) {
	case *HAProxy:
		return "haproxy", r.Address
	case *PgBouncer:
		return "pgbouncer", settings.PgBouncer{Conninfo: r.Console}.At()
	case *VIP:
		return "vip", r.Address.String()
	}
	return "other", r.String()
}

// HoldClients is for [repmgr.Config.HoldClients]: it holds clients back for a switchover, and waits for at most 5
// seconds for their transactions. Those that take longer are cut by the shutdown of the primary. nil: no router can do that.
func (r *Routers) HoldClients() func(ctx context.Context) (release func(), err error) {
	var able []*keeper
	for _, k := range r.all {
		if _, ok := k.Router.(Holder); ok {
			able = append(able, k)
		}
	}
	if len(able) == 0 {
		return nil
	}
	return func(ctx context.Context) (release func(), err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, holdLimit, fmt.Errorf("transactions are still under way after %s", holdLimit))
		defer cancel()
		var wg sync.WaitGroup
		failed := make([]error, len(able))
		for i, k := range able {
			wg.Go(func() { failed[i] = k.hold(ctx) })
		}
		wg.Wait()
		return func() {
			for _, k := range able {
				k.release()
			}
		}, errors.Join(failed...)
	}
}

// keeper is one router, and what it was told.
type keeper struct {
	Router
	standby bool // of the goroutine of Run: the local server was last seen as a standby, and has run since

	mu       sync.Mutex // held while the router is told something
	troubles trouble.Log
	told     Destination // the last one
	current  bool        // told is in force, as far as this daemon knows
	here     bool        // clients may come to this node because of us
	held     bool        // Hold was called, and Point not since
	retryAt  time.Time
	renewAt  time.Time

	// What does not wait for a router that is told something just now.
	handing atomic.Bool           // a switchover is under way: this node is the primary, and will soon not be
	failed  atomic.Pointer[error] // of the last attempt; nil: it was successful, or there was none
	toldAt  atomic.Pointer[time.Time]
}

// destination is where the clients belong by what a Monitor knows. Where no election decides, this node is the primary only
// if it was promoted while this daemon watched it.
func (k *keeper) destination(v health.View) Destination {
	switch v.LocalAnswer { //nolint:exhaustive // what is not known changes nothing
	case election.Refused, election.NotAccepting:
		k.standby = false
	case election.Answers:
		k.standby = k.standby || v.Local.InRecovery
	}
	d := destination(v)
	if d.Here && !d.Decided && !k.standby {
		d.Primary, d.Here = registry.Record{}, false
	}
	return d
}

// tell tells the router of a destination where that is due.
func (k *keeper) tell(ctx context.Context, d Destination) {
	k.mu.Lock()
	defer k.mu.Unlock()
	begun := time.Now()
	switch {
	case d.Primary.ID == 0:
		k.outOfSight(ctx, d, begun)
		return
	case !d.Decided && k.told.Primary.ID == 0: // it was so before this daemon was started
		k.told, k.current = d, true
		return
	case !k.due(d, begun):
		return
	}
	news := d.Primary.ID != k.told.Primary.ID || !k.current
	k.here = k.here || d.Here // also where the attempt fails half-way
	err := k.limited(ctx, func(ctx context.Context) error { return k.Point(ctx, d) })
	if !k.done(ctx, err) {
		return
	}
	if news {
		k.troubles.Logger.Log(ctx, repmgr.LevelNotice, "a router was told where the primary is", "router", k.String(), "primary", d.Primary.Name, "within", time.Since(begun).Round(time.Millisecond))
	}
	k.told, k.current, k.here, k.held = d, true, d.Here, false
	if r, ok := k.Router.(renewer); ok {
		k.renewAt = begun.Add(r.renewAfter())
	}
}

// outOfSight is tell where no primary is known: clients of this node are sent away when that is certainly none. Others stay: whether their
// node serves them is not known here. When a primary is seen again the router is told again.
func (k *keeper) outOfSight(ctx context.Context, d Destination, now time.Time) {
	if d.Decided && !k.handing.Load() {
		k.current = false
	}
	if !d.Gone || !k.here || now.Before(k.retryAt) {
		return
	}
	if l, ok := k.Router.(Leaver); ok {
		if !k.done(ctx, k.limited(ctx, func(ctx context.Context) error { return l.Leave(ctx, d.Self) })) {
			return
		}
		k.troubles.Logger.Log(ctx, repmgr.LevelNotice, "a router was told that this node is not the primary", "router", k.String(), "within", time.Since(now).Round(time.Millisecond))
	}
	k.here, k.current = false, false
}

// due reports whether the router is to be told of a primary now.
func (k *keeper) due(d Destination, now time.Time) bool {
	same := k.current && k.told.same(d)
	switch {
	case now.Before(k.retryAt), same && k.handing.Load():
		return false
	case !same, k.held:
		return true
	}
	_, renews := k.Router.(renewer)
	return renews && d.Here && !now.Before(k.renewAt)
}

// done reports whether an attempt was successful, and says so where that is news.
func (k *keeper) done(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	k.troubles.Report(k.String(), err)
	k.failed.Store(nil)
	if err != nil {
		k.failed.Store(&err)
	}
	if _, ok := errors.AsType[partial](err); err == nil || ok {
		now := time.Now()
		k.retryAt = time.Time{}
		k.toldAt.Store(&now)
		return true
	}
	after := retryAfter
	if r, ok := k.Router.(renewer); ok {
		after = r.renewAfter()
	}
	k.retryAt = time.Now().Add(after)
	return false
}

// limited runs what a router is told, with the deadline for that.
func (k *keeper) limited(ctx context.Context, do func(context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, tellLimit, fmt.Errorf("no answer within %s", tellLimit))
	defer cancel()
	err := do(limited)
	if err != nil && limited.Err() != nil {
		return context.Cause(limited)
	}
	return err
}

// end is called once, when nobody calls tell any more: clients are not left waiting, and not left with a server that is down.
func (k *keeper) end(ctx context.Context, look func() health.View) {
	k.release()
	k.tell(ctx, k.destination(look()))
	k.mu.Lock()
	defer k.mu.Unlock()
	if h, ok := k.Router.(Holder); ok && k.held {
		k.done(ctx, k.limited(ctx, h.Release))
	}
}

// hold holds clients back. A router that did not take what it was told last is not waited for.
func (k *keeper) hold(ctx context.Context) error {
	if failed := k.failed.Load(); failed != nil {
		return fmt.Errorf("%s: %w", k, *failed)
	}
	for !k.mu.TryLock() { // it may be told something over a disk that hangs
		if wait.Pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("%s: it is told something else, which has not ended", k)
		}
	}
	defer k.mu.Unlock()
	k.held = true
	k.handing.Store(true)
	err := k.Router.(Holder).Hold(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", k, err)
	}
	return err
}

func (k *keeper) release() { k.handing.Store(false) }
