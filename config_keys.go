package repmgr

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/registry"
)

// confKey is a row of the table that drives parsing, defaults, checks, dumping
// and reloading.
type confKey struct {
	name   string
	reload bool // a running daemon takes it over
	confField
}

// confField connects a key with its field.
type confField struct {
	fill   func(*Config)                // gives a zero field its default
	set    func(*Config, string) string // parses a value; returns what is wrong with it, or ""
	get    func(*Config) string         // the value as a file has it
	check  func(*Config) string         // what is wrong with the field, or ""
	copy   func(dst, src *Config)
	list   func(*Config) []string // of a key that may be repeated: its values
	redact func(string) string    // nil: the value holds no secret
	hide   func(*Config)          // replaces the secrets in the field
}

// shown is the value without its secrets.
func (f confField) shown(c *Config) string {
	if f.redact != nil {
		return f.redact(f.get(c))
	}
	return f.get(c)
}

const (
	reloads  = true
	restarts = false
)

// confKeys is the table, in the order of the fields of Config.
var confKeys = []confKey{
	{"node_id", restarts, confID(1, func(c *Config) *NodeID { return &c.NodeID })},
	{"node_name", restarts, confName(func(c *Config) *string { return &c.NodeName })},
	{"cluster", restarts, confText("", func(c *Config) *string { return &c.ClusterName })},
	{"conninfo", reloads, confConninfo(func(c *Config) *string { return &c.Conninfo })},
	{"replication_user", restarts, confText("", func(c *Config) *string { return &c.ReplicationUser })},
	{"data_directory", restarts, confPath(func(c *Config) *string { return &c.DataDirectory })},
	{"config_directory", restarts, confPath(func(c *Config) *string { return &c.ConfigDirectory })},
	{"pg_bindir", restarts, confPath(func(c *Config) *string { return &c.PgBindir })},
	{"repmgr_bindir", restarts, confPath(func(c *Config) *string { return &c.RepmgrBindir })},
	{"replication_type", restarts, confEnum(DefaultReplicationType, func(c *Config) *ReplicationType { return &c.ReplicationType }, ReplicationPhysical)},
	{"location", restarts, confText(DefaultLocation, func(c *Config) *string { return &c.Location })},
	{"priority", restarts, confInt(0, DefaultPriority, func(c *Config) *int { return &c.Priority })},
	{"upstream_node_id", restarts, confID(0, func(c *Config) *NodeID { return &c.UpstreamNodeID })},

	{"log_level", reloads, confEnum(DefaultLogLevel, func(c *Config) *LogLevel { return &c.LogLevel }, LogDebug, LogInfo, LogNotice, LogWarning, LogError, LogCritical, LogAlert, LogEmergency)},
	{"log_format", reloads, confEnum(DefaultLogFormat, func(c *Config) *LogFormat { return &c.LogFormat }, LogText, LogJSON)},
	{"log_facility", reloads, confEnum(DefaultLogFacility, func(c *Config) *LogFacility { return &c.LogFacility }, LogStderr, "USER", "LOCAL0", "LOCAL1", "LOCAL2", "LOCAL3", "LOCAL4", "LOCAL5", "LOCAL6", "LOCAL7")},
	{"log_file", reloads, confPath(func(c *Config) *string { return &c.LogFile })},
	{"log_status_interval", reloads, confTime(time.Second, 0, DefaultLogStatusInterval, func(c *Config) *time.Duration { return &c.LogStatusInterval })},

	{"use_replication_slots", restarts, confBool(func(c *Config) *bool { return &c.UseReplicationSlots })},
	{"clone_method", restarts, confEnum(DefaultCloneMethod, func(c *Config) *CloneMethod { return &c.CloneMethod }, CloneBasebackup, CloneRsync, CloneCommand)},
	{"clone_command", restarts, confCommand("", func(c *Config) *string { return &c.CloneCommand })},
	{"pg_basebackup_options", restarts, confCommand("", func(c *Config) *string { return &c.PgBasebackupOptions })},
	{"rsync_options", restarts, confCommand("", func(c *Config) *string { return &c.RsyncOptions })},
	{"ssh_options", restarts, confCommand(DefaultSSHOptions, func(c *Config) *string { return &c.SSHOptions })},
	{"tablespace_mapping", restarts, confMapping(func(c *Config) *map[string]string { return &c.TablespaceMapping })},
	{"restore_command", restarts, confCommand("", func(c *Config) *string { return &c.RestoreCommand })},
	{"archive_cleanup_command", restarts, confCommand("", func(c *Config) *string { return &c.ArchiveCleanupCommand })},
	{"recovery_min_apply_delay", restarts, confTime(time.Millisecond, 0, 0, func(c *Config) *time.Duration { return &c.RecoveryMinApplyDelay })},
	{"use_primary_conninfo_password", restarts, confBool(func(c *Config) *bool { return &c.UsePrimaryConninfoPassword })},
	{"passfile", restarts, confPath(func(c *Config) *string { return &c.Passfile })},
	{"barman_host", restarts, confText("", func(c *Config) *string { return &c.BarmanHost })},
	{"barman_server", restarts, confText("", func(c *Config) *string { return &c.BarmanServer })},
	{"barman_config", restarts, confPath(func(c *Config) *string { return &c.BarmanConfig })},
	{"pg_backupapi_backup_id", restarts, confText("", func(c *Config) *string { return &c.PgBackupapiBackupID })},
	{"pg_backupapi_host", restarts, confText("", func(c *Config) *string { return &c.PgBackupapiHost })},
	{"pg_backupapi_node_name", restarts, confText("", func(c *Config) *string { return &c.PgBackupapiNodeName })},
	{"pg_backupapi_remote_ssh_command", restarts, confCommand("", func(c *Config) *string { return &c.PgBackupapiRemoteSSHCommand })},

	{"promote_check_timeout", restarts, confTime(time.Second, 1, DefaultPromoteCheckTimeout, func(c *Config) *time.Duration { return &c.PromoteCheckTimeout })},
	{"promote_check_interval", restarts, confTime(time.Second, 1, DefaultPromoteCheckInterval, func(c *Config) *time.Duration { return &c.PromoteCheckInterval })},
	{"primary_follow_timeout", restarts, confTime(time.Second, 1, DefaultPrimaryFollowTimeout, func(c *Config) *time.Duration { return &c.PrimaryFollowTimeout })},
	{"standby_follow_timeout", restarts, confTime(time.Second, 1, DefaultStandbyFollowTimeout, func(c *Config) *time.Duration { return &c.StandbyFollowTimeout })},
	{"standby_follow_restart", restarts, confBool(func(c *Config) *bool { return &c.StandbyFollowRestart })},
	{"shutdown_check_timeout", restarts, confTime(time.Second, 1, DefaultShutdownCheckTimeout, func(c *Config) *time.Duration { return &c.ShutdownCheckTimeout })},
	{"standby_reconnect_timeout", restarts, confTime(time.Second, 1, DefaultStandbyReconnectTimeout, func(c *Config) *time.Duration { return &c.StandbyReconnectTimeout })},
	{"wal_receive_check_timeout", restarts, confTime(time.Second, 1, DefaultWALReceiveCheckTimeout, func(c *Config) *time.Duration { return &c.WALReceiveCheckTimeout })},
	{"node_rejoin_timeout", restarts, confTime(time.Second, 1, DefaultNodeRejoinTimeout, func(c *Config) *time.Duration { return &c.NodeRejoinTimeout })},

	{"archive_ready_warning", restarts, confInt(1, DefaultArchiveReadyWarning, func(c *Config) *int { return &c.ArchiveReadyWarning })},
	{"archive_ready_critical", restarts, confInt(1, DefaultArchiveReadyCritical, func(c *Config) *int { return &c.ArchiveReadyCritical })},
	{"replication_lag_warning", restarts, confTime(time.Second, 1, DefaultReplicationLagWarning, func(c *Config) *time.Duration { return &c.ReplicationLagWarning })},
	{"replication_lag_critical", restarts, confTime(time.Second, 1, DefaultReplicationLagCritical, func(c *Config) *time.Duration { return &c.ReplicationLagCritical })},

	{"failover", reloads, confEnum(DefaultFailover, func(c *Config) *FailoverMode { return &c.Failover }, FailoverManual, FailoverAutomatic)},
	{"silence_timeout", reloads, confTime(time.Second, 1, DefaultSilenceTimeout, func(c *Config) *time.Duration { return &c.SilenceTimeout })},
	{"fence_timeout", reloads, confTime(time.Second, 1, DefaultFenceTimeout, func(c *Config) *time.Duration { return &c.FenceTimeout })},
	{"hang_timeout", reloads, confTime(time.Second, 1, DefaultHangTimeout, func(c *Config) *time.Duration { return &c.HangTimeout })},
	{"primary_start_timeout", reloads, confTime(time.Second, -1, 0, func(c *Config) *time.Duration { return &c.PrimaryStartTimeout })},
	{"watchdog_device", reloads, confPath(func(c *Config) *string { return &c.WatchdogDevice })},
	{"watchdog_required", reloads, confBool(func(c *Config) *bool { return &c.WatchdogRequired })},
	{"failover_on_shutdown", reloads, confBool(func(c *Config) *bool { return &c.FailoverOnShutdown })},
	{"maximum_lag_on_failover", reloads, confSize(func(c *Config) *int64 { return &c.MaximumLagOnFailover })},
	{"failovers_per_hour", reloads, confInt(-1, DefaultFailoversPerHour, func(c *Config) *int { return &c.FailoversPerHour })},
	{"synchronous_mode", reloads, confEnum(DefaultSynchronousMode, func(c *Config) *SynchronousMode { return &c.SynchronousMode }, SynchronousOff, SynchronousQuorum, SynchronousStrict)},
	{"durability", reloads, confEnum(DefaultDurability, func(c *Config) *Durability { return &c.Durability }, DurabilityPreferred, DurabilityRequired)},
	{"synchronous_node_count", reloads, confInt(0, 0, func(c *Config) *int { return &c.SynchronousNodeCount })},
	{"rejoin", reloads, confEnum(DefaultRejoin, func(c *Config) *RejoinPolicy { return &c.Rejoin }, RejoinNever, RejoinIfClean, RejoinRewind, RejoinReclone)},
	{"salvage_directory", reloads, confPath(func(c *Config) *string { return &c.SalvageDirectory })},
	{"etcd_endpoints", restarts, confText("", func(c *Config) *string { return &c.EtcdEndpoints })},
	{"etcd_prefix", restarts, confText(DefaultEtcdPrefix, func(c *Config) *string { return &c.EtcdPrefix })},
	{"etcd_cacert", restarts, confPath(func(c *Config) *string { return &c.EtcdCACert })},
	{"etcd_cert", restarts, confPath(func(c *Config) *string { return &c.EtcdCert })},
	{"etcd_key", restarts, confPath(func(c *Config) *string { return &c.EtcdKey })},
	{"promote_command", reloads, confCommand("", func(c *Config) *string { return &c.PromoteCommand })},
	{"follow_command", reloads, confCommand("", func(c *Config) *string { return &c.FollowCommand })},
	{"monitor_interval_secs", reloads, confTime(time.Second, 1, DefaultMonitorInterval, func(c *Config) *time.Duration { return &c.MonitorInterval })},
	{"reconnect_attempts", reloads, confInt(0, DefaultReconnectAttempts, func(c *Config) *int { return &c.ReconnectAttempts })},
	{"reconnect_interval", reloads, confTime(time.Second, 0, DefaultReconnectInterval, func(c *Config) *time.Duration { return &c.ReconnectInterval })},
	{"monitoring_history", reloads, confBool(func(c *Config) *bool { return &c.MonitoringHistory })},
	{"monitoring_history_retention", reloads, confTime(day, 0, DefaultMonitoringHistoryRetention, func(c *Config) *time.Duration { return &c.MonitoringHistoryRetention })},
	{"events_retention", reloads, confTime(day, 0, DefaultEventsRetention, func(c *Config) *time.Duration { return &c.EventsRetention })},
	{"degraded_monitoring_timeout", reloads, confTime(time.Second, -1, DefaultDegradedMonitoringTimeout, func(c *Config) *time.Duration { return &c.DegradedMonitoringTimeout })},
	{"async_query_timeout", reloads, confTime(time.Second, 0, DefaultAsyncQueryTimeout, func(c *Config) *time.Duration { return &c.AsyncQueryTimeout })},
	{"primary_notification_timeout", reloads, confTime(time.Second, 0, DefaultPrimaryNotificationTimeout, func(c *Config) *time.Duration { return &c.PrimaryNotificationTimeout })},
	{"repmgrd_standby_startup_timeout", reloads, confTime(time.Second, -1, DefaultRepmgrdStandbyStartupTimeout, func(c *Config) *time.Duration { return &c.RepmgrdStandbyStartupTimeout })},
	{"repmgrd_pid_file", restarts, confPath(func(c *Config) *string { return &c.RepmgrdPidFile })},
	{"repmgrd_exit_on_inactive_node", restarts, confBool(func(c *Config) *bool { return &c.RepmgrdExitOnInactiveNode })},
	{"standby_disconnect_on_failover", reloads, confBool(func(c *Config) *bool { return &c.StandbyDisconnectOnFailover })},
	{"sibling_nodes_disconnect_timeout", reloads, confTime(time.Second, 0, DefaultSiblingNodesDisconnectTimeout, func(c *Config) *time.Duration { return &c.SiblingNodesDisconnectTimeout })},
	{"connection_check_type", reloads, confEnum(DefaultConnectionCheckType, func(c *Config) *ConnectionCheckType { return &c.ConnectionCheckType }, CheckPing, CheckConnection, CheckQuery)},
	{"connection_check_query", restarts, confText(DefaultConnectionCheckQuery, func(c *Config) *string { return &c.ConnectionCheckQuery })},
	{"primary_visibility_consensus", reloads, confBool(func(c *Config) *bool { return &c.PrimaryVisibilityConsensus })},
	{"always_promote", reloads, confBool(func(c *Config) *bool { return &c.AlwaysPromote })},
	{"failover_validation_command", reloads, confCommand("", func(c *Config) *string { return &c.FailoverValidationCommand })},
	{"election_rerun_interval", restarts, confTime(time.Second, 1, DefaultElectionRerunInterval, func(c *Config) *time.Duration { return &c.ElectionRerunInterval })},
	{"witness_sync_interval", restarts, confTime(time.Second, 1, DefaultWitnessSyncInterval, func(c *Config) *time.Duration { return &c.WitnessSyncInterval })},
	{"reconnect_loop_sync", restarts, confBool(func(c *Config) *bool { return &c.ReconnectLoopSync })},
	{"promote_delay", restarts, confTime(time.Second, 0, 0, func(c *Config) *time.Duration { return &c.PromoteDelay })},
	{"failover_delay", restarts, confTime(time.Second, 0, 0, func(c *Config) *time.Duration { return &c.FailoverDelay })},

	{"child_nodes_check_interval", reloads, confTime(time.Second, 1, DefaultChildNodesCheckInterval, func(c *Config) *time.Duration { return &c.ChildNodesCheckInterval })},
	{"child_nodes_disconnect_min_count", reloads, confInt(-1, DefaultChildNodesDisconnectMinCount, func(c *Config) *int { return &c.ChildNodesDisconnectMinCount })},
	{"child_nodes_connected_min_count", reloads, confInt(-1, DefaultChildNodesConnectedMinCount, func(c *Config) *int { return &c.ChildNodesConnectedMinCount })},
	{"child_nodes_connected_include_witness", reloads, confBool(func(c *Config) *bool { return &c.ChildNodesConnectedIncludeWitness })},
	{"child_nodes_disconnect_timeout", reloads, confTime(time.Second, 0, DefaultChildNodesDisconnectTimeout, func(c *Config) *time.Duration { return &c.ChildNodesDisconnectTimeout })},
	{"child_nodes_disconnect_command", reloads, confCommand("", func(c *Config) *string { return &c.ChildNodesDisconnectCommand })},

	{"pg_ctl_options", restarts, confCommand("", func(c *Config) *string { return &c.PgCtlOptions })},
	{"service_start_command", restarts, confCommand("", func(c *Config) *string { return &c.ServiceStartCommand })},
	{"service_stop_command", restarts, confCommand("", func(c *Config) *string { return &c.ServiceStopCommand })},
	{"service_restart_command", restarts, confCommand("", func(c *Config) *string { return &c.ServiceRestartCommand })},
	{"service_reload_command", restarts, confCommand("", func(c *Config) *string { return &c.ServiceReloadCommand })},
	{"service_promote_command", restarts, confCommand("", func(c *Config) *string { return &c.ServicePromoteCommand })},
	{"repmgrd_service_start_command", restarts, confCommand("", func(c *Config) *string { return &c.RepmgrdServiceStartCommand })},
	{"repmgrd_service_stop_command", restarts, confCommand("", func(c *Config) *string { return &c.RepmgrdServiceStopCommand })},

	{"event_notification_command", reloads, confCommand("", func(c *Config) *string { return &c.EventNotificationCommand })},
	{"event_notifications", reloads, confEvents(func(c *Config) *[]EventType { return &c.EventNotifications })},
	{"event_notification_timeout", reloads, confTime(time.Second, 1, DefaultEventNotificationTimeout, func(c *Config) *time.Duration { return &c.EventNotificationTimeout })},
	{"event_webhook_url", reloads, confURL(func(c *Config) *string { return &c.EventWebhookURL })},
}

