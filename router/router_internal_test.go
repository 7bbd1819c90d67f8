package router

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

// recorder is a Router that writes down what it is told.
type recorder struct {
	told []string
	fail error
}

func (r *recorder) String() string { return "recorder" }

func (r *recorder) say(what string) error {
	if r.fail == nil {
		r.told = append(r.told, what)
	}
	return r.fail
}

func (r *recorder) Point(_ context.Context, d Destination) error { return r.say(d.Primary.Name) }

func (r *recorder) Leave(_ context.Context, former registry.Record) error {
	return r.say("leave " + former.Name)
}

func (r *recorder) Hold(context.Context) error    { return r.say("hold") }
func (r *recorder) Release(context.Context) error { return r.say("release") }

// lasting is one that has to be told again and again.
type lasting struct{ recorder }

func (*lasting) renewAfter() time.Duration { return time.Hour }

var (
	node1   = registry.Record{ID: 1, Name: "node1", Conninfo: "host=a port=5433 dbname=x"}
	node2   = registry.Record{ID: 2, Name: "node2", Conninfo: "host=b dbname=x"}
	unknown = Destination{Self: node1, Decided: true, Others: []registry.Record{node1, node2}}
	gone    = Destination{Self: node1, Decided: true, Others: []registry.Record{node1, node2}, Gone: true}
	toOne   = Destination{Self: node2, Decided: true, Primary: node1, Others: []registry.Record{node2}, Gone: true}
	toTwo   = Destination{Self: node1, Decided: true, Primary: node2, Others: []registry.Record{node1}, Gone: true}
	here    = Destination{Self: node1, Decided: true, Primary: node1, Others: []registry.Record{node2}, Here: true}
)

