package repmgr

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/conffile"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/registry"
)

// confKeys maps each key to its field, in the order of the fields of Config.
var confKeys = settings.Table[Config]{
	settings.Int("node_id", 1, 0, func(c *Config) *NodeID { return &c.NodeID }).Alias("node"),
	settings.Checked("node_name", "", func(c *Config) *string { return &c.NodeName }, badNodeName),
	settings.Text("cluster", "", func(c *Config) *string { return &c.ClusterName }).Alias("cluster_name"),
	settings.Conninfo("conninfo", func(c *Config) *string { return &c.Conninfo }).OnReload(),
	settings.Text("replication_user", "", func(c *Config) *string { return &c.ReplicationUser }),
	settings.Path("data_directory", func(c *Config) *string { return &c.DataDirectory }),
	settings.Path("config_directory", func(c *Config) *string { return &c.ConfigDirectory }),
	settings.Path("pg_bindir", func(c *Config) *string { return &c.PgBindir }),
	settings.Path("repmgr_bindir", func(c *Config) *string { return &c.RepmgrBindir }),
	settings.Enum("replication_type", DefaultReplicationType, func(c *Config) *ReplicationType { return &c.ReplicationType }, ReplicationPhysical),
	settings.Text("location", DefaultLocation, func(c *Config) *string { return &c.Location }),
	settings.Int("priority", 0, DefaultPriority, func(c *Config) *int { return &c.Priority }),
	settings.Int("upstream_node_id", 0, 0, func(c *Config) *NodeID { return &c.UpstreamNodeID }).Formerly("upstream_node"),

	settings.Enum("log_level", DefaultLogLevel, func(c *Config) *LogLevel { return &c.LogLevel }, LogDebug, LogInfo, LogNotice, LogWarning, LogError, LogCritical, LogAlert, LogEmergency).OnReload().Formerly("loglevel"),
	settings.Enum("log_format", DefaultLogFormat, func(c *Config) *LogFormat { return &c.LogFormat }, LogText, LogJSON).OnReload(),
	settings.Enum("log_facility", DefaultLogFacility, func(c *Config) *LogFacility { return &c.LogFacility }, LogStderr, "USER", "LOCAL0", "LOCAL1", "LOCAL2", "LOCAL3", "LOCAL4", "LOCAL5", "LOCAL6", "LOCAL7").OnReload().Formerly("logfacility"),
	settings.Path("log_file", func(c *Config) *string { return &c.LogFile }).OnReload().Formerly("logfile"),
	settings.Time("log_status_interval", time.Second, 0, DefaultLogStatusInterval, func(c *Config) *time.Duration { return &c.LogStatusInterval }).OnReload(),

	settings.Bool("use_replication_slots", func(c *Config) *bool { return &c.UseReplicationSlots }),
	settings.Enum("clone_method", DefaultCloneMethod, func(c *Config) *CloneMethod { return &c.CloneMethod }, CloneBasebackup, CloneRsync, CloneCommand),
	settings.Command("clone_command", "", func(c *Config) *string { return &c.CloneCommand }),
	settings.Command("pg_basebackup_options", "", func(c *Config) *string { return &c.PgBasebackupOptions }),
	settings.Command("rsync_options", "", func(c *Config) *string { return &c.RsyncOptions }),
	settings.Command("ssh_options", DefaultSSHOptions, func(c *Config) *string { return &c.SSHOptions }),
	settings.Mapping("tablespace_mapping", func(c *Config) *map[string]string { return &c.TablespaceMapping }),
	settings.Command("restore_command", "", func(c *Config) *string { return &c.RestoreCommand }),
	settings.Command("archive_cleanup_command", "", func(c *Config) *string { return &c.ArchiveCleanupCommand }),
	settings.Time("recovery_min_apply_delay", time.Millisecond, 0, 0, func(c *Config) *time.Duration { return &c.RecoveryMinApplyDelay }),
	settings.Bool("use_primary_conninfo_password", func(c *Config) *bool { return &c.UsePrimaryConninfoPassword }),
	settings.Path("passfile", func(c *Config) *string { return &c.Passfile }),
	settings.Text("barman_host", "", func(c *Config) *string { return &c.BarmanHost }),
	settings.Text("barman_server", "", func(c *Config) *string { return &c.BarmanServer }),
	settings.Path("barman_config", func(c *Config) *string { return &c.BarmanConfig }),
	settings.Text("pg_backupapi_backup_id", "", func(c *Config) *string { return &c.PgBackupapiBackupID }),
	settings.Text("pg_backupapi_host", "", func(c *Config) *string { return &c.PgBackupapiHost }),
	settings.Text("pg_backupapi_node_name", "", func(c *Config) *string { return &c.PgBackupapiNodeName }),
	settings.Command("pg_backupapi_remote_ssh_command", "", func(c *Config) *string { return &c.PgBackupapiRemoteSSHCommand }),

	settings.Time("promote_check_timeout", time.Second, 1, DefaultPromoteCheckTimeout, func(c *Config) *time.Duration { return &c.PromoteCheckTimeout }),
	settings.Time("promote_check_interval", time.Second, 1, DefaultPromoteCheckInterval, func(c *Config) *time.Duration { return &c.PromoteCheckInterval }),
	settings.Time("primary_follow_timeout", time.Second, 1, DefaultPrimaryFollowTimeout, func(c *Config) *time.Duration { return &c.PrimaryFollowTimeout }),
	settings.Time("standby_follow_timeout", time.Second, 1, DefaultStandbyFollowTimeout, func(c *Config) *time.Duration { return &c.StandbyFollowTimeout }),
	settings.Bool("standby_follow_restart", func(c *Config) *bool { return &c.StandbyFollowRestart }),
	settings.Time("shutdown_check_timeout", time.Second, 1, DefaultShutdownCheckTimeout, func(c *Config) *time.Duration { return &c.ShutdownCheckTimeout }),
	settings.Time("standby_reconnect_timeout", time.Second, 1, DefaultStandbyReconnectTimeout, func(c *Config) *time.Duration { return &c.StandbyReconnectTimeout }),
	settings.Time("wal_receive_check_timeout", time.Second, 1, DefaultWALReceiveCheckTimeout, func(c *Config) *time.Duration { return &c.WALReceiveCheckTimeout }),
	settings.Time("node_rejoin_timeout", time.Second, 1, DefaultNodeRejoinTimeout, func(c *Config) *time.Duration { return &c.NodeRejoinTimeout }),

	settings.Int("archive_ready_warning", 1, DefaultArchiveReadyWarning, func(c *Config) *int { return &c.ArchiveReadyWarning }),
	settings.Int("archive_ready_critical", 1, DefaultArchiveReadyCritical, func(c *Config) *int { return &c.ArchiveReadyCritical }),
	settings.Time("replication_lag_warning", time.Second, 1, DefaultReplicationLagWarning, func(c *Config) *time.Duration { return &c.ReplicationLagWarning }),
	settings.Time("replication_lag_critical", time.Second, 1, DefaultReplicationLagCritical, func(c *Config) *time.Duration { return &c.ReplicationLagCritical }),

	settings.Enum("failover", DefaultFailover, func(c *Config) *FailoverMode { return &c.Failover }, FailoverManual, FailoverAutomatic).OnReload(),
	settings.Time("silence_timeout", time.Second, 1, DefaultSilenceTimeout, func(c *Config) *time.Duration { return &c.SilenceTimeout }).OnReload(),
	settings.Time("fence_timeout", time.Second, 1, DefaultFenceTimeout, func(c *Config) *time.Duration { return &c.FenceTimeout }).OnReload(),
	settings.Time("hang_timeout", time.Second, 1, DefaultHangTimeout, func(c *Config) *time.Duration { return &c.HangTimeout }).OnReload(),
	settings.Time("primary_start_timeout", time.Second, -1, 0, func(c *Config) *time.Duration { return &c.PrimaryStartTimeout }).OnReload(),
	settings.Path("watchdog_device", func(c *Config) *string { return &c.WatchdogDevice }).OnReload(),
	settings.Bool("watchdog_required", func(c *Config) *bool { return &c.WatchdogRequired }).OnReload(),
	settings.Bool("failover_on_shutdown", func(c *Config) *bool { return &c.FailoverOnShutdown }).OnReload(),
	settings.Size("maximum_lag_on_failover", func(c *Config) *int64 { return &c.MaximumLagOnFailover }).OnReload(),
	settings.Int("failovers_per_hour", -1, DefaultFailoversPerHour, func(c *Config) *int { return &c.FailoversPerHour }).OnReload(),
	settings.Enum("synchronous_mode", DefaultSynchronousMode, func(c *Config) *SynchronousMode { return &c.SynchronousMode }, SynchronousOff, SynchronousQuorum, SynchronousStrict).OnReload(),
	settings.Enum("durability", DefaultDurability, func(c *Config) *Durability { return &c.Durability }, DurabilityPreferred, DurabilityRequired).OnReload(),
	settings.Int("synchronous_node_count", 0, 0, func(c *Config) *int { return &c.SynchronousNodeCount }).OnReload(),
	settings.Enum("rejoin", DefaultRejoin, func(c *Config) *RejoinPolicy { return &c.Rejoin }, RejoinNever, RejoinIfClean, RejoinRewind, RejoinReclone).OnReload(),
	settings.Path("salvage_directory", func(c *Config) *string { return &c.SalvageDirectory }).OnReload(),
	settings.Text("etcd_endpoints", "", func(c *Config) *string { return &c.EtcdEndpoints }),
	settings.Text("etcd_prefix", DefaultEtcdPrefix, func(c *Config) *string { return &c.EtcdPrefix }),
	settings.Path("etcd_cacert", func(c *Config) *string { return &c.EtcdCACert }),
	settings.Path("etcd_cert", func(c *Config) *string { return &c.EtcdCert }),
	settings.Path("etcd_key", func(c *Config) *string { return &c.EtcdKey }),
	settings.Checked("http_listen", "", func(c *Config) *string { return &c.HTTPListen }, settings.BadListen),
	settings.Path("http_cert", func(c *Config) *string { return &c.HTTPCert }),
	settings.Path("http_key", func(c *Config) *string { return &c.HTTPKey }),
	settings.Path("http_client_ca", func(c *Config) *string { return &c.HTTPClientCA }),
	settings.Path("http_token_file", func(c *Config) *string { return &c.HTTPTokenFile }),
	settings.Networks("http_allowlist", func(c *Config) *[]netip.Prefix { return &c.HTTPAllowlist }).OnReload(),
	settings.Enum("metrics_compat", DefaultMetricsCompat, func(c *Config) *MetricsCompat { return &c.MetricsCompat }, MetricsOwn, MetricsPatroni),
	settings.Checked("router_haproxy_socket", "", func(c *Config) *string { return &c.RouterHAProxySocket }, settings.BadSockets),
	settings.Checked("router_haproxy_backend", DefaultRouterHAProxyBackend, func(c *Config) *string { return &c.RouterHAProxyBackend }, settings.BadWord),
	settings.PgBouncers("router_pgbouncer", func(c *Config) *string { return &c.RouterPgBouncer }),
	settings.Path("router_pgbouncer_file", func(c *Config) *string { return &c.RouterPgBouncerFile }),
	settings.Checked("router_vip", "", func(c *Config) *string { return &c.RouterVIP }, settings.BadPrefix),
	settings.Checked("router_vip_interface", "", func(c *Config) *string { return &c.RouterVIPInterface }, settings.BadWord),
	settings.Command("promote_command", "", func(c *Config) *string { return &c.PromoteCommand }).OnReload(),
	settings.Command("follow_command", "", func(c *Config) *string { return &c.FollowCommand }).OnReload(),
	settings.Time("monitor_interval_secs", time.Second, 1, DefaultMonitorInterval, func(c *Config) *time.Duration { return &c.MonitorInterval }).OnReload(),
	settings.Int("reconnect_attempts", 0, DefaultReconnectAttempts, func(c *Config) *int { return &c.ReconnectAttempts }).OnReload(),
	settings.Time("reconnect_interval", time.Second, 0, DefaultReconnectInterval, func(c *Config) *time.Duration { return &c.ReconnectInterval }).OnReload(),
	settings.Bool("monitoring_history", func(c *Config) *bool { return &c.MonitoringHistory }).OnReload(),
	settings.Time("monitoring_history_retention", settings.Day, 0, DefaultMonitoringHistoryRetention, func(c *Config) *time.Duration { return &c.MonitoringHistoryRetention }).OnReload(),
	settings.Time("events_retention", settings.Day, 0, DefaultEventsRetention, func(c *Config) *time.Duration { return &c.EventsRetention }).OnReload(),
	settings.Time("degraded_monitoring_timeout", time.Second, -1, DefaultDegradedMonitoringTimeout, func(c *Config) *time.Duration { return &c.DegradedMonitoringTimeout }).OnReload(),
	settings.Time("async_query_timeout", time.Second, 0, DefaultAsyncQueryTimeout, func(c *Config) *time.Duration { return &c.AsyncQueryTimeout }).OnReload().Formerly("master_reponse_timeout", "master_response_timeout"),
	settings.Time("primary_notification_timeout", time.Second, 0, DefaultPrimaryNotificationTimeout, func(c *Config) *time.Duration { return &c.PrimaryNotificationTimeout }).OnReload().Formerly("retry_promote_interval_secs"),
	settings.Time("repmgrd_standby_startup_timeout", time.Second, -1, DefaultRepmgrdStandbyStartupTimeout, func(c *Config) *time.Duration { return &c.RepmgrdStandbyStartupTimeout }).OnReload(),
	settings.Path("repmgrd_pid_file", func(c *Config) *string { return &c.RepmgrdPidFile }),
	settings.Bool("repmgrd_exit_on_inactive_node", func(c *Config) *bool { return &c.RepmgrdExitOnInactiveNode }),
	settings.Bool("standby_disconnect_on_failover", func(c *Config) *bool { return &c.StandbyDisconnectOnFailover }).OnReload(),
	settings.Time("sibling_nodes_disconnect_timeout", time.Second, 0, DefaultSiblingNodesDisconnectTimeout, func(c *Config) *time.Duration { return &c.SiblingNodesDisconnectTimeout }).OnReload(),
	settings.Enum("connection_check_type", DefaultConnectionCheckType, func(c *Config) *ConnectionCheckType { return &c.ConnectionCheckType }, CheckPing, CheckConnection, CheckQuery).OnReload(),
	settings.Text("connection_check_query", DefaultConnectionCheckQuery, func(c *Config) *string { return &c.ConnectionCheckQuery }),
	settings.Bool("primary_visibility_consensus", func(c *Config) *bool { return &c.PrimaryVisibilityConsensus }).OnReload(),
	settings.Bool("always_promote", func(c *Config) *bool { return &c.AlwaysPromote }).OnReload(),
	settings.Command("failover_validation_command", "", func(c *Config) *string { return &c.FailoverValidationCommand }).OnReload(),
	settings.Time("election_rerun_interval", time.Second, 1, DefaultElectionRerunInterval, func(c *Config) *time.Duration { return &c.ElectionRerunInterval }),
	settings.Time("witness_sync_interval", time.Second, 1, DefaultWitnessSyncInterval, func(c *Config) *time.Duration { return &c.WitnessSyncInterval }),
	settings.Bool("reconnect_loop_sync", func(c *Config) *bool { return &c.ReconnectLoopSync }),
	settings.Time("promote_delay", time.Second, 0, 0, func(c *Config) *time.Duration { return &c.PromoteDelay }),
	settings.Time("failover_delay", time.Second, 0, 0, func(c *Config) *time.Duration { return &c.FailoverDelay }),

	settings.Time("child_nodes_check_interval", time.Second, 1, DefaultChildNodesCheckInterval, func(c *Config) *time.Duration { return &c.ChildNodesCheckInterval }).OnReload(),
	settings.Int("child_nodes_disconnect_min_count", -1, DefaultChildNodesDisconnectMinCount, func(c *Config) *int { return &c.ChildNodesDisconnectMinCount }).OnReload(),
	settings.Int("child_nodes_connected_min_count", -1, DefaultChildNodesConnectedMinCount, func(c *Config) *int { return &c.ChildNodesConnectedMinCount }).OnReload(),
	settings.Bool("child_nodes_connected_include_witness", func(c *Config) *bool { return &c.ChildNodesConnectedIncludeWitness }).OnReload(),
	settings.Time("child_nodes_disconnect_timeout", time.Second, 0, DefaultChildNodesDisconnectTimeout, func(c *Config) *time.Duration { return &c.ChildNodesDisconnectTimeout }).OnReload(),
	settings.Command("child_nodes_disconnect_command", "", func(c *Config) *string { return &c.ChildNodesDisconnectCommand }).OnReload(),

	settings.Command("pg_ctl_options", "", func(c *Config) *string { return &c.PgCtlOptions }),
	settings.Command("service_start_command", "", func(c *Config) *string { return &c.ServiceStartCommand }),
	settings.Command("service_stop_command", "", func(c *Config) *string { return &c.ServiceStopCommand }),
	settings.Command("service_restart_command", "", func(c *Config) *string { return &c.ServiceRestartCommand }),
	settings.Command("service_reload_command", "", func(c *Config) *string { return &c.ServiceReloadCommand }),
	settings.Command("service_promote_command", "", func(c *Config) *string { return &c.ServicePromoteCommand }),
	settings.Command("repmgrd_service_start_command", "", func(c *Config) *string { return &c.RepmgrdServiceStartCommand }),
	settings.Command("repmgrd_service_stop_command", "", func(c *Config) *string { return &c.RepmgrdServiceStopCommand }),

	settings.Command("event_notification_command", "", func(c *Config) *string { return &c.EventNotificationCommand }).OnReload(),
	settings.Names("event_notifications", func(c *Config) *[]EventType { return &c.EventNotifications }).OnReload(),
	settings.Time("event_notification_timeout", time.Second, 1, DefaultEventNotificationTimeout, func(c *Config) *time.Duration { return &c.EventNotificationTimeout }).OnReload(),
	settings.URL("event_webhook_url", func(c *Config) *string { return &c.EventWebhookURL }).OnReload(),
}

