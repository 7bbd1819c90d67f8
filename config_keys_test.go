package repmgr

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/internal/conffile"
)

func TestLoadConfig_TheManualsThreeLines(t *testing.T) {
	t.Parallel()
	c, err := LoadConfig("testdata/config/manual.conf")
	if err != nil {
		t.Fatal(err)
	}
	if c.ClusterName != "test" || c.NodeID != 2 || c.NodeName != "node2" || c.Conninfo != "host=192.168.204.104 dbname=testdb" {
		t.Errorf("got %v", c)
	}
	if c.Priority != DefaultPriority || c.RepmgrdStandbyStartupTimeout != DefaultStandbyReconnectTimeout || c.Logger == nil || len(c.Warnings) > 0 {
		t.Errorf("got %v, warnings %v", c, c.Warnings)
	}
	if err := c.RequireNode(); err != nil {
		t.Error(err)
	}
	if want, _ := filepath.Abs("testdata/config/manual.conf"); c.File != want {
		t.Errorf("file is %q, want %q", c.File, want)
	}
}

func TestLoadConfig_Repmgr5WithMarkAndCRLF(t *testing.T) {
	t.Parallel()
	c, err := LoadConfig("testdata/config/repmgr5.conf")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.NodeID.String(), c.NodeName, c.Conninfo, c.DataDirectory}
	want := []string{"1", "node1", "host=node1 user=repmgr dbname=repmgr connect_timeout=2", "/var/lib/postgresql/data"}
	if !slices.Equal(got, want) || len(c.Warnings) > 0 {
		t.Errorf("got %q, want %q; warnings %v", got, want, c.Warnings)
	}
}

func TestLoadConfig_Fly(t *testing.T) {
	t.Parallel()
	c, err := LoadConfig("testdata/config/fly/repmgr.conf")
	if err != nil || len(c.Warnings) > 0 {
		t.Fatal(err, c.Warnings)
	}
	if c.NodeID != 1349829323 || c.Failover != FailoverAutomatic || !c.UseReplicationSlots || c.Priority != 0 ||
		c.NodeRejoinTimeout != 30*time.Second || !c.PrimaryVisibilityConsensus || c.Location != "ams" {
		t.Errorf("got %v", c)
	}
	if want := `-o "StrictHostKeyChecking=no"`; c.SSHOptions != want {
		t.Errorf("ssh_options is %q, want %q", c.SSHOptions, want)
	}
	if want := `/usr/local/bin/event_handler -node-id %n -event %e -success %s -details "%d"`; c.EventNotificationCommand != want {
		t.Errorf("event_notification_command is %q, want %q", c.EventNotificationCommand, want)
	}
	if want := []EventType{EventChildDisconnect, EventChildReconnect, EventChildConnect}; !slices.Equal(c.EventNotifications, want) {
		t.Errorf("event_notifications are %q, want %q", c.EventNotifications, want)
	}
}