// findKey returns the row of a key that exists.
func findKey(name string) confKey {
	i := slices.IndexFunc(confKeys, func(k confKey) bool { return k.name == name })
	return confKeys[i]
}

// confAlias is another name of a key.
type confAlias struct {
	key        string
	deprecated bool // repmgr 3 and 4 knew it
}

var confAliases = map[string]confAlias{
	"node":                        {"node_id", false},
	"cluster_name":                {"cluster", false},
	"loglevel":                    {"log_level", true},
	"logfacility":                 {"log_facility", true},
	"logfile":                     {"log_file", true},
	"upstream_node":               {"upstream_node_id", true},
	"master_reponse_timeout":      {"async_query_timeout", true}, // sic
	"master_response_timeout":     {"async_query_timeout", true},
	"retry_promote_interval_secs": {"primary_notification_timeout", true},
}

// confValue builds a field from how a value is read and written. A field is
// sound when what it is written as can be read.
func confValue[T comparable](def T, at func(*Config) *T, parse func(string) (T, string), format func(T) string) confField {
	var zero T
	return confField{
		fill: func(c *Config) {
			if *at(c) == zero {
				*at(c) = def
			}
		},
		set: func(c *Config, value string) string {
			v, problem := parse(value)
			if problem == "" {
				*at(c) = v
			}
			return problem
		},
		get: func(c *Config) string { return format(*at(c)) },
		check: func(c *Config) string {
			if *at(c) == def {
				return ""
			}
			_, problem := parse(format(*at(c)))
			return problem
		},
		copy: func(dst, src *Config) { *at(dst) = *at(src) },
	}
}

