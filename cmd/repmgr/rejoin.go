package main

import (
	"context"
	"fmt"
	"time"

	"github.com/alecthomas/kong"

	"github.com/pgrepmgr/repmgr"
)

// optionalPath is the value of an option that may stand without one, as --force-rewind[=PATH].
type optionalPath struct {
	Given bool
	Path  string
}

// IsBool makes kong take no separate argument for it.
func (*optionalPath) IsBool() bool { return true }

// Decode reads the value where one stands after the "=".
func (o *optionalPath) Decode(ctx *kong.DecodeContext) error { //nolint:unparam // kong asks for it
	o.Given, o.Path = true, ""
	if ctx.Scan.Peek().Type == kong.FlagValueToken {
		o.Path = ctx.Scan.Pop().String()
	}
	return nil
}

// policy is what the options allow: without one only what changes no data.
func (cmd *nodeRejoin) policy() repmgr.RejoinPolicy {
	switch {
	case cmd.Reclone:
		return repmgr.RejoinReclone
	case cmd.ForceRewind.Given:
		return repmgr.RejoinRewind
	default:
		return repmgr.RejoinIfClean
	}
}

func (cmd *nodeRejoin) Run(ctx context.Context, a *app) error {
	if err := a.refuseRoot(); err != nil {
		return err
	}
	bar := newProgress(a)
	o := repmgr.RejoinOptions{
		Policy: cmd.policy(), PgRewind: cmd.ForceRewind.Path, ConfigFiles: cmd.ConfigFiles,
		Force: cmd.Force, NoWait: cmd.NoWait, DryRun: cmd.DryRun, Progress: bar.show,
	}
	if cmd.given() {
		var err error
		if o.Target, err = cmd.conninfo(a.cfg.Conninfo); err != nil {
			return err
		}
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Rejoin(ctx, o)
	bar.end()
	if err != nil {
		return err
	}
	switch {
	case res.DryRun:
		a.log.Info(fmt.Sprintf("%s would rejoin %s by %s: %s", res.Node, res.Primary, res.Method, res.Reason))
	case cmd.NoWait:
		a.notice(fmt.Sprintf("%s, and was not waited for, after %s", res, res.Elapsed.Round(time.Millisecond)))
	default:
		a.notice(fmt.Sprintf("%s, after %s", res, res.Elapsed.Round(time.Millisecond)))
	}
	return a.answer(res, nil)
}
