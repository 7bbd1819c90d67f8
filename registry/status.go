package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/wal"
)

// MinServerVersion is the oldest PostgreSQL that this package knows, as server_version_num.
const MinServerVersion = 130000

// NodeStatus is the state of a server, read in one statement. Fields that this login may not
// read are empty; see the grants of pg_monitor.
type NodeStatus struct {
	At               time.Time    `json:"at"` // the server's clock
	Version          string       `json:"server_version"`
	VersionNum       int          `json:"server_version_num"`
	StartedAt        time.Time    `json:"started_at"`
	SystemIdentifier string       `json:"system_identifier"`
	InRecovery       bool         `json:"in_recovery"`
	Timeline         wal.Timeline `json:"timeline"`
	CurrentLSN       wal.LSN      `json:"current_lsn"`  // where a primary writes; a standby has none
	ReceivedLSN      wal.LSN      `json:"received_lsn"` // the end of the WAL that a standby has
	ReplayedLSN      wal.LSN      `json:"replayed_lsn"`
	ReplayedAt       *time.Time   `json:"replayed_at"` // commit time of the last transaction replayed
	ReplayPaused     bool         `json:"replay_paused"`
	Receiver         *WALReceiver `json:"wal_receiver"` // nil: none is running
	Senders          []WALSender  `json:"wal_senders"`
	Slots            []Slot       `json:"slots"`
	Settings         Settings     `json:"settings"`
	PendingRestart   int          `json:"pending_restart"` // the settings that wait for a restart
	Archiver         *Archiver    `json:"archiver"`        // nil: the server archives nothing, or is older than PostgreSQL 15

	next    wal.LSN // the WAL position that a standby asks its upstream for next; 0: not known
	archive bool    // a standby has a restore_command

	timeoutShortened bool // a standby's WAL receiver ends when it hears nothing for 1 ms
}

// Role is what the server runs as.
func (s NodeStatus) Role() Role {
	if s.InRecovery {
		return RoleStandby
	}
	return RolePrimary
}

// Position is the end of the WAL that the server has.
func (s NodeStatus) Position() wal.Position {
	if s.InRecovery {
		return wal.Position{Timeline: s.Timeline, LSN: s.ReceivedLSN}
	}
	return wal.Position{Timeline: s.Timeline, LSN: s.CurrentLSN}
}

// WALReceiver is the row of pg_stat_wal_receiver.
type WALReceiver struct {
	Status        string       `json:"status"`
	SenderHost    string       `json:"sender_host"`
	SenderPort    int          `json:"sender_port"`
	SlotName      string       `json:"slot_name"`
	Timeline      wal.Timeline `json:"timeline"`
	LatestEndLSN  wal.LSN      `json:"latest_end_lsn"`
	LastMessageAt *time.Time   `json:"last_message_at"`
}

// WALSender is a row of pg_stat_replication.
type WALSender struct {
	PID             int     `json:"pid"`
	ApplicationName string  `json:"application_name"`
	ClientAddr      string  `json:"client_addr"` // empty: a Unix socket
	State           string  `json:"state"`
	SyncState       string  `json:"sync_state"`
	SentLSN         wal.LSN `json:"sent_lsn"`
	FlushedLSN      wal.LSN `json:"flushed_lsn"`
	ReplayedLSN     wal.LSN `json:"replayed_lsn"`
}

// Slot is a row of pg_replication_slots.
type Slot struct {
	Name      string `json:"slot_name"`
	Physical  bool   `json:"physical"`
	Active    bool   `json:"active"`
	Temporary bool   `json:"temporary"`
	WALStatus string `json:"wal_status"`
	Kept      *int64 `json:"kept"`             // bytes of WAL; nil: none
	Former    bool   `json:"former,omitempty"` // of a standby: a logical slot with failover of the time when it was the primary (PostgreSQL 17)
}

// Archiver is what pg_stat_archiver says of the archiving of WAL. Before PostgreSQL 15 a process keeps these numbers that
// may not answer for ten seconds, so they are not asked for: whoever looks at a server would take it for dead meanwhile.
type Archiver struct {
	Failed     int64      `json:"failed_count"`
	FailedAt   *time.Time `json:"last_failed"`   // nil: it has never failed
	ArchivedAt *time.Time `json:"last_archived"` // nil: nothing was archived yet
}

// ArchiveFails reports whether a server that archives WAL has failed in its newest attempt, or is told of no way to do it.
func ArchiveFails(s NodeStatus) bool {
	a := s.Archiver
	return a != nil && (s.Settings.ArchiveCommand == "" && s.Settings.ArchiveLibrary == "" || a.FailedAt != nil && (a.ArchivedAt == nil || a.FailedAt.After(*a.ArchivedAt)))
}

