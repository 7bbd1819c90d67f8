package web

import (
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// scrape is what /metrics answers for a view.
func scrape(t *testing.T, h *handler, v health.View) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.metrics(w, v)
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.Header().Get("Content-Type"))
	return w.Body.String()
}

// ready is the view of a node in a cluster that can fail over: on each node a daemon runs that can stop its server.
func ready(t *testing.T, id registry.NodeID) health.View {
	t.Helper()
	v := view(id)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700))
	v.Local.Settings.DataDirectory, v.Local.Settings.ArchiveMode, v.Local.Settings.ArchiveCommand = dir, "on", "cp"
	v.Local.Archiver = &registry.Archiver{}
	kept := int64(2000)
	v.Local.Slots = []registry.Slot{{Name: "repmgr_slot_2", Physical: true, Active: true, WALStatus: "reserved", Kept: &kept}, {Name: "pg_basebackup_99", Temporary: true, WALStatus: "reserved"}}
	for i := range v.Peers {
		v.Peers[i].Priority, v.Peers[i].Location = 100, "ams"
		v.Peers[i].Monitored, v.Peers[i].Automatic, v.Peers[i].CanFence, v.Peers[i].Since = true, true, true, v.At.Add(-time.Hour)
	}
	if id == 1 {
		for _, name := range []string{"node2", "node2", "node3", "stranger"} {
			v.Local.Senders = append(v.Local.Senders, registry.WALSender{ApplicationName: name, State: "streaming", SentLSN: 5000, FlushedLSN: 5000, ReplayedLSN: 4000})
		}
		v.Local.Senders[0].FlushedLSN = 1000 // of a stream that has ended
	}
	return v
}

// parsed are the series of an exposition, with their values, which Prometheus' own parser must take.
func parsed(t *testing.T, text string) map[string]string {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	require.NoError(t, err, "%s", text)
	kinds := map[string]int{}
	for name, f := range families {
		kinds[f.GetType().String()]++
		assert.NotEmpty(t, f.GetHelp(), name)
		if strings.HasPrefix(name, "repmgr_") {
			assert.Equal(t, f.GetType().String() == "COUNTER", strings.HasSuffix(name, "_total"), name)
		}
	}
	assert.Zero(t, kinds["UNTYPED"])
	all, before := map[string]string{}, ""
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "} ")
		if strings.HasPrefix(line, "#") {
			if strings.HasPrefix(line, "# HELP ") {
				before = strings.Fields(line)[2]
				assert.False(t, seen[before], "%s comes twice", before)
				seen[before] = true
			}
			continue
		}
		assert.True(t, strings.HasPrefix(series, before), "%s is among the lines of %s", series, before)
		_, twice := all[series+"}"]
		assert.False(t, twice, "%s comes twice", series)
		all[series+"}"] = value
	}
	return all
}

// at is the value of a metric of one of the nodes; extra are its labels after those of each line.
func at(all map[string]string, node int, name string, extra ...string) string {
	labels := fmt.Sprintf(`cluster="shop",node="node%d",node_id="%d"`, node, node)
	for i := 0; i+1 < len(extra); i += 2 {
		labels += fmt.Sprintf(`,%s=%q`, extra[i], extra[i+1])
	}
	if value, ok := all[name+"{"+labels+"}"]; ok {
		return value
	}
	return "none"
}

// Prometheus takes what is written for any view, whatever a name has in it.
func TestMetricsOfAnyView(t *testing.T) {
	t.Parallel()
	odd := ready(t, 1)
	odd.Cluster, odd.Records[1].Name = "a\"b\\c\nd\xff", "node\n2"
	odd.Local.Senders[0].ApplicationName = "node\n2"
	manual, observer, witness := ready(t, 2), ready(t, 0), ready(t, 3)
	manual.Automatic, manual.Peers = false, nil
	observer.Node = ""
	witness.Records[2].Role, witness.Peers[2].Role = registry.RoleWitness, election.Witness
	for name, v := range map[string]health.View{
		"primary": ready(t, 1), "standby": ready(t, 2), "manual": manual, "observer": observer, "witness": witness, "odd": odd,
		"just started": {At: time.Now(), NodeID: 1, Node: "node1", Automatic: true}, "nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, o := range []Options{{}, {Events: &Events{}, Metrics: repmgr.MetricsPatroni}} {
				h := newHandler(nil, o)
				first := parsed(t, scrape(t, h, v))
				assert.Len(t, parsed(t, scrape(t, h, v)), len(first))
			}
		})
	}
}

