package voters

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// heartbeatsPerLook is the number of heartbeats after which a node is looked at in full even if
// glances show no change: they do not show what its daemon announces.
const heartbeatsPerLook = 8

// glance is the result of a short probe. A look, the full probe, costs the server forty times
// as much, so between two looks there are glances. They show that the server lives, where its
// WAL ends, and whether something has changed that only a look can read.
type glance struct {
	state *string // the same as long as nothing has changed; nil: a look is needed
	lsn   wal.LSN
	heard float64 // seconds since the WAL receiver heard from its sender
}

// The vote and the flag of a pause are in the configuration. Whoever writes there what a look
// reads also makes the server load it, so pg_conf_load_time shows the change. A standby that
// does not stream always needs a look.
var glanceSQL = `
SELECT CASE WHEN NOT r.rec OR w.status = 'streaming' THEN concat_ws('/', r.rec, pg_postmaster_start_time(), pg_conf_load_time(),
    w.received_tli, w.sender_host, w.sender_port, (SELECT term || '.' || seq FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1),
    (SELECT string_agg(concat(pid, state), ',') FROM pg_stat_get_wal_senders()),
    (SELECT string_agg(concat(objid, '.', pid), ',') FROM pg_lock_status() WHERE locktype = 'advisory' AND classid = ` + fmt.Sprint(registry.PresenceLock) + ` AND objsubid = 2 AND granted)) END,
  CASE WHEN r.rec THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END,
  coalesce(extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time), 0)::float8
FROM (SELECT pg_is_in_recovery() AS rec) r LEFT JOIN pg_stat_wal_receiver w ON true`

// glance makes a short probe over a connection that was used for a look before. It bypasses
// pgx, which would take more time for this fixed question than the server does. ctx limits it.
func (n *session) glance(ctx context.Context) (g glance, err error) {
	if n.Level != registry.Ours {
		return g, nil
	}
	const name = "glance"
	conn := n.Conn.PgConn()
	if !n.glances {
		if _, err := conn.Prepare(ctx, name, glanceSQL, nil); err != nil {
			return g, n.QueryError("glance at the node", err)
		}
		n.glances = true
	}
	res := conn.ExecPrepared(ctx, name, nil, nil, nil).Read()
	if res.Err != nil {
		return g, n.QueryError("glance at the node", res.Err)
	}
	if len(res.Rows) != 1 || len(res.Rows[0]) != 3 {
		return g, fmt.Errorf("glance at %s: want one row of three columns", n.Name)
	}
	row := res.Rows[0]
	if row[0] != nil {
		state := string(row[0])
		g.state = &state
	}
	if err = g.lsn.UnmarshalText(row[1]); err == nil {
		g.heard, err = strconv.ParseFloat(string(row[2]), 64)
	}
	if err != nil {
		return g, fmt.Errorf("glance at %s: %w", n.Name, err)
	}
	return g, nil
}

// same reports whether nothing has changed that needs a look.
func (g glance) same(old glance) bool {
	return g.state != nil && old.state != nil && *g.state == *old.state
}

// update returns the view v with what the glance shows.
func (g glance) update(v election.Peer) election.Peer {
	v.Position.LSN, v.Heard = g.lsn, time.Duration(g.heard*float64(time.Second))
	return v
}
