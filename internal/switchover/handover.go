package switchover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Options are what a handover needs of the daemon of the primary.
type Options struct {
	Request election.Handover
	Self    registry.Record    // the primary
	Server  *postmaster.Server // its server
	Watch   *voters.Watch
	Policy  election.Policy
	Limits  Limits
	Log     *slog.Logger

	// Connect opens a connection to the server.
	Connect func(context.Context) (*registry.Server, error)
	// LogIn logs in to a node for replication, as the server would as a standby of it.
	LogIn func(context.Context, registry.Record) error
	// HoldClients holds queries back while the primary changes, until release is called. nil: nothing does.
	HoldClients func(context.Context) (release func(), err error)
	// Suspend leaves starting and stopping the server to the handover, until resume is called. A
	// lease is not kept meanwhile, so it is called when the server is told to end.
	Suspend func() (resume func())
	// Screen says as what the server, which is down, may be started, and why: as the primary only where nobody
	// else can have been elected.
	Screen func(context.Context) (as registry.Role, why string, err error)
	// Elect holds the election after the server has ended. The policy prefers the target; another
	// node may win. pledged reports whether any voter was asked for its pledge.
	Elect func(context.Context, election.Policy) (winner int32, pledged bool, err error)
}

// Handover is one handover under way.
type Handover struct {
	Options
	Steps []registry.FailoverStep // those that are done

	start, noticed time.Time
	resume         func() // of Suspend
	release        func() // of HoldClients
	target         registry.Record
	rule           election.Rule
}

// New prepares a handover. [Handover.Run] carries it out.
func New(o Options) *Handover {
	return &Handover{Options: o, start: time.Now(), Steps: []registry.FailoverStep{}, release: func() {}}
}

// Trace are the steps of the whole switchover in the order of time, each from when it began: those of this handover, and
// those of the election that it held, which began later.
func (h *Handover) Trace(elected time.Time, steps []registry.FailoverStep) (began time.Time, all []registry.FailoverStep) {
	all = slices.Clone(h.Steps)
	for _, s := range steps {
		s.After += elected.Sub(h.start)
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b registry.FailoverStep) int { return cmp.Compare(a.After, b.After) })
	return h.start, all
}

func (h *Handover) done(step, evidence string, args ...any) {
	task.LogStep(h.Log, "switchover", &h.Steps, h.start, step, fmt.Sprintf(evidence, args...))
}

// Run carries the handover out. Until the server is told to end, an error means that nothing was
// changed. After that, an error before the election means that the server was started again as
// the primary. An error of the election means that the server is started as a standby, and that
// the daemons of all nodes go on with the election.
func (h *Handover) Run(ctx context.Context) error {
	if h.Request.LeftBehind(voters.NewestRule(h.Watch.Peers())) {
		h.forget(ctx)
		return failure.Of(failure.ErrRefused, "the daemon that had begun it ended before it stopped the server; %s goes on as the primary", h.Self)
	}
	if err := h.begin(ctx); errors.Is(err, errTakenBack) {
		return err // what is in its place now is not ours
	} else if err != nil {
		h.forget(ctx)
		return err
	}
	defer func() { h.release() }()
	if err := h.prepare(ctx); err != nil {
		h.forget(ctx)
		return err
	}
	if late := time.Since(h.noticed); late > 2*h.Watch.Settings().SilenceTimeout { // the others wait for a limited time, and telling them may take half of this
		h.forget(ctx)
		return failure.Of(failure.ErrTimeout, "this process stood still for %s after the other nodes were told; %s goes on as the primary", late.Round(time.Millisecond), h.Self)
	}
	h.resume = h.Suspend()
	defer h.resume()
	if err := h.stop(ctx); err != nil {
		return h.goOn(ctx, err)
	}
	if h.Request.Restart && h.restart(ctx) {
		return nil
	}
	pledged, err := h.elect(ctx)
	switch {
	case err == nil:
		h.vote(ctx)
		h.leave(ctx)
		return nil
	case !pledged && !h.Server.Runs():
		return h.goOn(ctx, err)
	}
	return h.giveUp(ctx, err)
}

var errTakenBack = failure.Of(failure.ErrRefused, "it was taken back, or another one took its place, before it began")

