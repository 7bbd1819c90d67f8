// Package repmgr manages PostgreSQL streaming-replication clusters: it
// registers nodes, clones standbys, promotes, re-points followers, watches
// replication and fails over by itself. It needs nothing inside the server: no
// extension, no shared library, no SSH, no other store.
//
// # The tour
//
// A [Config] describes this node. [LoadConfig] reads it from a repmgr.conf;
// a program can also write it as a literal, where three fields are enough.
//
//	cfg := repmgr.Config{NodeID: 2, ClusterName: "test", Conninfo: "host=node2 user=repmgr dbname=repmgr"}
//
// A [Cluster] is all registered nodes as seen from this node. Its methods are the
// commands of the repmgr manual: [Cluster.RegisterPrimary], [Cluster.RegisterStandby],
// [Cluster.Clone], [Cluster.Promote], [Cluster.Follow], [Cluster.Status].
//
//	cluster, err := repmgr.New(cfg)
//	...
//	_, err = cluster.Clone(ctx, repmgr.CloneOptions{Source: "host=node1 user=repmgr dbname=repmgr", Dir: "/srv/pg"})
//
// A [Monitor] is what the daemon repmgrd runs: it registers its node, records
// how far behind its standby is, and passes typed events to every [Notifier].
//
//	m, err := repmgr.NewMonitor(cfg)
//	...
//	err = m.Run(ctx)
//
// # Failover
//
// With [FailoverAutomatic] the Monitors elect a new primary when the old one is
// lost. Each Monitor can hold the election. It needs durable pledges of a majority
// of the registered nodes, which their own servers store. The Monitors fence a
// primary that may have been replaced, and bring it back as a standby
// ([Cluster.Rejoin]). With [SynchronousQuorum] a failover loses no acknowledged
// commit. A Monitor without a NodeID, on any machine that reaches the nodes, holds
// the election when the Monitors of the nodes are gone. [Cluster.Failover] holds
// one election now; it returns a [RefusalError] where that would be unsafe.
//
// [Cluster.Explain] says what would happen if a node died now, [Cluster.Failovers]
// and [Cluster.Why] say what has happened, and [Cluster.ServiceStatus] says what the
// daemons do. [Cluster.Pause] keeps all daemons from acting. The policy is in package
// election; it is a pure function of what is known.
//
// # Errors
//
// An error says what was tried and on which node. Use [errors.Is] with the variables below to find out what
// kind of error it is, and [Hint] to get what to do about it. No error, log line or event contains a
// password.
//
// # Who may call what
//
// A Cluster and a Monitor are safe for concurrent use. Only [Monitor.Run] starts
// goroutines that outlast a call, and they end with it. Every method takes a context,
// and none waits without end: where the caller sets no deadline, the configured
// timeouts apply.
package repmgr

