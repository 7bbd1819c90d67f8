package repmgr

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/wal"
)

// nudgeInterval is how often a waiting server is told to read its settings
// again. A promotion or a new upstream that is asked for in the very moment
// when the old one dies can leave the startup process asleep for seconds; a
// reload wakes it (measured: docs/compat.md, "Waits that a reload ends").
const nudgeInterval = 100 * time.Millisecond

// pollInterval is how often a server is asked whether it is there yet. A
// promotion takes about 30 ms: asking costs less than missing it.
const pollInterval = 5 * time.Millisecond

// PromoteOptions are the choices of [Cluster.Promote].
type PromoteOptions struct {
	DryRun         bool
	Force          bool // promote although a standby still receives from a primary that we can not reach
	SiblingsFollow bool // re-point the other standbys of the former primary at once
}

// PromoteResult is what a promotion did.
type PromoteResult struct {
	Node          Record        `json:"node"`
	FormerPrimary *Record       `json:"former_primary"` // nil: none was registered
	Timeline      wal.Timeline  `json:"timeline"`
	LSN           wal.LSN       `json:"lsn"`
	Elapsed       time.Duration `json:"elapsed_ns"`
	Siblings      []Record      `json:"siblings"`  // standbys of the former primary
	Following     []Record      `json:"following"` // those of them that stream from the new one (with SiblingsFollow)
	DryRun        bool          `json:"dry_run,omitempty"`
}

// Promote makes the local standby the primary and records it. It refuses with
// [ErrPrimaryExists] while any registered node runs as a primary, and without
// Force with [ErrRefused] while any standby still receives WAL from one.
//
// It is an operator's act: it asks every node that it can reach, but it holds
// no election, and it can not stop a primary that nobody here can see.
// An [ErrMetadata] means that the server is promoted and its row is not written.
func (c *Cluster) Promote(ctx context.Context, o PromoteOptions) (PromoteResult, error) {
	res := PromoteResult{DryRun: o.DryRun, Siblings: []Record{}, Following: []Record{}}
	start := time.Now()
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	recs, err := c.checkPromote(ctx, local, o, &res)
	if err != nil || o.DryRun {
		return res, err
	}
	status, err := c.promoteServer(ctx, local)
	if err != nil {
		c.emit(ctx, nil, Event{NodeID: res.Node.ID, Node: res.Node.Name, Type: EventStandbyPromote, Details: err.Error()})
		return res, err
	}
	res.Timeline, res.LSN = status.Timeline, status.CurrentLSN
	res.Elapsed = time.Since(start)
	if err := c.recordPromotion(ctx, local, &res); err != nil {
		return res, err
	}
	c.siblings(ctx, recs, o, &res)
	return res, nil
}

// checkPromote asks everybody before anything changes.
func (c *Cluster) checkPromote(ctx context.Context, local *Node, o PromoteOptions, res *PromoteResult) ([]Record, error) {
	status, err := local.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !status.InRecovery {
		return nil, hint(kind(ErrNotStandby, "%s is a primary already", local.name), "Nothing to do. See: repmgr cluster show")
	}
	recs, err := local.records(ctx)
	if err != nil {
		return nil, err
	}
	self, ok := recordByID(recs, c.cfg.NodeID)
	switch {
	case !ok && !o.Force:
		return nil, hint(kind(ErrNotRegistered, "%s is not registered", c.self()),
			"Run repmgr standby register first. If its row is only not replayed yet, use --force.")
	case !ok:
		if self, err = c.record(RoleStandby, 0); err != nil {
			return nil, err
		}
	}
	res.Node = self
	if err := local.mayPromote(ctx, c.cfg.ServicePromoteCommand); err != nil {
		return nil, err
	}
	others := make([]Record, 0, len(recs))
	for _, r := range recs {
		if r.ID != self.ID {
			others = append(others, r)
		}
	}
	probes := c.survey(ctx, others)
	for _, p := range primaries(probes) {
		return nil, hint(kind(ErrPrimaryExists, "this replication cluster already has an active primary server: %s", p.record),
			"To move the primary here, stop that server first, and make sure that it stays down.")
	}
	if !o.Force {
		if err := errors.Join(refuseLivingPrimary(append(probes, probe{record: self, status: status})), refuseBehind(self, status, probes)); err != nil {
			return nil, err
		}
	}
	for _, p := range probes {
		r := p.record
		if r.Role == RolePrimary && r.Active {
			res.FormerPrimary = &r
			if reach := p.reach(); p.err != nil && reach != ReachRefused {
				c.log.Warn("could not ask the former primary", "node", r.Name, "reach", reach,
					"detail", "Nobody here can tell whether it still runs. If it may come back, make sure that it can not accept writes.")
			}
		} else if r.Role == RoleStandby && r.Active && r.UpstreamID == self.UpstreamID {
			res.Siblings = append(res.Siblings, r)
			if p.err != nil {
				c.log.Warn("could not ask a sibling node how much it has", "node", r.Name, "reach", p.reach(),
					"detail", "If it has more than this node, what it has beyond will be lost.")
			}
		}
	}
	return recs, nil
}

