package repmgr

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/settings"
)

var update = flag.Bool("update", false, "write the golden files anew")

// repmgr5Keys are the keys of repmgr 5.5, with one default that is not its own:
// reconnect_attempts, because evidence comes before timers. Key, default, minimum where there is
// one, and R where a running daemon takes it over.
const repmgr5Keys = `
node_id|0|1|
node_name|||
conninfo|||R
replication_user|||
data_directory|||
config_directory|||
pg_bindir|||
repmgr_bindir|||
replication_type|physical||
log_level|INFO||R
log_facility|STDERR||R
log_file|||R
log_status_interval|300|0|R
use_replication_slots|false||
pg_basebackup_options|||
restore_command|||
archive_cleanup_command|||
tablespace_mapping|||
recovery_min_apply_delay|0|0|
use_primary_conninfo_password|false||
passfile|||
promote_check_timeout|60|1|
promote_check_interval|1|1|
pg_backupapi_backup_id|||
pg_backupapi_host|||
pg_backupapi_node_name|||
pg_backupapi_remote_ssh_command|||
primary_follow_timeout|60|1|
standby_follow_timeout|30|1|
standby_follow_restart|false||
shutdown_check_timeout|60|1|
standby_reconnect_timeout|60|1|
wal_receive_check_timeout|30|1|
node_rejoin_timeout|60|1|
archive_ready_warning|16|1|
archive_ready_critical|128|1|
replication_lag_warning|300|1|
replication_lag_critical|600|1|
witness_sync_interval|15|1|
failover|manual||R
location|default||
priority|100|0|
promote_command|||R
follow_command|||R
monitor_interval_secs|2|1|R
reconnect_attempts|0|0|R
reconnect_interval|10|0|R
monitoring_history|false||R
degraded_monitoring_timeout|-1|-1|R
async_query_timeout|60|0|R
primary_notification_timeout|60|0|R
repmgrd_standby_startup_timeout|-1|-1|R
repmgrd_pid_file|||
repmgrd_exit_on_inactive_node|false||
standby_disconnect_on_failover|false||R
sibling_nodes_disconnect_timeout|30|0|R
connection_check_type|ping||R
primary_visibility_consensus|false||R
always_promote|false||R
failover_validation_command|||R
election_rerun_interval|15|1|
child_nodes_check_interval|5|1|R
child_nodes_disconnect_min_count|-1|-1|R
child_nodes_connected_min_count|-1|-1|R
child_nodes_connected_include_witness|false||R
child_nodes_disconnect_timeout|30|0|R
child_nodes_disconnect_command|||R
pg_ctl_options|||
service_start_command|||
service_stop_command|||
service_restart_command|||
service_reload_command|||
service_promote_command|||
repmgrd_service_start_command|||
repmgrd_service_stop_command|||
event_notification_command|||R
event_notifications|||R
barman_host|||
barman_server|||
barman_config|||
rsync_options|||
ssh_options|-q -o ConnectTimeout=10||
reconnect_loop_sync|false||
promote_delay|0|0|
failover_delay|0|0|
connection_check_query|SELECT 1||
`

func TestConfig_KeysDefaultsAndLimitsAreThoseOfRepmgr5(t *testing.T) {
	t.Parallel()
	ours := []string{
		"cluster", "upstream_node_id", "log_format", "clone_method", "clone_command",
		"monitoring_history_retention", "events_retention", "event_notification_timeout", "event_webhook_url",
		"silence_timeout", "fence_timeout", "hang_timeout", "watchdog_device", "watchdog_required", "primary_start_timeout", "maximum_lag_on_failover", "failover_on_shutdown", "failovers_per_hour", "synchronous_mode", "durability", "synchronous_node_count",
		"rejoin", "salvage_directory", "etcd_endpoints", "etcd_prefix", "etcd_cacert", "etcd_cert", "etcd_key", "http_listen", "http_cert", "http_key", "http_client_ca", "http_token_file", "http_allowlist", "metrics_compat",
		"router_haproxy_socket", "router_haproxy_backend", "router_pgbouncer", "router_pgbouncer_file", "router_vip", "router_vip_interface",
	}
	def := DefaultConfig()
	seen := map[string]bool{}
	for row := range strings.FieldsFuncSeq(repmgr5Keys, func(r rune) bool { return r == '\n' }) {
		f := strings.Split(row, "|")
		name, want, least, reload := f[0], f[1], f[2], f[3] == "R"
		if !slices.ContainsFunc(confKeys, func(k settings.Key[Config]) bool { return k.Name == name }) {
			t.Errorf("key %q is missing", name)
			continue
		}
		seen[name] = true
		k := confKeys.Key(name)
		if got := k.Get(&def); got != want {
			t.Errorf("%s: default is %q, want %q", name, got, want)
		}
		if k.Reload != reload {
			t.Errorf("%s: reload is %v, want %v", name, k.Reload, reload)
		}
		if least == "" {
			continue
		}
		c := DefaultConfig()
		n, _ := strconv.Atoi(least)
		if problem := k.Set(&c, strconv.Itoa(n)); problem != "" {
			t.Errorf("%s: %d is refused: %s", name, n, problem)
		}
		if problem := k.Set(&c, strconv.Itoa(n-1)); !strings.Contains(problem, fmt.Sprintf("must be an integer of %d or more", n)) {
			t.Errorf("%s: %d: got %q", name, n-1, problem)
		}
	}
	for _, k := range confKeys {
		if seen[k.Name] == slices.Contains(ours, k.Name) {
			t.Errorf("%s: is it ours or repmgr 5's?", k.Name)
		}
	}
	if err := def.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}

