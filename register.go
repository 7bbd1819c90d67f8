package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/adopt"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// DefaultWaitStart is how long registering a standby waits for its server.
const DefaultWaitStart = 30 * time.Second

// RegisterOptions are the choices of RegisterPrimary and RegisterStandby. The
// zero value is right for a first registration.
type RegisterOptions struct {
	Force  bool // update a row that exists; skip the checks that need a running standby
	DryRun bool // check everything, change nothing

	// Only for a standby.
	UpstreamID      NodeID        // whom it streams from. Defaults to upstream_node_id, else to finding who sends WAL to it.
	WaitStart       time.Duration // how long to wait for its server, and for it to stream. Defaults to 30 s; below 0 not at all.
	WaitSync        time.Duration // how long to wait until its own copy of the row is there. Defaults to 0, not at all; below 0 without end.
	PrimaryConninfo string        // where the primary is, for registering a standby that is not running (needs Force)
}

func (o RegisterOptions) wait() time.Duration {
	switch {
	case o.WaitStart < 0:
		return 0
	case o.WaitStart == 0:
		return DefaultWaitStart
	default:
		return o.WaitStart
	}
}

// RegisterPrimary makes the metadata schema where it is missing, and registers
// the local node as the primary. It refuses where another registered primary
// lives, and, without Force, where the node is registered already.
func (c *Cluster) RegisterPrimary(ctx context.Context, o RegisterOptions) (Record, error) {
	rec, err := c.record(RolePrimary)
	if err != nil {
		return Record{}, err
	}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return Record{}, err
	}
	defer local.Close()
	status, err := local.Status(ctx)
	if err != nil {
		return Record{}, err
	}
	if status.InRecovery {
		return Record{}, hint(kind(ErrNotPrimary, "%s is a standby: only a primary can be registered as one", local.Name),
			"Register it with: repmgr standby register")
	}
	recs, err := local.Records(ctx)
	if err != nil && !errors.Is(err, ErrNotRegistered) { // no metadata yet: no rows
		return Record{}, err
	}
	if err := c.refuseSecondPrimary(ctx, recs); err != nil {
		return Record{}, err
	}
	if err := c.checkRow(ctx, recs, rec, status, o.Force); err != nil {
		return Record{}, err
	}
	if names := adopt.Daemons(c.surveyForeign(ctx, recs)); len(names) > 0 {
		c.log.Warn("a repmgrd of repmgr 5 runs on "+strings.Join(names, ", "), "hint", adopt.Hint)
	}
	if o.DryRun {
		c.log.Info("prerequisites met for registering the primary", "node", rec.Name)
		return rec, nil
	}
	created, err := local.CreateSchema(ctx, Schema)
	if err != nil {
		return Record{}, err
	}
	if created {
		c.log.Log(ctx, LevelNotice, fmt.Sprintf("repmgr metadata schema created in database %q", local.Conn.Config().Database))
		c.emit(ctx, local, Event{NodeID: rec.ID, Node: rec.Name, Type: EventClusterCreated, Success: true})
	}
	if err := local.Save(ctx, rec, c.cfg.ClusterName, o.Force); err != nil {
		return Record{}, err
	}
	c.emit(ctx, local, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventPrimaryRegister, Success: true,
		Details: fmt.Sprintf("%s registered as primary", rec),
	})
	return rec, nil
}

// AdoptOptions are the choices of [Cluster.Adopt].
type AdoptOptions struct {
	Force  bool // also where a node does not answer, so that a daemon of repmgr 5 may run there
	DryRun bool // check and plan, change nothing
}

// AdoptResult is the result of [Cluster.Adopt].
type AdoptResult struct {
	Plan   plan.Plan `json:"plan"` // no steps: there is nothing to adopt
	DryRun bool      `json:"dry_run,omitempty"`
}

