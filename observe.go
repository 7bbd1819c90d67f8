package repmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// upstream is the primary that a standby follows, as it was seen last.
type upstream struct {
	rec      Record
	timeline wal.Timeline
	seenAt   time.Time
	known    bool // at the end of the last turn
}

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
	m.resume(ctx)
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
	m.readRule(ctx)
	switch {
	case !status.InRecovery:
		m.drop(&m.primary)
		o.Upstream = election.View{}
	case m.primary != nil && status.Timeline > m.upstream.timeline:
		m.drop(&m.primary) // we follow a newer one: that one was deposed
		o.Upstream = election.View{}
	}
	if status.InRecovery && m.primary == nil && !m.silent(m.ruler()) && m.findPrimary(ctx, recs) {
		o.Upstream = m.readPrimary(ctx)
	}
	if m.primary != nil { // its copy of the rows is the one that counts
		if theirs, err := m.readRecords(ctx, m.primary.Server); err == nil {
			recs = theirs
		}
	}
	o.Local = election.View{Up: true, InRecovery: status.InRecovery, Position: status.Position()}
	o.RowKnown = true
	m.recs = recs
	m.self, _ = registry.ByID(recs, m.cluster.cfg.NodeID)
	if m.self.ID == 0 {
		return
	}
	m.role = m.self.Role
	o.Node = election.Node{Registered: true, Role: election.Role(m.self.Role), Active: m.self.Active}
	o.Children = map[int32]bool{}
	for _, r := range recs {
		if r.UpstreamID == m.self.ID && r.Role == RoleStandby {
			o.Children[int32(r.ID)] = registry.Attachment(status, r.Name) != ""
		}
	}
}

// knowsLocal reports whether the local standby is as the last turn saw it, so that the
// one in which the primary has just died needs no second look at it before it says
// whose turn an election is: that asks everybody anew.
func (m *Monitor) knowsLocal() bool {
	if m.manual() || m.state.Phase != election.AsStandby || !m.sample.local.InRecovery || time.Since(m.Status().LookedAt) > 2*m.cluster.cfg.MonitorInterval {
		return false
	}
	peers := m.watch.Peers()
	me, primary := voters.PeerOf(peers, int32(m.cluster.cfg.NodeID)), voters.PeerOf(peers, int32(m.ruler()))
	return primary.Ended && primary.Answer == election.Refused &&
		me.Answer == election.Answers && me.Running == election.Standby && me.Started.Equal(m.sample.local.StartedAt)
}