func TestLoadConfig_Bitnami(t *testing.T) {
	t.Parallel()
	c, err := LoadConfig("testdata/config/bitnami.conf")
	if err != nil || len(c.Warnings) > 0 {
		t.Fatal(err, c.Warnings)
	}
	if !c.UseReplicationSlots || !c.MonitoringHistory || c.LogLevel != LogNotice || c.ReconnectAttempts != 3 ||
		c.ReconnectInterval != 5*time.Second || c.DegradedMonitoringTimeout != 5*time.Second || c.PgBasebackupOptions != "" {
		t.Errorf("got %v", c)
	}
	if want := `-o "--config-file="/opt/conf/postgresql.conf" --hba_file="/opt/conf/pg_hba.conf""`; c.PgCtlOptions != want {
		t.Errorf("pg_ctl_options is %q, want %q", c.PgCtlOptions, want)
	}
	params, err := ParseConninfo(c.Conninfo)
	if err != nil || params["password"] != "it's so" {
		t.Errorf("conninfo is %v, %v", params, err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprint(c.Dump()), c.LogValue().String(), fmt.Sprint(c.Redacted().PromoteCommand)} {
		if strings.Contains(shown, "hunter2") || strings.Contains(shown, "it's") {
			t.Errorf("a password is shown: %s", shown)
		}
	}
}

func TestLoadConfig_AllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := LoadConfig("testdata/config/faults.conf")
	if !errors.Is(err, ErrConfig) {
		t.Fatalf("got %v, want ErrConfig", err)
	}
	var faults *ConfigError
	if !errors.As(err, &faults) {
		t.Fatalf("got %T", err)
	}
	dir, _ := filepath.Abs("testdata/config")
	got := strings.ReplaceAll(err.Error(), dir+"/", "")
	want := strings.Join([]string{
		`faults.conf:1: key "node_id" = "0": must be an integer of 1 or more`,
		`faults.conf:2: key "node_name" = "a name that is much too long for an application_name of PostgreSQL, really": must be at most 63 bytes long, and is 74`,
		`faults.conf:3: key "conninfo" = "host=a password=*** ***": holds an unknown connection parameter after the password: a value with spaces must be quoted`,
		`faults.conf:4: key "log_level" = "loud": must be one of DEBUG, INFO, NOTICE, WARNING, ERROR, CRIT, ALERT, EMERG`,
		`faults.conf:5: key "priority" = "-3": must be an integer of 0 or more`,
		`faults.conf:6: key "reconnect_attempts" = "6x": must be an integer of 0 or more`,
		`faults.conf:7: key "reconnect_interval" = "10 parsecs": must be an integer of 0 or more, in seconds or with a unit (ms, s, min, h, d)`,
		`faults.conf:8: key "use_replication_slots" = "maybe": must be one of true, false, on, off, yes, no, 1, 0`,
		`faults.conf:9: key "tablespace_mapping" = "/only/one": must be old=new, two absolute paths`,
		`faults.conf:10: key "monitor_interval_secs" = "99999999999999999999": is out of range`,
		`faults.conf:12: key "log_file": syntax error at column 10: expected a value, quoted unless it is a plain word or number`,
		`faults.conf:13: key "password": syntax error at column 18: unexpected text after the value`,
		`faults.conf:14: key "event_webhook_url" = "ftp://hooks.example/***": must be an address that begins with http:// or https://`,
		`faults.conf:17: key "include" = "absent.conf": cannot be read: no such file or directory`,
		`faults.conf:19: key "http_allowlist" = "10.0.0.1,db1.example": must be addresses and networks joined by commas, such as 192.168.1.7,10.0.0.0/24,fd00::/8, and "db1.example" is neither: of a host give the address, because names are not looked up, and of a network how many bits count`,
		`faults.conf:11: key "archive_ready_warning" = "200": must be less than "archive_ready_critical" = "128"`,
		`faults.conf:18: key "standby_reconnect_timeout" = "10": must not be less than "node_rejoin_timeout" = "60"`,
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A list of PgBouncers that is not one says which is wrong, and a pair is never made by position.
func TestLoadConfig_PgBouncers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"router_pgbouncer = 'port=1, port=2 file=/b.ini'\nrouter_pgbouncer_file = '/a.ini'": "",
		"router_pgbouncer = 'port=1 file=/a.ini, port=2 file=/b.ini'":                       "",
		"router_pgbouncer = 'port=1 file=/a.ini, port=2'":                                   `key "router_pgbouncer" = "port=1 file=/a.ini, port=2": needs also "router_pgbouncer_file" = ""`,
		"router_pgbouncer_file = '/a.ini'":                                                  `key "router_pgbouncer": needs also "router_pgbouncer_file" = "/a.ini"`,
		"router_pgbouncer = 'port=1 password=hunter2; port=2 user=x'":                       `key "router_pgbouncer" = "port=1 password=*** port=2 user=x": has "port" twice: join the conninfos of several PgBouncers by commas`,
	} {
		_, err := loadText(t, text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), want)) {
			t.Errorf("%s: got\n%v\nwant\n%s", text, err, want)
		}
	}
}

// writeFiles makes files below a new directory, and returns it.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// loadText reads a file that has this text.
func loadText(t *testing.T, text string) (Config, error) {
	t.Helper()
	return LoadConfig(filepath.Join(writeFiles(t, map[string]string{"repmgr.conf": text}), "repmgr.conf"))
}