// Adopt takes over the tables of a cluster of repmgr 5, without a restart of PostgreSQL. It is called on the node of the
// primary, while no daemon of repmgr 5 runs; ours are started afterwards. [ErrRefused] names all that stands in the way.
func (c *Cluster) Adopt(ctx context.Context, o AdoptOptions) (AdoptResult, error) {
	res := AdoptResult{DryRun: o.DryRun}
	f := adopt.Facts{Self: Record{ID: c.cfg.NodeID, Name: c.cfg.NodeName}, Automatic: c.cfg.Failover == FailoverAutomatic, Patience: time.Duration(c.cfg.ReconnectAttempts) * c.cfg.ReconnectInterval}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	recs, err := local.Records(ctx)
	if err == nil {
		f.Server, err = adopt.Read(ctx, local)
	}
	if err != nil {
		return res, err
	}
	f.Nodes = c.surveyForeign(ctx, recs)
	res.Plan = adopt.Plan(f)
	if left := res.Plan.Standing(o.Force); len(left) > 0 {
		return res, switchover.Refused("adoption", left)
	}
	if !o.DryRun && len(res.Plan.Steps) > 0 {
		if _, err = local.CreateSchema(ctx, Schema); err == nil {
			c.emit(ctx, local, Event{NodeID: f.Self.ID, Node: f.Self.Name, Type: EventClusterCreated, Success: true, Details: "the tables of repmgr 5 were adopted"})
		}
	}
	return res, err
}

// surveyForeign looks at all nodes, and for daemons of repmgr 5 there.
func (c *Cluster) surveyForeign(ctx context.Context, recs []Record) (nodes []adopt.Node) {
	for _, p := range c.survey(ctx, recs) {
		nodes = append(nodes, adopt.Node{Look: p.Look, Daemon: p.foreign})
	}
	return nodes
}

// refuseSecondPrimary returns an error where a registered node other than this one runs as a
// primary. It asks all nodes, whatever their rows say, because the local copy of the rows may
// be old.
func (c *Cluster) refuseSecondPrimary(ctx context.Context, recs []Record) error {
	for _, p := range primaries(c.survey(ctx, registry.OthersThan(recs, c.cfg.NodeID))) {
		return hint(kind(ErrPrimaryExists, "%s runs as primary, on timeline %d", p.Record, p.Status.Timeline),
			"A cluster has one primary. If this server was the primary before that one was promoted, stop it now, and clone it anew as a standby: repmgr standby clone --force")
	}
	return nil
}

// checkRow checks that the row may be written: against the other rows, and then against the
// server that the existing row leads to. self is the state of the local server.
func (c *Cluster) checkRow(ctx context.Context, recs []Record, rec Record, self registry.NodeStatus, force bool) error {
	if err := registry.CheckTaken(recs, rec, force); err != nil {
		return err
	}
	return c.checkImpostor(ctx, recs, rec, self)
}

// checkImpostor keeps --force from taking the row of another server that runs. self is the
// state of the local server; without it there is nothing to compare.
func (c *Cluster) checkImpostor(ctx context.Context, recs []Record, rec Record, self registry.NodeStatus) error {
	old, ok := registry.ByID(recs, rec.ID)
	if !ok || self.VersionNum == 0 {
		return nil
	}
	p := c.look(ctx, old)
	if p.Err != nil || p.Status.StartedAt.Equal(self.StartedAt) && p.Status.Settings.Port == self.Settings.Port {
		return nil
	}
	return hint(kind(ErrRegistered, "node ID %d belongs to another running server: %q at %s", old.ID, old.Name, postgres.Address(old.Conninfo)),
		"Choose another node_id in %s.", cmp.Or(c.cfg.File, "the configuration"))
}

