package observer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Options are what the looks need of the configuration, and of the cluster.
type Options struct {
	ID              registry.NodeID // of the node; 0: the daemon has none
	Manual          bool            // failover=manual: this daemon only watches
	SilenceTimeout  time.Duration
	MonitorInterval time.Duration

	Watch        *voters.Watch
	ConnectLocal func(context.Context) (*registry.Server, error)
	ConnectTo    func(context.Context, registry.Record) (*registry.Server, error)
	// FindPrimary finds the primary among the rows: of several, the one that sends to the
	// node, and is not behind its timeline.
	FindPrimary  func(ctx context.Context, rows []registry.Record, timeline wal.Timeline) (registry.Record, error)
	AllRecords   func(context.Context) ([]registry.Record, error) // read from any node that answers
	SavedRecords func() []registry.Record                         // the rows in the state file
	// Report is called after each attempt at something; err is nil when it worked.
	Report func(what string, err error)
}

// Node is what a daemon has seen of its node, and of the primary of that. It is not safe for
// concurrent use.
type Node struct {
	Options

	Local         *voters.Loan // nil: it does not answer, or its connection was given back
	Primary       *voters.Loan // of a standby: to its primary
	PrimaryRecord registry.Record
	PrimarySeen   time.Time
	PrimaryLSN    wal.LSN // where the primary wrote, read before Status
	Status        registry.NodeStatus
	LocalAnswer   election.Answer   // of the local server in the last look
	LocalSeenAt   time.Time         // when Status was read
	Rule          election.Rule     // the newest of the local server; only with failover=manual
	Records       []registry.Record // the rows, as last read
	Self          registry.Record   // the node's row; zero: none
	Role          registry.Role     // of the newest row that the node had

	primaryKnown    bool // when the connections were given back
	primaryTimeline wal.Timeline
	phase           election.Phase
	at, before      time.Time // of this look, and of the one before
}

// TroublePrimary is the name under which problems with the primary of a standby are reported.
const TroublePrimary = "the primary"

// LookTimeout is how long one look at one server may take.
const LookTimeout = 2 * postgres.DefaultConnectTimeout

// Limit limits the time for a look at one server to [LookTimeout].
func Limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, LookTimeout, fmt.Errorf("no answer within %s", LookTimeout))
}

// PeerTimeout is how long another node may take to answer within a turn.
func (v *Node) PeerTimeout() time.Duration {
	if v.Manual {
		return LookTimeout
	}
	return v.SilenceTimeout / 2
}

// PeerLimit limits what is asked of another node within a turn: while the daemon waits for a
// node that was just cut off, it decides nothing.
func (v *Node) PeerLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, v.PeerTimeout(), fmt.Errorf("no answer within %s", v.PeerTimeout()))
}

// Drop closes a connection and sets it to nil.
func Drop(l **voters.Loan) {
	if *l != nil {
		(*l).Close()
		(*l).GiveBack()
		*l = nil
	}
}

// Close ends both connections.
func (v *Node) Close() {
	Drop(&v.Local)
	Drop(&v.Primary)
}

// RulePrimary is the node that the newest rule names as the primary.
func (v *Node) RulePrimary() registry.NodeID {
	if v.Manual {
		return registry.NodeID(v.Rule.Primary)
	}
	return registry.NodeID(voters.NewestRule(v.Watch.Peers()).Primary)
}

// Silent reports whether a node is known not to answer, so that it need not be waited for.
func (v *Node) Silent(id registry.NodeID) bool {
	p := voters.PeerOf(v.Watch.Peers(), int32(id))
	return !v.Manual && p.Answer != "" && p.Answer != election.Answers
}

// Look reads the state of a standby's primary and then that of the local server, so that the
// local position is the newer one. What does not answer in time counts as not there. phase is
// the role that the daemon assumed in the last turn.
func (v *Node) Look(ctx context.Context, phase election.Phase, o *election.Observation) {
	v.phase, v.before, v.at = phase, v.at, o.Now
	v.resume(ctx)
	if v.Primary != nil {
		o.Upstream = v.readPrimary(ctx)
	}
	status, err := v.LookLocal(ctx)
	var recs []registry.Record
	if err == nil {
		v.dropFormerPrimary(status, o)
		if v.Primary == nil {
			recs, err = v.localRecords(ctx)
		}
	}
	if ctx.Err() != nil {
		return
	}
	v.Report("the local server", err)
	v.LocalAnswer = voters.AnswerOf(err)
	if err != nil {
		if len(v.Records) == 0 {
			v.Records = v.SavedRecords()
		}
		return
	}
	v.Status, v.LocalSeenAt = status, o.Now
	v.readRule(ctx)
	if status.InRecovery && v.Primary == nil && !v.Silent(v.RulePrimary()) && v.findPrimary(ctx, recs) {
		o.Upstream = v.readPrimary(ctx)
	}
	if v.Primary != nil { // the primary's copy of the rows counts
		if theirs, err := v.readRecords(ctx, v.Primary.Server); err == nil {
			recs = theirs
		} else if recs == nil {
			if recs, err = v.localRecords(ctx); err != nil {
				v.Report("the local server", err)
				return
			}
		}
	}
	o.Local = election.View{Up: true, InRecovery: status.InRecovery, Position: status.Position()}
	o.RowKnown = true
	v.Records = recs
	v.Self, _ = registry.ByID(recs, v.ID)
	if v.Self.ID == 0 {
		return
	}
	v.Role = v.Self.Role
	o.Node = election.Node{Registered: true, Role: election.Role(v.Self.Role), Active: v.Self.Active, Upstream: int32(v.Self.UpstreamID)}
	o.Children = map[int32]bool{}
	for _, r := range recs {
		if r.UpstreamID == v.Self.ID && r.Role == registry.RoleStandby {
			o.Children[int32(r.ID)] = registry.Attachment(status, r.Name) != ""
		}
	}
}

