package repmgr

import (
	"context"
	"log/slog"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/registry"
)

// The defaults of the configuration. What is not listed is empty, false or 0.
const (
	DefaultReplicationType               = ReplicationPhysical
	DefaultLocation                      = "default"
	DefaultPriority                      = 100
	DefaultLogLevel                      = LogInfo
	DefaultLogFormat                     = LogText
	DefaultLogFacility                   = LogStderr
	DefaultLogStatusInterval             = 300 * time.Second
	DefaultCloneMethod                   = CloneBasebackup
	DefaultSSHOptions                    = "-q -o ConnectTimeout=10"
	DefaultPromoteCheckTimeout           = 60 * time.Second
	DefaultPromoteCheckInterval          = time.Second
	DefaultPrimaryFollowTimeout          = 60 * time.Second
	DefaultStandbyFollowTimeout          = 30 * time.Second
	DefaultShutdownCheckTimeout          = 60 * time.Second
	DefaultStandbyReconnectTimeout       = 60 * time.Second
	DefaultWALReceiveCheckTimeout        = 30 * time.Second
	DefaultNodeRejoinTimeout             = 60 * time.Second
	DefaultArchiveReadyWarning           = 16
	DefaultArchiveReadyCritical          = 128
	DefaultReplicationLagWarning         = 300 * time.Second
	DefaultReplicationLagCritical        = 600 * time.Second
	DefaultWitnessSyncInterval           = 15 * time.Second
	DefaultFailover                      = FailoverManual
	DefaultMonitorInterval               = 2 * time.Second
	DefaultSilenceTimeout                = 2 * time.Second
	DefaultFenceTimeout                  = 2500 * time.Millisecond
	DefaultHangTimeout                   = 10 * time.Second
	DefaultFailoversPerHour              = 10
	DefaultSynchronousMode               = SynchronousOff
	DefaultDurability                    = DurabilityPreferred
	DefaultRejoin                        = RejoinRewind
	DefaultEtcdPrefix                    = "/repmgr/"
	DefaultReconnectAttempts             = 0
	DefaultReconnectInterval             = 10 * time.Second
	DefaultDegradedMonitoringTimeout     = -1 * time.Second
	DefaultAsyncQueryTimeout             = 60 * time.Second
	DefaultPrimaryNotificationTimeout    = 60 * time.Second
	DefaultRepmgrdStandbyStartupTimeout  = -1 * time.Second
	DefaultSiblingNodesDisconnectTimeout = 30 * time.Second
	DefaultConnectionCheckType           = CheckPing
	DefaultConnectionCheckQuery          = "SELECT 1"
	DefaultElectionRerunInterval         = 15 * time.Second
	DefaultChildNodesCheckInterval       = 5 * time.Second
	DefaultChildNodesDisconnectMinCount  = -1
	DefaultChildNodesConnectedMinCount   = -1
	DefaultChildNodesDisconnectTimeout   = 30 * time.Second
	DefaultEventNotificationTimeout      = 30 * time.Second
	DefaultMonitoringHistoryRetention    = time.Duration(0)
	DefaultEventsRetention               = time.Duration(0)
)

// ReplicationType is the kind of replication. There is only one.
type ReplicationType string

const ReplicationPhysical ReplicationType = "physical"

// FailoverMode says who decides on a failover: a person, or the daemons.
type FailoverMode = registry.FailoverMode

const (
	FailoverManual    = registry.FailoverManual
	FailoverAutomatic = registry.FailoverAutomatic
)

// SynchronousMode says what a commit waits for before it is acknowledged.
type SynchronousMode string

const (
	SynchronousOff    SynchronousMode = "off"    // nothing: a failover can lose the last acknowledged commits
	SynchronousQuorum SynchronousMode = "quorum" // enough standbys that no failover loses an acknowledged commit
	SynchronousStrict SynchronousMode = "strict" // another word for quorum with DurabilityRequired
)

// Durability says what a commit waits for when no standby is left that could have it.
type Durability = election.Durability

const (
	DurabilityPreferred = election.DurabilityPreferred
	DurabilityRequired  = election.DurabilityRequired
)

// RejoinPolicy says how far the daemon goes to bring a former primary back as a standby.
type RejoinPolicy string