import (
	_ "embed"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/conffile"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// SchemaVersion is the version of the metadata that this library writes.
const SchemaVersion = registry.SchemaVersion

// Version is the version of the library and of its programs.
const Version = "0.1.0"

// Schema is the SQL that makes the metadata schema. It is idempotent.
//
//go:embed schema.sql
var Schema string

// NodeID identifies a node for as long as the cluster lives. Valid ids are 1
// and more; the zero value means unknown, or none.
type NodeID = registry.NodeID

// Role is what a node is registered as, or runs as. The zero value means unknown.
type Role = registry.Role

const (
	RolePrimary = registry.RolePrimary
	RoleStandby = registry.RoleStandby
	RoleWitness = registry.RoleWitness
)

// Record is a row of repmgr.nodes: what a node is registered as. [NodeStatus] is what
// its server is at the moment.
type Record = registry.Record

// The kinds of error that [errors.Is] finds.
var (
	// ErrConfig: the configuration, or an option, is wrong. Nothing was done.
	ErrConfig = failure.ErrConfig
	// ErrConnect: a server that was needed could not be reached. See [ConnectError].
	ErrConnect = failure.ErrConnect
	// ErrNoPrimary: no reachable registered node is a primary.
	ErrNoPrimary = failure.ErrNoPrimary
	// ErrPrimaryExists: another server is a primary already.
	ErrPrimaryExists = failure.ErrPrimaryExists
	// ErrNotPrimary: the server is in recovery, and the action needs a primary.
	ErrNotPrimary = failure.ErrNotPrimary
	// ErrNotStandby: the server is not in recovery, and the action needs a standby.
	ErrNotStandby = failure.ErrNotStandby
	// ErrNotRegistered: the node has no row in repmgr.nodes, or there is no metadata at all.
	ErrNotRegistered = failure.ErrNotRegistered
	// ErrRegistered: a node of that id or name is registered already.
	ErrRegistered = failure.ErrRegistered
	// ErrRefused: a safety check refused the action. The message says which, and the hint says what to do.
	ErrRefused = failure.ErrRefused
	// ErrSchemaVersion: the metadata was made by a newer version of this library.
	ErrSchemaVersion = failure.ErrSchemaVersion
	// ErrSystemIdentifier: the servers do not belong to the same cluster.
	ErrSystemIdentifier = failure.ErrSystemIdentifier
	// ErrTimelineDiverged: the server has WAL that its new upstream never had.
	ErrTimelineDiverged = failure.ErrTimelineDiverged
	// ErrWALGone: the upstream does not have the WAL any more that the standby needs next.
	ErrWALGone = failure.ErrWALGone
	// ErrNotAttached: the standby was told to follow, but was not seen streaming in time.
	ErrNotAttached = failure.ErrNotAttached
	// ErrPromotion: the standby did not become a primary.
	ErrPromotion = failure.ErrPromotion
	// ErrMetadata: the server did what was asked, but repmgr.nodes could not be updated.
	ErrMetadata = failure.ErrMetadata
	// ErrQuery: a statement on the metadata failed.
	ErrQuery = failure.ErrQuery
	// ErrDirectory: the target directory can not be used as it is.
	ErrDirectory = failure.ErrDirectory
	// ErrCopy: copying the data failed. What had been copied was removed.
	ErrCopy = failure.ErrCopy
	// ErrNoQuorum: too few voters answer, or pledge themselves, for a failover.
	ErrNoQuorum = failure.ErrNoQuorum
	// ErrPaused: failover is paused on a node.
	ErrPaused = failure.ErrPaused
	// ErrRejoin: the node could not be brought back as a standby.
	ErrRejoin = failure.ErrRejoin
	// ErrTimeout: the wait for a condition was longer than the configuration allows.
	ErrTimeout = failure.ErrTimeout
	// ErrServerControl: the server of this machine could not be started or stopped.
	ErrServerControl = failure.ErrServerControl
	// ErrNotScheduled: there is no switchover that could be taken back.
	ErrNotScheduled = failure.ErrNotScheduled
)

// Hint returns what to do about err, or "" where no advice is known.
func Hint(err error) string {
	var conf *ConfigError
	if help := failure.Hint(err); help != "" || !errors.As(err, &conf) {
		return help
	}
	var remedies []string
	for _, f := range conf.Faults {
		if f.Remedy != "" && !slices.Contains(remedies, f.Remedy) {
			remedies = append(remedies, f.Remedy)
		}
	}
	return strings.Join(remedies, "; ")
}

// hint attaches help to an error: see [failure.WithHint].
func hint(err error, format string, args ...any) error {
	return failure.WithHint(err, format, args...)
}

// kind makes an error that errors.Is finds by its sentinel: see [failure.Of].
func kind(sentinel error, format string, args ...any) error {
	return failure.Of(sentinel, format, args...)
}

// ParseConninfo splits a connection string of either form of libpq into its parameters,
// as package conninfo says. No error quotes anything of the string.
func ParseConninfo(s string) (map[string]string, error) { return conninfo.Parse(s) }

// FormatConninfo writes parameters as keyword and value pairs. It is the inverse of [ParseConninfo].
func FormatConninfo(params map[string]string) string { return conninfo.Format(params) }

// Redact returns a connection string with each secret replaced by ***, and otherwise as it was written.
func Redact(s string) string { return conninfo.Redact(s) }

// Fault is one error in the configuration. None of its fields contains a secret: Value is redacted, and
// text that can not be parsed is not quoted.
type Fault struct {
	File    string `json:"file,omitempty"` // empty: the value was set by a program
	Line    int    `json:"line,omitempty"` // from 1; 0: no particular line
	Key     string `json:"key,omitempty"`
	Value   string `json:"value,omitempty"`
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"` // what to do about it, where that is not plain
}

// String has the form file:line: key "priority" = "-3": must be an integer of 0 or more.
func (f Fault) String() string {
	return conffile.Describe(f.File, f.Line, f.Key, f.Value, f.Problem)
}

// ConfigError lists all faults of a configuration. errors.Is finds [ErrConfig] in it.
type ConfigError struct {
	Faults []Fault
	cause  error
}

// Error has a line for each fault.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

func (e *ConfigError) Is(target error) bool { return target == ErrConfig }

func (e *ConfigError) Unwrap() error { return e.cause }

// WithHint attaches to err what its reader could do about it. The message stays
// as it is; [Hint] finds it. For implementations of the interfaces of this package.
func WithHint(err error, format string, args ...any) error { return hint(err, format, args...) }

// LevelNotice is repmgr's NOTICE, for something that was done and that an operator should
// know. It lies between slog's Info and Warn.
const LevelNotice = slog.Level(2)
