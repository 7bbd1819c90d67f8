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
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/report"
	"github.com/pgrepmgr/repmgr/wal"
)

// startTask starts a long action in a goroutine of its own. Only one runs at a time. Where one
// runs already, nothing is started: the next decision asks for it again.
func (m *Monitor) startTask(ctx context.Context, a election.Action) {
	if m.tasks.current.Is(election.RunChildrenCommand) { // nothing waits for it
		m.endTask()
	}
	if m.tasks.current != nil || a.Verb == election.Rejoin && m.outbox.Storing() { // the next decision asks for it again
		return
	}
	if a.Verb == election.Follow { // follow_command runs only once for this term
		m.tasks.followCommandFor = max(m.tasks.followCommandFor, voters.NewestRule(m.watch.Peers()).Term)
	}
	c, target, policy := m.cluster, m.watch.Record(a.Child), m.policy()
	if hook := (promoteCommandError{}); errors.As(m.tasks.failed[election.Elect], &hook) {
		c = c.withoutHooks()
	}
	policy.TooMany = a.Verb == election.Elect && m.failoverLimitReached(ctx)
	if policy = policy.ForHandover(m.state.State, time.Now()); a.Verb != election.Elect {
		policy.Prefer = 0 // a primary that goes on does not give way to an equal one
	}
	known, firm := m.state.BallotFor, !slices.Contains([]election.Verb{election.Follow, election.Rejoin, election.RestartServer, election.RunChildrenCommand}, a.Verb)
	m.tasks.current = task.Start(ctx, a.Verb, string(m.state.Reason), firm, func(ctx context.Context, act *task.Task) error {
		return m.runTask(ctx, c, act, target, policy, known)
	}, m.lookNow)
}

// withoutHooks returns a copy that promotes over SQL instead of running promote_command. After
// a command has failed or hung once, it would hold up every further election.
func (c *Cluster) withoutHooks() *Cluster {
	bare := *c
	bare.cfg.PromoteCommand, bare.cfg.ServicePromoteCommand = "", ""
	return &bare
}

func (m *Monitor) runTask(ctx context.Context, c *Cluster, act *task.Task, target Record, policy election.Policy, known int64) error {
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
			m.watch.Refresh(ctx, c.heartbeatInterval()) // the next decision must see the new votes and the new rule
		}
		return err
	case election.Follow:
		return c.followWinner(ctx, target)
	case election.Rejoin:
		return m.rejoin(ctx, c, act, target)
	case election.HandOver:
		return m.handOver(ctx, c, policy)
	case election.RunChildrenCommand:
		return m.runChildrenCommand(ctx, c)
	case election.RestartServer:
		return m.restartServer(ctx, c, func() error { return act.Hold(ctx, true) })
	case election.Fence:
		m.guard.Fence(ctx, act.Why)
	}
	return nil
}

// rejoin brings the local server back as a standby. A mark file in the data directory tells a
// later daemon that the rejoin is not complete.
func (m *Monitor) rejoin(ctx context.Context, c *Cluster, act *task.Task, target Record) error {
	if m.guard.Unmarked() {
		return rejoinNotStarted{kind(ErrRefused, "the server was fenced, and is not marked as a standby yet")}
	}
	defer m.guard.Suspend()()
	srv, err := c.localServer(m.guard.DataDirectory())
	if err != nil {
		return err
	}
	if !rejoin.Incomplete(srv, c.cfg.NodeID) { // a clone accepts no directory that holds an unknown file, such as this mark
		if err := durable.Write(filepath.Join(srv.Dir, postmaster.RejoinMark), []byte(target.Name+"\n")); err != nil {
			return fmt.Errorf("mark the rejoin: %w", err)
		}
	}
	mark, _ := srv.ReadMark()
	res, err := c.Rejoin(ctx, RejoinOptions{
		Target: c.dialInfo(target), DataDirectory: srv.Dir, slotOptional: true, hold: func(firm bool) error { return act.Hold(ctx, firm) },
		elsewhere: func(upTo wal.Position) Record {
			peers := m.watch.Peers()
			r := voters.NewestRule(peers)
			if !m.policy().Diagnose(time.Now(), r, peers).Lost() {
				return Record{}
			}
			return m.watch.Record(election.WALSource(r, peers, int32(c.cfg.NodeID), upTo))
		},
	})
	if err != nil && res.Method == "" {
		return rejoinNotStarted{err}
	}
	if err != nil {
		return err
	}
	if err := m.unmarkRejoin(); err != nil {
		return err
	}
	return srv.Unmark(mark)
}

