package bench

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const (
	idling     = "4. repmgrd, idle at its default interval of 2 s, a primary and a standby"
	settleTime = 60 * time.Second // before anything counts
	window     = 60 * time.Second
	// checkpointWindow begins with a checkpoint: what is written to a page for
	// the first time after one goes to the WAL as a whole.
	checkpointWindow   = 30 * time.Second
	checkpointsPerHour = 12 // PostgreSQL's default checkpoint_timeout is 5 minutes
)

// idle is what a pair of daemons took while nothing happened.
type idle struct {
	memory, cpu [2]float64 // MB; per cent of a core: on the primary, on the standby
	connections float64    // to the primary, for the standby, at most
	walPerHour  float64    // kB
	serverCPU   float64    // per cent of a core: of the primary server's processes
}

func TestIdle(t *testing.T) {
	wanted(t)
	probe := pgtest.Start(t, pgtest.Options{})
	measured := map[string]*idle{}
	silentNodes := figure{Section: showing, What: "50 of 51 nodes in a black hole, connect_timeout=2", Unit: "ms", Peer: peerName, Limit: limit{Value: 2100}}
	kinds := map[string]suite{"ours": ours(t)}
	if p := peer(probe); !p.missing() {
		kinds["peer"] = p
	}
	t.Run("all at once: they do next to nothing", func(t *testing.T) {
		for name, s := range kinds {
			for _, history := range []string{"no", "yes"} {
				m := &idle{}
				measured[name+" "+history] = m
				t.Run(name+", monitoring_history="+history, func(t *testing.T) {
					t.Parallel()
					*m = s.idle(t, "monitoring_history="+history)
				})
			}
			t.Run(name+", cluster show of 50 silent nodes", func(t *testing.T) {
				t.Parallel()
				if name == "ours" {
					silentNodes.Ours = s.showSilent(t, 3)
				} else {
					silentNodes.Theirs = s.showSilent(t, 1)
				}
			})
		}
	})
	if t.Failed() {
		return
	}
	results.add(silentNodes)
	for _, history := range []string{"no", "yes"} {
		o, p := measured["ours "+history], measured["peer "+history]
		add := func(what, unit string, value func(*idle) float64, bound limit) {
			f := figure{Section: idling, What: "history=" + history + ": " + what, Unit: unit, Peer: peerName, Ours: stat{[]float64{value(o)}}, Limit: bound}
			if p != nil {
				f.Theirs = stat{[]float64{value(p)}}
			}
			results.add(f)
		}
		add("resident, on the standby", "MB", func(i *idle) float64 { return i.memory[1] }, limit{Value: 25})
		add("resident, on the primary", "MB", func(i *idle) float64 { return i.memory[0] }, limit{Value: 25})
		add("CPU, on the standby", "% core", func(i *idle) float64 { return i.cpu[1] }, limit{Value: 0.2})
		add("CPU, on the primary", "% core", func(i *idle) float64 { return i.cpu[0] }, limit{Value: 0.2})
		add("connections to the primary per standby", "at most", func(i *idle) float64 { return i.connections }, limit{Value: 2})
		add("WAL written on the primary per hour", "kB", func(i *idle) float64 { return i.walPerHour }, limit{})
		add("CPU of the primary server, all its processes", "% core", func(i *idle) float64 { return i.serverCPU }, limit{})
	}
}

// showSilent measures cluster show where nothing but the own node answers.
// The peer needs minutes, so it runs once, beside the daemons that idle.
func (s suite) showSilent(t *testing.T, runs int) (times stat) {
	n := &node{suite: s, server: start(t, pgtest.Options{})}
	n.conf = n.register(t, n.server)
	silent(t, n, 2, 51)
	for range runs {
		times.Samples = append(times.Samples, milliseconds(show(t, n, 51).wall))
	}
	return times
}

// idle runs a daemon for a primary and one for its standby, and measures both.
func (s suite) idle(t *testing.T, setting string) (m idle) {
	// For minutes autovacuum would digest what initdb has left in every database:
	// WAL that no daemon asked for.
	settings := map[string]string{"autovacuum": "off"}
	maps.Copy(settings, s.settings)
	primary := start(t, pgtest.Options{Name: "node1", Settings: settings})
	conf1 := s.register(t, primary, setting)
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2"})
	conf2 := s.conf(t, 2, standby, setting)
	s.must(t, s.repmgr, "-f", conf2, "standby", "register")
	pids := [2]int{s.daemon(t, conf1), s.daemon(t, conf2)}

	ctx := t.Context()
	db := primary.Conn(t)
	position := func() (bytes float64) {
		require.NoError(t, db.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8`).Scan(&bytes))
		return bytes
	}
	pass(t, settleTime, func() {})
	_, err := db.Exec(ctx, `CHECKPOINT`)
	require.NoError(t, err)
	at := position()
	pass(t, checkpointWindow, func() {})
	afterCheckpoint := position() - at

	at = position()
	cpu := [2]time.Duration{cpuOf(pids[0]), cpuOf(pids[1])}
	server := serverCPU(t, primary)
	began := time.Now()
	pass(t, window, func() { m.connections = max(m.connections, float64(connections(t, pids[1], primary.Port))) })
	took := time.Since(began)
	m.connections++ // the standby's WAL receiver
	perSecond := (position() - at) / took.Seconds()
	extra := max(0, afterCheckpoint-perSecond*checkpointWindow.Seconds())
	m.walPerHour = (perSecond*3600 + extra*checkpointsPerHour) / 1000
	fmt.Fprintf(os.Stderr, "          %s, %s: WAL %.0f bytes a second, %.0f more after a checkpoint\n", s.name, setting, perSecond, extra)
	m.serverCPU = 100 * (serverCPU(t, primary) - server).Seconds() / took.Seconds()
	for i, pid := range pids {
		m.cpu[i] = 100 * (cpuOf(pid) - cpu[i]).Seconds() / took.Seconds()
		m.memory[i] = mebibytes(memoryOf(pid, "VmRSS:"))
		require.NotZero(t, m.memory[i], "the daemon of %s ended", []string{conf1, conf2}[i])
	}
	return m
}

// pass lets time pass and calls each once a second.
func pass(t *testing.T, d time.Duration, each func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			require.NoError(t, t.Context().Err())
			return
		case <-tick.C:
			each()
		}
	}
}

// daemon starts a repmgrd that ends with the test.
func (s suite) daemon(t *testing.T, conf string) (pid int) {
	t.Helper()
	cmd := exec.Command(s.repmgrd, "-f", conf, "--daemonize=false", "--no-pid-file")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s -f %s:\n%s", s.repmgrd, conf, log.String())
		}
	})
	return cmd.Process.Pid
}

// connections counts the open TCP connections of a process to a port. The
// kernel's list may name one twice when it changes while it is read.
func connections(t *testing.T, pid, port int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	require.NoError(t, err)
	own := map[string]bool{}
	for _, fd := range fds {
		target, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	b, err := os.ReadFile("/proc/net/tcp")
	require.NoError(t, err)
	const remote, state, inode, established = 2, 3, 9, "01"
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) <= inode || f[state] != established || !own[f[inode]] {
			continue
		}
		_, hex, _ := strings.Cut(f[remote], ":")
		if p, err := strconv.ParseUint(hex, 16, 16); err == nil && int(p) == port {
			delete(own, f[inode])
			n++
		}
	}
	return n
}
