package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/wait"
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
	if names := foreigners(c.survey(ctx, recs)); len(names) > 0 {
		c.log.Warn("a repmgrd of repmgr 5 runs on "+strings.Join(names, ", "), "hint", asideHint)
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
	if err := c.saveRecord(ctx, local, rec, o.Force); err != nil {
		return Record{}, err
	}
	c.emit(ctx, local, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventPrimaryRegister, Success: true,
		Details: fmt.Sprintf("%s registered as primary", rec),
	})
	return rec, nil
}

// refuseSecondPrimary asks all registered nodes whether one of them is a primary.
// Whatever they are registered as: our copy of the rows may be an old one.
func (c *Cluster) refuseSecondPrimary(ctx context.Context, recs []Record) error {
	for _, p := range primaries(c.survey(ctx, registry.OthersThan(recs, c.cfg.NodeID))) {
		return hint(kind(ErrPrimaryExists, "%s runs as primary, on timeline %d", p.record, p.status.Timeline),
			"A cluster has one primary. If this server was the primary before that one was promoted, stop it now, and clone it anew as a standby: repmgr standby clone --force")
	}
	return nil
}

// saveRecord writes the row on the primary. Without force an existing row stays as it is.
func (c *Cluster) saveRecord(ctx context.Context, primary *registry.Server, rec Record, force bool) error {
	err := pgx.BeginFunc(ctx, primary.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE repmgr.nodes IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if err := c.checkClusterName(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, registry.RecordsSQL)
		if err != nil {
			return err
		}
		recs, err := pgx.CollectRows(rows, pgx.RowToStructByName[Record])
		if err != nil {
			return err
		}
		if err := checkTaken(recs, rec, force); err != nil {
			return err
		}
		if rec.Role == RolePrimary {
			if _, err := tx.Exec(ctx, `UPDATE repmgr.nodes SET active = false WHERE type = 'primary' AND active AND node_id <> $1`, int32(rec.ID)); err != nil {
				return err
			}
		}
		return upsertRecord(ctx, tx, rec)
	})
	if err != nil && postgres.SQLState(err) != "" {
		return primary.QueryError("write repmgr.nodes", err)
	}
	return err
}

// checkRow asks whether the row is ours to write, first of what is registered,
// then of the server that the row leads to. self is the state of ours.
func (c *Cluster) checkRow(ctx context.Context, recs []Record, rec Record, self NodeStatus, force bool) error {
	if err := checkTaken(recs, rec, force); err != nil {
		return err
	}
	return c.checkImpostor(ctx, recs, rec, self)
}

// checkTaken keeps a node from taking the id or the name of another one.
func checkTaken(recs []Record, rec Record, force bool) error {
	if old, ok := registry.ByID(recs, rec.ID); ok && !force {
		return hint(kind(ErrRegistered, "node ID %d is registered already, as %q (%s)", old.ID, old.Name, old.Role),
			"To update its row, use --force. If that is another node, choose another node_id.")
	}
	if other, ok := registry.ByName(recs, rec.Name); ok && other.ID != rec.ID && other.Active {
		return hint(kind(ErrRegistered, "the name %q is taken by node ID %d", rec.Name, other.ID), "Set another node_name in repmgr.conf.")
	}
	for _, other := range recs {
		if other.ID != rec.ID && other.Name != rec.Name && strings.EqualFold(other.Name, rec.Name) {
			return hint(kind(ErrRegistered, "the name %q differs only in case from %q of node ID %d, which PostgreSQL does not see in synchronous_standby_names", rec.Name, other.Name, other.ID),
				"Set another node_name in repmgr.conf.")
		}
	}
	return nil
}

// checkImpostor keeps --force from taking the row of another server that runs.
// self is the state of ours; without one there is nothing to compare.
func (c *Cluster) checkImpostor(ctx context.Context, recs []Record, rec Record, self NodeStatus) error {
	old, ok := registry.ByID(recs, rec.ID)
	if !ok || self.VersionNum == 0 {
		return nil
	}
	p := c.look(ctx, old)
	if p.err != nil || p.status.StartedAt.Equal(self.StartedAt) && p.status.Settings.Port == self.Settings.Port {
		return nil
	}
	return hint(kind(ErrRegistered, "node ID %d belongs to another running server: %q at %s", old.ID, old.Name, postgres.Address(old.Conninfo)),
		"Choose another node_id in %s.", cmp.Or(c.cfg.File, "the configuration"))
}

