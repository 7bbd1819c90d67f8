package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// LineSQL returns what is known of the timeline of a server: for a primary its number, for a
// standby the timeline of its WAL receiver, or else what pg_control and the names of the
// history files say. See [wal.Evidence].
const LineSQL = `CASE WHEN NOT pg_is_in_recovery()
	THEN json_build_object('timeline', ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int)
	ELSE (SELECT json_build_object('received', w.received_tli, 'checkpoint', c.timeline_id, 'checkpoint_lsn', c.checkpoint_lsn,
			'minimum', m.min_recovery_end_timeline, 'minimum_lsn', m.min_recovery_end_lsn,
			'histories', CASE WHEN w.received_tli IS NULL THEN (SELECT json_agg(('x' || substr(name, 1, 8))::bit(32)::int ORDER BY name)
				FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{8}[.]history$' AND ('x' || substr(name, 1, 8))::bit(32)::int > c.timeline_id) END)
		FROM pg_control_checkpoint() c CROSS JOIN pg_control_recovery() m LEFT JOIN pg_stat_wal_receiver w ON true) END`

// LineEvidence is what [LineSQL] returns.
type LineEvidence struct {
	Timeline      wal.Timeline   `json:"timeline"` // of a primary
	Received      wal.Timeline   `json:"received"`
	Checkpoint    wal.Timeline   `json:"checkpoint"`
	CheckpointLSN wal.LSN        `json:"checkpoint_lsn"`
	Minimum       wal.Timeline   `json:"minimum"`
	MinimumLSN    wal.LSN        `json:"minimum_lsn"`
	Histories     []wal.Timeline `json:"histories"`
}

// Surely is the newest position that the server is certain to have reached.
func (e LineEvidence) Surely() wal.Position {
	p := wal.Position{Timeline: e.Checkpoint, LSN: e.CheckpointLSN}
	if e.Minimum > p.Timeline || e.Minimum == p.Timeline && e.MinimumLSN > p.LSN {
		p = wal.Position{Timeline: e.Minimum, LSN: e.MinimumLSN}
	}
	return p
}

// Mark reads the mark that tells a timeline from another one with the same number: see
// [wal.Line]. It is 0 where the WAL at the fork is gone, or the login may not read it.
func (n *Server) Mark(ctx context.Context, t wal.Timeline, past wal.History) uint32 {
	if len(past) == 0 {
		return 0
	}
	if m := n.marks[t]; m != 0 {
		return m
	}
	size, err := n.WALSegmentSize(ctx)
	if err != nil {
		return 0
	}
	header, err := n.readWAL(ctx, t, wal.RecordAt(past[len(past)-1].SwitchLSN, size), 24, size)
	if err != nil {
		return 0
	}
	if n.marks == nil {
		n.marks = map[wal.Timeline]uint32{}
	}
	n.marks[t] = wal.RecordChecksum(header)
	return n.marks[t]
}

// Timeline determines the timeline from the evidence. at is a position that is certain.
func (n *Server) Timeline(ctx context.Context, e LineEvidence, at wal.Position, replayed wal.LSN) (t wal.Timeline, sure bool) {
	if e.Timeline != 0 {
		return e.Timeline, true
	}
	if e.Received != 0 {
		return max(e.Received, at.Timeline), true
	}
	judge := wal.Evidence{At: at, Replayed: replayed}
	for _, t := range e.Histories {
		if t > at.Timeline {
			judge.Forks = append(judge.Forks, wal.Lineage{Timeline: t, Past: n.Past(ctx, t)})
		}
	}
	return judge.Timeline()
}

// Past is the history of a timeline, read once from the server's own file. It is nil on
// timeline 1, and where the login may not read files.
func (n *Server) Past(ctx context.Context, t wal.Timeline) wal.History {
	h, known := n.pasts[t]
	if known {
		return h
	}
	h, ok := n.OwnHistory(ctx, t)
	if n.pasts == nil {
		n.pasts = map[wal.Timeline]wal.History{}
	}
	if ok || t <= 1 {
		n.pasts[t] = h
	}
	return h
}

// ResolveTimeline lets a standby record its position on disk, by a checkpoint that may take no
// longer than limit.
func (n *Server) ResolveTimeline(ctx context.Context, limit time.Duration) error {
	for _, sql := range []string{fmt.Sprintf(`SET statement_timeout = %d`, limit.Milliseconds()), `CHECKPOINT`} {
		if _, err := n.Conn.Exec(ctx, sql); err != nil {
			return errors.Join(n.QueryError("checkpoint", err), n.noTimeout(ctx))
		}
	}
	return n.noTimeout(ctx)
}

