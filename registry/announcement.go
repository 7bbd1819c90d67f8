package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/pgrepmgr/repmgr/internal/failure"
)

const (
	PresenceLock    = 1919250541 // "repm": the class of the advisory lock that a Monitor holds; the object is the node's id
	presenceName    = "repmgrd"  // application_name of the Monitor's session
	presenceMark    = "SELECT 1 -- repmgrd "
	presenceBytes   = 900             // the longest statement: pg_stat_activity shows track_activity_query_size bytes, 1024 by default
	presenceRefresh = 2 * time.Second // the interval at which an unchanged announcement is repeated
	PresenceSilent  = 30 * time.Second
	presenceYields  = 5 * presenceRefresh // for so long after the last announcement of another Monitor of this node, ours does nothing
)

// Announcement is the heartbeat of a Monitor: what it announces about itself to everybody who can
// read its server. It is the text of the last statement of a session that holds an advisory
// lock. It needs no table, so it works on a standby, and it disappears with the Monitor.
type Announcement struct {
	ID        string            `json:"monitor_id,omitempty"` // identifies the Monitor for as long as it runs
	PID       int               `json:"pid"`                  // 0: the reader may not see it (pg_monitor may), or the server shows no statements
	Mode      FailoverMode      `json:"mode"`
	Phase     string            `json:"phase"`
	Reason    string            `json:"reason"`
	Since     time.Time         `json:"since,omitzero"`
	SeenAt    time.Time         `json:"upstream_seen_at,omitzero"`     // on a standby or witness: when the primary was last seen; zero: never
	Guarded   bool              `json:"upstream_guarded,omitempty"`    // when the primary was last seen, its Monitor was able and configured to stop it
	LeaseLeft *float64          `json:"lease_left_seconds"`            // on a primary with failover=automatic: seconds until its Monitor would stop it, at the time of the announcement, or with lease_runs_out at the time of reading; nil: it needs no lease, or its Monitor can not stop it
	RunsOut   bool              `json:"lease_runs_out,omitempty"`      // no majority has answered for half of silence_timeout, so the lease is not renewed; false: it is renewed all the time
	CanFence  *bool             `json:"can_fence"`                     // the Monitor has shown that it can stop its server; nil: not tried yet, or its version does not try
	Unable    string            `json:"can_not_fence,omitempty"`       // why it can not
	LostVote  string            `json:"lost_vote,omitempty"`           // a vote that the node has given and its server has lost, until it is written back
	NoStream  map[NodeID]string `json:"can_not_stream_from,omitempty"` // the nodes, by their ids, that its server could not stream from if they were the primary, and why
	NotSeen   map[NodeID]string `json:"not_seen"`                      // the nodes, by their ids, that do not answer the Monitor, and how they fail to; nil: its version does not say so. With failover=manual it asks none
	Routers   map[string]string `json:"routers_failing,omitempty"`     // the routers that did not take what the Monitor's program told them last, and why
	Error     string            `json:"last_error,omitempty"`
	Rejected  string            `json:"configuration_rejected,omitempty"` // why the last reload has changed nothing; empty: it was taken over, or there was none

	At  time.Time `json:"at,omitzero"`           // the time of the announcement, by the Monitor's clock
	Age float64   `json:"age_seconds,omitempty"` // seconds since then, by the server's clock
}

// SeenAgo is how long ago the primary was last seen. It does not depend on the clocks of
// different machines being the same.
func (p Announcement) SeenAgo() (time.Duration, bool) {
	if p.SeenAt.IsZero() {
		return 0, false
	}
	return max(0, p.At.Sub(p.SeenAt)) + time.Duration(p.Age*float64(time.Second)), true
}

// leaseOver reports whether the announced lease has expired although the primary runs: its
// Monitor tried to stop it, and could not.
func (p Announcement) leaseOver() bool {
	if p.RunsOut && p.LeaseLeft != nil {
		return *p.LeaseLeft+p.Age <= 0
	}
	return p.LeaseLeft != nil && *p.LeaseLeft <= 0
}

// Lease says in words how long a primary without contact to a majority continues. It is empty
// where the primary needs no lease, or the lease is renewed all the time.
func (p Announcement) Lease() string {
	switch {
	case p.leaseOver():
		return "has no contact to a majority any more, and its repmgrd could not stop it: only a reset of its machine helps now"
	case p.LeaseLeft == nil || !p.RunsOut:
		return ""
	case *p.LeaseLeft <= 0:
		return fmt.Sprintf("had no contact to a majority, and was to stop itself %.1f s ago; its repmgrd has said nothing for %.1f s", -*p.LeaseLeft, p.Age)
	}
	return fmt.Sprintf("has no contact to a majority: it stops itself in %.1f s unless one answers it", *p.LeaseLeft)
}

