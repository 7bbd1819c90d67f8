package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func (cmd *standbyRegister) options() repmgr.RegisterOptions {
	o := repmgr.RegisterOptions{
		Force: cmd.Force, DryRun: cmd.DryRun, UpstreamID: repmgr.NodeID(cmd.UpstreamNodeID),
		WaitStart: time.Duration(cmd.WaitStart) * time.Second,
	}
	if cmd.WaitStart == 0 {
		o.WaitStart = -1 // to the library 0 is the default
	}
	switch {
	case cmd.WaitSync.N != nil:
		o.WaitSync = time.Duration(*cmd.WaitSync.N) * time.Second
	case cmd.WaitSync.Given:
		o.WaitSync = -1
	}
	return o
}

func (cmd *standbyRegister) Run(ctx context.Context, a *app) error {
	o := cmd.options()
	if cmd.given() {
		var err error
		if o.PrimaryConninfo, err = cmd.conninfo(a.cfg.Conninfo); err != nil {
			return err
		}
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	rec, err := c.RegisterStandby(ctx, o)
	if err != nil {
		return err
	}
	below := "registered as standby"
	if rec.UpstreamID != 0 {
		below = fmt.Sprintf("registered as standby of node %q (ID: %d)", rec.UpstreamName, rec.UpstreamID)
	}
	return a.recorded(rec, cmd.DryRun, below, "")
}

func (cmd *standbyUnregister) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	rec, err := c.UnregisterStandby(ctx, cmd.options())
	if err != nil {
		return err
	}
	return a.recorded(rec, cmd.DryRun, "unregistered", "unregistered")
}

func (cmd *standbyClone) needsConfig() bool { return false }

func (cmd *standbyClone) check() (faults []string) {
	switch {
	case cmd.Source != "" && cmd.Host != "":
		faults = append(faults, fmt.Sprintf("host given twice: %q and --host=%s", cmd.Source, cmd.Host))
	case cmd.Source == "" && cmd.Host == "" && !isConninfo(cmd.Dbname):
		faults = append(faults, "which server is to be copied? Name it as the last word, with -h, or with -d 'host=...'")
	}
	if len(cmd.Port) > 2 {
		faults = append(faults, "option --port: given more than twice")
	}
	if cmd.UpstreamNodeID != 0 && cmd.UpstreamConninfo != "" {
		faults = append(faults, "options --upstream-node-id and --upstream-conninfo exclude each other")
	}
	return faults
}

