package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
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
