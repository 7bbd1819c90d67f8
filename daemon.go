package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/fence"
	"github.com/pgrepmgr/repmgr/internal/pidfile"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/restart"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/internal/service"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
)

// DefaultDaemonWait is how long starting and stopping the daemon wait for it.
const DefaultDaemonWait = 15 * time.Second

// DaemonOptions are the choices of [Cluster.StartDaemon] and [Cluster.StopDaemon].
type DaemonOptions struct {
	Wait   time.Duration // how long to wait until it runs, or has ended. Defaults to 15 s; below 0 it does not wait.
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
	all, err := registry.ReadAnnouncements(ctx, local)
	if err != nil {
		return res, err
	}
	if p, ok := all[c.cfg.NodeID]; ok {
		return res, hint(kind(ErrRefused, "repmgrd is running already on %s, with PID %d", c.self(), p.PID), "Nothing to do. To start it anew: repmgr daemon stop, then repmgr daemon start.")
	}
	if o.DryRun {
		return res, nil
	}
	err = c.control(ctx, o, "repmgrd_service_start_command", res.Command, "repmgrd did not start", func(ctx context.Context) (bool, error) {
		all, err := registry.ReadAnnouncements(ctx, local)
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
			all, err := registry.ReadAnnouncements(ctx, local)
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
		return res, hint(kind(ErrRefused, "repmgrd is not running on %s", c.self()), "Nothing to do. See: repmgr service status")
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
	o.Wait = cmp.Or(o.Wait, DefaultDaemonWait)
	return service.RunUntil(ctx, command, service.Waiting{Key: key, Late: late, Limit: max(o.Wait, DefaultDaemonWait), Wait: o.Wait}, done)
}

// ServiceAction is what [Cluster.ControlServer] can do with the local server.
type ServiceAction = service.Action

const (
	ServiceStart   = service.Start
	ServiceStop    = service.Stop
	ServiceRestart = service.Restart
	ServiceReload  = service.Reload
	ServicePromote = service.Promote
)

// ServiceActions are all actions.
var ServiceActions = service.Actions

// ServiceOptions are the choices of [Cluster.ControlServer].
type ServiceOptions = service.Options

// ServiceResult says what [Cluster.ControlServer] has run.
type ServiceResult = service.Result

// ServiceCommand is the command line for an action: that of the configuration
// (service_start_command and so on), or else one of pg_ctl. It needs the data directory.
func (c *Cluster) ServiceCommand(a ServiceAction) (string, error) {
	all, err := c.serviceCommands()
	if err != nil {
		return "", err
	}
	return all.Command(a), nil
}

func (c *Cluster) serviceCommands() (service.Commands, error) {
	srv, err := c.localServer("")
	if err != nil {
		return service.Commands{}, err
	}
	return service.Commands{
		Server: &srv.Server, Restart: c.cfg.ServiceRestartCommand, Reload: c.cfg.ServiceReloadCommand, Promote: c.cfg.ServicePromoteCommand,
		Log: c.log, Connect: c.connectLocal, Alone: c.mayRestartAlone, Screen: func(ctx context.Context, dryRun bool) error {
			_, err := c.Screen(ctx, ScreenOptions{DryRun: dryRun})
			return err
		},
	}, nil
}

// mayRestartAlone refuses a restart of the local server after which a standby would not replay any more.
func (c *Cluster) mayRestartAlone(ctx context.Context) error {
	recs, err := c.Nodes(ctx)
	if err != nil {
		return nil // a server that does not answer may be restarted for that
	}
	said := map[NodeID]restart.Server{}
	for _, r := range askAll(ctx, c, recs, restart.Ask) {
		if r.err == nil {
			said[r.record.ID] = r.said
		}
	}
	return restart.CheckAlone(c.cfg.NodeID, recs, said)
}

// ControlServer starts, stops, restarts or reloads the server of this machine, by [Cluster.ServiceCommand].
// Before a start, [Cluster.Screen] decides whether it may start as a primary. A promotion is an [ErrRefused]:
// [Cluster.Promote] makes it, with its checks; so is a restart that would end the replay of a standby, unless forced.
// What the command reports as a failure is an [ErrServerControl].
func (c *Cluster) ControlServer(ctx context.Context, a ServiceAction, o ServiceOptions) (ServiceResult, error) {
	all, err := c.serviceCommands()
	if err != nil {
		return ServiceResult{Action: a}, err
	}
	return all.Run(ctx, a, o)
}

// ShutdownState says whether the server of this machine is down, and how it ended.
type ShutdownState = service.Shutdown

// ShutdownState looks at the processes and at pg_control of the server of this machine. It needs the data directory.
func (c *Cluster) ShutdownState() (ShutdownState, error) {
	srv, err := c.localServer("")
	if err != nil {
		return ShutdownState{}, err
	}
	return service.ShutdownOf(&srv.Server), nil
}

// ReceiverResult is the result of [Cluster.SetWALReceiver].
type ReceiverResult = service.Receiver

// SetWALReceiver ends the WAL receiver of the local standby, and lets it not come back for an hour, or lets it come
// back. It is for tests: a Monitor with FailoverAutomatic points the standby to its primary anew.
func (c *Cluster) SetWALReceiver(ctx context.Context, on, dryRun bool) (ReceiverResult, error) {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return ReceiverResult{}, err
	}
	defer local.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, DefaultDaemonWait, kind(ErrTimeout, "the WAL receiver did not end within %s", DefaultDaemonWait))
	defer cancel()
	return service.SetReceiver(ctx, local, on, dryRun)
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

// Watchdog fences the local primary in the place of a [Monitor] that can not: one
// that is stopped, starved or dead. It belongs in a process of its own, which
// reads from r what [Monitor.TellWatchdog] writes. While the beats come it does
// nothing. When they stop it looks for a majority of the voters itself, and where
// none is found until the lease is over, it stops the server; the Monitor starts
// it, as a standby, when it is back.
//
// It returns nil when the Monitor ends in order, when another one has taken over
// from a dead one, when there is nothing left to guard, or with ctx. It closes r.
func (c *Cluster) Watchdog(ctx context.Context, r io.ReadCloser) error {
	return fence.Watchdog(ctx, r, c.fencing(), func(ctx context.Context) (*voters.Watch, error) {
		if err := c.cfg.requireMonitor(); err != nil {
			return nil, err
		}
		recs := c.savedRecords()
		if len(recs) == 0 {
			limit, cancel := context.WithTimeout(ctx, c.heartbeatInterval())
			defer cancel()
			recs, _ = c.Nodes(limit) // without the rows it has no contact, and the lease runs out
		}
		w := c.watchVoters(ctx, func() {})
		w.SetNodes(recs)
		return w, nil
	})
}

// fencing are the settings that package fence needs of the configuration.
func (c *Cluster) fencing() fence.Settings {
	return fence.Settings{
		Node: int32(c.cfg.NodeID), Name: c.self(), Conninfo: c.cfg.Conninfo, Candidate: c.candidate(), Automatic: c.cfg.Failover == FailoverAutomatic,
		SilenceTimeout: c.cfg.SilenceTimeout, FenceTimeout: c.cfg.FenceTimeout, HangTimeout: c.cfg.HangTimeout, MonitorInterval: c.cfg.MonitorInterval,
		Device: c.cfg.WatchdogDevice, DeviceRequired: c.cfg.WatchdogRequired, Logger: c.cfg.Logger,
		Find: func(dir string) (*postmaster.Server, error) {
			srv, err := c.localServer(dir)
			if err != nil {
				return nil, err
			}
			return &srv.Server, nil
		},
		At: func(dir string) *postmaster.Server { return &newLocalServer(c.cfg, dir).Server },
		SavedRules: func(dir string) []election.Rule {
			k, err := c.readStateFile(dir)
			if err != nil {
				return nil
			}
			return k.Rules
		},
	}
}

// ScreenOptions are the choices of [Cluster.Screen].
type ScreenOptions struct {
	DryRun bool // look and decide, change nothing
}

// ScreenResult says as what the local server is to be started.
type ScreenResult struct {
	Node    string        `json:"node"`
	As      Role          `json:"as"` // empty: it runs already
	Reason  string        `json:"reason"`
	Changed bool          `json:"changed"` // it was made a standby without an upstream
	Elapsed time.Duration `json:"elapsed_ns"`
	DryRun  bool          `json:"dry_run,omitempty"`
}

// Screen decides, before the local server is started, whether it may start as a
// primary, and makes it a standby of nobody where another node may have become one
// since it went down: that can neither accept a write nor acknowledge one, and its
// Monitor brings it back. Call it each time before the server is started, by
// whatever starts it (ExecStartPre in systemd), as the user that runs PostgreSQL.
//
// It asks the nodes that the Monitor of this node knew last, for at most twice
// silence_timeout and a second; where all answer, or a majority is enough, no longer than
// they take. With failover=manual only a primary that is seen to run counts. It changes
// nothing where the server runs, is a standby already or a witness, or where no Monitor has
// ever run. What it says holds for the moment in which it looked. An error means that
// nothing was decided: do not start the server then.
//
// Where the others stay away, or everything is paused, nobody brings such a standby back
// before they are there, or it is unpaused, or an operator promotes it.
func (c *Cluster) Screen(ctx context.Context, o ScreenOptions) (ScreenResult, error) {
	begun := time.Now()
	res := ScreenResult{Node: c.self(), DryRun: o.DryRun}
	srv, err := c.localServer("")
	if err == nil {
		err = srv.MayControl()
	}
	if err == nil {
		_, err = pgcontrol.Read(srv.Dir)
	}
	if err != nil {
		return res, err
	}
	res.As, res.Reason, err = c.screen(ctx, srv)
	if err == nil && res.As == RoleStandby && !srv.IsStandby() && !o.DryRun {
		if err = srv.Detach(); err != nil {
			err = kind(ErrDirectory, "make %s a standby: %w", srv.Dir, err)
		}
		res.Changed = err == nil
	}
	res.Elapsed = time.Since(begun)
	return res, err
}

func (res ScreenResult) String() string {
	switch res.As {
	case "":
		return fmt.Sprintf("%s was not screened: %s", res.Node, res.Reason)
	case RoleStandby:
		return fmt.Sprintf("%s starts as a standby: %s", res.Node, res.Reason)
	default:
		return fmt.Sprintf("%s may start as a primary: %s", res.Node, res.Reason)
	}
}

func (c *Cluster) screen(ctx context.Context, srv *salvage.Server) (as Role, reason string, err error) {
	k, err := c.readStateFile("")
	if err != nil {
		return "", "", err
	}
	self, registered := registry.ByID(k.Nodes, c.cfg.NodeID)
	switch {
	case srv.Runs():
		return "", "it runs already", nil
	case srv.IsStandby():
		return RoleStandby, "it is one already", nil
	case len(k.Nodes) == 0:
		return RolePrimary, "no repmgrd has watched it yet", nil
	case !registered:
		return RolePrimary, "it was not registered when repmgrd last watched it", nil
	case self.Role == RoleWitness:
		return RolePrimary, "it is a witness, with data of its own", nil
	}
	own := election.Peer{ID: int32(self.ID)}
	vote, err := salvage.ReadBallot(filepath.Join(srv.Dir, postmaster.AutoConf))
	if err != nil {
		return "", "", kind(ErrDirectory, "read the vote of %s: %w", self, err)
	}
	if vote.Node == own.ID { // a clone has the vote of its source
		own.Term, own.WonElection = vote.Term, strings.HasSuffix(vote.Candidate, ballot.ChosenMark)
	}
	var voters []int32
	for _, r := range k.Nodes {
		voters = append(voters, int32(r.ID))
	}
	if c.cfg.Arbiter != nil {
		voters = append(voters, election.Arbiter)
	}

	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(registry.OthersThan(k.Nodes, self.ID))
	verdict, err := w.Screen(ctx, c.policy(), own, k.Rules, voters)
	if err != nil {
		return "", "", err
	}
	if verdict == election.ScreenedClear || verdict == election.ScreenedManual {
		return RolePrimary, string(verdict), nil
	}
	return RoleStandby, string(verdict), nil
}
