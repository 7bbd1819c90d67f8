package repmgr

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
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

	slotOptional bool                      // a Monitor brings it back: it streams without a slot where none can be made, and has a vote meanwhile
	elsewhere    func(wal.Position) Record // where the primary is lost, a standby that has all WAL up to a position; none: the zero Record. Nil: it is not known
	hold         func(bool) error          // called when a part that must not be interrupted begins (true) and ends; an error keeps it from beginning
}

// RejoinMethod is the way in which a node came back.
type RejoinMethod string

const (
	RejoinByFollow RejoinMethod = "follow"  // it had no WAL that the primary does not have
	RejoinByRewind RejoinMethod = "rewind"  // the WAL that it had too much was taken back
	RejoinByClone  RejoinMethod = "reclone" // all data was copied again
)

// RejoinStep is one step of a rejoin.
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
	if o.hold == nil {
		o.hold = func(bool) error { return nil }
	}
	r := &rejoining{Cluster: c, o: o, res: RejoinResult{DryRun: o.DryRun, Steps: []RejoinStep{}}}
	r.work = &rejoin.Work{Options: rejoin.Options{
		MayRewind: o.Policy == RejoinRewind || o.Policy == RejoinReclone, MayClone: o.Policy == RejoinReclone, Force: o.Force, DryRun: o.DryRun,
		Archive: c.cfg.RestoreCommand != "", PgRewind: o.PgRewind, ConfigFiles: o.ConfigFiles, Logger: c.log,
		ConnectLocal: c.connectLocal, ConnectTo: c.connectTo,
		History: func(ctx context.Context, of Record, t wal.Timeline) (wal.History, error) {
			return c.login().History(ctx, of, c.dialInfo(of), t)
		},
		Clone: r.clone, Step: r.step, Again: r.again,
	}}
	if o.elsewhere != nil {
		r.work.Elsewhere = func(upTo wal.Position) (Record, map[string]string) {
			from := o.elsewhere(upTo)
			set, err := c.login().Settings(from, r.work.Node.Name, "")
			if from.ID == 0 || err != nil {
				return Record{}, nil
			}
			return from, set
		}
	}
	defer r.work.Close()
	err := r.run(ctx)
	r.res.Elapsed = time.Since(start)
	return r.result(), err
}

// rejoining is one run of Rejoin.
type rejoining struct {
	*Cluster
	o    RejoinOptions
	work *rejoin.Work
	recs []Record
	res  RejoinResult // without what the work knows; see result
}

func (r *rejoining) run(ctx context.Context) error {
	if r.o.Policy == RejoinNever {
		return hint(kind(ErrRefused, "%s stays down: rejoin is set to %q", r.self(), r.o.Policy), "%s", r.again("--force-rewind"))
	}
	if err := r.inspect(ctx); err != nil {
		return err
	}
	if err := r.step(ctx, "compare", r.work.Compare); err != nil {
		return err
	}
	if err := r.work.Settle(ctx); err != nil {
		r.work.Method = "" // nothing was started
		return err
	}
	if r.o.DryRun {
		return nil
	}
	if err := r.o.hold(true); err != nil {
		return err
	}
	err := r.perform(ctx)
	res := r.result()
	e := Event{
		NodeID: res.Node.ID, Node: res.Node.Name, Type: EventNodeRejoin, Success: err == nil,
		Details: res.String(), PeerID: res.Primary.ID, Peer: res.Primary.Name, PeerConninfo: res.Primary.Conninfo,
	}
	if err != nil {
		e.Details = err.Error()
	}
	r.emit(ctx, r.work.Source, e)
	return err
}

// inspect finds the primary and the state of the local server.
func (r *rejoining) inspect(ctx context.Context) (err error) {
	if err := r.cfg.RequireNode(); err != nil {
		return err
	}
	if r.work.Server, err = r.localServer(r.o.DataDirectory); err != nil {
		return err
	}
	if err := r.work.Server.MayControl(); err != nil {
		return err
	}
	if !r.o.DryRun {
		if err := r.work.Lock(); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "local server", r.work.FindLocal); err != nil {
		return err
	}
	return r.step(ctx, "primary", r.findUpstream)
}