func TestLoadConfig_Includes(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{
		"repmgr.conf":        "location=a\nINCLUDE 'sub/one.conf'\ninclude_if_exists 'absent.conf'\ninclude_dir = 'conf.d'\npriority=3",
		"sub/one.conf":       "location=b\npriority=1\ninclude 'two.conf'",
		"sub/two.conf":       "replication_user=two",
		"conf.d/10.conf":     "cluster=ten",
		"conf.d/9.conf":      "cluster=nine",
		"conf.d/B.conf":      "node_name=B",
		"conf.d/a.conf":      "node_name=a",
		"conf.d/.hid.conf":   "node_name=hidden",
		"conf.d/x.conf.bak":  "node_name=backup",
		"conf.d/z.conf/keep": "a directory",
	})
	c, err := LoadConfig(filepath.Join(dir, "repmgr.conf"))
	if err != nil || len(c.Warnings) > 0 {
		t.Fatal(err, c.Warnings)
	}
	got := []string{c.Location, strconv.Itoa(c.Priority), c.ReplicationUser, c.ClusterName, c.NodeName}
	if want := []string{"b", "3", "two", "nine", "a"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLoadConfig_IncludesThatFail(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"self.conf":  "include 'self.conf'",
		"a.conf":     "include 'b.conf'",
		"b.conf":     "\ninclude 'a.conf'",
		"empty.conf": "include ''\ninclude_dir ''",
		"dir.conf":   "include_dir 'absent'\ninclude_if_exists '.'",
		"big.conf":   "include 'big'",
		"big":        strings.Repeat("#", conffile.MaxBytes+1),
		"many.conf":  strings.Repeat("include 'none'\n", conffile.MaxFiles+1),
		"none":       "",
		"0.conf":     "include '1.conf'",
		"ten.conf":   "include '2.conf'",
	}
	for i := 1; i <= conffile.MaxDepth; i++ {
		files[fmt.Sprintf("%d.conf", i)] = fmt.Sprintf("include '%d.conf'", i+1)
	}
	files["11.conf"] = "priority = 7"
	dir := writeFiles(t, files)
	for name, want := range map[string]string{
		"self.conf":   `self.conf:1: key "include" = "D/self.conf": includes a file that is being read already`,
		"a.conf":      `b.conf:2: key "include" = "D/a.conf": includes a file that is being read already`,
		"empty.conf":  "empty.conf:1: key \"include\": must name a file\nD/empty.conf:2: key \"include_dir\": must name a directory",
		"dir.conf":    "dir.conf:1: key \"include_dir\" = \"D/absent\": cannot be read: no such file or directory\nD/dir.conf:2: key \"include_if_exists\" = \"D\": cannot be read: is a directory",
		"big.conf":    `cannot be read: it is larger than 1048576 bytes`,
		"many.conf":   `many.conf:1000: key "include" = "D/none": cannot be read: more than 1000 files are included`,
		"0.conf":      `10.conf:1: key "include" = "D/11.conf": is nested too deep: at most 10 levels`,
		"ten.conf":    "",
		"absent.conf": "D/absent.conf: cannot be read: no such file or directory",
	} {
		c, err := LoadConfig(filepath.Join(dir, name))
		if want == "" {
			if err != nil || c.Priority != 7 {
				t.Errorf("%s: got %v, %v", name, c, err)
			}
			continue
		}
		if !errors.Is(err, ErrConfig) || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "D"), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	if _, err := LoadConfig(""); !errors.Is(err, ErrConfig) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no path: got %v", err)
	}
}

func TestLoadConfig_StopsAfterManySyntaxErrors(t *testing.T) {
	t.Parallel()
	_, err := loadText(t, strings.Repeat("?\n", 300))
	var faults *ConfigError
	if !errors.As(err, &faults) || len(faults.Faults) != conffile.MaxSyntaxErrors+1 {
		t.Fatalf("got %v", err)
	}
	if last := faults.Faults[conffile.MaxSyntaxErrors]; last.Line != 101 || !strings.Contains(last.Problem, "too many") {
		t.Errorf("got %v", last)
	}
}

