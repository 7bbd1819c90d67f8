package web

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// body is the document of a health check: the fields of Patroni, and ours in repmgr.
type body struct {
	State            string         `json:"state"`
	StartedAt        string         `json:"postmaster_start_time,omitempty"`
	Role             string         `json:"role"`
	ServerVersion    int            `json:"server_version,omitempty"`
	XLog             any            `json:"xlog,omitempty"`
	Timeline         wal.Timeline   `json:"timeline,omitempty"`
	ReplicationState string         `json:"replication_state,omitempty"`
	Replication      []sender       `json:"replication,omitempty"`
	SyncStandby      bool           `json:"sync_standby,omitempty"`
	QuorumStandby    bool           `json:"quorum_standby,omitempty"`
	Pause            bool           `json:"pause,omitempty"`
	Unlocked         bool           `json:"cluster_unlocked,omitempty"`
	LastSeen         int64          `json:"dcs_last_seen"` // when this daemon last completed a look, in seconds since 1970; 0: never
	Tags             map[string]any `json:"tags,omitempty"`
	SystemIdentifier string         `json:"database_system_identifier,omitempty"`
	Patroni          program        `json:"patroni"`
	Repmgr           own            `json:"repmgr"`
	Why              string         `json:"why,omitempty"` // why the answer is no
}

// xlogPrimary and xlogStandby are WAL positions, in bytes.
type xlogPrimary struct {
	Location uint64 `json:"location"`
}

type xlogStandby struct {
	Received   uint64  `json:"received_location"`
	Replayed   uint64  `json:"replayed_location"`
	ReplayedAt *string `json:"replayed_timestamp"`
	Paused     bool    `json:"paused"`
}

type sender struct {
	User     string `json:"usename,omitempty"`
	Name     string `json:"application_name"`
	Address  string `json:"client_addr"`
	State    string `json:"state"`
	Sync     string `json:"sync_state"`
	Priority int    `json:"sync_priority"`
}

type program struct {
	Version string `json:"version"`
	Scope   string `json:"scope"`
	Name    string `json:"name"`
}

// own is what Patroni has no words for.
type own struct {
	NodeID repmgr.NodeID  `json:"node_id"`
	Phase  election.Phase `json:"phase"`
	Reason string         `json:"reason"`
	Rule   *election.Rule `json:"rule,omitempty"`
	Lease  *float64       `json:"lease_left_seconds,omitempty"` // of a primary that needs a lease

	PausedSince time.Time `json:"paused_since,omitzero"`
	PausedBy    string    `json:"paused_by,omitempty"`
}

// scope is the name of the cluster for those that must have one.
func scope(v health.View) string { return cmp.Or(v.Cluster, "repmgr") }

func newBody(v health.View, why string) body {
	each, some := v.Synchronous()
	b := body{
		State: serverState(v), Role: patroniRole(v), ServerVersion: v.Local.VersionNum, Timeline: v.Timeline(),
		ReplicationState: replicationState(v), SyncStandby: each, QuorumStandby: some, Pause: v.Paused(), Unlocked: unlocked(v),
		Tags: tags(v.Record()), SystemIdentifier: v.Local.SystemIdentifier, Why: why,
		Patroni: program{"repmgr " + repmgr.Version, scope(v), v.Node},
		Repmgr:  own{NodeID: v.NodeID, Phase: v.Phase, Reason: v.Reason},
	}
	if !v.LookedAt.IsZero() {
		b.LastSeen = v.LookedAt.Unix()
	}
	if v.Rule.Known() {
		b.Repmgr.Rule = &v.Rule
	}
	by := election.PausedBy(v.Peers)
	b.Repmgr.PausedSince, b.Repmgr.PausedBy = by.Since, by.By
	if l := v.Lease; l.Known && l.Needed {
		left := l.Left.Seconds()
		b.Repmgr.Lease = &left
	}
	if v.Local.StartedAt.IsZero() {
		return b
	}
	b.StartedAt = v.Local.StartedAt.UTC().Format(patroniTime)
	b.XLog = xlog(v)
	for _, s := range v.Local.Senders {
		b.Replication = append(b.Replication, newSender(v, s))
	}
	return b
}

