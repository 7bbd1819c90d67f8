package web

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
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

func (e *exposition) line(name, kind, help string, value any, labels ...string) {
	if e.last != name {
		fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		e.last = name
	}
	all := e.base
	for i := 0; i+1 < len(labels); i += 2 {
		all += "," + labels[i] + "=" + quote(labels[i+1])
	}
	fmt.Fprintf(e.w, "%s{%s} %s\n", name, all, number(value))
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
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

func writeMetrics(w io.Writer, v health.View, compat repmgr.MetricsCompat) {
	e := &exposition{w: w, base: fmt.Sprintf("cluster=%s,node=%s,node_id=%s", quote(scope(v)), quote(v.Node), quote(v.NodeID.String()))}
	e.gauge("repmgr_build_info", "The version of repmgr.", 1, "version", repmgr.Version)
	e.gauge("repmgr_up", "Whether the server of this node answers.", v.Running().OK)
	e.gauge("repmgr_daemon_looked_timestamp_seconds", "When this daemon last completed a look at its server.", v.LookedAt)
	e.gauge("repmgr_is_primary", "Whether this node is the primary, by its rule and its lease.", v.Primary().OK)
	e.gauge("repmgr_is_standby", "Whether this node is a standby that answers queries.", v.Standby().OK)
	e.gauge("repmgr_timeline", "The timeline of the server of this node.", v.Timeline())
	if v.Automatic {
		writeCluster(e, v)
	}
	writeLag(e, v)
	if compat == repmgr.MetricsPatroni {
		writePatroniMetrics(&exposition{w: w, base: fmt.Sprintf("scope=%s,name=%s", quote(scope(v)), quote(v.Node))}, v)
	}
}

// writeCluster writes what a daemon knows that takes part in elections.
func writeCluster(e *exposition, v health.View) {
	e.gauge("repmgr_primaries_seen", "How many nodes run as a primary, as this node sees it.", len(v.Primaries()))
	e.gauge("repmgr_term", "The newest term that this node knows of.", v.Rule.Term)
	e.gauge("repmgr_paused", "Whether failover is paused.", v.Paused())
	e.gauge("repmgr_fenced", "Whether this daemon has stopped its server, because another node may be the primary.", v.Phase == election.Fenced)
	e.gauge("repmgr_voters", "How many voters the newest rule has.", len(v.Rule.Voters))
	e.gauge("repmgr_voters_reachable", "How many voters answer this node, itself included.", len(v.Reachable()))
	e.gauge("repmgr_synchronous_standbys", "How many standbys commits may wait for.", len(v.Rule.Sync))
	e.gauge("repmgr_synchronous_acks", "How many of them must have a commit before it is acknowledged.", v.Rule.Acks)
	if l := v.Lease; l.Known && l.Needed {
		e.gauge("repmgr_lease_seconds", "How long this primary may go on without further contact to a majority.", l.Left.Seconds())
	}
	for _, p := range v.Peers {
		if p.Role == election.Standby {
			e.gauge("repmgr_standby_streaming", "Whether a standby receives WAL, as this node sees it.", p.Answer == election.Answers && p.Receiving, "standby", v.Name(p.ID))
		}
	}
}

// writeLag writes how far standbys are behind: of a primary all of them, of a standby itself.
func writeLag(e *exposition, v health.View) {
	const name, help = "repmgr_replication_lag_bytes", "How much of the WAL of the primary a standby has not got so far."
	switch v.Runs() {
	case election.Primary:
		for _, s := range v.Local.Senders {
			if _, registered := registry.ByName(v.Records, s.ApplicationName); s.State == "backup" || !registered {
				continue
			}
			e.gauge(name, help, max(0, v.Local.CurrentLSN.Bytes(s.SentLSN)), "standby", s.ApplicationName, "stage", "sent")
			e.gauge(name, help, max(0, v.Local.CurrentLSN.Bytes(s.FlushedLSN)), "standby", s.ApplicationName, "stage", "flush")
			e.gauge(name, help, max(0, v.Local.CurrentLSN.Bytes(s.ReplayedLSN)), "standby", s.ApplicationName, "stage", "replay")
		}
	case election.Standby:
		if n, ok := v.Lag(v.Local.ReceivedLSN); ok {
			e.gauge(name, help, n, "standby", v.Node, "stage", "flush")
		}
		if n, ok := v.Lag(v.Local.ReplayedLSN); ok {
			e.gauge(name, help, n, "standby", v.Node, "stage", "replay")
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