// readRule reads what the looks tell otherwise.
func (m *Monitor) readRule(ctx context.Context) {
	m.rule = election.Rule{}
	if !m.manual() {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	if rules, err := m.local.Rules(ctx); err == nil && len(rules) > 0 {
		m.rule = rules[0]
	}
}

func (m *Monitor) readRecords(ctx context.Context, n *registry.Server) ([]Record, error) {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	return ownRecords(ctx, n)
}

// ownRecords are the rows of a server that has all of our tables: those of repmgr
// 5 are none of a Monitor's before they are adopted.
func ownRecords(ctx context.Context, n *registry.Server) ([]Record, error) {
	if err := n.NeedSchema(ctx); err != nil {
		return nil, err
	}
	return n.Records(ctx)
}

// open borrows a connection of those that are open for the looks, where there are
// such, and makes one otherwise.
func (m *Monitor) open(ctx context.Context, id NodeID, connect func(context.Context) (*registry.Server, error)) (*voters.Loan, error) {
	if w := m.watch.Voter(int32(id)); w != nil && w.Peer().Answer == election.Answers {
		if l, err := w.Borrow(ctx); err == nil {
			return l, nil
		}
	}
	return voters.Own(connect(ctx))
}

// rest gives back at the end of a turn what the looks can use meanwhile. With
// failover=manual there are none, and the connections stay.
func (m *Monitor) rest() {
	if m.manual() {
		return
	}
	m.upstream.known = m.primary != nil
	for _, l := range []**voters.Loan{&m.local, &m.primary} {
		if *l != nil {
			(*l).GiveBack()
			*l = nil
		}
	}
}

// resume takes up the connection to the primary that was known.
func (m *Monitor) resume(ctx context.Context) {
	silent := m.silent(m.upstream.rec.ID)
	switch {
	case m.primary != nil && silent:
		m.drop(&m.primary)
	case m.primary == nil && m.upstream.known && !silent:
		ctx, cancel := m.peerLimit(ctx)
		defer cancel()
		var err error
		m.primary, err = m.open(ctx, m.upstream.rec.ID, func(ctx context.Context) (*registry.Server, error) { return m.cluster.connectTo(ctx, m.upstream.rec) })
		m.report("the primary", err)
	}
	m.upstream.known = false
}

// observeLocal asks the local server, again over a new connection where the old one broke.
func (m *Monitor) observeLocal(ctx context.Context) (NodeStatus, []Record, error) {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	fresh := m.local == nil
	for {
		if m.local == nil {
			var err error
			if m.local, err = m.open(ctx, m.cluster.cfg.NodeID, m.cluster.connectLocal); err != nil {
				return NodeStatus{}, nil, err
			}
		}
		if m.knowsLocal() {
			return m.sample.local, m.recs, nil
		}
		status, err := m.local.Status(ctx)
		if err == nil {
			recs, errRecs := ownRecords(ctx, m.local.Server)
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
	return context.WithTimeoutCause(ctx, lookPatience, fmt.Errorf("no answer within %s", lookPatience))
}

const lookPatience = 2 * postgres.DefaultConnectTimeout

// peerLimit bounds what is asked of another node between two decisions: while
// one that has just been cut off is waited for, nothing is decided.
func (m *Monitor) peerLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := m.peerPatience()
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
}

func (m *Monitor) peerPatience() time.Duration {
	if m.cluster.cfg.Failover != FailoverAutomatic {
		return lookPatience
	}
	return m.cluster.cfg.SilenceTimeout / 2
}

// readPrimary asks the known primary where it writes. One that does not answer,
// or is a primary no longer, is known no longer.
func (m *Monitor) readPrimary(ctx context.Context) election.View {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	var inRecovery bool
	err := m.primary.Conn.QueryRow(ctx, `SELECT r, CASE WHEN NOT r THEN pg_current_wal_lsn() END,
		CASE WHEN NOT r THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int ELSE 0 END FROM pg_is_in_recovery() r`).
		Scan(&inRecovery, &m.sample.primaryLSN, &m.upstream.timeline)
	if err != nil || inRecovery {
		m.drop(&m.primary)
		return election.View{}
	}
	m.upstream.seenAt = time.Now()
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
		m.primary, err = m.open(ctx, rec.ID, func(ctx context.Context) (*registry.Server, error) { return m.cluster.connectTo(ctx, rec) })
	}
	if len(recs) > 0 {
		m.report(troublePrimary, err)
	}
	if err != nil {
		return false
	}
	m.upstream.rec = rec
	return true
}

// choosePrimary is the one primary; of several, the one that sends to us.
func (m *Monitor) choosePrimary(ctx context.Context, recs []Record) (Record, error) {
	rec, err := m.cluster.findPrimary(ctx, recs)
	if !errors.Is(err, ErrRefused) {
		return rec, err
	}
	for _, p := range primaries(m.cluster.survey(ctx, recs)) {
		if registry.Attachment(p.status, m.cluster.cfg.NodeName) != "" && p.status.Timeline >= m.sample.local.Timeline {
			return p.record, nil
		}
	}
	return Record{}, err
}

// observeFrom reads the rows of the cluster, for a Monitor that has no node.
func (m *Monitor) observeFrom(ctx context.Context) {
	var recs []Record
	err := errNobodyAnswered
	ruler, peers := int32(m.ruler()), voters.Answering(m.watch.Peers())
	if i := slices.IndexFunc(peers, func(p election.Peer) bool { return p.ID == ruler }); i > 0 {
		peers[0], peers[i] = peers[i], peers[0] // its rows are the newest
	}
	for _, p := range peers { // over what is open: a host of conninfo may be silent
		if err != nil && p.ID != election.Arbiter {
			ctx, cancel := m.peerLimit(ctx)
			err = m.watch.Voter(p.ID).Run(ctx, func(n *registry.Server) (err error) { recs, err = n.Records(ctx); return err })
			cancel()
		}
	}
	if err != nil {
		ctx, cancel := m.lookLimit(ctx)
		defer cancel()
		recs, err = m.cluster.Nodes(ctx)
	}
	m.report("reading the nodes", err)
	if err == nil {
		m.recs = recs
	}
}

// observeVoters adds what the election wants to know.
func (m *Monitor) observeVoters(o *election.Observation) {
	if m.manual() {
		m.watch.SetNodes(nil) // nobody here decides anything
	} else {
		m.watch.SetNodes(m.recs)
	}
	self := int32(m.cluster.cfg.NodeID)
	o.Self, o.Observer, o.Candidate = self, self == 0, m.cluster.candidate()
	o.Peers = m.watch.Peers()
	o.Rule = voters.NewestRule(o.Peers)
	o.Busy, o.Interruptible, o.Last, o.Diverged = m.action != nil, m.action.Interruptible(), m.last, m.diverged()
	me := voters.PeerOf(o.Peers, self)
	m.guard.NoteOffice(me)
	if o.Local.Up {
		m.guard.SetDataDirectory(m.sample.local.Settings.DataDirectory)
	}
	if !o.Local.Up && self != 0 {
		o.WasPrimary = m.wasPrimary()
	}
}

// wasPrimary reports whether the data directory of the dead local server is that
// of a primary, or of one that was not brought back yet.
func (m *Monitor) wasPrimary() bool {
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil || srv.Runs() {
		return false
	}
	if rejoin.Incomplete(srv, m.cluster.cfg.NodeID) {
		return true
	}
	_, errSignal := os.Stat(filepath.Join(srv.Dir, "standby.signal"))
	_, errMark := os.Stat(filepath.Join(srv.Dir, postmaster.RejoinMark))
	if errSignal == nil && errMark != nil && !m.owesRejoin() {
		return false
	}
	_, err = pgcontrol.Read(srv.Dir)
	return err == nil
}

// ruler is the node that the newest rule names.
func (m *Monitor) ruler() NodeID {
	if m.manual() {
		return NodeID(m.rule.Primary)
	}
	return NodeID(voters.NewestRule(m.watch.Peers()).Primary)
}

// manual reports whether this Monitor only watches.
func (m *Monitor) manual() bool { return m.cluster.cfg.Failover != FailoverAutomatic }

// silent reports whether a node is known not to answer, so that nobody waits for it.
func (m *Monitor) silent(id NodeID) bool {
	p := voters.PeerOf(m.watch.Peers(), int32(id))
	return m.cluster.cfg.Failover == FailoverAutomatic && p.Answer != "" && p.Answer != election.Answers
}

// drop closes a connection, and forgets it.
func (m *Monitor) drop(l **voters.Loan) {
	if *l != nil {
		(*l).Close()
		(*l).GiveBack()
		*l = nil
	}
}
