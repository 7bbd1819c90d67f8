package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// LevelNotice is repmgr's NOTICE: something was done that an operator wants to
// know of. It lies between slog's Info and Warn.
const LevelNotice = slog.Level(2)

// Cluster is the registered nodes, as seen from the node of its [Config]. It is
// safe for concurrent use, holds no connection between calls and needs no Close.
type Cluster struct {
	cfg       Config
	log       *slog.Logger
	notifiers []Notifier
}

// New checks cfg and returns the cluster that it describes. It opens nothing.
// The error is an [ErrConfig] that lists every fault.
func New(cfg Config) (*Cluster, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Cluster{cfg: cfg, log: cfg.Logger, notifiers: cfg.allNotifiers()}, nil
}

// Config returns the configuration, with its defaults filled in.
func (c *Cluster) Config() Config { return c.cfg }

// self names the node of the configuration in messages.
func (c *Cluster) self() string {
	return Record{ID: c.cfg.NodeID, Name: c.cfg.NodeName}.String()
}

// connectLocal opens a connection to the node of the configuration.
func (c *Cluster) connectLocal(ctx context.Context) (*registry.Server, error) {
	if c.cfg.Conninfo == "" {
		return nil, hint(kind(ErrConfig, "conninfo is not set in %s", cmp.Or(c.cfg.File, "the configuration")), "Set conninfo in repmgr.conf, name the file with -f, or give -h, -p, -U and -d.")
	}
	if c.cfg.NodeID == 0 {
		return registry.Connect(ctx, "", c.cfg.Conninfo)
	}
	return registry.Connect(ctx, c.self(), c.cfg.Conninfo)
}

// connectTo opens a connection to a registered node.
func (c *Cluster) connectTo(ctx context.Context, r Record) (*registry.Server, error) {
	return registry.Connect(ctx, r.String(), c.dialInfo(r))
}

// dialInfo is a node's conninfo, with what only we know: records hold no
// password, so ours serves where the login is the same and no password file is named.
func (c *Cluster) dialInfo(r Record) string {
	theirs, err := ParseConninfo(r.Conninfo)
	if err != nil {
		return r.Conninfo
	}
	delete(theirs, "target_session_attrs") // a row of an older program may have one: we want that node, whatever it runs as
	ours, err := ParseConninfo(c.cfg.Conninfo)
	if err != nil || theirs["user"] != ours["user"] || theirs["password"] != "" || theirs["passfile"] != "" {
		return FormatConninfo(theirs)
	}
	for _, key := range []string{"password", "passfile"} {
		if ours[key] != "" {
			theirs[key] = ours[key]
		}
	}
	if c.cfg.Passfile != "" && theirs["passfile"] == "" {
		theirs["passfile"] = c.cfg.Passfile
	}
	return FormatConninfo(theirs)
}

// localServer finds the server of this machine by its data directory: that of
// the configuration, or dir where it names none.
func (c *Cluster) localServer(dir string) (*salvage.Server, error) {
	dir = cmp.Or(c.cfg.DataDirectory, dir)
	if dir == "" {
		return nil, hint(kind(ErrConfig, "the data directory of %s is not known", c.self()), "Set data_directory in repmgr.conf: a server that is down can not be asked.")
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, hint(kind(ErrDirectory, "find the data directory: %w", err), "Is data_directory in repmgr.conf right, and is this the machine of %s?", c.self())
	}
	return newLocalServer(c.cfg, abs), nil
}

func newLocalServer(cfg Config, dir string) *salvage.Server {
	o := postmaster.Options{
		BinDir: cfg.PgBindir, ConfigDirectory: cfg.ConfigDirectory, StartCommand: cfg.ServiceStartCommand, StopCommand: cfg.ServiceStopCommand,
		PgCtlOptions: cfg.PgCtlOptions, StartTimeout: cfg.StandbyReconnectTimeout, StopTimeout: cfg.ShutdownCheckTimeout, Logger: cfg.Logger,
	}
	return &salvage.Server{Server: postmaster.Server{Options: o, Dir: dir}, Root: cfg.SalvageDirectory}
}

