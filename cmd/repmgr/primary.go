package main

import (
	"context"
	"fmt"

	"github.com/pgrepmgr/repmgr"
)

// nodeDoc is the JSON document of what changes a node's record.
type nodeDoc struct {
	Node   repmgr.Record `json:"node"`
	DryRun bool          `json:"dry_run,omitempty"`
}

// recorded says what became of a node's record. Without would, the library has
// told of a dry run.
func (a *app) recorded(rec repmgr.Record, dryRun bool, done, would string) error {
	switch {
	case !dryRun:
		a.notice(fmt.Sprintf("%s %s", rec, done))
	case would != "":
		a.log.Info(fmt.Sprintf("%s would be %s", rec, would))
	}
	return a.answer(nodeDoc{rec, dryRun}, nil)
}

func (cmd *primaryRegister) Run(ctx context.Context, a *app) error {
	if cmd.ReplicationUser != "" {
		a.cfg.ReplicationUser = cmd.ReplicationUser
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	rec, err := c.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: cmd.Force, DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	return a.recorded(rec, cmd.DryRun, "registered as primary", "")
}

func (u unregister) options() repmgr.UnregisterOptions {
	return repmgr.UnregisterOptions{NodeID: repmgr.NodeID(u.NodeID), Name: u.NodeName, Force: u.Force, DryRun: u.DryRun}
}

func (cmd *primaryUnregister) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	rec, err := c.UnregisterPrimary(ctx, cmd.options())
	if err != nil {
		return err
	}
	return a.recorded(rec, cmd.DryRun, "unregistered", "unregistered")
}

func (cmd *adoptCmd) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Adopt(ctx, repmgr.AdoptOptions{Force: cmd.Force, DryRun: cmd.DryRun})
	for _, w := range res.Plan.Warnings {
		a.log.Warn(w.String(), "hint", w.Hint)
	}
	if err != nil {
		return err
	}
	switch {
	case len(res.Plan.Steps) == 0:
		a.notice("this cluster is adopted already")
	case res.DryRun:
		a.tellSteps(res.Plan)
		a.log.Info("prerequisites for executing ADOPT are met")
	default:
		a.notice("the tables of repmgr 5 are adopted", "hint", "Now start repmgrd on every node, with the same configuration. Then: repmgr service status, and repmgr doctor")
	}
	return a.answer(res, nil)
}