const (
	RejoinNever   RejoinPolicy = "never"    // it stays down
	RejoinIfClean RejoinPolicy = "if-clean" // only if it has nothing that the new primary lacks
	RejoinRewind  RejoinPolicy = "rewind"   // what it has too much is saved, then taken back by pg_rewind; data that nobody could rewind any more is cloned anew
	RejoinReclone RejoinPolicy = "reclone"  // as rewind; where that fails, it is cloned anew
)

// ConnectionCheckType is how a server is asked whether it is there.
type ConnectionCheckType string

const (
	CheckPing       ConnectionCheckType = "ping"       // does it answer a connection attempt?
	CheckConnection ConnectionCheckType = "connection" // can a session be opened?
	CheckQuery      ConnectionCheckType = "query"      // does the open session answer?
)

// CloneMethod is how the data of a new standby is copied.
type CloneMethod string

const (
	CloneBasebackup CloneMethod = "basebackup" // PostgreSQL's backup protocol
	CloneRsync      CloneMethod = "rsync"      // rsync over ssh around a backup of the server
	CloneCommand    CloneMethod = "command"    // the program of clone_command
)

// LogFormat is the form of the log.
type LogFormat string

const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// LogFacility is where the log goes when log_file is empty: standard error, or a facility of syslog.
type LogFacility string

const LogStderr LogFacility = "STDERR"

// LogLevel is the least severe message that is logged.
type LogLevel string

const (
	LogDebug     LogLevel = "DEBUG"
	LogInfo      LogLevel = "INFO"
	LogNotice    LogLevel = "NOTICE"
	LogWarning   LogLevel = "WARNING"
	LogError     LogLevel = "ERROR"
	LogCritical  LogLevel = "CRIT"
	LogAlert     LogLevel = "ALERT"
	LogEmergency LogLevel = "EMERG"
)

// Level returns the level of slog, so that a LogLevel is a [slog.Leveler]. NOTICE lies between
// slog's Info and Warn; the zero value is Info.
func (l LogLevel) Level() slog.Level {
	return map[LogLevel]slog.Level{
		LogDebug: slog.LevelDebug, LogNotice: slog.LevelInfo + 2, LogWarning: slog.LevelWarn, LogError: slog.LevelError,
		LogCritical: slog.LevelError + 1, LogAlert: slog.LevelError + 2, LogEmergency: slog.LevelError + 3,
	}[l]
}

