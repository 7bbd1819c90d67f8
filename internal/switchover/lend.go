package switchover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/remote"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
)

// Lent are the daemons that run for the time of a switchover, on the nodes that have none.
type Lent struct {
	ask     *Ask
	nodes   []registry.Record
	refused error // why none may be started; nil: nothing speaks against it
	all     []*remote.Daemon
}

const (
	readyWithin  = time.Minute     // the time that daemons which were just started may take until they can hand over
	triedAfter   = 5 * time.Second // the time after which all of them have tried to log in to each other for replication
	settleWithin = 3 * time.Minute // the time that the nodes may take, after the switchover, until all of them do what they should
)

// StepDaemons is the step of a plan in which daemons are started.
const StepDaemons = "daemons"

// MissingDaemons are the primary, where it has no daemon, and the standbys without one that stream
// from it. With a daemon on the primary none is missing: that one hands over.
func (a *Ask) MissingDaemons(ctx context.Context) *Lent {
	l := &Lent{ask: a}
	peers := a.Watch.Refresh(ctx, a.Watch.Settings().SilenceTimeout)
	var primaries []election.Peer
	monitored := false
	for _, p := range peers {
		if p.Answer == election.Answers && p.Running == election.Primary && p.Role != election.Witness && p.ID != election.Arbiter {
			primaries = append(primaries, p)
			monitored = monitored || p.Monitored
		}
	}
	if len(primaries) == 0 || monitored {
		return l
	}
	primary := primaries[0]
	a.From = a.Watch.Record(primary.ID)
	target := a.To == 0
	for _, p := range peers {
		switch {
		case p.Answer != election.Answers || p.Role == election.Witness || p.ID == election.Arbiter || p.Monitored:
		case p.ID == primary.ID, p.Receiving && p.Receives == primary.ID:
			l.nodes = append(l.nodes, a.Watch.Record(p.ID))
			target = target || p.ID == a.To && p.ID != primary.ID
		}
	}
	refuse := func(hint, format string, args ...any) {
		l.refused = failure.WithHint(failure.Of(failure.ErrRefused, "no switchover, and no repmgrd is started for it: "+format, args...), "%s", hint)
	}
	switch {
	case len(primaries) > 1:
		refuse("Decide which of them counts, and stop the other one. See repmgr cluster show.", "%s and %s both run as a primary", a.From, a.Watch.Record(primaries[1].ID))
	case a.From.Role != registry.RolePrimary:
		refuse("See repmgr cluster show.", "%s runs as a primary, and is registered as a %s", a.From, a.From.Role)
	case election.Foreign(peers):
		refuse("Stop the repmgrd of repmgr 5 on all nodes; then: repmgr adopt", "a repmgrd of repmgr 5 runs")
	case election.Paused(peers):
		refuse("Run repmgr service unpause.", "failover is paused")
	case !target:
		refuse("Run on it first: repmgr standby follow. Or name another node with --to.", "%s is no standby without a repmgrd that streams from %s", a.Watch.Record(a.To), a.From)
	}
	return l
}

// None reports whether no daemon is missing.
func (l *Lent) None() bool { return len(l.nodes) == 0 && l.refused == nil }

// Plan is what is done where daemons are missing. The checks of the switchover follow when they run.
func (l *Lent) Plan(login remote.Login) plan.Plan {
	p := plan.Plan{Command: "standby switchover", Steps: []plan.Step{}, Obstacles: []plan.Obstacle{}, Warnings: []plan.Obstacle{}}
	for _, r := range l.nodes {
		how := "over ssh"
		if r.ID == login.Self {
			how = "here"
		}
		p.Steps = append(p.Steps, plan.Step{
			Name: StepDaemons, Node: r.Name, Effect: fmt.Sprintf("repmgrd is started %s, with %s, until the switchover is done", how, r.ConfigFile),
			Check: "it says that it can carry out the switchover, whose checks are made then", Undo: "it is stopped",
		})
	}
	return p
}