// badNodeName returns what is wrong with a node_name, or an empty string.
func badNodeName(s string) string {
	if len(s) > registry.MaxNameBytes {
		return fmt.Sprintf("must be at most %d bytes long, and is %d", registry.MaxNameBytes, len(s))
	}
	if problem := settings.NoNUL(s); problem != "" {
		return problem
	}
	if s != "" && !registry.ValidName.MatchString(s) {
		return "must be of letters, digits, '_', '.' and '-' only: synchronous_standby_names, application_name or a shell would read others differently. Choose another name, here and then with: repmgr primary register -F (or standby register -F)"
	}
	return ""
}

// configError makes the error of these faults; nil where there are none.
func configError(faults []Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &ConfigError{Faults: faults}
}

// faultsOf are the faults that the reader of a file has found, in the form that callers see.
func faultsOf(list []conffile.Fault) (faults []Fault) {
	for _, f := range list {
		faults = append(faults, Fault{f.File, f.Line, f.Key, f.Shown, f.Problem, f.Remedy})
	}
	return faults
}

// unreadable is the error of a file that can not be read.
func unreadable(path string, err error) error {
	return &ConfigError{Faults: []Fault{{File: path, Problem: "cannot be read: " + conffile.Reason(err)}}, cause: err}
}

// FindConfig returns the path of the configuration file to use, and whether there is one. An
// explicit path is the only candidate, and must exist. Else the first of these is taken:
//
//	./repmgr.conf
//	repmgr.conf in the directory of the running program
//	/etc/repmgr.conf
//	/etc/repmgr/NN/repmgr.conf of the highest NN
//
// The path returned is absolute. Finding none is no error: not every command needs a file.
func FindConfig(explicit string) (path string, found bool, err error) {
	if explicit != "" {
		path, err = filepath.Abs(explicit)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return "", false, hint(unreadable(explicit, err), "Name the configuration file with -f, as a user who may read it.")
		}
		return path, true, nil
	}
	dirs := []string{"."}
	if program, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(program))
	}
	return conffile.Find("repmgr.conf", append(dirs, "/etc"), "/etc/repmgr")
}