// dropFormerPrimary ends the connection to the primary that was known, where the local server
// shows that it is not its primary any more.
func (v *Node) dropFormerPrimary(local registry.NodeStatus, o *election.Observation) {
	if !local.InRecovery || v.Primary != nil && local.Timeline > v.primaryTimeline { // it follows a newer primary, so the earlier one was deposed
		Drop(&v.Primary)
		o.Upstream = election.View{}
	}
}

// knowsLocal reports whether the local standby is still as the last turn saw it. In the turn in
// which the primary has just died, it then need not be looked at again before it is clear which
// node may start an election: the election itself probes all nodes again.
func (v *Node) knowsLocal() bool {
	if v.Manual || v.phase != election.AsStandby || !v.Status.InRecovery || time.Since(v.before) > 2*v.MonitorInterval {
		return false
	}
	peers := v.Watch.Peers()
	me, primary := voters.PeerOf(peers, int32(v.ID)), voters.PeerOf(peers, int32(v.RulePrimary()))
	return primary.Ended && primary.Answer == election.Refused &&
		me.Answer == election.Answers && me.Running == election.Standby && me.Started.Equal(v.Status.StartedAt)
}

// readRule reads the newest rule of the local server where no watch of the voters does.
func (v *Node) readRule(ctx context.Context) {
	v.Rule = election.Rule{}
	if !v.Manual {
		return
	}
	ctx, cancel := Limit(ctx)
	defer cancel()
	if rules, err := v.Local.Rules(ctx); err == nil && len(rules) > 0 {
		v.Rule = rules[0]
	}
}

func (v *Node) readRecords(ctx context.Context, n *registry.Server) ([]registry.Record, error) {
	ctx, cancel := v.PeerLimit(ctx)
	defer cancel()
	return ownRecords(ctx, n)
}

// ownRecords are the rows of a server whose metadata is ours. Rows of repmgr 5 do not count
// before they are adopted.
func ownRecords(ctx context.Context, n *registry.Server) ([]registry.Record, error) {
	if err := n.NeedSchema(ctx); err != nil {
		return nil, err
	}
	return n.Records(ctx)
}

// Open borrows an open connection to a node, or makes one where there is none.
func (v *Node) Open(ctx context.Context, id registry.NodeID, connect func(context.Context) (*registry.Server, error)) (*voters.Loan, error) {
	if w := v.Watch.Voter(int32(id)); w != nil && w.Peer().Answer == election.Answers {
		if l, err := w.Borrow(ctx); err == nil {
			return l, nil
		}
	}
	return voters.Own(connect(ctx))
}

// Rest gives the connections back at the end of a turn, so that the watch can use them
// meanwhile. With failover=manual there is no watch, and they stay open.
func (v *Node) Rest() {
	if v.Manual {
		return
	}
	v.primaryKnown = v.Primary != nil
	for _, l := range []**voters.Loan{&v.Local, &v.Primary} {
		if *l != nil {
			(*l).GiveBack()
			*l = nil
		}
	}
}

// resume opens a connection to the primary that was known in the last turn.
func (v *Node) resume(ctx context.Context) {
	silent := v.Silent(v.PrimaryRecord.ID)
	switch {
	case v.Primary != nil && silent:
		Drop(&v.Primary)
	case v.Primary == nil && v.primaryKnown && !silent:
		ctx, cancel := v.PeerLimit(ctx)
		defer cancel()
		var err error
		v.Primary, err = v.Open(ctx, v.PrimaryRecord.ID, func(ctx context.Context) (*registry.Server, error) { return v.ConnectTo(ctx, v.PrimaryRecord) })
		v.Report("the primary", err)
	}
	v.primaryKnown = false
}

// LookLocal reads the state of the local server. Where the old connection is broken, it opens a
// new one.
func (v *Node) LookLocal(ctx context.Context) (registry.NodeStatus, error) {
	ctx, cancel := Limit(ctx)
	defer cancel()
	fresh := v.Local == nil
	for {
		if v.Local == nil {
			var err error
			if v.Local, err = v.Open(ctx, v.ID, v.ConnectLocal); err != nil {
				return registry.NodeStatus{}, err
			}
		}
		if v.knowsLocal() {
			return v.Status, nil
		}
		status, err := v.Local.Status(ctx)
		if err == nil {
			return status, nil
		}
		Drop(&v.Local)
		if fresh {
			return registry.NodeStatus{}, err
		}
		fresh = true // an old connection may have ended with a server that runs again
	}
}

