package doctor

import (
	"context"
	"encoding/json"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// Facts are what is known of a cluster.
type Facts struct {
	Now       time.Time
	Nodes     []Node
	Rule      election.Rule    // zero: no daemon has written one
	Findings  []report.Finding // what cluster show and service status say
	Automatic bool             // failover=automatic, here or on a node
	Required  bool             // durability=required
	TooMany   bool             // there were as many failovers within the last hour as failovers_per_hour allows
	Waivers   []Waiver

	ids []string // of all checks
}

// Node is what is known of one node.
type Node struct {
	Record registry.Record
	Answer bool                // its server told its state, and what Server has
	Failed error               // why it did not, although it answered; nil: it did not answer, or told all
	Status registry.NodeStatus // where it did
	Server Server              // where it did
	Peer   election.Peer       // as an election sees it
}

// data reports whether the node can hold the cluster's data, and told its state.
func (n Node) data() bool { return n.Answer && n.Record.Role != registry.RoleWitness }

// Server is what a server says of itself, beside [registry.NodeStatus]. What this login may not read is
// missing.
type Server struct {
	At         time.Time         `json:"at"`          // its clock, at Asked
	Settings   map[string]string `json:"settings"`    // those that the checks need
	Restart    []string          `json:"restart"`     // settings that wait for a restart
	Slots      []Slot            `json:"slots"`       // but for Synced
	Synced     []string          `json:"synced"`      // the logical slots of its primary that it keeps ready for a failover
	Prepared   int               `json:"prepared"`    // prepared transactions
	PreparedAt *time.Time        `json:"prepared_at"` // the oldest of them
	Archived   *time.Time        `json:"archived_at"` // the last WAL segment that was archived
	Failed     *time.Time        `json:"failed_at"`   // the last that could not be
	FailedWAL  string            `json:"failed_wal"`  // its name

	Asked    time.Time     `json:"-"` // our clock when the answer was there
	Took     time.Duration `json:"-"` // how long the answer took
	ReadOnly bool          `json:"-"` // default_transaction_read_only is on
	Weak     []string      `json:"-"` // where synchronous_commit is weaker than on
	Ready    int           `json:"-"` // WAL segments that wait for the archiver; -1: not known
	WALBytes int64         `json:"-"` // written since WALSince; 0: not known
	WALSince time.Time     `json:"-"`
	Free     *int64        `json:"-"` // bytes free on the disk of its WAL, where that is on this machine; nil: not known
}

// Slot is a replication slot.
type Slot struct {
	Name     string `json:"name"`
	Active   bool   `json:"active"`
	Logical  bool   `json:"logical"`
	Failover bool   `json:"failover"` // standbys keep a copy of it
	Status   string `json:"wal_status"`
	Kept     *int64 `json:"kept"` // bytes of WAL; nil: none

	Unused *time.Time `json:"unused"` // since when nobody uses it, or since the start of the server; nil: somebody does, or it is not known (before PostgreSQL 17)
}

const serverSQL = `SELECT json_build_object(
  'at', clock_timestamp(),
  'settings', (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name = ANY ($1)),
  'restart', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart),
  'slots', (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'active', active, 'logical', slot_type = 'logical',
      'failover', coalesce((to_jsonb(s) ->> 'failover')::bool, false), 'wal_status', wal_status, 'unused', to_jsonb(s) ->> 'inactive_since', 'kept', pg_wal_lsn_diff(CASE WHEN r.rec THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::int8)), '[]') FROM pg_replication_slots s
      WHERE NOT temporary AND NOT (r.rec AND coalesce((to_jsonb(s) ->> 'synced')::bool, false))), -- on a promoted copy it stays true
  'synced', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots s WHERE r.rec AND (to_jsonb(s) ->> 'synced')::bool AND NOT temporary AND to_jsonb(s) ->> 'invalidation_reason' IS NULL),
  'prepared', (SELECT count(*) FROM pg_prepared_xacts),
  'prepared_at', (SELECT min(prepared) FROM pg_prepared_xacts),
  'archived_at', a.last_archived_time, 'failed_at', a.last_failed_time, 'failed_wal', coalesce(a.last_failed_wal, ''))
FROM pg_stat_archiver a, (SELECT pg_is_in_recovery() AS rec) r`

// settings are what the checks look at.
var settings = append([]string{
	"wal_level", "hot_standby", "fsync", "full_page_writes", "wal_log_hints", "data_checksums", "archive_mode", "max_slot_wal_keep_size",
	"restart_after_crash", "synchronized_standby_slots", "wal_keep_size", "wal_segment_size",
}, postgres.ReplaySettings...)

// Read asks a server of that server_version_num. What a privilege is missing for stays unknown.
func Read(ctx context.Context, n *registry.Server, version int) (Server, error) {
	var text []byte
	began := time.Now()
	if err := n.Conn.QueryRow(ctx, serverSQL, settings).Scan(&text); err != nil {
		return Server{}, n.QueryError("examine the server", err)
	}
	s := Server{Asked: time.Now(), Took: time.Since(began)}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, err
	}
	s.Ready, s.ReadOnly = n.ArchiveReady(ctx), n.ReadOnly(ctx)
	s.Weak, _ = n.WeakCommits(ctx)
	if version >= 140000 {
		_ = n.Conn.QueryRow(ctx, `SELECT wal_bytes::int8, stats_reset FROM pg_stat_wal`).Scan(&s.WALBytes, &s.WALSince)
	}
	return s, nil
}

// FreeOn is how many bytes an ordinary user may still write in a directory of this machine. nil: not known.
func FreeOn(dir string) *int64 {
	var st unix.Statfs_t
	if dir == "" || unix.Statfs(dir, &st) != nil {
		return nil
	}
	free := int64(st.Bavail) * st.Bsize
	return &free
}
