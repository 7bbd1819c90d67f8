package switchover

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
)

// healthy are the facts of three nodes, of which the second is to be the primary.
func healthy() Facts {
	rule := election.Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	settings := map[string]int{"max_connections": 100}
	peer := func(id int32, running election.Role) election.Peer {
		return election.Peer{
			ID: id, Role: election.Standby, Running: running, Answer: election.Answers, Priority: 100, Rule: rule, SeenAt: time.Now(), Receives: 1, Receiving: true,
			Monitored: true, Automatic: true, CanFence: true, Capacity: election.Capacity{Known: true, Senders: 10, Slots: 10}, NeedsSlot: true,
		}
	}
	return Facts{
		Rule: rule, Peers: []election.Peer{peer(1, election.Primary), peer(2, election.Standby), peer(3, election.Standby)},
		Primary: registry.Record{ID: 1, Name: "node1"}, Target: registry.Record{ID: 2, Name: "node2"}, Names: map[int32]string{1: "node1", 2: "node2", 3: "node3"},
		Servers: [2]Server{{Capacity: settings, Rewinds: true}, {Capacity: settings, Rewinds: true}},
	}
}

func codes(list []plan.Obstacle) (all []string) {
	for _, o := range list {
		all = append(all, o.Code)
	}
	return all
}

// Each obstacle, with what leads to it, whether --force overrides it, and that it says what to do.
func TestFacts_Plan(t *testing.T) {
	t.Parallel()
	p := election.Policy{Automatic: true}
	limits := Limits{Archive: 10}
	fine := healthy().Plan(p, limits)
	require.Empty(t, fine.Obstacles)
	require.Empty(t, fine.Warnings)
	require.Len(t, fine.Steps, 7)
	for code, test := range map[string]struct {
		change   func(*Facts)
		override bool
	}{
		"primary_lost":           {func(f *Facts) { f.Peers[0].Answer = election.Silent }, false},
		"failover_paused":        {func(f *Facts) { f.Peers[2].Paused, f.Peers[2].PauseSeq = true, 1 }, false},
		"repmgr5_daemon":         {func(f *Facts) { f.Peers[2].Foreign = true }, false},
		"no_daemon":              {func(f *Facts) { f.Peers[0].Automatic = false }, false},
		"target_is_primary":      {func(f *Facts) { f.Target.ID = 1 }, false},
		"target_lost":            {func(f *Facts) { f.Peers[1].Answer = election.Refused }, false},
		"target_unfit":           {func(f *Facts) { f.Peers[1].Priority = 0 }, false},
		"target_not_attached":    {func(f *Facts) { f.Peers[1].Receives = 3 }, false},
		"target_paused":          {func(f *Facts) { f.Peers[1].ReplayPaused = true }, true},
		"target_unknown":         {func(f *Facts) { f.Servers[1].Err = errors.New("no answer") }, false},
		"target_lags":            {func(f *Facts) { f.Servers[1].Received = 1 << 30 }, true},
		"target_replays":         {func(f *Facts) { f.Servers[1].Replay = 1 << 30 }, true},
		"target_read_only":       {func(f *Facts) { f.Servers[1].ReadOnly = true }, true},
		"primary_can_not_stream": {func(f *Facts) { f.Peers[0].NoStream = map[int32]string{2: "no entry in pg_hba.conf"} }, true},
		"max_wal_senders":        {func(f *Facts) { f.Peers[1].Capacity.Senders = 1 }, true},
		"max_replication_slots":  {func(f *Facts) { f.Peers[1].Capacity.Slots = 1 }, true},
		"primary_settings":       {func(f *Facts) { f.Servers[0].Capacity = map[string]int{"max_connections": 50} }, true},
		"archive_fails":          {func(f *Facts) { f.Shutdown.Failing, f.Shutdown.Archive = true, 1 }, true},
		"archive_behind":         {func(f *Facts) { f.Shutdown.Archive = 10 }, true},
		"backup_runs":            {func(f *Facts) { f.Shutdown.Backups = 1 }, true},
	} {
		f := healthy()
		test.change(&f)
		got := f.Plan(p, limits)
		require.Equal(t, code, codes(got.Obstacles)[0], "%v", got.Obstacles)
		require.NotEmpty(t, got.Obstacles[0].Hint, code)
		require.NotEmpty(t, got.Obstacles[0].Text, code)
		require.Equal(t, test.override, len(got.Standing(true)) == 0, code)
		require.NotEmpty(t, got.Standing(false), code)
	}
	for code, change := range map[string]func(*Facts){
		"can_not_stream":        func(f *Facts) { f.Peers[2].NoStream = map[int32]string{2: "no entry in pg_hba.conf"} },
		"can_not_rewind":        func(f *Facts) { f.Servers[0].Rewinds = false },
		"pending_restart":       func(f *Facts) { f.Servers[0].Restart = []string{"max_connections"} },
		"long_transaction":      func(f *Facts) { f.Shutdown.Transaction = time.Hour },
		"prepared_transactions": func(f *Facts) { f.Shutdown.Prepared = 1 },
	} {
		f := healthy()
		change(&f)
		got := f.Plan(p, limits)
		require.Empty(t, got.Obstacles, code)
		require.Equal(t, []string{code}, codes(got.Warnings))
	}
	f := healthy()
	f.Peers[2].Answer, f.Peers[1].NoPledge = election.Silent, "a full disk"
	require.Contains(t, codes(f.Plan(p, limits).Obstacles), "no_majority")
}

// What was asked for is taken back, or the error says whether it has begun, or that there is nothing.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	rule := election.Rule{Term: 3, Primary: 1}
	asked := election.Handover{ID: "x", Term: 3, Target: 2, Start: now.Add(time.Hour), Until: now.Add(time.Hour + BeginWithin)}
	require.NoError(t, takeBack(asked, now, rule))
	for what, test := range map[string]struct {
		change func(*election.Handover)
		want   error
	}{
		"it has begun":               {func(h *election.Handover) { h.Begun = true }, failure.ErrRefused},
		"the others were told":       {func(h *election.Handover) { h.Begun, h.Hold = true, time.Minute }, failure.ErrRefused},
		"there is none":              {func(h *election.Handover) { *h = election.Handover{} }, failure.ErrNotScheduled},
		"its time is over":           {func(h *election.Handover) { h.Until = now }, failure.ErrNotScheduled},
		"the primary has changed":    {func(h *election.Handover) { h.Term = 2 }, failure.ErrNotScheduled},
		"it began in another term":   {func(h *election.Handover) { h.Term, h.Begun = 2, true }, failure.ErrNotScheduled},
		"the primary is restarted":   {func(h *election.Handover) { h.Restart = true }, failure.ErrNotScheduled},
		"the restart of it is begun": {func(h *election.Handover) { h.Restart, h.Begun = true, true }, failure.ErrNotScheduled},
	} {
		h := asked
		test.change(&h)
		require.ErrorIs(t, takeBack(h, now, rule), test.want, what)
	}
}
