package router

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/trouble"
	"github.com/pgrepmgr/repmgr/registry"
)

// recorder is a Router that writes down what it is told.
type recorder struct {
	told []string
	fail error
}

func (r *recorder) String() string { return "recorder" }

func (r *recorder) Point(_ context.Context, d Destination) error {
	if r.fail == nil {
		r.told = append(r.told, d.name())
	}
	return r.fail
}

func (r *recorder) Hold(context.Context) error {
	r.told = append(r.told, "hold")
	return nil
}

var (
	node1   = registry.Record{ID: 1, Name: "node1", Conninfo: "host=a port=5433 dbname=x"}
	node2   = registry.Record{ID: 2, Name: "node2", Conninfo: "host=b dbname=x"}
	nowhere = Destination{Others: []registry.Record{node1, node2}}
	toOne   = Destination{Primary: node1, Others: []registry.Record{node2}}
	toTwo   = Destination{Primary: node2, Others: []registry.Record{node1}}
	here    = Destination{Primary: node1, Others: []registry.Record{node2}, Here: true}
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// What a router is told, and what it is not told again.
func TestKeeper(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		seen []Destination
		want []string
	}{
		"once":                      {[]Destination{toOne, toOne, toOne}, []string{"node1"}},
		"nothing is known":          {[]Destination{nowhere, nowhere}, nil},
		"another primary":           {[]Destination{toOne, toTwo, toTwo}, []string{"node1", "node2"}},
		"out of sight":              {[]Destination{toOne, nowhere, toOne}, []string{"node1"}},
		"out of sight, and another": {[]Destination{toOne, nowhere, toTwo}, []string{"node1", "node2"}},
		"this node no more":         {[]Destination{here, nowhere, nowhere}, []string{"node1", "none"}},
		"this node, and again":      {[]Destination{here, nowhere, here}, []string{"node1", "none", "node1"}},
		"this node, then another":   {[]Destination{here, nowhere, toTwo}, []string{"node1", "none", "node2"}},
		"another address":           {[]Destination{toTwo, {Primary: registry.Record{ID: 2, Name: "node2", Conninfo: "host=c dbname=x"}}}, []string{"node2", "node2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			k := New(quiet(), r).all[0]
			for _, d := range c.seen {
				k.tell(t.Context(), d, &trouble.Log{Logger: quiet()})
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
	log := &trouble.Log{Logger: quiet(), Hint: func(error) string { return "" }}
	k.tell(t.Context(), toOne, log)
	require.True(t, log.Has("recorder"))
	r.fail = nil
	k.tell(t.Context(), toTwo, log)
	require.Empty(t, r.told, "it is not asked again at once")
	k.next = time.Time{}
	k.tell(t.Context(), toTwo, log)
	require.Equal(t, []string{"node2"}, r.told)
	require.False(t, log.Has("recorder"))
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
		"restarted in place":       {nowhere, here, []string{"node1", "hold", "none", "node1"}},
		"without a primary so far": {nowhere, toTwo, []string{"node1", "hold", "none", "node2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			all := New(quiet(), r)
			k, log := all.all[0], &trouble.Log{Logger: quiet()}
			k.tell(t.Context(), here, log)
			release := all.HoldClients()(t.Context())
			k.tell(t.Context(), here, log) // the server is not stopped yet
			k.tell(t.Context(), c.during, log)
			release()
			k.tell(t.Context(), c.after, log)
			require.Equal(t, c.want, r.told)
		})
	}
	require.Nil(t, New(quiet(), &HAProxy{}).HoldClients())
}

// A daemon that ends does not leave the clients waiting.
func TestRouters_RunEndsAHold(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	all := New(quiet(), r)
	all.all[0].told, all.all[0].known = here, true
	all.HoldClients()(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all.Run(ctx, func() health.View { return health.View{} })
	require.Equal(t, []string{"hold", "node1"}, r.told)
}

func TestDestination(t *testing.T) {
	t.Parallel()
	v := health.View{Records: []registry.Record{node1, node2}, NodeID: 2, At: time.Now(), LookedAt: time.Now(), Interval: time.Second}
	require.Equal(t, nowhere, destination(v))

	rule := election.Rule{Term: 1, Primary: 1, Voters: []int32{1, 2}}
	v.Automatic, v.Silence, v.Rule = true, 2*time.Second, rule
	v.Peers = []election.Peer{
		{ID: 1, Answer: election.Answers, SeenAt: v.At, Running: election.Primary, Rule: rule},
		{ID: 2, Answer: election.Answers, SeenAt: v.At, Running: election.Standby, Rule: rule},
	}
	require.Equal(t, toOne, destination(v))

	v.NodeID, v.Lease = 1, health.Lease{Known: true, Needed: true, Proven: true, Left: 1500 * time.Millisecond}
	d := destination(v)
	require.True(t, d.Here)
	require.Equal(t, 1500*time.Millisecond, d.Left)

	host, port := at(node2)
	require.Equal(t, []string{"b", "5432"}, []string{host, port})
}