// mayPromote asks for the privilege before anything depends on it: on a standby
// nobody can grant it any more.
func (n *Node) mayPromote(ctx context.Context, command string) error {
	may := command != ""
	if err := n.conn.QueryRow(ctx, `SELECT $1 OR has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE')`, may).Scan(&may); err != nil {
		return n.queryError("look at the privileges", err)
	}
	if !may {
		return hint(kind(ErrPromotion, "promote %s: user %q may not", n.name, n.conn.Config().User),
			"Connect as a superuser, or set service_promote_command. While there is a primary: GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO %s;", n.conn.Config().User)
	}
	return nil
}

// refuseLivingPrimary takes an open stream of WAL as evidence that a primary
// lives that we can not reach: then our link is broken, not the primary.
func refuseLivingPrimary(probes []probe) error {
	for _, p := range probes {
		w := p.status.Receiver
		if p.err != nil || w == nil || w.Status != "streaming" {
			continue
		}
		last := "never"
		if w.LastMessageAt != nil {
			last = p.status.At.Sub(*w.LastMessageAt).Round(time.Millisecond).String() + " ago"
		}
		for _, q := range probes {
			if q.err == nil && attachment(q.status, p.record.Name) != "" {
				w = nil // it streams from another standby, which says nothing of the primary
				break
			}
		}
		if w != nil {
			return hint(kind(ErrRefused, "%s still receives WAL from %s port %d (last message %s)", p.record, w.SenderHost, w.SenderPort, last),
				"That primary is probably alive, and the network between it and here is not. If it is surely dead, use --force.")
		}
	}
	return nil
}

// refuseBehind looks for a standby that has more: what it has beyond us would be lost.
func refuseBehind(self Record, status NodeStatus, probes []probe) error {
	for _, p := range probes {
		theirs, ours := p.status.Position(), status.Position()
		if p.err != nil || !p.status.InRecovery || p.status.SystemIdentifier != status.SystemIdentifier {
			continue
		}
		if theirs.Timeline > ours.Timeline || theirs.Timeline == ours.Timeline && theirs.LSN > ours.LSN {
			return hint(kind(ErrRefused, "%s has WAL up to %s, %s only up to %s (%d bytes less): promoting it would lose what the other one has",
				p.record, theirs, self, ours, theirs.LSN.Bytes(ours.LSN)), "Promote %s. To promote this one all the same, use --force.", p.record)
		}
	}
	return nil
}

// promoteServer promotes and waits until the server is out of recovery.
func (c *Cluster) promoteServer(ctx context.Context, n *Node) (NodeStatus, error) {
	limit := c.cfg.PromoteCheckTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hint(kind(ErrPromotion, "%s is still in recovery after promote_check_timeout (%s)", n.name, limit),
		"The server's log says what it waits for. It may still become the primary: look again with repmgr cluster show."))
	defer cancel()
	if c.cfg.ServicePromoteCommand != "" {
		if out, err := runShell(ctx, c.cfg.ServicePromoteCommand, nil); err != nil {
			return NodeStatus{}, kind(ErrPromotion, "service_promote_command on %s: %w: %s", n.name, err, lastLines(out, 5))
		}
	} else if _, err := n.conn.Exec(ctx, `SELECT pg_promote(false)`); err != nil {
		return NodeStatus{}, kind(ErrPromotion, "promote %s: %w", n.name, err)
	}
	err := n.poll(ctx, func() (bool, error) {
		var inRecovery bool
		if err := n.conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
			return false, n.queryError("watch the promotion", err)
		}
		return !inRecovery, nil
	})
	if err != nil {
		return NodeStatus{}, err
	}
	return n.Status(ctx)
}

