package repmgr

import (
	"context"
	"log/slog"
	"net/netip"
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
	DefaultMetricsCompat                 = MetricsOwn
	DefaultRouterHAProxyBackend          = "primary"
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
	SynchronousOff    SynchronousMode = "off"    // for no standby: a failover can lose the last acknowledged commits
	SynchronousQuorum SynchronousMode = "quorum" // for as many standbys as are needed so that no failover loses an acknowledged commit
	SynchronousStrict SynchronousMode = "strict" // the same as quorum with DurabilityRequired
)

// Durability says what a commit waits for when no standby is left that could store it.
type Durability = election.Durability

const (
	DurabilityPreferred = election.DurabilityPreferred
	DurabilityRequired  = election.DurabilityRequired
)

// RejoinPolicy says how far the daemon goes to bring a former primary back as a standby.
type RejoinPolicy string

const (
	RejoinNever   RejoinPolicy = "never"    // it stays down
	RejoinIfClean RejoinPolicy = "if-clean" // only if it has no WAL that the new primary lacks
	RejoinRewind  RejoinPolicy = "rewind"   // WAL that the new primary lacks is saved, and pg_rewind removes it; a data directory that can not be rewound any more is cloned anew
	RejoinReclone RejoinPolicy = "reclone"  // as rewind, and where pg_rewind fails the node is cloned anew
)

// ConnectionCheckType is how it is tested whether a server is running.
type ConnectionCheckType string

const (
	CheckPing       ConnectionCheckType = "ping"       // whether it answers a connection attempt
	CheckConnection ConnectionCheckType = "connection" // whether a session can be opened
	CheckQuery      ConnectionCheckType = "query"      // whether a session that is open answers a query
)

// MetricsCompat says which names of metrics are given beside our own.
type MetricsCompat string

