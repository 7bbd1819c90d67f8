package main

import (
	"context"
	"fmt"

	"github.com/pgrepmgr/repmgr"
)

func (cmd *witnessRegister) check() (faults []string) {
	if !cmd.given() && !cmd.Force {
		faults = append(faults, "which cluster is to be witnessed? Name its primary with -h, or with -d 'host=...'")
	}
	return faults
}

func (cmd *witnessRegister) Run(ctx context.Context, a *app) error {
	o := repmgr.WitnessOptions{Force: cmd.Force, DryRun: cmd.DryRun}
	c, err := a.witness(&o, cmd.connection)
	if err != nil {
		return err
	}
	rec, err := c.RegisterWitness(ctx, o)
	if err != nil {
		return err
	}
	return a.recorded(rec, cmd.DryRun, fmt.Sprintf("registered as witness of node %q (ID: %d)", rec.UpstreamName, rec.UpstreamID), "")
}

func (cmd *witnessUnregister) Run(ctx context.Context, a *app) error {
	o := repmgr.WitnessOptions{NodeID: repmgr.NodeID(cmd.NodeID), Name: cmd.NodeName, Force: cmd.Force, DryRun: cmd.DryRun}
	c, err := a.witness(&o, cmd.connection)
	if err != nil {
		return err
	}
	rec, err := c.UnregisterWitness(ctx, o)
	if err != nil {
		return err
	}
	return a.recorded(rec, cmd.DryRun, "unregistered", "unregistered")
}

// witness opens the library, with the server that the connection options name
// as the one that knows the cluster.
func (a *app) witness(o *repmgr.WitnessOptions, named connection) (*repmgr.Cluster, error) {
	if named.given() {
		var err error
		if o.PrimaryConninfo, err = named.conninfo(a.cfg.Conninfo); err != nil {
			return nil, err
		}
	}
	return a.cluster()
}
