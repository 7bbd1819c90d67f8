package chaos

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/wait"
)

// handoverSteps are where the daemon of the primary can be made to kill itself in a switchover.
var handoverSteps = []string{
	switchover.StepChecked, switchover.StepCheckpointed, switchover.StepNoticed, switchover.StepStopped, switchover.StepReceived, switchover.StepElected,
}

// inSwitchover are the faults that meet a switchover in its middle.
var inSwitchover = []string{
	"kill postmaster", "power off primary", "power off standby", "kill standby", "kill daemon of primary", "stop daemon of primary", "stop daemon of standby",
	"stop machine 8-10 s", "stop walsenders", "cut primary off", "cut standby off", "kill all daemons",
}

// switchovers: an operator hands the primary over, alone or while something else goes wrong.
func switchovers(others []Nemesis) []Nemesis {
	all := []Nemesis{
		{Name: "switchover", Expect: Failover, Weight: 20, Needs: needsFailover, Do: func(ctx context.Context, s *scene) error {
			return s.switchOver(ctx)
		}},
		{Name: "switchover, asked for twice", Expect: Failover, Needs: needsFailover | needsTwo, Weight: 5, Do: func(ctx context.Context, s *scene) error {
			one := s.askSwitchover(ctx, s.standby())
			s.picked = nil
			other := s.askSwitchover(ctx, s.standby())
			if a, b := one(), other(); a != nil && b != nil {
				return errors.Join(a, b)
			}
			return nil
		}},
		{Name: "drain of primary, then its shutdown", Expect: Failover, Needs: needsFailover, Hold: span(time.Second, 3*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.primary())
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			return errors.Join(n.repmgr(ctx, "node", "drain"), n.stopServer(ctx))
		}, Undo: func(ctx context.Context, s *scene) error { return s.primary().launchServer(ctx) }},
	}
	for _, step := range handoverSteps {
		all = append(all, Nemesis{Name: "switchover, die when " + step, Expect: Either, Weight: 4, Needs: needsDieAt | needsFailover, Do: func(ctx context.Context, s *scene) error {
			if err := s.awaitMayDie(ctx, s.primary(), step); err != nil {
				return err
			}
			_ = s.switchOver(ctx) // it may fail, in order
			return nil
		}, Undo: func(_ context.Context, s *scene) error { // where it did not die, it must not do so later
			s.primary().signalDaemon(syscall.SIGKILL)
			return nil
		}})
	}
	for _, name := range inSwitchover {
		for _, other := range others {
			if other.Name != name {
				continue
			}
			n := other
			n.Name, n.Expect, n.Weight, n.Pairs, n.Helped, n.Needs = "switchover, in it: "+name, Either, 4, false, true, other.Needs|needsFailover
			n.Do = func(ctx context.Context, s *scene) error {
				outcome := s.askSwitchover(ctx, s.standby())
				s.cleanup = append(s.cleanup, func() { _ = outcome() }) // it may fail
				s.picked = s.standby()                                  // the target of both
				_ = wait.Pause(ctx, time.Duration(s.rng.IntN(900))*time.Millisecond)
				s.second = true // the switchover may have ended what is to be hit
				return other.Do(ctx, s)
			}
			all = append(all, n)
		}
	}
	return all
}

// awaitMayDie starts the daemon of a node anew so that it kills itself at that step, and waits until all is well. The
// fault begins after that.
func (s *scene) awaitMayDie(ctx context.Context, n *node, step string) error {
	err := n.mayDie(ctx, step)
	if err == nil {
		err = waitFor(ctx, 20*time.Second, "the daemon to be back", func(ctx context.Context) error {
			if _, err := s.c.healthy(ctx); err != nil {
				return err
			}
			return s.c.guarded(ctx, s.primary())
		})
	}
	if err == nil {
		s.now()
	}
	return err
}

// patience is how long an operator waits for the outcome of a switchover.
const patience = 20 * time.Second

// switchOver hands the primary over, and waits for the outcome.
func (s *scene) switchOver(ctx context.Context) error { return s.askSwitchover(ctx, s.standby())() }

// askSwitchover runs the command on any node. The function that it returns waits for the outcome.
func (s *scene) askSwitchover(ctx context.Context, to *node) (outcome func() error) {
	s.hit(s.primary())
	s.target += " to " + to.name()
	on := s.c.nodes[s.rng.IntN(len(s.c.nodes))]
	ended := make(chan error, 1)
	go func() { // outcome waits for it
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err := on.repmgr(ctx, "standby", "switchover", "--to", strconv.Itoa(to.id), "--timeout", "5")
		if err != nil {
			err = fmt.Errorf("switchover to %s, asked for on %s: %w", to.name(), on.name(), err)
		}
		ended <- err
	}()
	return func() error { return <-ended }
}
