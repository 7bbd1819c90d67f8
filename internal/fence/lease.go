package fence

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/wait"
)

// leaseKeeper checks the lease of the local primary. It belongs to one goroutine.
type leaseKeeper struct {
	activeGuard
	begun  time.Time     // when the first look was waited for
	me     election.Peer // the local server as it was last looked at
	sleeps sleeps
	device device
	lease  health.Lease // as of the last check, without its Left
}

// run keeps the local server from being a second primary, whatever else the daemon is
// busy with:
//
//   - a primary that has had no contact to a majority for fence_timeout is stopped:
//     another one may have been elected (with quorum its commits hang already, and
//     clients that reach it had better go elsewhere);
//   - what a dead postmaster has left behind is killed: it can still commit.
//
// A stopped primary is started again as a standby without an upstream.
func (k *leaseKeeper) run(ctx context.Context) {
	defer k.tellWatchdog(nil, true)
	defer k.endMarking()
	defer k.device.disarm()
	var left *time.Duration
	for {
		s := k.settings.Load()
		if k.untilDue(ctx, s, left) != nil {
			return
		}
		k.checkSleep(ctx, s)
		at := readClocks(k.BootTime)
		left = k.look(ctx, s)
		k.tellWatchdog(left, false)
		k.setLease(s, left)
		k.showLease(s, at, k.shown(s, left))
		k.noteDevice(k.device.follow(s, left))
	}
}

// untilDue waits for the next heartbeat, or for the rest of the lease where that is shorter.
func (k *leaseKeeper) untilDue(ctx context.Context, s *Settings, left *time.Duration) error {
	if k.begun.IsZero() {
		k.begun = time.Now()
	}
	switch settled := k.lease.Known && (k.lease.Proven || !k.lease.Needed); {
	case left != nil && *left < s.heartbeatInterval():
		return wait.Pause(ctx, max(*left, s.heartbeatInterval()/8))
	case s.Automatic && !settled && time.Since(k.begun) < s.SilenceTimeout: // whoever asks for the primary waits for the first look
		return wait.Pause(ctx, s.heartbeatInterval()/8)
	}
	return k.waitHeartbeat(ctx)
}

// look makes one check and acts on it. It returns how long the lease lasts; nil: none is
// needed.
func (k *leaseKeeper) look(ctx context.Context, s *Settings) *time.Duration {
	me, before := k.self(s)
	k.me, k.lease = me, health.Lease{}
	if before.Known() {
		k.NoteBefore(before, false)
	}
	if !s.Automatic || me.Role == election.Witness || me.Role == "" {
		return nil
	}
	if !k.keepDown(ctx, s) {
		return nil
	}
	if me.Answer == election.Refused {
		k.tellWatchdog(nil, false)
		k.killLeftovers(ctx, s)
		k.startFenced(ctx, s)
		return nil
	}
	k.NotePrimary(me)
	if !k.IsPrimary() || k.isSuspended() {
		return nil
	}
	k.lease.Known = true
	left, needed := k.left(time.Now(), s, me)
	if k.lease.Needed = needed; !needed {
		return nil
	}
	if left <= 0 {
		k.tellWatchdog(nil, false) // the watchdog need not act, because this process does
		if k.Fence(ctx, fmt.Sprintf("no contact to a majority of the voters for fence_timeout (%s)", s.FenceTimeout)+rejecting(me)) {
			return nil
		}
		left = 0 // only the watchdog device can end the server now
	}
	return &left
}

// setLease stores how long the lease lasts, and wakes the daemon when the lease begins to run
// out or no longer does.
func (g *Guard) setLease(s *Settings, left *time.Duration) {
	runsOut := left != nil && s.runsOut(*left)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.runsOut != runsOut {
		g.wake()
	}
	g.lease, g.runsOut = left, runsOut
}

// shown is the lease as clients are to see it. Where commits wait for standbys an election does not wait for the lease, because
// the primary can acknowledge nothing any more; it begins after silence_timeout at the earliest.
func (k *leaseKeeper) shown(s *Settings, left *time.Duration) health.Lease {
	l := k.lease
	if left != nil {
		l.Left = *left
	}
	if k.me.Rule.Quorum {
		l.Left -= s.FenceTimeout - s.SilenceTimeout
	}
	return l
}

// showLease stores the lease as it was at a moment.
func (g *Guard) showLease(s *Settings, at reading, l health.Lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.checked, g.checkedAt, g.checkEvery = l, at, s.heartbeatInterval()
}

// LeaseNow is the lease at this moment, and how old what is known of the voters may be: longer than silence_timeout only
// while a smaller one is not in force everywhere. A lease that was not checked for so long is not known: the machine was
// suspended, say, or stopped from outside.
func (g *Guard) LeaseNow() (l health.Lease, fresh time.Duration) {
	now, s := readClocks(g.BootTime), g.settings.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	if s == nil {
		return health.Lease{}, 0
	}
	fresh = max(s.SilenceTimeout, 4*g.checkEvery)
	if g.checkedAt.at.IsZero() {
		return health.Lease{}, fresh
	}
	age := now.at.Sub(g.checkedAt.at) + sleptBetween(g.checkedAt, now, s.heartbeatInterval())
	if age > fresh {
		return health.Lease{}, fresh
	}
	l = g.checked
	l.Left -= age
	return l, fresh
}

// runsOut reports whether nothing renews the lease. A lease that is renewed still loses up to a
// quarter of silence_timeout between two probes of the voters.
func (s *Settings) runsOut(left time.Duration) bool {
	return s.FenceTimeout-left > s.SilenceTimeout/2
}

// rejecting says, for the reason of a fence, that the daemon could not log in to its own
// server.
func rejecting(me election.Peer) string {
	if me.Answer == election.Rejects {
		return "; its own server rejects the login of repmgrd"
	}
	return ""
}

// left is how long the local primary may go on without further contact: according to its own
// rule, and to the rule before it while an election could miss the newest.
func (k *leaseKeeper) left(now time.Time, s *Settings, me election.Peer) (left time.Duration, needed bool) {
	r := me.Rule
	peers := k.watch.Peers()
	if !r.Known() {
		return 0, false
	}
	if r.Primary != me.ID { // it is promoted, and the row of its rule is not written yet
		r.Primary = me.ID
		if me.WonElection {
			r.Term = max(r.Term, me.Term)
		}
	}
	for i, p := range peers {
		if p.Candidate == s.Candidate { // a pledge to our own candidate can elect no other node
			peers[i].Term = min(p.Term, r.Term)
		}
		peers[i].SeenAt, peers[i].Tried, peers[i].Replied = k.sleeps.adjusted(p.SeenAt), k.sleeps.adjusted(p.Tried), k.sleeps.adjusted(k.repliedAt(p.ID))
	}
	left, k.lease.Proven = s.FenceTimeout, true
	for _, rule := range []election.Rule{r, k.Before()} {
		if !rule.Known() || rule.PausePreventsElection(me.ID, peers) { // the voters that are not paused are too few to elect anybody
			continue
		}
		rule.Primary, rule.Term = r.Primary, r.Term
		start := election.LeaseStart(now, rule, me.ID, peers)
		if start.IsZero() {
			start, k.lease.Proven = k.sleeps.adjusted(k.seenPrimarySince()), false // nobody was reached yet: the election that promoted it was the contact
		}
		left, needed = min(left, s.FenceTimeout-now.Sub(start)), true
	}
	return left, needed
}
