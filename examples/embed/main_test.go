package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The service watches its node, says on /status what it does, tells of a
// server that is lost, and stops when it is told to.
func TestEmbed(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	conf := filepath.Join(t.TempDir(), "repmgr.conf")
	text := fmt.Sprintf("cluster=test\nnode=1\nconninfo='%s'\nmonitor_interval_secs=50ms\n", s.Conninfo())
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
	cfg, err := repmgr.LoadConfig(conf)
	require.NoError(t, err)
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	_, err = c.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	port := pgtest.Port(t)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer log.Close()
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-config", conf, "-port", fmt.Sprint(port)}, log) }()

	waitPhase(t, port, election.AsPrimary)
	s.Kill()
	waitPhase(t, port, election.Waiting)
	s.StartAgain()
	waitPhase(t, port, election.AsPrimary)
	cancel()
	require.NoError(t, <-done)

	said, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.Contains(t, string(said), `msg="somebody should look" event=`+string(repmgr.EventLocalDisconnect))
}

// It is told of an election that its Monitor has held.
func TestReact(t *testing.T) {
	var said bytes.Buffer
	e := repmgr.Event{Type: repmgr.EventFailoverPromote, Failover: &repmgr.FailoverRecord{Former: "node1", Primary: "node2"}}
	require.NoError(t, react(t.Context(), slog.New(slog.NewTextHandler(&said, nil)), e))
	require.Contains(t, said.String(), `msg="the primary was replaced" node=node2 former_primary=node1`)
}

func waitPhase(t *testing.T, port int, want election.Phase) {
	t.Helper()
	pgtest.WaitFor(t, "phase "+string(want), func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/status", port), nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var st repmgr.MonitorStatus
		if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
			return err
		}
		if st.Phase != want {
			return fmt.Errorf("phase %q: %s", st.Phase, st.Reason)
		}
		return nil
	})
}
