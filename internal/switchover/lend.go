package switchover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	ask   *Ask
	nodes []registry.Record
	all   []*remote.Daemon
}

// readyWithin is how long daemons that were just started may take until they can hand over.
const readyWithin = time.Minute

// StepDaemons is the step of a plan in which daemons are started.
const StepDaemons = "daemons"

// MissingDaemons are the nodes with data that answer and have no daemon, where the primary is one
// of them. With a daemon on the primary none is missing: that one hands over.
func (a *Ask) MissingDaemons(ctx context.Context) *Lent {
	l := &Lent{ask: a}
	for _, p := range a.Watch.Refresh(ctx, a.Watch.Settings().SilenceTimeout) {
		if p.Answer != election.Answers || p.Role == election.Witness || p.ID == election.Arbiter || p.Monitored || p.Foreign {
			continue
		}
		if p.Running == election.Primary {
			a.From = a.Watch.Record(p.ID)
		}
		l.nodes = append(l.nodes, a.Watch.Record(p.ID))
	}
	if a.From.ID == 0 {
		l.nodes = nil
	}
	return l
}

// None reports whether no daemon is missing.
func (l *Lent) None() bool { return len(l.nodes) == 0 }

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
	errs := make([]error, len(l.nodes))
	var wg sync.WaitGroup
	for i, r := range l.nodes {
		wg.Go(func() { errs[i] = login.Check(ctx, r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Lend runs the switchover, which returns the new primary, while the daemons run. With dryRun it
// only tries whether they could be started.
func (l *Lent) Lend(ctx context.Context, login remote.Login, log *slog.Logger, dryRun bool, switchOver func() (registry.NodeID, error)) error {
	switch {
	case dryRun:
		return l.Check(ctx, login)
	case !l.ask.At.IsZero():
		return failure.WithHint(failure.Of(failure.ErrRefused, "no switchover at a later time: no daemon runs on %s", l.ask.From), "Start repmgrd with failover=automatic on every node, or leave out --at.")
	}
	defer func() {
		if err := l.stop(); err != nil {
			log.Warn("a daemon that was started for the switchover may still run", "err", err)
		}
	}()
	for _, s := range l.Plan(login).Steps {
		log.Info("starting repmgrd for the switchover", "node", s.Node)
	}
	if err := l.start(ctx, login); err != nil {
		return err
	}
	primary, err := switchOver()
	if err != nil {
		return err
	}
	if err := l.follow(ctx, primary); err != nil {
		log.Warn("the switchover is done, but not all standbys follow yet", "err", err, "hint", "On those that cluster show names: repmgr standby follow")
	}
	return nil
}

// start starts the daemons, and waits until the switchover can begin, or for so long that it should be able to.
func (l *Lent) start(ctx context.Context, login remote.Login) error {
	if err := l.Check(ctx, login); err != nil {
		return err
	}
	for _, r := range l.nodes {
		d, err := login.Start(r)
		if err != nil {
			return err
		}
		l.all = append(l.all, d)
	}
	for until := time.Now().Add(readyWithin); time.Now().Before(until); {
		for _, d := range l.all {
			if err := d.Failed(); err != nil {
				return err
			}
		}
		if err := l.ask.Look(ctx); err == nil && len(l.ask.Plan.Standing(l.ask.Force)) == 0 {
			return nil
		}
		if err := wait.Pause(ctx, time.Second/2); err != nil {
			return err
		}
	}
	return nil // the switchover says what stands in its way
}

// follow waits until all nodes stream from the new primary, and are registered so.
func (l *Lent) follow(ctx context.Context, primary registry.NodeID) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, failure.Of(failure.ErrNotAttached, "not all standbys follow the new primary within %s", readyWithin))
	defer cancel()
	for {
		peers := l.ask.Watch.Refresh(ctx, l.ask.Watch.Settings().SilenceTimeout)
		var rows []registry.Record
		err := l.ask.Watch.Voter(int32(primary)).Run(ctx, func(n *registry.Server) (err error) {
			rows, err = n.Records(ctx)
			return err
		})
		done := err == nil
		for _, r := range l.nodes {
			p := voters.PeerOf(peers, int32(r.ID))
			row, _ := registry.ByID(rows, r.ID)
			done = done && (r.ID == primary || p.Receiving && p.Receives == int32(primary) && row.Role == registry.RoleStandby && row.UpstreamID == primary && row.Active)
		}
		if done {
			return nil
		}
		if err := wait.Pause(ctx, time.Second/2); err != nil {
			return err
		}
	}
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
