package repmgr

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgrepmgr/repmgr/registry"
)

// WitnessOptions are the choices of [Cluster.RegisterWitness] and
// [Cluster.UnregisterWitness].
type WitnessOptions struct {
	PrimaryConninfo string // a registered node that knows the cluster. Defaults to what the local server knows.
	NodeID          NodeID // only to unregister: which witness. Defaults to Name, else to the local node.
	Name            string // used where NodeID is 0
	Force           bool   // register anew over what is there; unregister a witness that does not answer
	DryRun          bool   // check everything, change nothing
}

// RegisterWitness registers the local node as a witness: a PostgreSQL server of
// its own, beside the cluster's, that replicates nothing and has a vote. It gets
// a copy of the metadata, which the Monitors keep in step. Without Force it
// refuses where the node is registered already, or the server holds a copy.
func (c *Cluster) RegisterWitness(ctx context.Context, o WitnessOptions) (Record, error) {
	rec, err := c.record(RoleWitness)
	if err != nil {
		return Record{}, err
	}
	rec.Priority, rec.SlotName = 0, ""
	local, err := c.connectLocal(ctx)
	if err != nil {
		return Record{}, err
	}
	defer local.Close()
	status, err := local.Status(ctx)
	if err != nil {
		return Record{}, err
	}
	primary, of, recs, err := c.witnessPrimary(ctx, local, o)
	if err != nil {
		return Record{}, err
	}
	defer primary.Close()
	rec.UpstreamID, rec.UpstreamName = of.ID, of.Name
	held, err := c.checkWitness(ctx, local, primary, status, recs, rec, o.Force)
	if err != nil {
		return Record{}, err
	}
	if o.DryRun {
		c.log.Info("prerequisites met for registering the witness", "node", rec.Name, "primary", of.Name)
		return rec, nil
	}
	created, err := local.CreateSchema(ctx, Schema)
	if err != nil {
		return Record{}, err
	}
	if created {
		c.log.Log(ctx, LevelNotice, fmt.Sprintf("repmgr metadata schema created in database %q", local.Conn.Config().Database))
	}
	if old, ok := registry.ByID(recs, rec.ID); held && (!ok || old.Role != RoleWitness) {
		// The rows on this server are from a time, or from a cluster, in which it was not this
		// cluster's witness.
		if err := local.ForgetMetadata(ctx); err != nil {
			return Record{}, err
		}
	}
	if err := primary.Save(ctx, rec, c.cfg.ClusterName, o.Force); err != nil {
		return Record{}, err
	}
	if err := registry.CopyMetadata(ctx, primary, local); err != nil {
		return rec, hint(fmt.Errorf("%s is registered, its copy of the metadata is not made: %w", rec, err), "Run it again with --force.")
	}
	c.emit(ctx, primary, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventWitnessRegister, Success: true,
		Details: fmt.Sprintf("%s registered as witness of %s", rec, of), PeerID: of.ID, Peer: of.Name, PeerConninfo: of.Conninfo,
	})
	return rec, nil
}

// witnessPrimary connects to the primary of the cluster, and reads its rows. The server that
// the options name knows the cluster, else the local one. A server that is not in recovery need
// not be the primary, because a witness never is in recovery.
func (c *Cluster) witnessPrimary(ctx context.Context, local *registry.Server, o WitnessOptions) (primary *registry.Server, of Record, recs []Record, err error) {
	knows := local
	if o.PrimaryConninfo != "" {
		if knows, err = registry.Connect(ctx, "", o.PrimaryConninfo); err != nil {
			return nil, of, nil, err
		}
		defer knows.Close()
	}
	if recs, err = knows.Records(ctx); err != nil {
		return nil, of, nil, err
	}
	if of, err = c.findPrimary(ctx, recs); err != nil {
		return nil, of, nil, err
	}
	if primary, err = c.connectTo(ctx, of); err != nil {
		return nil, of, nil, err
	}
	if recs, err = primary.Records(ctx); err != nil {
		primary.Close()
		return nil, of, nil, err
	}
	return primary, of, recs, nil
}

