package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Options are what an election needs of the configuration, and the functions that it calls.
type Options struct {
	Self      registry.NodeID // the node on which the election is held; 0: this machine has none
	Candidate string          // the name to which the voters pledge themselves: see [voters.Candidate]
	KnownTerm int64           // the highest term of any vote at the time of the decision to begin
	Presume   bool            // an operator asks for the election: where no rule exists, one is derived from the rows of the nodes
	Reaffirm  bool            // the local node runs as the primary, and only it may win
	Consensus bool            // refuse while any daemon sees the primary: primary_visibility_consensus

	SilenceTimeout    time.Duration
	FenceTimeout      time.Duration
	PromotionTimeout  time.Duration
	ValidationCommand string
	ValidationTimeout time.Duration

	Arbiter Arbiter // nil: there is none
	Sync    syncrep.Writer
	Log     *slog.Logger

	// Connect opens a connection to a node.
	Connect func(context.Context, registry.Record) (*registry.Server, error)
	// MakeSlot makes the replication slot of a standby on its upstream, and returns its name.
	// Empty: the standby must stream without a slot.
	MakeSlot func(ctx context.Context, up *registry.Server, standby registry.Record) string
	// Promote promotes the winner.
	Promote func(ctx context.Context, n *registry.Server, winner registry.Record) error
	// StandbySettings returns the settings with which the standby of that name follows the
	// primary.
	StandbySettings func(primary registry.Record, name, slot string) (map[string]string, error)
}

// Arbiter is a voter that is no PostgreSQL server.
type Arbiter interface {
	// Pledge stores the vote if its term is higher than that of the stored vote. It returns the
	// vote and the rule that are stored afterwards, also with an error.
	Pledge(ctx context.Context, b ballot.Ballot) (ballot.Ballot, election.Rule, error)
	// Record stores a rule with the registered nodes.
	Record(ctx context.Context, r election.Rule, nodes []registry.Record) error
}

// Result is the result of an election.
type Result struct {
	Term      int64
	Health    election.Health // the verdict on the former primary
	Former    *registry.Record
	Winner    *registry.Record
	Rule      election.Rule
	StartedAt time.Time
	Outage    time.Duration // from the last sign of life of the former primary to the first commit of the new one
	LostBytes *int64        // WAL that the former primary had and the winner does not have; nil: unknown
	Steps     []registry.FailoverStep
	Following []registry.Record // standbys that already stream from the winner
	DryRun    bool
}

// Refused is the error of an election that was refused. Nothing but votes was changed.
type Refused struct {
	Refusal election.Refusal
	Health  election.Health
	Detail  string
}

func (r *Refused) Error() string { return string(r.Refusal) }

// Election is one election, from the survey to the first commit of its winner.
type Election struct {
	Options
	w      *voters.Watch
	policy election.Policy

	res        Result
	start      time.Time
	rule       election.Rule // the newest rule before this election
	pledged    []election.Peer
	lastPledge time.Time // when the last pledge of this election was stored
	tally      election.Tally
	conn       *registry.Server           // a connection to the winner, for the first commit
	probe      *syncrep.CommitProbe       // a connection that tests whether commits wait; nil: none is open
	firstXid   uint64                     // what the winner had not heard of when it was promoted: see [election.Rule]; 0: not known
	openValue  string                     // the synchronous_standby_names of the open term, once it is marked as ours; empty: not yet
	slots      map[registry.NodeID]string // the slots on the winner for the nodes that follow it

	background sync.WaitGroup
	pointed    map[int32]chan error // capacity 1: the result of making that standby follow the winner

	mu      sync.Mutex // protects the next two and, after the promotion, the rule in tally
	hasRow  bool       // the row of the new rule is written
	holders []int32    // data nodes that have the row, or were told the rule
}

// New prepares an election among the voters that w watches. [Election.Run] holds it.
func New(o Options, w *voters.Watch, p election.Policy) *Election {
	now := time.Now()
	return &Election{Options: o, w: w, policy: p, start: now, res: Result{StartedAt: now, Steps: []registry.FailoverStep{}, Following: []registry.Record{}}}
}

