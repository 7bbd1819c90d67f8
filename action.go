package repmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// learnPause writes to the local server what was said of a pause while it was down.
func (m *Monitor) learnPause(ctx context.Context, o election.Observation) error {
	me, word := voters.PeerOf(o.Peers, o.Self), election.LastPause(o.Peers)
	if !o.Local.Up || m.local == nil || me.Answer != election.Answers || me.PauseSeq >= word {
		return nil
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	return m.local.SetPaused(ctx, NodeID(o.Self), election.Paused(o.Peers), word)
}

// errNobodyAnswered stands for the answer of the first node that is asked.
var errNobodyAnswered = errors.New("no node was asked yet")

// begin starts a long action. There is at most one, and Run waits for its end.
func (m *Monitor) begin(ctx context.Context, a election.Action) {
	if m.action != nil || a.Verb == election.Rejoin && m.outbox.Storing() { // it is asked for again
		return
	}
	if a.Verb == election.Follow { // follow_command is run once for it
		m.hooked = max(m.hooked, voters.NewestRule(m.watch.Peers()).Term)
	}
	c := m.cluster
	target := m.watch.Record(a.Child)
	policy := m.policy()
	if hook := (hookError{}); errors.As(m.failed[election.Elect], &hook) {
		c = c.withoutHooks()
	}
	policy.TooMany = a.Verb == election.Elect && m.tooMany(ctx)
	known, firm := m.state.BallotFor, a.Verb != election.Follow && a.Verb != election.Rejoin
	m.action = task.Start(ctx, a.Verb, string(m.state.Reason), firm, func(ctx context.Context, act *task.Task) error {
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
	if over, err := m.action.Outcome(); over {
		m.finish(err)
	}
}

func (m *Monitor) finish(err error) {
	v := m.action.Verb
	m.action = nil
	m.last = election.Outcome{Verb: v, At: time.Now(), OK: err == nil}
	var refusal *RefusalError
	switch {
	case errors.As(err, &refusal):
		m.last.Reason = election.Reason(refusal.Refusal)
	case err != nil:
		m.last.Reason = election.Reason(err.Error())
	}
	m.failed[v] = err
	if v != election.Elect || refusal == nil || refusal.Refusal != election.RefusedHealth {
		m.report(string(v), err)
	}
	m.tellRefusal(v, err)
	m.tellRejoin(v, err)
}

// diverged reports whether the last action failed because the node has WAL that the primary
// never had, or because the primary does not have WAL any more that the node needs.
func (m *Monitor) diverged() bool {
	err := m.failed[m.last.Verb]
	return m.last.Verb == election.Follow && (errors.Is(err, ErrTimelineDiverged) || errors.Is(err, ErrWALGone)) || m.last.Verb == election.Rejoin && err != nil
}

// owesRejoin reports whether the last rejoin failed, and is to be tried again.
func (m *Monitor) owesRejoin() bool {
	err := m.failed[election.Rejoin]
	return err != nil && !errors.Is(err, ErrRefused)
}

// notBegun is a rejoin that was refused before anything was changed.
type notBegun struct{ error }

func (e notBegun) Unwrap() error { return e.error }

// endAction ends the long action of a Monitor that was told to stop.
func (m *Monitor) endAction() {
	if m.action != nil {
		m.finish(m.action.End())
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
	if m.local != nil && m.role != RoleWitness {
		return read(m.local.Server) == nil && count >= limit
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
	rules, err := m.local.Rules(ctx)
	if err != nil || len(rules) == 0 {
		return err
	}
	var former int32
	if len(rules) > 1 {
		former = rules[1].Primary
	}
	return m.local.InstallPrimary(ctx, int32(m.cluster.cfg.NodeID), former, nil, "local")
}

// hookFollow runs follow_command once for each term whose primary the node was
// pointed to by somebody else.
func (m *Monitor) hookFollow(ctx context.Context) {
	r := voters.NewestRule(m.watch.Peers())
	switch {
	case m.hooked == 0 || m.cluster.cfg.FollowCommand == "":
		m.hooked = r.Term
	case r.Term > m.hooked && m.action == nil:
		m.hooked = r.Term
		m.begin(ctx, election.Action{Verb: election.Follow, Child: r.Primary})
	}
}

// syncWitness copies the metadata to the local witness every witness_sync_interval.
func (m *Monitor) syncWitness(ctx context.Context) error {
	now := time.Now()
	if now.Sub(m.synced) < m.cluster.cfg.WitnessSyncInterval {
		return nil
	}
	m.synced = now
	primary, ok := registry.ByID(m.recs, m.ruler())
	if !ok {
		return nil
	}
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	n, err := m.open(ctx, primary.ID, func(ctx context.Context) (*registry.Server, error) { return m.cluster.connectTo(ctx, primary) })
	if err != nil {
		return err
	}
	defer n.GiveBack()
	return registry.CopyMetadata(ctx, n.Server, m.local.Server)
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

// act does what was decided. A failure is reported, and decides nothing: the
// next look will see the same and ask again.
func (m *Monitor) act(ctx context.Context, actions []election.Action) {
	for _, a := range actions {
		var err error
		switch a.Verb {
		case election.Register:
			err = m.register(ctx, false)
		case election.Adopt:
			err = m.register(ctx, true)
		case election.Sample:
			err = m.writeSample(ctx)
		case election.Prune:
			err = m.local.Prune(ctx, m.cluster.cfg.MonitoringHistoryRetention, m.cluster.cfg.EventsRetention, time.Now().Add(pruneFor))
		case election.MarkActive:
			err = m.markActive(ctx, true)
		case election.MarkInactive:
			err = m.markActive(ctx, false)
		case election.Notify:
			m.tellHappening(a)
		case election.Reconcile:
			err = m.tend(ctx)
		case election.RecordPromotion:
			err = m.takeOffice(ctx)
		case election.PrepareStandby:
			err = m.tendStandby(ctx)
			m.hookFollow(ctx)
		case election.CopyToWitness:
			err = m.syncWitness(ctx)
		case election.Interrupt:
			m.action.GiveWay()
			continue
		case election.Fence, election.Elect, election.Reaffirm, election.Follow, election.Rejoin:
			m.begin(ctx, a)
			continue
		}
		if a.Verb != election.Notify {
			m.report(string(a.Verb), err)
		}
	}
}

// register writes the row of the node, as what it runs as. What repmgr 5 or an
// older version of this program has made is brought up to date first.
func (m *Monitor) register(ctx context.Context, force bool) error {
	o := RegisterOptions{Force: force, WaitStart: postgres.DefaultConnectTimeout}
	status, _, err := m.observeLocal(ctx)
	if err != nil {
		return err
	}
	if m.role == RoleWitness { // not to be registered as a primary
		return hint(kind(ErrNotRegistered, "%s was unregistered as a witness", m.cluster.self()), "Stop this repmgrd. To bring the witness back: repmgr witness register")
	}
	recs, errRecs := m.local.Records(ctx)
	if errRecs != nil && !errors.Is(errRecs, ErrNotRegistered) {
		return errRecs
	}
	if err := standAside(foreigners(m.cluster.survey(ctx, recs))); err != nil {
		return err
	}
	switch old := m.local.Level == registry.Bare || m.local.Level == registry.OtherVersion; {
	case old && status.InRecovery:
		return m.local.NeedSchema(ctx) // the primary's to do
	case old:
		if err = m.cluster.refuseSecondPrimary(ctx, recs); err == nil {
			_, err = m.local.CreateSchema(ctx, Schema)
		}
	case status.InRecovery:
		_, err = m.cluster.RegisterStandby(ctx, o)
	case len(status.Senders) == 0:
		return hint(kind(ErrNotRegistered, "%s is not registered, and nothing streams from it: it may be meant for a primary or for a witness", m.cluster.self()),
			"Run on it: repmgr primary register. Or, for a witness: repmgr witness register -h PRIMARY")
	default: // what sends WAL is no witness
		_, err = m.cluster.RegisterPrimary(ctx, o)
	}
	if err == nil {
		m.lookNow()
	}
	return err
}

// writeSample records the standby's state on the primary.
func (m *Monitor) writeSample(ctx context.Context) error {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	lag, s := m.sample.lag(), m.sample
	return m.primary.WriteSample(ctx, registry.Sample{
		Standby: m.self.ID, Primary: m.upstream.rec.ID, PrimaryLSN: s.primaryLSN, ReceivedLSN: s.local.ReceivedLSN,
		ReplayedAt: s.local.ReplayedAt, InStep: s.inStep(), StaleAfter: 3*m.cluster.cfg.MonitorInterval + time.Second,
		ReceivedLag: lag.ReceivedBytes, AppliedLag: lag.AppliedBytes,
	}, m.cluster.cfg.MonitoringHistory)
}

// markActive says in the node's row whether its server runs.
func (m *Monitor) markActive(ctx context.Context, active bool) error {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	if m.primary == nil {
		return nil // nobody to tell; it is asked for again when there is
	}
	return m.primary.MarkActive(ctx, m.cluster.cfg.NodeID, active)
}