func (cmd *standbyClone) Run(ctx context.Context, a *app) error {
	if err := a.refuseRoot(); err != nil {
		return err
	}
	source := cmd.connection
	if cmd.Source != "" {
		source.Host = cmd.Source
	}
	conninfo, err := source.conninfo("") // the library fills in from the configuration
	if err != nil {
		return err
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	bar := newProgress(a)
	o := repmgr.CloneOptions{
		Source: conninfo, Dir: cmd.DataDir, Method: repmgr.CloneMethod(cmd.Method),
		UpstreamID: repmgr.NodeID(cmd.UpstreamNodeID), UpstreamConninfo: cmd.UpstreamConninfo,
		ReplicationUser: cmd.ReplicationUser, RemoteUser: cmd.RemoteUser, RecoveryMinApplyDelay: cmd.RecoveryMinApplyDelay,
		FastCheckpoint: cmd.FastCheckpoint, Force: cmd.Force, DryRun: cmd.DryRun, ReplicationConfOnly: cmd.ReplicationConfOnly,
		Progress: bar.show,
	}
	if len(cmd.Port) == 2 {
		o.LocalPort = cmd.Port[1]
	}
	res, err := c.Clone(ctx, o)
	bar.end()
	if err != nil {
		return err
	}
	a.cloned(cmd, res)
	return a.answer(res, nil)
}

// cloned says what was done and what comes next, which repmgr leaves to the operator.
func (a *app) cloned(cmd *standbyClone, res repmgr.CloneResult) {
	registered := a.cfg.File != ""
	switch {
	case res.DryRun:
		for _, c := range res.Checks {
			if c.Warning { // the library has warned already
				continue
			}
			a.log.Info(fmt.Sprintf("%s: %s", c.Name, c.Detail))
		}
		a.log.Info("all prerequisites for \"standby clone\" are met")
	case cmd.ReplicationConfOnly:
		a.notice("replication settings written into "+res.Dir,
			"hint", fmt.Sprintf("If the server runs, let it read them: pg_ctl -D %s reload", res.Dir))
	default:
		a.notice(fmt.Sprintf("standby clone complete: %s in %s into %s", size(res.Bytes), res.Elapsed.Round(10*time.Millisecond), res.Dir))
		start := fmt.Sprintf("pg_ctl -D %s start", res.Dir)
		if a.cfg.ServiceStartCommand != "" {
			start = a.cfg.ServiceStartCommand
		}
		then := "After starting the server, register this standby with: repmgr standby register"
		if registered {
			then = fmt.Sprintf("After starting the server, register this standby with: repmgr -f %s standby register", a.cfg.File)
		}
		if strings.Contains(res.Dir, " ") {
			start = fmt.Sprintf("pg_ctl -D %q start", res.Dir)
		}
		a.notice("you can now start your PostgreSQL server", "hint", "For example: "+start+"\n"+then)
	}
}

// refuseRoot keeps root from owning a data directory that PostgreSQL could then not use.
func (a *app) refuseRoot() error {
	if a.geteuid() != 0 {
		return nil
	}
	return &usageError{
		[]string{a.command + " can not be run as root: the files would be root's, and PostgreSQL could not use them"},
		"Run it as the operating system user that runs PostgreSQL: runuser -u postgres -- repmgr " + a.command + " ...",
	}
}

func (cmd *standbyPromote) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Promote(ctx, repmgr.PromoteOptions{DryRun: cmd.DryRun, Force: cmd.Force, SiblingsFollow: cmd.SiblingsFollow})
	if err != nil {
		return err
	}
	switch {
	case res.DryRun:
		a.log.Info(fmt.Sprintf("all prerequisites for promoting %s are met", res.Node))
	default:
		former := ""
		if res.FormerPrimary != nil {
			former = fmt.Sprintf("; former primary %s is marked as failed", res.FormerPrimary)
		}
		a.notice(fmt.Sprintf("%s promoted to primary in %s, timeline %d%s", res.Node, res.Elapsed.Round(time.Millisecond), res.Timeline, former))
		for _, n := range res.Following {
			a.notice(fmt.Sprintf("%s follows it", n))
		}
	}
	return a.answer(res, nil)
}

func (cmd *standbySwitchover) check() (faults []string) {
	if cmd.At != "" {
		if _, err := parseTime(cmd.At, time.Now()); err != nil {
			faults = append(faults, fmt.Sprintf("option --at: %v", err))
		}
	}
	if cmd.Cancel && (cmd.To != "" || cmd.At != "" || cmd.Timeout != 0 || cmd.Force) {
		faults = append(faults, "option --cancel takes no other option of a switchover than --dry-run")
	}
	return faults
}

// parseTime reads a time of day, of today or else of tomorrow, or a date and time, in the local
// time zone.
func parseTime(text string, now time.Time) (time.Time, error) {
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.Local)
			if at.Before(now) {
				at = at.AddDate(0, 0, 1)
			}
			return at, nil
		}
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			if t.Before(now) {
				return t, fmt.Errorf("%s is over", t.Format(time.DateTime))
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time, such as 03:30 or 2026-01-31 03:30", text)
}

// nodeCalled finds the registered node that an option names, by its id or its name.
func nodeCalled(ctx context.Context, c *repmgr.Cluster, option, text string) (repmgr.NodeID, error) {
	recs, err := c.Nodes(ctx)
	if err != nil {
		return 0, err
	}
	var names []string
	for _, r := range recs {
		if r.Name == text || r.ID.String() == text {
			return r.ID, nil
		}
		names = append(names, fmt.Sprintf("%s (ID: %d)", r.Name, r.ID))
	}
	return 0, &exitError{code: cli.ExitConfig, err: repmgr.WithHint(fmt.Errorf("option %s: no node %q is registered", option, text), "Registered are: %s.", strings.Join(names, ", "))}
}

