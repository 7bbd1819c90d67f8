package voters

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// peerSQL reads everything that an election needs to know of a server, in one round trip. The
// %s stand for our settings, the faults of the configuration, and the newest rule, where the
// server has such tables.
const peerSQL = `
SELECT json_build_object(
  'in_recovery', r.rec,
  'line', ` + postgres.LineSQL + `,
  'lsn', CASE WHEN NOT r.rec THEN pg_current_wal_flush_lsn() ELSE pg_last_wal_receive_lsn() END,
  'idle', d.idle,
  'replay', CASE WHEN r.rec THEN pg_last_wal_replay_lsn() END,
  'replay_paused', CASE WHEN r.rec THEN pg_is_wal_replay_paused() END,
  'target', r.rec AND current_setting('recovery_target') || current_setting('recovery_target_lsn') || current_setting('recovery_target_name')
      || current_setting('recovery_target_time') || current_setting('recovery_target_xid') <> '',
  'streams', w.status IS NOT NULL, 'receiving', coalesce(w.status = 'streaming', false), 'sender_host', w.sender_host, 'sender_port', w.sender_port,
  'senders', (SELECT coalesce(json_agg(application_name), '[]') FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')),
  'senders_free', current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
  'slots_free', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
  'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots),
  'heard', extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time),
  'detached', r.rec AND current_setting('primary_conninfo') = '',
  'archive', r.rec AND current_setting('restore_command') <> '',
  'delayed', current_setting('recovery_min_apply_delay') <> '0',
  'started', pg_postmaster_start_time(),
  'free', current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
      - coalesce(current_setting('reserved_connections', true)::int, 0) - (SELECT sum(numbackends)::int FROM pg_stat_database),
  'settings', %s,
  'fault', %s,
  'presences', ` + registry.AnnouncementsSQL + `,
  'extension', to_regprocedure('repmgr.repmgrd_is_running()') IS NOT NULL,
  'rule', %s)
FROM (SELECT pg_is_in_recovery() AS rec) r LEFT JOIN pg_stat_wal_receiver w ON true CROSS JOIN ` + postgres.IdleSQL + ` d`

// Look reads the full view of a node over a connection to it.
func (w *Watch) Look(ctx context.Context, n *registry.Server, rec registry.Record) (election.Peer, error) {
	v, _, err := w.Voter(int32(rec.ID)).session(n).peerView(ctx, w, rec)
	return v, err
}

