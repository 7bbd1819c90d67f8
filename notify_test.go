package repmgr

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/shell"
)

// Whatever an event holds, it stays one argument and is never executed.
func TestCommandNotifier_PassesValuesUnharmed(t *testing.T) {
	t.Parallel()
	nasty := `a "b" 'c' $(touch ` + "`id`" + `) ; rm -rf / \ %n * $HOME` + "\nnext line"
	for name, quoted := range map[string]string{"double quotes": `"%d"`, "single quotes": `'%d'`, "no quotes": `%d`, "in a word": `"x%d"`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "out")
			n := CommandNotifier{Command: `printf '%%s|' %n %e %s ` + quoted + ` %p > ` + out}
			e := Event{NodeID: 2, Type: EventStandbyPromote, Success: true, Details: nasty}
			require.NoError(t, n.Notify(t.Context(), e))
			got, err := os.ReadFile(out)
			require.NoError(t, err)
			want := nasty
			if name == "in a word" {
				want = "x" + nasty
			}
			require.Equal(t, "2|standby_promote|1|"+want+"|", string(got))
		})
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	values := map[byte]shell.Value{'n': {Env: "N", Text: "1"}}
	tests := map[string]string{
		`run %n`:         `run ${N:+"${N}"}`,
		`run "%n"`:       `run "${N}"`,
		`run '%n'`:       `run ''"${N}"''`,
		`run "it's %n"`:  `run "it's ${N}"`,
		`run \"%n`:       `run \"${N:+"${N}"}`,
		`run 100%%`:      `run 100%`,
		`run %x %`:       `run %x %`,
		`A=b run '\' %n`: `A=b run '\' ${N:+"${N}"}`,
	}
	for command, want := range tests {
		require.Equal(t, want, shell.Expand(command, values), command)
	}
}

// A hook that hangs is ended with all that it started.
func TestCommandNotifier_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := make(chan error, 1)
	go func() {
		stop <- CommandNotifier{Command: `sh -c 'echo $$ > ` + pidFile + `.new; mv ` + pidFile + `.new ` + pidFile + `; exec sleep 600'; true`}.Notify(ctx, Event{})
	}()
	require.Eventually(t, func() bool { _, err := os.Stat(pidFile); return err == nil }, 10*time.Second, 5*time.Millisecond)
	cancel(errors.New("enough"))
	require.ErrorContains(t, <-stop, "enough")
	pid, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, 10*time.Second, 5*time.Millisecond)
}

func TestWebhookNotifier(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		if strings.Contains(string(body), "standby_follow") {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	t.Cleanup(server.Close)
	n := WebhookNotifier{URL: server.URL + "/?token=hidden", Types: []EventType{EventStandbyPromote, EventStandbyFollow}}
	require.NoError(t, n.Notify(t.Context(), Event{Type: EventStandbyClone}))
	require.NoError(t, n.Notify(t.Context(), Event{Type: EventStandbyPromote, NodeID: 2, Success: true, PeerConninfo: "host=a password=hidden"}))
	require.JSONEq(t, `{"node_id":2,"event":"standby_promote","successful":true,"event_timestamp":"0001-01-01T00:00:00Z","peer_conninfo":"`+Redact("host=a password=hidden")+`"}`, <-got)
	require.ErrorContains(t, n.Notify(t.Context(), Event{Type: EventStandbyFollow}), "418")
	server.Close()
	err := n.Notify(t.Context(), Event{Type: EventStandbyPromote})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hidden")
}