// begin marks the request as begun: from then on nobody takes it back. Where it was taken back first, nothing is done.
func (h *Handover) begin(ctx context.Context) error {
	silence := h.Watch.Settings().SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, silence, fmt.Errorf("the request could not be marked as begun within silence_timeout (%s)", silence))
	defer cancel()
	n, err := h.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.ChangeHandover(ctx, func(now election.Handover) (election.Handover, error) {
		if now.ID != h.Request.ID {
			return now, errTakenBack
		}
		h.Request.Begun, now.Begun = true, true
		return now, nil
	})
}

// prepare makes all checks and does everything that can be done while the primary serves.
func (h *Handover) prepare(ctx context.Context) error {
	n, err := h.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	h.Watch.RefreshAll(ctx, h.Watch.Settings().SilenceTimeout/2) // one that was silent may just have been restarted
	if err := h.check(ctx, n); err != nil {
		return err
	}
	if err := h.checkpoint(ctx, n); err != nil {
		return err
	}
	if h.HoldClients != nil {
		said := "clients wait"
		var err error
		if h.release, err = h.HoldClients(ctx); err != nil {
			said = "not all clients wait: " + err.Error()
			h.Log.Warn("switchover: not all clients are held back", "err", err, "hint", failure.Hint(err))
		}
		h.done(StepHeld, "%s", said)
	}
	return h.notice(ctx, n)
}

func (h *Handover) check(ctx context.Context, n *registry.Server) error {
	h.rule = voters.NewestRule(h.Watch.Peers())
	h.target = h.Watch.Record(h.Request.Target)
	facts, err := Look(ctx, n, h.Watch, h.Request.Target)
	if err != nil {
		return err
	}
	facts.InPlace = h.Request.Restart
	limited, cancel := context.WithTimeout(ctx, h.Watch.Settings().SilenceTimeout)
	defer cancel()
	failed := map[int32]string{} // what was announced may be of before a change
	if err := h.LogIn(limited, h.target); err != nil {
		failed[int32(h.target.ID)] = postgres.Cause(err)
	}
	for i := range facts.Peers {
		if facts.Peers[i].ID == int32(h.Self.ID) {
			facts.Peers[i].NoStream = failed
		}
	}
	p := facts.Plan(h.Policy, h.Limits)
	for _, w := range p.Warnings {
		h.Log.Warn("switchover: "+w.String(), "hint", w.Hint)
	}
	if left := p.Standing(h.Request.Force); len(left) > 0 {
		return Refused(map[bool]string{false: "switchover", true: "restart"}[h.Request.Restart], left)
	}
	h.done(StepChecked, "%s can become the primary", h.target)
	return nil
}

