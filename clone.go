package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/clone"
	"github.com/pgrepmgr/repmgr/internal/datadir"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Cloner fills an empty directory with a base backup of a running server: the files, a
// backup_label, and the WAL from its start to its end. Implement it for another way to copy;
// [Cluster.Clone] does everything before and after.
//
// Copy writes nothing outside job.Dir, except into directories that job.Claim agreed to. It
// leaves no process and no session behind, and returns when ctx ends. It removes nothing: when
// Copy returns an error, the caller removes the files.
type Cloner interface {
	Copy(ctx context.Context, job CopyJob) error
}

// CopyJob is what a [Cloner] is asked to do.
type CopyJob struct {
	Source          string // conninfo of the server to copy; may hold a password
	ReplicationUser string // role for replication connections; empty: the one of Source
	Status          NodeStatus
	Dir             string // exists, and is empty
	Slot            string // existing physical slot on the source that keeps the WAL; empty: there is none
	Label           string
	FastCheckpoint  bool
	RemoteUser      string                               // OS user on the source's host
	Tablespace      func(location string) string         // where a tablespace of the source goes here
	Claim           func(dir string) error               // must agree before a directory outside Dir is filled
	Progress        func(CopyProgress)                   // never nil
	Log             func(msg string, attrs ...slog.Attr) // logs a step that an operator may want to see
}

// CopyProgress is a snapshot of a running copy.
type CopyProgress struct {
	Phase   string        `json:"phase"`
	Done    int64         `json:"done_bytes"`
	Total   int64         `json:"total_bytes"` // the source's estimate; 0: unknown
	Elapsed time.Duration `json:"elapsed_ns"`
}

// CloneOptions are the choices of [Cluster.Clone]. Only Source is required.
type CloneOptions struct {
	Source                string      // conninfo of the server to copy; what it leaves out comes from the configuration's conninfo
	Dir                   string      // the new data directory. The configuration's data_directory takes precedence; with neither, the current directory.
	Method                CloneMethod // defaults to clone_method of the configuration
	Cloner                Cloner      // instead of Method
	UpstreamID            NodeID      // the registered node to follow. Defaults to upstream_node_id, else to the primary.
	UpstreamConninfo      string      // the server to follow, instead of UpstreamID
	ReplicationUser       string      // defaults to replication_user of the configuration, else that of the upstream
	RemoteUser            string      // OS user for rsync over ssh; empty: ssh's own default
	LocalPort             int         // port of the new server, where it differs from the source's
	RecoveryMinApplyDelay string      // in PostgreSQL's form, such as "5min". Defaults to that of the configuration.

	FastCheckpoint      bool // copy at once instead of waiting for the source's next checkpoint
	Force               bool // replace the data directory of a server that does not run
	DryRun              bool // check everything, change nothing
	ReplicationConfOnly bool // copy nothing: write the standby settings into an existing data directory

	Progress func(CopyProgress) // about ten times a second, never after Clone has returned

	serverMayRun bool    // with DryRun: the server in Dir may run, because it will be stopped
	slot         *string // the name of the slot to make; nil: as the configuration says
}

// CloneResult is the result of a clone.
type CloneResult struct {
	Dir              string        `json:"data_directory"`
	Source           string        `json:"source"` // without a password
	Upstream         string        `json:"upstream"`
	Slot             string        `json:"slot_name,omitempty"`
	SystemIdentifier string        `json:"system_identifier"`
	Bytes            int64         `json:"copied_bytes"`
	Elapsed          time.Duration `json:"elapsed_ns"`
	Checks           []Check       `json:"checks"`
	DryRun           bool          `json:"dry_run,omitempty"`
}

// Check is one check that was made before anything was changed.
type Check struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Warning bool   `json:"warning,omitempty"` // not OK, but no reason to stop
	Detail  string `json:"detail"`
}

// cloning is one run of Clone.
type cloning struct {
	*Cluster
	o          CloneOptions
	source     *registry.Server
	status     registry.NodeStatus
	recs       []Record // nil: the source has no metadata
	upstream   Record   // where the new standby will stream from
	fromSource bool     // the upstream is the source itself
	tables     []clone.Tablespace
	res        CloneResult
}