func TestMetricsOfForecast(t *testing.T) {
	t.Parallel()
	all := parsed(t, scrape(t, newHandler(nil, Options{}), ready(t, 1)))
	for name, want := range map[string]string{
		"repmgr_failover_possible": "1", "repmgr_failover_if_cut_off_possible": "1", "repmgr_at_risk_bytes": "0", "repmgr_can_fence": "1", "repmgr_nodes": "3", "repmgr_automatic": "1",
		"repmgr_primary_node_id": "1", "repmgr_foreign_daemons": "0", "repmgr_server_version_num": "150018",
		"repmgr_pending_restart": "0", "repmgr_archive_failing": "0", "repmgr_archive_failures_total": "0",
	} {
		assert.Equal(t, want, at(all, 1, name), name)
	}
	assert.NotEqual(t, "none", at(all, 1, "repmgr_wal_volume_free_bytes"))
	assert.Equal(t, "1", at(all, 1, "repmgr_slot_active", "slot", "repmgr_slot_2"))
	assert.Equal(t, "2000", at(all, 1, "repmgr_slot_retained_bytes", "slot", "repmgr_slot_2"))
	assert.Equal(t, "0", at(all, 1, "repmgr_replication_lag_bytes", "standby", "node2", "stage", "flush"), "the stream that has ended does not count")
	assert.Equal(t, "1000", at(all, 1, "repmgr_replication_lag_bytes", "standby", "node3", "stage", "replay"))
	for reason, fault := range map[string]func(*health.View){
		"no_candidate": func(v *health.View) { v.Peers[1].Priority, v.Peers[2].Priority = 0, 0 },
		"no_majority":  func(v *health.View) { v.Peers[1].Answer = election.Silent },
		"no_pledges":   func(v *health.View) { v.Peers[2].NoPledge = "its vote can not be read" },
		"commits_may_be_missing": func(v *health.View) {
			v.Rule.Voters = append(v.Rule.Voters, 4, 5)
			for id := int32(4); id <= 5; id++ {
				p := v.Peers[2]
				p.ID = id
				v.Peers = append(v.Peers, p)
			}
			v.Peers[1].Answer = election.Silent
		},
		"paused":         func(v *health.View) { v.Peers[1].Paused = true },
		"repmgr5_daemon": func(v *health.View) { v.Peers[2].Foreign = true },
		"no_rule":        func(v *health.View) { v.Rule = election.Rule{} },
		"location_lost":  func(v *health.View) { v.Peers[0].Location = "fra" },
		"primary_shut_down": func(v *health.View) {
			v.Peers[0].Answer, v.Peers[1].ShutDown, v.Peers[2].ShutDown = election.Refused, true, true
			v.Peers[1].Streams, v.Peers[2].Streams = false, false
		},
		"another_primary": func(v *health.View) {
			v.Peers[1].Running, v.Peers[1].WonElection, v.Peers[1].Term = election.Primary, true, 6
		},
	} {
		v := ready(t, 1)
		fault(&v)
		all := parsed(t, scrape(t, newHandler(nil, Options{}), v))
		assert.Equal(t, "0", at(all, 1, "repmgr_failover_possible"), reason)
		assert.Equal(t, "1", at(all, 1, "repmgr_failover_blocked", "reason", reason), "%s: %v", reason, slices.Sorted(maps.Keys(all)))
		assert.Equal(t, "none", at(all, 1, "repmgr_at_risk_bytes"), reason)
	}

	v := ready(t, 1) // without quorum what the standbys lack is lost
	v.Rule.Quorum = false
	v.Peers[0].Position.LSN = 9000
	for i := range v.Peers {
		v.Peers[i].Rule.Quorum = false
	}
	all = parsed(t, scrape(t, newHandler(nil, Options{}), v))
	assert.Equal(t, "4000", at(all, 1, "repmgr_at_risk_bytes"))
	v.Peers[0].CanFence = false
	all = parsed(t, scrape(t, newHandler(nil, Options{}), v))
	assert.Equal(t, []string{"1", "0"}, []string{at(all, 1, "repmgr_failover_possible"), at(all, 1, "repmgr_failover_if_cut_off_possible")})
}