// checkpoint makes the checkpoint of the shutdown short, and waits until the target has nearly
// all WAL. What it lacks then is kept. A voter that has pledged itself meanwhile receives nothing more.
func (h *Handover) checkpoint(ctx context.Context, n *registry.Server) error {
	ctx, stop := h.whileTargetAnswers(ctx)
	defer stop()
	h.keepWAL(ctx, n)
	if err := n.Checkpoint(ctx); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	limit := h.Request.Limit
	limited, cancel := context.WithTimeoutCause(ctx, limit, failure.Of(failure.ErrTimeout, "%s did not receive the primary's WAL within %s", h.target, limit))
	defer cancel()
	var lacks int64
	var failed error
	err := Until(limited, h.Watch, h.Watch.Settings().SilenceTimeout/2, func(peers []election.Peer) bool {
		if term := voters.HighestTerm(peers); term > h.rule.Term {
			failed = failure.Of(failure.ErrRefused, "an election of term %d has begun meanwhile: nothing was changed", term)
		} else {
			lacks, failed = lacking(limited, n, voters.PeerOf(peers, int32(h.target.ID)))
		}
		return failed != nil || lacks < closeLag
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	h.keepWAL(ctx, n)
	h.done(StepCheckpointed, "%s lacks %d bytes", h.target, lacks)
	return nil
}

// whileTargetAnswers returns a context that ends when the target has not answered for silence_timeout: a
// checkpoint may take minutes, in which commits that wait for the target would hang. stop must be called.
func (h *Handover) whileTargetAnswers(ctx context.Context) (limited context.Context, stop func()) {
	limited, cancel := context.WithCancelCause(ctx)
	silence := h.Watch.Settings().SilenceTimeout
	var watch sync.WaitGroup
	watch.Go(func() {
		for wait.Pause(limited, silence/4) == nil {
			if p := voters.PeerOf(h.Watch.Peers(), int32(h.target.ID)); p.Answer != election.Answers && time.Since(p.Since) > silence {
				cancel(failure.Of(failure.ErrConnect, "%s is lost: its server %s", h.target, p.Answer))
			}
		}
	})
	return limited, func() { cancel(nil); watch.Wait() }
}

// closeLag is how many bytes of WAL the target may lack when the shutdown begins: it receives
// them in a moment.
const closeLag = 1 << 20

// notice tells the other nodes, and the server itself, that the handover begins. The target must
// be told; others that could not be may begin an election of their own, which does no harm.
func (h *Handover) notice(ctx context.Context, n *registry.Server) error {
	silence := h.Watch.Settings().SilenceTimeout
	h.noticed = time.Now()
	told := h.Request
	told.Hold, told.Until = h.Request.Limit+4*silence, h.noticed.Add(silence+h.Request.Limit)
	limited, cancel := context.WithTimeoutCause(ctx, silence, fmt.Errorf("no answer within silence_timeout (%s)", silence))
	defer cancel()
	if err := n.SetHandover(limited, told); err != nil {
		return err
	}
	missing := h.tellAll(limited, told)
	if err := missing[int32(h.target.ID)]; err != nil {
		return fmt.Errorf("tell %s that the handover begins: %w", h.target, err)
	}
	for id, err := range missing {
		h.Log.Warn("switchover: a node could not be told", "node_id", id, "err", err)
	}
	h.done(StepNoticed, "%d nodes were told", len(h.Watch.Records())-1-len(missing))
	return nil
}

// tellAll writes the notice on all other nodes, and returns what went wrong on those that were not told.
func (h *Handover) tellAll(ctx context.Context, told election.Handover) map[int32]error {
	return h.onOthers(ctx, func(n *registry.Server) error { return n.SetHandover(ctx, told) })
}

// untellAll removes the notice from all other nodes that answer. One of a later handover stays.
func (h *Handover) untellAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.Watch.Settings().SilenceTimeout)
	defer cancel()
	h.onOthers(ctx, func(n *registry.Server) error { return n.DropHandover(ctx, h.Request.ID) }) // what remains is void after a while, and in every other term
}

func (h *Handover) onOthers(ctx context.Context, do func(*registry.Server) error) map[int32]error {
	type result struct {
		id  int32
		err error
	}
	var asked int
	peers, missing := h.Watch.Peers(), map[int32]error{}
	results := make(chan result, len(h.Watch.Records()))
	for _, r := range h.Watch.Records() {
		id := int32(r.ID)
		v, answer := h.Watch.Voter(id), voters.PeerOf(peers, id).Answer
		switch {
		case r.ID == h.Self.ID:
			continue
		case v == nil || answer != election.Answers:
			missing[id] = failure.Of(failure.ErrConnect, "its server %s", cmp.Or(answer, election.Silent))
			continue
		}
		asked++
		go func() { // the loop below waits for it
			results <- result{id, v.RunNow(ctx, do)}
		}()
	}
	for range asked {
		if r := <-results; r.err != nil {
			missing[r.id] = r.err
		}
	}
	return missing
}

// stop shuts the server down in order, and makes sure that the target has everything.
func (h *Handover) stop(ctx context.Context) error {
	srv := *h.Server
	srv.StopTimeout = h.Request.Limit
	if err := srv.Stop(ctx); err != nil {
		return err
	}
	control, err := pgcontrol.Read(srv.Dir)
	if err != nil {
		return fmt.Errorf("look at the server that was shut down: %w", err)
	}
	if control.State != pgcontrol.ShutDown {
		return failure.Of(failure.ErrServerControl, "the server ended, but not in order: pg_control says %q", control.State)
	}
	h.done(StepStopped, "its last checkpoint is at %s", control.Checkpoint)
	return h.received(ctx)
}

// received waits until the WAL of the target ends with the record of the shutdown, and until the
// server is seen to refuse connections: an attempt that met its end in the middle may look like
// silence, which is no ground for an election yet.
func (h *Handover) received(ctx context.Context) error {
	limit := h.Watch.Settings().SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.Of(failure.ErrTimeout, "%s is not seen to have the end of the primary's WAL within %s", h.target, limit))
	defer cancel()
	var p election.Peer
	err := Until(ctx, h.Watch, limit/4, func(peers []election.Peer) bool {
		p = voters.PeerOf(peers, int32(h.target.ID))
		return p.ShutDown && voters.PeerOf(peers, int32(h.Self.ID)).Answer == election.Refused
	})
	if err == nil {
		h.done(StepReceived, "%s has everything, up to %s", h.target, p.Position)
	}
	return err
}