// Settings are the server settings that decide whether replication can work.
type Settings struct {
	Port               int    `json:"port"`
	WALLevel           string `json:"wal_level"`
	MaxWALSenders      int    `json:"max_wal_senders"`
	MaxSlots           int    `json:"max_replication_slots"`
	HotStandby         string `json:"hot_standby"`
	FullPageWrites     string `json:"full_page_writes"`
	WALLogHints        string `json:"wal_log_hints"`
	DataChecksums      string `json:"data_checksums"`
	ArchiveMode        string `json:"archive_mode"`
	ArchiveCommand     string `json:"archive_command"`
	ArchiveLibrary     string `json:"archive_library"`          // from PostgreSQL 15 on
	ApplyDelay         int    `json:"recovery_min_apply_delay"` // in ms
	DataDirectory      string `json:"data_directory"`
	DataDirectoryMode  string `json:"data_directory_mode"`
	ConfigFile         string `json:"config_file"`
	HBAFile            string `json:"hba_file"`
	IdentFile          string `json:"ident_file"`
	PrimaryConninfo    string `json:"-"` // may hold a password
	PrimarySlotName    string `json:"primary_slot_name"`
	SynchronousStandby string `json:"synchronous_standby_names"`
}

const nodeStatusSQL = `
SELECT json_build_object(
  'at', clock_timestamp(),
  'server_version', current_setting('server_version'),
  'server_version_num', current_setting('server_version_num')::int,
  'started_at', pg_postmaster_start_time(),
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'in_recovery', r.rec,
  'line', ` + postgres.LineSQL + `,
  'current_lsn', CASE WHEN NOT r.rec THEN pg_current_wal_lsn() END,
  'idle', d.idle,
  'asked', r.rec AND (d.idle OR pg_last_wal_receive_lsn() IS NOT NULL),
  'timeout_shortened', r.rec AND current_setting('wal_receiver_timeout') = '1ms',
  'archive', r.rec AND coalesce(current_setting('restore_command', true), '') || ltrim(coalesce(current_setting('repmgr.saved_restore_command', true), ''), '=') <> '',
  'received_lsn', CASE WHEN r.rec THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) END,
  'replayed_lsn', CASE WHEN r.rec THEN pg_last_wal_replay_lsn() END,
  'replayed_at', CASE WHEN r.rec THEN pg_last_xact_replay_timestamp() END,
  'replay_paused', CASE WHEN r.rec THEN pg_is_wal_replay_paused() ELSE false END,
  'wal_receiver', (SELECT json_build_object('status', status, 'sender_host', sender_host, 'sender_port', sender_port,
        'slot_name', slot_name, 'timeline', received_tli, 'latest_end_lsn', latest_end_lsn, 'last_message_at', last_msg_receipt_time)
      FROM pg_stat_wal_receiver),
  'wal_senders', (SELECT coalesce(json_agg(json_build_object('pid', pid, 'application_name', application_name, 'client_addr', host(client_addr), 'state', state, 'sync_state', sync_state,
        'sent_lsn', sent_lsn, 'flushed_lsn', flush_lsn, 'replayed_lsn', replay_lsn) ORDER BY application_name), '[]') FROM pg_stat_replication),
  'slots', (SELECT coalesce(json_agg(json_build_object('slot_name', slot_name, 'physical', slot_type = 'physical', 'active', active,
        'temporary', temporary, 'wal_status', wal_status, 'kept', pg_wal_lsn_diff(CASE WHEN r.rec THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::int8, 'former', ` + postgres.FormerSlotSQL + `) ORDER BY slot_name), '[]') FROM pg_replication_slots s),
  'settings', g.settings, 'pending_restart', g.pending, 'primary_conninfo', g.conninfo,
  'archiver', CASE WHEN current_setting('server_version_num')::int >= 150000 AND current_setting('archive_mode') <> 'off' THEN
      (SELECT json_build_object('failed_count', failed_count, 'last_failed', last_failed_time, 'last_archived', last_archived_time) FROM pg_stat_archiver) END
) FROM (SELECT pg_is_in_recovery() AS rec) r CROSS JOIN ` + postgres.IdleSQL + ` d CROSS JOIN (
  SELECT json_object_agg(name, CASE WHEN vartype = 'integer' AND name <> 'data_directory_mode' THEN to_json(setting::bigint) ELSE to_json(setting) END)
        FILTER (WHERE name IN ('port', 'wal_level', 'max_wal_senders', 'max_replication_slots', 'hot_standby', 'full_page_writes',
        'wal_log_hints', 'data_checksums', 'archive_mode', 'archive_command', 'archive_library', 'recovery_min_apply_delay', 'data_directory', 'data_directory_mode', 'config_file',
        'hba_file', 'ident_file', 'primary_slot_name', 'synchronous_standby_names')) AS settings,
      count(*) FILTER (WHERE pending_restart) AS pending, max(setting) FILTER (WHERE name = 'primary_conninfo') AS conninfo
    FROM pg_settings) g`

