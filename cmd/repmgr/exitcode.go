package main

import (
	"context"
	"errors"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

// codeFor is an error of the library and the exit code that repmgr 5 has for it.
type codeFor struct {
	err  error
	code int
}

// exitFailover is a failover that was refused, or that came to nothing: repmgr 5
// has the number and never uses it. A winner that was not promoted has
// [cli.ExitPromote], as in standby promote.
const exitFailover = 11

// commonCodes hold for every command, after its own.
var commonCodes = []codeFor{
	{repmgr.ErrConnect, cli.ExitConnect},
	{repmgr.ErrQuery, cli.ExitQuery},
}

// commandCodes are the codes of single commands. The first match counts.
var commandCodes = map[string][]codeFor{
	"standby promote": {
		{repmgr.ErrMetadata, cli.ExitQuery},
		{repmgr.ErrPrimaryExists, cli.ExitPromote},
		{repmgr.ErrNotStandby, cli.ExitPromote},
		{repmgr.ErrPromotion, cli.ExitPromote},
		{repmgr.ErrTimeout, cli.ExitPromote},
		{repmgr.ErrRefused, cli.ExitPromote},
	},
	"standby switchover": {
		{repmgr.ErrTimeout, cli.ExitSwitchover},
		{repmgr.ErrRefused, cli.ExitSwitchover},
		{repmgr.ErrNotScheduled, cli.ExitSwitchover},
	},
	"node drain": {
		{repmgr.ErrTimeout, cli.ExitSwitchover},
		{repmgr.ErrRefused, cli.ExitSwitchover},
	},
	"cluster restart": {
		{repmgr.ErrTimeout, cli.ExitSwitchover},
		{repmgr.ErrRefused, cli.ExitSwitchover},
		{repmgr.ErrServerControl, cli.ExitSwitchover},
	},
	"node service": {
		{repmgr.ErrServerControl, cli.ExitLocalCommand},
		{repmgr.ErrTimeout, cli.ExitLocalCommand},
	},
	"cluster failover": {
		{repmgr.ErrRefused, exitFailover},
		{repmgr.ErrMetadata, cli.ExitQuery},
		{repmgr.ErrPromotion, cli.ExitPromote},
		{repmgr.ErrTimeout, exitFailover},
	},
	"standby follow": {
		{repmgr.ErrNoPrimary, cli.ExitFollow},
		{repmgr.ErrTimelineDiverged, cli.ExitFollow},
		{repmgr.ErrWALGone, cli.ExitFollow},
		{repmgr.ErrNotAttached, cli.ExitFollow},
		{repmgr.ErrSystemIdentifier, cli.ExitFollow},
		{repmgr.ErrTimeout, cli.ExitFollow},
		{repmgr.ErrRefused, cli.ExitFollow},
	},
	"node rejoin": {
		{repmgr.ErrServerControl, cli.ExitNoRestart},
		{repmgr.ErrRejoin, cli.ExitRejoin},
		{repmgr.ErrTimelineDiverged, cli.ExitRejoin},
		{repmgr.ErrRefused, cli.ExitRejoin},
		{repmgr.ErrSystemIdentifier, cli.ExitRejoin},
		{repmgr.ErrNoPrimary, cli.ExitRejoin},
		{repmgr.ErrDirectory, cli.ExitRejoin},
		{repmgr.ErrCopy, cli.ExitRejoin},
		{repmgr.ErrTimeout, cli.ExitRejoin},
		{repmgr.ErrMetadata, cli.ExitRejoin},
	},
	"standby clone": {
		{repmgr.ErrDirectory, cli.ExitClone},
		{repmgr.ErrCopy, cli.ExitClone},
	},
	"standby register": {
		{repmgr.ErrTimeout, cli.ExitRegisterSync},
	},
	"witness register": {
		{repmgr.ErrConnect, cli.ExitConfig},
		{repmgr.ErrQuery, cli.ExitConfig},
	},
}

// exitCode is the exit code for err as the outcome of a command. Only our own
// errors know theirs: that of a program which ran for us is not ours.
func exitCode(command string, err error) int {
	var coded *exitError
	var signal *cli.SignalError
	switch {
	case err == nil:
		return cli.ExitOK
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &signal):
		return signal.ExitCode()
	}
	for _, table := range [][]codeFor{commandCodes[command], commonCodes} {
		for _, c := range table {
			if errors.Is(err, c.err) {
				return c.code
			}
		}
	}
	return cli.ExitConfig
}

// blameSignal makes a signal the outcome where it is what ended the work.
func blameSignal(ctx context.Context, err error) error {
	var signal *cli.SignalError
	if err == nil || !errors.As(context.Cause(ctx), &signal) {
		return err
	}
	if !errors.Is(err, signal) {
		err = errors.Join(signal, err)
	}
	return &exitError{signal.ExitCode(), err}
}
