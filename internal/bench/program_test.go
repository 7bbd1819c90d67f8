package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// serverBin is where the last server's programs are.
var serverBin string

const peerName = "repmgr 5.3"

// suite is one of the two repmgrs: its programs, and how its nodes are set up.
type suite struct {
	name            string
	repmgr, repmgrd string
	settings        map[string]string // what a server needs for its daemon
}

// ours and the peer. The peer's programs are "" where they are not installed.
func ours(t *testing.T) suite {
	t.Helper()
	dir := os.Getenv("REPMGR_BENCH_BIN")
	require.NotEmpty(t, dir, "REPMGR_BENCH_BIN is not set: make bench does it")
	return suite{name: "ours", repmgr: filepath.Join(dir, "repmgr"), repmgrd: filepath.Join(dir, "repmgrd")}
}

func peer(s *pgtest.Server) suite {
	p := suite{name: peerName, settings: map[string]string{"shared_preload_libraries": "repmgr"}}
	if path := filepath.Join(s.BinDir, "repmgr"); versionOf(path) != "" {
		p.repmgr, p.repmgrd = path, filepath.Join(s.BinDir, "repmgrd")
	}
	return p
}

func (s suite) missing() bool { return s.repmgr == "" }

func versionOf(program string) string {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// start is pgtest.Start with what a benchmark wants: PostgreSQL's own defaults
// where pgtest has others for its tests.
func start(t *testing.T, o pgtest.Options) *pgtest.Server {
	t.Helper()
	settings := map[string]string{"wal_log_hints": "off", "shared_buffers": "128MB", "synchronous_commit": "on"}
	maps.Copy(settings, o.Settings)
	o.Settings = settings
	s := pgtest.Start(t, o)
	serverBin = s.BinDir
	return s
}

// conf writes a repmgr.conf that both repmgrs understand.
func (s suite) conf(t *testing.T, id int, server *pgtest.Server, extra ...string) string {
	t.Helper()
	lines := append([]string{
		fmt.Sprintf("node_id=%d", id), fmt.Sprintf("node_name='node%d'", id),
		fmt.Sprintf("conninfo='%s connect_timeout=2'", server.Conninfo()),
		fmt.Sprintf("pg_bindir='%s'", server.BinDir),
	}, extra...)
	if server.Dir != "" { // else -D names it
		lines = append(lines, fmt.Sprintf("data_directory='%s'", server.Dir))
	}
	path := filepath.Join(t.TempDir(), "repmgr.conf")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

// register makes the metadata and the primary's row.
func (s suite) register(t *testing.T, server *pgtest.Server, extra ...string) (conf string) {
	t.Helper()
	conf = s.conf(t, 1, server, extra...)
	s.must(t, s.repmgr, "-f", conf, "primary", "register")
	return conf
}

func (s suite) must(t *testing.T, program string, args ...string) {
	t.Helper()
	r := measure(t, program, args...)
	require.Zero(t, r.code, "%s %v: %s", program, args, r.out)
}

// run is one run of a program, measured.
type run struct {
	wall, cpu time.Duration // cpu: user and system, with the children it has waited for
	memory    int64         // bytes resident at most, of the process itself
	code      int
	out       string // both outputs
}

// measure runs a program to its end, for at most five minutes.
func measure(t *testing.T, program string, args ...string) run {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, os.TempDir()
	began := time.Now()
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	peak := make(chan int64, 1)
	go func() { peak <- watchMemory(cmd.Process.Pid, ended) }()
	err := cmd.Wait()
	r := run{wall: time.Since(began)}
	close(ended)
	r.memory = <-peak
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	require.NoError(t, ctx.Err(), "%s %v: %s", program, args, out.String())
	r.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	r.code, r.out = cmd.ProcessState.ExitCode(), out.String()
	return r
}

// watchMemory reads the high-water mark of a process until ended. The one that
// wait4 returns counts our own memory, too: the child begins as a part of us.
func watchMemory(pid int, ended <-chan struct{}) (peak int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return peak
		case <-tick.C:
			peak = max(peak, memoryOf(pid, "VmHWM:"))
		}
	}
}

// memoryOf reads a line of /proc/PID/status, in bytes; 0 when the process is gone.
func memoryOf(pid int, key string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// procTimes is what /proc/PID/stat says: parent, and the CPU time of the
// process and of the children that it has reaped.
func procTimes(pid int) (parent int, own, reaped time.Duration) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return 0, 0, 0
	}
	tick := func(i int) time.Duration {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		return time.Duration(n) * 10 * time.Millisecond // USER_HZ is 100
	}
	parent, _ = strconv.Atoi(f[1])
	return parent, tick(11) + tick(12), tick(13) + tick(14)
}

// cpuOf is the CPU time that a process has taken.
func cpuOf(pid int) time.Duration {
	_, own, _ := procTimes(pid)
	return own
}

// serverCPU is the CPU time of a server: the postmaster, its processes, and
// those that have ended.
func serverCPU(t *testing.T, s *pgtest.Server) time.Duration {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(b), "\n")
	postmaster, err := strconv.Atoi(first)
	require.NoError(t, err)
	_, own, reaped := procTimes(postmaster)
	sum := own + reaped
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if parent, own, _ := procTimes(pid); parent == postmaster {
				sum += own
			}
		}
	}
	return sum
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
func mebibytes(n int64) float64            { return float64(n) / (1 << 20) }
