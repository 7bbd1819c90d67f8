package fence

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// contact is what a primary learns about its standbys from their replication replies, even
// where they reject our login. A standby that reports WAL which did not exist at some moment
// has sent its reply after that moment; and its WAL receiver, which a pledge would have ended,
// was running then.
type contact struct {
	marks     []walMark // ordered by time, the newest last
	addresses map[string]addresses
}

// walMark says that all WAL beyond lsn was written after at.
type walMark struct {
	at  time.Time
	lsn wal.LSN
}

// walSender is a row of pg_stat_replication.
type walSender struct {
	Name    string  `json:"name"`
	Address string  `json:"address"` // empty: over a Unix socket
	Write   wal.LSN `json:"write"`   // the position that the standby reports
}

const (
	marksKept    = 64
	addressesFor = time.Minute            // a host name is looked up again after that time
	lookupLimit  = 200 * time.Millisecond // the time limit of a lookup: the next heartbeat waits for it
)

// A heartbeat first reads where the WAL ends and which standby has how much of it. Writing the
// heartbeat then makes new WAL, which the standbys can report the next time.
const (
	sendersSQL = `SELECT pg_current_wal_insert_lsn(), coalesce((SELECT json_agg(json_build_object('name', application_name,
		'address', coalesce(host(client_addr), ''), 'write', coalesce(write_lsn, '0/0')))
		FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')), '[]')::text`
	heartbeatSQL = `INSERT INTO repmgr.heartbeat AS h (at) VALUES (clock_timestamp()) ON CONFLICT (one_row) DO UPDATE SET at = EXCLUDED.at`
)

// heartbeat writes the sign of life of the local primary. It belongs to one goroutine.
type heartbeat struct {
	activeGuard
	contact contact
}

// run writes the heartbeat of the local primary until ctx ends. Without it, the silence of a
// standby's WAL receiver would mean nothing.
func (h *heartbeat) run(ctx context.Context) {
	for h.waitHeartbeat(ctx) == nil {
		s := h.settings.Load()
		if !s.Automatic || !h.IsPrimary() {
			h.noteHeartbeatTrouble("")
			continue
		}
		limit, cancel := context.WithTimeout(ctx, s.SilenceTimeout)
		err := h.watch.Voter(s.Node).Run(limit, func(n *registry.Server) error { return h.write(limit, n) })
		cancel()
		h.noteHeartbeatTrouble(trouble(err))
	}
}

func (g *Guard) noteHeartbeatTrouble(text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trouble = text
}

// trouble is what keeps a server from writing the heartbeat, in a few words.
func trouble(err error) string {
	switch {
	case err == nil:
		return ""
	case postgres.SQLState(err) == codeDiskFull:
		return "disk full"
	case errors.Is(err, context.DeadlineExceeded):
		return "input/output stalled"
	}
	var ce *postgres.ConnectError
	if errors.As(err, &ce) {
		return string(ce.Reach)
	}
	return "heartbeat refused: " + err.Error()
}

const codeDiskFull = "53100"

// write writes one heartbeat, and evaluates the replies of the standbys.
func (h *heartbeat) write(ctx context.Context, n *registry.Server) error {
	at := time.Now()
	var b pgx.Batch
	b.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	b.Queue(sendersSQL)
	b.Queue(heartbeatSQL)
	res := n.Conn.SendBatch(ctx, &b)
	var end wal.LSN
	var text string
	_, err := res.Exec()
	if err == nil {
		err = res.QueryRow().Scan(&end, &text)
	}
	if err == nil {
		_, err = res.Exec()
	}
	if closing := res.Close(); err == nil {
		err = closing
	}
	var senders []walSender
	if text != "" && json.Unmarshal([]byte(text), &senders) == nil {
		h.noteReplies(ctx, senders)
		h.contact.mark(walMark{at, end})
	}
	return err
}

// noteReplies notes for each standby the moment after which its newest reply was sent.
func (h *heartbeat) noteReplies(ctx context.Context, senders []walSender) {
	for _, rec := range h.watch.Records() {
		if rec.Role != registry.RoleStandby {
			continue
		}
		s, ok := soleSender(senders, rec.Name)
		at := h.contact.since(s.Write)
		if !ok || at.IsZero() || !h.contact.isAt(ctx, rec, s.Address) {
			continue
		}
		h.noteReply(int32(rec.ID), at)
	}
}

// soleSender is the only sender of that name. With two of them nobody knows which belongs to
// the node.
func soleSender(senders []walSender, name string) (found walSender, ok bool) {
	for _, s := range senders {
		switch {
		case s.Name != name:
		case ok:
			return walSender{}, false
		default:
			found, ok = s, true
		}
	}
	return found, ok
}

func (c *contact) mark(w walMark) {
	c.marks = append(c.marks, w)
	c.marks = c.marks[max(0, len(c.marks)-marksKept):]
}

// since is the last moment at which the WAL that ends at lsn was not there yet.
func (c *contact) since(lsn wal.LSN) (at time.Time) {
	for _, w := range c.marks {
		if w.lsn < lsn {
			at = w.at
		}
	}
	return at
}

// addresses are the addresses of a host name, as of a moment.
type addresses struct {
	all []string
	at  time.Time
}

// isAt reports whether the address belongs to the node's conninfo. A copy of the node's server
// on another machine streams under the same name.
func (c *contact) isAt(ctx context.Context, rec registry.Record, address string) bool {
	params, err := conninfo.Parse(rec.Conninfo)
	host := cmp.Or(params["hostaddr"], params["host"])
	if err != nil || strings.Contains(host, ",") {
		return false
	}
	if address == "" || host == "" || strings.HasPrefix(host, "/") {
		return address == "" && (host == "" || strings.HasPrefix(host, "/"))
	}
	if ip := net.ParseIP(host); ip != nil {
		return ip.Equal(net.ParseIP(address))
	}
	known := c.addresses[host]
	if time.Since(known.at) > addressesFor {
		ctx, cancel := context.WithTimeout(ctx, lookupLimit)
		defer cancel()
		if all, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
			known.all = all
		}
		known.at = time.Now() // where the lookup fails, the earlier addresses are used
		if c.addresses == nil {
			c.addresses = map[string]addresses{}
		}
		c.addresses[host] = known
	}
	for _, a := range known.all {
		if net.ParseIP(a).Equal(net.ParseIP(address)) {
			return true
		}
	}
	return false
}

// repliedAt is a moment after which a standby has sent a reply. Zero: none is known.
func (g *Guard) repliedAt(id int32) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.replied[id]
}

func (g *Guard) noteReply(id int32, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.replied == nil {
		g.replied = map[int32]time.Time{}
	}
	if at.After(g.replied[id]) {
		g.replied[id] = at
	}
}
