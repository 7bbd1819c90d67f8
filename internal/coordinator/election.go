package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Options are what an election needs of its configuration, and the effects that are not
// its own.
type Options struct {
	Self      registry.NodeID // the node whose daemon, or operator, holds the election; 0: none
	Candidate string          // whom the pledges are made out to: see [voters.Candidate]
	KnownTerm int64           // the highest term of a vote when it was decided to begin
	Presume   bool            // an operator asks: where there is no rule, the rows of the nodes are one
	Reaffirm  bool            // the local node is the living primary, and the only one that may win
	Consensus bool            // no daemon may see the primary: primary_visibility_consensus

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
	// MakeSlot makes the slot of a standby on its upstream, and returns its name; empty: it
	// is to stream without one.
	MakeSlot func(ctx context.Context, up *registry.Server, standby registry.Record) string
	// Promote makes the winner a primary.
	Promote func(ctx context.Context, n *registry.Server, winner registry.Record) error
	// StandbySettings are those with which a standby of that name follows the primary.
	StandbySettings func(primary registry.Record, name, slot string) (map[string]string, error)
}

// Arbiter is a voter that is no PostgreSQL server.
type Arbiter interface {
	// Pledge stores the vote, if its term is higher than what it holds. It returns what it
	// holds then, also with an error.
	Pledge(ctx context.Context, b ballot.Ballot) (ballot.Ballot, election.Rule, error)
	// Record stores a rule with the nodes that are registered.
	Record(ctx context.Context, r election.Rule, nodes []registry.Record) error
}

// Result is what an election did.
type Result struct {
	Term      int64
	Health    election.Health // the verdict on the former primary
	Former    *registry.Record
	Winner    *registry.Record
	Rule      election.Rule
	StartedAt time.Time
	Outage    time.Duration // from the last sign of life of the former primary until the new one's first commit
	LostBytes *int64        // WAL that the former primary is known to have had beyond the winner; nil: not known
	Steps     []registry.FailoverStep
	Following []registry.Record // standbys that stream from the winner already
	DryRun    bool
}

// Refused is an election that came to nothing, and changed nothing but votes.
type Refused struct {
	Refusal election.Refusal
	Health  election.Health
	Detail  string
}

func (r *Refused) Error() string { return string(r.Refusal) }

// Election is one election, from its survey to its winner's first commit.
type Election struct {
	Options
	w      *voters.Watch
	policy election.Policy

	res        Result
	start      time.Time
	rule       election.Rule // the newest before
	pledged    []election.Peer
	lastPledge time.Time // when the last pledge was stored
	tally      election.Tally
	conn       *registry.Server           // to the winner, for the first commit
	probe      *syncrep.CommitProbe       // nil: none is open
	openValue  string                     // of synchronous_standby_names when the term is open: it is known as ours; empty: not yet
	slots      map[registry.NodeID]string // that the winner has for its followers

	background sync.WaitGroup
	pointed    map[int32]chan error // capacity 1: what came of pointing that standby to the winner

	mu      sync.Mutex // over these, and over the rule of the tally from the promotion on
	hasRow  bool       // the rule is written
	holders []int32    // data nodes that show it, or know of it
}

// New prepares an election among the voters that are watched. [Election.Run] holds it.
func New(o Options, w *voters.Watch, p election.Policy) *Election {
	now := time.Now()
	return &Election{Options: o, w: w, policy: p, start: now, res: Result{StartedAt: now, Steps: []registry.FailoverStep{}, Following: []registry.Record{}}}
}

