package repmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// FailoverOptions are the choices of [Cluster.Failover].
type FailoverOptions struct {
	// Force goes on although failover is paused, nodes are set to manual, or there
	// were too many failovers. A majority and the acknowledged commits are never
	// overridden: that is what [Cluster.Promote] is for.
	Force  bool
	DryRun bool // survey and say who would win; nobody is asked for a pledge
}

// FailoverResult is what an election did.
type FailoverResult struct {
	Term      int64           `json:"term"`
	Health    election.Health `json:"health"` // the verdict on the former primary
	Former    *Record         `json:"former_primary,omitempty"`
	Winner    *Record         `json:"winner,omitempty"`
	Rule      election.Rule   `json:"rule"`
	StartedAt time.Time       `json:"started_at"`
	Outage    time.Duration   `json:"outage_ns"`  // from the last sign of life of the former primary until the new one's first commit
	LostBytes *int64          `json:"lost_bytes"` // WAL that the former primary is known to have had beyond the winner; nil: not known
	Steps     []FailoverStep  `json:"steps"`
	Following []Record        `json:"following"` // standbys that stream from the winner already
	DryRun    bool            `json:"dry_run,omitempty"`
}

// FailoverStep is one step of an election, with what was known then.
type FailoverStep struct {
	Step     string        `json:"step"`
	After    time.Duration `json:"after_ns"` // since the start
	Evidence string        `json:"evidence"`
}

// RefusalError is a failover that did not happen, by name. errors.Is finds it as
// [ErrRefused], and as [ErrNoQuorum] or [ErrPaused] where it is that.
type RefusalError struct {
	Refusal election.Refusal
	Health  election.Health
	Detail  string
}

func (e *RefusalError) Error() string {
	text := "no failover: " + string(e.Refusal)
	if e.Refusal == election.RefusedHealth {
		text = "no failover: " + string(e.Health)
	}
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text
}

// Is finds the sentinel of the refusal.
func (e *RefusalError) Is(target error) bool {
	switch target {
	case ErrRefused:
		return true
	case ErrPaused:
		return e.Refusal == election.RefusedPaused
	case ErrNoQuorum:
		return slices.Contains([]election.Refusal{election.RefusedNoMajority, election.RefusedSync, election.RefusedPledges}, e.Refusal)
	}
	return false
}

var refusalHints = map[election.Refusal]string{
	election.RefusedHealth:     "Nothing to do while the primary lives. To move it in order, use a switchover.",
	election.RefusedPaused:     "Run repmgr service unpause, or repmgr cluster failover --force.",
	election.RefusedNoMajority: "Start more of the nodes, or their network. A witness (repmgr witness register) or an etcd gives another vote. If the others are lost for good, decide yourself: repmgr standby promote --force on the node that has most.",
	election.RefusedSync:       "A node that may hold acknowledged commits is missing: start it. To give up what only it has: repmgr standby promote --force.",
	election.RefusedNoneFit:    "repmgr service status --detail shows each node's priority, mode and daemon.",
	election.RefusedUnfenced:   "Make sure that it is down, or that its repmgrd runs. Then: repmgr cluster failover --force",
	election.RefusedLocation:   "If that location is lost, decide yourself: repmgr standby promote --force on the node of your choice.",
	election.RefusedTooMany:    "Find out why the primaries fail. Then: repmgr cluster failover --force, or raise failovers_per_hour.",
	election.RefusedVisible:    "Look at the network between the nodes.",
	election.RefusedPledges:    "Another election may be going on. It is tried again.",
	election.RefusedBehind:     "Start the node that has them, or raise its priority above 0.",
}

func refuse(r election.Refusal, h election.Health, detail string) error {
	return hint(&RefusalError{r, h, detail}, "%s", refusalHints[r])
}

// chosenMark at the end of a ballot's candidate says that the ballot's node won
// that election: should its coordinator die, it takes office by itself.
const chosenMark = "!"

// errSuperseded: another election has begun since this one.
var errSuperseded = kind(ErrRefused, "another election has begun since")

