package fence

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
)

// What a load balancer is told of the lease: less than it is with quorum, nothing after a sleep of the machine, and
// still something where a smaller silence_timeout was just put in force.
func TestLeaseNow(t *testing.T) {
	t.Parallel()
	g := New(nil, nil)
	slept := time.Duration(0)
	awake := g.BootTime
	g.BootTime = func() time.Duration { return awake() + slept }
	l, _ := g.LeaseNow()
	require.Equal(t, health.Lease{}, l, "before Use")

	s := &Settings{SilenceTimeout: 20 * time.Second, FenceTimeout: 30 * time.Second}
	g.Use(*s)
	l, fresh := g.LeaseNow()
	require.Equal(t, health.Lease{}, l, "before the first check")
	require.Equal(t, s.SilenceTimeout, fresh)

	k := leaseKeeper{activeGuard: activeGuard{Guard: g}, lease: health.Lease{Known: true, Needed: true, Proven: true}}
	left := 25 * time.Second
	g.showLease(s, readClocks(g.BootTime), k.shown(s, &left))
	l, _ = g.LeaseNow()
	require.InDelta(t, 25, l.Left.Seconds(), 5)
	require.True(t, l.Known && l.Needed && l.Proven)
	k.me.Rule = election.Rule{Term: 1, Quorum: true}
	g.showLease(s, readClocks(g.BootTime), k.shown(s, &left))
	l, _ = g.LeaseNow()
	require.InDelta(t, 15, l.Left.Seconds(), 5)

	g.Use(Settings{SilenceTimeout: time.Second, FenceTimeout: 2 * time.Second})
	slept += 5 * time.Second
	l, fresh = g.LeaseNow()
	require.True(t, l.Known)
	require.InDelta(t, 10, l.Left.Seconds(), 5)
	require.Equal(t, s.SilenceTimeout, fresh)
	slept += 16 * time.Second
	l, _ = g.LeaseNow()
	require.Equal(t, health.Lease{}, l, "after a sleep")
}