// unmarkRejoin removes the mark of a rejoin that is complete.
func (m *Monitor) unmarkRejoin() error {
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(srv.Dir, postmaster.RejoinMark)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmark the rejoin: %w", err)
	}
	return nil
}

// collectOutcome takes the result of a long action that has ended.
func (m *Monitor) collectOutcome() {
	if over, err := m.tasks.current.Outcome(); over {
		m.finishTask(err)
	}
}

func (m *Monitor) finishTask(err error) {
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

// diverged reports whether the last follow or rejoin failed in a way that only a rejoin can
// solve: the node has WAL that the primary never had, or it needs WAL that the primary has
// removed, or the last rejoin failed.
func (m *Monitor) diverged() bool {
	err := m.tasks.failed[m.tasks.last.Verb]
	return m.tasks.last.Verb == election.Follow && (errors.Is(err, ErrTimelineDiverged) || errors.Is(err, ErrWALGone)) || m.tasks.last.Verb == election.Rejoin && err != nil
}

// rejoinUnfinished reports whether the last rejoin failed after it had begun, so that it has to
// be tried again.
func (m *Monitor) rejoinUnfinished() bool {
	err := m.tasks.failed[election.Rejoin]
	return err != nil && !errors.Is(err, ErrRefused)
}

// rejoinNotStarted is the error of a rejoin that was refused before it changed anything.
type rejoinNotStarted struct{ error }

func (e rejoinNotStarted) Unwrap() error { return e.error }

// tellRejoin reports once why the node was not brought back. A rejoin that failed in the middle
// has sent its own event.
func (m *Monitor) tellRejoin(v election.Verb, err error) {
	var refused rejoinNotStarted
	switch {
	case v != election.Rejoin:
	case err == nil:
		m.trouble.News(string(v), "")
	case errors.As(err, &refused) && !errors.Is(err, context.Canceled) && m.trouble.News(string(v), err.Error()):
		m.tell(Event{Type: EventNodeRejoin, Details: err.Error()})
	}
}

// endTask stops the long action that runs, because this Monitor was told to stop or to yield.
func (m *Monitor) endTask() {
	if m.tasks.current != nil {
		m.finishTask(m.tasks.current.End())
	}
}

// tellRefusal reports once why a failover was refused.
func (m *Monitor) tellRefusal(v election.Verb, err error) {
	var refusal *RefusalError
	switch {
	case v != election.Elect:
	case err == nil:
		m.trouble.News(string(v), "")
	case errors.As(err, &refusal) && refusal.Refusal == election.RefusedHealth:
	case errors.As(err, &refusal) && (refusal.Refusal == election.RefusedElection || refusal.Refusal == election.RefusedPledges) && time.Since(m.state.LostAt) < 3*m.cluster.cfg.SilenceTimeout:
		// Daemons that start elections at the same time hinder each other for a moment. That is
		// normal in a failover, and is not reported.
	case errors.As(err, &refusal) && m.trouble.News(string(v), string(refusal.Refusal)):
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
}

// tellElection records an election on its winner, and sends its event.
func (m *Monitor) tellElection(c *Cluster, reaffirmed bool, res FailoverResult, err error) {
	switch {
	case err != nil && res.Winner != nil && len(res.Steps) >= 3 && !reaffirmed:
		m.tellLater(Event{Type: EventFailoverAbort, Details: err.Error()})
	case err != nil:
	case reaffirmed && res.Former == nil:
		m.tellLater(Event{Type: EventTermReaffirmed, Success: true, Details: fmt.Sprintf("%s goes on as primary in term %d", res.Winner, res.Term)})
	default:
		c.recordFailover(context.Background(), m.watch, res)
	}
}

// failoverLimitReached reports whether there were failovers_per_hour failovers in the last hour.
func (m *Monitor) failoverLimitReached(ctx context.Context) bool {
	limit := m.cluster.cfg.FailoversPerHour
	if limit < 0 {
		return false
	}
	count, ok := m.node.RecentFailovers(ctx)
	return ok && count >= limit
}

// runFollowCommand runs follow_command once for each term in which another program has pointed
// the local standby to the new primary.
func (m *Monitor) runFollowCommand(ctx context.Context) {
	r := voters.NewestRule(m.watch.Peers())
	switch {
	case m.tasks.followCommandFor == 0 || m.cluster.cfg.FollowCommand == "":
		m.tasks.followCommandFor = r.Term
	case r.Term > m.tasks.followCommandFor && m.tasks.current == nil:
		m.tasks.followCommandFor = r.Term
		m.startTask(ctx, election.Action{Verb: election.Follow, Child: r.Primary})
	}
}

// runChildrenCommand runs child_nodes_disconnect_command.
func (m *Monitor) runChildrenCommand(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it did not end within one minute"))
	defer cancel()
	out, err := shell.Run(ctx, c.cfg.ChildNodesDisconnectCommand, map[byte]shell.Value{'p': {Env: "REPMGR_PRIMARY_NODE_ID", Text: c.cfg.NodeID.String()}})
	e := Event{Type: EventChildNodesDisconnectCommand, Success: err == nil, Details: "too few standbys are attached: child_nodes_disconnect_command was run"}
	if err != nil {
		e.Details = fmt.Sprintf("too few standbys are attached, and child_nodes_disconnect_command failed: %v%s", err, shell.AfterColon(shell.LastLines(out, 5)))
	}
	m.tellLater(e)
	return err
}

// followWinner makes the local standby follow the primary that the newest rule names. Where
// follow_command is set and could work, it is run first; where it fails, it is not needed.
func (c *Cluster) followWinner(ctx context.Context, target Record) error {
	limit := c.cfg.StandbyFollowTimeout + c.cfg.PrimaryFollowTimeout
	late := fmt.Errorf("follow %s: not done within %s", target, limit)
	if c.cfg.FollowCommand != "" {
		hook, cancel := context.WithTimeoutCause(ctx, limit, late)
		defer cancel()
		if _, err := c.Follow(hook, FollowOptions{UpstreamID: target.ID, DryRun: true}); errors.Is(err, ErrTimelineDiverged) || errors.Is(err, ErrWALGone) {
			return err // only a rejoin can help
		}
		out, err := shell.Run(hook, c.cfg.FollowCommand, map[byte]shell.Value{'n': {Env: "REPMGR_UPSTREAM_NODE_ID", Text: target.ID.String()}})
		if err == nil || ctx.Err() != nil {
			return err
		}
		c.log.Warn("follow_command failed: the standby is pointed to its primary without it", "err", err, "detail", shell.LastLines(out, 5), "hint", "repmgrd needs no follow_command: remove it, or mend it.")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	res, err := c.Follow(ctx, FollowOptions{UpstreamID: target.ID, slotOptional: true})
	if err == nil {
		c.emit(ctx, nil, Event{
			NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventFailoverFollow, Success: true, PeerID: target.ID, Peer: target.Name,
			Details: report.Followed(res.Node, res.Upstream, res.wasPrimary, res.wasUpstream),
		})
	}
	return err
}