func TestTally(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1700000000, 0)
	promoted := func(by repmgr.NodeID, outage time.Duration) repmgr.Event {
		return repmgr.Event{NodeID: by, Type: repmgr.EventFailoverPromote, Success: true, Failover: &repmgr.FailoverRecord{Outage: outage}}
	}
	var events Events
	for i, told := range []struct {
		ms int
		e  repmgr.Event
	}{
		{0, repmgr.Event{NodeID: 2, Type: repmgr.EventUpstreamDisconnect}},
		{700, promoted(2, 400*time.Millisecond)}, // this node is the primary now
		{900000, repmgr.Event{NodeID: 2, Type: repmgr.EventFailoverFollow, Success: true}},
		{1000000, repmgr.Event{NodeID: 2, Type: repmgr.EventUpstreamDisconnect}},
		{1000500, promoted(3, 500*time.Millisecond)},
		{1000600, promoted(3, 0)}, // it is not known
		{1007000, repmgr.Event{NodeID: 2, Type: repmgr.EventFailoverFollow, Success: true}},
		{2000000, repmgr.Event{NodeID: 2, Type: repmgr.EventStandbyFailure}},
		{2400000, repmgr.Event{NodeID: 2, Type: repmgr.EventStandbyRecovery, Success: true}},
		{3000000, repmgr.Event{NodeID: 2, Type: repmgr.EventFailoverRefused}},
		{3000000, repmgr.Event{NodeID: 2, Type: repmgr.EventSwitchover}},
	} {
		told.e.Told = begin.Add(time.Duration(told.ms) * time.Millisecond)
		told.e.At = begin.Add(time.Duration(i*i) * time.Hour) // by the clocks of the servers that have written them
		require.NoError(t, events.Notify(t.Context(), told.e))
	}
	text := scrape(t, newHandler(nil, Options{Events: &events}), view(2))
	all := parsed(t, text)
	for _, want := range [][]string{
		{"1", "repmgr_events_total", "event", "standby_failure", "success", "0"},
		{"3", "repmgr_events_total", "event", "repmgrd_failover_promote", "success", "1"},
		{"none", "repmgr_events_total", "event", "repmgrd_fence", "success", "1"},
		{"3", "repmgr_failovers_total", "outcome", "promoted"},
		{"1", "repmgr_failovers_total", "outcome", "refused"},
		{"0", "repmgr_failovers_total", "outcome", "aborted"},
		{"0", "repmgr_switchovers_total", "outcome", "done"},
		{"1", "repmgr_switchovers_total", "outcome", "failed"},
		{"0", "repmgr_outage_seconds_bucket", "phase", "promote", "le", "0.25"},
		{"2", "repmgr_outage_seconds_bucket", "phase", "promote", "le", "0.5"},
		{"2", "repmgr_outage_seconds_count", "phase", "promote"},
		{"0.9", "repmgr_outage_seconds_sum", "phase", "promote"},
		{"1", "repmgr_outage_seconds_count", "phase", "follow"},
		{"7", "repmgr_outage_seconds_sum", "phase", "follow"},
		{"0", "repmgr_outage_seconds_bucket", "phase", "return", "le", "300"},
		{"1", "repmgr_outage_seconds_bucket", "phase", "return", "le", "1800"},
		{"1700001000.6", "repmgr_last_failover_timestamp_seconds"},
	} {
		assert.Equal(t, want[0], at(all, 2, want[1], want[2:]...), "%v", want[1:])
	}
	for i := range 1000 { // as many types as this are no reason for as many series
		require.NoError(t, events.Notify(t.Context(), repmgr.Event{Type: repmgr.EventType(fmt.Sprintf("strange_%d", i))}))
	}
	assert.Less(t, strings.Count(scrape(t, newHandler(nil, Options{Events: &events}), view(2)), "repmgr_events_total{"), 2*outcomesKept)
}