// findUpstream finds the one primary, starting from the target.
func (r *rejoining) findUpstream(ctx context.Context) (_ string, err error) {
	w := r.work
	if r.o.Target == "" && w.Local == nil {
		return "", hint(kind(ErrConfig, "no node was named to ask who the primary is"), "Name any node that can be reached, with -h HOST or -d CONNINFO.")
	}
	target := w.Local
	if r.o.Target != "" {
		if target, err = registry.Connect(ctx, "", r.o.Target); err != nil {
			return "", err
		}
		defer target.Close()
	}
	if r.recs, err = target.Records(ctx); err != nil {
		return "", err
	}
	if w.Primary, err = r.findPrimary(ctx, registry.OthersThan(r.recs, r.cfg.NodeID)); err != nil {
		return "", err
	}
	if w.Source, err = r.connectTo(ctx, w.Primary); err != nil {
		return "", err
	}
	if r.recs, err = w.Source.Records(ctx); err != nil {
		return "", err
	}
	self, ok := registry.ByID(r.recs, r.cfg.NodeID)
	switch {
	case !ok:
		return "", hint(kind(ErrNotRegistered, "%s is not registered", r.self()), "Clone it anew and register it: repmgr standby clone, repmgr standby register.")
	case self.Role == RoleWitness:
		return "", hint(kind(ErrRefused, "%s is a witness", self), "A witness has its own data: just start it.")
	}
	w.Node = self
	if w.Status, err = w.Source.Status(ctx); err != nil {
		return "", err
	}
	r.res.Timeline = w.Status.Timeline
	if err := w.CheckPledge(ctx); err != nil {
		return "", err
	}
	if s := w.Status.Settings; !r.o.slotOptional && self.SlotName != "" && s.MaxSlots <= len(w.Status.Slots) && !slices.ContainsFunc(w.Status.Slots, func(s registry.Slot) bool { return s.Name == self.SlotName }) {
		return "", hint(kind(ErrRefused, "no replication slot is free on %s: max_replication_slots is %d", w.Primary, s.MaxSlots), "Drop slots that nobody uses there, or raise max_replication_slots.")
	}
	return fmt.Sprintf("%s at %s", w.Primary, w.Status.Position()), nil
}

// perform carries out the chosen method.
func (r *rejoining) perform(ctx context.Context) (err error) {
	w := r.work
	dropSlot, err := r.makeSlot(ctx)
	if err != nil {
		return err
	}
	defer dropSlot()
	// Before PostgreSQL 14 it takes a restart to give a restore_command back.
	if w.Method == rejoin.ByFollow && w.Local != nil && (!w.Server.ArchiveKept() || postgres.Major(w.Local.Conn.PgConn()) >= 14) {
		return r.followRunning(ctx)
	}
	ran := w.Local != nil
	defer func() {
		if err != nil && (ran || r.o.slotOptional && w.Server.StaysStandby()) { // a Monitor wants it to have a vote
			w.StartAgain(ctx, r.cfg.NodeRejoinTimeout)
		}
	}()
	if err := r.step(ctx, "stop", w.Stop); err != nil {
		return err
	}
	if w.WasStarted(ctx) {
		if err := r.step(ctx, "compare again", w.Compare); err != nil {
			return err
		}
		if err := w.Settle(ctx); err != nil {
			return err
		}
	}
	if w.Method == rejoin.ByRewind {
		if err := w.Rewind(ctx); err != nil {
			return err
		}
	}
	if w.Method == rejoin.ByClone {
		if err := w.Reclone(ctx); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "start", r.startStandby); err != nil {
		return err
	}
	return r.finish(ctx)
}

// makeSlot makes the node's slot on the primary. undo drops it again, where it was made by this
// call and the node does not stream.
func (r *rejoining) makeSlot(ctx context.Context) (undo func(), err error) {
	node := r.work.Node
	if node.SlotName == "" {
		return func() {}, nil
	}
	created, err := r.work.Source.CreateSlot(ctx, node.SlotName, node.Name)
	if err != nil && !r.o.slotOptional {
		return nil, err
	}
	if err != nil {
		r.warnNoSlot(r.work.Source, node, err)
		r.work.Node.SlotName = ""
	}
	return func() {
		if created && !r.work.Streaming && !r.o.NoWait {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			r.dropIdleSlot(ctx, r.work.Source, node)
		}
	}, nil
}

