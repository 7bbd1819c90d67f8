package repmgr_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// guarded is a primary, voter 1 of 3, whose other voters are said to be at
// others, with its watchdog. It has no Monitor. tell writes a beat, or ends the
// beats; ended has the result.
func guarded(t *testing.T, others func(n *node) string) (n *node, tell func(*repmgr.Beat), ended chan error) {
	t.Helper()
	n = startPrimary(t, automatic(repmgr.SynchronousOff))
	n.cfg.DataDirectory = n.Dir
	n.Exec(t, `INSERT INTO repmgr.nodes (node_id, node_name, type, conninfo, repluser, config_file) SELECT i, 'node' || i, 'standby', $1, 'postgres', '' FROM generate_series(2, 3) i`, others(n))
	n.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (1, 1, 1, '{1,2,3}', false, '{}', 0)`)
	c, err := repmgr.New(n.cfg)
	require.NoError(t, err)
	r, w := io.Pipe()
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); ended <- c.Watchdog(context.WithoutCancel(t.Context()), r) }()
	t.Cleanup(func() { r.Close(); <-done })
	return n, func(b *repmgr.Beat) {
		if b == nil {
			w.Close()
			return
		}
		line, err := json.Marshal(b)
		require.NoError(t, err)
		_, err = w.Write(line)
		require.NoError(t, err)
	}, ended
}

// A Monitor that is silent, and no majority: the watchdog stops the server, and
// leaves it to the Monitor to start it as a standby.
func TestWatchdog_FencesForASilentMonitor(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	require.NoError(t, err)
	defer silent.Close()
	n, tell, ended := guarded(t, func(n *node) string {
		_, port, _ := net.SplitHostPort(silent.Addr().String())
		return n.Conninfo("port=" + port)
	})
	left := 1.0
	tell(&repmgr.Beat{PID: 4711, Left: &left, Dir: n.Dir})
	pgtest.WaitFor(t, "the server to be stopped", func(context.Context) error {
		if n.Started() {
			return errors.New("it runs")
		}
		return nil
	})
	pgtest.WaitFor(t, "the marks", func(context.Context) error { // they are written after its end
		_, err := os.Stat(filepath.Join(n.Dir, "repmgr_fenced"))
		return err
	})
	require.FileExists(t, filepath.Join(n.Dir, "standby.signal"))
	tell(&repmgr.Beat{PID: 4711, Dir: n.Dir})
	require.False(t, n.Started(), "it leaves that to the Monitor")
	tell(&repmgr.Beat{Bye: true})
	require.NoError(t, <-ended)
}

// While a majority answers, a dead Monitor is no reason to stop its primary; the
// watchdog ends when another Monitor has taken over.
func TestWatchdog_GuardsUntilAnotherMonitorIsThere(t *testing.T) {
	t.Parallel()
	n, tell, ended := guarded(t, func(n *node) string { return n.Conninfo() })
	left := 1.0
	tell(&repmgr.Beat{PID: 4711, Left: &left, Dir: n.Dir})
	announce(t, n, repmgr.Announcement{PID: 4711, Mode: repmgr.FailoverAutomatic}).Close() // the dead one's
	tell(nil)
	pgtest.WaitFor(t, "its own look at the voters", func(context.Context) error {
		if got := n.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'repmgr'`); got == "0" {
			return errors.New("none yet")
		}
		return nil
	})
	announce(t, n, repmgr.Announcement{PID: 4712, Mode: repmgr.FailoverAutomatic})
	require.NoError(t, <-ended)
	require.Equal(t, "f", n.QueryString(t, `SELECT pg_is_in_recovery()`))
}

// What dies with nothing to guard needs no watchdog.
func TestWatchdog_NothingToGuard(t *testing.T) {
	t.Parallel()
	n, tell, ended := guarded(t, func(n *node) string { return n.Conninfo() })
	tell(&repmgr.Beat{PID: 4711, Dir: n.Dir})
	tell(nil)
	require.NoError(t, <-ended)
	require.True(t, n.Started())
}