// The lag as a time is right where nothing is written, and where much is.
func TestWrote(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1700000000, 0)
	second := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Second) }
	since := func(w *wrote, at wal.LSN) string {
		ago, known := w.since(at)
		if !known {
			return "unknown"
		}
		return ago.Round(time.Millisecond).String()
	}
	var w wrote
	assert.Equal(t, "unknown", since(&w, 100))
	w.note(second(0), 1000)
	assert.Equal(t, []string{"0s", "unknown"}, []string{since(&w, 1000), since(&w, 900)})
	for n := 15; n <= 36000; n += 15 { // ten hours in which nothing is written
		w.note(second(n), 1000)
	}
	assert.Len(t, w.marks, 2)
	assert.Equal(t, []string{"0s", "10h0m0s"}, []string{since(&w, 1000), since(&w, 999)})
	w.note(second(36015), 2000)
	assert.Equal(t, []string{"0s", "7.5s", "15s"}, []string{since(&w, 2000), since(&w, 1500), since(&w, 1000)})
	w.note(second(36010), 9000) // older than what is known
	assert.Equal(t, "0s", since(&w, 2000))
	for n := 1; n <= 100000; n++ {
		w.note(second(36015+n), wal.LSN(2000+10*n))
	}
	assert.LessOrEqual(t, len(w.marks), marksKept)
	assert.Equal(t, []string{"500ms", "1m0s"}, []string{since(&w, 1001995), since(&w, 1001400)})
	w.note(second(200000), 500) // another primary, which had less
	assert.Len(t, w.marks, 1)
}

// What a server said before it went down is not written as if it were so now, and neither is what a standby knows of a primary
// that it has lost.
func TestMetricsOfServersThatAreGone(t *testing.T) {
	t.Parallel()
	names := func(v health.View) []string {
		var names []string
		for series := range parsed(t, scrape(t, newHandler(nil, Options{}), v)) {
			name, _, _ := strings.Cut(series, "{")
			names = append(names, name)
		}
		return names
	}
	ofServer := []string{"repmgr_replication_lag_bytes", "repmgr_replication_lag_seconds", "repmgr_slot_retained_bytes", "repmgr_archive_failing", "repmgr_pending_restart"}
	primary := ready(t, 1)
	assert.Subset(t, names(primary), ofServer)
	primary.LocalSeenAt = primary.At.Add(-time.Minute)
	for _, name := range ofServer {
		assert.NotContains(t, names(primary), name)
	}
	assert.Contains(t, names(primary), "repmgr_wal_volume_free_bytes", "the disk is still there, and may be why the server is down")

	for name, gone := range map[string]func(v *health.View){
		"the last turn had no answer":      func(v *health.View) { v.LocalAnswer = election.Refused },
		"the last heartbeat had no answer": func(v *health.View) { v.Peers[0].Answer = election.Refused },
	} {
		primary := ready(t, 1)
		gone(&primary)
		for _, of := range append(ofServer, "repmgr_timeline", "repmgr_slot_active", "repmgr_server_version_num") {
			assert.NotContains(t, names(primary), of, name)
		}
	}

	standby := ready(t, 2)
	assert.Subset(t, names(standby), ofServer[:2])
	standby.Peers[0].Answer = election.Refused
	assert.NotContains(t, names(standby), ofServer[0], "the primary has just gone")
	standby = ready(t, 2)
	standby.Rule = election.Rule{}
	assert.Contains(t, names(standby), ofServer[0], "nothing was elected yet")
	standby.Upstream.SeenAt = standby.At.Add(-time.Minute)
	assert.NotContains(t, names(standby), ofServer[0])
	assert.NotContains(t, names(standby), ofServer[1])
}