// record makes the row that the configuration asks for.
func (c *Cluster) record(role Role) (Record, error) {
	if err := c.cfg.RequireNode(); err != nil {
		return Record{}, err
	}
	params, err := ParseConninfo(c.cfg.Conninfo)
	if err != nil {
		return Record{}, kind(ErrConfig, "conninfo: %w", err)
	}
	secrets := len(params)
	maps.DeleteFunc(params, func(key, _ string) bool { return conninfo.IsSecret(key) })
	if len(params) < secrets {
		c.log.Log(context.Background(), LevelNotice, "the password in conninfo is not stored in repmgr.nodes",
			"detail", "Other nodes use the password of their own conninfo, or a password file.")
	}
	r := Record{
		ID: c.cfg.NodeID, Name: c.cfg.NodeName, Role: role, Active: true,
		Location: c.cfg.Location, Priority: c.cfg.Priority, Conninfo: FormatConninfo(params),
		ReplicationUser: c.replicationUser(params), ConfigFile: c.cfg.File,
	}
	if c.cfg.UseReplicationSlots {
		r.SlotName = registry.SlotName(c.cfg.NodeID)
	}
	return r, nil
}

// replicationUser is the role that replication connections log in as.
func (c *Cluster) replicationUser(params map[string]string) string {
	if c.cfg.ReplicationUser != "" {
		return c.cfg.ReplicationUser
	}
	return conninfo.User(params)
}

// kept reads what the Monitor of the local node has kept of the cluster. Where nothing was
// ever kept it is empty. dir is the data directory where the configuration names none.
func (c *Cluster) kept(dir string) (statefile.State, error) {
	srv, err := c.localServer(dir)
	if err != nil {
		return statefile.State{}, err
	}
	return statefile.Read(srv.Dir)
}

func (c *Cluster) keptRecords() []Record {
	k, err := c.kept("")
	if err != nil {
		return nil
	}
	return k.Nodes
}

// pulse is the time between two looks at a voter, and between two heartbeats.
func (c *Cluster) pulse() time.Duration { return voters.HeartbeatInterval(c.cfg.SilenceTimeout) }

// watchVoters begins to look at the voters of an election; follow says which.
func (c *Cluster) watchVoters(ctx context.Context, wake func()) *voters.Watch {
	k, err := c.kept("")
	if err != nil {
		k = statefile.State{} // nothing is known until it is seen
	}
	return voters.New(ctx, c.watchSettings(), k.Guard, wake)
}

func (c *Cluster) watchSettings() voters.Settings {
	s := voters.Settings{Self: c.cfg.NodeID, SilenceTimeout: c.cfg.SilenceTimeout, Conninfo: c.dialInfo}
	if a := c.cfg.Arbiter; a != nil {
		s.LookArbiter = func(ctx context.Context) (ballot.Ballot, election.Rule, error) {
			st, err := a.Look(ctx)
			return st.Ballot, st.Rule, err
		}
	}
	return s
}

// syncWriter writes synchronous_standby_names with the names of the nodes that are watched.
func (c *Cluster) syncWriter(w *voters.Watch) syncrep.Writer {
	return syncrep.Writer{Name: func(id int32) string { return w.Record(id).Name }, Replaced: c.tellReplaced, Patience: c.cfg.SilenceTimeout / 2}
}

// tellReplaced says that a synchronous_standby_names that somebody else wrote is gone.
func (c *Cluster) tellReplaced(ctx context.Context, n *registry.Server, was, from, value string) {
	c.log.Warn("synchronous_standby_names is replaced", "server", n.Name, "was", was, "from", from, "value", value,
		"hint", "With synchronous_mode=quorum repmgrd looks after this setting. With synchronous_mode=off it is yours.")
	c.emit(ctx, n, Event{
		NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventSyncReplaced, Success: true,
		Details: fmt.Sprintf("synchronous_standby_names of %s was %q (%s), which repmgrd did not write; with synchronous_mode=quorum it is %q now", n.Name, was, from, value),
	})
}