// Clone copies a running server into a new data directory and makes that a
// standby. It starts nothing and registers nothing.
//
// When it fails, or ctx ends, what it made is gone again, the replication slot
// too; an existing directory is touched only with Force, and only after every
// check has passed. A copy that was killed can not be started, and the next
// Clone into the directory clears it away.
func (c *Cluster) Clone(ctx context.Context, o CloneOptions) (CloneResult, error) {
	start := time.Now()
	run := &cloning{Cluster: c, o: o}
	err := run.prepare(ctx)
	defer func() { run.source.Close() }()
	if err == nil && !o.DryRun {
		if o.ReplicationConfOnly {
			err = run.writeConf(ctx)
		} else {
			err = run.copy(ctx)
		}
	}
	run.res.Elapsed = time.Since(start)
	return run.res, err
}

// prepare looks at everything and changes nothing.
func (r *cloning) prepare(ctx context.Context) (err error) {
	if err := r.completeOptions(); err != nil {
		return err
	}
	r.res = CloneResult{Dir: r.o.Dir, Source: Redact(r.o.Source), DryRun: r.o.DryRun, Checks: []Check{}}
	if r.source, err = registry.Connect(ctx, "", r.o.Source); err != nil {
		return err
	}
	if r.status, err = r.source.Status(ctx); err != nil {
		return err
	}
	r.res.SystemIdentifier = r.status.SystemIdentifier
	r.recs, err = r.source.Records(ctx)
	if err != nil && !errors.Is(err, ErrNotRegistered) {
		return err
	}
	if err := r.findUpstream(ctx); err != nil {
		return err
	}
	if r.cfg.UseReplicationSlots && r.cfg.NodeID != 0 {
		r.res.Slot = registry.SlotName(r.cfg.NodeID)
	}
	r.res.Slot = *cmp.Or(r.o.slot, &r.res.Slot)
	if r.tables, err = clone.ReadTablespaces(ctx, r.source); err != nil {
		return err
	}
	return r.preflight(ctx)
}

// completeOptions fills in what the configuration says.
func (r *cloning) completeOptions() error {
	o := &r.o
	params, err := ParseConninfo(o.Source)
	if err != nil {
		return kind(ErrConfig, "source conninfo: %w", err)
	}
	if params["host"] == "" && params["hostaddr"] == "" && o.Source == "" {
		return hint(kind(ErrConfig, "no server to clone from"), "Name it: repmgr standby clone HOST, or with -h HOST.")
	}
	if ours, err := ParseConninfo(r.cfg.Conninfo); err == nil {
		keys := []string{"user", "dbname", "sslmode", "sslrootcert", "connect_timeout"}
		if params["user"] == "" || params["user"] == conninfo.User(ours) {
			keys = append(keys, "password", "passfile") // they belong to that user
		}
		for _, key := range keys {
			if params[key] == "" && ours[key] != "" {
				params[key] = ours[key]
			}
		}
	}
	o.Source = FormatConninfo(params)
	if o.UpstreamID == 0 && o.UpstreamConninfo == "" {
		o.UpstreamID = r.cfg.UpstreamNodeID
	}
	if r.cfg.DataDirectory != "" {
		if o.Dir != "" && filepath.Clean(o.Dir) != filepath.Clean(r.cfg.DataDirectory) {
			r.log.Warn(fmt.Sprintf("directory %s is ignored: data_directory is %s", o.Dir, r.cfg.DataDirectory))
		}
		o.Dir = r.cfg.DataDirectory
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return kind(ErrDirectory, "find the current directory: %w", err)
	}
	if o.Cloner == nil {
		o.Cloner, err = r.cloner(o.Method)
	}
	if o.Progress == nil {
		o.Progress = func(CopyProgress) {}
	}
	return err
}