// poll asks until done, and nudges the server while it is not.
func (n *Node) poll(ctx context.Context, done func() (bool, error)) error {
	nudge := time.Now().Add(nudgeInterval)
	for {
		ok, err := done()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case ok:
			return nil
		}
		if time.Now().After(nudge) {
			if err := n.reload(ctx); err != nil && !errors.Is(err, ErrQuery) {
				return err
			}
			nudge = time.Now().Add(nudgeInterval)
		}
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
}

// recordPromotion writes the new roles, on the new primary.
func (c *Cluster) recordPromotion(ctx context.Context, primary *Node, res *PromoteResult) error {
	self := &res.Node
	self.Role, self.UpstreamID, self.UpstreamName, self.Active = RolePrimary, 0, "", true
	err := pgx.BeginFunc(ctx, primary.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE repmgr.nodes SET active = false WHERE type = 'primary' AND active AND node_id <> $1`, int32(self.ID))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE repmgr.nodes SET type = 'primary', upstream_node_id = NULL, active = true WHERE node_id = $1`, int32(self.ID))
		return err
	})
	if err != nil {
		return hint(kind(ErrMetadata, "%s is promoted, but repmgr.nodes is not updated: %w", self, err),
			"Run on it: repmgr primary register --force")
	}
	e := Event{
		NodeID: self.ID, Node: self.Name, Type: EventStandbyPromote, Success: true,
		Details: fmt.Sprintf("%s was successfully promoted to primary", self),
	}
	if old := res.FormerPrimary; old != nil {
		e.PeerID, e.Peer = old.ID, old.Name
	}
	c.emit(ctx, primary, e)
	return nil
}

// siblings re-points the other standbys of the former primary, all at once, or
// says that they wait for it.
func (c *Cluster) siblings(ctx context.Context, recs []Record, o PromoteOptions, res *PromoteResult) {
	if len(res.Siblings) == 0 {
		return
	}
	if !o.SiblingsFollow {
		var names []string
		for _, s := range res.Siblings {
			names = append(names, s.Name)
		}
		c.log.Warn("sibling nodes still follow the former primary", "nodes", strings.Join(names, ", "),
			"hint", "Run repmgr standby follow on each, or promote with --siblings-follow.")
		return
	}
	errs := make([]error, len(res.Siblings))
	var wg sync.WaitGroup
	for i, s := range res.Siblings {
		wg.Go(func() {
			var n *Node
			if n, errs[i] = c.connectTo(ctx, s); errs[i] != nil {
				return
			}
			defer n.Close()
			_, errs[i] = c.follow(ctx, n, s, res.Node, recs, FollowOptions{})
		})
	}
	wg.Wait()
	for i, s := range res.Siblings {
		if errs[i] != nil {
			c.log.Warn("sibling node does not follow yet", "node", s.Name, "err", errs[i], "hint", Hint(errs[i]))
		} else {
			res.Following = append(res.Following, s)
		}
	}
}

// FollowOptions are the choices of [Cluster.Follow].
type FollowOptions struct {
	UpstreamID NodeID // the registered node to stream from. Defaults to the primary.
	Target     string // conninfo of the server to stream from, instead of UpstreamID
	Wait       bool   // when there is no primary yet, look for one for primary_follow_timeout
	DryRun     bool
}

// FollowResult is what following did.
type FollowResult struct {
	Node      Record        `json:"node"`
	Upstream  Record        `json:"upstream"`
	Streaming bool          `json:"streaming"`
	Timeline  wal.Timeline  `json:"timeline"` // of the upstream
	Elapsed   time.Duration `json:"elapsed_ns"`
	DryRun    bool          `json:"dry_run,omitempty"`
}

