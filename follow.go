package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/salvage"
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

// FollowResult is what following did.
type FollowResult struct {
	Node      Record        `json:"node"`
	Upstream  Record        `json:"upstream"`
	Streaming bool          `json:"streaming"`
	Timeline  wal.Timeline  `json:"timeline"` // of the upstream
	Elapsed   time.Duration `json:"elapsed_ns"`
	DryRun    bool          `json:"dry_run,omitempty"`

	known bool // the upstream was the primary already, as this node knew the cluster before
	again bool // and its upstream
}

// sentence says whom the node follows now.
func (r FollowResult) sentence() string {
	switch {
	case r.again:
		return fmt.Sprintf("%s follows %s again, which is the primary as before", r.Node, r.Upstream)
	case r.known:
		return fmt.Sprintf("%s follows %s, which is the primary as before", r.Node, r.Upstream)
	}
	return fmt.Sprintf("%s follows new primary %s", r.Node, r.Upstream)
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
		// Its own row may be the last thing that a standby received, or just did not.
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
	res.known, res.again = known, again
	return res, c.mended(ctx, local, target, err)
}

// mended says of a standby that can not follow that its daemon brings it back, where it does.
func (c *Cluster) mended(ctx context.Context, local *registry.Server, target Record, err error) error {
	if !errors.Is(err, ErrTimelineDiverged) && !errors.Is(err, ErrWALGone) {
		return err
	}
	all, errAll := registry.ReadPresences(ctx, local)
	up, errUp := c.connectTo(ctx, target)
	if errAll != nil || errUp != nil {
		return err
	}
	defer up.Close()
	rules, errRules := up.Rules(ctx)
	set, errSet := ballot.ReadSettings(ctx, local.Conn)
	paused, _ := registry.ParsePaused(set[registry.PausedSetting], c.cfg.NodeID)
	if m, ok := all[c.cfg.NodeID]; ok && !paused && errors.Join(errRules, errSet) == nil && len(rules) > 0 && int32(target.ID) == rules[0].Primary && bringsBack(m, c.cfg.Rejoin, err) {
		return hint(err, "The repmgrd of this node (PID %d, rejoin=%s) brings it back by itself, in a moment, and saves first what only this node has: see its log, and repmgr cluster event. If it says that it can not: %s", m.PID, c.cfg.Rejoin, Hint(err))
	}
	return err
}

// bringsBack reports whether a Monitor rejoins its standby that can not follow for that reason.
func bringsBack(m Presence, policy RejoinPolicy, err error) bool {
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

// recordOfServer asks a server which registered node it is: the one that
// listens at the same address in its own copy of the metadata.
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
		if p.err == nil && p.status.StartedAt.Equal(want.StartedAt) && p.status.Settings.DataDirectory == want.Settings.DataDirectory {
			return p.record, nil
		}
	}
	return Record{}, hint(kind(ErrNotRegistered, "%s is not a registered node", n.Name), "See repmgr cluster show, and use --upstream-node-id.")
}