// cloner returns the Cloner of a method.
func (c *Cluster) cloner(m CloneMethod) (Cloner, error) {
	if m == "" {
		m = c.cfg.CloneMethod
	}
	switch m {
	case CloneBasebackup, "":
		return builtin{clone.Basebackup{Config: c.login().Config}}, nil
	case CloneRsync:
		return builtin{clone.Rsync{Options: c.cfg.RsyncOptions, SSHOptions: c.cfg.SSHOptions}}, nil
	case CloneCommand:
		if c.cfg.CloneCommand == "" {
			return nil, hint(kind(ErrConfig, "clone method %q: clone_command is not set", m), "Set clone_command in repmgr.conf.")
		}
		return builtin{clone.Command(c.cfg.CloneCommand)}, nil
	default:
		return nil, kind(ErrConfig, "clone method %q: must be basebackup, rsync or command", m)
	}
}

// builtin is one of the built-in ways to copy.
type builtin struct{ clone.Copier }

var _ Cloner = builtin{}

func (b builtin) Copy(ctx context.Context, job CopyJob) error {
	return b.Copier.Copy(ctx, clone.Job{
		Source: job.Source, ReplicationUser: job.ReplicationUser, RemoteUser: job.RemoteUser, Status: job.Status,
		Dir: job.Dir, Slot: job.Slot, Label: job.Label, FastCheckpoint: job.FastCheckpoint,
		Tablespace: job.Tablespace, Claim: job.Claim, Log: job.Log,
		Progress: func(phase string, done, total int64) {
			job.Progress(CopyProgress{Phase: phase, Done: done, Total: total})
		},
	})
}

// findUpstream decides which node the new standby will follow: the given one, else the
// registered primary, else the source.
func (r *cloning) findUpstream(ctx context.Context) error {
	params, _ := ParseConninfo(r.o.Source)
	self := Record{Name: "source", Conninfo: r.o.Source, ReplicationUser: r.replicationUser(params)}
	switch {
	case r.o.UpstreamConninfo != "":
		up, err := ParseConninfo(r.o.UpstreamConninfo)
		if err != nil {
			return kind(ErrConfig, "upstream conninfo: %w", err)
		}
		r.upstream = Record{Name: "upstream", Conninfo: r.o.UpstreamConninfo, ReplicationUser: r.replicationUser(up)}
	case r.o.UpstreamID != 0:
		rec, ok := registry.ByID(r.recs, r.o.UpstreamID)
		if !ok {
			return registry.Unknown(r.recs, r.o.UpstreamID, "")
		}
		r.upstream = rec
	default:
		r.upstream = self
		if rec, ok := registry.Primary(r.recs); ok {
			r.upstream = rec
		}
	}
	if r.o.ReplicationUser != "" {
		r.upstream.ReplicationUser = r.o.ReplicationUser
	}
	// A conninfo without a host is only valid on the node itself.
	up := r.look(ctx, r.upstream)
	r.fromSource = up.Err == nil && up.Status.StartedAt.Equal(r.status.StartedAt) && up.Status.SystemIdentifier == r.status.SystemIdentifier
	p, _ := ParseConninfo(r.upstream.Conninfo)
	if local := p["host"] == "" && p["hostaddr"] == ""; local && r.upstream.ID != 0 && !r.status.InRecovery && r.o.UpstreamID == 0 {
		r.upstream.Conninfo, r.fromSource = r.o.Source, true
	}
	r.res.Upstream = postgres.Address(r.upstream.Conninfo)
	if r.upstream.ID != 0 {
		r.res.Upstream = r.upstream.String()
	}
	return nil
}