// elect lets a majority elect the target. Where the election would be refused without the pledge of
// this node (its vote, its WAL or its location is needed), its server is started first, as a standby
// without an upstream.
func (h *Handover) elect(ctx context.Context) (pledged bool, err error) {
	target := int32(h.target.ID)
	if h.Policy.HandoverRefused(time.Now(), h.rule, h.Watch.Peers(), target, false).NeedsVoter() {
		if err := h.startAsStandby(ctx); err != nil {
			return false, err
		}
	}
	winner, pledged, err := h.Elect(ctx, h.Policy.Handing(target))
	if err == nil {
		h.done(StepElected, "%s", h.Watch.Record(winner))
	}
	return pledged, err
}

// vote starts the server at once as a standby without an upstream: until it follows the new
// primary, which may be cut off in this moment, its vote can be the one that a majority lacks.
func (h *Handover) vote(ctx context.Context) {
	if h.Server.Runs() {
		return
	}
	if err := h.startAsStandby(context.WithoutCancel(ctx)); err != nil {
		h.Log.Warn("switchover: the former primary has no vote before it follows the new one", "err", err)
	}
}

// startAsStandby starts the server as a standby without an upstream, so that it has a vote.
func (h *Handover) startAsStandby(ctx context.Context) error {
	if h.Server.Runs() {
		return failure.Of(failure.ErrRefused, "the server in %s runs", h.Server.Dir)
	}
	if err := h.Server.Mark(handedOver); err != nil {
		return err
	}
	mark, _ := h.Server.ReadMark()
	if err := h.startServer(ctx); err != nil {
		return err
	}
	_ = h.Server.Unmark(mark) // a mark that stays makes it a standby once more
	limit := h.Watch.Settings().SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.Of(failure.ErrTimeout, "the former primary does not answer as a standby within %s", limit))
	defer cancel()
	return Until(ctx, h.Watch, limit/4, func(peers []election.Peer) bool {
		p := voters.PeerOf(peers, int32(h.Self.ID))
		return p.Answer == election.Answers && p.Running == election.Standby
	})
}

// Until asks all voters again and again, each time for at most limit, until done accepts their
// answers. The error is that of ctx.
func Until(ctx context.Context, w *voters.Watch, limit time.Duration, done func([]election.Peer) bool) error {
	for !done(w.Refresh(ctx, limit)) {
		if err := wait.Pause(ctx, postgres.PollInterval); err != nil {
			return err
		}
	}
	return nil
}

// handedOver is the reason in the mark of a server that handed over.
const handedOver = "a switchover"

// lateEnd is how much later than it should a shutdown of a handover may end.
const lateEnd = time.Minute

// Resume gives up a handover whose daemon died after it had told the server to end: the server is
// marked to be started as a standby without an upstream, so that it can vote, and be elected again.
// One that still shuts down when its time is over is killed. term is that of the newest rule that is
// known; 0: nobody answers, and the state file says it. It reports whether there was such a handover.
func Resume(ctx context.Context, srv *postmaster.Server, term int64) (bool, error) {
	if srv.IsStandby() {
		return false, nil
	}
	if term == 0 {
		kept, _ := statefile.Read(srv.Dir)
		for _, r := range kept.Rules {
			term = max(term, r.Term)
		}
	}
	text, err := postmaster.ReadAutoConf(srv.Dir)
	if err != nil {
		return false, err
	}
	set, err := ballot.FileSettings(text)
	h := registry.ParseHandover(set[registry.HandoverSetting])
	if err != nil || h.Hold == 0 || h.Term != term {
		return false, err
	}
	if srv.Runs() {
		if !srv.ShutsDown() || time.Now().Before(h.Until) {
			return false, nil
		}
		if err := srv.Fence(ctx); err != nil {
			return true, err
		}
	} else if control, err := pgcontrol.Read(srv.Dir); err != nil || control.State != pgcontrol.ShutDown || srv.EndedAt().After(h.Until.Add(lateEnd)) {
		return false, err // it crashed, or the primary had gone on, and was shut down later for another reason
	}
	removeSlot(srv)
	err = srv.Mark(handedOver)
	if err == nil { // the others need not wait for the handover any more
		err = postmaster.SetAutoConf(srv.Dir, nil, []string{registry.HandoverSetting})
	}
	return true, err
}