// peerView reads the full view of a node from its server, and the announcement of its daemon.
func (n *session) peerView(ctx context.Context, w *Watch, rec registry.Record) (election.Peer, registry.Announcement, error) {
	rule := `(` + registry.RulesSQL + ` LIMIT 1)`
	if err := n.NeedSchema(ctx); errors.Is(err, failure.ErrNotRegistered) {
		rule = "NULL"
	} else if err != nil {
		return election.Peer{}, registry.Announcement{}, err
	}
	fault, asked, of := "NULL", time.Now(), w.Voter(int32(rec.ID))
	checked, known := of.faultSeen()
	if asked.Sub(checked) >= faultInterval {
		fault = ballot.FaultSQL
	}
	text, err := n.look(ctx, fmt.Sprintf(peerSQL, ballot.SettingsSQL, fault, rule))
	unreadable := err
	if ballot.Unreadable(err) {
		text, err = n.look(ctx, fmt.Sprintf(peerSQL, "NULL", "NULL", rule))
	}
	if err != nil {
		return election.Peer{}, registry.Announcement{}, n.QueryError("look at the node", err)
	}
	var s struct {
		InRecovery   bool                  `json:"in_recovery"`
		Line         postgres.LineEvidence `json:"line"`
		LSN          wal.LSN               `json:"lsn"`
		Replay       wal.LSN               `json:"replay"`
		ReplayPaused bool                  `json:"replay_paused"`
		Target       bool                  `json:"target"`
		Idle         bool                  `json:"idle"`
		Streams      bool                  `json:"streams"`
		Receiving    bool                  `json:"receiving"`
		Host         string                `json:"sender_host"`
		Port         int                   `json:"sender_port"`
		Senders      []string              `json:"senders"`
		SendersFree  int                   `json:"senders_free"`
		SlotsFree    int                   `json:"slots_free"`
		Slots        []string              `json:"slots"`
		Heard        float64               `json:"heard"`
		Detached     bool                  `json:"detached"`
		Archive      bool                  `json:"archive"`
		Delayed      bool                  `json:"delayed"`
		Started      time.Time             `json:"started"`
		Free         int                   `json:"free"`
		Settings     string                `json:"settings"`
		Fault        string                `json:"fault"`
		Presences    string                `json:"presences"`
		Extension    bool                  `json:"extension"` // the extension of repmgr 5 is there
		Rule         election.Rule         `json:"rule"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return election.Peer{}, registry.Announcement{}, fmt.Errorf("look at %s: %w", rec, err)
	}
	set, b, unable := ReadVote(s.Settings, unreadable)
	if fault != "NULL" {
		known = s.Fault
		of.setFault(asked, known)
	}
	n.free = max(0, s.Free)
	v := election.Peer{
		Running: election.Primary, Position: wal.Position{LSN: max(s.LSN, s.Replay)}, Replayed: s.Replay, Idle: s.Idle,
		Streams: s.Streams, Receiving: s.Receiving, Heard: time.Duration(s.Heard * float64(time.Second)), Detached: s.Detached, Archive: s.Archive, Delayed: s.Delayed, Started: s.Started,
		Term: b.Term, Candidate: strings.TrimSuffix(b.Candidate, ballot.ChosenMark), WonElection: strings.HasSuffix(b.Candidate, ballot.ChosenMark), Rule: s.Rule,
		NoPledge: cmp.Or(unable, known),
	}
	v.Misnamed = registry.NameProblem(rec, w.Records()) != ""
	v.Paused, v.PauseSeq = registry.ParsePaused(set[registry.PausedSetting], rec.ID)
	v.PausedBy = registry.ParsePausedBy(set[registry.PausedBySetting])
	v.Handover, v.Restart = registry.ParseHandover(set[registry.HandoverSetting]), registry.ParseRestart(set[registry.RestartSetting])
	v.Feeds, v.NeedsSlot = w.fed(s.Senders), rec.SlotName != ""
	v.Capacity = election.Capacity{Known: true, Senders: s.SendersFree + len(v.Feeds), Slots: s.SlotsFree + w.ofNodes(s.Slots)}
	if s.Extension {
		foreign, err := n.ForeignDaemon(ctx)
		if err != nil {
			return election.Peer{}, registry.Announcement{}, err
		}
		v.Foreign = foreign != nil
	}
	sure := readLine(ctx, n.Server, &v, s.Line)
	if s.InRecovery {
		v.Running, v.ReplayPaused = election.Standby, s.ReplayPaused
		if !s.Streams {
			var whole bool
			v.Position.LSN, whole = n.LastRecordEnd(ctx, v.Position.Timeline, s.Replay, v.Position.LSN)
			// It has received nothing since its start, and may not have read all of its WAL yet.
			sure = sure && whole && (s.LSN != 0 || s.Idle)
		}
		v.ReplayBlocked = replayHalt(ctx, n.Server, s.Target, s.ReplayPaused)
		v.Receives = int32(w.nodeAt(s.Host, s.Port))
		v.ShutDown = !s.Streams && n.EndsWithShutdown(ctx, v.Position.Timeline, v.Position.LSN)
	}
	v.PositionUnknown = !sure
	if behind, own := salvage.OwnWAL(set, v.Position.Timeline); own && s.InRecovery {
		v.ReplayBlocked, v.Position.LSN = election.UnfitOwnWAL, behind
	}
	var told election.Rule
	if text := set[registry.AnnouncedRuleSetting]; text != "" && json.Unmarshal([]byte(text), &told) == nil {
		v.ID, v.Role = int32(rec.ID), election.Role(rec.Role)
		v = v.WithAnnounced(told)
	}
	all, err := registry.ParseAnnouncements(s.Presences)
	if err != nil {
		return v, registry.Announcement{}, err
	}
	p, ok := all[rec.ID] // a daemon whose announcement can not be read here counts as automatic
	v.Monitored, v.Automatic = ok, ok && p.Mode != registry.FailoverManual
	if lost, err := ballot.Parse(p.LostVote); err == nil && lost.Term > 0 && lost.Term >= v.Term {
		v.Term, v.Candidate, v.WonElection = lost.Term, strings.TrimSuffix(lost.Candidate, ballot.ChosenMark), strings.HasSuffix(lost.Candidate, ballot.ChosenMark)
		v.NoPledge = "its server has lost its vote of term " + fmt.Sprint(lost.Term)
	}
	for id, why := range p.NoStream {
		if v.NoStream == nil {
			v.NoStream = map[int32]string{}
		}
		v.NoStream[int32(id)] = why
	}
	v.CanFence = ok && p.CanFence != nil && *p.CanFence
	return v, p, nil
}

// faultInterval is the time between two checks of a server's configuration for faults. They
// cost the server more than all other questions together.
const faultInterval = 5 * time.Second

// ReadVote reads our settings, and the vote among them, from the text of the server's file.
// Where they can not be read for certain, unable says why.
func ReadVote(text string, unreadable error) (set map[string]string, b ballot.Ballot, unable string) {
	err := unreadable
	if err == nil {
		set, err = ballot.Settings(text)
	}
	if err == nil {
		b, err = ballot.Parse(set[ballot.Setting])
	}
	if err != nil {
		return set, ballot.Ballot{}, "its vote can not be read: " + postgres.Cause(err)
	}
	return set, b, ""
}

// look runs one query. The first query on a connection is sent without preparing it, so that it
// takes one round trip.
func (n *session) look(ctx context.Context, sql string) (text []byte, err error) {
	if n.unsettled {
		if text, err = postgres.LookFirst(ctx, n.Conn.PgConn(), sql); err == nil {
			n.unsettled = false
		}
		return text, err
	}
	mode := pgx.QueryExecModeExec
	if n.looked {
		mode = pgx.QueryExecModeCacheStatement
	}
	n.looked = true
	err = n.Conn.QueryRow(ctx, sql, mode).Scan(&text)
	return text, err
}