// LoadConfig reads a repmgr.conf, of repmgr 1 or of repmgr 5, and what it includes. The values in force
// are those that the file sets last, defaults elsewhere, checked as by [Config.Validate]. Everything
// that is wrong comes back at once, as a [*ConfigError]; what is merely odd is in [Config.Warnings].
func LoadConfig(path string) (Config, error) {
	file, err := filepath.Abs(path)
	if err != nil || path == "" {
		return Config{}, unreadable(path, cmp.Or(err, fs.ErrNotExist))
	}
	entries, faults, err := conffile.Read(file)
	if err != nil {
		return Config{}, unreadable(path, err)
	}
	return configOf(file, entries, faults)
}

// configOf makes a Config from the content of a file.
func configOf(file string, entries []conffile.Entry, broken []conffile.Fault) (Config, error) {
	c := DefaultConfig()
	c.File = file
	taken := confKeys.Take(&c, entries, broken)
	c.places = taken.Places
	c = c.withDefaults()
	if faults := append(taken.Faults, c.conflicts(taken.Bad)...); len(faults) > 0 {
		return Config{}, configError(faultsOf(faults))
	}
	c.Warnings = faultsOf(taken.Warnings)
	return c, nil
}

// Redacted returns a copy that may be shown: secrets in Conninfo, in commands and in the
// webhook's address are replaced by ***.
func (c Config) Redacted() Config {
	confKeys.Hide(&c)
	return c
}