// logStep notes a step. A test may want the process to die in this very moment.
func (a *Election) logStep(step, evidence string, args ...any) {
	evidence = fmt.Sprintf(evidence, args...)
	a.res.Steps = append(a.res.Steps, registry.FailoverStep{Step: step, After: time.Since(a.start), Evidence: evidence})
	a.Log.Info("failover", "step", step, "term", a.res.Term, "elapsed", time.Since(a.start).Round(time.Microsecond), "evidence", evidence)
	if os.Getenv("REPMGR_TEST_DIE_AT") == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// Run is the election. The order of its steps is what makes it safe: see docs/failover.md.
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

// survey looks at everybody anew. A stream that is still open may only not have
// noticed the primary's end yet.
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
			a.policy.Adopts = int32(a.Self) // nobody voted for it: there must be grounds for a failover
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

// recruit asks every voter that answers for its pledge, all at once. A primary that
// stands itself goes on writing: what it has is read when no pledged one receives
// from it any more, or those would have more than it had.
func (a *Election) recruit(ctx context.Context) error {
	peers := a.w.Peers()
	for _, p := range peers {
		a.res.Term = max(a.res.Term, p.Term, p.Rule.Term, p.Announced.Term)
	}
	a.res.Term++
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

// pledge takes one voter's promise. A standby stops: nothing of the old term
// reaches it any more. What it has is read from its disk; it need not have
// replayed it, and nothing is resumed.
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
		if view, err = a.w.Look(ctx, n, a.w.Record(p.ID)); err == nil && view.Unsure && as == ballot.Standby {
			view, err = awaitWALEnd(ctx, n, a.w, a.w.Record(p.ID), view)
		}
		view.Hung = hung
		return err
	})
	return withIdentity(p, view), err
}

// lookAgain is the view of a voter that is pledged, as it is now.
func (a *Election) lookAgain(ctx context.Context, p election.Peer) (view election.Peer, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.SilenceTimeout)
	defer cancel()
	err = a.w.Voter(p.ID).Run(ctx, func(n *registry.Server) (err error) {
		rec := a.w.Record(p.ID)
		if view, err = a.w.Look(ctx, n, rec); err == nil && view.Unsure {
			view, err = awaitWALEnd(ctx, n, a.w, rec, view)
		}
		return err
	})
	return withIdentity(p, view), err
}

// withIdentity is what a look says of a voter, with what the look does not know.
func withIdentity(p, view election.Peer) election.Peer {
	view.ID, view.Role, view.Priority, view.Location, view.Answer, view.SeenAt = p.ID, p.Role, p.Priority, p.Location, election.Answers, time.Now()
	return view
}

// endReceiver waits until a detached standby has no WAL receiver. The startup
// process ends it, and where that is busy with its replay, a short timeout does. It
// is hung where the postmaster has not told our session of the new settings until then:
// it would not promote the server either.
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
			return false, ballot.HurryReceiver(ctx, n.Conn)
		}
		return gone && (loaded || time.Since(begun) > limit), nil
	})
	if hurried {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgres.DefaultConnectTimeout)
		defer cancel()
		err = errors.Join(err, ballot.Settle(ctx, n.Conn))
	}
	return hung, err
}

// awaitWALEnd waits a little until it can be told where a standby's WAL ends: until
// its server, which was just started, has read all that it has, or has written
// down on which timeline it is. One that stays unsure has a vote, and cannot win.
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
		return !view.Unsure || view.Halt != "", err
	})
	if limited.Err() != nil && ctx.Err() == nil && !n.Conn.IsClosed() {
		err = nil
	}
	return view, err
}

// count finds the winner.
func (a *Election) count(context.Context) error {
	self := int32(a.Self)
	if a.Reaffirm && voters.PeerOf(a.pledged, self).Term != a.res.Term { // then nothing says that another one has more
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

// waitForFence lets a former primary that may still accept writes find out that
// it has lost its majority. It need not wait for one that is seen to be a
// standby. Then it asks the pledged again: a majority must still stand by its
// pledge, and must not have been restarted since.
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

// provenDead reports whether the proof that the former primary is dead came late, and
// nobody else may be one.
func (a *Election) provenDead() bool {
	h := a.policy.Diagnose(time.Now(), a.rule, a.w.Peers())
	if !h.Proven() || a.policy.Count(a.rule, a.res.Term, h, a.pledged).Wait {
		return false
	}
	a.res.Health = h
	return true
}

// formerDemoted reports whether the former primary was seen as a standby since it
// could have gone on.
func (a *Election) formerDemoted() bool {
	p := voters.PeerOf(a.w.Peers(), a.rule.Primary)
	return p.Answer == election.Answers && p.Running == election.Standby && p.SeenAt.After(a.lastPledge)
}

// refuse is the end of an election that may not go on.
func (a *Election) refuse(r election.Refusal, h election.Health, detail string) error {
	return &Refused{r, h, detail}
}

// Presumed is what the rows of the nodes, and what runs, say in the place of a rule.
func Presumed(recs []registry.Record, peers []election.Peer) election.Rule {
	of, _ := registry.Primary(recs)
	return election.PresumedRule(int32(of.ID), peers)
}