const (
	MetricsOwn     MetricsCompat = "none"
	MetricsPatroni MetricsCompat = "patroni"
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

// Config describes one node: what it is called, how to connect to it, and how it is managed. It is a
// value: copies are independent as long as nobody changes their maps and slices, and it is then safe for
// concurrent use.
//
// In a Config that a program writes as a literal, each zero field means its default. To set a field to a
// zero that is not its default (for example a priority of 0), begin with [DefaultConfig]: in a Config from
// there or from [LoadConfig] each field has the value that it shows.
//
// Each comment names the key of repmgr.conf and the unit of a plain number there. A key for a time also
// accepts a number with a unit: ms, s, min, h or d.
type Config struct {
	// The node.

	// NodeID identifies this node; it never changes. Key node_id (or node), 1 or more.
	NodeID NodeID
	// NodeName is unique in the cluster, and the application_name of the node's replication connection.
	// Key node_name, letters, digits, '_', '.' and '-', at most 63. Defaults to "node" and the id.
	NodeName string
	// ClusterName is the cluster that the node belongs to. Key cluster (or cluster_name).
	ClusterName string
	// Conninfo is how this node and all others connect to its server: directly, not through a connection
	// pooler, and without target_session_attrs, because the server may be a primary or a standby. A password
	// in it is never written to the metadata, a log or an event. Key conninfo.
	Conninfo string
	// ReplicationUser is the role that replication connects as. Empty: the user of Conninfo. Key replication_user.
	ReplicationUser string
	// DataDirectory is PGDATA. Empty: the server is asked. Key data_directory.
	DataDirectory string
	// ConfigDirectory is where postgresql.conf is when that is not the data directory. Key config_directory.
	ConfigDirectory string
	// PgBindir is the directory of PostgreSQL's programs. Empty: found by PATH. Key pg_bindir.
	PgBindir string
	// RepmgrBindir is the directory of repmgrd on the other machines, for a switchover without daemons. Key repmgr_bindir. Defaults to their PATH.
	RepmgrBindir string
	// ReplicationType is the kind of replication. Key replication_type. Defaults to physical.
	ReplicationType ReplicationType
	// Location names the data centre. A node is only promoted in the location of the lost primary. Key
	// location. Defaults to default.
	Location string
	// Priority decides between standbys that have the same WAL: the highest wins. A node with 0 is never
	// promoted. Key priority, 0 or more. Defaults to 100.
	Priority int
	// UpstreamNodeID is the node that this standby streams from, where a call names no other one. 0: the
	// primary. Key upstream_node_id.
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
	// RsyncOptions are the options for rsync. Empty: --archive --whole-file. Key rsync_options.
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
	// RecoveryMinApplyDelay is the standby's recovery_min_apply_delay: how long it waits before it replays a
	// commit. Key recovery_min_apply_delay, in milliseconds.
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
	// PromoteCheckInterval is how often repmgr 5 checks whether a promotion is complete. This library does
	// not need it. Key promote_check_interval, in seconds, 1 or more. Defaults to 1.
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
	// SilenceTimeout is how long neither this node nor any standby may have had an answer from the primary before it
	// counts as lost. A primary that refuses connections counts as lost at once. Key silence_timeout, in seconds, 1 or
	// more. Defaults to 2.
	SilenceTimeout time.Duration
	// FenceTimeout is how long a primary without contact to a majority goes on before its Monitor stops it. With
	// SynchronousMode off, an election that can not know whether the primary has ended waits a little longer than
	// that before it promotes. It must be the same on all nodes. Key fence_timeout, in seconds. Defaults to 2500ms.
	FenceTimeout time.Duration
	// HangTimeout is how long a local primary may leave new connections without an answer before its
	// Monitor kills it, so that another node can take over. The Monitor notices it at the latest a quarter
	// of that time later. Key hang_timeout, in seconds, 1 or more. Defaults to 10.
	HangTimeout time.Duration
	// PrimaryStartTimeout is how long a primary may take to start up, to shut down or to recover, without accepting
	// connections, before another node takes its place; -1 s is without end. 0 means 300 s, or 30 s with SynchronousMode
	// quorum, where a failover loses no commit. While a standby still receives WAL from it, no failover begins. Key
	// primary_start_timeout, in seconds, -1 or more. Defaults to 0.
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
	// MaximumLagOnFailover is, with SynchronousMode off, how much WAL of the lost primary the best candidate may
	// lack. Where it lacks more of what the primary was last seen to have, the failover is refused, and an operator
	// decides; 0 is no limit. Key maximum_lag_on_failover, in bytes or with a unit (kB, MB, GB, TB), 0 or more.
	// Defaults to 0.
	MaximumLagOnFailover int64
	// FailoversPerHour is how many failovers may happen in an hour. The next one is refused, and an operator
	// decides; -1 is no limit. Key failovers_per_hour, -1 or more. Defaults to 10.
	FailoversPerHour int
	// SynchronousMode says what a commit waits for; strict is quorum with Durability required. It must
	// be the same on all nodes. Key synchronous_mode, one of off, quorum, strict. Defaults to off.
	SynchronousMode SynchronousMode
	// Durability says, with SynchronousMode quorum, what commits do when no standby is left that could store
	// them: with preferred they wait for no standby, with required they wait until there is one again. Before a
	// cluster has its first standby they wait for none in either case. It must be the same on all nodes. Key
	// durability, preferred or required. Defaults to preferred.
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
	// EtcdPrefix is the beginning of all keys in etcd; the cluster's name follows. Key etcd_prefix. Defaults to /repmgr/.
	EtcdPrefix string
	// EtcdCACert is the file of the certificate authority of etcd. Key etcd_cacert.
	EtcdCACert string
	// EtcdCert is the file of the client certificate for etcd. Key etcd_cert.
	EtcdCert string
	// EtcdKey is the file of the key of that certificate. Key etcd_key.
	EtcdKey string
	// HTTPListen is where repmgrd answers HTTP: health checks, metrics, events. Key http_listen, an address and a port,
	// such as '127.0.0.1:8008', quoted. Empty: nowhere.
	HTTPListen string
	// HTTPCert is the file of the certificate with which repmgrd answers, as PEM; with it there is only HTTPS. The file
	// is read again when it has changed. Key http_cert.
	HTTPCert string
	// HTTPKey is the file of the key of that certificate. Key http_key.
	HTTPKey string
	// HTTPClientCA is the file of the certificate authorities whose clients may change something: switch over,
	// pause, restart. Key http_client_ca. Empty: none.
	HTTPClientCA string
	// HTTPTokenFile is the file of the password of requests that change something; it is read again when it has changed.
	// Key http_token_file. Empty: only clients with a certificate may.
	HTTPTokenFile string
	// HTTPAllowlist is from where something may be changed over HTTP, beside the password or the certificate: addresses and
	// networks, joined by commas. Key http_allowlist. Empty: from everywhere. This machine, too, must then be in it.
	HTTPAllowlist []netip.Prefix
	// MetricsCompat gives metrics under the names of another tool, too. Key metrics_compat, none or patroni. Defaults to none.
	MetricsCompat MetricsCompat
	// RouterHAProxySocket are the runtime sockets of HAProxy that are told where the primary is: paths, or addresses
	// and ports, joined by commas. Key router_haproxy_socket.
	RouterHAProxySocket string
	// RouterHAProxyBackend is the backend of HAProxy for the primary; its servers are named as the nodes. Key
	// router_haproxy_backend. Defaults to primary.
	RouterHAProxyBackend string
	// RouterPgBouncer is the conninfo of the console of a PgBouncer, of one of its admin_users; of several, joined by commas. Key router_pgbouncer.
	RouterPgBouncer string
	// RouterPgBouncerFile has the databases of each PgBouncer without a file=PATH of its own, which get the host and the
	// port of the primary: pgbouncer.ini, or what it includes. Key router_pgbouncer_file.
	RouterPgBouncerFile string
	// RouterVIP is an address that is on the machine of the primary, with failover automatic. Key router_vip, such as 192.0.2.10/24.
	RouterVIP string
	// RouterVIPInterface is the network interface for it. Key router_vip_interface.
	RouterVIPInterface string
	// PromoteCommand promotes this node in a failover. Empty: the daemon does it itself. If the command fails, or
	// takes longer than PromoteCheckTimeout, the election ends, and the next one promotes without it. Key
	// promote_command.
	PromoteCommand string
	// FollowCommand makes this node follow a new primary, %n. Empty: the daemon does it itself. Key follow_command.
	FollowCommand string
	// MonitorInterval is the time between two looks at the servers. Key monitor_interval_secs, in
	// seconds, 1 or more. Defaults to 2.
	MonitorInterval time.Duration
	// ReconnectAttempts is how many ReconnectIntervals a failover waits for a primary that counts as lost to return.
	// Key reconnect_attempts, 0 or more. Defaults to 0.
	ReconnectAttempts int
	// ReconnectInterval is the length of one of them. Key reconnect_interval, in seconds, 0 or more. Defaults to 10.
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
	// SiblingNodesDisconnectTimeout is how long to wait until they have stopped. Key
	// sibling_nodes_disconnect_timeout, in seconds, 0 or more. Defaults to 30.
	SiblingNodesDisconnectTimeout time.Duration
	// ConnectionCheckType is how it is tested whether a server is running. Key connection_check_type,
	// one of ping, connection, query. Defaults to ping.
	ConnectionCheckType ConnectionCheckType
	// ConnectionCheckQuery is the query of ConnectionCheckType query. Key connection_check_query. Defaults to SELECT 1.
	ConnectionCheckQuery string
	// PrimaryVisibilityConsensus refuses a failover while another standby still sees the primary.
	// Key primary_visibility_consensus. Defaults to false.
	PrimaryVisibilityConsensus bool
	// AlwaysPromote allows a promotion although the metadata may be out of date. Key always_promote. Defaults to false.
	AlwaysPromote bool
	// FailoverValidationCommand is run before a promotion, and refuses it by an exit code other than 0; it gets %n %a
	// %v %u %t. Key failover_validation_command.
	FailoverValidationCommand string
	// ElectionRerunInterval is the time between two elections. Key election_rerun_interval, in seconds, 1
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
	// ChildNodesDisconnectMinCount is how many standbys must be disconnected before ChildNodesDisconnectCommand is run;
	// -1 leaves that to ChildNodesConnectedMinCount. Key child_nodes_disconnect_min_count, -1 or more. Defaults to -1.
	ChildNodesDisconnectMinCount int
	// ChildNodesConnectedMinCount is the number of connected standbys below which ChildNodesDisconnectCommand is run; -1
	// is no such number. Key child_nodes_connected_min_count, -1 or more. Defaults to -1.
	ChildNodesConnectedMinCount int
	// ChildNodesConnectedIncludeWitness counts a witness among them. Key
	// child_nodes_connected_include_witness. Defaults to false.
	ChildNodesConnectedIncludeWitness bool
	// ChildNodesDisconnectTimeout is how long they must be disconnected. Key
	// child_nodes_disconnect_timeout, in seconds, 0 or more. Defaults to 30.
	ChildNodesDisconnectTimeout time.Duration
	// ChildNodesDisconnectCommand is run on the primary when it has too few standbys; it gets %p. Key
	// child_nodes_disconnect_command.
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

	// Events.

	// EventNotificationCommand is run for each event; it gets %n %e %s %t %d %p %c %a. Key event_notification_command.
	EventNotificationCommand string
	// EventNotifications are the events that are notified; empty is all. Key event_notifications, names joined by commas.
	EventNotifications []EventType
	// EventNotificationTimeout bounds the command and the webhook. Key event_notification_timeout,
	// in seconds, 1 or more. Defaults to 30.
	EventNotificationTimeout time.Duration
	// EventWebhookURL gets each event as JSON by POST. Key event_webhook_url, http or https.
	EventWebhookURL string

	// What only a program can set.

	// Logger takes the log of the library. Defaults to none. Its handler must not block: an election waits for it.
	Logger *slog.Logger
	// Notifiers get each event of this Monitor or Cluster, not those of other nodes, in addition to the command and the webhook.
	Notifiers []Notifier
	// Arbiter votes with the nodes. The programs make it from the keys etcd_*. Defaults to none.
	Arbiter Arbiter
	// HoldClients is called by the Monitor of the primary before it stops its server for a switchover: it holds
	// transactions back, and waits for those under way. The switchover waits for it, and goes on also after an error; then release
	// is called. The programs make it from the keys router_*, with package router. Defaults to none.
	HoldClients func(context.Context) (release func(), err error)
	// RoutersFailing are the routers that did not take what they were told last, and why; the Monitor says it to
	// everybody, and must not have to wait. The programs set it with package router. Defaults to none.
	RoutersFailing func() map[string]string

	// What LoadConfig found out.

	// File is the absolute path of the file from which it was read, or empty.
	File string
	// Warnings are the harmless faults of the file: unknown and deprecated keys.
	Warnings []Fault

	filled bool            // each field has the value that it shows: a zero does not mean the default
	places settings.Places // where the file sets each key
}

// Arbiter is a voter that is not a PostgreSQL server, for example an etcd that is already in use: see
// package etcd. Its id among the voters is [election.Arbiter]. It must be safe for concurrent use. The
// program that makes an arbiter also closes it.
//
// Each method has a deadline of its own in addition to that of ctx. Where the arbiter can not be reached,
// or does not answer in time, errors.Is finds [ErrConnect] in the error. It is then unknown whether a
// pledge was stored, and the caller must count it as not given. Where a call is refused because of a
// higher term, errors.Is finds [ballot.ErrTerm], and [Arbiter.Look] reads that term.
type Arbiter interface {
	// Name is the name of the arbiter in messages, for example "etcd".
	Name() string
	// Look reads what the arbiter holds. It must not return a state that is older than what an earlier call
	// of any client has stored.
	Look(ctx context.Context) (ArbiterState, error)
	// Pledge stores b if its term is higher than the terms of the ballot and of the rule that the arbiter
	// holds. Of two calls with the same term only one succeeds. The returned state is that at the moment of
	// the decision, also after a refusal.
	Pledge(ctx context.Context, b ballot.Ballot) (ArbiterState, error)
	// Record stores the rule and the registered nodes, so that a coordinator can find them. A newer rule of
	// the same term is kept, and that is not an error. A rule of a lower term than the rule or the ballot that
	// the arbiter holds is refused: like a standby, an arbiter that pledged itself to a new term must not take
	// part in anything of an older one.
	Record(ctx context.Context, r election.Rule, nodes []Record) error
	// Announce publishes the primary of a rule for clients that look for it there. The announcement ends ttl
	// after the last call. The call is refused where the arbiter holds a ballot or a rule of a higher term.
	Announce(ctx context.Context, r election.Rule, primary Record, ttl time.Duration) error
}

// ArbiterState is what an arbiter holds. The zero value is the state of an arbiter that has not voted and
// has stored nothing.
type ArbiterState struct {
	Ballot ballot.Ballot
	Rule   election.Rule
	Nodes  []Record // registered when the rule was stored
	// Primary is the announced primary; the zero Record means that none is announced.
	Primary Record
}