func (n *Server) noTimeout(ctx context.Context) error {
	if _, err := n.Conn.Exec(ctx, `SET statement_timeout = 0`); err != nil {
		return n.QueryError("end a timeout", err)
	}
	return nil
}

// RuleLine is the line of WAL of a running primary, for the rules that it writes.
func (n *Server) RuleLine(ctx context.Context) (wal.Lineage, error) {
	var text []byte
	if err := n.Conn.QueryRow(ctx, `SELECT `+LineSQL).Scan(&text); err != nil {
		return wal.Lineage{}, n.QueryError("read the timeline", err)
	}
	var e LineEvidence
	if err := json.Unmarshal(text, &e); err != nil {
		return wal.Lineage{}, fmt.Errorf("read the timeline of %s: %w", n.Name, err)
	}
	l := wal.Lineage{Timeline: e.Timeline, Past: n.Past(ctx, e.Timeline)}
	l.Fingerprint = n.Mark(ctx, l.Timeline, l.Past)
	if l.Timeline > 1 && len(l.Past) == 0 {
		return wal.Lineage{}, nil // the history can not be read, so nothing can be compared with it
	}
	return l, nil
}

// OwnHistory reads the history of a timeline from the server's own files. It returns false on
// timeline 1, and where the login may not read files.
func (n *Server) OwnHistory(ctx context.Context, t wal.Timeline) (wal.History, bool) {
	if t <= 1 {
		return nil, false
	}
	var text []byte
	if err := n.Conn.QueryRow(ctx, `SELECT pg_read_binary_file('pg_wal/' || $1)`, wal.HistoryFileName(t)).Scan(&text); err != nil {
		return nil, false
	}
	h, err := wal.ParseHistory(text)
	return h, err == nil
}

// WALSum returns the MD5 of a piece of a WAL segment; false means that the segment is not
// there. A login that may not read files gets an error.
func (n *Server) WALSum(ctx context.Context, segment string, offset, length int64) (string, bool, error) {
	var sum *string
	if err := n.Conn.QueryRow(ctx, `SELECT md5(pg_read_binary_file('pg_wal/' || $1, $2, $3, true))`, segment, offset, length).Scan(&sum); err != nil {
		return "", false, n.QueryError("read the WAL", err)
	}
	if sum == nil {
		return "", false, nil
	}
	return *sum, true, nil
}

// EndsWithShutdown reports whether the last record that a standby has replayed is the
// checkpoint of a clean shutdown. It is false where that can not be determined.
func (n *Server) EndsWithShutdown(ctx context.Context, t wal.Timeline, end wal.LSN) bool {
	const most = 160 // the most bytes that such a record takes, with a page header inside
	if end < most {
		return false
	}
	segment, err := n.WALSegmentSize(ctx)
	if err != nil {
		return false
	}
	at := int64(end) % int64(segment)
	if at < most {
		return false
	}
	tail, err := n.readWAL(ctx, t, end-most, most, segment)
	return err == nil && wal.EndsWithShutdown(tail, end, segment)
}

// MissingWAL is the segment with the WAL from a position on, and the oldest one that the
// server has, where it does not have that segment any more. Both are empty where it has it,
// and where that can not be told: where that WAL is not written yet, or the login may not
// list the server's files (pg_monitor may).
func (n *Server) MissingWAL(ctx context.Context, next wal.Position) (needed, oldest string) {
	if next.LSN == 0 {
		return "", ""
	}
	var size uint32
	var end *wal.LSN
	var names []string
	err := n.Conn.QueryRow(ctx, `SELECT setting::bigint,
		CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END,
		(SELECT coalesce(array_agg(name), '{}') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$')
		FROM pg_settings WHERE name = 'wal_segment_size'`).Scan(&size, &end, &names)
	if err != nil || end == nil || next.LSN >= *end {
		return "", ""
	}
	needed = wal.SegmentName(next.Timeline, next.LSN, size)
	if oldest = missingFrom(names, needed); oldest == "" {
		return "", ""
	}
	return needed, oldest
}

// missingFrom is the oldest of the segments names, where needed is none of them
// on any timeline: a promotion moves the segment that it happens in to the new
// one. It is empty where needed is there.
func missingFrom(names []string, needed string) string {
	byPlace := func(a, b string) int { return strings.Compare(a[8:], b[8:]) }
	if len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return n[8:] == needed[8:] }) {
		return ""
	}
	return slices.MinFunc(names, byPlace)
}