func (a *Election) logStep(step, evidence string, args ...any) {
	task.LogStep(a.Log, "failover", &a.res.Steps, a.start, step, fmt.Sprintf(evidence, args...), "term", a.res.Term)
}

// Run holds the election. The order of the steps is what makes it safe: see docs/failover.md.
func (a *Election) Run(ctx context.Context, dryRun bool) (Result, error) {
	a.res.DryRun = dryRun
	defer func() { a.background.Wait(); a.conn.Close(); a.probe.Close() }()
	limit := a.PromotionTimeout + a.FenceTimeout + 10*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.Of(failure.ErrTimeout, "the election took longer than %s", limit))
	defer cancel()
	steps := []func(context.Context) error{a.survey, a.validate, a.recruit, a.count, a.drain, a.waitForFence, a.tellWitnesses, a.promote, a.open}
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

// survey probes all voters again and decides whether an election may begin. A stream that is
// still open may only not have noticed the end of the primary yet, so that is checked again for
// a while.
func (a *Election) survey(ctx context.Context) error {
	deadline := a.start.Add(a.SilenceTimeout / 2)
	for {
		peers := a.w.Refresh(ctx, a.SilenceTimeout/4)
		a.rule = voters.NewestRule(peers)
		if a.Presume && !a.rule.Known() {
			a.rule = Presumed(a.w.Records(), peers)
		}
		now := time.Now()
		a.res.Health, a.res.Rule = a.policy.Diagnose(now, a.rule, peers), a.rule
		if a.Reaffirm {
			a.policy.Incumbent = int32(a.Self)
			if own := voters.PeerOf(peers, int32(a.Self)).Rule; own.Primary == int32(a.Self) && voters.HighestTerm(peers) <= own.Term {
				return a.refuse(election.RefusedHealth, election.HealthAlive, "it is in office already")
			}
			if me := voters.PeerOf(peers, int32(a.Self)); a.rule.Primary == me.ID || me.Elected(a.rule) {
				a.logStep("surveyed", "%s", describe(peers))
				return nil
			}
			a.policy.Adopts = int32(a.Self) // nobody voted for it, so the conditions for a failover must be met
		}
		if a.res.Health == election.HealthReceived && now.Before(deadline) && voters.PeerOf(peers, a.rule.Primary).Answer == election.Refused && wait.Pause(ctx, postgres.PollInterval) == nil {
			continue
		}
		former := a.w.Record(a.rule.Primary)
		a.res.Former, a.policy.Location = &former, former.Location
		if r := a.policy.Survey(now, a.rule, peers); r != "" {
			detail := describe(peers)
			if r == election.RefusedUnfenced {
				detail = string(election.Unfenced(voters.PeerOf(peers, a.rule.Primary), peers)) + "; " + detail
			}
			return a.refuse(r, a.res.Health, detail)
		}
		if who := a.w.WhoSees(a.rule.Primary); who != "" && a.Consensus {
			return a.refuse(election.RefusedVisible, a.res.Health, who)
		}
		if t := voters.HighestTerm(peers); t > max(a.KnownTerm, a.rule.Term) {
			return a.refuse(election.RefusedElection, a.res.Health, fmt.Sprintf("of term %d", t))
		}
		a.logStep("surveyed", "%s; %s", a.res.Health, describe(peers))
		best := a.policy.Count(a.rule, 0, a.res.Health, election.AbleToPledge(a.policy.Electors(a.rule, peers)))
		if r := a.w.Record(best.Winner); best.Winner != 0 {
			a.res.Winner = &r
		}
		return nil
	}
}

// describe is the answer of each voter, for messages.
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