// Follow re-points the local standby to another upstream, by SQL and without a
// restart, and waits until it streams from it. It refuses with
// [ErrTimelineDiverged] where the standby has WAL that the upstream never had,
// judged through every timeline that the upstream went through. An
// [ErrNotAttached] means that it was re-pointed but did not stream in time.
func (c *Cluster) Follow(ctx context.Context, o FollowOptions) (FollowResult, error) {
	res := FollowResult{DryRun: o.DryRun}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	recs, err := local.records(ctx)
	if err != nil {
		return res, err
	}
	target, err := c.followTarget(ctx, recs, o)
	if err != nil {
		return res, err
	}
	if _, ok := recordByID(recs, c.cfg.NodeID); !ok {
		// Its own row may be the last thing that a standby received, or just did not.
		if recs, err = c.recordsOf(ctx, target); err != nil {
			return res, err
		}
	}
	self, ok := recordByID(recs, c.cfg.NodeID)
	if !ok {
		return res, hint(kind(ErrNotRegistered, "%s is not registered", c.self()), "Run repmgr standby register first.")
	}
	return c.follow(ctx, local, self, target, recs, o)
}

func (c *Cluster) recordsOf(ctx context.Context, r Record) ([]Record, error) {
	n, err := c.connectTo(ctx, r)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return n.records(ctx)
}

// followTarget finds the registered node to follow.
func (c *Cluster) followTarget(ctx context.Context, recs []Record, o FollowOptions) (Record, error) {
	switch {
	case o.Target != "":
		return c.recordOfServer(ctx, o.Target)
	case o.UpstreamID != 0:
		if r, ok := recordByID(recs, o.UpstreamID); ok {
			return r, nil
		}
		return Record{}, unknownNode(recs, o.UpstreamID, "")
	}
	limit := c.cfg.PrimaryFollowTimeout
	deadline := time.Now().Add(limit)
	for {
		primary, err := c.findPrimary(ctx, recs)
		if err == nil || !o.Wait || !errors.Is(err, ErrNoPrimary) || time.Now().After(deadline) {
			return primary, err
		}
		if err := pause(ctx, nudgeInterval); err != nil {
			return Record{}, err
		}
	}
}

// recordOfServer asks a server which registered node it is: the one that
// listens at the same address in its own copy of the metadata.
func (c *Cluster) recordOfServer(ctx context.Context, conninfo string) (Record, error) {
	n, err := Connect(ctx, conninfo)
	if err != nil {
		return Record{}, err
	}
	defer n.Close()
	want, err := n.Status(ctx)
	if err != nil {
		return Record{}, err
	}
	recs, err := n.records(ctx)
	if err != nil {
		return Record{}, err
	}
	for _, p := range c.survey(ctx, recs) {
		if p.err == nil && p.status.StartedAt.Equal(want.StartedAt) && p.status.Settings.DataDirectory == want.Settings.DataDirectory {
			return p.record, nil
		}
	}
	return Record{}, hint(kind(ErrNotRegistered, "%s is not a registered node", n.name), "See repmgr cluster show, and use --upstream-node-id.")
}

// follow re-points the standby node, whose connection is n, to target.
func (c *Cluster) follow(ctx context.Context, n *Node, node, target Record, recs []Record, o FollowOptions) (FollowResult, error) {
	start := time.Now()
	res := FollowResult{Node: node, Upstream: target, DryRun: o.DryRun}
	status, err := n.Status(ctx)
	switch {
	case err != nil:
		return res, err
	case !status.InRecovery:
		return res, hint(kind(ErrNotStandby, "%s runs as a primary", node), "Only a standby can follow. Clone it anew to make it one.")
	case target.ID == node.ID:
		return res, kind(ErrConfig, "%s can not follow itself", node)
	}
	up, err := c.connectTo(ctx, target)
	if err != nil {
		return res, err
	}
	defer up.Close()
	if res.Timeline, err = c.checkAncestry(ctx, n, node, status, target, up); err != nil {
		return res, err
	}
	primary, err := c.connectPrimary(ctx, up)
	if err != nil {
		return res, err
	}
	if primary != up {
		defer primary.Close()
	}
	now, err := primary.records(ctx)
	if err != nil {
		return res, err
	}
	if err := checkLoop(now, node.ID, target); err != nil {
		return res, err
	}
	if o.DryRun {
		c.log.Info("prerequisites met for following", "node", node.Name, "upstream", target.Name)
		return res, nil
	}
	if err := c.repoint(ctx, n, up, node, target); err != nil {
		return res, err
	}
	res.Node.Role, res.Node.UpstreamID, res.Node.UpstreamName, res.Node.Active = RoleStandby, target.ID, target.Name, true
	err = c.finishFollow(ctx, n, up, primary, &res)
	res.Elapsed = time.Since(start)
	if err == nil && node.UpstreamID != target.ID {
		c.dropFormerSlot(ctx, recs, node)
	}
	return res, err
}