// follow re-points the standby node, whose connection is n, to target.
func (c *Cluster) follow(ctx context.Context, n *registry.Server, node, target Record, recs []Record, o FollowOptions) (FollowResult, error) {
	start := time.Now()
	res := FollowResult{Node: node, Upstream: target, DryRun: o.DryRun}
	status, err := n.Status(ctx)
	switch {
	case err != nil:
		return res, err
	case !status.InRecovery:
		return res, hint(kind(ErrNotStandby, "%s runs as a primary", node), "Only a standby can follow. If %s is to be one of %s: %s", node.Name, target.Name, rejoinCommand(node, target, "--force-rewind"))
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
	if err := c.refuseLostWAL(ctx, up, primary, node, target, status); err != nil {
		return res, err
	}
	now, err := primary.Records(ctx)
	if err != nil {
		return res, err
	}
	if r, ok := registry.ByID(now, target.ID); ok {
		target = r // the copy that it was taken from may be old
		res.Upstream = r
	}
	if err := registry.CheckLoop(now, node.ID, target); err != nil {
		return res, err
	}
	if o.DryRun {
		c.log.Info("prerequisites met for following", "node", node.Name, "upstream", target.Name)
		return res, nil
	}
	pointed := node
	if o.slotOptional {
		pointed.SlotName = c.slotOrNone(ctx, up, node)
	}
	if err := c.repoint(ctx, n, up, pointed, target); err != nil {
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

// refuseLostWAL refuses before anything is changed where the standby would wait
// for ever. Where an archive may have the WAL, that is only said.
func (c *Cluster) refuseLostWAL(ctx context.Context, up, primary *registry.Server, node, target Record, status NodeStatus) error {
	lost := findLostWAL(ctx, up, target, status)
	switch {
	case lost == nil:
		return nil
	case lost.Archive:
		c.log.Warn(fmt.Sprintf("%s can stream only when the archive has brought what comes next: %s", node, lost))
		return nil
	}
	from := target
	if recs, err := primary.Records(ctx); err == nil {
		if r, ok := registry.Primary(recs); ok {
			from = r
		}
	}
	return hint(kind(ErrWALGone, "%s can not follow %s: %s", node, target, lost), "It has to be copied anew. Run on %s: %s", node.Name, recloneCommand(node, from))
}

// checkAncestry proves that all WAL of the standby is WAL of the target, too.
// It returns the timeline of the target.
func (c *Cluster) checkAncestry(ctx context.Context, n *registry.Server, node Record, status NodeStatus, target Record, up *registry.Server) (wal.Timeline, error) {
	theirs, err := up.Status(ctx)
	if err != nil {
		return 0, err
	}
	if theirs.SystemIdentifier != status.SystemIdentifier {
		return 0, hint(kind(ErrSystemIdentifier, "%s has system identifier %s, %s has %s", node, status.SystemIdentifier, target, theirs.SystemIdentifier),
			"They are different clusters, and one can not follow the other.")
	}
	if err := refuseOwnWAL(ctx, n, node, target, status.Timeline); err != nil {
		return 0, err
	}
	local, upstream := status.Position(), theirs.Position()
	var history wal.History
	if upstream.Timeline >= local.Timeline && upstream.Timeline > 1 {
		if history, err = c.timelineHistory(ctx, target, upstream.Timeline); err != nil {
			return 0, err
		}
	}
	if ours, ok := n.OwnHistory(ctx, local.Timeline); ok && upstream.Timeline >= local.Timeline && !history.Extends(ours) {
		return 0, hint(kind(ErrTimelineDiverged, "%s can not follow %s: timeline %d of the one is not timeline %d of the other: they were promoted apart", node, target, local.Timeline, upstream.Timeline),
			"Decide which of the two branches holds the data that counts. If it is that of %s, on %s: %s", target.Name, node.Name, recloneCommand(node, target))
	}
	verdict := wal.CanFollow(local, upstream, history)
	if verdict.OK() || local.Timeline == upstream.Timeline && theirs.InRecovery { // both read one stream: whoever is behind catches up
		begin, _ := history.Fork(salvage.Parent(history, local.Timeline))
		return upstream.Timeline, c.refuseTwin(ctx, n, up, node, target, local.Timeline, begin, min(local.LSN, upstream.LSN))
	}
	return 0, hint(kind(ErrTimelineDiverged, "%s can not follow %s: %s", node, target, verdict.Explain(local, upstream, history)),
		"What it has beyond that point is on no other node. On %s, this saves that, and takes it back: %s", node.Name, rejoinCommand(node, target, "--force-rewind"))
}

// refuseOwnWAL keeps a running server with WAL of its own on its timeline t from following
// target. A login that may not read the file of ALTER SYSTEM finds none.
func refuseOwnWAL(ctx context.Context, n *registry.Server, node, target Record, t wal.Timeline) error {
	set, err := ballot.ReadSettings(ctx, n.Conn)
	if err != nil {
		return nil //nolint:nilerr // it may not read them
	}
	behind, own := salvage.OwnWAL(set, t)
	if !own {
		return nil
	}
	return hint(kind(ErrTimelineDiverged, "%s can not follow %s: a rejoin that did not end gave it WAL of its own behind %s", node, target, wal.Position{Timeline: t, LSN: behind}),
		"On %s, this goes on with that: %s", node.Name, rejoinCommand(node, target, "--force-rewind"))
}

// refuseTwin compares the logs of a running standby and its new upstream, on the
// timeline of the standby. beginning is where that began; 0: it is timeline 1.
func (c *Cluster) refuseTwin(ctx context.Context, n, up *registry.Server, node, target Record, t wal.Timeline, beginning, to wal.LSN) error {
	if t <= 1 || beginning == 0 || to <= beginning {
		return nil
	}
	segSize, err := n.WALSegmentSize(ctx)
	if err != nil {
		return err
	}
	twin, err := salvage.LogsDiffer(ctx, n.WALSum, up.WALSum, t, beginning, to, segSize)
	switch {
	case postgres.SQLState(err) == postgres.CodeInsufficientPrivilege:
		c.log.Warn("could not compare the WAL of the two servers: this login may not read it", "hint", "GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean)")
		return nil
	case err != nil:
		return err
	case twin:
		return hint(kind(ErrTimelineDiverged, "%s can not follow %s: they were promoted apart, and what both call timeline %d is not one log", node, target, t),
			"Decide which of the two branches holds the data that counts. If it is that of %s, on %s: %s", target.Name, node.Name, recloneCommand(node, target))
	}
	return nil
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

// dialReplication opens a physical replication connection to a registered node.
func (c *Cluster) dialReplication(ctx context.Context, r Record) (*pgconn.PgConn, error) {
	cfg, err := c.replicationConfig(c.dialInfo(r), r.ReplicationUser)
	if err != nil {
		return nil, err
	}
	ctx, cancel := postgres.Limit(ctx, cfg)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, postgres.Explained(ctx, r.String()+" for replication", cfg, err)
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
	cfg, err := postgres.ConnConfig(FormatConninfo(params))
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "true"
	cfg.AfterConnect = nil // it asks in SQL
	return cfg, nil
}

// repoint makes the slot on the new upstream and gives the standby its new
// primary_conninfo.
func (c *Cluster) repoint(ctx context.Context, n, up *registry.Server, node, target Record) error {
	if node.SlotName != "" {
		if _, err := up.CreateSlot(ctx, node.SlotName, node.Name); err != nil {
			return err
		}
	}
	set, err := c.standbySettings(target, node.Name, node.SlotName)
	if err != nil {
		return err
	}
	var term int64
	if rules, err := up.Rules(ctx); err == nil && len(rules) > 0 {
		term = rules[0].Term
	}
	err = n.WithBallot(ctx, func(b ballot.Ballot) error {
		if b.Term > term && term > 0 {
			return hint(kind(ErrRefused, "%s has pledged itself to term %d, and %s is of term %d: it may have been deposed", node, b.Term, target, term),
				"An election is going on, or came to nothing. See repmgr service status; the daemons sort it out.")
		}
		return n.AlterSystem(ctx, set)
	})
	if postgres.SQLState(err) == postgres.CodeInsufficientPrivilege { // a login that may not read ballots has none
		return n.AlterSystem(ctx, set)
	}
	if err == nil {
		err = ballot.ResumeReplay(ctx, n.Conn)
	}
	return err
}

// finishFollow records the new upstream and waits until it sends.
func (c *Cluster) finishFollow(ctx context.Context, n, up, primary *registry.Server, res *FollowResult) error {
	node, target := res.Node, res.Upstream
	errRow := primary.RecordUpstream(ctx, node.ID, target.ID)
	err := c.waitAttached(ctx, n, up, node, target, res.Timeline, func() error { // until it was re-pointed it may have received more
		status, err := n.Status(ctx)
		if err == nil {
			_, err = c.checkAncestry(ctx, n, node, status, target, up)
		}
		return err
	})
	if err == nil {
		res.Streaming = true
	}
	if errArchive := ballot.GiveArchive(ctx, n.Conn); errArchive != nil && postgres.SQLState(errArchive) != postgres.CodeInsufficientPrivilege {
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

// ancestryAgain is after how long a standby that does not stream is compared with its upstream again.
const ancestryAgain = time.Second

// waitAttached waits until the upstream says that the standby streams, and the
// standby that it does so on the upstream's timeline: on its way to a new one it
// streams the rest of the old one first. Where that takes longer it asks again
// whether the standby has diverged: then it never will.
func (c *Cluster) waitAttached(ctx context.Context, n, up *registry.Server, node, target Record, timeline wal.Timeline, ancestry func() error) error {
	limit := c.cfg.StandbyFollowTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hint(kind(ErrNotAttached, "%s was re-pointed to %s, but did not stream from it within standby_follow_timeout (%s)", node, target, limit),
		"Its log says why: often pg_hba.conf or the password of the replication user on %s. Look again with repmgr cluster show.", target.Name))
	defer cancel()
	host, port := senderAddress(target.Conninfo)
	asked := time.Now()
	return n.Poll(ctx, func() (bool, error) {
		if time.Since(asked) >= ancestryAgain {
			asked = time.Now()
			if err := ancestry(); errors.Is(err, ErrTimelineDiverged) {
				return false, err
			}
		}
		var arrived bool // a login that may not see these trusts the upstream's word alone
		if err := n.Conn.QueryRow(ctx, `SELECT coalesce(bool_and(coalesce(received_tli, $1) = $1 AND ($2 = '' OR coalesce(sender_host, $2) = $2) AND ($3 = 0 OR coalesce(sender_port, $3) = $3)), false)
			FROM pg_stat_wal_receiver`, int32(timeline), host, int32(port)).Scan(&arrived); err != nil {
			return false, n.QueryError("watch the WAL receiver", err)
		}
		if !arrived {
			return false, nil
		}
		var state *string
		err := up.Conn.QueryRow(ctx, `SELECT min(state) FROM pg_stat_replication WHERE application_name = $1`, node.Name).Scan(&state)
		if err != nil {
			return false, up.QueryError("watch the WAL sender", err)
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
	return cmp.Or(params["host"], params["hostaddr"]), port
}

// dropFormerSlot removes the standby's slot from the upstream that it left.
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