// checkWitness checks that the local server can be a witness, and that the row may be written.
// held reports whether it already has a copy of some metadata.
func (c *Cluster) checkWitness(ctx context.Context, local, primary *registry.Server, status registry.NodeStatus, recs []Record, rec Record, force bool) (held bool, err error) {
	p, err := primary.Status(ctx)
	switch {
	case err != nil:
		return false, err
	case status.InRecovery:
		return false, hint(kind(ErrNotPrimary, "%s is a standby: a witness is a server of its own", local.Name),
			"Make a new server with initdb, on a machine that fails at other times than those of the data.")
	case status.SystemIdentifier == p.SystemIdentifier:
		return false, hint(kind(ErrSystemIdentifier, "%s is of the cluster that it shall witness (system identifier %s)", local.Name, p.SystemIdentifier),
			"Make a new server with initdb, and let conninfo lead to that one.")
	case len(status.Senders) > 0:
		return false, hint(kind(ErrRefused, "%s is the primary of %q: a witness is in no replication", local.Name, status.Senders[0].ApplicationName),
			"Make a new server with initdb, and let conninfo lead to that one.")
	}
	if old, ok := registry.ByID(recs, rec.ID); ok && old.Role != RoleWitness {
		return false, hint(kind(ErrRegistered, "node ID %d is registered already, as %q (%s)", old.ID, old.Name, old.Role), "Choose another node_id.")
	}
	if err := c.checkRow(ctx, recs, rec, status, force); err != nil {
		return false, err
	}
	own, err := local.Records(ctx)
	if err != nil && !errors.Is(err, ErrNotRegistered) { // no metadata yet: no rows
		return false, err
	}
	for _, r := range own {
		if r.Role != RolePrimary {
			continue
		}
		if q := c.look(ctx, r); q.Err == nil && q.Status.StartedAt.Equal(status.StartedAt) && q.Status.Settings.Port == status.Settings.Port {
			return false, hint(kind(ErrRefused, "%s is a registered primary, of another cluster", local.Name),
				"If that cluster is no more: repmgr primary unregister --force, with its configuration.")
		}
	}
	if len(own) > 0 && !force {
		return false, hint(kind(ErrRegistered, "%s holds the rows of %d nodes already", local.Name, len(own)), "To replace them, use --force.")
	}
	return len(own) > 0, nil
}

// UnregisterWitness removes the row of a witness, and the copy of the metadata
// in its server. It stops nothing. With Force the witness need not answer.
func (c *Cluster) UnregisterWitness(ctx context.Context, o WitnessOptions) (Record, error) {
	local, err := c.connectLocal(ctx)
	if err == nil {
		defer local.Close()
	} else if o.PrimaryConninfo == "" {
		return Record{}, hint(err, "If that server is gone for good, name the primary: repmgr -h HOST witness unregister --force")
	}
	primary, _, recs, err := c.witnessPrimary(ctx, local, o)
	if err != nil {
		return Record{}, err
	}
	defer primary.Close()
	rec, err := c.unregisterTarget(recs, UnregisterOptions{NodeID: o.NodeID, Name: o.Name}, RoleWitness)
	switch {
	case err != nil:
		return Record{}, err
	case rec.Role != RoleWitness:
		return Record{}, registeredAs(rec, RoleWitness)
	}
	witness, err := c.connectTo(ctx, rec)
	if err == nil {
		defer witness.Close()
	} else if !o.Force {
		return Record{}, hint(err, "If that server is gone for good, use --force.")
	}
	if o.DryRun {
		return rec, nil
	}
	if err := primary.Remove(ctx, rec.ID, RoleWitness); err != nil {
		return Record{}, err
	}
	if witness != nil {
		if err := witness.ForgetMetadata(ctx); err != nil {
			c.log.Warn("the former witness still has its copy of the metadata", "node", rec.Name, "err", err)
		}
	}
	c.emit(ctx, primary, Event{NodeID: rec.ID, Node: rec.Name, Type: EventWitnessUnregister, Success: true, Details: fmt.Sprintf("%s unregistered", rec)})
	return rec, nil
}
