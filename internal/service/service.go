package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// Action is what can be done with the server.
type Action string

const (
	Start   Action = "start"
	Stop    Action = "stop"
	Restart Action = "restart"
	Reload  Action = "reload"
	Promote Action = "promote"
)

// Actions are all actions, in the order in which they are listed.
var Actions = []Action{Start, Stop, Restart, Reload, Promote}

// Commands are the commands for the server of this machine.
type Commands struct {
	Server                   *postmaster.Server
	Restart, Reload, Promote string // of the configuration; empty: pg_ctl does it

	Log *slog.Logger

	Connect func(context.Context) (*registry.Server, error)
	Screen  func(ctx context.Context, dryRun bool) error // makes the server a standby where it may not start as a primary
	Alone   func(context.Context) error                  // refuses a restart of this server alone
}

// Options are the choices of [Commands.Run].
type Options struct {
	Checkpoint bool // before the server is stopped or restarted, write a checkpoint, which makes that shorter
	Force      bool // restart also where a standby would stop its replay
	DryRun     bool // check and say what would be run, run nothing
}

// Result says what [Commands.Run] has run.
type Result struct {
	Action     Action `json:"action"`
	Command    string `json:"command"`
	Checkpoint bool   `json:"checkpoint,omitempty"` // one was written
	DryRun     bool   `json:"dry_run,omitempty"`
}

// Command is the command line for an action.
func (c Commands) Command(a Action) string {
	s := c.Server
	configured := map[Action]string{Start: s.StartCommand, Stop: s.StopCommand, Restart: c.Restart, Reload: c.Reload, Promote: c.Promote}
	if command := configured[a]; command != "" {
		return command
	}
	pgCtl, err := s.Program("pg_ctl")
	if err != nil {
		pgCtl = "pg_ctl"
	}
	words := []string{shell.Quote(pgCtl)}
	if s.PgCtlOptions != "" && (a == Start || a == Restart) {
		words = append(words, s.PgCtlOptions)
	}
	words = append(words, "-w", "-D", shell.Quote(cmp.Or(s.ConfigDirectory, s.Dir)))
	switch a {
	case Start, Restart:
		words = append(words, "-l", shell.Quote(filepath.Join(s.Dir, postmaster.StartLogName)))
	case Stop:
		words = append(words, "-m", "fast")
	case Reload, Promote:
	}
	if limit := c.limit(a); limit > 0 {
		words = append(words, "-t", fmt.Sprint(max(1, int(limit.Seconds()))))
	}
	return strings.Join(append(words, string(a)), " ")
}

// limit is how long an action may take.
func (c Commands) limit(a Action) time.Duration {
	switch a {
	case Stop:
		return c.Server.StopTimeout
	case Restart:
		return c.Server.StopTimeout + c.Server.StartTimeout
	default:
		return c.Server.StartTimeout
	}
}

// grace is how much longer the command may take than what it waits for itself.
const grace = 5 * time.Second

// Run runs the command of an action, after what must be done before.
func (c Commands) Run(ctx context.Context, a Action, o Options) (Result, error) {
	res := Result{Action: a, Command: c.Command(a), DryRun: o.DryRun}
	switch {
	case a == Promote:
		return res, failure.WithHint(failure.Of(failure.ErrRefused, "a promotion needs checks that this command does not make"), "Run repmgr standby promote, or repmgr standby switchover.")
	case a == Start && c.Server.StartCommand == "" && c.Server.Runs(): // pg_ctl would say that another one might run
		return res, failure.WithHint(failure.Of(failure.ErrRefused, "the server in %s runs already", c.Server.Dir), "To start it anew: repmgr node service --action=restart. How it is: repmgr node status.")
	case (a == Start || a == Restart) && !c.Server.Runs(): // pg_ctl restart starts a server that is down
		if err := c.Screen(ctx, o.DryRun); err != nil {
			return res, err
		}
	case a == Restart && !o.Force:
		if err := c.Alone(ctx); err != nil {
			return res, err
		}
	}
	if res.Checkpoint = o.Checkpoint && (a == Stop || a == Restart); o.DryRun {
		return res, nil
	}
	if res.Checkpoint {
		if err := c.checkpoint(ctx); err != nil {
			return res, err
		}
	}
	c.Log.Info(fmt.Sprintf("executing server command %q", res.Command))
	limit := c.limit(a) + grace
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "the command to %s the server did not end within %s", a, limit), "Look at the log of the server."))
	defer cancel()
	out, err := run(ctx, res.Command)
	if err != nil {
		return res, failure.WithHint(failure.Of(failure.ErrServerControl, "%s the server: %w%s", a, err, shell.AfterColon(shell.LastLines(out, 5))), "Look at the log of the server. The command was: %s", res.Command)
	}
	return res, nil
}

func (c Commands) checkpoint(ctx context.Context) error {
	n, err := c.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Checkpoint(ctx)
}

func run(ctx context.Context, command string) ([]byte, error) {
	out, err := shell.Run(ctx, command, nil)
	if errors.Is(err, exec.ErrWaitDelay) { // what it has started may keep the pipe to this process open
		err = nil
	}
	return out, err
}

// Waiting says how the effect of a command is waited for.
type Waiting struct {
	Key   string        // of the command in the configuration
	Late  string        // the text of the error where there is no effect, such as "repmgrd did not start"
	Limit time.Duration // of the command itself
	Wait  time.Duration // until done reports true; below 0: that is not waited for
}

// RunUntil runs a command of the configuration and waits until done reports that it had its effect.
func RunUntil(ctx context.Context, command string, w Waiting, done func(context.Context) (bool, error)) error {
	tooLate := func(d time.Duration) error {
		return failure.WithHint(failure.Of(failure.ErrTimeout, "%s within %s", w.Late, d), "See the log of repmgrd.")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.Limit, tooLate(w.Limit))
	defer cancel()
	deadline := time.Now().Add(w.Wait)
	if out, err := run(ctx, command); err != nil {
		return fmt.Errorf("run %s: %w: %s", w.Key, err, shell.LastLines(out, 5))
	}
	for w.Wait > 0 {
		ok, err := done(ctx)
		switch {
		case err != nil || ok:
			return err
		case time.Now().After(deadline):
			return tooLate(w.Wait)
		}
		if err := wait.Pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