// same reports whether two announcements differ only in values that count time.
func (p Announcement) same(q Announcement) bool {
	return p.PID == q.PID && p.Mode == q.Mode && p.Phase == q.Phase && p.Reason == q.Reason && p.Since.Equal(q.Since) &&
		p.Error == q.Error && p.Rejected == q.Rejected && p.LostVote == q.LostVote && p.Unable == q.Unable && maps.Equal(p.NoStream, q.NoStream) && maps.Equal(p.NotSeen, q.NotSeen) && maps.Equal(p.Routers, q.Routers) && (p.CanFence == nil) == (q.CanFence == nil) && (p.CanFence == nil || *p.CanFence == *q.CanFence) && p.SeenAt.IsZero() == q.SeenAt.IsZero() && p.Guarded == q.Guarded && (p.LeaseLeft == nil) == (q.LeaseLeft == nil) && p.RunsOut == q.RunsOut && p.leaseOver() == q.leaseOver()
}

// secrets matches passwords in texts that others wrote, such as the output of a user's command.
var secrets = regexp.MustCompile(`(?i)((?:password|passwd)\s*[=:]\s*)(?:'[^']*'|"[^"]*"|[^\s&]+)|(://[^\s:/@]*:)[^\s@]+(@)`)

// statement is the SQL that carries p: one line, ASCII, short enough to be shown whole.
func (p Announcement) statement() string {
	hide := func(text string) string { return secrets.ReplaceAllString(text, "$1$2***$3") }
	reason, problem, unable, rejected := hide(p.Reason), hide(p.Error), hide(p.Unable), hide(p.Rejected)
	failed, notSeen, routers := p.NoStream, p.NotSeen, p.Routers
	for limit := presenceBytes; ; limit /= 2 {
		p.NoStream = map[NodeID]string{}
		for id, why := range failed {
			p.NoStream[id] = cut(hide(why), limit/8)
		}
		p.NotSeen = map[NodeID]string{}
		for id, how := range notSeen {
			p.NotSeen[id] = cut(how, limit/8)
		}
		p.Routers = map[string]string{}
		for name, why := range routers {
			p.Routers[name] = cut(hide(why), limit/8)
		}
		if limit == 0 {
			p.NotSeen, p.Routers = nil, nil // too many: readers do not know
		}
		p.Reason, p.Error, p.Unable, p.Rejected = cut(reason, limit), cut(problem, limit), cut(unable, limit), cut(rejected, limit)
		text, _ := json.Marshal(p) // strings, numbers and times only
		sql := presenceMark + ascii(string(text))
		if len(sql) <= presenceBytes || limit == 0 {
			return sql
		}
	}
}

// cut shortens a text to so many bytes.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:max(0, limit-3)], "") + "..."
}

// ascii writes a JSON document in letters that every server encoding has.
func ascii(doc string) string {
	var b strings.Builder
	for _, r := range doc {
		switch {
		case r < 0x80:
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		}
	}
	return b.String()
}

// Announcer announces a Monitor on its own server. It is not safe for concurrent use. Call
// Close when the Monitor ends.
type Announcer struct {
	Node   NodeID
	id     string // made by the first announcement
	conn   *Server
	Held   bool // this Monitor has the lock
	last   Announcement
	saidAt time.Time

	other time.Time // when another Monitor, which has the lock, last announced something; zero: there is none
}

// Announce announces s over a session that dial opens where there is none. It does nothing
// where s has no news and was announced a moment ago. It waits until ctx ends. An
// [failure.ErrRefused] names another Monitor that watches the same node.
func (p *Announcer) Announce(ctx context.Context, dial func(context.Context) (*Server, error), s Announcement) error {
	if p.conn != nil && p.conn.Conn.IsClosed() {
		p.Close()
	}
	if p.conn != nil && p.Held && s.same(p.last) && time.Since(p.saidAt) < presenceRefresh {
		return nil
	}
	if p.conn == nil {
		conn, err := dial(ctx)
		if err != nil {
			return fmt.Errorf("announce the monitor: %w", err)
		}
		p.conn = conn
	}
	if p.id == "" {
		p.id = rand.Text()[:8]
	}
	s.ID = p.id
	if !p.Held {
		if err := p.lock(ctx); err != nil {
			return err
		}
	}
	s.At, s.Age = time.Now(), 0
	if _, err := p.conn.Conn.Exec(ctx, s.statement()); err != nil {
		err = p.conn.QueryError("announce the monitor", err)
		p.Close()
		return err
	}
	p.last, p.saidAt = s, s.At
	return nil
}

// Overdue reports whether this Monitor had the lock, and has announced nothing for so long that
// another Monitor may have taken its place.
func (p *Announcer) Overdue() bool { return p.Held && time.Since(p.saidAt) >= presenceYields }

// Yields reports whether another Monitor acts for the node, so that this one must not. A Monitor
// that has announced nothing for some time does not count, because it hangs or is gone.
func (p *Announcer) Yields() bool {
	return !p.other.IsZero() && time.Since(p.other) < presenceYields
}

