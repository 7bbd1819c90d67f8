package repmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// observe looks at a standby's primary, then at the local server: so the local
// position is the younger one. What does not answer in time is not there.
func (m *Monitor) observe(ctx context.Context, now time.Time) election.Observation {
	o := election.Observation{Now: now}
	if m.cluster.cfg.NodeID == 0 {
		m.observeFrom(ctx)
	} else {
		m.observeNode(ctx, &o)
	}
	m.observeVoters(&o)
	return o
}

func (m *Monitor) observeNode(ctx context.Context, o *election.Observation) {
	if m.primary != nil && m.silent(m.primRec.ID) {
		m.drop(&m.primary)
	}
	if m.primary != nil {
		o.Upstream = m.readPrimary(ctx)
	}
	status, recs, err := m.observeLocal(ctx)
	if ctx.Err() != nil {
		return
	}
	m.report("the local server", err)
	if err != nil {
		if len(m.recs) == 0 {
			m.recs = m.cluster.keptRecords()
		}
		return
	}
	m.sample.local = status
	switch {
	case !status.InRecovery:
		m.drop(&m.primary)
		o.Upstream = election.View{}
	case m.primary != nil && status.Timeline > m.primTimeline:
		m.drop(&m.primary) // we follow a newer one: that one was deposed
		o.Upstream = election.View{}
	}
	if status.InRecovery && m.primary == nil && !m.silent(m.ruler()) && m.findPrimary(ctx, recs) {
		o.Upstream = m.readPrimary(ctx)
	}
	if m.primary != nil { // its copy of the rows is the one that counts
		if theirs, err := m.readRecords(ctx, m.primary); err == nil {
			recs = theirs
		}
	}
	o.Local = election.View{Up: true, InRecovery: status.InRecovery, Position: status.Position()}
	o.RowKnown = true
	m.recs = recs
	m.self, _ = recordByID(recs, m.cluster.cfg.NodeID)
	if m.self.ID == 0 {
		return
	}
	m.witness = m.self.Role == RoleWitness
	o.Node = election.Node{Registered: true, Role: election.Role(m.self.Role), Active: m.self.Active}
	o.Children = map[int32]bool{}
	for _, r := range recs {
		if r.UpstreamID == m.self.ID && r.Role == RoleStandby {
			o.Children[int32(r.ID)] = attachment(status, r.Name) != ""
		}
	}
}

func (m *Monitor) readRecords(ctx context.Context, n *Node) ([]Record, error) {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	return n.ownRecords(ctx)
}

// ownRecords are the rows of a server that has all of our tables: those of repmgr
// 5 are none of a Monitor's before they are adopted.
func (n *Node) ownRecords(ctx context.Context) ([]Record, error) {
	if err := n.needSchema(ctx); err != nil {
		return nil, err
	}
	return n.records(ctx)
}

// observeLocal keeps one connection to the local server, and makes it anew when it broke.
func (m *Monitor) observeLocal(ctx context.Context) (NodeStatus, []Record, error) {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	fresh := m.local == nil
	for {
		if m.local == nil {
			n, err := m.cluster.connectLocal(ctx)
			if err != nil {
				return NodeStatus{}, nil, err
			}
			m.local = n
		}
		status, err := m.local.Status(ctx)
		if err == nil {
			recs, errRecs := m.local.ownRecords(ctx)
			if errRecs == nil || errors.Is(errRecs, ErrNotRegistered) {
				return status, recs, nil // without metadata there are no rows
			}
			err = errRecs
		}
		m.drop(&m.local)
		if fresh {
			return NodeStatus{}, nil, err
		}
		fresh = true // an old connection may have died with a server that is back already
	}
}

// lookLimit bounds one look at one server.
func (m *Monitor) lookLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, 2*DefaultConnectTimeout, fmt.Errorf("no answer within %s", 2*DefaultConnectTimeout))
}

// peerLimit bounds what is asked of another node between two decisions: while
// one that has just been cut off is waited for, nothing is decided.
func (m *Monitor) peerLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	if m.cluster.cfg.Failover != FailoverAutomatic {
		return m.lookLimit(ctx)
	}
	limit := m.cluster.cfg.SilenceTimeout / 2
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
}

// readPrimary asks the known primary where it writes. One that does not answer,
// or is a primary no longer, is known no longer.
func (m *Monitor) readPrimary(ctx context.Context) election.View {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	var inRecovery bool
	err := m.primary.conn.QueryRow(ctx, `SELECT r, CASE WHEN NOT r THEN pg_current_wal_lsn() END,
		CASE WHEN NOT r THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int ELSE 0 END FROM pg_is_in_recovery() r`).
		Scan(&inRecovery, &m.sample.primaryLSN, &m.primTimeline)
	if err != nil || inRecovery {
		m.drop(&m.primary)
		return election.View{}
	}
	return election.View{Up: true, Position: wal.Position{LSN: m.sample.primaryLSN}}
}

// findPrimary looks for a primary among the nodes that the local server knows.
func (m *Monitor) findPrimary(ctx context.Context, recs []Record) bool {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	rec, err := m.choosePrimary(ctx, recs)
	if err == nil && rec.ID == m.cluster.cfg.NodeID {
		return false // it became the primary while we looked: the next look sees it as that
	}
	if err == nil {
		m.primary, err = m.cluster.connectTo(ctx, rec)
	}
	if len(recs) > 0 {
		m.report(troublePrimary, err)
	}
	if err != nil {
		return false
	}
	m.primRec = rec
	return true
}

// choosePrimary is the one primary; of several, the one that sends to us.
func (m *Monitor) choosePrimary(ctx context.Context, recs []Record) (Record, error) {
	rec, err := m.cluster.findPrimary(ctx, recs)
	if !errors.Is(err, ErrRefused) {
		return rec, err
	}
	for _, p := range primaries(m.cluster.survey(ctx, recs)) {
		if attachment(p.status, m.cluster.cfg.NodeName) != "" && p.status.Timeline >= m.sample.local.Timeline {
			return p.record, nil
		}
	}
	return Record{}, err
}
