package chaos

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/restart"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/wait"
)

// inRestart are the faults that meet a rolling restart in its middle.
var inRestart = []string{"kill postmaster", "power off standby", "kill standby", "kill all daemons", "stop daemon of standby", "cut primary off", "cut standby off"}

// restarts: an operator restarts all servers, alone or while something else goes wrong.
func restarts(others []Nemesis) []Nemesis {
	all := []Nemesis{
		{Name: "rolling restart", Expect: None, Weight: 5, Patient: true, Do: func(ctx context.Context, s *scene) error {
			return s.restartAll(ctx, "--primary", "in-place")()
		}},
		{Name: "rolling restart, the primary by a switchover", Expect: Failover, Weight: 5, Needs: needsFailover | needsTwo, Do: func(ctx context.Context, s *scene) error {
			return s.restartAll(ctx, "--primary", "switchover")()
		}},
	}
	dies := func(who, step string, expect Expect) Nemesis {
		return Nemesis{Name: "rolling restart, " + who + " dies when " + step, Expect: expect, Weight: 2, Patient: true, Needs: needsDieAt | needsFailover, Do: func(ctx context.Context, s *scene) error {
			n := s.primary()
			if who == "standby" {
				n = s.hit(s.standby())
			}
			if err := s.awaitMayDie(ctx, n, step); err != nil {
				return err
			}
			_ = s.restartAll(ctx, "--primary", "in-place")() // it may fail, in order
			return nil
		}, Undo: func(_ context.Context, s *scene) error { // where it did not die, it must not do so later
			for _, n := range s.c.nodes {
				n.signalDaemon(syscall.SIGKILL)
			}
			return nil
		}}
	}
	for _, step := range []string{restart.StepCheckpoint, restart.StepStopped, restart.StepStarted} {
		all = append(all, dies("standby", step, None))
	}
	for _, step := range []string{switchover.StepNoticed, switchover.StepStopped, switchover.StepReceived, switchover.StepRestarted} {
		all = append(all, dies("primary", step, Either))
	}
	for _, name := range inRestart {
		for _, other := range others {
			if other.Name != name {
				continue
			}
			n := other
			n.Name, n.Expect, n.Weight, n.Pairs, n.Helped, n.Needs = "rolling restart, in it: "+name, Either, 2, false, true, other.Needs|needsFailover
			n.Do = func(ctx context.Context, s *scene) error {
				outcome := s.restartAll(ctx)
				s.cleanup = append(s.cleanup, func() { _ = outcome() }) // it may fail
				_ = wait.Pause(ctx, time.Duration(s.rng.IntN(4000))*time.Millisecond)
				s.second = true // the restart may have ended what is to be hit
				return other.Do(ctx, s)
			}
			all = append(all, n)
		}
	}
	return all
}

// restartAll runs the command on any node. The function that it returns waits for the outcome.
func (s *scene) restartAll(ctx context.Context, options ...string) (outcome func() error) {
	s.hit(s.primary())
	on := s.c.nodes[s.rng.IntN(len(s.c.nodes))]
	ended := make(chan error, 1)
	go func() { // outcome waits for it
		ctx, cancel := context.WithTimeout(ctx, 2*patience)
		defer cancel()
		err := on.repmgr(ctx, append([]string{"cluster", "restart", "--timeout", "5"}, options...)...)
		if err != nil {
			err = fmt.Errorf("rolling restart, asked for on %s: %w", on.name(), err)
		}
		ended <- err
	}()
	return func() error { return <-ended }
}
