package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Cluster is a set of registered nodes, as seen from the node of its [Config]. It is safe for
// concurrent use, holds no connection between calls and needs no Close.
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

// self is the name of the local node in messages.
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

// dialInfo is a node's conninfo, completed with what only this machine knows. Rows contain no
// password, so ours is used where the user is the same and no password file is named.
func (c *Cluster) dialInfo(r Record) string {
	theirs, err := ParseConninfo(r.Conninfo)
	if err != nil {
		return r.Conninfo
	}
	delete(theirs, "target_session_attrs") // a row of an older program may have it, but this node is wanted in whatever role
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

// localServer finds the server of this machine by its data directory: the configured one, or
// dir where none is configured.
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

// record makes the row of the local node from the configuration.
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

// readStateFile reads the state file of the local node's Monitor. Where there is none, the
// state is empty. dir is the data directory where none is configured.
func (c *Cluster) readStateFile(dir string) (statefile.State, error) {
	srv, err := c.localServer(dir)
	if err != nil {
		return statefile.State{}, err
	}
	return statefile.Read(srv.Dir)
}

func (c *Cluster) savedRecords() []Record {
	k, err := c.readStateFile("")
	if err != nil {
		return nil
	}
	return k.Nodes
}

// heartbeatInterval is the time between two probes of a voter, and between two heartbeats.
func (c *Cluster) heartbeatInterval() time.Duration {
	return voters.HeartbeatInterval(c.cfg.SilenceTimeout)
}

// watchVoters starts a watch of the voters of an election. Its SetNodes names them.
func (c *Cluster) watchVoters(ctx context.Context, wake func()) *voters.Watch {
	k, err := c.readStateFile("")
	if err != nil {
		k = statefile.State{} // without a state file nothing is known until it is seen
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
	return syncrep.Writer{Name: func(id int32) string { return w.Record(id).Name }, Replaced: c.tellReplaced, ProofTimeout: c.cfg.SilenceTimeout / 2}
}

// tellReplaced reports that a synchronous_standby_names which somebody else wrote was replaced.
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

// allNotifiers are the notifiers of the program and those of the configuration file.
func (c Config) allNotifiers() []Notifier {
	all := slices.Clone(c.Notifiers)
	if c.EventNotificationCommand != "" {
		all = append(all, CommandNotifier{Command: c.EventNotificationCommand, Types: c.EventNotifications})
	}
	if c.EventWebhookURL != "" {
		all = append(all, WebhookNotifier{URL: c.EventWebhookURL, Types: c.EventNotifications})
	}
	return all
}

// emit writes the event on the primary, if it can, and tells the notifiers in any case. A
// failure of either does not affect the action that the event reports.
func (c *Cluster) emit(ctx context.Context, primary *registry.Server, e Event) {
	e.PeerConninfo, e.Told = Redact(e.PeerConninfo), time.Now()
	row := e
	if e.At.IsZero() { // the server sets the time of the row, except for an event that happened earlier
		e.At = time.Now()
	}
	ctx = context.WithoutCancel(ctx) // the event is reported even when the caller's context has ended
	if primary != nil {
		ctx, cancel := context.WithTimeoutCause(ctx, postgres.DefaultConnectTimeout, errors.New("writing an event took too long"))
		defer cancel()
		if row, err := primary.WriteEvent(ctx, row); err == nil {
			e = row
		} else if !errors.Is(err, pgx.ErrNoRows) {
			c.log.Warn("event not written to repmgr.events", "event", e.Type, "err", primary.QueryError("write an event", err))
		}
	}
	for _, n := range c.notifiers {
		outbox.Deliver(ctx, c.log, c.cfg.EventNotificationTimeout, n.Notify, e)
	}
}

// candidate is the name under which this process collects pledges.
func (c *Cluster) candidate() string { return voters.Candidate(c.cfg.NodeName) }

// registerInterval is the time between two attempts of a daemon to register its node.
const registerInterval = 10 * time.Second

// policy is the operator's choices, in the form that package election uses.
func (c *Cluster) policy() election.Policy {
	return election.Policy{
		Interval: c.cfg.MonitorInterval, RegisterEvery: registerInterval,
		Automatic: c.cfg.Failover == FailoverAutomatic, Silence: c.cfg.SilenceTimeout, Fence: c.cfg.FenceTimeout,
		Children:  election.Children{Command: c.cfg.ChildNodesDisconnectCommand != "", ConnectedMin: c.cfg.ChildNodesConnectedMinCount, LostMin: c.cfg.ChildNodesDisconnectMinCount, After: c.cfg.ChildNodesDisconnectTimeout, Witness: c.cfg.ChildNodesConnectedIncludeWitness},
		Promotion: c.cfg.PromoteCheckTimeout,
		Patience:  time.Duration(c.cfg.ReconnectAttempts) * c.cfg.ReconnectInterval,
		MaxLag:    c.cfg.MaximumLagOnFailover, OnShutdown: c.cfg.FailoverOnShutdown, Start: c.cfg.PrimaryStartTimeout, Quorum: c.cfg.SynchronousMode == SynchronousQuorum, Acks: c.cfg.SynchronousNodeCount, Required: c.cfg.Durability == DurabilityRequired,
	}
}
