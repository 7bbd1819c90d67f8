package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// FollowOptions are the choices of [Cluster.Follow].
type FollowOptions struct {
	UpstreamID NodeID // the registered node to stream from. Defaults to the primary.
	Target     string // conninfo of the server to stream from, instead of UpstreamID
	Wait       bool   // when there is no primary yet, look for one for primary_follow_timeout
	DryRun     bool

	slotOptional bool // stream without a slot where it can not be made
}

// FollowResult is the result of following.
type FollowResult struct {
	Node      Record        `json:"node"`
	Upstream  Record        `json:"upstream"`
	Streaming bool          `json:"streaming"`
	Timeline  wal.Timeline  `json:"timeline"` // of the upstream
	Elapsed   time.Duration `json:"elapsed_ns"`
	DryRun    bool          `json:"dry_run,omitempty"`

	wasPrimary  bool // the upstream was already the primary in this node's copy of the metadata
	wasUpstream bool // the node followed it before
}

// Follow re-points the local standby to another upstream, by SQL and without a
// restart, and waits until it streams from it. It refuses with
// [ErrTimelineDiverged] where the standby has WAL that the upstream never had,
// judged through every timeline that the upstream went through, and with
// [ErrWALGone] where the upstream has recycled what the standby needs next. An
// [ErrNotAttached] means that it was re-pointed but did not stream in time.
func (c *Cluster) Follow(ctx context.Context, o FollowOptions) (FollowResult, error) {
	res := FollowResult{DryRun: o.DryRun}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	recs, err := local.Records(ctx)
	if err != nil {
		return res, err
	}
	target, err := c.followTarget(ctx, recs, o)
	if err != nil {
		return res, err
	}
	if _, ok := registry.ByID(recs, c.cfg.NodeID); !ok {
		// The standby's own row may be the last thing that it received, or may not have arrived
		// yet.
		if recs, err = c.recordsOf(ctx, target); err != nil {
			return res, err
		}
	}
	self, ok := registry.ByID(recs, c.cfg.NodeID)
	if !ok {
		return res, hint(kind(ErrNotRegistered, "%s is not registered", c.self()), "Run repmgr standby register first.")
	}
	known := target.Role == RolePrimary
	again := known && self.UpstreamID == target.ID
	res, err = c.follow(ctx, local, self, target, recs, o)
	res.wasPrimary, res.wasUpstream = known, again
	return res, c.hintDaemonRejoins(ctx, local, target, err)
}

// hintDaemonRejoins adds to the error of a standby that can not follow that its daemon brings
// it back, where that is so.
func (c *Cluster) hintDaemonRejoins(ctx context.Context, local *registry.Server, target Record, err error) error {
	if !errors.Is(err, ErrTimelineDiverged) && !errors.Is(err, ErrWALGone) {
		return err
	}
	all, errAll := registry.ReadAnnouncements(ctx, local)
	up, errUp := c.connectTo(ctx, target)
	if errAll != nil || errUp != nil {
		return err
	}
	defer up.Close()
	rules, errRules := up.Rules(ctx)
	set, errSet := ballot.ReadSettings(ctx, local.Conn)
	paused, _ := registry.ParsePaused(set[registry.PausedSetting], c.cfg.NodeID)
	if m, ok := all[c.cfg.NodeID]; ok && !paused && errors.Join(errRules, errSet) == nil && len(rules) > 0 && int32(target.ID) == rules[0].Primary && daemonRejoins(m, c.cfg.Rejoin, err) {
		return hint(err, "The repmgrd of this node (PID %d, rejoin=%s) brings it back by itself, in a moment, and saves first what only this node has: see its log, and repmgr cluster event. If it says that it can not: %s", m.PID, c.cfg.Rejoin, Hint(err))
	}
	return err
}

// daemonRejoins reports whether the Monitor rejoins a standby that can not follow for this
// reason.
func daemonRejoins(m registry.Announcement, policy RejoinPolicy, err error) bool {
	return m.Mode == FailoverAutomatic && (policy == RejoinReclone || policy == RejoinRewind && errors.Is(err, ErrTimelineDiverged))
}

func (c *Cluster) recordsOf(ctx context.Context, r Record) ([]Record, error) {
	n, err := c.connectTo(ctx, r)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return n.Records(ctx)
}

// followTarget finds the registered node to follow.
func (c *Cluster) followTarget(ctx context.Context, recs []Record, o FollowOptions) (Record, error) {
	switch {
	case o.Target != "":
		return c.recordOfServer(ctx, o.Target)
	case o.UpstreamID != 0:
		if r, ok := registry.ByID(recs, o.UpstreamID); ok {
			return r, nil
		}
		return Record{}, registry.Unknown(recs, o.UpstreamID, "")
	}
	limit := c.cfg.PrimaryFollowTimeout
	deadline := time.Now().Add(limit)
	for {
		primary, err := c.findPrimary(ctx, recs)
		if err == nil || !o.Wait || !errors.Is(err, ErrNoPrimary) || time.Now().After(deadline) {
			return primary, err
		}
		if err := wait.Pause(ctx, postgres.NudgeInterval); err != nil {
			return Record{}, err
		}
	}
}