// localRecords reads the rows that the local server has. A server without metadata has none.
func (v *Node) localRecords(ctx context.Context) ([]registry.Record, error) {
	if v.knowsLocal() {
		return v.Records, nil
	}
	ctx, cancel := Limit(ctx)
	defer cancel()
	recs, err := ownRecords(ctx, v.Local.Server)
	if err != nil && !errors.Is(err, failure.ErrNotRegistered) {
		Drop(&v.Local)
		return nil, err
	}
	return recs, nil
}

// readPrimary reads the position of the known primary. A primary that does not answer, or is
// not a primary any more, is not known any more afterwards.
func (v *Node) readPrimary(ctx context.Context) election.View {
	ctx, cancel := v.PeerLimit(ctx)
	defer cancel()
	var inRecovery bool
	err := v.Primary.Conn.QueryRow(ctx, `SELECT r, CASE WHEN NOT r THEN pg_current_wal_lsn() END,
		CASE WHEN NOT r THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int ELSE 0 END FROM pg_is_in_recovery() r`).
		Scan(&inRecovery, &v.PrimaryLSN, &v.primaryTimeline)
	if err != nil || inRecovery {
		Drop(&v.Primary)
		return election.View{}
	}
	v.PrimarySeen = time.Now()
	return election.View{Up: true, Position: wal.Position{LSN: v.PrimaryLSN}}
}

// findPrimary looks for a primary among the nodes that the local server knows.
func (v *Node) findPrimary(ctx context.Context, recs []registry.Record) bool {
	ctx, cancel := v.PeerLimit(ctx)
	defer cancel()
	rec, err := v.FindPrimary(ctx, recs, v.Status.Timeline)
	if err == nil && rec.ID == v.ID {
		return false // the local server became the primary meanwhile, which the next look sees
	}
	if err == nil {
		v.Primary, err = v.Open(ctx, rec.ID, func(ctx context.Context) (*registry.Server, error) { return v.ConnectTo(ctx, rec) })
	}
	if len(recs) > 0 {
		v.Report(TroublePrimary, err)
	}
	if err != nil {
		return false
	}
	v.PrimaryRecord = rec
	return true
}

// RecentFailovers are the failovers of the last hour, according to the local copy of the metadata. A witness and a
// daemon without a node ask the first node that answers. ok is false where nobody says it.
func (v *Node) RecentFailovers(ctx context.Context) (count int, ok bool) {
	ctx, cancel := Limit(ctx)
	defer cancel()
	read := func(n *registry.Server) (err error) { count, err = n.RecentFailovers(ctx); return err }
	if v.Local != nil && v.Role != registry.RoleWitness {
		err := read(v.Local.Server)
		return count, err == nil
	}
	for _, p := range voters.Answering(v.Watch.Peers()) {
		if p.Role != election.Witness && p.ID != election.Arbiter && v.Watch.Voter(p.ID).Run(ctx, read) == nil {
			return count, true
		}
	}
	return 0, false
}

// errNobodyAnswered is the error until the first node was asked.
var errNobodyAnswered = errors.New("no node was asked yet")

// LookFrom reads the rows of the cluster, for a daemon that has no node.
func (v *Node) LookFrom(ctx context.Context) {
	var recs []registry.Record
	err := errNobodyAnswered
	ruler, peers := int32(v.RulePrimary()), voters.Answering(v.Watch.Peers())
	if i := slices.IndexFunc(peers, func(p election.Peer) bool { return p.ID == ruler }); i > 0 {
		peers[0], peers[i] = peers[i], peers[0] // the primary's rows are the newest
	}
	for _, p := range peers { // over open connections, because a host in conninfo may be silent
		if err != nil && p.ID != election.Arbiter {
			ctx, cancel := v.PeerLimit(ctx)
			err = v.Watch.Voter(p.ID).Run(ctx, func(n *registry.Server) (err error) { recs, err = n.Records(ctx); return err })
			cancel()
		}
	}
	if err != nil {
		ctx, cancel := Limit(ctx)
		defer cancel()
		recs, err = v.AllRecords(ctx)
	}
	v.Report("reading the nodes", err)
	if err == nil {
		v.Records = recs
	}
}

// Lag is how far a standby is behind its primary.
type Lag struct {
	ReceivedBytes int64 `json:"replication_lag_bytes"` // WAL that the primary has and the standby has not received
	AppliedBytes  int64 `json:"apply_lag_bytes"`       // WAL that the standby has received and not applied
}

// Lag is how far the standby is behind. The primary's position was read first, so a standby
// that has received and applied everything up to it counts as in step.
func (v *Node) Lag() Lag {
	return Lag{
		ReceivedBytes: max(0, v.PrimaryLSN.Bytes(v.Status.ReceivedLSN)),
		AppliedBytes:  max(0, v.Status.ReceivedLSN.Bytes(v.Status.ReplayedLSN)),
	}
}