// confString builds a string; check returns what is wrong with it, or "".
func confString(def string, at func(*Config) *string, check func(string) string) confField {
	return confValue(def, at,
		func(s string) (string, string) { return s, check(s) },
		func(s string) string { return s })
}

func noNUL(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		return "must not hold a NUL byte"
	}
	return ""
}

func confText(def string, at func(*Config) *string) confField { return confString(def, at, noNUL) }

func confName(at func(*Config) *string) confField {
	return confString("", at, func(s string) string {
		if len(s) > registry.MaxNameBytes {
			return fmt.Sprintf("must be at most %d bytes long, and is %d", registry.MaxNameBytes, len(s))
		}
		if problem := noNUL(s); problem != "" {
			return problem
		}
		if s != "" && !registry.ValidName.MatchString(s) {
			return "must be of letters, digits, '_', '.' and '-' only: synchronous_standby_names, application_name or a shell would read others differently; choose another name"
		}
		return ""
	})
}

func confPath(at func(*Config) *string) confField {
	f := confText("", at)
	set := f.set
	f.set = func(c *Config, value string) string {
		if value != "" {
			value = filepath.Clean(value)
		}
		return set(c, value)
	}
	return f
}

// confSecret builds a string of which only a part may be shown.
func confSecret(def string, at func(*Config) *string, check, redact func(string) string) confField {
	f := confString(def, at, check)
	f.redact = redact
	f.hide = func(c *Config) { *at(c) = redact(*at(c)) }
	return f
}