// checkAncestry proves that all WAL of the standby is WAL of the target, too.
// It returns the timeline of the target.
func (c *Cluster) checkAncestry(ctx context.Context, n *Node, node Record, status NodeStatus, target Record, up *Node) (wal.Timeline, error) {
	theirs, err := up.Status(ctx)
	if err != nil {
		return 0, err
	}
	if theirs.SystemIdentifier != status.SystemIdentifier {
		return 0, hint(kind(ErrSystemIdentifier, "%s has system identifier %s, %s has %s", node, status.SystemIdentifier, target, theirs.SystemIdentifier),
			"They are different clusters, and one can not follow the other.")
	}
	local, upstream := status.Position(), theirs.Position()
	var history wal.History
	if upstream.Timeline >= local.Timeline && upstream.Timeline > 1 {
		if history, err = c.timelineHistory(ctx, target, upstream.Timeline); err != nil {
			return 0, err
		}
	}
	if ours, ok := n.ownHistory(ctx, local.Timeline); ok && upstream.Timeline >= local.Timeline && !history.Extends(ours) {
		return 0, hint(kind(ErrTimelineDiverged, "%s can not follow %s: timeline %d of the one is not timeline %d of the other: they were promoted apart", node, target, local.Timeline, upstream.Timeline),
			"Decide which of the two branches holds the data that counts, and clone the other one anew: repmgr standby clone --force")
	}
	if local.Timeline == upstream.Timeline && theirs.InRecovery {
		return upstream.Timeline, nil // both read one stream: whoever is behind catches up
	}
	verdict := wal.CanFollow(local, upstream, history)
	if verdict.OK() {
		return upstream.Timeline, nil
	}
	return 0, hint(kind(ErrTimelineDiverged, "%s can not follow %s: %s", node, target, verdict.Explain(local, upstream, history)),
		"What it has beyond that point is on no other node. Save it if it matters, then clone the standby anew: repmgr standby clone --force")
}

// timelineHistory reads the history of a timeline over a replication connection.
func (c *Cluster) timelineHistory(ctx context.Context, of Record, t wal.Timeline) (wal.History, error) {
	conn, err := c.dialReplication(ctx, of)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	results, err := conn.Exec(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", t)).ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return nil, kind(ErrQuery, "read the history of timeline %d of %s: %w", t, of, errors.Join(err, errors.New("no history came")))
	}
	return wal.ParseHistory(results[0].Rows[0][1])
}

// ownHistory reads the history of a server's timeline from its own files. It is
// not there on timeline 1, nor where the login may not read files.
func (n *Node) ownHistory(ctx context.Context, t wal.Timeline) (wal.History, bool) {
	if t <= 1 {
		return nil, false
	}
	var text []byte
	if err := n.conn.QueryRow(ctx, `SELECT pg_read_binary_file('pg_wal/' || $1)`, wal.HistoryFileName(t)).Scan(&text); err != nil {
		return nil, false
	}
	h, err := wal.ParseHistory(text)
	return h, err == nil
}

// dialReplication opens a physical replication connection to a registered node.
func (c *Cluster) dialReplication(ctx context.Context, r Record) (*pgconn.PgConn, error) {
	cfg, err := c.replicationConfig(c.dialInfo(r), r.ReplicationUser)
	if err != nil {
		return nil, err
	}
	ctx, cancel := connectLimit(ctx, cfg)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, connectError(ctx, r.String()+" for replication", cfg, err)
	}
	return conn, nil
}