func (p *Announcer) lock(ctx context.Context) error {
	err := p.conn.Conn.QueryRow(ctx, `SELECT held FROM (SELECT pg_catalog.pg_try_advisory_lock($1::int, $2::int) AS held) l,
		LATERAL pg_catalog.set_config('application_name', CASE WHEN held THEN $3 ELSE $4 END, false)`,
		PresenceLock, int32(p.Node), presenceName, fmt.Sprintf("%s %d waits", presenceName, os.Getpid())).Scan(&p.Held)
	if err != nil {
		err = p.conn.QueryError("announce the monitor", err)
		p.Close()
		return err
	}
	if p.Held {
		p.other = time.Time{}
		return nil
	}
	all, err := ReadAnnouncements(ctx, p.conn)
	if err != nil {
		p.Close()
		return err
	}
	who := "another repmgrd"
	holder, there := all[p.Node]
	if holder.ID == p.id { // our own earlier session, which the server has not ended yet
		return failure.Of(failure.ErrRefused, "an earlier session of this repmgrd is still open on %s", p.conn.Name)
	}
	if holder.PID > 0 {
		who = fmt.Sprintf("another repmgrd, with PID %d,", holder.PID)
	}
	age := time.Duration(holder.Age * float64(time.Second))
	if there && age < presenceYields || p.oust(ctx) {
		p.other = time.Now().Add(-min(age, presenceYields/2))
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "%s watches %s already: this one changes nothing until that one has ended", who, p.conn.Name), "Stop one of them: a node has one repmgrd.")
}

// oust ends the session of another Monitor that has announced nothing for some time, and
// reports whether it did. Then one of the waiting Monitors gets the lock and acts for the node.
// If the other one ever continues, it has to wait.
func (p *Announcer) oust(ctx context.Context) (done bool) {
	err := p.conn.Conn.QueryRow(ctx, `SELECT coalesce(bool_or(pg_catalog.pg_terminate_backend(l.pid)), false)
		FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.classid = $1::int::oid AND l.objid = $2::int::oid AND l.objsubid = 2 AND l.granted
		AND extract(epoch FROM pg_catalog.clock_timestamp() - a.query_start) >= $3`, PresenceLock, int32(p.Node), presenceYields.Seconds()).Scan(&done)
	return err == nil && done // without the privilege to do this, the Monitor acts all the same
}

// Close ends the announcement. It may be called at any time.
func (p *Announcer) Close() {
	p.conn.Close()
	*p = Announcer{Node: p.Node, id: p.id, other: p.other}
}

// AnnouncementsSQL is a scalar subquery for the announcements of the Monitors on a server, as JSON
// text for [ParseAnnouncements].
const AnnouncementsSQL = `coalesce((SELECT pg_catalog.json_agg(pg_catalog.json_build_object('node_id', l.objid::bigint, 'says', a.query,
		'age', greatest(0, extract(epoch FROM pg_catalog.clock_timestamp() - a.query_start))))::text
	FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
	WHERE l.locktype = 'advisory' AND l.classid = 1919250541 AND l.objsubid = 2 AND l.granted), '[]')`

// WaitingMonitorsSQL is a scalar subquery for the process IDs of Monitors that wait because another
// Monitor has the lock.
const WaitingMonitorsSQL = `(SELECT coalesce(array_agg(DISTINCT substring(application_name FROM '[0-9]{1,9}')::int), '{}')
	FROM pg_stat_activity WHERE application_name ~ '^` + presenceName + ` [0-9]+ waits$')`

// ParseAnnouncements parses the result of [AnnouncementsSQL].
func ParseAnnouncements(text string) (map[NodeID]Announcement, error) {
	var rows []struct {
		Node NodeID   `json:"node_id"`
		Says string   `json:"says"`
		Age  *float64 `json:"age"`
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, fmt.Errorf("read the monitors: %w", err)
	}
	all := map[NodeID]Announcement{}
	for _, r := range rows {
		var p Announcement
		doc, ok := strings.CutPrefix(r.Says, presenceMark)
		if !ok || json.Unmarshal([]byte(doc), &p) != nil {
			p = Announcement{Reason: "it runs, and what it says can not be read here"}
		}
		if r.Age != nil {
			p.Age = *r.Age
		}
		if p.LeaseLeft != nil && p.RunsOut {
			left := *p.LeaseLeft - p.Age
			p.LeaseLeft = &left
		}
		all[r.Node] = p
	}
	return all, nil
}

// ReadAnnouncements reads the announcements of the Monitors on this server.
func ReadAnnouncements(ctx context.Context, n *Server) (map[NodeID]Announcement, error) {
	var text string
	if err := n.Conn.QueryRow(ctx, `SELECT `+AnnouncementsSQL).Scan(&text); err != nil {
		return nil, n.QueryError("read the monitors", err)
	}
	return ParseAnnouncements(text)
}

// FailoverMode says who decides on a failover: a person, or the daemons.
type FailoverMode string

const (
	FailoverManual    FailoverMode = "manual"
	FailoverAutomatic FailoverMode = "automatic"
)
