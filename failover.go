package repmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/explain"
	"github.com/pgrepmgr/repmgr/internal/coordinator"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// FailoverOptions are the choices of [Cluster.Failover].
type FailoverOptions struct {
	// Force goes on although failover is paused, nodes are set to manual, there were
	// too many failovers, the winner lacks too much, or the primary is starting up, shutting down or recovering
	// and has not done so for primary_start_timeout: where commits do not wait for
	// standbys, only if somebody is there to stop it. A majority and the acknowledged commits are never
	// overridden: that is what [Cluster.Promote] is for.
	Force  bool
	DryRun bool // survey the voters and say who would win, without asking for pledges
}

// FailoverResult is the result of an election.
type FailoverResult struct {
	Term      int64           `json:"term"`
	Health    election.Health `json:"health"` // the verdict on the former primary
	Former    *Record         `json:"former_primary,omitempty"`
	Winner    *Record         `json:"winner,omitempty"`
	Rule      election.Rule   `json:"rule,omitzero"`
	StartedAt time.Time       `json:"started_at"`
	Outage    time.Duration   `json:"outage_ns"`  // from the last sign of life of the former primary until the new one's first commit
	LostBytes *int64          `json:"lost_bytes"` // WAL that the former primary is known to have had beyond the winner; nil: not known
	Steps     []FailoverStep  `json:"steps"`
	Following []Record        `json:"following"` // standbys that stream from the winner already
	DryRun    bool            `json:"dry_run,omitempty"`
}

// FailoverStep is one step of an election, with the evidence for it.
type FailoverStep = registry.FailoverStep

// RefusalError is a failover that was refused, with the name of the reason. errors.Is finds it
// as [ErrRefused], and as [ErrNoQuorum] or [ErrPaused] where it is that.
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

// Is matches the sentinel error of the refusal.
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

// refusal is the error of an election that was refused, with what to do about it. It does not
// advise what was tried already.
func (c *Cluster) refusal(r *coordinator.Refused, rule election.Rule, w *voters.Watch, forced bool) error {
	var left []Voter
	for _, p := range w.Peers() {
		if rec := w.Record(p.ID); p.ID != rule.Primary && rec.ID != 0 {
			v := Voter{ID: rec.ID, Name: rec.Name, Answer: p.Answer}
			if v.Answer == election.Rejects {
				v.Login = c.userOf(rec)
			}
			left = append(left, v)
		}
	}
	return hint(&RefusalError{r.Refusal, r.Health, r.Detail}, "%s", explain.LetInFirst(r.Refusal, left, explain.RefusalHint(r.Refusal, r.Health, forced)))
}

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
	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(recs)
	policy := c.policy()
	policy.Forced, policy.OnShutdown = o.Force, true
	w.AwaitVerdict(ctx, policy)
	e := c.electionOptions(w)
	e.KnownTerm, e.Presume = voters.HighestTerm(w.Peers()), true
	res, err := c.holdElection(ctx, e, w, policy, o.DryRun)
	if err == nil && !o.DryRun {
		c.recordFailover(ctx, w, res)
	}
	return res, err
}

// holdElection holds an election among the voters that w watches.
func (c *Cluster) holdElection(ctx context.Context, o coordinator.Options, w *voters.Watch, policy election.Policy, dryRun bool) (FailoverResult, error) {
	res, err := coordinator.New(o, w, policy).Run(ctx, dryRun)
	if refused := (*coordinator.Refused)(nil); errors.As(err, &refused) {
		err = c.refusal(refused, res.Rule, w, policy.Forced)
	}
	return FailoverResult(res), err
}

// electionOptions are what package coordinator needs of this cluster.
func (c *Cluster) electionOptions(w *voters.Watch) coordinator.Options {
	o := coordinator.Options{
		Self: c.cfg.NodeID, Candidate: c.candidate(), Consensus: c.cfg.PrimaryVisibilityConsensus,
		SilenceTimeout: c.cfg.SilenceTimeout, FenceTimeout: c.cfg.FenceTimeout, PromotionTimeout: c.cfg.PromoteCheckTimeout,
		ValidationCommand: c.cfg.FailoverValidationCommand, ValidationTimeout: c.cfg.EventNotificationTimeout,
		Sync: c.syncWriter(w), Log: c.log,
		Connect: c.connectTo, MakeSlot: c.slotOrNone, Promote: c.promoteWinner, StandbySettings: c.login().Settings,
	}
	if c.cfg.Arbiter != nil {
		o.Arbiter = arbiterVoter{c.cfg.Arbiter}
	}
	return o
}

// arbiterVoter makes an arbiter usable for package coordinator.
type arbiterVoter struct{ Arbiter }

func (a arbiterVoter) Pledge(ctx context.Context, b ballot.Ballot) (ballot.Ballot, election.Rule, error) {
	st, err := a.Arbiter.Pledge(ctx, b)
	return st.Ballot, st.Rule, err
}

// recordFailover writes the event and the history row of a failover, on its winner.
func (c *Cluster) recordFailover(ctx context.Context, w *voters.Watch, res FailoverResult) {
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	e := Event{
		NodeID: res.Winner.ID, Node: res.Winner.Name, Type: EventFailoverPromote, Success: true, PeerID: res.Former.ID, Peer: res.Former.Name,
		Details: fmt.Sprintf("%s promoted to primary; old primary %s marked as failed", res.Winner, res.Former),
	}
	if res.Former.ID == res.Winner.ID {
		e.Details = fmt.Sprintf("%s promoted to primary again", res.Winner)
	}
	err := w.Voter(int32(res.Winner.ID)).RunNow(ctx, func(n *registry.Server) error {
		c.emit(ctx, n, e)
		return n.RecordFailover(ctx, registry.FailoverRecord{
			Term: res.Term, FormerID: res.Former.ID, PrimaryID: res.Winner.ID, Coordinator: c.candidate(), Reason: res.Health,
			StartedAt: res.StartedAt, Outage: res.Outage, LostBytes: res.LostBytes, Steps: res.Steps,
		})
	})
	if err != nil {
		c.log.Warn("the failover is not in repmgr.failovers", "err", err)
	}
}

// promoteWinner runs promote_command where the winner is the local node and the command is set.
// Otherwise it promotes over SQL.
func (c *Cluster) promoteWinner(ctx context.Context, n *registry.Server, winner Record) error {
	local := winner.ID == c.cfg.NodeID
	if local && c.cfg.PromoteCommand != "" {
		ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.PromoteCheckTimeout, fmt.Errorf("no end within promote_check_timeout (%s)", c.cfg.PromoteCheckTimeout))
		defer cancel()
		out, err := shell.Run(ctx, c.cfg.PromoteCommand, map[byte]shell.Value{'n': {Env: "REPMGR_NODE_ID", Text: winner.ID.String()}})
		if err != nil {
			return hint(kind(ErrPromotion, "promote_command on %s: %w%s", n.Name, promoteCommandError{err}, shell.AfterColon(shell.LastLines(out, 5))), "The next election promotes without it.")
		}
		var inRecovery bool
		if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil || !inRecovery {
			return err
		}
	}
	remote := *c
	if !local {
		remote.cfg.ServicePromoteCommand = ""
	}
	return remote.promoteOnly(ctx, n)
}
