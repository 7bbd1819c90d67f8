package registry

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// However much there is to say, the statement is shown whole, and tells which nodes
// can not be streamed from.
func TestPresence_StaysShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä password='hunter2' ", 100)
	left, can := 1.5, false
	p := Announcement{
		PID: 1 << 30, Mode: FailoverAutomatic, Phase: "standby", Reason: long, Since: time.Now(), SeenAt: time.Now(), LeaseLeft: &left, CanFence: &can,
		Unable: long, Error: long, Rejected: long, At: time.Now(), NoStream: map[NodeID]string{},
		Routers: map[string]string{"HAProxy at /run/haproxy/admin.sock": long, "PgBouncer at 127.0.0.1:6432": "refused"},
	}
	for id := NodeID(1); id <= 9; id++ {
		p.NoStream[id] = long
	}
	sql := p.statement()
	if len(sql) > presenceBytes || strings.Contains(sql, "hunter2") {
		t.Errorf("%d bytes: %s", len(sql), sql)
	}
	var got Announcement
	if err := json.Unmarshal([]byte(strings.TrimPrefix(sql, presenceMark)), &got); err != nil || len(got.NoStream) != 9 || len(got.Routers) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// What a daemon says of its lease is read up to some seconds later. One that is
// renewed all the time is no alarm, however old; one that nothing renews counts down.
func TestPresence_Lease(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		left, age float64 // as it was said, and how long ago
		runsOut   bool
		text      string
	}{
		{2.4, 0.3, false, ""},
		{2.0, 1.9, false, ""},
		{1.6, 7, false, ""},
		{1.5, 0.3, true, "has no contact to a majority: it stops itself in 1.2 s unless one answers it"},
		{1.5, 2, true, "had no contact to a majority, and was to stop itself 0.5 s ago; its repmgrd has said nothing for 2.0 s"},
		{0, 0.3, true, "has no contact to a majority any more, and its repmgrd could not stop it: only a reset of its machine helps now"},
		{0, 3, false, "has no contact to a majority any more, and its repmgrd could not stop it: only a reset of its machine helps now"}, // of a former version
	} {
		p := Announcement{PID: 4711, Mode: FailoverAutomatic, LeaseLeft: &test.left, RunsOut: test.runsOut}
		rows, err := json.Marshal([]any{map[string]any{"node_id": 7, "says": p.statement(), "age": test.age}})
		if err != nil {
			t.Fatal(err)
		}
		all, err := ParseAnnouncements(string(rows))
		if err != nil || all[7].Lease() != test.text {
			t.Errorf("%.1f s left, said %.1f s ago, runs out %v: got %q, want %q (%v)", test.left, test.age, test.runsOut, all[7].Lease(), test.text, err)
		}
	}
	p, q := Announcement{LeaseLeft: new(2.0)}, Announcement{LeaseLeft: new(1.4), RunsOut: true}
	if p.same(Announcement{LeaseLeft: p.LeaseLeft, Routers: map[string]string{"a": "b"}}) {
		t.Error("a router that fails is no news")
	}
	if p.same(q) || !p.same(Announcement{LeaseLeft: new(2.4)}) {
		t.Error("that a lease runs out is news, that it was renewed is none")
	}
}

// A Monitor that lost its session does not yield to that, while the server has not
// noticed yet; another one does.
func TestPresence_DoesNotYieldToItself(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	announce := func(p *Announcer) error {
		return p.Announce(t.Context(), func(ctx context.Context) (*Server, error) { return Connect(ctx, "", s.Conninfo()) }, Announcement{})
	}
	ours, another := Announcer{Node: 1}, Announcer{Node: 1}
	defer func() { ours.Close(); another.Close() }()
	require.NoError(t, announce(&ours))
	lost := ours.conn
	ours.conn, ours.Held = nil, false
	require.ErrorContains(t, announce(&ours), "an earlier session")
	require.False(t, ours.Yields())
	require.ErrorContains(t, announce(&another), "watches")
	require.True(t, another.Yields())
	lost.Close()
	pgtest.WaitFor(t, "the end of the lost session", func(context.Context) error { return announce(&ours) })
	require.False(t, ours.Yields())
}
