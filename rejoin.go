package repmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// RejoinOptions are the choices of [Cluster.Rejoin].
type RejoinOptions struct {
	Target        string       // conninfo of any node that can be reached. Empty: the local server is asked, which must run then.
	Policy        RejoinPolicy // how far it may go. Defaults to rejoin of the configuration.
	DataDirectory string       // of the local server, where the configuration does not name it
	PgRewind      string       // path of pg_rewind. Defaults to the one of the server's version.
	ConfigFiles   []string     // of the data directory, to be kept beside those that always are
	Force         bool         // stop a local server that runs as a primary; go on although nothing could be saved
	NoWait        bool         // do not wait until it streams
	DryRun        bool         // look and decide, change nothing

	Progress func(CopyProgress) // of a new clone

	slotOptional bool             // stream without a slot where it can not be made
	hold         func(bool) error // told when what must not be ended half-way begins and ends; an error: do not begin
}

// RejoinMethod is how a node came back.
type RejoinMethod string

const (
	RejoinByFollow RejoinMethod = "follow"  // it had nothing that the primary lacks
	RejoinByRewind RejoinMethod = "rewind"  // what it had too much was taken back
	RejoinByClone  RejoinMethod = "reclone" // all of it was copied anew
)

// RejoinStep is one thing that a rejoin did.
type RejoinStep struct {
	Name    string        `json:"name"`
	Detail  string        `json:"detail,omitempty"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// RejoinResult is what a rejoin did, also when it failed.
type RejoinResult struct {
	Node      Record        `json:"node"`
	Primary   Record        `json:"primary"`
	Method    RejoinMethod  `json:"method"`
	Reason    string        `json:"reason"`             // why that method
	Salvage   *Salvage      `json:"salvage"`            // nil: nothing was lost
	Fork      *wal.Position `json:"fork"`               // where the node's line leaves that of the primary; nil: it does not
	Timeline  wal.Timeline  `json:"timeline,omitempty"` // of the primary
	Streaming bool          `json:"streaming"`
	Steps     []RejoinStep  `json:"steps"`
	Elapsed   time.Duration `json:"elapsed_ns"`
	DryRun    bool          `json:"dry_run,omitempty"`
}

// Salvage is what was saved of a server before a rejoin took it back. Its
// directory holds summary.txt, waldump.txt (what pg_waldump says of the range)
// and pg_wal/, the segments themselves with the history of their timelines.
type Salvage struct {
	Dir        string       `json:"directory"`
	Timeline   wal.Timeline `json:"timeline"`
	Fork       wal.LSN      `json:"fork_lsn"` // where the two lines part
	End        wal.LSN      `json:"end_lsn"`  // behind the last whole record, but for alignment
	Bytes      int64        `json:"bytes"`    // of WAL from Fork to End
	Recycled   bool         `json:"recycled"` // the beginning was gone already: only the rest could be saved
	Commits    []string     `json:"commits"`  // "transaction 733 at 2026-01-02 03:04:05.6 UTC", oldest first
	Relations  []string     `json:"relations"`
	Segments   []string     `json:"segments"`
	Unarchived []string     `json:"unarchived"` // segments that were still to be archived
}

// rejoining is one run of Rejoin.
type rejoining struct {
	*Cluster
	o       RejoinOptions
	server  *salvage.Server
	local   *registry.Server // the local server, when it runs in recovery
	writes  bool             // it runs as a primary, and is to be stopped
	primary *registry.Server
	status  NodeStatus // of primary
	recs    []Record
	lock    *os.File // the data directory, locked

	control     pgcontrol.ControlFile
	shared      wal.Position // where the two lines part, or the end of the primary's
	timeline    wal.Timeline // of the local server
	ours        wal.History
	diverged    bool
	lags        bool   // its control file names an earlier timeline, which pg_rewind would take for the one that it is on
	twin        bool   // what both call one timeline is two: they were promoted apart
	impossible  string // why neither following nor pg_rewind can help
	cloneOnly   bool   // and no person could make it possible
	interrupted bool   // an earlier rejoin ended in the middle of its work on the data
	res         RejoinResult
}

// Rejoin brings the local server back as a standby of the primary, whatever it
// was before: a primary that crashed while another one took over, one that was
// shut down in order, or a standby.
//
// Where it has no WAL that the primary lacks it simply follows. Otherwise the
// policy decides: that WAL is saved (see [Salvage]) and taken back by pg_rewind,
// or the server is cloned anew. The node keeps its own configuration files and
// settings. Every step can be repeated, so after an error or a crash Rejoin is
// called again; data that an interrupted pg_rewind left behind is not started
// any more, and only a new clone helps.
//
// It refuses with [ErrRefused] by policy and while the local server runs as a
// primary, with [ErrTimelineDiverged] where the policy is RejoinIfClean and the
// node has diverged, and with [ErrRejoin] where a step failed.
func (c *Cluster) Rejoin(ctx context.Context, o RejoinOptions) (RejoinResult, error) {
	start := time.Now()
	if o.Policy == "" {
		o.Policy = c.cfg.Rejoin
	}
	r := &rejoining{Cluster: c, o: o, res: RejoinResult{DryRun: o.DryRun, Steps: []RejoinStep{}}}
	defer r.close()
	err := r.run(ctx)
	r.res.Elapsed = time.Since(start)
	return r.res, err
}

func (r *rejoining) close() {
	r.local.Close()
	r.primary.Close()
	r.unlock()
}

func (r *rejoining) run(ctx context.Context) error {
	if r.o.Policy == RejoinNever {
		return hint(kind(ErrRefused, "%s stays down: rejoin is set to %q", r.self(), r.o.Policy), "%s", r.again("--force-rewind"))
	}
	if err := r.inspect(ctx); err != nil {
		return err
	}
	if err := r.step(ctx, "compare", r.compare); err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		r.res.Method = "" // nothing was begun
		return err
	}
	if r.o.DryRun {
		return nil
	}
	if err := r.hold(true); err != nil {
		return err
	}
	err := r.perform(ctx)
	e := Event{
		NodeID: r.res.Node.ID, Node: r.res.Node.Name, Type: EventNodeRejoin, Success: err == nil,
		Details: r.res.String(), PeerID: r.res.Primary.ID, Peer: r.res.Primary.Name, PeerConninfo: r.res.Primary.Conninfo,
	}
	if err != nil {
		e.Details = err.Error()
	}
	r.emit(ctx, r.primary, e)
	return err
}

// settle settles the method and looks whether it can work.
func (r *rejoining) settle(ctx context.Context) error {
	if err := r.decide(); err != nil {
		return err
	}
	r.log.Info("rejoin: method", "detail", fmt.Sprintf("%s: %s", r.res.Method, r.res.Reason))
	return r.step(ctx, "prerequisites", r.preflight)
}

// String tells the outcome in a sentence; of a new clone also why it was needed.
func (res RejoinResult) String() string {
	method := string(res.Method)
	if res.Method == RejoinByClone && res.Reason != "" {
		method += " (" + res.Reason + ")"
	}
	text := fmt.Sprintf("%s rejoined %s by %s, timeline %d", res.Node, res.Primary, method, res.Timeline)
	if res.Salvage != nil {
		text += fmt.Sprintf("; %d transactions (%d bytes of WAL) are no longer in the database and saved in %s", len(res.Salvage.Commits), res.Salvage.Bytes, res.Salvage.Dir)
	}
	return text
}

// hold tells whoever runs the rejoin whether it may be ended now.
func (r *rejoining) hold(firm bool) error {
	if r.o.hold == nil {
		return nil
	}
	return r.o.hold(firm)
}

// step runs one named step, notes it and says so.
func (r *rejoining) step(ctx context.Context, name string, f func(context.Context) (detail string, err error)) error {
	start := time.Now()
	detail, err := f(ctx)
	if err != nil {
		detail = err.Error()
	} else {
		r.log.Info("rejoin: "+name, "detail", detail)
	}
	r.res.Steps = append(r.res.Steps, RejoinStep{name, detail, time.Since(start)})
	return err
}

// again is the command line that tries it another time.
func (r *rejoining) again(options string) string {
	conf := ""
	if r.cfg.File != "" {
		conf = " -f " + r.cfg.File
	}
	target := Redact(r.o.Target)
	if r.primary != nil {
		target = Redact(r.res.Primary.Conninfo)
	}
	return fmt.Sprintf("Run: repmgr%s node rejoin -d '%s' %s", conf, strings.ReplaceAll(target, "'", `'\''`), options)
}

// inspect finds the primary and the state of the local server.
func (r *rejoining) inspect(ctx context.Context) (err error) {
	if err := r.cfg.RequireNode(); err != nil {
		return err
	}
	if r.server, err = r.localServer(r.o.DataDirectory); err != nil {
		return err
	}
	if err := r.server.MayControl(); err != nil {
		return err
	}
	if !r.o.DryRun {
		if err := r.acquire(); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "local server", r.findLocal); err != nil {
		return err
	}
	return r.step(ctx, "primary", r.findUpstream)
}

// acquire keeps a second rejoin, and a clone, out of the data directory.
func (r *rejoining) acquire() error {
	f, err := os.Open(r.server.Dir)
	if err != nil {
		return kind(ErrDirectory, "open the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return hint(kind(ErrRefused, "another rejoin or clone is under way in %s", r.server.Dir), "Wait for it to end: repmgrd rejoins by itself with failover=automatic.")
	}
	r.lock = f
	return nil
}

func (r *rejoining) unlock() {
	if r.lock != nil {
		_ = r.lock.Close()
		r.lock = nil
	}
}

// findLocal connects to the local server where it runs. One that runs as a
// primary is never touched without Force.
func (r *rejoining) findLocal(ctx context.Context) (string, error) {
	if !r.server.Runs() {
		if r.o.DryRun {
			return "down", nil
		}
		killed, err := r.server.KillChildren(ctx) // they may still write WAL
		if err != nil || killed == 0 {
			return "down", err
		}
		return fmt.Sprintf("down; %d processes of a dead postmaster killed", killed), nil
	}
	stop := func(why string) (string, error) {
		switch {
		case !r.o.Force:
			return "", hint(kind(ErrRefused, "the server in %s %s", r.server.Dir, why),
				"Make sure that it is not the one in use (repmgr cluster show), then stop it, or let this command do that: --force")
		default: // perform does it, when all that can be known before is known
			return why + "; to be stopped", nil
		}
	}
	n, err := r.connectLocal(ctx)
	if err != nil {
		return stop(fmt.Sprintf("runs and can not be asked (%v)", err))
	}
	var inRecovery bool
	if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
		n.Close()
		return "", n.QueryError("read the recovery state", err)
	}
	here, err := r.server.IsAt(ctx, &n.Server)
	switch {
	case err != nil:
		n.Close()
		return "", err
	case !here:
		n.Close()
		return "", hint(kind(ErrRefused, "the server that conninfo names is not the one that runs in %s", r.server.Dir), "Correct conninfo or data_directory in repmgr.conf.")
	case !inRecovery:
		n.Close()
		r.writes = true
		return stop("runs as a primary")
	}
	r.local = n
	return "in recovery", nil
}

// findUpstream finds the one primary through the target.
func (r *rejoining) findUpstream(ctx context.Context) (_ string, err error) {
	if r.o.Target == "" && r.local == nil {
		return "", hint(kind(ErrConfig, "no node was named to ask who the primary is"), "Name any node that can be reached, with -h HOST or -d CONNINFO.")
	}
	target := r.local
	if r.o.Target != "" {
		if target, err = registry.Connect(ctx, "", r.o.Target); err != nil {
			return "", err
		}
		defer target.Close()
	}
	if r.recs, err = target.Records(ctx); err != nil {
		return "", err
	}
	if r.res.Primary, err = r.findPrimary(ctx, registry.OthersThan(r.recs, r.cfg.NodeID)); err != nil {
		return "", err
	}
	if r.primary, err = r.connectTo(ctx, r.res.Primary); err != nil {
		return "", err
	}
	if r.recs, err = r.primary.Records(ctx); err != nil {
		return "", err
	}
	self, ok := registry.ByID(r.recs, r.cfg.NodeID)
	switch {
	case !ok:
		return "", hint(kind(ErrNotRegistered, "%s is not registered", r.self()), "Clone it anew and register it: repmgr standby clone, repmgr standby register.")
	case self.Role == RoleWitness:
		return "", hint(kind(ErrRefused, "%s is a witness", self), "A witness has its own data: just start it.")
	}
	r.res.Node = self
	if r.status, err = r.primary.Status(ctx); err != nil {
		return "", err
	}
	r.res.Timeline = r.status.Timeline
	if err := r.checkPledge(ctx); err != nil {
		return "", err
	}
	if s := r.status.Settings; !r.o.slotOptional && self.SlotName != "" && s.MaxSlots <= len(r.status.Slots) && !hasSlot(r.status.Slots, self.SlotName) {
		return "", hint(kind(ErrRefused, "no replication slot is free on %s: max_replication_slots is %d", r.res.Primary, s.MaxSlots), "Drop slots that nobody uses there, or raise max_replication_slots.")
	}
	return fmt.Sprintf("%s at %s", r.res.Primary, r.status.Position()), nil
}

// checkPledge keeps a node that has pledged itself in an election from going back
// to a primary of an earlier term: it would acknowledge commits that the winner
// of that election does not know.
func (r *rejoining) checkPledge(ctx context.Context) error {
	if r.local != nil {
		return nil // repoint asks the server itself
	}
	vote, err := r.ownBallot()
	if err != nil || vote.Term == 0 {
		return err
	}
	rules, err := r.primary.Rules(ctx)
	if err != nil || len(rules) == 0 || rules[0].Term >= vote.Term {
		return err
	}
	return hint(kind(ErrRefused, "%s has pledged itself to term %d, and %s is of term %d: it may have been deposed", r.res.Node, vote.Term, r.res.Primary, rules[0].Term),
		"An election is going on, or came to nothing. See repmgr service status; the daemons sort it out.")
}

// ownBallot reads the vote of the server that is down; while its data is being
// replaced, from the copy of its settings.
func (r *rejoining) ownBallot() (vote ballot.Ballot, err error) {
	file := filepath.Join(r.stateDir(), "config", postmaster.AutoConf)
	if _, err := os.Stat(file); err != nil {
		file = filepath.Join(r.server.Dir, postmaster.AutoConf)
	}
	if vote, err = readBallot(file); err != nil {
		err = kind(ErrRejoin, "read the vote of %s: %w", r.res.Node, err)
	}
	return vote, err
}

// readBallot reads the vote from the settings of a server that is down, as strictly as
// that of one that runs: what it does not understand may be the vote. A directory
// without data and without that file holds none.
func readBallot(file string) (vote ballot.Ballot, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, errData := os.Stat(filepath.Join(filepath.Dir(file), "global", "pg_control")); errData != nil {
			return vote, nil
		}
		err = ballot.ErrMissing
	}
	var set map[string]string
	if err == nil {
		set, err = ballot.FileSettings(string(text))
	}
	if err == nil {
		vote, err = ballot.Parse(set[ballot.Setting])
	}
	if err != nil {
		return vote, hint(fmt.Errorf("in %s: %w", file, err), "Put the file right: only ALTER SYSTEM may write it. It holds the node's vote, as %s = 'node_id/term/candidate'; what repmgrd has kept of that is in %s, beside it.", ballot.Setting, postmaster.NodesFile)
	}
	return vote, nil
}

// perform does what was decided.
func (r *rejoining) perform(ctx context.Context) (err error) {
	node := r.res.Node
	if node.SlotName != "" {
		created, err := r.primary.CreateSlot(ctx, node.SlotName, node.Name)
		switch {
		case err != nil && !r.o.slotOptional:
			return err
		case err != nil:
			r.warnNoSlot(r.primary, node, err)
			r.res.Node.SlotName, node.SlotName = "", ""
		}
		defer func() {
			if created && !r.res.Streaming && !r.o.NoWait {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				r.dropIdleSlot(ctx, r.primary, node)
			}
		}()
	}
	// Before PostgreSQL 14 it takes a restart to give a restore_command back.
	if r.res.Method == RejoinByFollow && r.local != nil && (!r.server.ArchiveKept() || postgres.Major(r.local.Conn.PgConn()) >= 14) {
		if err := r.step(ctx, "re-point", func(ctx context.Context) (string, error) {
			return "without a restart", r.repoint(ctx, r.local, r.primary, node, r.res.Primary)
		}); err != nil {
			return err
		}
		err := r.finish(ctx)
		if errArchive := ballot.GiveArchive(ctx, r.local.Conn); errArchive != nil && postgres.SQLState(errArchive) != postgres.CodeInsufficientPrivilege {
			r.log.Warn("restore_command is not given back", "node", node.Name, "err", errArchive)
		}
		return err
	}
	if r.local != nil {
		defer func() {
			if err != nil && !r.isGuarded() {
				r.startAgain(ctx)
			}
		}()
	}
	if err := r.step(ctx, "stop", r.stopLocal); err != nil {
		return err
	}
	if r.wasStarted(ctx) {
		if err := r.step(ctx, "compare again", r.compare); err != nil {
			return err
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	if r.res.Method == RejoinByRewind {
		if err := r.takeBack(ctx); err != nil {
			if r.o.Policy != RejoinReclone && !r.cloneOnly || ctx.Err() != nil {
				return err
			}
			if lost := r.sourceLost(ctx); lost != nil { // there is nothing to clone from: the data stays until there is
				return errors.Join(err, lost)
			}
			r.log.Warn("rejoin by pg_rewind did not work: cloning anew", "err", err)
			r.res.Method, r.res.Reason = RejoinByClone, err.Error()
		}
	}
	if r.res.Method == RejoinByClone {
		if err := r.reclone(ctx); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "start", r.startStandby); err != nil {
		return err
	}
	return r.finish(ctx)
}

// sourceLost says why the primary that the node was to come back to is none any more.
func (r *rejoining) sourceLost(ctx context.Context) error {
	n, err := r.connectTo(ctx, r.res.Primary)
	if err != nil {
		return err
	}
	defer n.Close()
	now, err := n.Status(ctx)
	if err == nil && (now.InRecovery || now.Timeline != r.status.Timeline) {
		err = kind(ErrNoPrimary, "%s is not the primary of timeline %d any more", r.res.Primary, r.status.Timeline)
	}
	return err
}

// wasStarted reports whether somebody has started the server since its data was
// compared: as a primary it has written WAL of its own.
func (r *rejoining) wasStarted(ctx context.Context) bool {
	if r.control.SystemIdentifier == 0 {
		return false
	}
	now, err := r.server.Control(ctx)
	return err == nil && (now.State != r.control.State || now.Position() != r.control.Position())
}

// startAgain starts a standby that was stopped for what can not be done now: the
// primary that it was to follow may be lost, and the election needs its vote.
func (r *rejoining) startAgain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.NodeRejoinTimeout)
	defer cancel()
	if r.server.Runs() {
		return
	}
	if err := r.server.Start(ctx); err != nil {
		r.log.Warn("the server was stopped, and is not started again", "node", r.res.Node.Name, "err", err, "hint", Hint(err))
		return
	}
	r.log.Info("rejoin: start again", "detail", "it has a vote, until it can be brought back")
}

// stopLocal leaves no process of the server.
func (r *rejoining) stopLocal(ctx context.Context) (string, error) {
	r.local.Close()
	r.local = nil
	if err := r.server.Stop(ctx); err != nil {
		return "", err
	}
	r.writes = false
	r.server.ForgetDead()
	return "", nil
}

// startStandby writes the standby settings and starts the server.
func (r *rejoining) startStandby(ctx context.Context) (string, error) {
	if err := r.checkPledge(ctx); err != nil { // it may have voted until it was stopped
		return "", err
	}
	set, err := r.standbySettings(r.res.Primary, r.res.Node.Name, r.res.Node.SlotName)
	if err != nil {
		return "", err
	}
	r.recoverySettings(set, "")
	if err := os.Remove(filepath.Join(r.server.Dir, "recovery.signal")); err != nil && !os.IsNotExist(err) {
		return "", kind(ErrDirectory, "remove recovery.signal: %w", err)
	}
	err = r.server.GiveArchive()
	if err == nil {
		err = postmaster.WriteStandby(r.server.Dir, set, []string{ballot.OwnWAL})
	}
	if err != nil {
		return "", kind(ErrDirectory, "write the standby settings: %w", err)
	}
	if err := r.release(); err != nil {
		return "", err
	}
	return "", r.server.Start(ctx)
}

// finish waits until the node streams and records it.
func (r *rejoining) finish(ctx context.Context) error {
	attach := r.attach
	if r.o.NoWait {
		attach = func(context.Context) (string, error) { return "not waited for", nil }
	}
	if err := r.hold(false); err != nil {
		return err
	}
	if err := r.step(ctx, "attach", attach); err != nil {
		return err
	}
	node, former := &r.res.Node, r.res.Node
	node.Role, node.UpstreamID, node.UpstreamName, node.Active = RoleStandby, r.res.Primary.ID, r.res.Primary.Name, true
	if _, err := r.primary.Conn.Exec(ctx, `UPDATE repmgr.nodes SET type = 'standby', upstream_node_id = $2, active = true WHERE node_id = $1`, int32(node.ID), int32(r.res.Primary.ID)); err != nil {
		return hint(kind(ErrMetadata, "%s rejoined, but repmgr.nodes is not updated: %w", node, err), "Run on it: repmgr standby register --force")
	}
	if former.UpstreamID != 0 && former.UpstreamID != r.res.Primary.ID {
		r.dropFormerSlot(ctx, r.recs, former)
	}
	r.dropStaleSlots(ctx)
	return nil
}

// attach waits until the primary sends to the node, on its own timeline.
func (r *rejoining) attach(ctx context.Context) (string, error) {
	limit := r.cfg.NodeRejoinTimeout
	late := hint(kind(ErrRejoin, "%s was started as a standby of %s, but did not stream from it within node_rejoin_timeout (%s)", r.res.Node, r.res.Primary, limit),
		"Its log says why: often pg_hba.conf or the password of the replication user on %s. Look again with repmgr cluster show.", r.res.Primary.Name)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	patient := *r.Cluster // our own deadline is the one that counts
	patient.cfg.StandbyFollowTimeout = forkedAfter
	for {
		local, err := r.connectLocal(ctx)
		if err == nil {
			err = patient.waitAttached(ctx, local, r.primary, r.res.Node, r.res.Primary, r.status.Timeline, func() error { return nil })
			local.Close()
		}
		switch {
		case err == nil:
			r.res.Streaming = true
			return fmt.Sprintf("streaming on timeline %d", r.status.Timeline), nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case !r.server.Runs():
			return "", r.server.StartError(0, errors.New("it ended while it began to follow"))
		case r.forked(ctx):
			return "", hint(kind(ErrTimelineDiverged, "%s has recovered to beyond %s, where the line of %s parts from it", r.res.Node, r.shared, r.res.Primary), "%s", r.again("--force-rewind"))
		}
		if err := wait.Pause(ctx, postgres.PollInterval); err != nil {
			return "", err
		}
	}
}

// forkedAfter is how long a node has to attach until it is asked whether it ever will.
const forkedAfter = 3 * time.Second

// forked reports whether the server has replayed more of the old timeline than
// the primary's line took over: then it will never stream.
func (r *rejoining) forked(ctx context.Context) bool {
	if r.shared.Timeline >= r.status.Timeline {
		return false
	}
	local, err := r.connectLocal(ctx)
	if err != nil {
		return false
	}
	defer local.Close()
	s, err := local.Status(ctx)
	return err == nil && s.InRecovery && s.Timeline <= r.shared.Timeline && s.ReplayedLSN > r.shared.LSN
}

// dropStaleSlots drops the slots that the node kept for its standbys as a
// primary: they would hold its WAL for ever.
func (r *rejoining) dropStaleSlots(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*postgres.DefaultConnectTimeout)
	defer cancel()
	local, err := r.connectLocal(ctx)
	if err != nil {
		return // NoWait; the next rejoin or follow looks again
	}
	defer local.Close()
	status, err := local.Status(ctx)
	if err != nil {
		return
	}
	for _, s := range status.Slots {
		owner := Record{}
		for _, rec := range r.recs {
			if rec.SlotName == s.Name {
				owner = rec
			}
		}
		switch {
		case s.Active || s.Temporary || !s.Physical:
		case owner.ID != 0 && owner.UpstreamID != r.res.Node.ID:
			r.dropIdleSlot(ctx, local, owner)
		case owner.ID == 0:
			r.log.Warn("an inactive replication slot keeps WAL on this standby", "slot", s.Name, "hint", fmt.Sprintf("If nobody needs it: SELECT pg_drop_replication_slot('%s');", s.Name))
		}
	}
}