func TestConfig_ZeroOfALiteralIsTheDefault(t *testing.T) {
	t.Parallel()
	c := Config{NodeID: 7, Conninfo: "host=a", ReconnectAttempts: 2}.withDefaults()
	if c.Priority != DefaultPriority || c.NodeName != "node7" || c.ReconnectAttempts != 2 || c.LogLevel != LogInfo {
		t.Errorf("got %v", c)
	}
	d := DefaultConfig()
	d.Priority, d.ReconnectInterval = 0, 0
	if d = d.withDefaults().withDefaults(); d.Priority != 0 || d.ReconnectInterval != 0 {
		t.Errorf("got %v", d)
	}
}

func TestConfig_Validate(t *testing.T) {
	t.Parallel()
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("an empty one: %v", err)
	}
	err := Config{NodeID: -1, Priority: -1, LogLevel: "x", Conninfo: "hunter2", CloneMethod: CloneCommand, BarmanHost: "b", TablespaceMapping: map[string]string{"a": "b"}, ReplicationLagWarning: time.Hour}.Validate()
	want := strings.Join([]string{
		`key "node_id" = "-1": must be an integer of 1 or more`,
		`key "conninfo" = "***": is not a list of keyword=value pairs (at byte 1)`,
		`key "priority" = "-1": must be an integer of 0 or more`,
		`key "log_level" = "x": must be one of DEBUG, INFO, NOTICE, WARNING, ERROR, CRIT, ALERT, EMERG`,
		`key "tablespace_mapping" = "a=b": must be old=new, two absolute paths`,
		`key "replication_lag_warning" = "3600": must be less than "replication_lag_critical" = "600"`,
		`key "barman_host" = "b": needs also "barman_server" = ""`,
		`key "clone_method" = "command": needs also "clone_command" = ""`,
	}, "\n")
	if !errors.Is(err, ErrConfig) || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	c, err := loadText(t, "priority=3\nlocation=a\narchive_ready_critical=50")
	if err != nil {
		t.Fatal(err)
	}
	c.Priority = -1
	c.ArchiveReadyWarning = 60
	want = "key \"priority\" = \"-1\": must be an integer of 0 or more\n" +
		c.File + ":3: key \"archive_ready_warning\" = \"60\": must be less than \"archive_ready_critical\" = \"50\""
	if err := c.Validate(); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	err = Config{}.RequireNode()
	if want := "key \"node_id\": must be set\nkey \"conninfo\": must be set"; !errors.Is(err, ErrConfig) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestConfig_DumpCanBeLoaded(t *testing.T) {
	t.Parallel()
	want, err := loadText(t, "node_id=5\nconninfo='host=a'\ntablespace_mapping='/a\\\\=b=/c'\ntablespace_mapping='/d=/e'\nevent_notifications='a, b'\nssh_options='-o \"x=''y''\"\\t\\\\'\nmonitor_interval_secs=2500ms\nlocation='a\\nb'\npriority=0")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, kv := range want.Dump() {
		fmt.Fprintf(&text, "%s = %s\n", kv.Key, quoteConf(kv.Value))
	}
	got, err := loadText(t, strings.ReplaceAll(text.String(), "node_id = '0'\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	reloadable, restart := want.ChangedKeys(got)
	if len(reloadable)+len(restart) > 0 || !slices.Equal(got.Dump(), want.Dump()) {
		t.Errorf("changed: %q, %q", reloadable, restart)
	}
}

func TestConfig_ChangedKeysAndReload(t *testing.T) {
	t.Parallel()
	old := Config{NodeID: 1, Conninfo: "host=a", Priority: 5, LogLevel: LogDebug}
	next := Config{NodeID: 2, Conninfo: "host=b", Priority: 5, EventNotifications: []EventType{"x"}}
	reloadable, restart := old.ChangedKeys(next)
	if want := []string{"conninfo", "log_level", "event_notifications"}; !slices.Equal(reloadable, want) {
		t.Errorf("reloadable are %q, want %q", reloadable, want)
	}
	if want := []string{"node_id", "node_name"}; !slices.Equal(restart, want) {
		t.Errorf("to restart are %q, want %q", restart, want)
	}
	got := old.Reload(next)
	if got.NodeID != 1 || got.NodeName != "node1" || got.Conninfo != "host=b" || got.LogLevel != LogInfo || len(got.EventNotifications) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestConfig_Redacted(t *testing.T) {
	t.Parallel()
	c := Config{
		Conninfo:        "host=a password=hunter2",
		PromoteCommand:  `env PGPASSWORD='hunter2 ''hunter2' x -d "host=a password=hunter2 user=b" --token "hunter2" --api-secret=hunter2`,
		RestoreCommand:  `curl https://u:hunter2@h/%f -o %p; X_PASSWD="hunter2`,
		EventWebhookURL: "https://hooks.example/services/hunter2?x=hunter2",
	}
	r := c.Redacted()
	for _, shown := range []string{r.Conninfo, r.PromoteCommand, r.RestoreCommand, r.EventWebhookURL} {
		if strings.Contains(shown, "hunter2") || !strings.Contains(shown, conninfo.Masked) {
			t.Errorf("got %q", shown)
		}
	}
	if want := "https://hooks.example/" + conninfo.Masked; r.EventWebhookURL != want {
		t.Errorf("got %q, want %q", r.EventWebhookURL, want)
	}
	if !strings.HasPrefix(r.RestoreCommand, "curl https://u:***@h/%f -o %p; X_PASSWD=***") {
		t.Errorf("got %q", r.RestoreCommand)
	}
	if c.Conninfo != "host=a password=hunter2" {
		t.Error("the original was changed")
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("loaded", "config", c)
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log shows %s", log.String())
	}
}

func TestLogLevel_Order(t *testing.T) {
	t.Parallel()
	levels := []LogLevel{LogDebug, LogInfo, LogNotice, LogWarning, LogError, LogCritical, LogAlert, LogEmergency}
	if !slices.IsSortedFunc(levels, func(a, b LogLevel) int { return cmp.Compare(a.Level(), b.Level()) }) || LogLevel("").Level() != slog.LevelInfo {
		t.Error("levels are not in the order of their severity")
	}
}

// The comments of Config are the documentation of the keys: each key is named
// by one field, with its default; and the sample file is made of them.
func TestConfig_CommentsAndSampleAgreeWithTheKeys(t *testing.T) {
	t.Parallel()
	docs, fields := fieldComments(t)
	def := DefaultConfig()
	var sample strings.Builder
	sample.WriteString("# repmgr.conf: every key with its default.\n#\n" +
		"# Three lines are enough: node_id, conninfo and, if you like, cluster.\n" +
		"# Marked (reload): a running repmgrd takes a change over on SIGHUP.\n")
	for _, k := range confKeys {
		doc, ok := docs[k.Name]
		if !ok {
			t.Errorf("no field says %q", "Key "+k.Name)
			continue
		}
		value := k.Get(&def)
		if isZero := value == "" || value == "0"; !isZero && !strings.Contains(doc, "Defaults to "+value+".") {
			t.Errorf("%s: the comment does not say %q: %s", k.Name, "Defaults to "+value+".", doc)
		}
		doc = regexp.MustCompile(`\b[A-Z][A-Za-z]+\b`).ReplaceAllStringFunc(doc, func(w string) string { return cmp.Or(fields[w], w) })
		doc = regexp.MustCompile(` Key \w+( \(or \w+\))?(, .|\.)`).ReplaceAllStringFunc(doc, func(w string) string {
			_, next, ok := strings.Cut(w, ", ")
			if !ok {
				return ""
			}
			return " " + strings.ToUpper(next)
		})
		if k.Reload {
			doc += " (reload)"
		}
		sample.WriteString("\n" + wrapText(doc, "# ", 90) + "#" + k.Name + " = " + quoteConf(value) + "\n")
	}
	path := filepath.Join("docs", "repmgr.conf.sample")
	if *update {
		if err := os.WriteFile(path, []byte(sample.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != sample.String() {
		t.Errorf("%s is not what the keys say (%v): run go test -run %s -update .", path, err, t.Name())
	}
	text := regexp.MustCompile(`(?m)^#(\w+ = )`).ReplaceAllString(sample.String(), "$1")
	text = regexp.MustCompile(`(?m)^(node_id) = .*$`).ReplaceAllString(text, "")
	c, err := loadText(t, text)
	if err != nil || len(c.Warnings) > 0 {
		t.Fatal(err, c.Warnings)
	}
	if reloadable, restart := c.ChangedKeys(Config{}); len(reloadable)+len(restart) > 0 {
		t.Errorf("the sample's values are not the defaults: %q %q", reloadable, restart)
	}
}

// fieldComments returns the comment of the field that names each key, and each
// field's key.
func fieldComments(t *testing.T) (docs, fields map[string]string) {
	t.Helper()
	docs, fields = map[string]string{}, map[string]string{}
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile(`\bKey ([a-z0-9_]+)`)
	ast.Inspect(file, func(n ast.Node) bool {
		f, ok := n.(*ast.Field)
		if !ok || len(f.Names) == 0 {
			return true
		}
		doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
		if m := key.FindStringSubmatch(doc); m != nil {
			if docs[m[1]] != "" {
				t.Errorf("two fields name the key %s", m[1])
			}
			docs[m[1]], fields[f.Names[0].Name] = doc, m[1]
		}
		return true
	})
	return docs, fields
}

// wrapText breaks text into lines that begin with prefix.
func wrapText(text, prefix string, width int) string {
	var b strings.Builder
	line := strings.TrimSuffix(prefix, " ")
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = strings.TrimSuffix(prefix, " ")
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}

// Sizes are written as in postgresql.conf; a bare number is of bytes.
func TestLoadConfig_Sizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "1": 1, "1000": 1000, "64kB": 64 << 10, "'16 MB'": 16 << 20, "1GB": 1 << 30, "2TB": 2 << 40, "8191B": 8191} {
		c, err := loadText(t, "node_id = 1\nconninfo = 'host=a'\nmaximum_lag_on_failover = "+text)
		if err != nil || c.MaximumLagOnFailover != want {
			t.Errorf("%s: got %d, %v", text, c.MaximumLagOnFailover, err)
		}
		if again, err := loadText(t, "node_id = 1\nconninfo = 'host=a'\nmaximum_lag_on_failover = "+confKeys.Key("maximum_lag_on_failover").Get(&c)); err != nil || again.MaximumLagOnFailover != want {
			t.Errorf("%s: as it is written again: got %d, %v", text, again.MaximumLagOnFailover, err)
		}
	}
}

func TestLoadConfig_ValuesOutOfRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"node_id = 2147483648":                "must be at most 2147483647",
		`location = 'a\000b'`:                 "must not hold a NUL byte",
		`node_name = '\0'`:                    "must not hold a NUL byte",
		"reconnect_attempts = 0x10":           "must be an integer of 0 or more",
		"tablespace_mapping = 'a=b'":          "must be old=new, two absolute paths",
		"connection_check_type = 'pings'":     "must be one of ping, connection, query",
		"replication_type = 'bdr'":            "must be one of physical",
		"monitoring_history = 'y'":            "must be one of true, false",
		"recovery_min_apply_delay = '-1ms'":   "must be an integer of 0 or more, in milliseconds",
		"conninfo = 'host=a port=x'":          "invalid port",
		"barman_host = 'b'":                   `needs also "barman_server"`,
		"clone_method = command":              `needs also "clone_command"`,
		"fence_timeout = 1":                   `"fence_timeout" = "1": must not be less than "silence_timeout" = "2"`,
		"silence_timeout = 5":                 `must not be less than "silence_timeout" = "5"`,
		"durability = required":               `"durability" = "required": has no effect with "synchronous_mode" = "off"`,
		"maximum_lag_on_failover = -1":        "must be an integer of 0 or more, in bytes or with a unit",
		"maximum_lag_on_failover = 16mb":      "must be an integer of 0 or more, in bytes or with a unit",
		"maximum_lag_on_failover = 9999999TB": "is out of range",
		"durability = strict":                 "must be one of preferred, required",
		"node_name = '*'":                     `"*": must be of letters, digits, '_', '.' and '-' only`,
		"node_name = 'a, b'":                  `"a, b": must be of letters, digits`,
		"synchronous_node_count = 2":          `"synchronous_node_count" = "2": has no effect with "synchronous_mode" = "off"`,
	} {
		if _, err := loadText(t, text); err == nil || !strings.Contains(err.Error(), ":1: key ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

// quoteConf writes a value as a file takes it.
func quoteConf(value string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`).Replace(value) + "'"
}

// A pid file that is set is the one.
func TestConfig_PidFile(t *testing.T) {
	t.Parallel()
	if got := (Config{RepmgrdPidFile: "/x.pid"}).PidFile(); got != "/x.pid" {
		t.Errorf("the pid file is %s", got)
	}
}