// Config says who a node is, how it is reached and how it is looked after. It is a value: copies are
// independent as long as nobody changes their maps and slices, and it is then safe for concurrent use.
//
// In a Config that a program writes as a literal, each zero field means its default. To say a
// zero that is not the default (a priority of 0, say), begin with [DefaultConfig]; a Config
// from there or from [LoadConfig] is taken as it stands.
//
// Each comment names the key of repmgr.conf, in the unit that a plain number has there. Keys
// of time also take a unit: ms, s, min, h or d.
type Config struct {
	// The node.

	// NodeID identifies this node; it never changes. Key node_id (or node), 1 or more.
	NodeID NodeID
	// NodeName is unique in the cluster, and the application_name of the node's replication connection.
	// Key node_name, letters, digits, '_', '.' and '-', at most 63. Defaults to "node" and the id.
	NodeName string
	// ClusterName is the cluster that the node belongs to. Key cluster (or cluster_name).
	ClusterName string
	// Conninfo is how this node and all others connect to its server: straight to it, not to a
	// connection pooler, and whatever it runs as, without target_session_attrs. A password in it
	// is never written to the metadata, a log or an event. Key conninfo.
	Conninfo string
	// ReplicationUser is the role that replication connects as. Empty: the user of Conninfo. Key replication_user.
	ReplicationUser string
	// DataDirectory is PGDATA. Empty: the server is asked. Key data_directory.
	DataDirectory string
	// ConfigDirectory is where postgresql.conf is when that is not the data directory. Key config_directory.
	ConfigDirectory string
	// PgBindir is the directory of PostgreSQL's programs. Empty: found by PATH. Key pg_bindir.
	PgBindir string
	// RepmgrBindir is the directory of repmgr on this and on the other machines. Key repmgr_bindir.
	RepmgrBindir string
	// ReplicationType is the kind of replication. Key replication_type. Defaults to physical.
	ReplicationType ReplicationType
	// Location names the data centre: failover stays within one. Key location. Defaults to default.
	Location string
	// Priority decides between equal candidates, the highest first; 0 is never promoted. Key
	// priority, 0 or more. Defaults to 100.
	Priority int
	// UpstreamNodeID is the node that this standby is registered below, unless the call says
	// another. 0: the primary. Key upstream_node_id.
	UpstreamNodeID NodeID

	// The log.

	// LogLevel is the least severe message that is logged. Key log_level, one of DEBUG, INFO,
	// NOTICE, WARNING, ERROR, CRIT, ALERT, EMERG. Defaults to INFO.
	LogLevel LogLevel
	// LogFormat is the form of the log. Key log_format, text or json. Defaults to text.
	LogFormat LogFormat
	// LogFacility is STDERR, or USER, LOCAL0 to LOCAL7 of syslog. Key log_facility. Defaults to STDERR.
	LogFacility LogFacility
	// LogFile takes the log instead of LogFacility. Key log_file.
	LogFile string
	// LogStatusInterval is how often the daemon says that it is alive; 0 is never. Key
	// log_status_interval, in seconds. Defaults to 300.
	LogStatusInterval time.Duration

	// Cloning and replication.

	// UseReplicationSlots gives each standby a physical slot. Key use_replication_slots. Defaults to false.
	UseReplicationSlots bool
	// CloneMethod is how a new standby is copied. Key clone_method, one of basebackup, rsync,
	// command. Defaults to basebackup.
	CloneMethod CloneMethod
	// CloneCommand is the program that copies, with CloneMethod command. Key clone_command.
	CloneCommand string
	// PgBasebackupOptions are further options for a base backup. Key pg_basebackup_options.
	PgBasebackupOptions string
	// RsyncOptions are further options for rsync. Empty: those that the rsync cloner finds best. Key rsync_options.
	RsyncOptions string
	// SSHOptions are options for ssh. Key ssh_options. Defaults to -q -o ConnectTimeout=10.
	SSHOptions string
	// TablespaceMapping says where a clone puts a tablespace: location on the source to location
	// here. Key tablespace_mapping, old=new, repeated.
	TablespaceMapping map[string]string
	// RestoreCommand is the standby's restore_command. Key restore_command.
	RestoreCommand string
	// ArchiveCleanupCommand is the standby's archive_cleanup_command. Key archive_cleanup_command.
	ArchiveCleanupCommand string
	// RecoveryMinApplyDelay holds a standby's replay back. Key recovery_min_apply_delay, in milliseconds.
	RecoveryMinApplyDelay time.Duration
	// UsePrimaryConninfoPassword writes the password of PGPASSWORD into primary_conninfo. Key
	// use_primary_conninfo_password. Defaults to false.
	UsePrimaryConninfoPassword bool
	// Passfile is written into primary_conninfo as passfile. Key passfile.
	Passfile string
	// BarmanHost is the machine of the Barman server. Key barman_host.
	BarmanHost string
	// BarmanServer is the name that Barman knows the cluster by. Key barman_server.
	BarmanServer string
	// BarmanConfig is Barman's configuration file. Key barman_config.
	BarmanConfig string
	// PgBackupapiBackupID is the backup to clone from. Key pg_backupapi_backup_id.
	PgBackupapiBackupID string
	// PgBackupapiHost is the machine of pg-backup-api. Key pg_backupapi_host.
	PgBackupapiHost string
	// PgBackupapiNodeName is the server's name there. Key pg_backupapi_node_name.
	PgBackupapiNodeName string
	// PgBackupapiRemoteSSHCommand is the ssh command back to this machine. Key pg_backupapi_remote_ssh_command.
	PgBackupapiRemoteSSHCommand string

	// How long actions may take.

	// PromoteCheckTimeout is how long a promotion may take. Key promote_check_timeout, in seconds,
	// 1 or more. Defaults to 60.
	PromoteCheckTimeout time.Duration
	// PromoteCheckInterval is how often repmgr 5 looks whether it is over; this library looks more
	// often. Key promote_check_interval, in seconds, 1 or more. Defaults to 1.
	PromoteCheckInterval time.Duration
	// PrimaryFollowTimeout is how long to wait for a primary to follow. Key
	// primary_follow_timeout, in seconds, 1 or more. Defaults to 60.
	PrimaryFollowTimeout time.Duration
	// StandbyFollowTimeout is how long to wait until the standby streams. Key
	// standby_follow_timeout, in seconds, 1 or more. Defaults to 30.
	StandbyFollowTimeout time.Duration
	// StandbyFollowRestart restarts the server instead of reloading it. Key standby_follow_restart. Defaults to false.
	StandbyFollowRestart bool
	// ShutdownCheckTimeout is how long a primary may take to stop in a switchover. Key
	// shutdown_check_timeout, in seconds, 1 or more. Defaults to 60.
	ShutdownCheckTimeout time.Duration
	// StandbyReconnectTimeout is how long a server may take to answer after a start; at least
	// NodeRejoinTimeout. Key standby_reconnect_timeout, in seconds, 1 or more. Defaults to 60.
	StandbyReconnectTimeout time.Duration
	// WALReceiveCheckTimeout is how long the candidate of a switchover may take to receive the
	// last WAL. Key wal_receive_check_timeout, in seconds, 1 or more. Defaults to 30.
	WALReceiveCheckTimeout time.Duration
	// NodeRejoinTimeout is how long a rejoined node may take to stream. Key node_rejoin_timeout,
	// in seconds, 1 or more. Defaults to 60.
	NodeRejoinTimeout time.Duration

	// Thresholds of the checks: each warning lies below its critical value.

	// ArchiveReadyWarning is in WAL files waiting to be archived. Key archive_ready_warning, 1 or more. Defaults to 16.
	ArchiveReadyWarning int
	// ArchiveReadyCritical is in WAL files waiting to be archived. Key archive_ready_critical, 1 or more. Defaults to 128.
	ArchiveReadyCritical int
	// ReplicationLagWarning is how far behind a standby may be. Key replication_lag_warning, in
	// seconds, 1 or more. Defaults to 300.
	ReplicationLagWarning time.Duration
	// ReplicationLagCritical is how far behind a standby may be. Key replication_lag_critical, in
	// seconds, 1 or more. Defaults to 600.
	ReplicationLagCritical time.Duration

	// The daemon.

	// Failover says who decides on a failover. Key failover, manual or automatic. Defaults to manual.
	Failover FailoverMode
	// SilenceTimeout is how long a primary must be silent, to this node and to every standby, before it is taken
	// for lost. One that refuses connections is not waited for. Key silence_timeout, in seconds. Defaults to 2.
	SilenceTimeout time.Duration
	// FenceTimeout is how long a primary goes on without contact to a majority before its Monitor stops
	// it. With SynchronousMode off, a candidate that can not know it dead waits as long, and a little
	// more. It must be the same on all nodes. Key fence_timeout, in seconds. Defaults to 2500ms.
	FenceTimeout time.Duration
	// HangTimeout is how long a local primary may leave new connections without an answer before its
	// Monitor kills it, so that another one can take over. Key hang_timeout, in seconds. Defaults to 10.
	HangTimeout time.Duration
	// PrimaryStartTimeout is how long a primary may start up, shut down or recover, letting nobody in, before another
	// one takes its place; -1 s is for ever. 0 is 300, and 30 with SynchronousMode quorum, where that loses nothing,
	// as long as no standby still receives from it. Key primary_start_timeout, in seconds, -1 or more. Defaults to 0.
	PrimaryStartTimeout time.Duration
	// WatchdogDevice is a watchdog device of the kernel, such as /dev/watchdog. While the local server is
	// the primary, with failover automatic, its Monitor feeds the device as long as it has contact to a
	// majority; so a machine on which nothing runs any more is reset before another node becomes the
	// primary. A Monitor that is killed takes the machine with it. Key watchdog_device. Defaults to none.
	WatchdogDevice string
	// WatchdogRequired keeps a node whose watchdog device can not be used from being promoted with synchronous_mode
	// off, and from being replaced unless it is known to be dead. Key watchdog_required. Defaults to false.
	WatchdogRequired bool
	// FailoverOnShutdown fails over also when the primary was shut down in order. Key
	// failover_on_shutdown. Defaults to false.
	FailoverOnShutdown bool
	// MaximumLagOnFailover is how much of the WAL that the lost primary was seen to have the best
	// candidate may lack, with SynchronousMode off, before an operator has to decide; 0 is any. Key
	// maximum_lag_on_failover, in bytes or with a unit (kB, MB, GB, TB), 0 or more. Defaults to 0.
	MaximumLagOnFailover int64
	// FailoversPerHour is how many failovers may happen in an hour before the next one needs an
	// operator; -1 is any. Key failovers_per_hour, -1 or more. Defaults to 10.
	FailoversPerHour int
	// SynchronousMode says what a commit waits for; strict is quorum with Durability required. It must
	// be the same on all nodes. Key synchronous_mode, one of off, quorum, strict. Defaults to off.
	SynchronousMode SynchronousMode
	// Durability says, with SynchronousMode quorum, what commits do when no standby is left that could have
	// them: they wait for nobody, or they wait. Before the first standby of a cluster they wait for nobody in
	// any case. It must be the same on all nodes. Key durability, preferred or required. Defaults to preferred.
	Durability Durability
	// SynchronousNodeCount is how many standbys must have a commit, with SynchronousMode quorum,
	// as long as so many are healthy; 0 is half of the healthy standbys, rounded up, so that any
	// majority can fail over. Key synchronous_node_count, 0 or more. Defaults to 0.
	SynchronousNodeCount int
	// Rejoin says how a former primary comes back. Key rejoin, one of never, if-clean, rewind,
	// reclone. Defaults to rewind.
	Rejoin RejoinPolicy
	// SalvageDirectory is where WAL is saved that a rejoin would lose. Key salvage_directory.
	// Defaults to the data directory's name with ".salvage" behind it.
	SalvageDirectory string
	// EtcdEndpoints are the addresses of an etcd that votes with the nodes, joined by commas. It
	// must be the same on all nodes. Key etcd_endpoints.
	EtcdEndpoints string
	// EtcdPrefix is where its keys begin; the cluster's name follows. Key etcd_prefix. Defaults to /repmgr/.
	EtcdPrefix string
	// EtcdCACert is the file of the certificate authority of etcd. Key etcd_cacert.
	EtcdCACert string
	// EtcdCert is the file of the certificate that etcd knows us by. Key etcd_cert.
	EtcdCert string
	// EtcdKey is the file of its key. Key etcd_key.
	EtcdKey string
	// PromoteCommand promotes this node in a failover. Empty: the daemon does it itself. One that fails, or takes
	// longer than PromoteCheckTimeout, ends the election; the next one does without it. Key promote_command.
	PromoteCommand string
	// FollowCommand makes this node follow a new primary, %n. Empty: the daemon does it itself. Key follow_command.
	FollowCommand string
	// MonitorInterval is how often the servers are looked at. Key monitor_interval_secs, in
	// seconds, 1 or more. Defaults to 2.
	MonitorInterval time.Duration
	// ReconnectAttempts is how often a lost primary is tried again before a failover, beyond what
	// the evidence needs. Key reconnect_attempts, 0 or more. Defaults to 0.
	ReconnectAttempts int
	// ReconnectInterval lies between two such attempts. Key reconnect_interval, in seconds, 0 or more. Defaults to 10.
	ReconnectInterval time.Duration
	// MonitoringHistory keeps a row per standby and interval. Key monitoring_history. Defaults to false.
	MonitoringHistory bool
	// MonitoringHistoryRetention is how long such rows are kept; 0 is for ever. Key
	// monitoring_history_retention, in days. Defaults to 0.
	MonitoringHistoryRetention time.Duration
	// EventsRetention is how long events are kept; 0 is for ever. Key events_retention, in days. Defaults to 0.
	EventsRetention time.Duration
	// DegradedMonitoringTimeout ends a daemon that has no server to watch; -1 s is never. Key
	// degraded_monitoring_timeout, in seconds, -1 or more. Defaults to -1.
	DegradedMonitoringTimeout time.Duration
	// AsyncQueryTimeout bounds a query for the metadata of monitoring. Key async_query_timeout, in
	// seconds, 0 or more. Defaults to 60.
	AsyncQueryTimeout time.Duration
	// PrimaryNotificationTimeout is how long a node that was not elected waits to hear of the new
	// primary. Key primary_notification_timeout, in seconds, 0 or more. Defaults to 60.
	PrimaryNotificationTimeout time.Duration
	// RepmgrdStandbyStartupTimeout is how long the local server may take to answer after a follow; -1 s stands
	// for StandbyReconnectTimeout. Key repmgrd_standby_startup_timeout, in seconds, -1 or more. Defaults to -1.
	RepmgrdStandbyStartupTimeout time.Duration
	// RepmgrdPidFile is the daemon's pid file; each node of a machine needs its own. Key repmgrd_pid_file.
	// Empty: repmgrd-<node_id>.pid in /run/repmgr, $XDG_RUNTIME_DIR or /run/postgresql, else /tmp/repmgrd.pid.
	RepmgrdPidFile string
	// RepmgrdExitOnInactiveNode ends the daemon of a node that is registered as inactive. Key
	// repmgrd_exit_on_inactive_node. Defaults to false.
	RepmgrdExitOnInactiveNode bool
	// StandbyDisconnectOnFailover stops the WAL receivers before an election. Key
	// standby_disconnect_on_failover. Defaults to false.
	StandbyDisconnectOnFailover bool
	// SiblingNodesDisconnectTimeout is how long to wait for that. Key
	// sibling_nodes_disconnect_timeout, in seconds, 0 or more. Defaults to 30.
	SiblingNodesDisconnectTimeout time.Duration
	// ConnectionCheckType is how a server is asked whether it is there. Key connection_check_type,
	// one of ping, connection, query. Defaults to ping.
	ConnectionCheckType ConnectionCheckType
	// ConnectionCheckQuery is the query of ConnectionCheckType query. Key connection_check_query. Defaults to SELECT 1.
	ConnectionCheckQuery string
	// PrimaryVisibilityConsensus refuses a failover while another standby still sees the primary.
	// Key primary_visibility_consensus. Defaults to false.
	PrimaryVisibilityConsensus bool
	// AlwaysPromote promotes even on stale metadata. Key always_promote. Defaults to false.
	AlwaysPromote bool
	// FailoverValidationCommand has the last word on a failover; it gets %n %a %v %u %t. Key failover_validation_command.
	FailoverValidationCommand string
	// ElectionRerunInterval lies between two elections. Key election_rerun_interval, in seconds, 1
	// or more. Defaults to 15.
	ElectionRerunInterval time.Duration
	// WitnessSyncInterval is how often a witness copies the metadata. Key witness_sync_interval,
	// in seconds, 1 or more. Defaults to 15.
	WitnessSyncInterval time.Duration
	// ReconnectLoopSync exists for tests of repmgr 5. Key reconnect_loop_sync. Defaults to false.
	ReconnectLoopSync bool
	// PromoteDelay exists for tests of repmgr 5. Key promote_delay, in seconds, 0 or more. Defaults to 0.
	PromoteDelay time.Duration
	// FailoverDelay exists for tests of repmgr 5. Key failover_delay, in seconds, 0 or more. Defaults to 0.
	FailoverDelay time.Duration

	// What a primary does when its standbys leave it.

	// ChildNodesCheckInterval is how often a primary looks for its standbys. Key
	// child_nodes_check_interval, in seconds, 1 or more. Defaults to 5.
	ChildNodesCheckInterval time.Duration
	// ChildNodesDisconnectMinCount is how many must have left before ChildNodesDisconnectCommand is run; -1 is all but
	// what ChildNodesConnectedMinCount asks for. Key child_nodes_disconnect_min_count, -1 or more. Defaults to -1.
	ChildNodesDisconnectMinCount int
	// ChildNodesConnectedMinCount is how many must remain; -1 is any. Key
	// child_nodes_connected_min_count, -1 or more. Defaults to -1.
	ChildNodesConnectedMinCount int
	// ChildNodesConnectedIncludeWitness counts a witness among them. Key
	// child_nodes_connected_include_witness. Defaults to false.
	ChildNodesConnectedIncludeWitness bool
	// ChildNodesDisconnectTimeout is how long they may be away. Key
	// child_nodes_disconnect_timeout, in seconds, 0 or more. Defaults to 30.
	ChildNodesDisconnectTimeout time.Duration
	// ChildNodesDisconnectCommand is then run; it gets %p. Key child_nodes_disconnect_command.
	ChildNodesDisconnectCommand string

	// Control of the server and of the daemon: each replaces the built-in way.

	// PgCtlOptions are further options for pg_ctl. Key pg_ctl_options.
	PgCtlOptions string
	// ServiceStartCommand starts the server. Without it a server that had to be started writes its log to
	// repmgr-start.log in its data directory, unless it collects its log itself. Key service_start_command.
	ServiceStartCommand string
	// ServiceStopCommand stops the server. Key service_stop_command.
	ServiceStopCommand string
	// ServiceRestartCommand restarts the server. Key service_restart_command.
	ServiceRestartCommand string
	// ServiceReloadCommand reloads the server. Key service_reload_command.
	ServiceReloadCommand string
	// ServicePromoteCommand promotes the server. Key service_promote_command.
	ServicePromoteCommand string
	// RepmgrdServiceStartCommand starts the daemon. Key repmgrd_service_start_command.
	RepmgrdServiceStartCommand string
	// RepmgrdServiceStopCommand stops the daemon. Key repmgrd_service_stop_command.
	RepmgrdServiceStopCommand string

	// Who is told.

	// EventNotificationCommand is run for each event; it gets %n %e %s %t %d %p %c %a. Key event_notification_command.
	EventNotificationCommand string
	// EventNotifications are the events that are told; empty is all. Key event_notifications, names joined by commas.
	EventNotifications []EventType
	// EventNotificationTimeout bounds the command and the webhook. Key event_notification_timeout,
	// in seconds, 1 or more. Defaults to 30.
	EventNotificationTimeout time.Duration
	// EventWebhookURL gets each event as JSON by POST. Key event_webhook_url, http or https.
	EventWebhookURL string

	// What only a program can set.

	// Logger takes the log of the library. Defaults to none.
	Logger *slog.Logger
	// Notifiers are told of each event, beside those of the keys.
	Notifiers []Notifier
	// Arbiter votes with the nodes. The programs make it of the keys etcd_*. Defaults to none.
	Arbiter Arbiter

	// What LoadConfig found out.

	// File is the absolute path of the file it came from, or empty.
	File string
	// Warnings are what is odd in the file but harmless: unknown and deprecated keys.
	Warnings []Fault

	filled bool            // a zero is meant
	places settings.Places // where the file sets each key
}