// String shows the redacted settings that differ from the defaults.
func (c Config) String() string {
	def := DefaultConfig()
	return "repmgr.Config{" + confKeys.Differences(&c, &def) + "}"
}

// GoString keeps %#v from showing secrets.
func (c Config) GoString() string { return c.String() }

// LogValue keeps slog from showing secrets.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ineffective are keys of repmgr 5 that are read and checked, so that its files load, but have
// no effect in this version.
var ineffective = []string{
	"primary_notification_timeout", "election_rerun_interval", "always_promote",
	"standby_disconnect_on_failover", "sibling_nodes_disconnect_timeout",
	"child_nodes_check_interval", "connection_check_type", "connection_check_query", "async_query_timeout",
	"degraded_monitoring_timeout", "repmgrd_exit_on_inactive_node", "log_status_interval", "promote_check_interval", "standby_follow_restart",
	"pg_basebackup_options", "barman_host", "pg_backupapi_host",
	"wal_receive_check_timeout",
}

// Ineffective returns the keys that are set to other than their defaults and have no effect in this version.
func (c Config) Ineffective() []string {
	def := DefaultConfig()
	var keys []string
	for _, name := range ineffective {
		if k := confKeys.Key(name); k.Get(&c) != k.Get(&def) {
			keys = append(keys, name)
		}
	}
	return keys
}

