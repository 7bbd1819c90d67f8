package pgtest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestMain_RunsUnprivilegedWithAHomeOfItsOwn(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Error("the tests run as root")
	}
	probe := filepath.Join(os.Getenv("HOME"), "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Error(err)
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "PG") {
			t.Errorf("environment has %s", kv)
		}
	}
}

// killedEnv is set for the tests that TestMain_IsKilled kills.
const killedEnv = "REPMGR_PGTEST_KILLED"

// TestKilled is what TestMain_IsKilled runs in a process of its own.
func TestKilled(t *testing.T) {
	if os.Getenv(killedEnv) == "" {
		t.Skip("only TestMain_IsKilled runs it")
	}
	fmt.Fprintln(os.Stdout, "ready", pgtest.Start(t, pgtest.Options{Name: "node1", Fresh: true}).Dir)
	select {}
}

// Nothing is left also where who supervises the tests is killed with them.
func TestMain_IsKilled(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "REPMGR_PGTEST_BASE=") }), killedEnv+"=1", "TMPDIR=")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var base string
	for lines := bufio.NewScanner(out); base == "" && lines.Scan(); {
		if dir, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
			base, _, _ = strings.Cut(dir, "/tmp/")
		}
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
	if !strings.HasPrefix(filepath.Base(base), "pgtest-") {
		t.Fatalf("the files are in %q", base)
	}
	pgtest.WaitFor(t, "nothing to be left", func(context.Context) error {
		if _, err := os.Stat(base); err == nil {
			return fmt.Errorf("%s is there", base)
		}
		return nil
	})
}

func TestStart(t *testing.T) {
	t.Parallel()
	start := time.Now()
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"work_mem": "1234kB", "log_line_prefix": `it's\n `}})
	t.Logf("a primary of PostgreSQL %d answers after %s", s.Major, time.Since(start))
	for sql, want := range map[string]string{
		"SHOW work_mem":                  "1234kB",
		"SHOW data_checksums":            "on",
		"SHOW data_directory":            s.Dir,
		"SHOW server_encoding":           "UTF8",
		"SHOW log_line_prefix":           `it's\n `,
		"SELECT NULL":                    "",
		"SELECT 42":                      "42",
		"SELECT pg_is_in_recovery()":     "f",
		"SELECT '" + s.Name + "'":        s.Name,
		"SELECT current_setting('port')": fmt.Sprint(s.Port),
	} {
		if got := s.QueryString(t, sql); got != want {
			t.Errorf("%s: got %q, want %q", sql, got, want)
		}
	}
	if got, want := pgtest.Query[int](t, s, "SELECT $1::int + 1", 41), 42; got != want {
		t.Errorf("Query: got %d, want %d", got, want)
	}
	if !strings.Contains(s.Log(), "ready to accept connections") {
		t.Errorf("log: got %q", s.Log())
	}
}

func TestStart_TwoServersHaveOneSystemIdentifierUnlessFresh(t *testing.T) {
	t.Parallel()
	const sql = "SELECT system_identifier FROM pg_control_system()"
	a, b := pgtest.Start(t, pgtest.Options{}), pgtest.Start(t, pgtest.Options{})
	fresh := pgtest.Start(t, pgtest.Options{Fresh: true, WALSegmentSizeMB: 1})
	if got, want := b.QueryString(t, sql), a.QueryString(t, sql); got != want {
		t.Errorf("copied server: got %s, want %s", got, want)
	}
	if got := fresh.QueryString(t, sql); got == a.QueryString(t, sql) {
		t.Errorf("fresh server: got the same %s", got)
	}
	if got, want := fresh.QueryString(t, "SHOW wal_segment_size"), "1MB"; got != want {
		t.Errorf("wal_segment_size: got %s, want %s", got, want)
	}
}