func TestMetricsOfManual(t *testing.T) {
	t.Parallel()
	v := ready(t, 2)
	v.Automatic, v.Peers = false, nil
	look := func() []string {
		all := parsed(t, scrape(t, newHandler(nil, Options{}), v))
		return []string{at(all, 2, "repmgr_standby_streaming", "standby", "node2"), at(all, 2, "repmgr_primaries_seen"), at(all, 2, "repmgr_standby_delay_seconds", "standby", "node2")}
	}
	assert.Equal(t, []string{"0", "1", "0"}, look())
	v.Local.Receiver, v.Local.Settings.ApplyDelay = &registry.WALReceiver{Status: "streaming"}, 1500
	v.Upstream.SeenAt = v.At.Add(-10 * time.Second)
	assert.Equal(t, []string{"1", "0", "1.5"}, look())
}

func TestMetricsOfVotersAndNamesakes(t *testing.T) {
	t.Parallel()
	v := ready(t, 1)
	v.Peers[2].Answer = election.Silent
	newcomer, former := v.Peers[1], v.Peers[1]
	newcomer.ID, former.ID = 4, 5
	v.Peers = append(v.Peers, newcomer, former)
	v.Records = append(v.Records, registry.Record{ID: 4, Name: "node4", Active: true}, registry.Record{ID: 5, Name: "node2"})
	v.Peers[1].Receiving = false
	all := parsed(t, scrape(t, newHandler(nil, Options{}), v))
	assert.Equal(t, []string{"3", "2"}, []string{at(all, 1, "repmgr_voters"), at(all, 1, "repmgr_voters_reachable")})
	assert.Equal(t, "0", at(all, 1, "repmgr_standby_streaming", "standby", "node2"), "the row that is active counts")
	v.Rule = election.Rule{}
	all = parsed(t, scrape(t, newHandler(nil, Options{}), v))
	assert.Equal(t, "none", at(all, 1, "repmgr_term"), "a daemon that has just started has no term yet")
}

func TestSlots(t *testing.T) {
	t.Parallel()
	var all []registry.Slot
	for i := range int64(1000) {
		kept := i
		all = append(all, registry.Slot{Name: fmt.Sprintf("slot_%d", i), Kept: &kept}, registry.Slot{Name: fmt.Sprintf("pg_16385_sync_%d_7", i), Kept: &kept})
	}
	all = append(all, registry.Slot{Name: "lost", WALStatus: "lost"}, registry.Slot{Name: "backup", Temporary: true, WALStatus: "lost"})
	written := slots(all)
	var names []string
	for _, s := range written {
		names = append(names, s.Name)
	}
	assert.Equal(t, []string{"lost", "slot_999", tableSync, "slot_998"}, names[:4])
	assert.Len(t, names, slotsWritten)
	assert.Equal(t, int64(999), *written[2].Kept)
	assert.Equal(t, "pg_16385_sync_0_7", all[1].Name, "what was given is as it was")
}

// A request during which another one looks at the disk says what was seen before.
func TestScrapesFree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700))
	var s scrapes
	s.looking.Store(true)
	assert.Nil(t, s.free(dir))
	s.looking.Store(false)
	require.NotNil(t, s.free(dir))
	s.looking.Store(true)
	assert.NotNil(t, s.free(dir))
	s.room.Store(&room{time.Now().Add(-roomKept), s.room.Load().bytes})
	assert.Nil(t, s.free(dir), "that is too old")
}

// An outage that has ended without an event is not taken for one that lasts until the next event.
func TestTally_OutageWithoutEnd(t *testing.T) {
	t.Parallel()
	promoted := view(1)
	promoted.Phase = election.AsPrimary
	for name, v := range map[string]health.View{"the primary came back": view(2), "another daemon has promoted this node": promoted} {
		var events Events
		h := newHandler(nil, Options{Events: &events})
		note := func(kind repmgr.EventType, success bool) {
			require.NoError(t, events.Notify(t.Context(), repmgr.Event{NodeID: v.NodeID, Type: kind, Success: success}))
		}
		took := func() string {
			return at(parsed(t, scrape(t, h, v)), int(v.NodeID), "repmgr_outage_seconds_count", "phase", phaseFollow)
		}
		note(repmgr.EventUpstreamDisconnect, false)
		took()
		note(repmgr.EventFailoverFollow, true)
		assert.Equal(t, "0", took(), name)
	}
}