func (cmd *standbySwitchover) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	if cmd.Cancel {
		return cmd.cancel(ctx, a, c)
	}
	o := repmgr.SwitchoverOptions{Timeout: time.Duration(cmd.Timeout) * time.Second, Force: cmd.Force, DryRun: cmd.DryRun, RemoteUser: cmd.RemoteUser}
	if cmd.At != "" {
		if o.At, err = parseTime(cmd.At, time.Now()); err != nil {
			return err
		}
	}
	if cmd.To != "" {
		if o.To, err = nodeCalled(ctx, c, "--to", cmd.To); err != nil {
			return err
		}
	}
	res, err := c.Switchover(ctx, o)
	if res.From.ID != 0 && res.Term == 0 {
		for _, w := range res.Plan.Warnings {
			a.log.Warn(w.String(), "hint", w.Hint)
		}
	}
	if err != nil {
		return err
	}
	switch {
	case res.DryRun:
		if res.To.ID != 0 {
			a.log.Info(fmt.Sprintf("%s would be promoted to primary; current primary %s would be demoted to standby", res.To, res.From))
		}
		a.tellSteps(res.Plan)
		if res.To.ID == 0 {
			a.log.Info("repmgrd can be started there; the other checks are made when it runs")
		}
		a.log.Info("prerequisites for executing STANDBY SWITCHOVER are met")
	case res.Scheduled:
		a.notice(fmt.Sprintf("switchover from %s to %s begins at %s", res.From, res.To, o.At.Format(time.DateTime)), "hint", "Its outcome: repmgr cluster event --event=standby_switchover. To take it back: repmgr standby switchover --cancel")
	default:
		a.notice("switchover was successful", "detail", fmt.Sprintf("%s is the primary now, in term %d", res.To, res.Term))
		if !res.Returned {
			a.log.Warn(fmt.Sprintf("STANDBY SWITCHOVER has completed with issues: %s does not stream from it yet", res.From), "hint", "Its repmgrd goes on with that: see its log, and repmgr cluster show.")
			if err := a.answer(res, nil); err != nil {
				return err
			}
			return &exitError{code: cli.ExitSwitchoverIncomplete}
		}
		a.notice("STANDBY SWITCHOVER has completed successfully", "detail", fmt.Sprintf("%s streams from it; the new primary was there after %s", res.From, res.Elapsed.Round(time.Millisecond)))
	}
	return a.answer(res, nil)
}

// cancel takes back the switchover that was asked for.
func (cmd *standbySwitchover) cancel(ctx context.Context, a *app, c *repmgr.Cluster) error {
	res, err := c.CancelSwitchover(ctx, repmgr.SwitchoverOptions{DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("the switchover from %s to %s, which was to begin at %s, ", res.From, res.To, res.At.Local().Format(time.DateTime))
	if res.DryRun {
		a.log.Info(what + "would be taken back")
	} else {
		a.notice(what + "was taken back")
	}
	return a.answer(res, nil)
}

func (cmd *standbyFollow) check() (faults []string) {
	if cmd.Target != "" && cmd.Host != "" {
		faults = append(faults, fmt.Sprintf("host given twice: %q and --host=%s", cmd.Target, cmd.Host))
	}
	if cmd.UpstreamNodeID != 0 && (cmd.Target != "" || cmd.given()) {
		faults = append(faults, "option --upstream-node-id and a host exclude each other")
	}
	return faults
}

func (cmd *standbyFollow) Run(ctx context.Context, a *app) error {
	o := repmgr.FollowOptions{UpstreamID: repmgr.NodeID(cmd.UpstreamNodeID), DryRun: cmd.DryRun, Wait: cmd.Wait.Given}
	if cmd.Wait.N != nil {
		a.cfg.PrimaryFollowTimeout = max(time.Second, time.Duration(*cmd.Wait.N)*time.Second)
	}
	target := cmd.connection
	if cmd.Target != "" {
		target.Host = cmd.Target
	}
	if target.given() {
		var err error
		if o.Target, err = target.conninfo(a.cfg.Conninfo); err != nil {
			return err
		}
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Follow(ctx, o)
	switch {
	case err != nil:
		return err
	case !res.DryRun: // of a dry run the library has told
		a.notice(fmt.Sprintf("%s follows %s, timeline %d, after %s", res.Node, res.Upstream, res.Timeline, res.Elapsed.Round(time.Millisecond)))
	}
	return a.answer(res, nil)
}