// Status reads the server's state in one statement.
func (n *Server) Status(ctx context.Context) (NodeStatus, error) {
	var text []byte
	err := n.Conn.QueryRow(ctx, nodeStatusSQL).Scan(&text)
	if postgres.SQLState(err) == postgres.CodeNotInState { // its promotion ended within the statement
		err = n.Conn.QueryRow(ctx, nodeStatusSQL).Scan(&text)
	}
	if err != nil {
		return NodeStatus{}, n.QueryError("read the status", err)
	}
	var s struct {
		NodeStatus
		PrimaryConninfo string                `json:"primary_conninfo"`
		Idle            bool                  `json:"idle"`
		Asked           bool                  `json:"asked"`
		Archive         bool                  `json:"archive"`
		Shortened       bool                  `json:"timeout_shortened"`
		Line            postgres.LineEvidence `json:"line"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return NodeStatus{}, fmt.Errorf("read the status of %s: %w", n.Name, err)
	}
	s.Settings.PrimaryConninfo, s.archive, s.timeoutShortened = s.PrimaryConninfo, s.Archive, s.Shortened
	if s.Asked {
		s.next = s.ReceivedLSN
	}
	s.Timeline, _ = n.Timeline(ctx, s.Line, s.Line.Surely(), s.ReplayedLSN)
	if s.InRecovery && s.Receiver == nil && s.Idle {
		s.ReceivedLSN, _ = n.LastRecordEnd(ctx, s.Timeline, s.ReplayedLSN, s.ReceivedLSN)
	}
	if s.VersionNum < MinServerVersion {
		return s.NodeStatus, failure.Of(failure.ErrRefused, "%s runs PostgreSQL %s: version 13 or later is needed", n.Name, s.Version)
	}
	return s.NodeStatus, nil
}

// NextLSN is the WAL position that a standby at the end of its own WAL asks its upstream for
// next; 0 means not known.
func NextLSN(s NodeStatus) wal.LSN { return s.next }

// HasArchive reports whether a standby has a restore_command.
func HasArchive(s NodeStatus) bool { return s.archive }

// ReceiverTimeoutShortened reports whether a standby has the wal_receiver_timeout of
// [ballot.ShortenReceiverTimeout], with which it can not stream for long.
func ReceiverTimeoutShortened(s NodeStatus) bool { return s.timeoutShortened }

// Attachment is the state in which a standby of that name is attached to the server of
// that status: streaming, catchup, or empty when it is not.
func Attachment(s NodeStatus, name string) string {
	best := ""
	for _, w := range s.Senders {
		switch {
		case w.ApplicationName != name || w.State == "backup":
		case w.State == "streaming":
			return w.State
		default:
			best = w.State
		}
	}
	return best
}

// Lag is how long ago a standby had replayed all that it had received: -1, which is
// unknown, where it receives nothing; 0 where it has now; else the age of the last
// transaction that it replayed.
func Lag(s NodeStatus) time.Duration {
	switch {
	case s.Receiver == nil: // it does not learn how far the others are
		return -1
	case s.ReplayedLSN >= s.ReceivedLSN:
		return 0
	case s.ReplayedAt == nil:
		return -1
	default:
		return max(0, s.At.Sub(*s.ReplayedAt))
	}
}

// SendersOf are the WAL senders of a server that stream under a name, or one that
// PostgreSQL takes for the same.
func SendersOf(s NodeStatus, name string) (all []WALSender) {
	for _, w := range s.Senders {
		if w.State == "streaming" && strings.EqualFold(w.ApplicationName, name) {
			all = append(all, w)
		}
	}
	return all
}

// AddressesOf says from where they stream.
func AddressesOf(senders []WALSender) string {
	var all []string
	for _, w := range senders {
		if from := cmp.Or(w.ClientAddr, "this machine"); !slices.Contains(all, from) {
			all = append(all, from)
		}
	}
	return strings.Join(all, " and ")
}
