package repmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
)

// learnPause writes to the local server what was said of a pause while it was down.
func (m *Monitor) learnPause(ctx context.Context, o election.Observation) error {
	me, word := voters.PeerOf(o.Peers, o.Self), election.LastPause(o.Peers)
	if !o.Local.Up || m.node.Local == nil || me.Answer != election.Answers || me.PauseSeq >= word {
		return nil
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	return m.node.Local.SetPaused(ctx, NodeID(o.Self), election.Paused(o.Peers), word)
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
	if c.cfg.Failover != FailoverAutomatic || m.node.Local == nil {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	m.checkQuorum(ctx)
	if err := m.node.Local.Server.FailoverPrivileges(ctx); err != nil {
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

// manual reports whether this Monitor only watches.
func (m *Monitor) manual() bool { return m.cluster.cfg.Failover != FailoverAutomatic }

// observeVoters adds what the election wants to know.
func (m *Monitor) observeVoters(o *election.Observation) {
	if m.manual() {
		m.watch.SetNodes(nil) // nobody here decides anything
	} else {
		m.watch.SetNodes(m.node.Records)
	}
	self := int32(m.cluster.cfg.NodeID)
	o.Self, o.Observer, o.Candidate = self, self == 0, m.cluster.candidate()
	o.Peers = m.watch.Peers()
	o.Rule = voters.NewestRule(o.Peers)
	o.Busy, o.Interruptible, o.Last, o.Diverged = m.tasks.current != nil, m.tasks.current.Interruptible(), m.tasks.last, m.diverged()
	me := voters.PeerOf(o.Peers, self)
	m.guard.NoteOffice(me)
	if o.Local.Up {
		m.guard.SetDataDirectory(m.node.Status.Settings.DataDirectory)
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

// tasks are the long action under way, and what came of the ones before.
type tasks struct {
	current *task.Task // nil: none
	last    election.Outcome
	failed  map[election.Verb]error // how the newest task of each kind ended

	followCommandFor int64 // the term
}

// begin starts a long action. There is at most one, and Run waits for its end.
func (m *Monitor) begin(ctx context.Context, a election.Action) {
	if m.tasks.current != nil || a.Verb == election.Rejoin && m.outbox.Storing() { // it is asked for again
		return
	}
	if a.Verb == election.Follow { // follow_command is run once for it
		m.tasks.followCommandFor = max(m.tasks.followCommandFor, voters.NewestRule(m.watch.Peers()).Term)
	}
	c := m.cluster
	target := m.watch.Record(a.Child)
	policy := m.policy()
	if hook := (hookError{}); errors.As(m.tasks.failed[election.Elect], &hook) {
		c = c.withoutHooks()
	}
	policy.TooMany = a.Verb == election.Elect && m.tooMany(ctx)
	known, firm := m.state.BallotFor, a.Verb != election.Follow && a.Verb != election.Rejoin
	m.tasks.current = task.Start(ctx, a.Verb, string(m.state.Reason), firm, func(ctx context.Context, act *task.Task) error {
		return m.long(ctx, c, act, target, policy, known)
	}, m.lookNow)
}

// withoutHooks promotes by itself: a command that hung or failed once would hold
// up one election after the other.
func (c *Cluster) withoutHooks() *Cluster {
	bare := *c
	bare.cfg.PromoteCommand, bare.cfg.ServicePromoteCommand = "", ""
	return &bare
}

func (m *Monitor) long(ctx context.Context, c *Cluster, act *task.Task, target Record, policy election.Policy, known int64) error {
	switch v := act.Verb; v {
	case election.Elect, election.Reaffirm:
		o := c.electionOptions(m.watch)
		o.Reaffirm, o.KnownTerm = v == election.Reaffirm, known
		res, err := c.holdElection(ctx, o, m.watch, policy, false)
		m.tellElection(c, o.Reaffirm, res, err)
		var refusal *RefusalError
		if o.Reaffirm && errors.As(err, &refusal) && refusal.Refusal == election.RefusedBehind {
			m.guard.Fence(ctx, "another node is to be the primary: "+refusal.Detail)
		}
		if err == nil || res.Term > 0 {
			m.watch.Refresh(ctx, c.pulse()) // the next decision is to know of it
		}
		return err
	case election.Follow:
		return c.followWinner(ctx, target)
	case election.Rejoin:
		return m.rejoin(ctx, c, act, target)
	case election.Fence:
		m.guard.Fence(ctx, act.Why)
	}
	return nil
}

// rejoin brings the local server back, and leaves a mark as long as it has not.
func (m *Monitor) rejoin(ctx context.Context, c *Cluster, act *task.Task, target Record) error {
	if m.guard.Unmarked() {
		return notBegun{kind(ErrRefused, "the server was fenced, and is not marked as a standby yet")}
	}
	defer m.guard.Suspend()()
	srv, err := c.localServer(m.guard.DataDirectory())
	if err != nil {
		return err
	}
	if !rejoin.Incomplete(srv, c.cfg.NodeID) { // a clone takes no directory with a file in it that it does not know
		if err := durable.Write(filepath.Join(srv.Dir, postmaster.RejoinMark), []byte(target.Name+"\n")); err != nil {
			return fmt.Errorf("mark the rejoin: %w", err)
		}
	}
	res, err := c.Rejoin(ctx, RejoinOptions{Target: c.dialInfo(target), DataDirectory: srv.Dir, slotOptional: true, hold: func(firm bool) error { return act.Hold(ctx, firm) }})
	if err != nil && res.Method == "" {
		return notBegun{err}
	}
	if err != nil {
		return err
	}
	for _, name := range []string{postmaster.RejoinMark, postmaster.FencedMark} {
		if err := os.Remove(filepath.Join(srv.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unmark the rejoin: %w", err)
		}
	}
	return nil
}

// takeOutcome notes the end of a long action.
func (m *Monitor) takeOutcome() {
	if over, err := m.tasks.current.Outcome(); over {
		m.finish(err)
	}
}

func (m *Monitor) finish(err error) {
	v := m.tasks.current.Verb
	m.tasks.current = nil
	m.tasks.last = election.Outcome{Verb: v, At: time.Now(), OK: err == nil}
	var refusal *RefusalError
	switch {
	case errors.As(err, &refusal):
		m.tasks.last.Reason = election.Reason(refusal.Refusal)
	case err != nil:
		m.tasks.last.Reason = election.Reason(err.Error())
	}
	m.tasks.failed[v] = err
	if v != election.Elect || refusal == nil || refusal.Refusal != election.RefusedHealth {
		m.report(string(v), err)
	}
	m.tellRefusal(v, err)
	m.tellRejoin(v, err)
}

// diverged reports whether the last action failed because the node has WAL that the primary
// never had, or because the primary does not have WAL any more that the node needs.
func (m *Monitor) diverged() bool {
	err := m.tasks.failed[m.tasks.last.Verb]
	return m.tasks.last.Verb == election.Follow && (errors.Is(err, ErrTimelineDiverged) || errors.Is(err, ErrWALGone)) || m.tasks.last.Verb == election.Rejoin && err != nil
}

// owesRejoin reports whether the last rejoin failed, and is to be tried again.
func (m *Monitor) owesRejoin() bool {
	err := m.tasks.failed[election.Rejoin]
	return err != nil && !errors.Is(err, ErrRefused)
}

// notBegun is a rejoin that was refused before anything was changed.
type notBegun struct{ error }

func (e notBegun) Unwrap() error { return e.error }

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

// endAction ends the long action of a Monitor that was told to stop.
func (m *Monitor) endAction() {
	if m.tasks.current != nil {
		m.finish(m.tasks.current.End())
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

// tooMany reports whether failovers_per_hour is reached, as the local copy knows it.
// A witness and an observer have none: they ask the first node that answers.
func (m *Monitor) tooMany(ctx context.Context) bool {
	limit := m.cluster.cfg.FailoversPerHour
	if limit < 0 {
		return false
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	var count int
	read := func(n *registry.Server) (err error) { count, err = n.RecentFailovers(ctx); return err }
	if m.node.Local != nil && m.node.Role != RoleWitness {
		return read(m.node.Local.Server) == nil && count >= limit
	}
	for _, p := range voters.Answering(m.watch.Peers()) {
		if p.Role != election.Witness && p.ID != election.Arbiter && m.watch.Voter(p.ID).Run(ctx, read) == nil {
			return count >= limit
		}
	}
	return false
}

// takeOffice writes the rows of the nodes that a promotion changes, where whoever
// held the election did not get to it.
func (m *Monitor) takeOffice(ctx context.Context) error {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	rules, err := m.node.Local.Rules(ctx)
	if err != nil || len(rules) == 0 {
		return err
	}
	var former int32
	if len(rules) > 1 {
		former = rules[1].Primary
	}
	return m.node.Local.InstallPrimary(ctx, int32(m.cluster.cfg.NodeID), former, nil, "local")
}

// hookFollow runs follow_command once for each term whose primary the node was
// pointed to by somebody else.
func (m *Monitor) hookFollow(ctx context.Context) {
	r := voters.NewestRule(m.watch.Peers())
	switch {
	case m.tasks.followCommandFor == 0 || m.cluster.cfg.FollowCommand == "":
		m.tasks.followCommandFor = r.Term
	case r.Term > m.tasks.followCommandFor && m.tasks.current == nil:
		m.tasks.followCommandFor = r.Term
		m.begin(ctx, election.Action{Verb: election.Follow, Child: r.Primary})
	}
}

// syncWitness copies the metadata to the local witness every witness_sync_interval.
func (m *Monitor) syncWitness(ctx context.Context) error {
	now := time.Now()
	if now.Sub(m.duties.witnessSynced) < m.cluster.cfg.WitnessSyncInterval {
		return nil
	}
	m.duties.witnessSynced = now
	primary, ok := registry.ByID(m.node.Records, m.node.Ruler())
	if !ok {
		return nil
	}
	ctx, cancel := m.node.PeerLimit(ctx)
	defer cancel()
	n, err := m.node.Open(ctx, primary.ID, func(ctx context.Context) (*registry.Server, error) { return m.cluster.connectTo(ctx, primary) })
	if err != nil {
		return err
	}
	defer n.GiveBack()
	return registry.CopyMetadata(ctx, n.Server, m.node.Local.Server)
}

// followWinner points the local standby to the primary that the newest rule
// names, with the operator's follow_command where there is one.
func (c *Cluster) followWinner(ctx context.Context, target Record) error {
	limit := c.cfg.StandbyFollowTimeout + c.cfg.PrimaryFollowTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("follow %s: not done within %s", target, limit))
	defer cancel()
	if c.cfg.FollowCommand != "" {
		out, err := shell.Run(ctx, c.cfg.FollowCommand, map[byte]shell.Value{'n': {Env: "REPMGR_UPSTREAM_NODE_ID", Text: target.ID.String()}})
		if err != nil {
			return fmt.Errorf("follow_command: %w: %s", err, shell.LastLines(out, 5))
		}
		return nil
	}
	res, err := c.Follow(ctx, FollowOptions{UpstreamID: target.ID, slotOptional: true})
	if err == nil {
		c.emit(ctx, nil, Event{
			NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventFailoverFollow, Success: true, PeerID: target.ID, Peer: target.Name,
			Details: res.sentence(),
		})
	}
	return err
}

// announce says what this Monitor does to everybody who looks at its server.
func (m *Monitor) announce(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil {
		m.seat.Close()
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	s := m.Status()
	p := Presence{PID: os.Getpid(), Mode: m.cluster.cfg.Failover, Phase: string(s.Phase), Reason: s.Reason, Since: s.Since, Error: s.Error}
	p.CanFence, p.LostVote = m.guard.CanFence(), m.kept.Lost()
	p.NoStream = m.duties.streams.Failed()
	if err := m.guard.Lacks(); err != nil {
		p.Unable = err.Error()
	}
	if s.Lease != nil {
		left := s.Lease.Seconds()
		p.LeaseLeft, p.RunsOut = &left, s.RunsOut
	}
	if ruler := voters.PeerOf(m.watch.Peers(), int32(m.node.Ruler())); m.manual() {
		p.SeenAt = m.node.PrimarySeen
	} else if int32(m.cluster.cfg.NodeID) != ruler.ID {
		p.SeenAt = ruler.SeenAt
		p.Guarded = ruler.ID != 0 && election.Unfenced(ruler, m.watch.Peers()) == ""
	}
	m.report("the announcement", m.seat.Announce(ctx, m.cluster.connectLocal, p))
}