func confConninfo(at func(*Config) *string) confField {
	return confSecret("", at, conninfo.Check, Redact)
}

func confCommand(def string, at func(*Config) *string) confField {
	return confSecret(def, at, noNUL, redactCommand)
}

func confURL(at func(*Config) *string) confField {
	return confSecret("", at, func(s string) string {
		u, err := url.Parse(s)
		if s != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return "must be an address that begins with http:// or https://"
		}
		return ""
	}, redactURL)
}

func confBool(at func(*Config) *bool) confField {
	return confValue(false, at, func(s string) (bool, string) {
		switch strings.ToLower(strings.TrimSpace(s)) {
		case "true", "on", "yes", "1":
			return true, ""
		case "false", "off", "no", "0":
			return false, ""
		}
		return false, "must be one of true, false, on, off, yes, no, 1, 0"
	}, strconv.FormatBool)
}

func confEnum[T ~string](def T, at func(*Config) *T, allowed ...T) confField {
	return confValue(def, at, func(s string) (T, string) {
		names := make([]string, len(allowed))
		for i, a := range allowed {
			if strings.EqualFold(s, string(a)) {
				return a, ""
			}
			names[i] = string(a)
		}
		return "", "must be one of " + strings.Join(names, ", ")
	}, func(v T) string { return string(v) })
}