const (
	patroniTime = "2006-01-02 15:04:05.000000+00:00"
	patroniISO  = "2006-01-02T15:04:05-07:00"
)

func xlog(v health.View) any {
	end := v.Peer(int32(v.NodeID)).Position.LSN // newer than the last turn
	switch v.Runs() {
	case election.Primary:
		return xlogPrimary{uint64(max(end, v.Local.CurrentLSN))}
	case election.Standby:
		x := xlogStandby{Received: uint64(max(end, v.Local.ReceivedLSN)), Replayed: uint64(v.Local.ReplayedLSN), Paused: v.Local.ReplayPaused}
		if v.Local.ReplayedAt != nil {
			at := v.Local.ReplayedAt.UTC().Format(patroniTime)
			x.ReplayedAt = &at
		}
		return x
	}
	return nil
}

func newSender(v health.View, s registry.WALSender) sender {
	out := sender{Name: s.ApplicationName, Address: s.ClientAddr, State: s.State, Sync: s.SyncState}
	if s.SyncState != "async" {
		out.Priority = 1
	}
	r, _ := registry.ByName(v.Records, s.ApplicationName)
	out.User = r.ReplicationUser
	return out
}

// serverState is Patroni's word for the state of the local server.
func serverState(v health.View) string {
	if v.Running().OK {
		return "running"
	}
	return peerState(v.Peer(int32(v.NodeID)), "stopped")
}

// peerState is the state of a server that does not answer. silent is the word where nothing comes from it.
func peerState(p election.Peer, silent string) string {
	switch p.Answer {
	case election.NotAccepting:
		return "starting"
	case election.Refused:
		return "stopped"
	case election.Hangs:
		return "crashed"
	case election.NoSlots, election.Rejects:
		return "running"
	}
	return silent
}

// roleOf is what the node is, in one word.
func roleOf(v health.View) string {
	switch {
	case v.Record().Role == registry.RoleWitness:
		return "witness"
	case v.Primary().OK:
		return "primary"
	case v.Standby().OK:
		return "standby"
	}
	return "unknown"
}

// patroniRole is Patroni's word for it.
func patroniRole(v health.View) string {
	switch role := roleOf(v); {
	case role == "primary":
		return "primary"
	case role == "standby", v.Runs() == election.Standby:
		return "replica"
	case v.Runs() == election.Primary:
		return "demoted"
	}
	return "uninitialized"
}

// unlocked reports whether no primary is seen.
func unlocked(v health.View) bool {
	if v.Primary().OK {
		return false
	}
	if !v.Automatic {
		return v.Upstream.SeenAt.IsZero() || v.At.Sub(v.Upstream.SeenAt) > 2*v.Interval+v.Silence
	}
	return leader(v) == 0
}

// leader is the id of the primary in office, as this node sees it; 0: there is none.
func leader(v health.View) int32 {
	switch p := v.Peer(v.Rule.Primary); {
	case v.Primary().OK:
		return int32(v.NodeID)
	case !v.Automatic && !unlocked(v):
		return int32(v.Upstream.ID)
	case v.Automatic && p.Answer == election.Answers && p.Running == election.Primary && int32(v.NodeID) != p.ID:
		return p.ID
	}
	return 0
}

// members is the document of /cluster.
type members struct {
	Members []member `json:"members"`
	Scope   string   `json:"scope"`
	Pause   bool     `json:"pause,omitempty"`

	Scheduled *scheduledSwitchover `json:"scheduled_switchover,omitempty"`
}

// scheduledSwitchover is one that has not begun.
type scheduledSwitchover struct {
	At   string `json:"at"`
	From string `json:"from"`
	To   string `json:"to"`
}