func TestStart_Password(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Password: `o'Neill \ pass word`})
	s.Exec(t, "SELECT 1")
	_, err := pgx.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=postgres password=wrong", s.Port))
	if err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("wrong password: got %v, want 28P01", err)
	}
	pgtest.NewStandby(t, s, pgtest.Options{Name: "node 2"})
}

func TestTryStart_ShowsTheLogOfAServerThatRefuses(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Stop("fast")
	if err := os.WriteFile(filepath.Join(s.Dir, "postgresql.auto.conf"), []byte("no_such_setting = on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.TryStart(); err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v", err)
	}
	if s.Started() {
		t.Error("processes are left")
	}
}

func TestServer_StopKillRestart(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(t, "CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)")
	for _, end := range []func(){func() { s.Stop("smart") }, func() { s.Stop("fast") }, func() { s.Stop("immediate") }, s.Kill} {
		end()
		if s.Started() {
			t.Error("processes are left")
		}
		s.StartAgain()
	}
	s.Restart()
	if got, want := s.QueryString(t, "SELECT count(*) FROM kept"), "1"; got != want {
		t.Errorf("rows: got %s, want %s", got, want)
	}
}

func TestNewStandby_AndItsStandbyStream(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "node1"})
	start := time.Now()
	node2 := pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2", Slot: "node2"})
	t.Logf("a standby streams after %s", time.Since(start))
	node3 := pgtest.NewStandby(t, node2, pgtest.Options{Name: "node3"})
	primary.Exec(t, "CREATE TABLE sent AS SELECT 7 AS n")
	pgtest.WaitFor(t, "node3 to have the table", func(ctx context.Context) error {
		c, err := pgx.Connect(ctx, node3.Conninfo())
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		var n int
		return c.QueryRow(ctx, "SELECT n FROM sent").Scan(&n)
	})
	if got, want := primary.QueryString(t, "SELECT slot_name || ' ' || active FROM pg_replication_slots"), "node2 true"; got != want {
		t.Errorf("slot: got %q, want %q", got, want)
	}
}

func TestWriter_KnowsGapsAndMissingRows(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	_, nowhere := pgtest.Mute(t)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{
		Conninfos: []string{fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", nowhere), s.Conninfo()},
		Timeout:   pgtest.Timeout(100 * time.Millisecond),
	})
	w.WaitForMore(t, 20)
	down := time.Now()
	s.Kill()
	s.StartAgain()
	up := time.Now()
	w.WaitForMore(t, 20)
	w.Stop()
	if gap := w.LongestGap(); gap.Duration() < up.Sub(down)/2 || gap.From.After(up) || gap.To.Before(down) {
		t.Errorf("gap: got %s to %s, want about %s to %s", gap.From, gap.To, down, up)
	}
	w.Verify(t, s.Conninfo())
	gone := w.Acknowledged()[3]
	s.Exec(t, "DELETE FROM pgtest_writer WHERE id = $1", gone)
	if got := w.Missing(t, s.Conninfo()); len(got) != 1 || got[0] != gone {
		t.Errorf("missing: got %v, want [%d]", got, gone)
	}
}

func TestBlackhole_DropsAndMuteHangs(t *testing.T) {
	t.Parallel()
	host, port := pgtest.Blackhole(t)
	for range 3 {
		_, err := net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", host, port), 50*time.Millisecond)
		if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() {
			t.Errorf("dial black hole: got %v, want a timeout", err)
		}
	}
	host, port = pgtest.Mute(t)
	c, err := net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", host, port), time.Second)
	if err != nil {
		t.Fatalf("dial mute: %v", err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read from mute: got %v, want a timeout", err)
	}
}

func TestSSHD_ServesRsync(t *testing.T) {
	t.Parallel()
	s := pgtest.StartSSHD(t)
	from, to := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(from, []byte("rows"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "rsync", "-a", "-e", s.SSHCommand(), s.User+"@"+s.Host+":"+from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("rsync: %v: %s", err, out)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, []byte("rows")) {
		t.Errorf("copy: got %q, %v", got, err)
	}
}