// preflight makes all checks before the first change, and reports all failures at once.
func (r *cloning) preflight(ctx context.Context) error {
	if d := r.o.RecoveryMinApplyDelay; d != "" && !settings.IsTime(d) {
		return hint(kind(ErrConfig, "recovery_min_apply_delay %q: must be an integer with a unit (ms, s, min, h, d)", d), "Such as 30min.")
	}
	plan := clone.Plan{
		Source: r.source.Name, Status: r.status, Role: r.sourceReplicationUser(), Slot: r.res.Slot, Dir: r.o.Dir, Force: r.o.Force, Runs: r.o.serverMayRun,
		Elsewhere: "Name another directory with -D", Tablespaces: r.tables, Place: r.tablespaceTarget,
	}
	if r.cfg.DataDirectory != "" {
		plan.Elsewhere = "Change data_directory in " + r.cfg.File
	}
	var checks clone.Checks
	checks.Source(plan)
	checks.Try("replication connection", "a login for replication is accepted", r.tryReplication(ctx))
	checks.Identity(r.recs, Record{ID: r.cfg.NodeID, Name: r.cfg.NodeName}, r.upstream)
	if !r.o.ReplicationConfOnly {
		checks.Directories(plan)
		if b, ok := r.o.Cloner.(builtin); ok {
			if way, ok := b.Copier.(clone.Checker); ok {
				checks.Try("clone method", "it can be used", way.Check(ctx, r.o.Source, r.o.RemoteUser))
			}
		}
	}
	checks.Settings(plan)
	for _, c := range checks {
		r.res.Checks = append(r.res.Checks, Check(c))
	}
	return checks.Verdict(r.log, plan)
}

// tryReplication logs in for replication, with the role that the copy will use.
func (r *cloning) tryReplication(ctx context.Context) error {
	source := Record{Name: "source", Conninfo: r.o.Source, ReplicationUser: r.sourceReplicationUser()}
	conn, err := r.login().Dial(ctx, source, r.dialInfo(source))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// copy makes the Cloner fill a staging directory, makes that data a standby and puts it in its
// place. When anything fails, the slot and all files that were made are removed.
func (r *cloning) copy(ctx context.Context) (err error) {
	target, err := datadir.Open(r.o.Dir, r.o.Force, false)
	if err != nil {
		return err
	}
	dropSlot, err := r.makeSlot(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			target.Abandon()
			dropSlot()
		}
	}()
	if err := target.Begin(r.status.Settings.DataDirectoryMode); err != nil {
		return err
	}
	began, told := time.Now(), false
	job := CopyJob{
		Source: r.o.Source, ReplicationUser: r.sourceReplicationUser(), Status: r.status, Dir: target.Data, Label: "repmgr base backup",
		FastCheckpoint: r.o.FastCheckpoint, RemoteUser: r.o.RemoteUser,
		Tablespace: r.tablespaceTarget, Claim: target.Claim,
		Progress: func(p CopyProgress) {
			if !told && p.Phase == clone.PhaseCheckpoint && !r.o.FastCheckpoint {
				told = true
				r.log.Log(ctx, LevelNotice, "waiting for a checkpoint of the source", "detail", "It spreads its checkpoints; this can take minutes.",
					"hint", "With --fast-checkpoint (-c) the copy begins at once, at the price of a burst of writes there.")
			}
			r.res.Bytes = max(r.res.Bytes, p.Done)
			p.Elapsed = time.Since(began)
			r.o.Progress(p)
		},
		Log: func(msg string, attrs ...slog.Attr) { r.log.LogAttrs(ctx, slog.LevelInfo, msg, attrs...) },
	}
	if r.fromSource {
		job.Slot = r.res.Slot
	}
	if err := r.o.Cloner.Copy(ctx, job); err != nil {
		if ctx.Err() != nil {
			return kind(ErrCopy, "clone into %s: stopped: %w", r.o.Dir, context.Cause(ctx))
		}
		left := "Nothing was left behind."
		if len(target.Replace) > 0 {
			left = "The former contents of " + r.o.Dir + " were deleted before the copy."
		}
		return hint(kind(ErrCopy, "clone into %s: %w", r.o.Dir, err), "%s %s", left, cmp.Or(Hint(err), "Mend the cause and run the same command again."))
	}
	if r.res.Bytes == 0 { // a Cloner need not count the bytes
		r.res.Bytes = datadir.Size(target.Data)
	}
	if err := r.finish(ctx, target); err != nil {
		return err
	}
	r.recordClone(ctx)
	return nil
}

// sourceReplicationUser is the role for replication connections to the source.
func (r *cloning) sourceReplicationUser() string {
	if r.o.ReplicationUser != "" || r.fromSource {
		return r.upstream.ReplicationUser
	}
	return r.cfg.ReplicationUser
}