// recordOfServer finds the registered node of a server: the one with the same address in the
// server's own copy of the metadata.
func (c *Cluster) recordOfServer(ctx context.Context, conninfo string) (Record, error) {
	n, err := registry.Connect(ctx, "", conninfo)
	if err != nil {
		return Record{}, err
	}
	defer n.Close()
	want, err := n.Status(ctx)
	if err != nil {
		return Record{}, err
	}
	recs, err := n.Records(ctx)
	if err != nil {
		return Record{}, err
	}
	for _, p := range c.survey(ctx, recs) {
		if p.Err == nil && p.Status.StartedAt.Equal(want.StartedAt) && p.Status.Settings.DataDirectory == want.Settings.DataDirectory {
			return p.Record, nil
		}
	}
	return Record{}, hint(kind(ErrNotRegistered, "%s is not a registered node", n.Name), "See repmgr cluster show, and use --upstream-node-id.")
}

// follow makes the standby node, to which n is a connection, follow target.
func (c *Cluster) follow(ctx context.Context, n *registry.Server, node, target Record, recs []Record, o FollowOptions) (FollowResult, error) {
	start := time.Now()
	res := FollowResult{Node: node, Upstream: target, DryRun: o.DryRun}
	status, err := n.Status(ctx)
	switch {
	case err != nil:
		return res, err
	case node.Role == registry.RoleWitness:
		return res, hint(kind(ErrNotStandby, "%s is a witness", node), "A witness streams from nobody: there is nothing to do.")
	case !status.InRecovery:
		return res, hint(kind(ErrNotStandby, "%s runs as a primary", node), "Only a standby can follow. If %s is to be one of %s: %s", node.Name, target.Name, follow.RejoinCommand(node, target, "--force-rewind"))
	case target.ID == node.ID:
		return res, hint(kind(ErrConfig, "%s can not follow itself", node), "Leave --upstream-node-id out, and it streams from the primary.")
	}
	up, err := c.connectTo(ctx, target)
	if err != nil {
		return res, err
	}
	defer up.Close()
	move := c.move(n, up, node, target)
	if res.Timeline, err = move.CheckAncestry(ctx, status); err != nil {
		return res, err
	}
	primary, err := c.connectPrimary(ctx, up)
	if err != nil {
		return res, err
	}
	if primary != up {
		defer primary.Close()
	}
	if err := move.CheckWAL(ctx, status, primary); err != nil {
		return res, err
	}
	now, err := primary.Records(ctx)
	if err != nil {
		return res, err
	}
	if r, ok := registry.ByID(now, target.ID); ok {
		move, res.Upstream = c.move(n, up, node, r), r // the row in the earlier copy may be old
	}
	if err := registry.CheckLoop(now, node.ID, move.Upstream); err != nil {
		return res, err
	}
	if o.DryRun {
		c.log.Info("prerequisites met for following", "node", node.Name, "upstream", move.Upstream.Name)
		return res, nil
	}
	if o.slotOptional {
		move.Node.SlotName = c.slotOrNone(ctx, up, node)
	}
	if err := move.Repoint(ctx); err != nil {
		return res, err
	}
	res.Node.Role, res.Node.UpstreamID, res.Node.UpstreamName, res.Node.Active = RoleStandby, target.ID, move.Upstream.Name, true
	err = c.finishFollow(ctx, move, primary, &res)
	res.Elapsed = time.Since(start)
	if err == nil && node.UpstreamID != target.ID {
		c.dropFormerSlot(ctx, recs, node)
	}
	return res, err
}

// finishFollow records the new upstream and waits until it sends to the standby.
func (c *Cluster) finishFollow(ctx context.Context, move follow.Move, primary *registry.Server, res *FollowResult) error {
	node, target := res.Node, res.Upstream
	errRow := primary.RecordUpstream(ctx, node.ID, target.ID)
	err := c.awaitStreaming(ctx, move, res.Timeline, c.cfg.StandbyFollowTimeout, func() error { // it may have received more until it was re-pointed
		status, err := move.Standby.Status(ctx)
		if err == nil {
			_, err = move.CheckAncestry(ctx, status)
		}
		return err
	})
	if err == nil {
		res.Streaming = true
	}
	if errArchive := ballot.EnableArchive(ctx, move.Standby.Conn); errArchive != nil && postgres.SQLState(errArchive) != postgres.CodeInsufficientPrivilege {
		c.log.Warn("restore_command is not given back", "node", node.Name, "err", errArchive)
	}
	e := Event{
		NodeID: node.ID, Node: node.Name, Type: EventStandbyFollow, Success: err == nil,
		Details: fmt.Sprintf("%s attached to upstream %s", node, target), PeerID: target.ID, Peer: target.Name, PeerConninfo: target.Conninfo,
	}
	if err != nil {
		e.Details = err.Error()
	}
	c.emit(ctx, primary, e)
	if err == nil && errRow != nil {
		return hint(kind(ErrMetadata, "%s follows %s, but repmgr.nodes is not updated: %w", node, target, errRow), "Run on it: repmgr standby register --force")
	}
	return err
}