func TestLoadConfig_OldNamesAndUnknownKeysWarn(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, strings.Join([]string{
		"node=3", "loglevel=debug", "logfacility=local3", "logfile='/l'", "upstream_node=2",
		"master_reponse_timeout=7", "retry_promote_interval_secs=8", "cluster_name=c",
		"node_id=4", "Priority=5", "bdr_local_monitoring_only=yes", "password=hunter2",
	}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeID != 4 || c.NodeName != "node4" || c.LogLevel != LogDebug || c.LogFacility != "LOCAL3" || c.LogFile != "/l" || c.UpstreamNodeID != 2 ||
		c.AsyncQueryTimeout != 7*time.Second || c.PrimaryNotificationTimeout != 8*time.Second || c.ClusterName != "c" || c.Priority != 100 {
		t.Errorf("got %v", c)
	}
	var got []string
	for _, w := range c.Warnings {
		got = append(got, strings.TrimPrefix(w.String(), c.File)+" ("+w.Remedy+")")
	}
	want := []string{
		`:1: key "node": ignored, because "node_id" is set (remove it)`,
		`:2: key "loglevel": deprecated, taken as "log_level" (write "log_level")`,
		`:3: key "logfacility": deprecated, taken as "log_facility" (write "log_facility")`,
		`:4: key "logfile": deprecated, taken as "log_file" (write "log_file")`,
		`:5: key "upstream_node": deprecated, taken as "upstream_node_id" (write "upstream_node_id")`,
		`:6: key "master_reponse_timeout": deprecated, taken as "async_query_timeout" (write "async_query_timeout")`,
		`:7: key "retry_promote_interval_secs": deprecated, taken as "primary_notification_timeout" (write "primary_notification_timeout")`,
		`:10: key "Priority": unknown key, ignored (did you mean "priority"?)`,
		`:11: key "bdr_local_monitoring_only": unknown key, ignored ()`,
		`:12: key "password": unknown key, ignored ()`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLoadConfig_TheLastOfARepeatedKeyCounts(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, "priority=none\npriority=5\ntablespace_mapping='/a=/b'\ntablespace_mapping='/c\\\\=d=/e/'\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"/a": "/b", "/c=d": "/e"}; c.Priority != 5 || !maps.Equal(c.TablespaceMapping, want) {
		t.Errorf("got %d, %v; want 5, %v", c.Priority, c.TablespaceMapping, want)
	}
}

func TestLoadConfig_UnitsOfTime(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, "reconnect_interval=90\nasync_query_timeout=2min\nmonitor_interval_secs='1500 ms'\nrecovery_min_apply_delay=5\nmonitoring_history_retention=30\nevents_retention=12h")
	if err != nil {
		t.Fatal(err)
	}
	got := []time.Duration{c.ReconnectInterval, c.AsyncQueryTimeout, c.MonitorInterval, c.RecoveryMinApplyDelay, c.MonitoringHistoryRetention, c.EventsRetention}
	if want := []time.Duration{90 * time.Second, 2 * time.Minute, 1500 * time.Millisecond, 5 * time.Millisecond, 30 * 24 * time.Hour, 12 * time.Hour}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := loadText(t, "monitor_interval_secs=9ms"); err == nil {
		t.Error("less than the minimum was accepted")
	}
	if _, err := loadText(t, "events_retention=200000"); err == nil {
		t.Error("more than a time.Duration was accepted")
	}
}

func TestFindConfig(t *testing.T) {
	t.Parallel()
	_, _, err := FindConfig("absent/repmgr.conf")
	if !errors.Is(err, ErrConfig) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "absent/repmgr.conf: cannot be read") {
		t.Errorf("got %v", err)
	}
	got, found, err := FindConfig("testdata/config/manual.conf")
	if err != nil || !found || !filepath.IsAbs(got) {
		t.Errorf("got %q, %v, %v", got, found, err)
	}
}

// Whatever a file holds: an answer, no secret in it, and what is accepted is valid.
func FuzzLoadConfig(f *testing.F) {
	for _, name := range []string{"manual.conf", "repmgr5.conf", "bitnami.conf", "faults.conf"} {
		data, err := os.ReadFile(filepath.Join("testdata", "config", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(bytes.ToLower(data), []byte("include")) {
			return // it could name any file of this machine
		}
		entries, faults := conffile.Parse("/repmgr.conf", data)
		c, err := configOf("/repmgr.conf", entries, faults)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("got %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("accepted, and then not valid: %v", err)
		}
	})
}