// RegisterStandby registers the local node as a standby, on the primary. The
// local server must be a running standby that streams from a registered node,
// unless Force is set.
func (c *Cluster) RegisterStandby(ctx context.Context, o RegisterOptions) (Record, error) {
	if o.UpstreamID == 0 {
		o.UpstreamID = c.cfg.UpstreamNodeID
	}
	rec, err := c.record(RoleStandby)
	if err != nil {
		return Record{}, err
	}
	local, err := c.waitLocal(ctx, o)
	switch {
	case err == nil:
		defer local.Close()
	case !o.Force || o.PrimaryConninfo == "":
		return Record{}, err
	}
	var primary *registry.Server
	if o.PrimaryConninfo != "" {
		primary, err = registry.Connect(ctx, "", o.PrimaryConninfo)
	} else {
		primary, err = c.connectPrimary(ctx, local)
	}
	if err != nil {
		return Record{}, err
	}
	defer primary.Close()

	var status registry.NodeStatus
	if local != nil {
		if status, err = c.checkStandby(ctx, local, primary); err != nil {
			return Record{}, err
		}
	}
	recs, err := primary.Records(ctx)
	if err != nil {
		return Record{}, err
	}
	if err := c.checkRow(ctx, recs, rec, status, o.Force); err != nil {
		return Record{}, err
	}
	upstream, err := c.upstreamOf(ctx, recs, rec, status, o)
	if err != nil {
		return Record{}, err
	}
	rec.UpstreamID, rec.UpstreamName = upstream.ID, upstream.Name
	if o.DryRun {
		c.log.Info("prerequisites met for registering the standby", "node", rec.Name, "upstream", upstream.Name)
		return rec, nil
	}
	if err := primary.Save(ctx, rec, c.cfg.ClusterName, o.Force); err != nil {
		return Record{}, err
	}
	if err := c.takeSlot(ctx, local, rec, status, upstream); err != nil {
		return rec, err
	}
	of, _ := registry.Primary(recs)
	c.emit(ctx, primary, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventStandbyRegister, Success: true,
		Details: fmt.Sprintf("%s registered as standby of %s", rec, upstream), PeerID: of.ID, Peer: of.Name, PeerConninfo: of.Conninfo,
	})
	if o.WaitSync != 0 && local != nil {
		return rec, c.waitSync(ctx, local, primary, rec, o.WaitSync)
	}
	return rec, nil
}