func byHand(d Destination) Destination {
	d.Decided = false
	return d
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// What a router is told, and what it is not told again.
func TestKeeper(t *testing.T) {
	t.Parallel()
	moved := toTwo
	moved.Primary.Conninfo = "host=c dbname=x"
	for name, c := range map[string]struct {
		seen []Destination
		want []string
	}{
		"once":                             {[]Destination{toOne, toOne, toOne}, []string{"node1"}},
		"nothing is known":                 {[]Destination{unknown, gone, unknown}, nil},
		"another primary":                  {[]Destination{toOne, toTwo, toTwo}, []string{"node1", "node2"}},
		"out of sight, and again":          {[]Destination{toTwo, unknown, unknown, toTwo, toTwo}, []string{"node2", "node2"}},
		"out of sight, and another":        {[]Destination{toOne, unknown, toTwo}, []string{"node1", "node2"}},
		"another node is lost":             {[]Destination{toTwo, gone, gone}, []string{"node2"}},
		"this node, nothing is known":      {[]Destination{here, unknown, unknown}, []string{"node1"}},
		"this node no more":                {[]Destination{here, gone, gone}, []string{"node1", "leave node1"}},
		"this node, and again":             {[]Destination{here, gone, here}, []string{"node1", "leave node1", "node1"}},
		"this node, then another":          {[]Destination{here, gone, toTwo}, []string{"node1", "leave node1", "node2"}},
		"this node, then another at once":  {[]Destination{here, toTwo, gone}, []string{"node1", "node2"}},
		"another address":                  {[]Destination{toTwo, moved}, []string{"node2", "node2"}},
		"by hand, as before the start":     {[]Destination{byHand(here), byHand(unknown), byHand(here)}, nil},
		"by hand, a standby that follows":  {[]Destination{byHand(toOne), byHand(unknown), byHand(toOne), byHand(toTwo)}, []string{"node2"}},
		"by hand, promoted":                {[]Destination{byHand(toTwo), byHand(here), byHand(here)}, []string{"node1"}},
		"by hand, promoted, then it ended": {[]Destination{byHand(toTwo), byHand(here), byHand(gone), byHand(gone)}, []string{"node1", "leave node1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			k := New(quiet(), r).all[0]
			for _, d := range c.seen {
				k.tell(t.Context(), d)
			}
			require.Equal(t, c.want, r.told)
		})
	}
}

// A router that does not answer is tried again, for where the primary is then.
func TestKeeper_TriesAgain(t *testing.T) {
	t.Parallel()
	r := &recorder{fail: errors.New("no answer")}
	k := New(quiet(), r).all[0]
	k.tell(t.Context(), here)
	require.True(t, k.troubles.Has("recorder"))
	all := &Routers{all: []*keeper{k}}
	require.Equal(t, []health.Router{{Kind: "other", Destination: "recorder", Name: "recorder", Failed: "no answer"}}, all.State())
	require.Equal(t, map[string]string{"recorder": "no answer"}, all.Failing())
	r.fail = nil
	k.tell(t.Context(), toTwo)
	require.Empty(t, r.told, "it is not asked again at once")
	k.retryAt = time.Time{}
	k.tell(t.Context(), gone)
	require.Equal(t, []string{"leave node1"}, r.told, "it may have been done")
	k.tell(t.Context(), toTwo)
	require.Equal(t, []string{"leave node1", "node2"}, r.told)
	require.False(t, k.troubles.Has("recorder"))
	require.Empty(t, all.Failing())
	require.WithinDuration(t, time.Now(), all.State()[0].Told, time.Minute)

	r.fail = partial{errors.New("but for something")}
	k.tell(t.Context(), here)
	require.True(t, k.troubles.Has("recorder"))
	require.True(t, k.current, "the rest is done")
	require.NotEmpty(t, all.Failing())
	require.Zero(t, k.retryAt)
}

func TestRouters_State(t *testing.T) {
	t.Parallel()
	all := New(quiet(), &HAProxy{Address: "/a"}, &PgBouncer{Console: "host=h port=6432 password=x"}, &VIP{Address: netip.MustParsePrefix("192.0.2.10/24"), Interface: "eth0"})
	require.Equal(t, []health.Router{
		{Kind: "haproxy", Destination: "/a", Name: "HAProxy at /a"},
		{Kind: "pgbouncer", Destination: "h:6432", Name: "PgBouncer at h:6432"},
		{Kind: "vip", Destination: "192.0.2.10/24", Name: "address 192.0.2.10/24 on eth0"},
	}, all.State())
	require.Empty(t, all.Failing(), "nothing was told yet")
}

// What has to be told again and again does not wait for that where there is something else to tell.
func TestKeeper_Renews(t *testing.T) {
	t.Parallel()
	r := &lasting{}
	k := New(quiet(), r).all[0]
	k.tell(t.Context(), here)
	k.tell(t.Context(), here)
	require.Equal(t, []string{"node1"}, r.told)
	k.renewAt = time.Time{}
	k.tell(t.Context(), here)
	k.tell(t.Context(), gone)
	k.tell(t.Context(), here)
	require.Equal(t, []string{"node1", "node1", "leave node1", "node1"}, r.told)
}

// Clients that are held back go on where the primary is afterwards, also where that is the same.
func TestKeeper_Hold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		during, after Destination
		want          []string
	}{
		"handed over":              {toTwo, toTwo, []string{"node1", "hold", "node2"}},
		"nothing came of it":       {here, here, []string{"node1", "hold", "node1"}},
		"restarted in place":       {gone, here, []string{"node1", "hold", "leave node1", "node1"}},
		"without a primary so far": {gone, toTwo, []string{"node1", "hold", "leave node1", "node2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			all := New(quiet(), r)
			k := all.all[0]
			k.tell(t.Context(), here)
			release, err := all.HoldClients()(t.Context())
			require.NoError(t, err)
			k.tell(t.Context(), here) // the server is not stopped yet
			k.tell(t.Context(), c.during)
			release()
			k.tell(t.Context(), c.after)
			k.tell(t.Context(), c.after)
			require.Equal(t, c.want, r.told)
		})
	}
	require.Nil(t, New(quiet(), &HAProxy{}).HoldClients())
	r := &recorder{fail: errors.New("no answer")}
	_, err := New(quiet(), r).HoldClients()(t.Context())
	require.EqualError(t, err, "recorder: no answer")
}

// A switchover does not wait without end for a router that is told something over a disk that hangs.
func TestKeeper_HoldHasAnEnd(t *testing.T) {
	t.Parallel()
	all := New(quiet(), &recorder{})
	all.all[0].mu.Lock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := all.HoldClients()(ctx)
	require.EqualError(t, err, "recorder: it is told something else, which has not ended")
}

// hanging is a Router that answers when the test lets it.
type hanging struct{ asked, answer chan struct{} }

func (*hanging) String() string { return "hanging" }

func (h *hanging) Point(context.Context, Destination) error {
	select {
	case h.asked <- struct{}{}:
	case <-h.answer: // closed: the test has ended
	}
	<-h.answer
	return errors.New("no answer")
}
func (h *hanging) Hold(ctx context.Context) error    { return h.Point(ctx, Destination{}) }
func (h *hanging) Release(ctx context.Context) error { return h.Point(ctx, Destination{}) }