func parseInt(s string, least int) (int, string) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	switch {
	case err == nil && n > math.MaxInt32:
		return 0, fmt.Sprintf("must be at most %d", math.MaxInt32)
	case err != nil || n < int64(least):
		return 0, fmt.Sprintf("must be an integer of %d or more", least)
	}
	return int(n), ""
}

func confInt(least, def int, at func(*Config) *int) confField {
	return confValue(def, at, func(s string) (int, string) { return parseInt(s, least) }, strconv.Itoa)
}

func confID(least int, at func(*Config) *NodeID) confField {
	return confValue(0, at, func(s string) (NodeID, string) {
		n, problem := parseInt(s, least)
		return NodeID(n), problem
	}, NodeID.String)
}

const day = 24 * time.Hour

// timeUnits are PostgreSQL's, the largest first.
var timeUnits = []struct {
	name, plural string
	size         time.Duration
}{
	{"d", "days", day},
	{"h", "hours", time.Hour},
	{"min", "minutes", time.Minute},
	{"s", "seconds", time.Second},
	{"ms", "milliseconds", time.Millisecond},
	{"us", "microseconds", time.Microsecond},
}

// shortest is the smallest span that a key takes which must not be 0.
const shortest = 10 * time.Millisecond

var timeValue = regexp.MustCompile(`^([+-]?[0-9]+)[ \t]*(us|ms|s|min|h|d)?$`)

