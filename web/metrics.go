package web

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// exposition writes metrics in the text format of Prometheus. The lines of one metric come together.
type exposition struct {
	w    io.Writer
	base string // the labels of each line
	last string // the metric of the line before
}

// gauge writes one line. labels are pairs of a name and a value. A bool is 0 or 1.
func (e *exposition) gauge(name, help string, value any, labels ...string) {
	e.line(name, "gauge", help, value, labels...)
}

// counter writes one line of a number that only grows while the daemon runs.
func (e *exposition) counter(name, help string, value any, labels ...string) {
	e.line(name, "counter", help, value, labels...)
}

func (e *exposition) line(name, kind, help string, value any, labels ...string) {
	e.family(name, kind, help)
	e.sample(name, value, labels...)
}

// family writes what a metric is, before the first of its lines.
func (e *exposition) family(name, kind, help string) {
	if e.last != name {
		fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		e.last = name
	}
}

func (e *exposition) sample(name string, value any, labels ...string) {
	all := e.base
	for i := 0; i+1 < len(labels); i += 2 {
		all += "," + labels[i] + "=" + quote(labels[i+1])
	}
	fmt.Fprintf(e.w, "%s{%s} %s\n", name, all, number(value))
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "?")) + `"`
}

// number writes a number without an exponent.
func number(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "1"
		}
		return "0"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case time.Time:
		if v.IsZero() {
			return "0"
		}
		return strconv.FormatFloat(float64(v.UnixMicro())/1e6, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// scrapes is what is kept from one request for metrics to the next.
type scrapes struct {
	mu      sync.Mutex
	wrote   wrote
	looking atomic.Bool // at the disk
	room    atomic.Pointer[room]
}

// room is how much could be written at a moment.
type room struct {
	at    time.Time
	bytes *int64 // nil: not known
}

// roomKept is how long a request that does not look at the disk itself believes one that has.
const roomKept = time.Minute

// free is how much may still be written where the WAL of the local server is; nil: not known. A disk that does not answer holds
// up one request only: the others say what was seen before.
func (s *scrapes) free(dataDirectory string) *int64 {
	if dataDirectory != "" && s.looking.CompareAndSwap(false, true) {
		s.room.Store(&room{time.Now(), doctor.FreeOn(filepath.Join(dataDirectory, "pg_wal"))})
		s.looking.Store(false)
	}
	if r := s.room.Load(); r != nil && time.Since(r.at) < roomKept {
		return r.bytes
	}
	return nil
}

// metrics answers /metrics.
func (h *handler) metrics(w http.ResponseWriter, v health.View) {
	free := h.scrapes.free(v.Local.Settings.DataDirectory)
	if !v.Running().OK || v.LocalAnswer != election.Answers || !v.Lately(v.LocalSeenAt) { // what a server said before it went down is not how it is
		v.Local = registry.NodeStatus{}
	}
	moved := (v.Rule.Known() || !v.Automatic) && leader(v) != int32(v.Upstream.ID)
	if moved || !v.Lately(v.Upstream.SeenAt) {
		v.Upstream = health.Upstream{}
	}
	var b bytes.Buffer
	e := &exposition{w: &b, base: fmt.Sprintf("cluster=%s,node=%s,node_id=%s", quote(scope(v)), quote(v.Node), quote(v.NodeID.String()))}
	writeNode(e, v)
	if h.o.Routers != nil {
		writeRouters(e, h.o.Routers())
	}
	if v.Automatic {
		writeCluster(e, v)
		writeForecast(e, v, h.policy(v).Forecast(v.At, v.Rule, v.Peers, v.Rule.Primary))
	}
	writeDisk(e, v, free)
	h.scrapes.mu.Lock()
	writeLag(e, v, &h.scrapes.wrote)
	h.scrapes.mu.Unlock()
	if all := h.o.Events; all != nil {
		all.mu.Lock()
		all.tally.settle(v)
		all.tally.write(e)
		all.mu.Unlock()
	}
	if h.o.Metrics == repmgr.MetricsPatroni {
		writePatroniMetrics(&exposition{w: &b, base: fmt.Sprintf("scope=%s,name=%s", quote(scope(v)), quote(v.Node))}, v)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

// writeNode writes what every daemon knows.
func writeNode(e *exposition, v health.View) {
	e.gauge("repmgr_build_info", "The version of repmgr.", 1, "version", repmgr.Version)
	e.gauge("repmgr_daemon_alive", "Whether this daemon itself works: it looks again and again, whatever its server does.", v.Alive().OK)
	e.gauge("repmgr_nodes", "How many nodes are registered.", len(v.Records))
	e.gauge("repmgr_automatic", "Whether this daemon fails over by itself. Where it does not, what it would need for that is not written.", v.Automatic)
	if v.NodeID == 0 { // it has no server
		return
	}
	e.gauge("repmgr_up", "Whether the server of this node answers.", v.Running().OK)
	e.gauge("repmgr_is_primary", "Whether this node is the primary, by its rule and its lease.", v.Primary().OK)
	e.gauge("repmgr_is_standby", "Whether this node is a standby that answers queries.", v.Standby().OK)
	if v.Local.VersionNum != 0 {
		e.gauge("repmgr_timeline", "The timeline of the server of this node.", v.Timeline())
	}
	if v.Local.VersionNum == 0 || v.Record().Role == registry.RoleWitness {
		return
	}
	e.gauge("repmgr_server_version_num", "The version of PostgreSQL of a node with data, as server_version_num has it.", v.Local.VersionNum)
	e.gauge("repmgr_pending_restart", "How many settings of the server wait for its restart.", v.Local.PendingRestart)
	// With archive_mode=on a standby archives nothing.
	if a := v.Local.Archiver; a != nil && (v.Runs() == election.Primary || v.Local.Settings.ArchiveMode == "always") {
		e.gauge("repmgr_archive_failing", "Whether the newest attempt to archive WAL has failed, or the server is told of no way to archive it.", registry.ArchiveFails(v.Local))
		e.counter("repmgr_archive_failures_total", "The attempts to archive WAL that have failed, as PostgreSQL counts them.", a.Failed)
	}
	standby := v.Runs() == election.Standby
	if standby {
		e.gauge("repmgr_standby_delay_seconds", "How much later than it could a standby applies WAL on purpose (recovery_min_apply_delay).", float64(v.Local.Settings.ApplyDelay)/1000, "standby", v.Node)
		e.gauge("repmgr_standby_wal_gone", "Whether a standby needs WAL that its upstream does not have any more.", v.WALGone, "standby", v.Node)
	}
	if !v.Automatic { // else writeCluster knows more
		e.gauge(primariesSeen, primariesSeenHelp, !standby || v.Upstream.ID != 0)
		if standby {
			e.gauge(standbyStreaming, standbyStreamingHelp, v.Streams(), "standby", v.Node)
		}
	}
}

// writeRouters writes what became of what each router was told last. One that was told nothing so far is left out.
func writeRouters(e *exposition, all []health.Router) {
	for _, r := range all {
		if r.Failed != "" || !r.Told.IsZero() {
			e.gauge("repmgr_router_failing", "Whether a router did not take what this daemon told it last.", r.Failed != "", "router", r.Kind, "destination", r.Destination)
		}
	}
	for _, r := range all {
		if !r.Told.IsZero() {
			e.gauge("repmgr_router_told_timestamp_seconds", "When a router last took what this daemon told it.", r.Told, "router", r.Kind, "destination", r.Destination)
		}
	}
}

// What daemons of both kinds write.
const (
	primariesSeen        = "repmgr_primaries_seen"
	primariesSeenHelp    = "How many nodes run as a primary, as this node sees it. With failover=manual it looks at its own server and at its primary."
	standbyStreaming     = "repmgr_standby_streaming"
	standbyStreamingHelp = "Whether a standby receives WAL, as this node sees it. With failover=manual it looks at its own server."
)

// writeCluster writes what a daemon knows that takes part in elections.
func writeCluster(e *exposition, v health.View) {
	e.gauge(primariesSeen, primariesSeenHelp, len(v.Primaries()))
	if v.Rule.Known() {
		e.gauge("repmgr_primary_node_id", "The node that the newest rule names as the primary.", v.Rule.Primary)
		e.gauge("repmgr_term", "The newest term that this node knows of.", v.Rule.Term)
	}
	e.gauge("repmgr_paused", "Whether failover is paused.", v.Paused())
	e.gauge("repmgr_fenced", "Whether this daemon has stopped its server, because another node may be the primary.", v.Phase == election.Fenced)
	e.gauge("repmgr_voters", "How many voters the newest rule has.", len(v.Rule.Voters))
	reachable := slices.DeleteFunc(v.Reachable(), func(p election.Peer) bool { return !slices.Contains(v.Rule.Voters, p.ID) })
	e.gauge("repmgr_voters_reachable", "How many of them answer this node, itself included.", len(reachable))
	e.gauge("repmgr_synchronous_standbys", "How many standbys commits may wait for.", len(v.Rule.Sync))
	e.gauge("repmgr_synchronous_acks", "How many of them must have a commit before it is acknowledged.", v.Rule.Acks)
	foreign := slices.DeleteFunc(v.Reachable(), func(p election.Peer) bool { return !p.Foreign })
	e.gauge("repmgr_foreign_daemons", "How many nodes have a repmgrd of repmgr 5, beside which ours only watch.", len(foreign))
	if l := v.Lease; l.Known && l.Needed {
		e.gauge("repmgr_lease_seconds", "How long this primary may go on without further contact to a majority.", l.Left.Seconds())
	}
	if p := v.Peer(int32(v.NodeID)); p.Answer == election.Answers && p.Role != election.Witness {
		e.gauge("repmgr_can_fence", "Whether this daemon has shown that it can stop its server.", p.CanFence)
	}
	for _, p := range v.Peers {
		r, _ := registry.ByID(v.Records, registry.NodeID(p.ID))
		namesake := func(o registry.Record) bool { return o.ID != r.ID && o.Name == r.Name } // a row that is not active may have the name of another
		if p.Role == election.Standby && (r.Active || !slices.ContainsFunc(v.Records, namesake)) {
			e.gauge(standbyStreaming, standbyStreamingHelp, p.Answer == election.Answers && p.Receiving, "standby", v.Name(p.ID))
		}
	}
}

// policy is what a forecast needs of the configuration. failovers_per_hour does not count in it.
func (h *handler) policy(v health.View) election.Policy {
	p := election.Policy{Automatic: true, Silence: v.Silence}
	if h.o.Cluster != nil {
		c := h.o.Cluster().Config()
		p.MaxLag, p.OnShutdown, p.Start = c.MaximumLagOnFailover, c.FailoverOnShutdown, c.PrimaryStartTimeout
	}
	return p
}

// writeForecast writes what would happen if the primary died now.
func writeForecast(e *exposition, v health.View, f election.Forecast) {
	possible := f.Refusal == "" && f.Winner != 0
	e.gauge("repmgr_failover_possible", "Whether another node would take over if the primary died now, as this node sees it.", possible)
	e.gauge("repmgr_failover_if_cut_off_possible", "Whether another node would also take over if the primary were only cut off, and not known to be dead.", possible && f.Unfenced == "")
	if !possible {
		e.gauge("repmgr_failover_blocked", "Why no other node would take over. There is one line, whose value is 1, and none where a failover is possible.", 1, "reason", blocked(v.Rule, f))
	}
	if lost, known := atRisk(v.Rule, f); known {
		e.gauge("repmgr_at_risk_bytes", "How much acknowledged WAL would be lost if the primary died now: what the node that would take over had not received when it was last seen.", lost)
	}
}

// reasonOf is a refusal of a forecast in one word.
var reasonOf = map[election.Refusal]string{
	election.RefusedPaused: "paused", election.RefusedNoMajority: "no_majority", election.RefusedNoPledge: "no_pledges", election.RefusedPledges: "no_pledges",
	election.RefusedSync: "commits_may_be_missing", election.RefusedBehind: "commits_may_be_missing", election.RefusedNoneFit: "no_candidate", election.RefusedUnfenced: "primary_not_fenced",
	election.RefusedLocation: "location_lost", election.RefusedUsurper: "unelected_primary", election.RefusedLag: "lag", election.RefusedForeign: "repmgr5_daemon",
}

// blocked says in one word why nobody would win: one of reasonOf, or what keeps the primary from counting as lost.
func blocked(r election.Rule, f election.Forecast) string {
	switch {
	case !r.Known():
		return "no_rule"
	case f.Refusal != election.RefusedHealth:
		return cmp.Or(reasonOf[f.Refusal], "other")
	case f.Health == election.HealthMoved:
		return "another_primary"
	case f.Health == election.HealthShutDown:
		return "primary_shut_down"
	}
	return "primary_not_lost"
}

// atRisk is the acknowledged WAL that the winner of a forecast would lack. With quorum it has all of it.
func atRisk(r election.Rule, f election.Forecast) (lost int64, known bool) {
	if r.Quorum {
		return 0, f.Winner != 0
	}
	for _, c := range f.Candidates {
		if c.ID == f.Winner {
			return c.BehindLost, c.BehindLost >= 0
		}
	}
	return 0, false
}

// writeDisk writes what keeps WAL on the disk of the local server, and how much room there is.
func writeDisk(e *exposition, v health.View, free *int64) {
	if free != nil {
		e.gauge("repmgr_wal_volume_free_bytes", "How much may still be written where the WAL of this node is.", *free)
	}
	all := slots(v.Local.Slots)
	for _, s := range all {
		e.gauge("repmgr_slot_active", "Whether somebody streams through a replication slot of this node.", s.Active, "slot", s.Name)
	}
	for _, s := range all {
		if s.Kept != nil {
			e.gauge("repmgr_slot_retained_bytes", "How much WAL a replication slot of this node keeps.", max(0, *s.Kept), "slot", s.Name)
		}
	}
	for _, s := range all {
		if s.WALStatus != "" {
			e.gauge("repmgr_slot_wal_status", "What wal_status says of a replication slot: reserved, extended, unreserved or lost. The value is 1.", 1, "slot", s.Name, "status", s.WALStatus)
		}
	}
}

const (
	slotsWritten = 100       // bounds the number of series
	tableSync    = "pg_sync" // the slots of the first copies of tables that are subscribed to, each with a name that never comes again
)

var tableSyncName = regexp.MustCompile(`^pg_\d+_sync_\d+_\d+$`)

// slots are the permanent slots that are written: those that keep the most WAL, those that have lost it first. Of the slots of tableSync it is one.
func slots(all []registry.Slot) (written []registry.Slot) {
	kept := func(s registry.Slot) int64 {
		switch {
		case s.WALStatus == "lost":
			return math.MaxInt64
		case s.Kept == nil:
			return -1
		}
		return *s.Kept
	}
	syncs := false
	for _, s := range slices.SortedStableFunc(slices.Values(all), func(a, b registry.Slot) int { return cmp.Compare(kept(b), kept(a)) }) {
		isSync := tableSyncName.MatchString(s.Name)
		if s.Temporary || isSync && syncs || len(written) == slotsWritten {
			continue
		}
		if isSync {
			syncs, s.Name = true, tableSync
		}
		written = append(written, s)
	}
	return written
}

// stage is how far a standby has come.
type stage struct {
	standby, name string
	at            wal.LSN
}

// stages are how far the standbys have come that this node knows of, in the WAL of a primary that wrote up to end at that moment: of a
// primary all of its standbys, of a standby itself.
func stages(v health.View) (all []stage, end wal.LSN, at time.Time) {
	switch v.Runs() {
	case election.Primary:
		for _, s := range senders(v) {
			all = append(all, stage{s.ApplicationName, "sent", s.SentLSN}, stage{s.ApplicationName, "flush", s.FlushedLSN}, stage{s.ApplicationName, "replay", s.ReplayedLSN})
		}
		return all, v.Local.CurrentLSN, v.LocalSeenAt
	case election.Standby:
		all = []stage{{v.Node, "flush", v.Local.ReceivedLSN}, {v.Node, "replay", v.Local.ReplayedLSN}}
	}
	return all, v.Upstream.LSN, v.Upstream.SeenAt
}

// senders are the WAL senders of registered nodes, one of each: for a while a stream that has ended is seen beside the new one.
func senders(v health.View) (all []registry.WALSender) {
	for _, s := range v.Local.Senders {
		if _, registered := registry.ByName(v.Records, s.ApplicationName); s.State == "backup" || !registered {
			continue
		}
		if n := len(all); n == 0 || all[n-1].ApplicationName != s.ApplicationName { // they are sorted by their names
			all = append(all, s)
		} else if s.FlushedLSN > all[n-1].FlushedLSN {
			all[n-1] = s
		}
	}
	return all
}

// writeLag writes how far standbys are behind.
func writeLag(e *exposition, v health.View, w *wrote) {
	all, end, at := stages(v)
	w.note(at, end)
	for _, s := range all {
		if s.at != 0 && end != 0 {
			e.gauge("repmgr_replication_lag_bytes", "How much of the WAL of the primary a standby has not got so far.", max(0, end.Bytes(s.at)), "standby", s.standby, "stage", s.name)
		}
	}
	for _, s := range all {
		if ago, known := w.since(s.at); known && end != 0 {
			e.gauge("repmgr_replication_lag_seconds", "How long ago the primary wrote what a standby has got so far; 0 where it has all. It is told from where the primary wrote when metrics were asked for.", ago.Seconds(), "standby", s.standby, "stage", s.name)
		}
	}
}

// writePatroniMetrics writes the metrics that Patroni has, under its names.
func writePatroniMetrics(e *exposition, v health.View) {
	each, some := v.Synchronous()
	primary, standby := v.Primary().OK, v.Standby().OK
	e.gauge("patroni_version", "Patroni semver without periods.", 0)
	e.gauge("patroni_postgres_running", "Value is 1 if Postgres is running, 0 otherwise.", v.Running().OK)
	e.gauge("patroni_postmaster_start_time", "Epoch seconds since Postgres started.", v.Local.StartedAt)
	e.gauge("patroni_primary", "Value is 1 if this node is the leader, 0 otherwise.", primary)
	e.gauge("patroni_master", "Value is 1 if this node is the leader, 0 otherwise.", primary)
	x := xlog(v)
	location, _ := x.(xlogPrimary)
	at, _ := x.(xlogStandby)
	e.line("patroni_xlog_location", "counter", "Current location of the Postgres transaction log, 0 if this node is not the leader.", location.Location)
	e.gauge("patroni_standby_leader", "Value is 1 if this node is the standby_leader, 0 otherwise.", 0)
	e.gauge("patroni_replica", "Value is 1 if this node is a replica, 0 otherwise.", standby)
	e.gauge("patroni_sync_standby", "Value is 1 if this node is a sync standby, 0 otherwise.", standby && each)
	e.gauge("patroni_quorum_standby", "Value is 1 if this node is a quorum standby, 0 otherwise.", standby && some)
	e.line("patroni_xlog_received_location", "counter", "Current location of the received Postgres transaction log, 0 if this node is not a replica.", at.Received)
	e.line("patroni_xlog_replayed_location", "counter", "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.", at.Replayed)
	var replayed any = 0
	if v.Local.ReplayedAt != nil {
		replayed = *v.Local.ReplayedAt
	}
	e.gauge("patroni_xlog_replayed_timestamp", "Current timestamp of the replayed Postgres transaction log, 0 if null.", replayed)
	e.gauge("patroni_xlog_paused", "Value is 1 if the Postgres xlog is paused, 0 otherwise.", at.Paused)
	e.gauge("patroni_postgres_streaming", "Value is 1 if Postgres is streaming, 0 otherwise.", replicationState(v) == "streaming")
	e.gauge("patroni_postgres_in_archive_recovery", "Value is 1 if Postgres is replicating from archive, 0 otherwise.", replicationState(v) == "in archive recovery")
	e.gauge("patroni_postgres_server_version", "Version of Postgres (if running), 0 otherwise.", v.Local.VersionNum)
	e.gauge("patroni_cluster_unlocked", "Value is 1 if the cluster is unlocked, 0 if locked.", unlocked(v))
	e.gauge("patroni_failsafe_mode_is_active", "Value is 1 if failsafe mode is active, 0 if inactive.", 0)
	e.line("patroni_postgres_timeline", "counter", "Postgres timeline of this node (if running), 0 otherwise.", v.Timeline())
	e.gauge("patroni_dcs_last_seen", "Epoch timestamp when DCS was last contacted successfully by Patroni.", v.LookedAt.Truncate(time.Second))
	e.gauge("patroni_is_paused", "Value is 1 if auto failover is disabled, 0 otherwise.", v.Paused())
}