// Arbiter is a voter that is no PostgreSQL server, such as an etcd that the
// user already runs: see package etcd. Its id among the voters is
// [election.Arbiter]. It is safe for concurrent use; whoever made it closes it.
//
// Each method has a deadline of its own besides that of ctx. An arbiter that
// can not be reached, or does not answer in time, is an error for which
// errors.Is(err, [ErrConnect]). Whoever asked can not know then whether a
// pledge was stored: it was not given. A refusal because of a higher term is
// one for which errors.Is(err, [ballot.ErrTerm]); [Arbiter.Look] tells why.
type Arbiter interface {
	// Name is what messages call it, "etcd".
	Name() string
	// Look reads what it holds now: never something older than what any call
	// before, by anybody, has stored.
	Look(ctx context.Context) (ArbiterState, error)
	// Pledge stores b if its term is higher than those of the ballot and of the
	// rule that it holds, whoever's these are. Of two with the same term one
	// succeeds. The state is that of the same instant, of a refusal too.
	Pledge(ctx context.Context, b ballot.Ballot) (ArbiterState, error)
	// Record stores the rule, and the registered nodes with it, so that a
	// coordinator finds them. A newer rule of the same term stays, which is no
	// error. A rule of a lower term than the rule or the ballot that it holds is
	// refused: an arbiter that pledged itself to a new term knows of nothing
	// that the old one does afterwards, as a standby does not.
	Record(ctx context.Context, r election.Rule, nodes []Record) error
	// Announce publishes the primary of a rule for ttl after this call, to whoever
	// looks for it there. Call it again and again. It refuses when the ballot or
	// the rule that the arbiter holds is of a higher term.
	Announce(ctx context.Context, r election.Rule, primary Record, ttl time.Duration) error
}

// ArbiterState is what an arbiter holds. Its zero value is that of one that
// never voted and knows nothing.
type ArbiterState struct {
	Ballot ballot.Ballot
	Rule   election.Rule
	Nodes  []Record // registered when the rule was stored
	// Primary is who is announced now; the zero Record means nobody. Whoever is
	// has reached the arbiter within the time to live of its announcement.
	Primary Record
}