// confTime builds a span of time that is a number of units where the file names
// no unit. It must be least units or more; where 0 is not allowed, a smaller unit
// may go down to shortest.
func confTime(unit time.Duration, least int, def time.Duration, at func(*Config) *time.Duration) confField {
	parse := func(s string) (time.Duration, string) {
		size, plural := unit, ""
		m := timeValue.FindStringSubmatch(strings.TrimSpace(s))
		for _, u := range timeUnits {
			if u.size == unit {
				plural = u.plural
			}
			if m != nil && u.name == m[2] {
				size = u.size
			}
		}
		var n int64
		var err error
		if m != nil {
			n, err = strconv.ParseInt(m[1], 10, 64)
		}
		if most := int64(math.MaxInt64 / size); m != nil && (err != nil || n > most || n < -most) {
			return 0, "is out of range"
		}
		d := time.Duration(n) * size
		if m != nil && (d >= time.Duration(least)*unit || least > 0 && size < unit && d >= shortest) {
			return d, ""
		}
		return 0, fmt.Sprintf("must be an integer of %d or more, in %s or with a unit (ms, s, min, h, d)", least, plural)
	}
	format := func(d time.Duration) string {
		if d%unit == 0 {
			return strconv.FormatInt(int64(d/unit), 10)
		}
		for _, u := range timeUnits {
			if d%u.size == 0 {
				return strconv.FormatInt(int64(d/u.size), 10) + u.name
			}
		}
		return d.String()
	}
	return confValue(def, at, parse, format)
}

