package statefile

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
)

// Of settings that vanished each is named with what it means for a server that runs as that.
func TestLostRemedy(t *testing.T) {
	t.Parallel()
	require.Contains(t, lostRemedy(map[string]string{"primary_conninfo": "host=x"}, true), "repmgr standby follow")
	of := lostRemedy(map[string]string{"primary_conninfo": "password=secret", "port": "5433", "hba_file": "it's", "recovery_target": "", "recovery_target_xid": ""}, false)
	require.NotContains(t, of, "standby follow")
	require.NotContains(t, of, "secret")
	require.Contains(t, of, "This server is a primary")
	require.Contains(t, of, "ALTER SYSTEM SET port = '5433';")
	require.Contains(t, of, "ALTER SYSTEM SET hba_file = 'it''s';")
	require.Contains(t, of, "for each of recovery_target* until the next start")
	require.Contains(t, lostRemedy(map[string]string{registry.PausedSetting: "1/on/2"}, true), "repmgr service pause")
}

// A file that was emptied is told of once. What brings a server back writes it anew.
func TestSettings_TellLost(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	told := 0
	d := Daemon{Log: slog.New(slog.NewTextHandler(&log, nil)), Tell: func(registry.Event) { told++ }}
	var s settings
	all := map[string]string{"primary_conninfo": "host=x", "port": "5433", "recovery_target": "", "work_mem": "4MB"}
	status := registry.NodeStatus{StartedAt: time.Unix(1, 0)}
	s.tellLost(d, all, status)
	require.Empty(t, log.String())
	require.Zero(t, told)
	s.tellLost(d, nil, status)
	require.Contains(t, log.String(), `settings="primary_conninfo, port, recovery_target"`)
	require.Equal(t, 1, told)
	log.Reset()
	s.tellLost(d, nil, status)
	require.Empty(t, log.String())
	s.tellLost(d, all, status)
	status.StartedAt = time.Unix(2, 0)
	s.tellLost(d, map[string]string{"primary_conninfo": "host=y"}, status)
	require.Empty(t, log.String())
	require.Equal(t, 1, told)
}