// Failover holds one election now: it surveys all voters, recruits a majority,
// promotes the one that has most and points the others to it. It may be called
// on any machine that reaches the nodes; the coordinator need not be the winner.
// It refuses with a [RefusalError] while the primary lives or where it would be
// unsafe; then nothing was changed, unless the steps say that voters have
// pledged themselves: their own Monitors, or the next election, free them again.
func (c *Cluster) Failover(ctx context.Context, o FailoverOptions) (FailoverResult, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return FailoverResult{}, err
	}
	w := newWatch(ctx, c, func() {})
	defer w.close()
	w.follow(recs)
	w.settle(ctx)
	policy := c.policy()
	policy.Forced, policy.OnShutdown = o.Force, true
	a := c.campaign(w, policy)
	a.known = highestTerm(w.peers())
	res, err := a.run(ctx, o.DryRun)
	if err == nil && !o.DryRun {
		a.record(ctx)
	}
	return res, err
}

// anyRecords reads the rows from the local node, or from the first of the hosts
// of conninfo that answers, or from what the Monitor of this node last knew.
func (c *Cluster) anyRecords(ctx context.Context) ([]Record, error) {
	recs, err := c.Nodes(ctx)
	if err == nil && len(recs) > 0 {
		return recs, nil
	}
	if kept := c.keptRecords(); len(kept) > 0 {
		return kept, nil
	}
	if err == nil {
		err = hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	return nil, err
}

// settle waits until every voter was tried once.
func (w *watch) settle(ctx context.Context) {
	limit := time.Now().Add(w.c.cfg.SilenceTimeout + time.Second)
	for time.Now().Before(limit) {
		if !slices.ContainsFunc(w.peers(), func(p election.Peer) bool { return p.Tried.IsZero() }) || pause(ctx, pollInterval) != nil {
			return
		}
	}
}

// policy is the operator's choices as the kernel knows them.
func (c *Cluster) policy() election.Policy {
	return election.Policy{
		Interval: c.cfg.MonitorInterval, RegisterEvery: registerEvery,
		Automatic: c.cfg.Failover == FailoverAutomatic, Silence: c.cfg.SilenceTimeout, Fence: c.cfg.FenceTimeout,
		Patience:   time.Duration(c.cfg.ReconnectAttempts) * c.cfg.ReconnectInterval,
		OnShutdown: c.cfg.FailoverOnShutdown, Quorum: c.cfg.SynchronousMode == SynchronousQuorum, Acks: c.cfg.SynchronousNodeCount,
	}
}

// candidate is what the pledges of this process are made out to.
func (c *Cluster) candidate() string {
	return fmt.Sprintf("%s.%d", candidateName(c.cfg.NodeName), os.Getpid())
}

// campaign is one election, from its survey to its winner's first commit.
type campaign struct {
	c        *Cluster
	w        *watch
	policy   election.Policy
	known    int64 // the highest term of a ballot when it was decided to begin
	reaffirm bool  // the local node is the living primary, and the only one that may win

	res     FailoverResult
	start   time.Time
	rule    election.Rule // the newest before
	pledged []election.Peer
	last    time.Time // when the last pledge was stored
	tally   election.Tally
	conn    *Node   // to the winner, for the first commit
	rowEnd  wal.LSN // where the row of the rule ends
}

func (c *Cluster) campaign(w *watch, p election.Policy) *campaign {
	now := time.Now()
	return &campaign{c: c, w: w, policy: p, start: now, res: FailoverResult{StartedAt: now, Steps: []FailoverStep{}, Following: []Record{}}}
}

// at notes a step. A test may want the process to die in this very moment.
func (a *campaign) at(step, evidence string, args ...any) {
	evidence = fmt.Sprintf(evidence, args...)
	a.res.Steps = append(a.res.Steps, FailoverStep{step, time.Since(a.start), evidence})
	a.c.log.Info("failover", "step", step, "term", a.res.Term, "elapsed", time.Since(a.start).Round(time.Microsecond), "evidence", evidence)
	if os.Getenv("REPMGR_TEST_DIE_AT") == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// run is the election. The order of its steps is what makes it safe: see docs/failover.md.
func (a *campaign) run(ctx context.Context, dryRun bool) (FailoverResult, error) {
	a.res.DryRun = dryRun
	defer func() { a.conn.Close() }()
	limit := a.c.cfg.PromoteCheckTimeout + a.c.cfg.FenceTimeout + 10*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, kind(ErrTimeout, "the election took longer than %s", limit))
	defer cancel()
	steps := []func(context.Context) error{a.survey, a.validate, a.recruit, a.count, a.waitForFence, a.tellWitnesses, a.promote, a.open}
	for i, step := range steps {
		if dryRun && i >= 2 {
			break
		}
		if err := step(ctx); err != nil {
			return a.res, err
		}
	}
	return a.res, nil
}

// survey looks at everybody anew. A stream that is still open may only not have
// noticed the primary's end yet.
func (a *campaign) survey(ctx context.Context) error {
	deadline := a.start.Add(a.c.cfg.SilenceTimeout / 2)
	for {
		peers := a.w.refresh(ctx, a.c.cfg.SilenceTimeout/4)
		a.rule = newest(peers)
		now := time.Now()
		a.res.Health, a.res.Rule = a.policy.Diagnose(now, a.rule, peers), a.rule
		if a.reaffirm {
			if own := peerOf(peers, int32(a.c.cfg.NodeID)).Rule; own.Primary == int32(a.c.cfg.NodeID) && highestTerm(peers) <= own.Term {
				return refuse(election.RefusedHealth, election.HealthAlive, "it is in office already")
			}
			a.at("surveyed", "%s", describe(peers))
			return nil
		}
		if a.res.Health == election.HealthReceived && now.Before(deadline) && peerOf(peers, a.rule.Primary).Answer == election.Refused && pause(ctx, pollInterval) == nil {
			continue
		}
		former := a.w.record(a.rule.Primary)
		a.res.Former, a.policy.Location = &former, former.Location
		if r := a.policy.Survey(now, a.rule, peers); r != "" {
			return refuse(r, a.res.Health, describe(peers))
		}
		if who := a.w.stillSees(a.rule.Primary); who != "" && a.c.cfg.PrimaryVisibilityConsensus {
			return refuse(election.RefusedVisible, a.res.Health, who)
		}
		if t := highestTerm(peers); t > max(a.known, a.rule.Term) {
			return refuse(election.RefusedElection, a.res.Health, fmt.Sprintf("of term %d", t))
		}
		a.at("surveyed", "%s; %s", a.res.Health, describe(peers))
		best := a.policy.Count(a.rule, 0, a.res.Health, answering(peers))
		if r := a.w.record(best.Winner); best.Winner != 0 {
			a.res.Winner = &r
		}
		return nil
	}
}

// stillSees names a node whose Monitor has seen the primary lately.
func (w *watch) stillSees(primary int32) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range w.nodes {
		n.mu.Lock()
		ago, ok := n.last.SeenAgo()
		name := n.rec.String()
		n.mu.Unlock()
		if ok && ago < w.c.cfg.SilenceTimeout && id != NodeID(primary) {
			return name
		}
	}
	return ""
}