// sizeUnits are PostgreSQL's, the largest first.
var sizeUnits = []struct {
	name string
	size int64
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"kB", 1 << 10}, {"B", 1}}

var sizeValue = regexp.MustCompile(`^([0-9]+)[ \t]*(B|kB|MB|GB|TB)?$`)

// confSize builds a number of bytes.
func confSize(at func(*Config) *int64) confField {
	return confValue(0, at, func(s string) (int64, string) {
		m := sizeValue.FindStringSubmatch(strings.TrimSpace(s))
		if m == nil {
			return 0, "must be an integer of 0 or more, in bytes or with a unit (B, kB, MB, GB, TB)"
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		for _, u := range sizeUnits {
			if u.name != m[2] {
				continue
			}
			if n > math.MaxInt64/u.size {
				return 0, "is out of range"
			}
			n *= u.size
		}
		if err != nil {
			return 0, "is out of range"
		}
		return n, ""
	}, func(n int64) string {
		for _, u := range sizeUnits {
			if n != 0 && n%u.size == 0 && u.size > 1 {
				return strconv.FormatInt(n/u.size, 10) + u.name
			}
		}
		return strconv.FormatInt(n, 10)
	})
}

// confEvents builds a list of names joined by commas.
func confEvents(at func(*Config) *[]EventType) confField {
	return confField{
		fill: func(*Config) {},
		set: func(c *Config, value string) string {
			*at(c) = nil
			for name := range strings.SplitSeq(value, ",") {
				if name = strings.TrimSpace(name); name != "" {
					*at(c) = append(*at(c), EventType(name))
				}
			}
			return ""
		},
		get: func(c *Config) string {
			names := make([]string, len(*at(c)))
			for i, e := range *at(c) {
				names[i] = string(e)
			}
			return strings.Join(names, ",")
		},
		check: func(*Config) string { return "" },
		copy:  func(dst, src *Config) { *at(dst) = slices.Clone(*at(src)) },
	}
}

// confMapping builds a map out of a repeated old=new. As for pg_basebackup, \=
// stands for a = that belongs to a path.
func confMapping(at func(*Config) *map[string]string) confField {
	const bad = "must be old=new, two absolute paths"
	check := func(from, to string) string {
		if !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			return bad
		}
		return ""
	}
	escape := strings.NewReplacer("=", `\=`)
	list := func(c *Config) (all []string) {
		for from, to := range *at(c) {
			all = append(all, escape.Replace(from)+"="+escape.Replace(to))
		}
		slices.Sort(all)
		return all
	}
	return confField{
		fill: func(*Config) {},
		set: func(c *Config, value string) string {
			if value == "" {
				return ""
			}
			parts := strings.Split(strings.ReplaceAll(value, `\=`, "\x00"), "=")
			if len(parts) != 2 {
				return bad
			}
			from, to := strings.ReplaceAll(parts[0], "\x00", "="), strings.ReplaceAll(parts[1], "\x00", "=")
			if problem := check(from, to); problem != "" {
				return problem
			}
			*at(c) = maps.Clone(*at(c))
			if *at(c) == nil {
				*at(c) = map[string]string{}
			}
			(*at(c))[filepath.Clean(from)] = filepath.Clean(to)
			return ""
		},
		get: func(c *Config) string { return strings.Join(list(c), ", ") },
		check: func(c *Config) string {
			for from, to := range *at(c) {
				if problem := check(from, to); problem != "" {
					return problem
				}
			}
			return ""
		},
		copy: func(dst, src *Config) { *at(dst) = maps.Clone(*at(src)) },
		list: list,
	}
}

// A shell word, whatever its quotes; a quote without an end takes the rest.
const shellWord = `(?s:'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|\\?$)|\\.|[^\s'"\\])+`

var (
	secretSetting = regexp.MustCompile(`(?i)(-{0,2}[\w-]*(?:password|passwd|pwd|secret|token)[\w-]*\s*=\s*)` + shellWord)
	secretOption  = regexp.MustCompile(`(?i)(--[\w-]*(?:password|passwd|pwd|secret|token)\s+)` + shellWord)
	secretUser    = regexp.MustCompile(`(://[^\s:/@'"]*:)[^\s]*@`)
)

