package repmgr

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

// However much there is to say, the statement is shown whole, and tells which nodes
// can not be streamed from.
func TestPresence_StaysShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä password='hunter2' ", 100)
	left, can := 1.5, false
	p := Presence{
		PID: 1 << 30, Mode: FailoverAutomatic, Phase: "standby", Reason: long, Since: time.Now(), SeenAt: time.Now(), LeaseLeft: &left, CanFence: &can,
		Unable: long, Error: long, At: time.Now(), NoStream: map[NodeID]string{},
	}
	for id := NodeID(1); id <= 9; id++ {
		p.NoStream[id] = long
	}
	sql := p.statement()
	if len(sql) > presenceBytes || strings.Contains(sql, "hunter2") {
		t.Errorf("%d bytes: %s", len(sql), sql)
	}
	var got Presence
	if err := json.Unmarshal([]byte(strings.TrimPrefix(sql, presenceMark)), &got); err != nil || len(got.NoStream) != 9 {
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
		p := Presence{PID: 4711, Mode: FailoverAutomatic, LeaseLeft: &test.left, RunsOut: test.runsOut}
		rows, err := json.Marshal([]any{map[string]any{"node_id": 7, "says": p.statement(), "age": test.age}})
		if err != nil {
			t.Fatal(err)
		}
		all, err := parsePresences(string(rows))
		if err != nil || all[7].Lease() != test.text {
			t.Errorf("%.1f s left, said %.1f s ago, runs out %v: got %q, want %q (%v)", test.left, test.age, test.runsOut, all[7].Lease(), test.text, err)
		}
		yes := true
		n := ServiceNode{NodeView: NodeView{Record: Record{ID: 7, Name: "node7", Role: RolePrimary}}, Monitor: new(all[7])}
		n.Monitor.CanFence = &yes
		var found findings
		n.findings(true, true, &found)
		if found.has(FindingLeaseRunsOut) != (test.text != "") || len(found) > 1 {
			t.Errorf("found %v", found)
		}
	}
	p, q := Presence{LeaseLeft: new(2.0)}, Presence{LeaseLeft: new(1.4), RunsOut: true}
	if p.same(q) || !p.same(Presence{LeaseLeft: new(2.4)}) {
		t.Error("that a lease runs out is news, that it was renewed is none")
	}
}

// Between two renewals, and a late answer, a lease does not run out: two looks have
// to have failed. It is said at the latest when half of silence_timeout is left.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	for _, fence := range []time.Duration{cfg.SilenceTimeout, cfg.FenceTimeout, 24 * time.Hour} {
		cfg.FenceTimeout = fence
		for since, want := range map[time.Duration]bool{0: false, 500: false, 990: false, 1010: true, 2000: true} {
			if got := leaseRunsOut(cfg, fence-since*time.Millisecond); got != want {
				t.Errorf("fence_timeout %s, no contact for %d ms: %v", fence, since, got)
			}
		}
	}
}

// A Monitor that lost its session does not yield to that, while the server has not
// noticed yet; another one does.
func TestPresence_DoesNotYieldToItself(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	announce := func(p *presence) error {
		return p.announce(t.Context(), func(ctx context.Context) (*registry.Server, error) { return registry.Connect(ctx, "", s.Conninfo()) }, Presence{})
	}
	ours, another := presence{node: 1}, presence{node: 1}
	defer func() { ours.close(); another.close() }()
	require.NoError(t, announce(&ours))
	lost := ours.conn
	ours.conn, ours.held = nil, false
	require.ErrorContains(t, announce(&ours), "an earlier session")
	require.False(t, ours.yields())
	require.ErrorContains(t, announce(&another), "watches")
	require.True(t, another.yields())
	lost.Close()
	pgtest.WaitFor(t, "the end of the lost session", func(context.Context) error { return announce(&ours) })
	require.False(t, ours.yields())
}