// A router that hangs holds up no other one, and no switchover once that is known.
func TestRouters_OneHangs(t *testing.T) {
	t.Parallel()
	h, r := &hanging{make(chan struct{}), make(chan struct{})}, &recorder{}
	all := New(quiet(), h, r)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { all.Run(ctx, func() health.View { return viewOf(2) }) })
	<-h.asked
	pgtest.WaitFor(t, "the other router is told", func(context.Context) error {
		k := all.all[1]
		k.mu.Lock()
		defer k.mu.Unlock()
		if !k.current {
			return errors.New("it is not")
		}
		return nil
	})
	h.answer <- struct{}{}
	<-h.asked // it is told a second time, and the first one has failed
	release, err := all.HoldClients()(t.Context())
	require.EqualError(t, err, "hanging: no answer")
	release()
	require.False(t, all.all[0].mu.TryLock(), "it hangs all the while")
	cancel()
	close(h.answer)
	running.Wait()
	require.Equal(t, []string{"node2", "hold", "node2"}, r.told)
}

// A daemon that ends leaves no client waiting, and none with a server that is down.
func TestRouters_End(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before []Destination
		v      health.View
		want   []string
	}{
		"nothing is known":         {[]Destination{here}, health.View{}, []string{"node1", "hold", "release"}},
		"after the server's end":   {[]Destination{here, gone}, health.View{}, []string{"node1", "leave node1", "hold", "release"}},
		"there is another primary": {[]Destination{here}, viewOf(2), []string{"node1", "hold", "node2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			all := New(quiet(), r)
			for _, d := range c.before {
				all.all[0].tell(t.Context(), d)
			}
			_, err := all.HoldClients()(t.Context())
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			all.Run(ctx, func() health.View { return c.v })
			require.Equal(t, c.want, r.told)
		})
	}
}

// viewOf is the view of node1 in a cluster whose primary is another one, or itself.
func viewOf(primary int32) health.View {
	rule := election.Rule{Term: 1, Primary: primary, Voters: []int32{1, 2}}
	v := health.View{Records: []registry.Record{node1, node2}, NodeID: 1, At: time.Now(), LookedAt: time.Now(), Interval: time.Second, Automatic: true, Silence: 2 * time.Second, Rule: rule, LocalAnswer: election.Answers}
	for id := int32(1); id <= 2; id++ {
		runs := election.Standby
		if id == primary {
			runs = election.Primary
		}
		v.Peers = append(v.Peers, election.Peer{ID: id, Answer: election.Answers, SeenAt: v.At, Running: runs, Rule: rule})
	}
	return v
}

func TestDestination(t *testing.T) {
	t.Parallel()
	require.Equal(t, toTwo, with(destination(viewOf(2)), func(d *Destination) { d.Until = time.Time{} }))

	v := viewOf(1)
	require.False(t, destination(v).Here, "the lease is not known")
	require.False(t, destination(v).Gone, "that is no proof")
	v.Lease = health.Lease{Known: true, Needed: true, Proven: true, Left: 1500 * time.Millisecond}
	d := destination(v)
	require.True(t, d.Here)
	require.Equal(t, v.At.Add(1500*time.Millisecond), d.Until)
	v.Lease.Needed = false
	require.Equal(t, v.At.Add(aloneFor), destination(v).Until)

	host, port, err := at(node2)
	require.NoError(t, err)
	require.Equal(t, []string{"b", "5432"}, []string{host, port})
	_, _, err = at(registry.Record{ID: 3, Name: "node3", Conninfo: "service=x"})
	require.ErrorContains(t, err, "names no host")
}

func with(d Destination, change func(*Destination)) Destination {
	change(&d)
	return d
}

// Where no election decides, this node is the primary for its routers only if it was promoted under the eyes of this daemon.
func TestKeeper_DestinationByHand(t *testing.T) {
	t.Parallel()
	k := &keeper{}
	see := func(answer election.Answer, standby bool) bool {
		v := viewOf(1)
		v.Automatic, v.Peers, v.LocalAnswer, v.LocalSeenAt = false, nil, answer, v.At
		v.Records = []registry.Record{node1, node2}
		v.Records[0].Role = registry.RolePrimary
		v.Local = registry.NodeStatus{StartedAt: v.At, InRecovery: standby}
		return k.destination(v).Here
	}
	require.False(t, see(election.Answers, false), "it was one before")
	require.False(t, see(election.Answers, true))
	require.True(t, see(election.Answers, false), "it was promoted")
	require.True(t, see(election.Answers, false))
	require.False(t, see(election.Refused, false))
	require.False(t, see(election.Answers, false), "it was started again, and another node may have been promoted")
}