// redactCommand hides the secrets that a command line commonly holds:
// PGPASSWORD=x, password=x of a conninfo, --password x, scheme://user:x@host.
// A secret in any other place is not recognised: that is what files are for.
func redactCommand(command string) string {
	command = secretUser.ReplaceAllString(command, "${1}"+conninfo.Masked+"@")
	command = secretOption.ReplaceAllString(command, "${1}"+conninfo.Masked)
	return secretSetting.ReplaceAllString(command, "${1}"+conninfo.Masked)
}

// redactURL shows scheme and host only: the path of a webhook is often its key.
func redactURL(address string) string {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return ""
	case err != nil || u.Host == "" || strings.ContainsAny(u.Host, "@"):
		return conninfo.Masked
	case u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "":
		return address
	}
	return u.Scheme + "://" + u.Host + "/" + conninfo.Masked
}

// Redacted returns a copy that may be shown: secrets in Conninfo, in commands
// and in the webhook's address are replaced by ***.
func (c Config) Redacted() Config {
	for _, k := range confKeys {
		if k.hide != nil {
			k.hide(&c)
		}
	}
	return c
}

// String shows the redacted settings that differ from the defaults.
func (c Config) String() string {
	text := "repmgr.Config{"
	def := DefaultConfig()
	for _, k := range confKeys {
		if k.get(&c) != k.get(&def) {
			text += fmt.Sprintf("%s=%q ", k.name, k.shown(&c))
		}
	}
	return text + "}"
}

// GoString keeps %#v from showing secrets.
func (c Config) GoString() string { return c.String() }

// LogValue keeps slog from showing secrets.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ineffective are keys of repmgr 5 that are read and checked, so that its files
// load, and do nothing in this version.
var ineffective = []string{
	"primary_notification_timeout", "election_rerun_interval", "always_promote",
	"standby_disconnect_on_failover", "sibling_nodes_disconnect_timeout",
	"child_nodes_disconnect_command", "child_nodes_check_interval", "connection_check_type", "connection_check_query", "async_query_timeout",
	"degraded_monitoring_timeout", "repmgrd_exit_on_inactive_node", "log_status_interval", "promote_check_interval", "standby_follow_restart",
	"pg_basebackup_options", "barman_host", "pg_backupapi_host",
	"repmgr_bindir", "wal_receive_check_timeout", "service_restart_command", "service_reload_command",
}

// Ineffective returns the keys that are set to other than their defaults and
// have no effect in this version.
func (c Config) Ineffective() []string {
	def := DefaultConfig()
	var keys []string
	for _, name := range ineffective {
		if k := findKey(name); k.get(&c) != k.get(&def) {
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

// Dump returns every setting in force, redacted, in the order of the fields. A
// key that may be repeated comes once for each of its values.
func (c Config) Dump() []KeyValue {
	c = c.withDefaults()
	var all []KeyValue
	for _, k := range confKeys {
		if k.list == nil {
			all = append(all, KeyValue{k.name, k.shown(&c)})
			continue
		}
		for _, value := range k.list(&c) {
			all = append(all, KeyValue{k.name, value})
		}
	}
	return all
}

// ChangedKeys returns the keys that are not the same in next: those that a
// running daemon takes over, and those that need it to be restarted or the node
// to be registered again.
func (c Config) ChangedKeys(next Config) (reloadable, needRestart []string) {
	c, next = c.withDefaults(), next.withDefaults()
	for _, k := range confKeys {
		switch {
		case k.get(&c) == k.get(&next):
		case k.reload:
			reloadable = append(reloadable, k.name)
		default:
			needRestart = append(needRestart, k.name)
		}
	}
	return reloadable, needRestart
}

// Reload returns a copy that has the reloadable keys of next and everything
// else of c.
func (c Config) Reload(next Config) Config {
	c, next = c.withDefaults(), next.withDefaults()
	for _, k := range confKeys {
		if k.reload {
			k.copy(&c, &next)
		}
	}
	c.Warnings = next.Warnings
	return c
}
