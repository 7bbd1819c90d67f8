package daemontest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// BinEnv is the variable of the environment that says where the programs are.
const BinEnv = "REPMGR_COMPAT_BIN"

// Main is [pgtest.Main] after the programs were built: the tests run as another OS user, who has no cache to build with.
func Main(m *testing.M) {
	if os.Getenv(BinEnv) != "" {
		pgtest.Main(m)
	}
	dir, err := os.MkdirTemp("", "repmgr-programs-")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Setenv(BinEnv, dir))
	}
	if err == nil {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "github.com/pgrepmgr/repmgr/cmd/repmgr", "github.com/pgrepmgr/repmgr/cmd/repmgrd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		err = cmd.Run()
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "daemontest:", err)
	} else {
		code = pgtest.Runner{M: m}.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// Host is a node with the directory that scripts start in, where repmgr.conf is.
type Host struct {
	*pgtest.Server
	Home      string
	EndDaemon func() // stops the daemon, and waits for that; nil: none was started
}

// NewHost is a node whose repmgr.conf has further lines.
func NewHost(t *testing.T, id int, s *pgtest.Server, extra ...string) *Host {
	t.Helper()
	h := &Host{Server: s, Home: t.TempDir()}
	lines := append([]string{
		fmt.Sprintf("node_id=%d\t# this node", id), fmt.Sprintf("node_name='node%d'", id), fmt.Sprintf("conninfo='%s connect_timeout=2'", s.Conninfo()),
		fmt.Sprintf("data_directory='%s'", s.Dir), fmt.Sprintf("pg_bindir='%s'", s.BinDir),
		"failover=automatic        # as the playbooks of edb-ansible write it", "monitor_interval_secs=1", "silence_timeout=1",
	}, extra...)
	require.NoError(t, os.WriteFile(h.Conf(), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return h
}

// Conf is repmgr.conf.
func (h *Host) Conf() string { return filepath.Join(h.Home, "repmgr.conf") }

// Sh runs a line as a script on this host would. C is the configuration file.
func (h *Host) Sh(t *testing.T, line string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir = h.Home
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv(BinEnv)+":"+os.Getenv("PATH"), "C="+h.Conf())
	text, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", line, err)
	}
	require.NoError(t, ctx.Err(), line)
	return string(text), cmd.ProcessState.ExitCode()
}

// Must is Sh for a line that must work.
func (h *Host) Must(t *testing.T, line string) string {
	t.Helper()
	out, code := h.Sh(t, line+" 2>&1")
	require.Zero(t, code, "%s: %s", line, out)
	return out
}

// Watch starts repmgrd as containers do.
func (h *Host) Watch(t *testing.T) {
	t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv(BinEnv), "repmgrd"), "--pid-file="+filepath.Join(h.Home, "pid"), "-f", h.Conf(), "--daemonize=false")
	cmd.Dir = h.Home
	end := Begin(t, cmd)
	h.EndDaemon = func() {
		if !end() {
			t.Error("repmgrd did not end within 30 s of SIGTERM")
		}
	}
	t.Cleanup(h.EndDaemon)
}

// Begin starts a daemon. end tells it to stop, waits for that, and reports whether it did.
func Begin(t *testing.T, cmd *exec.Cmd) (end func() bool) {
	t.Helper()
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // end waits for it
	return func() bool {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return true
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			return false
		}
	}
}

// Cluster is a primary and its standbys, registered and watched.
func Cluster(t *testing.T, count int, extra ...string) []*Host {
	t.Helper()
	return ClusterOf(t, count, func(int) []string { return extra })
}

// ClusterOf is a cluster whose nodes have further lines of their own in repmgr.conf.
func ClusterOf(t *testing.T, count int, extra func(id int) []string) (all []*Host) {
	t.Helper()
	primary := NewHost(t, 1, pgtest.Start(t, pgtest.Options{Name: "node1"}), extra(1)...)
	primary.Must(t, "repmgr -f $C primary register -F")
	all = append(all, primary)
	for id := 2; id <= count; id++ {
		h := NewHost(t, id, pgtest.NewStandby(t, primary.Server, pgtest.Options{Name: fmt.Sprintf("node%d", id)}), extra(id)...)
		h.Must(t, "repmgr -f $C standby register -F --wait-sync=30")
		all = append(all, h)
	}
	for _, h := range all {
		h.Watch(t)
	}
	pgtest.WaitFor(t, "all daemons", func(context.Context) error {
		if out, code := primary.Sh(t, `repmgr service status --csv | awk -F, '$5 == 1 && $6 > 0'`); code != 0 || strings.Count(out, "\n") < count {
			return fmt.Errorf("%d: %s", code, out)
		}
		if count > 2 {
			if out, code := all[1].Sh(t, "repmgr -f $C standby switchover --dry-run 2>&1"); code != 0 {
				return errors.New(out)
			}
		}
		return nil
	})
	return all
}