// awaitStreaming waits, for at most limit, until the standby streams from its new upstream.
func (c *Cluster) awaitStreaming(ctx context.Context, move follow.Move, timeline wal.Timeline, limit time.Duration, ancestry func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hint(kind(ErrNotAttached, "%s was re-pointed to %s, but did not stream from it within standby_follow_timeout (%s)", move.Node, move.Upstream, limit),
		"Its log says why: often pg_hba.conf or the password of the replication user on %s. Look again with repmgr cluster show.", move.Upstream.Name))
	defer cancel()
	return move.AwaitStreaming(ctx, timeline, ancestry)
}

// move is the change of a standby, to which n is a connection, to target, to which up is one.
func (c *Cluster) move(n, up *registry.Server, node, target Record) follow.Move {
	return follow.Move{Node: node, Upstream: target, Standby: n, Source: up, Login: c.login(), Conninfo: c.dialInfo(target), Log: c.log}
}

// login is how the servers log in to each other for replication. It contains a password to
// write only where the configuration asks for that.
func (c *Cluster) login() follow.Login {
	l := follow.Login{Passfile: c.cfg.Passfile, WritePassword: c.cfg.UsePrimaryConninfoPassword}
	if l.WritePassword {
		l.Password = os.Getenv("PGPASSWORD")
		if ours, err := ParseConninfo(c.cfg.Conninfo); err == nil && l.Password == "" {
			l.Password = ours["password"]
		}
	}
	return l
}

// recovery are the settings that only a new standby gets. minApplyDelay is the caller's choice;
// empty: that of the configuration.
func (c *Cluster) recovery(minApplyDelay string) follow.Recovery {
	if d := c.cfg.RecoveryMinApplyDelay; minApplyDelay == "" && d > 0 {
		minApplyDelay = fmt.Sprintf("%dms", d.Milliseconds())
	}
	return follow.Recovery{RestoreCommand: c.cfg.RestoreCommand, ArchiveCleanupCommand: c.cfg.ArchiveCleanupCommand, MinApplyDelay: minApplyDelay}
}

// dropFormerSlot removes the standby's slot from its former upstream.
func (c *Cluster) dropFormerSlot(ctx context.Context, recs []Record, node Record) {
	former, ok := registry.ByID(recs, node.UpstreamID)
	if !ok || node.SlotName == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	old, err := c.connectTo(ctx, former)
	if err != nil {
		c.log.Info("the former upstream is not reachable: its slot stays", "node", former.Name, "slot", node.SlotName)
		return
	}
	defer old.Close()
	c.dropIdleSlot(ctx, old, node)
}

// slotOrNone makes the slot of a standby on its upstream, and returns its name. Where that
// fails it returns an empty name: a standby that streams without a slot is better than none.
func (c *Cluster) slotOrNone(ctx context.Context, up *registry.Server, standby Record) string {
	if standby.SlotName == "" {
		return ""
	}
	if _, err := up.CreateSlot(ctx, standby.SlotName, standby.Name); err != nil {
		c.warnNoSlot(up, standby, err)
		return ""
	}
	return standby.SlotName
}

func (c *Cluster) warnNoSlot(up *registry.Server, standby Record, err error) {
	c.log.Warn("the standby follows without a replication slot", "node", standby.Name, "upstream", up.Name, "err", err, "hint", cmp.Or(Hint(err), reconcile.SlotHint))
}

// dropIdleSlot removes a node's slot where nothing uses it, and warns where it can not.
func (c *Cluster) dropIdleSlot(ctx context.Context, on *registry.Server, rec Record) {
	dropped, err := on.DropIdleSlot(ctx, rec.SlotName)
	switch {
	case err != nil:
		c.log.Warn(fmt.Sprintf("replication slot %s not dropped on %s: %v", rec.SlotName, on.Name, err),
			"hint", fmt.Sprintf("It keeps WAL. When nobody uses it any more: SELECT pg_drop_replication_slot('%s');", rec.SlotName))
	case dropped:
		c.log.Log(ctx, LevelNotice, fmt.Sprintf("replication slot %s dropped on %s", rec.SlotName, on.Name))
	}
}