// Nodes reads repmgr.nodes from the local node, in the order of their ids.
func (c *Cluster) Nodes(ctx context.Context) ([]Record, error) {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return nil, err
	}
	defer local.Close()
	return local.Records(ctx)
}

// probe is one look at one registered node: its state, or why there is none.
type probe struct {
	record  Record
	status  NodeStatus
	records []Record       // a primary's own copy of the rows: the one that counts
	rule    election.Rule  // the newest that it has; zero: none, or not known
	foreign *ForeignDaemon // nil: none lives
	lost    *LostWAL       // of a standby that can not go on; see seekLostWAL
	service ServiceNode    // what runs there, where askService was asked to find out
	err     error
}

// further is what is asked of a node that was reached, over the same connection.
type further func(ctx context.Context, n *registry.Server, p *probe)

func (p probe) reach() postgres.Reach {
	var ce *postgres.ConnectError
	switch {
	case p.err == nil:
		return postgres.ReachOK
	case errors.As(p.err, &ce):
		return ce.Reach
	default:
		return postgres.ReachRejected // it answered, but not with its state
	}
}

// look connects to one node and reads its state, within one connect_timeout.
func (c *Cluster) look(ctx context.Context, r Record, ask ...further) probe {
	timeout := postgres.DefaultConnectTimeout
	if cfg, err := postgres.ConnConfig(r.Conninfo); err == nil {
		timeout = cfg.ConnectTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within connect_timeout (%s)", timeout))
	defer cancel()
	n, err := c.connectTo(ctx, r)
	if err != nil {
		return probe{record: r, err: err}
	}
	defer n.Close()
	p := probe{record: r}
	if p.status, p.err = n.Status(ctx); p.err == nil && !p.status.InRecovery {
		p.records, _ = n.Records(ctx) // without them the caller's copy serves
	}
	if p.err == nil {
		if rules, err := n.Rules(ctx); err == nil && len(rules) > 0 {
			p.rule = rules[0]
		}
		var err error
		if p.foreign, err = n.ForeignDaemon(ctx); err != nil { // who can not be asked is not known to have one
			p.service.ServiceError = err.Error()
		}
		for _, f := range ask {
			f(ctx, n, &p)
		}
	}
	return p
}

// survey looks at all nodes at once, so that ten silent ones cost no more than
// one. The answers are in the order of recs.
func (c *Cluster) survey(ctx context.Context, recs []Record, ask ...further) []probe {
	probes := make([]probe, len(recs))
	var wg sync.WaitGroup
	for i, r := range recs {
		wg.Go(func() { probes[i] = c.look(ctx, r, ask...) })
	}
	wg.Wait()
	return probes
}

// primaries are the probes of servers that accept writes.
func primaries(probes []probe) []probe {
	var found []probe
	for _, p := range probes {
		if p.err == nil && !p.status.InRecovery && p.record.Role != RoleWitness {
			found = append(found, p)
		}
	}
	return found
}

// findPrimary looks at every registered node and returns the one primary.
// Two primaries are a split brain: choosing one is a person's decision.
func (c *Cluster) findPrimary(ctx context.Context, recs []Record) (Record, error) {
	if len(recs) == 0 {
		return Record{}, hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	probes := c.survey(ctx, recs)
	found := primaries(probes)
	switch len(found) {
	case 1:
		return found[0].record, nil
	case 0:
		var seen []string
		for _, p := range probes {
			what := "in recovery"
			if p.err != nil {
				what = string(p.reach())
			}
			seen = append(seen, fmt.Sprintf("%s: %s", p.record, what))
		}
		return Record{}, hint(kind(ErrNoPrimary, "no registered node is a reachable primary (%s)", strings.Join(seen, "; ")),
			"%s", noPrimaryHint(probes))
	default:
		var names []string
		for _, p := range found {
			names = append(names, fmt.Sprintf("%s, timeline %d", p.record, p.status.Timeline))
		}
		return Record{}, hint(kind(ErrRefused, "more than one node runs as primary: %s", strings.Join(names, "; ")),
			"Stop the one whose data is not wanted before anything else. It can then be cloned anew as a standby.")
	}
}

// noPrimaryHint does not advise to replace a primary that lives.
func noPrimaryHint(probes []probe) string {
	for _, p := range probes {
		switch reach := p.reach(); {
		case p.record.Role != RolePrimary || !p.record.Active || p.err == nil || !reach.Answers():
		case reach == postgres.ReachRejected:
			return fmt.Sprintf("%s lives, and rejects this login: look at its pg_hba.conf, and at the password.", p.record)
		case reach == postgres.ReachFull:
			return fmt.Sprintf("%s lives, and has no free connection: end some, or raise max_connections.", p.record)
		default:
			return fmt.Sprintf("%s is starting up, shutting down or recovering: wait for it, and look at its log.", p.record)
		}
	}
	return "Start the primary. If it is lost, this says which standby to promote, and how: repmgr cluster explain"
}

// connectPrimary returns a connection to the primary: local itself where that
// is one, else whichever of its records is. The caller closes it; closing it
// closes local only where they are the same.
func (c *Cluster) connectPrimary(ctx context.Context, local *registry.Server) (*registry.Server, error) {
	var inRecovery bool
	if err := local.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
		return nil, local.QueryError("read the recovery state", err)
	}
	recs, err := local.Records(ctx)
	if self, ok := registry.ByID(recs, c.cfg.NodeID); !inRecovery && (!ok || self.Role != RoleWitness) {
		return local, nil // a witness is no primary: its rows are a copy
	}
	if err != nil {
		return nil, err
	}
	primary, err := c.findPrimary(ctx, recs)
	if err != nil {
		return nil, err
	}
	return c.connectTo(ctx, primary)
}

// withPrimary runs f on a connection to the primary.
func (c *Cluster) withPrimary(ctx context.Context, f func(*registry.Server) error) error {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return err
	}
	defer local.Close()
	primary, err := c.connectPrimary(ctx, local)
	if err != nil {
		return err
	}
	if primary != local {
		defer primary.Close()
	}
	return f(primary)
}