// waitLocal connects to the local server, and waits until it accepts connections.
func (c *Cluster) waitLocal(ctx context.Context, o RegisterOptions) (*registry.Server, error) {
	patience := o.wait()
	if o.Force {
		patience = 0
	}
	deadline, told := time.Now().Add(patience), false
	for {
		local, err := c.connectLocal(ctx)
		var ce *postgres.ConnectError
		if err == nil || !errors.As(err, &ce) || time.Now().After(deadline) {
			return local, err
		}
		switch ce.Reach {
		case postgres.ReachRejected, postgres.ReachNoHost, postgres.ReachNotPostgres:
			return nil, err // waiting helps against none of these
		}
		if !told {
			told = true
			c.log.Info(fmt.Sprintf("waiting up to %s for the local server", patience), "detail", err.Error())
		}
		if err := wait.Pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// checkStandby checks that the local server belongs to the cluster of the primary and can be
// its standby.
func (c *Cluster) checkStandby(ctx context.Context, local, primary *registry.Server) (registry.NodeStatus, error) {
	s, err := local.Status(ctx)
	if err != nil {
		return s, err
	}
	p, err := primary.Status(ctx)
	switch {
	case err != nil:
		return s, err
	case !s.InRecovery:
		return s, hint(kind(ErrNotStandby, "%s is a primary", local.Name), "Register it with repmgr primary register, or make it a standby with repmgr standby clone.")
	case p.InRecovery:
		return s, kind(ErrNotPrimary, "%s is not a primary", primary.Name)
	case s.SystemIdentifier != p.SystemIdentifier:
		return s, hint(kind(ErrSystemIdentifier, "%s has system identifier %s, the primary has %s", local.Name, s.SystemIdentifier, p.SystemIdentifier),
			"They are different clusters. Make the standby with repmgr standby clone.")
	case s.VersionNum/10000 != p.VersionNum/10000:
		return s, hint(kind(ErrRefused, "%s runs PostgreSQL %s, the primary %s: the major versions must be equal", local.Name, s.Version, p.Version),
			"Install the primary's version here, and make the standby with repmgr standby clone.")
	default:
		return s, nil
	}
}

// upstreamOf finds the node that sends WAL to rec. An upstream knows a standby only by its
// application_name, so a standby that streams under another name gets its own name first.
func (c *Cluster) upstreamOf(ctx context.Context, recs []Record, rec Record, status registry.NodeStatus, o RegisterOptions) (Record, error) {
	primary, ok := registry.Primary(registry.OthersThan(recs, rec.ID)) // the row of this node may say that it is the primary, as it was
	if !ok {
		return Record{}, hint(kind(ErrNotRegistered, "no primary is registered"), "Run repmgr primary register on the primary first.")
	}
	chosen := primary
	if o.UpstreamID != 0 {
		if chosen, ok = registry.ByID(recs, o.UpstreamID); !ok {
			return Record{}, registry.Unknown(recs, o.UpstreamID, "")
		}
		if !chosen.Active && !o.Force {
			return Record{}, hint(kind(ErrRefused, "%s is registered as inactive", chosen), "Start it, or use --force.")
		}
	}
	if err := registry.CheckLoop(recs, rec.ID, chosen); err != nil {
		return Record{}, err
	}
	if o.Force && (o.UpstreamID != 0 || status.Receiver == nil) {
		if status.Receiver == nil && status.VersionNum != 0 {
			c.log.Warn(fmt.Sprintf("%s does not stream from %s, nor from anybody", rec, chosen), "hint", "Run on it: repmgr standby follow")
		}
		return chosen, nil
	}
	renamed, err := c.takeName(ctx, rec, status, o.DryRun)
	if err != nil {
		return Record{}, err
	}
	if renamed && o.DryRun {
		return chosen, nil // no upstream knows it by its name yet
	}
	upstream, err := c.waitUpstream(ctx, recs, rec, o)
	switch {
	case err != nil && o.Force:
		return chosen, nil
	case err != nil:
		return Record{}, err
	case o.UpstreamID != 0 && upstream.ID != o.UpstreamID:
		return Record{}, hint(kind(ErrRefused, "%s streams from %s, not from %s", rec, upstream, chosen),
			"Leave --upstream-node-id out, or re-point the standby first: repmgr standby follow --upstream-node-id=%d", o.UpstreamID)
	default:
		return upstream, nil
	}
}

// waitUpstream asks the nodes until one of them streams to rec. A replication connection that
// was just made, or made again, needs a moment.
func (c *Cluster) waitUpstream(ctx context.Context, recs []Record, rec Record, o RegisterOptions) (Record, error) {
	patience := o.wait()
	deadline, told := time.Now().Add(patience), false
	for {
		for _, p := range c.survey(ctx, recs) {
			if p.Err == nil && registry.Attachment(p.Status, rec.Name) != "" {
				return p.Record, nil
			}
		}
		if time.Now().After(deadline) {
			return Record{}, hint(kind(ErrNotAttached, "no registered node sends WAL to %s (application_name %q) after %s", rec, rec.Name, patience),
				"See the standby's log for why it does not stream. To register it all the same, use --force.")
		}
		if !told {
			told = true
			c.log.Info(fmt.Sprintf("waiting up to %s for %s to stream", patience, rec))
		}
		if err := wait.Pause(ctx, 50*time.Millisecond); err != nil {
			return Record{}, err
		}
	}
}

// takeName gives a standby that was cloned without a configuration its node
// name as application_name.
func (c *Cluster) takeName(ctx context.Context, rec Record, s registry.NodeStatus, dryRun bool) (renamed bool, err error) {
	if s.Settings.PrimaryConninfo == "" {
		return false, nil // this login may not read it, or the standby does not stream
	}
	params, err := ParseConninfo(s.Settings.PrimaryConninfo)
	if err != nil || params["application_name"] == rec.Name {
		return false, nil
	}
	c.log.Log(ctx, LevelNotice, "setting application_name in primary_conninfo", "node", rec.Name, "was", params["application_name"],
		"detail", "The primary knows its standbys by this name.")
	if dryRun {
		return true, nil
	}
	params["application_name"] = rec.Name
	local, err := c.connectLocal(ctx)
	if err != nil {
		return false, err
	}
	defer local.Close()
	return true, local.AlterSystem(ctx, map[string]string{"primary_conninfo": FormatConninfo(params)})
}

// takeSlot gives a standby that was cloned without a configuration the slot that
// its row names.
func (c *Cluster) takeSlot(ctx context.Context, local *registry.Server, rec Record, s registry.NodeStatus, upstream Record) error {
	if rec.SlotName == "" || local == nil || s.Settings.PrimarySlotName == rec.SlotName {
		return nil
	}
	up, err := c.connectTo(ctx, upstream)
	if err != nil {
		return err
	}
	defer up.Close()
	if _, err := up.CreateSlot(ctx, rec.SlotName, rec.Name); err != nil {
		return err
	}
	c.log.Log(ctx, LevelNotice, "setting primary_slot_name", "node", rec.Name, "slot", rec.SlotName)
	return local.AlterSystem(ctx, map[string]string{"primary_slot_name": rec.SlotName})
}

// waitSync waits until the standby has received its own row.
func (c *Cluster) waitSync(ctx context.Context, local, primary *registry.Server, rec Record, patience time.Duration) error {
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, patience, kind(ErrTimeout, "the row of %s did not reach the standby within %s", rec, patience))
		defer cancel()
	}
	for {
		recs, err := local.Records(ctx)
		if have, ok := registry.ByID(recs, rec.ID); err == nil && ok && have == rec {
			c.emit(ctx, primary, Event{NodeID: rec.ID, Node: rec.Name, Type: EventStandbySynced, Success: true})
			return nil
		}
		if err := wait.Pause(ctx, 50*time.Millisecond); err != nil {
			return hint(err, "Replication may be slow or stopped: see repmgr cluster show, and the standby's log.")
		}
	}
}