// replicationConfig is conninfo as a walsender wants it.
func (c *Cluster) replicationConfig(conninfo, user string) (*pgx.ConnConfig, error) {
	params, err := ParseConninfo(conninfo)
	if err != nil {
		return nil, kind(ErrConfig, "conninfo: %w", err)
	}
	if user != "" && user != loginUser(params) {
		params["user"] = user
		delete(params, "password") // it is another user's: a password file knows this one's
		if params["passfile"] == "" && c.cfg.Passfile != "" {
			params["passfile"] = c.cfg.Passfile
		}
	}
	cfg, err := connectConfig(FormatConninfo(params))
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "true"
	delete(cfg.RuntimeParams, "synchronous_commit")
	delete(cfg.RuntimeParams, "lock_timeout")
	return cfg, nil
}

// repoint makes the slot on the new upstream and gives the standby its new
// primary_conninfo.
func (c *Cluster) repoint(ctx context.Context, n, up *Node, node, target Record) error {
	if node.SlotName != "" {
		if _, err := up.CreateSlot(ctx, node.SlotName, node.Name); err != nil {
			return err
		}
	}
	set, err := c.standbySettings(target, node.Name, node.SlotName)
	if err != nil {
		return err
	}
	return n.alterSystem(ctx, set)
}

// finishFollow records the new upstream and waits until it sends.
func (c *Cluster) finishFollow(ctx context.Context, n, up, primary *Node, res *FollowResult) error {
	node, target := res.Node, res.Upstream
	_, errRow := primary.conn.Exec(ctx, `UPDATE repmgr.nodes SET type = 'standby', upstream_node_id = $2, active = true WHERE node_id = $1`, int32(node.ID), int32(target.ID))
	err := c.waitAttached(ctx, n, up, node, target, res.Timeline)
	if err == nil {
		res.Streaming = true
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

// waitAttached waits until the upstream says that the standby streams, and the
// standby that it does so on the upstream's timeline: on its way to a new one it
// streams the rest of the old one first.
func (c *Cluster) waitAttached(ctx context.Context, n, up *Node, node, target Record, timeline wal.Timeline) error {
	limit := c.cfg.StandbyFollowTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hint(kind(ErrNotAttached, "%s was re-pointed to %s, but did not stream from it within standby_follow_timeout (%s)", node, target, limit),
		"Its log says why: often pg_hba.conf or the password of the replication user on %s. Look again with repmgr cluster show.", target.Name))
	defer cancel()
	host, port := senderAddress(target.Conninfo)
	return n.poll(ctx, func() (bool, error) {
		var arrived bool // a login that may not see these trusts the upstream's word alone
		if err := n.conn.QueryRow(ctx, `SELECT coalesce(bool_and(coalesce(received_tli, $1) = $1 AND ($2 = '' OR coalesce(sender_host, $2) = $2) AND ($3 = 0 OR coalesce(sender_port, $3) = $3)), false)
			FROM pg_stat_wal_receiver`, int32(timeline), host, int32(port)).Scan(&arrived); err != nil {
			return false, n.queryError("watch the WAL receiver", err)
		}
		if !arrived {
			return false, nil
		}
		var state *string
		err := up.conn.QueryRow(ctx, `SELECT min(state) FROM pg_stat_replication WHERE application_name = $1`, node.Name).Scan(&state)
		if err != nil {
			return false, up.queryError("watch the WAL sender", err)
		}
		return state != nil && *state == "streaming", nil
	})
}

// senderAddress is how a WAL receiver will name the server of a conninfo. Empty
// and 0 where that can not be told beforehand.
func senderAddress(conninfo string) (host string, port int) {
	params, err := ParseConninfo(conninfo)
	if err != nil || strings.Contains(params["host"]+params["port"], ",") {
		return "", 0
	}
	port, _ = strconv.Atoi(params["port"])
	return orDefault(params["host"], params["hostaddr"]), port
}

// dropFormerSlot removes the standby's slot from the upstream that it left.
func (c *Cluster) dropFormerSlot(ctx context.Context, recs []Record, node Record) {
	former, ok := recordByID(recs, node.UpstreamID)
	if !ok || node.SlotName == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultConnectTimeout)
	defer cancel()
	old, err := c.connectTo(ctx, former)
	if err != nil {
		c.log.Info("the former upstream is not reachable: its slot stays", "node", former.Name, "slot", node.SlotName)
		return
	}
	defer old.Close()
	c.dropIdleSlot(ctx, old, node)
}
