package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/pgrepmgr/repmgr/internal/pidfile"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// DefaultDaemonWait is how long starting and stopping the daemon wait for it.
const DefaultDaemonWait = 15 * time.Second

// DaemonOptions are the choices of [Cluster.StartDaemon] and [Cluster.StopDaemon].
type DaemonOptions struct {
	Wait   time.Duration // until it runs, or is gone. Defaults to 15 s; below 0 not at all.
	DryRun bool          // check everything, run nothing
}

// DaemonResult says what was run, and for which process.
type DaemonResult struct {
	Command string `json:"command"`
	PID     int    `json:"pid"` // 0: not known
	DryRun  bool   `json:"dry_run,omitempty"`
}

// StartDaemon runs repmgrd_service_start_command, and waits until the local
// node's Monitor announces itself. An [ErrRefused] means that one runs already.
func (c *Cluster) StartDaemon(ctx context.Context, o DaemonOptions) (DaemonResult, error) {
	res := DaemonResult{Command: c.cfg.RepmgrdServiceStartCommand, DryRun: o.DryRun}
	if err := c.requireCommand("repmgrd_service_start_command", res.Command); err != nil {
		return res, err
	}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	all, err := registry.ReadPresences(ctx, local)
	if err != nil {
		return res, err
	}
	if p, ok := all[c.cfg.NodeID]; ok {
		return res, kind(ErrRefused, "repmgrd is running already on %s, with PID %d", c.self(), p.PID)
	}
	if o.DryRun {
		return res, nil
	}
	err = c.control(ctx, o, "repmgrd_service_start_command", res.Command, "repmgrd did not start", func(ctx context.Context) (bool, error) {
		all, err := registry.ReadPresences(ctx, local)
		res.PID = all[c.cfg.NodeID].PID
		return res.PID > 0, err
	})
	return res, err
}

// StopDaemon runs repmgrd_service_stop_command, and waits until the local node's
// Monitor is gone. An [ErrRefused] means that none runs. Where the server does
// not answer, the process is taken from repmgrd_pid_file.
func (c *Cluster) StopDaemon(ctx context.Context, o DaemonOptions) (DaemonResult, error) {
	res := DaemonResult{Command: c.cfg.RepmgrdServiceStopCommand, DryRun: o.DryRun}
	if err := c.requireCommand("repmgrd_service_stop_command", res.Command); err != nil {
		return res, err
	}
	runs := func(context.Context) (bool, error) { return pidfile.Runs(res.PID), nil } //nolint:unparam // as the other one's
	local, err := c.connectLocal(ctx)
	if err == nil {
		defer local.Close()
		runs = func(ctx context.Context) (bool, error) {
			all, err := registry.ReadPresences(ctx, local)
			p, ok := all[c.cfg.NodeID]
			if ok {
				res.PID = p.PID
			}
			return ok, err
		}
	} else {
		c.log.Warn("the local server does not answer: the daemon is known only by its pid file", "err", err)
		res.PID = pidfile.Read(c.cfg.PidFile())
		if res.PID == 0 {
			return res, hint(kind(ErrRefused, "repmgrd of %s can not be found: the server does not answer, and there is no pid file", c.self()), "Set repmgrd_pid_file.")
		}
	}
	running, err := runs(ctx)
	switch {
	case err != nil:
		return res, err
	case !running:
		return res, kind(ErrRefused, "repmgrd is not running on %s", c.self())
	case o.DryRun:
		return res, nil
	}
	err = c.control(ctx, o, "repmgrd_service_stop_command", res.Command, "repmgrd did not stop", func(ctx context.Context) (bool, error) {
		running, err := runs(ctx)
		return !running, err
	})
	return res, err
}

func (c *Cluster) requireCommand(key, command string) error {
	if command != "" {
		return c.cfg.RequireNode()
	}
	return hint(kind(ErrConfig, "%s is not set in %s", key, cmp.Or(c.cfg.File, "the configuration")), "Set it, such as: %s='sudo systemctl ...'", key)
}

// control runs a command of the configuration and waits until done says so.
func (c *Cluster) control(ctx context.Context, o DaemonOptions, key, command, late string, done func(context.Context) (bool, error)) error {
	if o.Wait == 0 {
		o.Wait = DefaultDaemonWait
	}
	limit := max(o.Wait, DefaultDaemonWait) // of the command itself, also where nobody waits for its effect
	tooLate := func(d time.Duration) error {
		return hint(kind(ErrTimeout, "%s within %s", late, d), "See the log of repmgrd.")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, tooLate(limit))
	defer cancel()
	deadline := time.Now().Add(o.Wait)
	out, err := shell.Run(ctx, command, nil)
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // a daemon may keep our pipe
		return fmt.Errorf("run %s: %w: %s", key, err, shell.LastLines(out, 5))
	}
	for o.Wait > 0 {
		ok, err := done(ctx)
		switch {
		case err != nil || ok:
			return err
		case time.Now().After(deadline):
			return tooLate(o.Wait)
		}
		if err := wait.Pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// PidFile is where repmgrd writes its PID: RepmgrdPidFile, else repmgrd-<node id>.pid in
// the first of /run/repmgr, $XDG_RUNTIME_DIR and /run/postgresql that is there, and that
// only we and our group may write to. Where none is, it is where repmgr 5 has it:
// repmgrd.pid in $TMPDIR or /tmp, where anybody could make a file of that name first.
func (c Config) PidFile() string {
	if c.RepmgrdPidFile != "" {
		return c.RepmgrdPidFile
	}
	return pidfile.Default(int(c.NodeID), "/run/repmgr", os.Getenv("XDG_RUNTIME_DIR"), "/run/postgresql", "/var/run/postgresql")
}