// validate runs failover_validation_command, which can stop the election before anything
// changes.
func (a *Election) validate(ctx context.Context) error {
	command := a.ValidationCommand
	if command == "" || a.Reaffirm || a.res.Winner == nil {
		return nil
	}
	peers := a.w.Peers()
	visible := len(voters.Answering(peers))
	ctx, cancel := context.WithTimeoutCause(ctx, a.ValidationTimeout, fmt.Errorf("no answer within event_notification_timeout (%s)", a.ValidationTimeout))
	defer cancel()
	out, err := shell.Run(ctx, command, map[byte]shell.Value{
		'n': {Env: "REPMGR_NODE_ID", Text: a.res.Winner.ID.String()}, 'a': {Env: "REPMGR_NODE_NAME", Text: a.res.Winner.Name},
		'v': {Env: "REPMGR_VISIBLE_NODES", Text: fmt.Sprint(visible)}, 'u': {Env: "REPMGR_SHARED_UPSTREAM_NODES", Text: fmt.Sprint(len(peers) - 2)}, 't': {Env: "REPMGR_TOTAL_NODES", Text: fmt.Sprint(len(peers))},
	})
	if err != nil {
		return a.refuse(election.RefusedValidation, a.res.Health, fmt.Sprintf("%v: %s", err, shell.LastLines(out, 3)))
	}
	return nil
}

// recruit asks every voter that answers for its pledge, all at the same time. When a living
// primary is itself the candidate, it keeps writing; so its position is read only after no
// pledged standby receives from it any more. Otherwise the others would seem to have more WAL
// than it has.
func (a *Election) recruit(ctx context.Context) error {
	peers := a.w.Peers()
	a.res.Term = voters.HighestTerm(peers) + 1
	asked := a.policy.Electors(a.rule, peers)
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
	a.lastPledge = time.Now()
	for i, p := range asked {
		if a.Reaffirm && p.ID == int32(a.Self) && errs[i] == nil {
			got[i], errs[i] = a.lookAgain(ctx, p)
		}
	}
	var said []string
	for i, p := range asked {
		if errs[i] != nil {
			said = append(said, fmt.Sprintf("node %d did not: %v", p.ID, errs[i]))
			if errors.Is(errs[i], ballot.ErrRole) && p.Role != election.Witness && !a.Reaffirm {
				return a.refuse(election.RefusedHealth, election.HealthMoved, errs[i].Error())
			}
			continue
		}
		a.pledged = append(a.pledged, got[i])
	}
	a.logStep("recruited", "%d of %d voters pledged themselves: %s", len(a.pledged), len(a.rule.Voters), strings.Join(append([]string{describe(a.pledged)}, said...), "; "))
	return nil
}

func (a *Election) pledgeArbiter(ctx context.Context, p election.Peer) (election.Peer, error) {
	vote, rule, err := a.Arbiter.Pledge(ctx, ballot.Ballot{Node: election.Arbiter, Term: a.res.Term, Candidate: a.Candidate})
	p.Term, p.Candidate, p.Rule = vote.Term, vote.Candidate, rule
	return p, err
}

// pledge asks one voter for its pledge. A standby stops receiving with it, so nothing of the
// old term reaches it any more. Where its WAL ends is read from its disk; it need not have
// replayed that WAL, and nothing is resumed.
func (a *Election) pledge(ctx context.Context, p election.Peer) (election.Peer, error) {
	limit := a.SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no pledge within silence_timeout (%s)", limit))
	defer cancel()
	n := a.w.Voter(p.ID)
	if n == nil {
		return p, registry.ErrSuperseded
	}
	as := ballot.Standby
	switch {
	case p.Role == election.Witness:
		as = ballot.Witness
	case a.Reaffirm && p.ID == int32(a.Self):
		as = ballot.Primary
	}
	var view election.Peer
	hung := false
	err := n.RunNow(ctx, func(n *registry.Server) (err error) {
		var loaded time.Time
		if err := n.Conn.QueryRow(ctx, `SELECT pg_conf_load_time()`).Scan(&loaded); err != nil {
			return n.QueryError("look at the settings", err)
		}
		if err := ballot.Pledge(ctx, n.Conn, ballot.Ballot{Node: p.ID, Term: a.res.Term, Candidate: a.Candidate}, as); err != nil {
			return err
		}
		if as == ballot.Standby {
			if hung, err = endReceiver(ctx, n, loaded, limit/2); err != nil {
				return err
			}
		}
		if view, err = a.w.Look(ctx, n, a.w.Record(p.ID)); err == nil && view.PositionUnknown && as == ballot.Standby {
			view, err = awaitWALEnd(ctx, n, a.w, a.w.Record(p.ID), view)
		}
		view.Hung = hung
		return err
	})
	return withIdentity(p, view), err
}