// UnregisterOptions say which node leaves the metadata.
type UnregisterOptions struct {
	NodeID NodeID // defaults to: the primary, or for a standby the local node
	Name   string // used where NodeID is 0
	Force  bool   // also remove an active primary, or one that now runs as a standby
	DryRun bool
}

// UnregisterPrimary removes the row of a node that is not the primary any more. It stops
// nothing. It refuses while other nodes name it as their upstream.
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
			err = registeredAs(rec, role)
		}
		if err != nil || o.DryRun {
			return err
		}
		if err := primary.Remove(ctx, rec.ID, ""); err != nil {
			return err
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
		return Record{}, registry.Unknown(recs, 0, o.Name)
	case id == 0 && role == RolePrimary:
		if r, ok := registry.Primary(recs); ok {
			return r, nil
		}
		return Record{}, hint(kind(ErrNotRegistered, "no primary is registered"), "Name the node with --node-id. See: repmgr cluster show")
	case id == 0:
		id = c.cfg.NodeID
	}
	if r, ok := registry.ByID(recs, id); ok {
		return r, nil
	}
	return Record{}, registry.Unknown(recs, id, "")
}

// registeredAs is the error of a command that unregisters nodes of another role than rec has.
func registeredAs(rec Record, not Role) error {
	return hint(kind(ErrRefused, "%s is registered as %s, not as %s", rec, rec.Role, not), "Use: repmgr %s unregister --node-id=%d", rec.Role, rec.ID)
}

func (c *Cluster) checkUnregisterPrimary(ctx context.Context, recs []Record, rec Record, o UnregisterOptions) error {
	var downstream []string
	for _, r := range recs {
		if r.UpstreamID == rec.ID {
			downstream = append(downstream, r.String())
		}
	}
	p := c.look(ctx, rec)
	running := p.Err == nil
	switch {
	case rec.Role == RoleWitness:
		return registeredAs(rec, RolePrimary)
	case len(downstream) > 0:
		return hint(kind(ErrRefused, "%s is the upstream of %s", rec, strings.Join(downstream, ", ")),
			"Re-point them with repmgr standby follow, or unregister them first.")
	case running && p.Status.InRecovery && rec.Role != RolePrimary:
		return hint(kind(ErrRefused, "%s is a standby", rec), "Use: repmgr standby unregister --node-id=%d", rec.ID)
	case !running && rec.Role != RolePrimary:
		return registeredAs(rec, RolePrimary)
	case running && p.Status.InRecovery && !o.Force:
		return hint(kind(ErrRefused, "%s runs as a standby now", rec), "If it shall stay one, register it as such: repmgr standby register --force. To remove the row, use --force.")
	case running && !p.Status.InRecovery && !o.Force:
		return hint(kind(ErrRefused, "%s is the running primary", rec), "Use --force if the cluster is to be taken apart.")
	case rec.Active && !o.Force:
		return hint(kind(ErrRefused, "%s is still registered as active", rec), "If it is gone for good, use --force.")
	default:
		return nil
	}
}

// dropSlots removes the slot of an unregistered node from the primary and from its former
// upstream. An unused slot would keep WAL until the disk is full.
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