// finish makes the copy a standby and, as the last step, puts it in its place.
func (r *cloning) finish(ctx context.Context, target *datadir.Target) error {
	if err := clone.Verify(target.Data, r.status.SystemIdentifier); err != nil {
		return err
	}
	set, err := r.settings()
	if err != nil {
		return err
	}
	if err := clone.WriteSettings(target.Data, set); err != nil {
		return kind(ErrCopy, "write the standby settings: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return kind(ErrCopy, "clone into %s: stopped: %w", r.o.Dir, context.Cause(ctx))
	}
	return target.Commit()
}

// settings are those of the new standby.
func (r *cloning) settings() (map[string]string, error) {
	set, err := r.login().Settings(r.upstream, r.cfg.NodeName, r.res.Slot)
	if err != nil {
		return nil, err
	}
	r.recovery(r.o.RecoveryMinApplyDelay).AddTo(set)
	if port := r.localPort(); port != 0 {
		set["port"] = strconv.Itoa(port)
	}
	return set, nil
}

// localPort is the port that must be set for the new server, where the copied configuration
// would make it listen on another port than its conninfo says. 0: none.
func (r *cloning) localPort() int {
	if r.o.LocalPort != 0 {
		return r.o.LocalPort
	}
	ours, err := ParseConninfo(r.cfg.Conninfo)
	port, errPort := strconv.Atoi(ours["port"])
	if r.cfg.NodeID == 0 || err != nil || errPort != nil || port == r.status.Settings.Port {
		return 0
	}
	r.log.Log(context.Background(), LevelNotice, fmt.Sprintf("the new server will listen on port %d, as its conninfo says", port))
	return port
}

// makeSlot creates the slot on the upstream before any WAL is needed from there. drop removes
// it again.
func (r *cloning) makeSlot(ctx context.Context) (drop func(), err error) {
	if r.res.Slot == "" {
		return func() {}, nil
	}
	return clone.MakeSlot(ctx, r.upstream, r.dialInfo(r.upstream), r.res.Slot, r.cfg.NodeName, r.log)
}

// recordClone writes the event, where there is metadata and a primary to write it on.
func (r *cloning) recordClone(ctx context.Context) {
	e := Event{
		NodeID: r.cfg.NodeID, Node: r.cfg.NodeName, Type: EventStandbyClone, Success: true,
		Details: fmt.Sprintf("cloned from %s into %s", r.source.Name, r.o.Dir),
	}
	if r.cfg.NodeID == 0 || r.recs == nil {
		return
	}
	primary, err := r.connectPrimary(ctx, r.source)
	if err != nil {
		r.emit(ctx, nil, e)
		return
	}
	if primary != r.source {
		defer primary.Close()
	}
	r.emit(ctx, primary, e)
}

// writeConf does what ReplicationConfOnly asks for: it writes the settings into an existing
// directory.
func (r *cloning) writeConf(ctx context.Context) error {
	if _, err := pgcontrol.ReadVersion(r.o.Dir); err != nil {
		return kind(ErrDirectory, "%s is not a data directory: %w", r.o.Dir, err)
	}
	if pid := postmaster.PID(r.o.Dir); pid != 0 && !r.o.Force {
		return hint(kind(ErrDirectory, "a server runs in %s (pid %d)", r.o.Dir, pid), "With --force its settings are written all the same; reload it afterwards.")
	}
	if _, err := r.makeSlot(ctx); err != nil {
		return err
	}
	set, err := r.settings()
	if err != nil {
		return err
	}
	if err := postmaster.WriteStandby(r.o.Dir, set, nil); err != nil {
		return kind(ErrDirectory, "write the standby settings: %w", err)
	}
	return nil
}

// tablespaceTarget is the place of a tablespace in the copy: the mapped path, or the same path.
func (r *cloning) tablespaceTarget(location string) string {
	if to := r.cfg.TablespaceMapping[location]; to != "" {
		return to
	}
	return location
}