// goOn starts the server again as the primary. The other nodes leave the election to this daemon,
// and it has asked nobody for a pledge; where a node was elected nevertheless, the server is
// started as a standby. The error says which.
func (h *Handover) goOn(ctx context.Context, why error) error {
	ctx = context.WithoutCancel(ctx)
	if err := h.Server.Fence(ctx); err != nil { // a shutdown that hangs can not be taken back
		return errors.Join(why, err)
	}
	if as, _, err := h.Screen(ctx); err != nil || as != registry.RolePrimary {
		return h.giveUp(ctx, errors.Join(why, err))
	}
	if err := h.startServer(ctx); err != nil {
		return errors.Join(why, fmt.Errorf("start it again as the primary: %w", err))
	}
	h.resume() // its lease counts again
	h.forget(ctx)
	return failure.WithHint(fmt.Errorf("%w; %s goes on as the primary", why, h.Self), "%s", failure.Hint(why))
}

// restart starts the server again as the primary, because it was only to be restarted. Where it does
// not start, false is returned, and the target is elected: it has everything.
func (h *Handover) restart(ctx context.Context) bool {
	ctx = context.WithoutCancel(ctx)
	as, _, err := h.Screen(ctx)
	if err == nil && as == registry.RolePrimary {
		err = h.startServer(ctx)
	}
	if err != nil || as != registry.RolePrimary {
		h.Log.Error("the primary was restarted, and does not start: another node is elected", "err", errors.Join(err, h.Server.Fence(ctx)))
		return false
	}
	h.resume() // its lease counts again
	h.done(StepRestarted, "%s is the primary again", h.Self)
	h.forget(ctx)
	return true
}

// giveUp starts the server as a standby without an upstream. The notices stay, so that the daemons
// of all nodes go on with the election.
func (h *Handover) giveUp(ctx context.Context, why error) error {
	if h.Server.Runs() {
		return why
	}
	return errors.Join(why, h.startAsStandby(context.WithoutCancel(ctx)))
}

// forget removes the request, the notices, and what kept WAL for the target, while the server
// runs as the primary.
func (h *Handover) forget(ctx context.Context) {
	silence := h.Watch.Settings().SilenceTimeout
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), silence)
	defer cancel()
	n, err := h.Connect(ctx)
	if err == nil {
		err = n.DropHandover(ctx, h.Request.ID)
		h.dropSlot(ctx, n)
		n.Close()
	}
	if err != nil {
		h.Log.Warn("switchover: the request could not be removed", "err", err, "hint", "On the primary: ALTER SYSTEM RESET "+registry.HandoverSetting)
	}
	h.untellAll(ctx)
}

// leave removes the request from the data directory of the server, which is down or a standby
// now, and the notices.
func (h *Handover) leave(ctx context.Context) {
	if h.Server.Runs() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.Watch.Settings().SilenceTimeout)
		defer cancel()
		if n, err := h.Connect(ctx); err == nil { // where it does not answer yet, the request is void in the new term
			_ = n.DropHandover(ctx, h.Request.ID)
			n.Close()
		}
	} else {
		_ = postmaster.SetAutoConf(h.Server.Dir, nil, []string{registry.HandoverSetting}) // the same
	}
	h.untellAll(ctx)
}

// Choose is the standby that an election would promote now. 0: none may be promoted.
func Choose(p election.Policy, r election.Rule, peers []election.Peer) int32 {
	able := election.AbleToPledge(p.Electors(r, peers))
	return p.Best(r, slices.DeleteFunc(able, func(o election.Peer) bool { return o.ID == r.Primary }))
}

// Refused is the error of a command, such as "switchover", that can not begin: it names every obstacle at once.
func Refused(what string, left []plan.Obstacle) error {
	var texts, hints []string
	for i, o := range left {
		number, hint := "", o.Hint
		if o.Force {
			hint += " Or use --force."
		}
		if len(left) > 1 {
			number = fmt.Sprintf("%d. ", i+1)
		}
		texts, hints = append(texts, number+o.String()), append(hints, number+hint)
	}
	text := texts[0]
	if len(left) > 1 {
		text = fmt.Sprintf("%d things stand in its way:\n  %s", len(left), strings.Join(texts, "\n  "))
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "no %s: %s", what, text), "%s", strings.Join(hints, "\n"))
}
