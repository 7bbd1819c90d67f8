package repmgr

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/registry"
)

// UnregisterOptions say which node leaves the metadata.
type UnregisterOptions struct {
	NodeID NodeID // defaults to: the primary, or for a standby the local node
	Name   string // used where NodeID is 0
	Force  bool   // also an active primary, or one that now runs as a standby
	DryRun bool
}

// UnregisterPrimary removes the row of a primary that is no longer one. It
// stops nothing. It refuses while other nodes name it as their upstream.
func (c *Cluster) UnregisterPrimary(ctx context.Context, o UnregisterOptions) (Record, error) {
	return c.unregister(ctx, o, RolePrimary, EventPrimaryUnregister)
}

// UnregisterStandby removes the row of a standby, and its replication slot on
// the primary where that is idle, so that it keeps no WAL for ever. It stops nothing.
func (c *Cluster) UnregisterStandby(ctx context.Context, o UnregisterOptions) (Record, error) {
	return c.unregister(ctx, o, RoleStandby, EventStandbyUnregister)
}

func (c *Cluster) unregister(ctx context.Context, o UnregisterOptions, role Role, event EventType) (rec Record, err error) {
	err = c.withPrimary(ctx, func(primary *registry.Server) error {
		recs, err := primary.Records(ctx)
		if err != nil {
			return err
		}
		if rec, err = c.unregisterTarget(recs, o, role); err != nil {
			return err
		}
		if role == RolePrimary {
			err = c.checkUnregisterPrimary(ctx, recs, rec, o)
		} else if rec.Role != role {
			err = kind(ErrRefused, "%s is registered as %s, not as standby", rec, rec.Role)
		}
		if err != nil || o.DryRun {
			return err
		}
		if _, err := primary.Conn.Exec(ctx, `DELETE FROM repmgr.nodes WHERE node_id = $1`, int32(rec.ID)); err != nil {
			return primary.QueryError("delete from repmgr.nodes", err)
		}
		c.dropSlots(ctx, primary, recs, rec)
		c.emit(ctx, primary, Event{NodeID: rec.ID, Node: rec.Name, Type: event, Success: true, Details: fmt.Sprintf("%s unregistered", rec)})
		return nil
	})
	return rec, err
}

func (c *Cluster) unregisterTarget(recs []Record, o UnregisterOptions, role Role) (Record, error) {
	id := o.NodeID
	switch {
	case id == 0 && o.Name != "":
		if r, ok := registry.ByName(recs, o.Name); ok {
			return r, nil
		}
		return Record{}, unknownNode(recs, 0, o.Name)
	case id == 0 && role == RolePrimary:
		if r, ok := primaryRecord(recs); ok {
			return r, nil
		}
		return Record{}, kind(ErrNotRegistered, "no primary is registered")
	case id == 0:
		id = c.cfg.NodeID
	}
	if r, ok := registry.ByID(recs, id); ok {
		return r, nil
	}
	return Record{}, unknownNode(recs, id, "")
}

func (c *Cluster) checkUnregisterPrimary(ctx context.Context, recs []Record, rec Record, o UnregisterOptions) error {
	var downstream []string
	for _, r := range recs {
		if r.UpstreamID == rec.ID {
			downstream = append(downstream, r.String())
		}
	}
	p := c.look(ctx, rec)
	running := p.err == nil
	switch {
	case rec.Role == RoleWitness:
		return kind(ErrRefused, "%s is a witness", rec)
	case len(downstream) > 0:
		return hint(kind(ErrRefused, "%s is the upstream of %s", rec, strings.Join(downstream, ", ")),
			"Re-point them with repmgr standby follow, or unregister them first.")
	case running && p.status.InRecovery && rec.Role != RolePrimary:
		return hint(kind(ErrRefused, "%s is a standby", rec), "Use: repmgr standby unregister --node-id=%d", rec.ID)
	case !running && rec.Role != RolePrimary:
		return kind(ErrRefused, "%s is registered as %s, not as primary", rec, rec.Role)
	case running && p.status.InRecovery && !o.Force:
		return hint(kind(ErrRefused, "%s runs as a standby now", rec), "If it shall stay one, register it as such: repmgr standby register --force. To remove the row, use --force.")
	case running && !p.status.InRecovery && !o.Force:
		return hint(kind(ErrRefused, "%s is the running primary", rec), "Use --force if the cluster is to be taken apart.")
	case rec.Active && !o.Force:
		return hint(kind(ErrRefused, "%s is still registered as active", rec), "If it is gone for good, use --force.")
	default:
		return nil
	}
}

// dropSlots removes the slot of a node that left, from the primary and from the
// upstream that it had: nobody would ever move it on, and it would keep WAL until
// the disk is full.
func (c *Cluster) dropSlots(ctx context.Context, primary *registry.Server, recs []Record, rec Record) {
	if rec.SlotName == "" {
		return
	}
	c.dropIdleSlot(ctx, primary, rec)
	upstream, ok := registry.ByID(recs, rec.UpstreamID)
	if !ok || upstream.Role == RolePrimary {
		return
	}
	up, err := c.connectTo(ctx, upstream)
	if err != nil {
		c.log.Warn("replication slot not dropped: its server is not reachable", "slot", rec.SlotName, "on", upstream.Name, "err", err,
			"hint", fmt.Sprintf("There: SELECT pg_drop_replication_slot('%s');", rec.SlotName))
		return
	}
	defer up.Close()
	c.dropIdleSlot(ctx, up, rec)
}

// dropIdleSlot removes a node's slot where nobody uses it, and says where it stays.
func (c *Cluster) dropIdleSlot(ctx context.Context, on *registry.Server, rec Record) {
	dropped, err := on.DropSlot(ctx, rec.SlotName)
	if err == nil && !dropped {
		var stays bool
		err = on.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, rec.SlotName).Scan(&stays)
		if err == nil && stays {
			err = errors.New("it is in use")
		}
	}
	switch {
	case err != nil:
		c.log.Warn(fmt.Sprintf("replication slot %s not dropped on %s: %v", rec.SlotName, on.Name, err),
			"hint", fmt.Sprintf("It keeps WAL. When nobody uses it any more: SELECT pg_drop_replication_slot('%s');", rec.SlotName))
	case dropped:
		c.log.Log(ctx, LevelNotice, fmt.Sprintf("replication slot %s dropped on %s", rec.SlotName, on.Name))
	}
}
