package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// outboxDaemon is what the outbox needs of this Monitor.
func (m *Monitor) outboxDaemon() outbox.Daemon {
	return outbox.Daemon{
		Node: m.cluster.cfg.NodeID, Log: m.cluster.log,
		Disk: m.ownDirectory, Primary: m.onPrimary, Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// ownDirectory is the data directory of the node, where it is known, and this Monitor is
// the one that keeps files there. nil: it is not.
func (m *Monitor) ownDirectory() *postmaster.Server {
	if m.cluster.cfg.NodeID == 0 || m.yields {
		return nil
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil || m.guard.Elsewhere() {
		return nil
	}
	return &srv.Server
}

// onPrimary runs do on the primary, over a connection that is open, and is false where
// there is none.
func (m *Monitor) onPrimary(ctx context.Context, do func(context.Context, *registry.Server) error) (known bool, err error) {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	self, ruler := m.cluster.cfg.NodeID, m.ruler()
	if m.primary != nil {
		return true, do(ctx, m.primary.Server)
	}
	if ruler == 0 || ruler == self {
		if m.state.Role != election.Primary || m.local == nil {
			return false, nil
		}
		return true, do(ctx, m.local.Server)
	}
	// A witness and an observer keep no connection of their own to it.
	if p := voters.PeerOf(m.watch.Peers(), int32(ruler)); p.Answer != election.Answers || p.Running != election.Primary {
		return false, nil
	}
	return true, m.watch.Voter(int32(ruler)).Run(ctx, func(n *registry.Server) error { return do(ctx, n) })
}

// keeperDaemon is what the keeper of the state file needs of this Monitor.
func (m *Monitor) keeperDaemon() statefile.Daemon {
	return statefile.Daemon{
		Node: m.cluster.cfg.NodeID, Name: m.cluster.self(), Log: m.cluster.log,
		Dir: func() (string, error) {
			srv, err := m.cluster.localServer(m.guard.DataDirectory())
			if err != nil {
				return "", err
			}
			return srv.Dir, nil
		},
		Elsewhere: m.guard.Elsewhere, Report: m.report, Tell: m.tell, Wake: m.lookNow,
	}
}

// keep writes what must be known of the cluster while the own server is down.
func (m *Monitor) keep(o election.Observation) {
	if len(m.recs) == 0 || !o.Local.Up || o.Self == 0 || m.yields {
		return
	}
	own := voters.PeerOf(o.Peers, o.Self).Rule
	if !own.Known() {
		own = m.rule
	}
	now := statefile.State{Nodes: m.recs}
	for _, r := range []election.Rule{own, m.guard.Before()} {
		if r.Known() {
			now.Rules = append(now.Rules, r)
		}
	}
	if ruler := m.ruler(); ruler != m.cluster.cfg.NodeID && m.watch.Voter(int32(ruler)) != nil {
		now.Guard = voters.GuardedOf(voters.PeerOf(m.watch.Peers(), int32(ruler)))
	}
	m.kept.Keep(m.keeperDaemon(), now)
}

// keepVote keeps the node's vote a second time, and gives it back to a server that has lost it.
func (m *Monitor) keepVote(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.local == nil || m.yields {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.kept.KeepVote(ctx, m.keeperDaemon(), m.local.Server, m.sample.local)
}

// tryStreams tries whether the local server could stream from each node that may be promoted.
func (m *Monitor) tryStreams(ctx context.Context) {
	for m.pulse(ctx) == nil {
		c, n := m.inForce.Load(), streams.Nodes{Record: m.watch.Record}
		if c.cfg.Failover == FailoverAutomatic {
			n.Peers = m.watch.Peers()
			n.Me = voters.PeerOf(n.Peers, int32(c.cfg.NodeID))
		}
		m.streams.Try(ctx, n, c.loginAsStandby, m.lookNow)
	}
}

// loginAsStandby logs in for replication as the local server would if it followed
// that node.
func (c *Cluster) loginAsStandby(ctx context.Context, r Record) error {
	conninfo, err := c.login().PrimaryConninfo(r, streams.Name)
	if err != nil {
		return err
	}
	cfg, err := c.login().Config(conninfo, "")
	if err != nil {
		return err
	}
	return streams.Login(ctx, r, cfg)
}

// noteForeigners says once that this Monitor stands aside, and when that is over.
func (m *Monitor) noteForeigners(peers []election.Peer) {
	const what = "failing over"
	if m.cluster.cfg.Failover != FailoverAutomatic || !election.Foreign(peers) {
		m.report(what, nil)
		return
	}
	err := standAside(m.watch.Foreign(peers))
	if !m.trouble.Has(what) {
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
	m.report(what, err)
}

func (m *Monitor) publish(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MonitorStatus{NodeID: m.cfg.NodeID, Node: m.cfg.NodeName, Phase: m.state.Phase, Reason: string(m.state.Reason), Since: m.state.Since, LookedAt: now}
	if m.state.Phase == election.AsStandby {
		lag := m.sample.lag()
		s.Lag, s.Primary = &lag, m.upstream.rec.String()
	}
	s.Health, s.Rule = m.state.Health, voters.NewestRule(m.watch.Peers())
	if s.Rule.Compare(m.rule) < 0 {
		s.Rule = m.rule
	}
	if m.guard.Lacks() == nil { // it would stop nothing
		s.Lease, s.RunsOut = m.guard.Lease()
	}
	if m.action != nil {
		s.Doing = string(m.action.Verb)
	}
	s.Error = m.trouble.Last()
	m.status = s
}

// transition takes the decision's state over, and logs a change of mind once.
func (m *Monitor) transition(d election.Decision) {
	from := m.state
	m.state = d.Next
	if from.Phase != d.Next.Phase {
		m.said = nil
	}
	// An election that is refused is tried again and again, for the same reasons in turn.
	if (from.Phase != d.Next.Phase || from.Reason != d.Next.Reason) && !slices.Contains(m.said, d.Reason) {
		m.said = append(m.said, d.Reason)
		m.cluster.log.Log(context.Background(), slog.LevelInfo, "phase changed", "from", cmp.Or(string(from.Phase), "start"), "to", string(d.Next.Phase), "reason", string(d.Reason))
	}
}

// report logs a failure when it is new, and forgets it when it is over.
func (m *Monitor) report(what string, err error) { m.trouble.Report(what, err) }

// forget drops the troubles that nothing tries again, because what they stood in
// the way of is done, or is not asked for any more.
func (m *Monitor) forget(d election.Decision) {
	phase := d.Next.Phase
	primary := phase == election.AsPrimary || phase == election.AsWitness
	settled := m.action == nil && d.Next.DisconnectedAt.IsZero() && (primary || phase == election.AsStandby)
	asked := func(v string) bool {
		return slices.ContainsFunc(d.Actions, func(a election.Action) bool { return string(a.Verb) == v })
	}
	if m.state.LostAt.IsZero() {
		m.trouble.News(string(election.Elect), "")
		m.trouble.Moot(string(election.Elect)) // whatever stood against a failover is over
	}
	for _, what := range m.trouble.All() {
		over := false
		switch election.Verb(what) {
		case election.Register:
			over = phase != election.Unregistered
		case election.Adopt, election.Sample, election.MarkActive, election.MarkInactive, election.RecordPromotion, election.PrepareStandby, election.CopyToWitness:
			over = !asked(what)
		case election.Reconcile:
			over = phase != election.AsPrimary
		case election.Reaffirm, election.Follow, election.Rejoin, election.Fence:
			over = settled
		case troublePrimary, reconcile.TroubleSlot:
			over = primary
		}
		if over {
			m.trouble.Moot(what)
		}
	}
}

// What is reported by more than one function.
const (
	troublePrimary = "the primary"
)

// tellHappening fills in what an event's name alone does not say.
func (m *Monitor) tellHappening(a election.Action) {
	e := Event{Type: EventType(a.Event), Success: true}
	self := m.cluster.self()
	switch a.Event {
	case election.LocalDisconnect, election.StandbyFailure:
		e.Success, e.Details = false, fmt.Sprintf("the server of %s does not answer", self)
	case election.LocalReconnect, election.StandbyRecovery:
		e.Details = fmt.Sprintf("the server of %s answers again", self)
	case election.UpstreamDisconnect:
		e.Success, e.Details = false, fmt.Sprintf("the primary, %s, is not reachable from %s", m.upstream.rec, self)
	case election.UpstreamReconnect:
		e.Details = fmt.Sprintf("%s is reachable from %s", m.upstream.rec, self)
	case election.StandbyReconnect:
		e.Details = fmt.Sprintf("%s runs as a standby of %s now", self, m.upstream.rec)
	case election.ChildConnect, election.ChildDisconnect, election.ChildReconnect:
		child, _ := registry.ByID(m.recs, NodeID(a.Child))
		e.Success = a.Event != election.ChildDisconnect
		e.PeerID, e.Peer = child.ID, child.Name
		e.Details = map[election.Event]string{
			election.ChildConnect:    "%s has attached",
			election.ChildReconnect:  "%s has attached again",
			election.ChildDisconnect: "%s is not attached any more",
		}[a.Event]
		e.Details = fmt.Sprintf(e.Details, child)
	}
	m.tell(e)
}

// tell writes an event on whichever primary is at hand, and hands it to the notifiers.
func (m *Monitor) tell(e Event) {
	e.NodeID, e.Node = m.cluster.cfg.NodeID, m.cluster.cfg.NodeName
	var on *registry.Server
	switch {
	case m.primary != nil:
		on = m.primary.Server
	case m.local != nil && m.state.Role == election.Primary:
		on = m.local.Server
	}
	m.cluster.emit(context.Background(), on, e)
}

// reachAgain opens the connection that the last event is written over, where the
// end of ctx has broken it in the middle of a look.
func (m *Monitor) reachAgain(ctx context.Context) {
	ctx, cancel := m.peerLimit(context.WithoutCancel(ctx))
	defer cancel()
	var err error
	switch {
	case m.state.Phase == election.AsPrimary && (m.local == nil || m.local.Conn.IsClosed()):
		m.drop(&m.local)
		m.local, err = voters.Own(m.cluster.connectLocal(ctx))
	case m.state.Phase == election.AsStandby && (m.primary == nil || m.primary.Conn.IsClosed()) && m.upstream.rec.ID != 0:
		m.drop(&m.primary)
		m.primary, err = voters.Own(m.cluster.connectTo(ctx, m.upstream.rec))
	}
	if err != nil {
		m.cluster.log.Warn("the end of the daemon is written nowhere", "err", err)
	}
}

// halfPaused says that a pause does not hold, since an election could pass it by:
// the local primary keeps its lease then.
func (m *Monitor) halfPaused(o election.Observation) error {
	me := voters.PeerOf(o.Peers, o.Self)
	if m.cluster.cfg.Failover != FailoverAutomatic || !m.guard.InOffice() || !me.Rule.Known() || !election.Paused(o.Peers) || me.Rule.PausePreventsElection(o.Self, o.Peers) {
		return nil
	}
	return hint(kind(ErrPaused, "failover is paused, but not on so many nodes that the others could elect nobody: %s keeps its lease, and is stopped where it has no contact to a majority", m.cluster.self()),
		"Run repmgr service pause where all nodes can be reached, or repmgr service unpause.")
}

// reportRejected names the nodes that reject our login: what is known of them is old.
func (m *Monitor) reportRejected(peers []election.Peer) {
	for _, p := range peers {
		if p.ID == election.Arbiter {
			continue
		}
		rec := m.watch.Record(p.ID)
		var err error
		if p.Answer == election.Rejects {
			text := "%s rejects the login of this daemon"
			if p.Rejection != "" {
				text += " (" + strings.ReplaceAll(p.Rejection, "%", "%%") + ")"
			}
			if int32(m.cluster.cfg.NodeID) == p.ID && m.guard.InOffice() {
				text += ", and is its own primary: with synchronous_mode=off it is stopped where no majority answers, and with quorum it goes on as long as a majority answers or rejects the login"
			}
			err = hint(kind(ErrConnect, text, rec), "Compare pg_hba.conf and the passwords there with conninfo and the password file here.")
		}
		m.report("the login to "+rec.Name, err)
	}
}

// checkAutomatic says at the start what will keep failover from working, and
// what to do about it.
func (m *Monitor) checkAutomatic(ctx context.Context) {
	c := m.cluster
	if c.cfg.Failover != FailoverAutomatic || m.local == nil {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.checkQuorum(ctx)
	if err := m.local.Server.FailoverPrivileges(ctx); err != nil {
		m.cluster.log.Error("failover=automatic can not work", "err", err, "hint", Hint(err))
	}
	if srv, err := c.localServer(m.guard.DataDirectory()); err != nil {
		m.cluster.log.Warn("this daemon can not rejoin its node", "err", err, "hint", Hint(err))
	} else if err := srv.MayControl(); err != nil {
		m.cluster.log.Warn("this daemon can not rejoin its node", "err", err, "hint", Hint(err))
	}
}

// warnOfTwo says once that two voters are too few, whenever they become two.
func (m *Monitor) warnOfTwo() {
	two := ""
	if m.cluster.cfg.Failover == FailoverAutomatic && len(m.registered()) == 2 {
		two = "two voters"
	}
	if m.trouble.News("the voters", two) && two != "" {
		m.cluster.log.Warn("this cluster can not fail over by itself: of 2 votes a majority is 2",
			"hint", "Add a witness (repmgr witness register), a third node, or an etcd (etcd_endpoints). An operator can always promote.")
	}
}

// tellRejoin tells once why the node does not come back. One that failed in the
// middle has told it already.
func (m *Monitor) tellRejoin(v election.Verb, err error) {
	var refused notBegun
	switch {
	case v != election.Rejoin:
	case err == nil:
		m.trouble.News(string(v), "")
	case errors.As(err, &refused) && !errors.Is(err, context.Canceled) && m.trouble.News(string(v), err.Error()):
		m.tell(Event{Type: EventNodeRejoin, Details: err.Error()})
	}
}

// tellRefusal tells once why there is no failover.
func (m *Monitor) tellRefusal(v election.Verb, err error) {
	var refusal *RefusalError
	switch {
	case v != election.Elect:
	case err == nil:
		m.trouble.News(string(v), "")
	case errors.As(err, &refusal) && refusal.Refusal == election.RefusedHealth:
	case errors.As(err, &refusal) && (refusal.Refusal == election.RefusedElection || refusal.Refusal == election.RefusedPledges) && time.Since(m.state.LostAt) < 3*m.cluster.cfg.SilenceTimeout:
		// Daemons that begin at one time get into each other's way: that is part of a failover.
	case errors.As(err, &refusal) && m.trouble.News(string(v), string(refusal.Refusal)):
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
}

// tellElection records an election on its winner, and tells of it.
func (m *Monitor) tellElection(c *Cluster, reaffirmed bool, res FailoverResult, err error) {
	switch {
	case err != nil && res.Winner != nil && len(res.Steps) >= 3 && !reaffirmed:
		m.tellLater(Event{Type: EventFailoverAbort, Details: err.Error()})
	case err != nil:
	case reaffirmed:
		m.tellLater(Event{Type: EventTermReaffirmed, Success: true, Details: fmt.Sprintf("%s goes on as primary in term %d", res.Winner, res.Term)})
	default:
		c.recordFailover(context.Background(), m.watch, res)
	}
}

// announce says what this Monitor does to everybody who looks at its server.
func (m *Monitor) announce(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.local == nil {
		m.presence.Close()
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	s := m.Status()
	p := Presence{PID: os.Getpid(), Mode: m.cluster.cfg.Failover, Phase: string(s.Phase), Reason: s.Reason, Since: s.Since, Error: s.Error}
	p.CanFence, p.LostVote = m.guard.CanFence(), m.kept.Lost()
	p.NoStream = m.streams.Failed()
	if err := m.guard.Lacks(); err != nil {
		p.Unable = err.Error()
	}
	if s.Lease != nil {
		left := s.Lease.Seconds()
		p.LeaseLeft, p.RunsOut = &left, s.RunsOut
	}
	if ruler := voters.PeerOf(m.watch.Peers(), int32(m.ruler())); m.manual() {
		p.SeenAt = m.upstream.seenAt
	} else if int32(m.cluster.cfg.NodeID) != ruler.ID {
		p.SeenAt = ruler.SeenAt
		p.Guarded = ruler.ID != 0 && election.Unfenced(ruler, m.watch.Peers()) == ""
	}
	m.report("the announcement", m.presence.Announce(ctx, m.cluster.connectLocal, p))
}