// KeyValue is a setting as a file has it.
type KeyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Dump returns every setting in force, redacted, in the order of the fields. A key that may be
// repeated comes once for each of its values.
func (c Config) Dump() []KeyValue {
	var all []KeyValue
	c = c.withDefaults()
	for key, value := range confKeys.All(&c) {
		all = append(all, KeyValue{key, value})
	}
	return all
}

// ChangedKeys returns the keys that are not the same in next: those that a running daemon
// takes over, and those that need it to be restarted or the node to be registered again.
func (c Config) ChangedKeys(next Config) (reloadable, needRestart []string) {
	c, next = c.withDefaults(), next.withDefaults()
	return confKeys.Changed(&c, &next)
}

// Reload returns a copy that has the reloadable keys of next and everything else of c.
func (c Config) Reload(next Config) Config {
	c, next = c.withDefaults(), next.withDefaults()
	confKeys.Reload(&c, &next)
	c.Warnings = next.Warnings
	return c
}

// DefaultConfig returns the configuration of an empty file.
func DefaultConfig() Config {
	var c Config
	confKeys.Fill(&c)
	c.filled = true
	return c
}

// withDefaults returns a complete copy: zero fields get their defaults, and values that depend
// on other fields are computed.
func (c Config) withDefaults() Config {
	if !c.filled {
		confKeys.Fill(&c)
		c.filled = true
	}
	if c.SynchronousMode == SynchronousStrict {
		c.SynchronousMode, c.Durability = SynchronousQuorum, DurabilityRequired
	}
	if c.NodeName == "" && c.NodeID > 0 {
		c.NodeName = fmt.Sprintf("node%d", c.NodeID)
	}
	if c.RepmgrdStandbyStartupTimeout < 0 {
		c.RepmgrdStandbyStartupTimeout = c.StandbyReconnectTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate returns what is wrong with the values, all of it at once, as a [*ConfigError] that [errors.Is]
// finds by [ErrConfig]. It does not ask for the fields that only some commands need: see [Config.RequireNode].
func (c Config) Validate() error {
	c = c.withDefaults()
	faults, bad := confKeys.Check(&c, c.places)
	if attrs := conninfo.TargetSessionAttrs(c.Conninfo); c.NodeID > 0 && !bad["conninfo"] && attrs != "" && attrs != "any" {
		problem := fmt.Sprintf("must lead to this node whatever it runs as, and target_session_attrs=%s asks for a server that happens to be one", attrs)
		faults = append(faults, confKeys.Fault(&c, c.places, "conninfo", problem, "leave target_session_attrs out: it is for clients"))
	}
	return configError(faultsOf(append(faults, c.conflicts(bad)...)))
}

// conflicts returns what is wrong between several keys. A key in bad has a fault of its own and
// is skipped.
func (c Config) conflicts(bad map[string]bool) []conffile.Fault {
	return confKeys.Conflicts(&c, c.places, bad,
		settings.Expect(c.ArchiveReadyWarning < c.ArchiveReadyCritical, "archive_ready_warning", "must be less than", "archive_ready_critical", ""),
		settings.Expect(c.ReplicationLagWarning < c.ReplicationLagCritical, "replication_lag_warning", "must be less than", "replication_lag_critical", ""),
		settings.Expect(c.StandbyReconnectTimeout >= c.NodeRejoinTimeout, "standby_reconnect_timeout", "must not be less than", "node_rejoin_timeout", ""),
		settings.Expect(c.FenceTimeout >= c.SilenceTimeout, "fence_timeout", "must not be less than", "silence_timeout", "a primary would stop itself before anybody takes it for lost"),
		settings.Expect(c.SynchronousNodeCount == 0 || c.SynchronousMode == SynchronousQuorum, "synchronous_node_count", "has no effect with", "synchronous_mode", "set synchronous_mode = quorum, or leave the count out"),
		settings.Expect(c.Durability != DurabilityRequired || c.SynchronousMode == SynchronousQuorum, "durability", "has no effect with", "synchronous_mode", "set synchronous_mode = quorum, or leave durability out"),
		settings.Expect((c.HTTPCert == "") == (c.HTTPKey == ""), "http_cert", "needs also", "http_key", "set both, or neither"),
		settings.Expect(c.HTTPClientCA == "" || c.HTTPCert != "", "http_client_ca", "needs also", "http_cert", "clients show certificates only over TLS"),
		settings.Expect(settings.EachHasFile(c.RouterPgBouncer, c.RouterPgBouncerFile), "router_pgbouncer", "needs also", "router_pgbouncer_file", "set both, or neither, or name the file of each PgBouncer behind its conninfo, such as file=/etc/pgbouncer/databases.ini"),
		settings.Expect(c.RouterVIP == "" || c.Failover == FailoverAutomatic, "router_vip", "does not work with", "failover", "set failover = automatic: without elections nobody can say that two machines do not have it"),
		settings.Expect(c.RouterVIP == "" || c.SilenceTimeout >= 3*time.Second, "router_vip", "does not work with", "silence_timeout", "set silence_timeout = 3 or more, and fence_timeout no less: the kernel counts in whole seconds how long the address stays"),
		settings.Expect((c.RouterVIP == "") == (c.RouterVIPInterface == ""), "router_vip", "needs also", "router_vip_interface", "set both, or neither"),
		settings.Expect(c.BarmanHost == "" || c.BarmanServer != "", "barman_host", "needs also", "barman_server", "set both, or neither"),
		settings.Expect(c.BarmanServer == "" || c.BarmanHost != "", "barman_server", "needs also", "barman_host", "set both, or neither"),
		settings.Expect(c.CloneMethod != CloneCommand || c.CloneCommand != "", "clone_method", "needs also", "clone_command", "set clone_command to the program that copies"))
}

// RequireNode returns what is missing for commands that act for a node: node_id and conninfo.
// The name has a default, and the server knows its data directory.
func (c Config) RequireNode() error {
	var faults []Fault
	if c.NodeID < 1 {
		faults = append(faults, Fault{File: c.File, Key: "node_id", Problem: "must be set", Remedy: "give each node a number of its own, 1 or more"})
	}
	if c.Conninfo == "" {
		faults = append(faults, Fault{File: c.File, Key: "conninfo", Problem: "must be set", Remedy: "say how other nodes reach this one, such as 'host=node1 user=repmgr dbname=repmgr'"})
	}
	return configError(faults)
}

// requireMonitor is RequireNode for a Monitor: a Monitor that only holds elections has no node.
func (c Config) requireMonitor() error {
	if c.NodeID == 0 && c.Failover == FailoverAutomatic && c.Conninfo != "" {
		return nil
	}
	return c.RequireNode()
}