// followRunning re-points a standby that runs.
func (r *rejoining) followRunning(ctx context.Context) error {
	w := r.work
	if err := r.step(ctx, "re-point", func(ctx context.Context) (string, error) {
		return "without a restart", r.move(w.Local, w.Source, w.Node, w.Primary).Repoint(ctx)
	}); err != nil {
		return err
	}
	err := r.finish(ctx)
	if errArchive := ballot.EnableArchive(ctx, w.Local.Conn); errArchive != nil && postgres.SQLState(errArchive) != postgres.CodeInsufficientPrivilege {
		r.log.Warn("restore_command is not given back", "node", w.Node.Name, "err", errArchive)
	}
	return err
}

// clone copies the primary into the data directory. With beforehand it only checks: nothing is
// changed, and the server may still run.
func (r *rejoining) clone(ctx context.Context, beforehand bool) (bytes int64, err error) {
	res, err := r.Clone(ctx, CloneOptions{
		Source: r.dialInfo(r.work.Primary), Dir: r.work.Server.Dir, UpstreamID: r.work.Primary.ID,
		FastCheckpoint: true, Force: true, DryRun: beforehand, serverMayRun: beforehand, slot: &r.work.Node.SlotName, Progress: r.o.Progress,
	})
	return res.Bytes, err
}

// startStandby starts the server as a standby of the primary.
func (r *rejoining) startStandby(ctx context.Context) (string, error) {
	set, err := r.login().Settings(r.work.Primary, r.work.Node.Name, r.work.Node.SlotName)
	if err != nil {
		return "", err
	}
	r.recovery("").AddTo(set)
	return "", r.work.Start(ctx, set)
}

// finish waits until the node streams and records it.
func (r *rejoining) finish(ctx context.Context) error {
	if err := r.o.hold(false); err != nil {
		return err
	}
	if err := r.step(ctx, "attach", r.attach); err != nil {
		return err
	}
	node, former := &r.work.Node, r.work.Node
	node.Role, node.UpstreamID, node.UpstreamName, node.Active = RoleStandby, r.work.Primary.ID, r.work.Primary.Name, true
	if err := r.work.Source.RecordUpstream(ctx, node.ID, r.work.Primary.ID); err != nil {
		return hint(kind(ErrMetadata, "%s rejoined, but repmgr.nodes is not updated: %w", node, err), "Run on it: repmgr standby register --force")
	}
	if former.UpstreamID != 0 && former.UpstreamID != r.work.Primary.ID {
		r.dropFormerSlot(ctx, r.recs, former)
	}
	r.work.DropStaleSlots(ctx, r.recs, r.dropIdleSlot)
	return nil
}

// attach waits until the primary sends to the node.
func (r *rejoining) attach(ctx context.Context) (string, error) {
	if r.o.NoWait {
		return "not waited for", nil
	}
	w := r.work
	return w.Attach(ctx, r.cfg.NodeRejoinTimeout, func(ctx context.Context, local *registry.Server) error {
		return r.awaitStreaming(ctx, r.move(local, w.Source, w.Node, w.Primary), w.Status.Timeline, rejoin.ForkedAfter, nil)
	})
}

// result is what was done so far.
func (r *rejoining) result() RejoinResult {
	res, w := r.res, r.work
	res.Node, res.Primary, res.Method, res.Reason, res.Fork = w.Node, w.Primary, RejoinMethod(w.Method), w.Reason, w.Fork
	res.Streaming = w.Streaming
	if w.Saved != nil {
		saved := Salvage(*w.Saved)
		res.Salvage = &saved
	}
	return res
}

// String is the outcome in a sentence; for a new clone, also why it was needed.
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

// step runs one named step, and records and logs it.
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

// again is the command line that repeats the rejoin.
func (r *rejoining) again(options string) string {
	target := Record{Conninfo: r.o.Target}
	if r.work.Source != nil {
		target = r.work.Primary
	}
	return "Run: " + follow.RejoinCommand(Record{ConfigFile: r.cfg.File}, target, options)
}