// CleanupOptions says which monitoring history goes.
type CleanupOptions struct {
	KeepDays int    // rows of the last so many days stay. Defaults to 0: none stays.
	NodeID   NodeID // only the rows of this standby. Defaults to all.
	DryRun   bool   // count only
}

// CleanupResult says what went, or with DryRun what would go.
type CleanupResult struct {
	Deleted int64 `json:"deleted"`
	DryRun  bool  `json:"dry_run,omitempty"`
}

// Cleanup deletes old rows of repmgr.monitoring_history on the primary.
func (c *Cluster) Cleanup(ctx context.Context, o CleanupOptions) (CleanupResult, error) {
	if o.KeepDays < 0 {
		return CleanupResult{}, kind(ErrConfig, "keep-history %d: must be 0 or more days", o.KeepDays)
	}
	res := CleanupResult{DryRun: o.DryRun}
	err := c.withPrimary(ctx, func(primary *registry.Server) error {
		if err := primary.NeedNodes(ctx); err != nil {
			return err
		}
		if o.NodeID != 0 {
			recs, err := primary.Records(ctx)
			if err != nil {
				return err
			}
			if _, ok := registry.ByID(recs, o.NodeID); !ok {
				return registry.Unknown(recs, o.NodeID, "")
			}
		}
		var err error
		if o.DryRun {
			res.Deleted, err = primary.CountHistory(ctx, o.KeepDays, o.NodeID)
		} else {
			res.Deleted, err = primary.DeleteHistory(ctx, o.KeepDays, o.NodeID)
		}
		if err != nil || o.DryRun {
			return err
		}
		details := fmt.Sprintf("%d rows of monitoring history deleted; the last %d days kept", res.Deleted, o.KeepDays)
		c.emit(ctx, primary, Event{NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventClusterCleanup, Success: true, Details: details})
		return nil
	})
	return res, err
}