type member struct {
	Name       string         `json:"name"`
	Role       string         `json:"role"`
	State      string         `json:"state"`
	Host       string         `json:"host,omitempty"`
	Port       int            `json:"port,omitempty"`
	Timeline   wal.Timeline   `json:"timeline,omitempty"`
	ReceiveLSN string         `json:"receive_lsn,omitempty"`
	ReceiveLag any            `json:"receive_lag,omitempty"` // bytes, or "unknown"; not of the leader, as all that follows
	ReplayLSN  string         `json:"replay_lsn,omitempty"`
	ReplayLag  any            `json:"replay_lag,omitempty"`
	LSN        string         `json:"lsn,omitempty"`
	Lag        any            `json:"lag,omitempty"`
	Tags       map[string]any `json:"tags,omitempty"`
}

func newMembers(v health.View) members {
	all := members{Members: []member{}, Scope: scope(v), Pause: v.Paused()}
	if h, ok := v.Scheduled(); ok {
		all.Scheduled = &scheduledSwitchover{h.Start.Format(patroniISO), v.Name(v.Rule.Primary), v.Name(h.Target)}
	}
	lead := leader(v)
	for _, r := range v.Records {
		if r.Role != registry.RoleWitness {
			all.Members = append(all.Members, newMember(v, r, lead))
		}
	}
	slices.SortFunc(all.Members, func(a, b member) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func newMember(v health.View, r registry.Record, lead int32) member {
	p := v.Peer(int32(r.ID))
	m := member{Name: r.Name, Role: "replica", State: memberState(v, r.ID, lead), Timeline: p.Position.Timeline, Tags: tags(r)}
	if at, err := conninfo.Parse(r.Conninfo); err == nil {
		m.Host = cmp.Or(at["host"], at["hostaddr"])
		m.Port, _ = strconv.Atoi(cmp.Or(at["port"], "5432"))
	}
	each, some := v.WaitsFor(p.ID)
	switch {
	case p.ID == lead:
		m.Role = "leader"
		return m
	case each:
		m.Role = "sync_standby"
	case some:
		m.Role = "quorum_standby"
	}
	end, received, replayed := progress(v, r, lead)
	m.ReceiveLSN, m.ReplayLSN, m.LSN = shown(received), shown(replayed), shown(replayed)
	m.ReceiveLag, m.ReplayLag = lag(end, received), lag(end, replayed)
	m.Lag = m.ReplayLag
	return m
}

func shown(at wal.LSN) string {
	if at == 0 {
		return ""
	}
	return at.String()
}

// lag is how far at is behind end, in bytes, or that it is unknown.
func lag(end, at wal.LSN) any {
	if end == 0 || at == 0 {
		return "unknown"
	}
	return max(0, end.Bytes(at))
}

func memberState(v health.View, id repmgr.NodeID, lead int32) string {
	p := v.Peer(int32(id))
	switch {
	case id == v.NodeID && replicationState(v) != "" && v.Running().OK:
		return replicationState(v)
	case id == v.NodeID:
		return serverState(v)
	case !v.Automatic && int32(id) == lead:
		return "running"
	case p.Answer != election.Answers:
		return peerState(p, "unknown")
	case p.Running == election.Standby && p.Receiving:
		return "streaming"
	case p.Running == election.Standby && p.Archive:
		return "in archive recovery"
	}
	return "running"
}

// history is the document of /history: each timeline, where it ended, and why.
func history(v health.View) [][]any {
	all := [][]any{}
	for _, e := range v.Rule.Line.Past {
		all = append(all, []any{e.Timeline, uint64(e.SwitchLSN), cmp.Or(e.Reason, "no recovery target specified")})
	}
	return all
}

// config is the document of /config: what Patroni has in it, and repmgr.conf without its secrets for those who may ask.
func (h *handler) config(r *http.Request, v health.View) map[string]any {
	doc := map[string]any{"loop_wait": v.Interval.Seconds(), "pause": v.Paused()}
	if h.o.Cluster == nil {
		return doc
	}
	c := h.o.Cluster().Config()
	doc["ttl"], doc["maximum_lag_on_failover"], doc["synchronous_mode"] = c.FenceTimeout.Seconds(), c.MaximumLagOnFailover, c.SynchronousMode != repmgr.SynchronousOff
	if refused := h.mayAsk(r); refused == "" {
		doc["repmgr"] = c.Dump()
	}
	return doc
}