// Check tries whether a daemon could be started on each node.
func (l *Lent) Check(ctx context.Context, login remote.Login) error {
	if l.refused != nil {
		return l.refused
	}
	if !l.ask.At.IsZero() {
		return failure.WithHint(failure.Of(failure.ErrRefused, "no switchover at a later time: no daemon runs on %s", l.ask.From), "Start repmgrd with failover=automatic on every node, or leave out --at.")
	}
	if err := l.ask.onPrimary(ctx, func(n *registry.Server) error { return n.NeedSchema(ctx) }); err != nil {
		return err // the tables of repmgr 5 are adopted only where somebody asks for that
	}
	errs := make([]error, len(l.nodes))
	var wg sync.WaitGroup
	for i, r := range l.nodes {
		wg.Go(func() { errs[i] = login.Check(ctx, r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// lifetime is the longest time for which a daemon runs, whatever becomes of this process.
func (l *Lent) lifetime() time.Duration {
	return readyWithin + BeginWithin + 2*l.ask.Limit + l.ask.Policy.Promotion + 2*settleWithin
}

// Lend runs the switchover while the daemons run. With dryRun it only tries whether they could be
// started. The daemons are not stopped before what they have begun is done, even if ctx ends.
func (l *Lent) Lend(ctx context.Context, login remote.Login, log *slog.Logger, dryRun bool, switchOver func() error) error {
	if err := l.Check(ctx, login); err != nil || dryRun {
		return err
	}
	defer func() {
		if err := l.stop(); err != nil {
			log.Warn("a daemon that was started for the switchover may still run", "err", err)
		}
	}()
	for _, r := range l.nodes {
		log.Info("starting repmgrd for the switchover", "node", r.Name)
	}
	if err := l.start(ctx, login); err != nil {
		return err
	}
	err := switchOver()
	if ctx.Err() != nil {
		log.Warn("interrupted: the daemons that were started end what they have begun, and are stopped then")
	}
	if settled := l.settle(context.WithoutCancel(ctx)); settled != nil {
		log.Warn("not all nodes do what they should yet", "err", settled, "hint", "See repmgr cluster show. Where a standby does not follow: repmgr standby follow, or repmgr node rejoin. Where there is no primary: start repmgrd on every node.")
	}
	if peers := l.ask.Watch.Peers(); ctx.Err() != nil && l.ask.sent.ID != "" && InOffice(peers, voters.NewestRule(peers)) {
		log.Warn(fmt.Sprintf("what was begun is done: %s is the primary", l.ask.Watch.Record(voters.NewestRule(peers).Primary)))
	}
	return err
}

// start starts the daemons, and waits until the switchover can begin, or for so long that it should be able to.
func (l *Lent) start(ctx context.Context, login remote.Login) error {
	for _, r := range l.nodes {
		d, err := login.Start(r, l.lifetime())
		if err != nil {
			return err
		}
		l.all = append(l.all, d)
	}
	to := l.ask.To
	defer func() { l.ask.To = to }() // which node it is, is decided when all of them are there
	var since time.Time
	for until := time.Now().Add(readyWithin); time.Now().Before(until); {
		for _, d := range l.all {
			if err := d.Failed(); err != nil {
				return err
			}
		}
		peers := l.ask.Watch.Refresh(ctx, l.ask.Watch.Settings().SilenceTimeout)
		switch {
		case slices.ContainsFunc(l.nodes, func(r registry.Record) bool { return !voters.PeerOf(peers, int32(r.ID)).Automatic }):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= triedAfter:
			l.ask.To = to
			if err := l.ask.Look(ctx); err == nil && len(l.ask.Plan.Standing(l.ask.Force)) == 0 {
				return nil
			}
		}
		if err := wait.Pause(ctx, time.Second/2); err != nil {
			return err
		}
	}
	return nil // the switchover says what stands in its way
}

// settle waits until there is one primary, in office, no handover is under way, and, where the
// primary is another one now, the others stream from it and are registered so.
func (l *Lent) settle(ctx context.Context) error {
	limit := settleWithin + l.ask.Limit
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.Of(failure.ErrTimeout, "not within %s", limit))
	defer cancel()
	return Until(ctx, l.ask.Watch, l.ask.Watch.Settings().SilenceTimeout, func(peers []election.Peer) bool {
		rule := voters.NewestRule(peers)
		if !rule.Known() {
			return true // nothing was begun
		}
		if !InOffice(peers, rule) || UnderWay(peers, rule, time.Now()) {
			return false
		}
		if rule.Primary == int32(l.ask.From.ID) {
			return true
		}
		var rows []registry.Record
		err := l.ask.Watch.Voter(rule.Primary).Run(ctx, func(n *registry.Server) (err error) {
			rows, err = n.Records(ctx)
			return err
		})
		return err == nil && !slices.ContainsFunc(l.nodes, func(r registry.Record) bool {
			p := voters.PeerOf(peers, int32(r.ID))
			row, _ := registry.ByID(rows, r.ID)
			follows := p.Receiving && p.Receives == rule.Primary && row.Role == registry.RoleStandby && int32(row.UpstreamID) == rule.Primary && row.Active
			return int32(r.ID) != rule.Primary && !follows
		})
	})
}

// stop ends the daemons, and waits for that.
func (l *Lent) stop() error {
	errs := make([]error, len(l.all))
	var wg sync.WaitGroup
	for i, d := range l.all {
		wg.Go(func() { errs[i] = d.Stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