func answering(peers []election.Peer) []election.Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p election.Peer) bool { return p.Answer != election.Answers })
}

// describe says how each voter answered.
func describe(peers []election.Peer) string {
	var all []string
	for _, p := range peers {
		text := fmt.Sprintf("node %d %s", p.ID, p.Answer)
		switch {
		case p.ID == election.Arbiter:
			text = "etcd " + string(p.Answer)
		case p.Answer == election.Answers && p.Role != election.Witness:
			text = fmt.Sprintf("node %d %s at %s", p.ID, p.Running, p.Position)
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// validate gives failover_validation_command the last word before anything changes.
func (a *campaign) validate(ctx context.Context) error {
	command := a.c.cfg.FailoverValidationCommand
	if command == "" || a.reaffirm || a.res.Winner == nil {
		return nil
	}
	peers := a.w.peers()
	visible := len(answering(peers))
	ctx, cancel := context.WithTimeoutCause(ctx, a.c.cfg.EventNotificationTimeout, fmt.Errorf("no answer within event_notification_timeout (%s)", a.c.cfg.EventNotificationTimeout))
	defer cancel()
	out, err := runShell(ctx, command, map[byte]placeholder{
		'n': {"REPMGR_NODE_ID", a.res.Winner.ID.String()}, 'a': {"REPMGR_NODE_NAME", a.res.Winner.Name},
		'v': {"REPMGR_VISIBLE_NODES", fmt.Sprint(visible)}, 'u': {"REPMGR_SHARED_UPSTREAM_NODES", fmt.Sprint(len(peers) - 2)}, 't': {"REPMGR_TOTAL_NODES", fmt.Sprint(len(peers))},
	})
	if err != nil {
		return refuse(election.RefusedValidation, a.res.Health, fmt.Sprintf("%v: %s", err, lastLines(out, 3)))
	}
	return nil
}

// recruit asks every voter that answers for its pledge, all at once.
func (a *campaign) recruit(ctx context.Context) error {
	peers := a.w.peers()
	for _, p := range peers {
		a.res.Term = max(a.res.Term, p.Term, p.Rule.Term)
	}
	a.res.Term++
	asked := answering(peers)
	got := make([]election.Peer, len(asked))
	errs := make([]error, len(asked))
	var wg sync.WaitGroup
	for i, p := range asked {
		wg.Go(func() {
			if p.ID == election.Arbiter {
				got[i], errs[i] = a.pledgeArbiter(ctx, p)
			} else {
				got[i], errs[i] = a.pledge(ctx, p)
			}
		})
	}
	wg.Wait()
	a.last = time.Now()
	var said []string
	for i, p := range asked {
		if errs[i] != nil {
			said = append(said, fmt.Sprintf("node %d did not: %v", p.ID, errs[i]))
			if errors.Is(errs[i], ballot.ErrRole) && p.Role != election.Witness && !a.reaffirm {
				return refuse(election.RefusedHealth, election.HealthMoved, errs[i].Error())
			}
			continue
		}
		a.pledged = append(a.pledged, got[i])
	}
	a.at("recruited", "%d of %d voters pledged themselves: %s", len(a.pledged), len(a.rule.Voters), strings.Join(append([]string{describe(a.pledged)}, said...), "; "))
	return nil
}

func (a *campaign) pledgeArbiter(ctx context.Context, p election.Peer) (election.Peer, error) {
	st, err := a.c.cfg.Arbiter.Pledge(ctx, ballot.Ballot{Node: election.Arbiter, Term: a.res.Term, Candidate: a.c.candidate()})
	p.Term, p.Candidate, p.Rule, p.Drained = st.Ballot.Term, st.Ballot.Candidate, st.Rule, true
	return p, err
}

// pledge takes one voter's promise, and waits until it stands still.
func (a *campaign) pledge(ctx context.Context, p election.Peer) (election.Peer, error) {
	limit := a.c.cfg.SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no pledge within silence_timeout (%s)", limit))
	defer cancel()
	rec := a.w.record(p.ID)
	n := a.w.node(p.ID)
	if n == nil {
		return p, errSuperseded
	}
	as := ballot.Standby
	switch {
	case p.Role == election.Witness:
		as = ballot.Witness
	case a.reaffirm && p.ID == int32(a.c.cfg.NodeID):
		as = ballot.Primary
	}
	var view election.Peer
	err := n.do(ctx, func(n *Node) error {
		if err := ballot.Pledge(ctx, n.conn, ballot.Ballot{Node: p.ID, Term: a.res.Term, Candidate: a.c.candidate()}, as); err != nil {
			return err
		}
		return n.poll(ctx, func() (still bool, err error) {
			if view, _, err = n.peerView(ctx, a.w, rec); err == nil && as == ballot.Standby && !view.Drained {
				err = n.resumeReplay(ctx)
			}
			return as != ballot.Standby || !view.Streams && view.Drained, err
		})
	})
	view.ID, view.Role, view.Priority, view.Location, view.Answer, view.SeenAt = p.ID, p.Role, p.Priority, p.Location, election.Answers, time.Now()
	return view, err
}

// resumeReplay ends a pause of WAL replay that an operator forgot: a pledged
// standby must show all that it has.
func (n *Node) resumeReplay(ctx context.Context) error {
	if _, err := n.conn.Exec(ctx, `SELECT CASE WHEN pg_is_wal_replay_paused() THEN pg_wal_replay_resume() END`); err != nil {
		return n.queryError("resume WAL replay", err)
	}
	return nil
}

// count finds the winner.
func (a *campaign) count(context.Context) error {
	a.tally = a.policy.Count(a.rule, a.res.Term, a.res.Health, a.pledged)
	switch {
	case a.tally.Refusal != "":
		return refuse(a.tally.Refusal, a.res.Health, describe(a.pledged))
	case a.reaffirm && a.tally.Winner != int32(a.c.cfg.NodeID):
		return refuse(election.RefusedBehind, a.res.Health, fmt.Sprintf("node %d has more", a.tally.Winner))
	}
	r := a.w.record(a.tally.Winner)
	a.res.Winner = &r
	ours, theirs := peerOf(a.pledged, a.tally.Winner).Position, peerOf(a.w.peers(), a.rule.Primary).Position
	if theirs.LSN > 0 && theirs.Timeline == ours.Timeline {
		lost := max(0, theirs.LSN.Bytes(ours.LSN))
		a.res.LostBytes = &lost
	}
	a.at("chosen", "%s at %s", r, ours)
	return nil
}

// waitForFence lets a former primary that may still accept writes find out that
// it has lost its majority. It need not wait for one that is seen to be a
// standby. Then it asks the pledged again: a majority must still stand by its
// pledge, and must not have been restarted since.
func (a *campaign) waitForFence(ctx context.Context) error {
	if a.reaffirm || a.rule.Quorum && !a.tally.Wait {
		return nil
	}
	until := a.last
	if a.tally.Wait {
		until = a.last.Add(a.c.cfg.FenceTimeout + election.Margin)
	}
	for !a.demoted() && time.Now().Before(until) {
		if err := pause(ctx, min(nudgeInterval, time.Until(until))); err != nil {
			return err
		}
	}
	var ours []int32
	for _, p := range a.w.refresh(ctx, a.c.cfg.SilenceTimeout/4) {
		if p.Paused && !a.policy.Forced {
			return refuse(election.RefusedPaused, a.res.Health, a.w.record(p.ID).String())
		}
		if p.Answer == election.Answers && p.Term == a.res.Term && p.Candidate == a.c.candidate() && p.Started.Equal(peerOf(a.pledged, p.ID).Started) {
			ours = append(ours, p.ID)
		}
	}
	if !a.rule.Majority(ours) {
		return refuse(election.RefusedElection, a.res.Health, "the pledges did not last")
	}
	a.at("waited", "%s since the last pledge; a majority still stands by it", time.Since(a.last).Round(time.Millisecond))
	return nil
}

// demoted reports whether the former primary was seen as a standby since it
// could have gone on.
func (a *campaign) demoted() bool {
	p := peerOf(a.w.peers(), a.rule.Primary)
	return p.Answer == election.Answers && p.Running == election.Standby && p.SeenAt.After(a.last)
}

// tellWitnesses gives the new rule to the voters without data, before anybody
// can commit under it.
func (a *campaign) tellWitnesses(ctx context.Context) error {
	for _, p := range a.pledged {
		var err error
		switch {
		case p.ID == election.Arbiter:
			err = a.c.cfg.Arbiter.Record(ctx, a.tally.Rule, a.w.records())
		case p.Role == election.Witness:
			err = a.w.node(p.ID).do(ctx, func(n *Node) error { return n.writeRule(ctx, a.tally.Rule, a.c.candidate()) })
		}
		if err != nil {
			return fmt.Errorf("tell node %d of the new rule: %w", p.ID, err)
		}
	}
	return nil
}

func (w *watch) records() []Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.recs
}

// A row is only ever the newest, and never written anew.
const ruleInsertSQL = `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks, coordinator)
	SELECT $1::bigint, $2::int, $3::int, coalesce($4::int[], '{}'), $5::boolean, coalesce($6::int[], '{}'), $7::int, $8::text
	 WHERE NOT EXISTS (SELECT FROM repmgr.rules WHERE (term, seq) >= ($1::bigint, $2::int))`

func ruleArgs(r election.Rule, coordinator string) []any {
	return []any{r.Term, r.Seq, r.Primary, r.Voters, r.Quorum, r.Sync, r.Acks, coordinator}
}

func (n *Node) writeRule(ctx context.Context, r election.Rule, coordinator string) error {
	tag, err := n.conn.Exec(ctx, ruleInsertSQL, ruleArgs(r, coordinator)...)
	if err != nil {
		return n.queryError("write the rule", err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("write the rule of term %d: %s has one as new: %w", r.Term, n.name, errSuperseded)
	}
	return nil
}

// promote makes the winner the primary, if its pledge still is ours. What its
// commits must wait for is in force before it accepts any.
func (a *campaign) promote(ctx context.Context) error {
	winner := *a.res.Winner
	var wg sync.WaitGroup
	wg.Go(func() { a.conn, _ = a.c.connectTo(ctx, winner) }) // it is needed soon; who commits tries again
	defer wg.Wait()
	err := a.w.node(int32(winner.ID)).do(ctx, func(n *Node) error {
		return ballot.Locked(ctx, n.conn, func(b ballot.Ballot) error {
			if b.Term != a.res.Term || b.Candidate != a.c.candidate() {
				return fmt.Errorf("%w: %s holds %q", errSuperseded, winner, b)
			}
			if a.tally.Rule.Quorum {
				if err := a.c.setSync(ctx, n, a.w, a.tally.Rule.Opening()); err != nil {
					return err
				}
			} else if err := n.clearSync(ctx); err != nil {
				return err
			}
			if a.reaffirm {
				return nil
			}
			b.Candidate += chosenMark
			if err := ballot.Write(ctx, n.conn, b); err != nil {
				return err
			}
			for _, p := range a.pledged {
				if r := a.w.record(p.ID); p.ID != int32(winner.ID) && r.SlotName != "" && r.Role == RoleStandby {
					if _, err := n.CreateSlot(ctx, r.SlotName, r.Name); err != nil {
						return err
					}
				}
			}
			return a.c.promoteWinner(ctx, n, winner)
		})
	})
	if err != nil {
		return err
	}
	a.at("promoted", "%s", winner)
	return nil
}

// promoteWinner runs the operator's promote_command where the winner is the
// local node, and otherwise promotes over SQL.
func (c *Cluster) promoteWinner(ctx context.Context, n *Node, winner Record) error {
	local := winner.ID == c.cfg.NodeID
	if local && c.cfg.PromoteCommand != "" {
		ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.PromoteCheckTimeout, fmt.Errorf("no end within promote_check_timeout (%s)", c.cfg.PromoteCheckTimeout))
		defer cancel()
		out, err := runShell(ctx, c.cfg.PromoteCommand, map[byte]placeholder{'n': {"REPMGR_NODE_ID", winner.ID.String()}})
		if err != nil {
			return kind(ErrPromotion, "promote_command on %s: %w: %s", n.name, err, lastLines(out, 5))
		}
		var inRecovery bool
		if err := n.conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil || !inRecovery {
			return err
		}
	}
	remote := *c
	if !local {
		remote.cfg.ServicePromoteCommand = ""
	}
	return remote.promoteOnly(ctx, n)
}

// open points the others to the winner and commits the rule, which opens the
// term: with synchronous_mode=quorum that commit waits for them like any other.
// It does not wait for ever: a winner without its rule stands for the next term.
func (a *campaign) open(ctx context.Context) error {
	limit := inaugurationLimit * a.c.cfg.SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not acknowledged within %s", limit))
	defer cancel()
	followers := make([]error, len(a.pledged))
	var wg sync.WaitGroup
	for i, p := range a.pledged {
		if p.ID == a.tally.Winner || p.Role == election.Witness || p.ID == election.Arbiter {
			followers[i] = errNoStandby
			continue
		}
		wg.Go(func() {
			if followers[i] = a.repoint(ctx, a.w.record(p.ID)); followers[i] != nil {
				a.c.log.Warn("standby does not follow yet", "node_id", p.ID, "err", followers[i], "hint", "Its own repmgrd tries it again.")
			}
			if errors.Is(followers[i], errSuperseded) && a.tally.Rule.Quorum {
				cancel()
			}
		})
	}
	a.at("repointed", "the others are told")
	err := a.commit(ctx)
	wg.Wait()
	if err != nil {
		return hint(kind(ErrMetadata, "%s is promoted, but its first commit was not acknowledged: %w", a.res.Winner, err),
			"Its own repmgrd goes on with it. See repmgr service status.")
	}
	for i, p := range a.pledged {
		if followers[i] == nil {
			a.res.Following = append(a.res.Following, a.w.record(p.ID))
		}
	}
	a.res.Rule = a.tally.Rule
	a.at("ruled", "term %d is open; following: %s", a.res.Term, orDefault(names(a.res.Following), "nobody yet"))
	return nil
}

func names(recs []Record) string {
	var all []string
	for _, r := range recs {
		all = append(all, r.Name)
	}
	return strings.Join(all, ", ")
}

// inaugurationLimit is how many silence_timeouts the first commit of a term may take.
const inaugurationLimit = 3

var errNoStandby = errors.New("no standby")

// repoint lets a pledged standby stream from the winner, or from the standby
// that it streamed from before, and waits until it does, for as long as is usual.
func (a *campaign) repoint(ctx context.Context, r Record) error {
	target := *a.res.Winner
	theirs, ours := peerOf(a.pledged, int32(r.ID)).Position, peerOf(a.pledged, a.tally.Winner).Position
	if theirs.Timeline > ours.Timeline || theirs.LSN > ours.LSN {
		return kind(ErrTimelineDiverged, "%s has WAL up to %s, the winner only up to %s", r, theirs, ours)
	}
	if up, ok := recordByID(a.w.records(), r.UpstreamID); ok && up.Role == RoleStandby && up.ID != r.ID &&
		slices.ContainsFunc(a.pledged, func(p election.Peer) bool { return p.ID == int32(up.ID) }) {
		target = up
	}
	set, err := a.c.standbySettings(target, r.Name, r.SlotName)
	if err != nil {
		return err
	}
	return a.w.node(int32(r.ID)).do(ctx, func(n *Node) error {
		err := ballot.Locked(ctx, n.conn, func(b ballot.Ballot) error {
			if b.Term > a.res.Term {
				return fmt.Errorf("%w: %s holds %q", errSuperseded, r, b)
			}
			return n.alterSystem(ctx, set)
		})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, a.c.cfg.SilenceTimeout, fmt.Errorf("it does not stream after %s", a.c.cfg.SilenceTimeout))
		defer cancel()
		return n.poll(ctx, func() (bool, error) {
			var streams bool
			err := n.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')`).Scan(&streams)
			return streams, err
		})
	})
}

// commit opens the term, over a connection of its own: it may have to wait. With
// quorum the row of the rule is not acknowledged but held: until so many have it
// that no election can miss it, commits of clients wait. The rows of the nodes
// come after it, as the first commit that is acknowledged like any other.
func (a *campaign) commit(ctx context.Context) error {
	n, err := a.conn, error(nil)
	if n == nil {
		n, err = a.c.connectTo(ctx, *a.res.Winner)
	}
	if err != nil {
		return err
	}
	ctx = unlimited(ctx)
	if err := n.writeRule(ctx, a.tally.Rule, a.c.candidate()); err != nil {
		return err
	}
	if err := n.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()`).Scan(&a.rowEnd); err != nil {
		return n.queryError("find the end of the rule", err)
	}
	wait := "local"
	if a.tally.Rule.Quorum {
		if err := n.poll(ctx, func() (bool, error) { return a.held(ctx, n) }); err != nil {
			return err
		}
		if err := a.c.setSync(ctx, n, a.w, a.tally.Rule.SyncSetting()); err != nil {
			return err
		}
		wait = "on"
	}
	winner := int32(a.res.Winner.ID)
	if err := n.installPrimary(ctx, winner, a.rule.Primary, wait); err != nil {
		return err
	}
	if seen := a.w.lastSign(a.rule.Primary); !a.reaffirm && !seen.IsZero() && a.rule.Primary != winner {
		a.res.Outage = time.Since(seen)
	}
	return nil
}

// installPrimary writes who is the primary now, in one transaction.
func (n *Node) installPrimary(ctx context.Context, primary, former int32, synchronousCommit string) error {
	err := pgx.BeginFunc(ctx, n.conn, func(tx pgx.Tx) error {
		var b pgx.Batch
		b.Queue(`SELECT set_config('synchronous_commit', $1, true)`, synchronousCommit)
		b.Queue(`UPDATE repmgr.nodes SET active = false WHERE type = 'primary' AND active AND node_id <> $1`, primary)
		b.Queue(`UPDATE repmgr.nodes SET type = 'primary', upstream_node_id = NULL, active = true WHERE node_id = $1`, primary)
		b.Queue(`UPDATE repmgr.nodes SET upstream_node_id = $1 WHERE node_id <> $1 AND type <> 'primary' AND upstream_node_id = $2`, primary, former)
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return n.queryError("write who is the primary", err)
	}
	return nil
}

// held reports whether no election can miss the new rule any more: the pledged
// witnesses were told, the standbys have its row.
func (a *campaign) held(ctx context.Context, n *Node) (bool, error) {
	holders := []int32{a.tally.Winner}
	for _, p := range a.pledged {
		if p.ID == election.Arbiter || p.Role == election.Witness {
			holders = append(holders, p.ID)
		}
	}
	rows, err := n.conn.Query(ctx, `SELECT application_name FROM pg_stat_replication WHERE flush_lsn >= $1`, a.rowEnd)
	if err != nil {
		return false, n.queryError("look who has the rule", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, n.queryError("look who has the rule", err)
	}
	for _, name := range names {
		if r, ok := recordByName(a.w.records(), name); ok {
			holders = append(holders, int32(r.ID))
		}
	}
	return election.Held(a.tally.Rule, a.rule, holders), nil
}

// record writes the event and the history row of a failover, on its winner.
func (a *campaign) record(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, DefaultConnectTimeout)
	defer cancel()
	res := a.res
	e := Event{
		NodeID: res.Winner.ID, Node: res.Winner.Name, Type: EventFailoverPromote, Success: true, PeerID: res.Former.ID, Peer: res.Former.Name,
		Details: fmt.Sprintf("%s promoted to primary; old primary %s marked as failed", res.Winner, res.Former),
	}
	if res.Former.ID == res.Winner.ID {
		e.Details = fmt.Sprintf("%s promoted to primary again", res.Winner)
	}
	err := a.w.node(int32(res.Winner.ID)).do(ctx, func(n *Node) error {
		a.c.emit(ctx, n, e)
		return n.recordFailover(ctx, a.c.candidate(), res)
	})
	if err != nil {
		a.c.log.Warn("the failover is not in repmgr.failovers", "err", err)
	}
}

// recordFailover writes the history row of a failover, on the new primary.
func (n *Node) recordFailover(ctx context.Context, coordinator string, res FailoverResult) error {
	steps, err := json.Marshal(res.Steps)
	if err != nil {
		return err
	}
	_, err = n.conn.Exec(ctx, `INSERT INTO repmgr.failovers (term, former_primary_id, primary_id, coordinator, reason, started_at, outage, steps, lost_bytes)
		VALUES ($1, $2, $3, $4, $5, $6, nullif(make_interval(secs => $7), '0'), $8, $9) ON CONFLICT (term) DO NOTHING`,
		res.Term, int32(res.Former.ID), int32(res.Winner.ID), coordinator, string(res.Health), res.StartedAt, res.Outage.Seconds(), steps, res.LostBytes)
	if err != nil {
		return n.queryError("record the failover", err)
	}
	return nil
}
