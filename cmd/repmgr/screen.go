package main

import (
	"context"

	"github.com/pgrepmgr/repmgr"
)

func (cmd *nodeScreen) Run(ctx context.Context, a *app) error {
	if err := a.refuseRoot(); err != nil {
		return err
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Screen(ctx, repmgr.ScreenOptions{DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	if res.Changed {
		a.notice(res.String(), "hint", "Its repmgrd brings it back. Where too few of the others run, start them; where all is paused: repmgr service unpause.")
	} else {
		a.notice(res.String())
	}
	return a.answer(res, nil)
}