// lookAgain reads the state of a voter that is already pledged again.
func (a *Election) lookAgain(ctx context.Context, p election.Peer) (view election.Peer, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.SilenceTimeout)
	defer cancel()
	err = a.w.Voter(p.ID).Run(ctx, func(n *registry.Server) (err error) {
		rec := a.w.Record(p.ID)
		if view, err = a.w.Look(ctx, n, rec); err == nil && view.PositionUnknown {
			view, err = awaitWALEnd(ctx, n, a.w, rec, view)
		}
		return err
	})
	return withIdentity(p, view), err
}

// withIdentity is a view of a voter, completed with what a look does not read.
func withIdentity(p, view election.Peer) election.Peer {
	view.ID, view.Role, view.Priority, view.Location, view.Answer, view.SeenAt = p.ID, p.Role, p.Priority, p.Location, election.Answers, time.Now()
	return view
}

// endReceiver waits until a detached standby has no WAL receiver. The startup process ends the
// receiver; where it is busy with replay, a short receiver timeout is set for that. hung is
// true where the postmaster has not reloaded the settings by then: such a postmaster would not
// promote the server either.
func endReceiver(ctx context.Context, n *registry.Server, before time.Time, limit time.Duration) (hung bool, err error) {
	begun := time.Now()
	hurry := begun.Add(postgres.NudgeInterval / 2)
	hurried := false
	err = n.Poll(ctx, func() (bool, error) {
		var gone, loaded bool
		if err := n.Conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL), pg_conf_load_time() > $1`, before).Scan(&gone, &loaded); err != nil {
			return false, n.QueryError("look at the WAL receiver", err)
		}
		hung = !loaded
		if !gone && !hurried && time.Now().After(hurry) {
			hurried = true
			return false, ballot.ShortenReceiverTimeout(ctx, n.Conn)
		}
		return gone && (loaded || time.Since(begun) > limit), nil
	})
	if hurried {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgres.DefaultConnectTimeout)
		defer cancel()
		err = errors.Join(err, ballot.RestoreReceiverTimeout(ctx, n.Conn))
	}
	return hung, err
}

// awaitWALEnd waits a little until it is certain where the WAL of a standby ends: a server that
// was just started must first read all of its WAL, or write down its timeline. A standby that
// stays uncertain has a vote, and can not win.
func awaitWALEnd(ctx context.Context, n *registry.Server, w *voters.Watch, r registry.Record, view election.Peer) (election.Peer, error) {
	limited, cancel := context.WithTimeout(ctx, w.Settings().SilenceTimeout/2)
	defer cancel()
	resolved := false
	err := n.Poll(limited, func() (bool, error) {
		if view.Idle && !resolved {
			resolved = true
			if err := n.ResolveTimeline(limited, w.Settings().SilenceTimeout/4); err != nil && !errors.Is(err, failure.ErrQuery) {
				return false, err
			}
		}
		seen, err := w.Look(limited, n, r)
		if err == nil {
			view = seen
		}
		return !view.PositionUnknown || view.ReplayBlocked != "", err
	})
	if limited.Err() != nil && ctx.Err() == nil && !n.Conn.IsClosed() {
		err = nil
	}
	return view, err
}

// count determines the winner from the pledges.
func (a *Election) count(context.Context) error {
	self := int32(a.Self)
	if a.Reaffirm && voters.PeerOf(a.pledged, self).Term != a.res.Term { // then a comparison with the other nodes proves nothing
		return a.refuse(election.RefusedPledges, a.res.Health, "its own server did not pledge itself")
	}
	a.tally = a.policy.Count(a.rule, a.res.Term, a.res.Health, a.pledged)
	switch {
	case a.tally.Refusal != "":
		return a.refuse(a.tally.Refusal, a.res.Health, describe(a.pledged))
	case a.Reaffirm && a.tally.Winner != self:
		detail := fmt.Sprintf("node %d has more", a.tally.Winner)
		if unfit := a.policy.Fit(a.rule, voters.PeerOf(a.pledged, self)); unfit != "" {
			detail = fmt.Sprintf("%s, node %d could be elected", unfit, a.tally.Winner)
		}
		return a.refuse(election.RefusedBehind, a.res.Health, detail)
	}
	r := a.w.Record(a.tally.Winner)
	a.res.Winner = &r
	ours, theirs := voters.PeerOf(a.pledged, a.tally.Winner).Position, voters.PeerOf(a.w.Peers(), a.rule.Primary).Position
	if theirs.LSN > 0 && theirs.Timeline == ours.Timeline {
		lost := max(0, theirs.LSN.Bytes(ours.LSN))
		a.res.LostBytes = &lost
	}
	if former := voters.PeerOf(a.w.Peers(), a.rule.Primary); !a.Reaffirm && a.policy.LacksTooMuch(a.rule, former, voters.PeerOf(a.pledged, a.tally.Winner)) {
		return a.refuse(election.RefusedLag, a.res.Health, fmt.Sprintf("%s has up to %s, the primary had up to %s", r, ours, theirs))
	}
	a.logStep("chosen", "%s at %s", r, ours)
	return nil
}

// waitForFence waits until a former primary that may still accept writes has had the time to
// notice that it lost its majority and to stop. There is no wait where it is seen to be a
// standby. Then the pledged voters are asked again: a majority must still hold its pledge, and
// must not have been restarted since.
func (a *Election) waitForFence(ctx context.Context) error {
	if a.Reaffirm || a.rule.Quorum && !a.tally.Wait {
		return nil
	}
	until := a.lastPledge
	if a.tally.Wait {
		until = a.lastPledge.Add(a.FenceTimeout + election.Margin)
	}
	for !a.formerDemoted() && !a.provenDead() && time.Now().Before(until) {
		if err := wait.Pause(ctx, min(postgres.NudgeInterval, time.Until(until))); err != nil {
			return err
		}
	}
	var ours []int32
	peers := a.w.Refresh(ctx, a.SilenceTimeout/4)
	if election.Paused(peers) && !a.policy.Forced {
		return a.refuse(election.RefusedPaused, a.res.Health, "since the election began")
	}
	if p := voters.PeerOf(peers, a.rule.Primary); p.Answer == election.Answers && p.Running == election.Primary && p.SeenAt.After(a.lastPledge) {
		return a.refuse(election.RefusedHealth, election.HealthAlive, "it answers again, and nobody has stopped it")
	}
	for _, p := range peers {
		if p.Answer == election.Answers && p.Term == a.res.Term && p.Candidate == a.Candidate && p.Started.Equal(voters.PeerOf(a.pledged, p.ID).Started) {
			ours = append(ours, p.ID)
		}
	}
	if !a.rule.Majority(ours) {
		return a.refuse(election.RefusedElection, a.res.Health, "the pledges did not last")
	}
	a.logStep("waited", "%s since the last pledge; a majority still stands by it", time.Since(a.lastPledge).Round(time.Millisecond))
	return nil
}

// provenDead reports whether there is proof by now that the former primary is dead, and no
// other node can be a primary.
func (a *Election) provenDead() bool {
	h := a.policy.Diagnose(time.Now(), a.rule, a.w.Peers())
	if !h.Proven() || a.policy.Count(a.rule, a.res.Term, h, a.pledged).Wait {
		return false
	}
	a.res.Health = h
	return true
}

// formerDemoted reports whether the former primary was seen as a standby after the last pledge.
func (a *Election) formerDemoted() bool {
	p := voters.PeerOf(a.w.Peers(), a.rule.Primary)
	return p.Answer == election.Answers && p.Running == election.Standby && p.SeenAt.After(a.lastPledge)
}

// refuse is the error that ends an election which must not go on.
func (a *Election) refuse(r election.Refusal, h election.Health, detail string) error {
	return &Refused{r, h, detail}
}

// Presumed is a rule derived from the rows of the nodes and from what runs, for a cluster that
// has no rule yet.
func Presumed(recs []registry.Record, peers []election.Peer) election.Rule {
	of, _ := registry.Primary(recs)
	return election.PresumedRule(int32(of.ID), peers)
}