func upsertRecord(ctx context.Context, tx pgx.Tx, r Record) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO repmgr.nodes AS n (node_id, upstream_node_id, active, node_name, type, location, priority, conninfo, repluser, slot_name, config_file)
		VALUES ($1, nullif($2, 0), $3, $4, $5, $6, $7, $8, $9, nullif($10, ''), $11)
		ON CONFLICT (node_id) DO UPDATE SET (upstream_node_id, active, node_name, type, location, priority, conninfo, repluser, slot_name, config_file)
		 = (EXCLUDED.upstream_node_id, EXCLUDED.active, EXCLUDED.node_name, EXCLUDED.type, EXCLUDED.location, EXCLUDED.priority,
		    EXCLUDED.conninfo, EXCLUDED.repluser, EXCLUDED.slot_name, EXCLUDED.config_file)`,
		int32(r.ID), int32(r.UpstreamID), r.Active, r.Name, string(r.Role), r.Location, r.Priority, r.Conninfo, r.ReplicationUser, r.SlotName, r.ConfigFile)
	return err
}

// checkClusterName keeps a node with the configuration of another cluster out.
// The first name that is given stays.
func (c *Cluster) checkClusterName(ctx context.Context, tx pgx.Tx) error {
	if c.cfg.ClusterName == "" {
		return nil
	}
	var name string
	err := tx.QueryRow(ctx, `UPDATE repmgr.metadata SET cluster_name = CASE cluster_name WHEN '' THEN $1 ELSE cluster_name END RETURNING cluster_name`,
		c.cfg.ClusterName).Scan(&name)
	if err == nil && name != c.cfg.ClusterName {
		return hint(kind(ErrConfig, "cluster %q: this is the metadata of cluster %q", c.cfg.ClusterName, name),
			"Correct cluster, or conninfo, in %s.", c.cfg.File)
	}
	return err
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

	var status NodeStatus
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
	if err := c.saveRecord(ctx, primary, rec, o.Force); err != nil {
		return Record{}, err
	}
	if err := c.takeSlot(ctx, local, rec, status, upstream); err != nil {
		return rec, err
	}
	of, _ := primaryRecord(recs)
	c.emit(ctx, primary, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventStandbyRegister, Success: true,
		Details: fmt.Sprintf("%s registered as standby of %s", rec, upstream), PeerID: of.ID, Peer: of.Name, PeerConninfo: of.Conninfo,
	})
	if o.WaitSync != 0 && local != nil {
		return rec, c.waitSync(ctx, local, primary, rec, o.WaitSync)
	}
	return rec, nil
}

// waitLocal connects to the local server, and waits until it lets us.
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
			return nil, err // waiting mends none of these
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

// checkStandby holds the local server against the primary that it shall belong to.
func (c *Cluster) checkStandby(ctx context.Context, local, primary *registry.Server) (NodeStatus, error) {
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
		return s, kind(ErrRefused, "%s runs PostgreSQL %s, the primary %s: the major versions must be equal", local.Name, s.Version, p.Version)
	default:
		return s, nil
	}
}

func primaryRecord(recs []Record) (Record, bool) {
	for _, r := range recs {
		if r.Role == RolePrimary && r.Active {
			return r, true
		}
	}
	return Record{}, false
}

// upstreamOf finds the node that sends WAL to rec. A standby is known to its
// upstream only by application_name, so a standby that streams under another
// name is given its own first.
func (c *Cluster) upstreamOf(ctx context.Context, recs []Record, rec Record, status NodeStatus, o RegisterOptions) (Record, error) {
	primary, ok := primaryRecord(recs)
	if !ok {
		return Record{}, hint(kind(ErrNotRegistered, "no primary is registered"), "Run repmgr primary register on the primary first.")
	}
	chosen := primary
	if o.UpstreamID != 0 {
		if chosen, ok = registry.ByID(recs, o.UpstreamID); !ok {
			return Record{}, unknownNode(recs, o.UpstreamID, "")
		}
		if !chosen.Active && !o.Force {
			return Record{}, hint(kind(ErrRefused, "%s is registered as inactive", chosen), "Start it, or use --force.")
		}
	}
	if err := checkLoop(recs, rec.ID, chosen); err != nil {
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
		return chosen, nil // nobody knows it by its name yet
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

// checkLoop follows the registered upstreams from a node's upstream to the top.
// If they lead back to the node, nobody in that circle would ever receive anything.
func checkLoop(recs []Record, node NodeID, upstream Record) error {
	chain := upstream.Name
	for steps, at := 0, upstream; steps <= len(recs); steps++ {
		if at.ID == node {
			return hint(kind(ErrRefused, "that would be a circle of upstreams: %s", chain),
				"Follow the primary, or a standby that does not get its WAL from this node.")
		}
		next, ok := registry.ByID(recs, at.UpstreamID)
		if !ok {
			return nil
		}
		chain += ", which follows " + next.Name
		at = next
	}
	return nil
}

// waitUpstream looks at the nodes until one of them streams to rec. A
// replication connection that has just been made, or made anew, needs a moment.
func (c *Cluster) waitUpstream(ctx context.Context, recs []Record, rec Record, o RegisterOptions) (Record, error) {
	patience := o.wait()
	deadline, told := time.Now().Add(patience), false
	for {
		for _, p := range c.survey(ctx, recs) {
			if p.err == nil && attachment(p.status, rec.Name) != "" {
				return p.record, nil
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

// attachment is the state in which a standby of that name is attached to the
// server: streaming, catchup, or empty when it is not.
func attachment(s NodeStatus, name string) string {
	best := ""
	for _, w := range s.Senders {
		switch {
		case w.ApplicationName != name || w.State == "backup":
		case w.State == "streaming":
			return w.State
		default:
			best = w.State
		}
	}
	return best
}

// takeName gives a standby that was cloned without a configuration its node
// name as application_name.
func (c *Cluster) takeName(ctx context.Context, rec Record, s NodeStatus, dryRun bool) (renamed bool, err error) {
	if s.Settings.PrimaryConninfo == "" {
		return false, nil // not ours to read, or it streams from nowhere
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
func (c *Cluster) takeSlot(ctx context.Context, local *registry.Server, rec Record, s NodeStatus, upstream Record) error {
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
