package surfaces

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// What patronictl and scripts change over HTTP: a switchover is scheduled, seen by all nodes, and taken back; failover is paused, and all
// say by whom; what is refused says why; and only listed addresses may.
func TestChangesOverHTTP(t *testing.T) {
	t.Parallel()
	ports := []int{pgtest.Port(t), pgtest.Port(t), pgtest.Port(t)}
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600))
	nodes := daemontest.ClusterOf(t, 3, func(id int) []string {
		return []string{fmt.Sprintf("http_listen='127.0.0.1:%d'", ports[id-1]), fmt.Sprintf("http_token_file='%s'", token), "http_allowlist='127.0.0.0/8,::1'"}
	})
	ask := func(method string, port int, path, body string) (code int, answer string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), strings.NewReader(body))
		require.NoError(t, err)
		r.SetBasicAuth("ada", "0123456789abcdef")
		r.Header.Set("Accept", "application/json")
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(text)
	}
	shown := func(path, words string) {
		t.Helper()
		pgtest.WaitFor(t, words+" in "+path, func(context.Context) error {
			for _, port := range ports {
				if text := get(t, port, path); !strings.Contains(text, words) {
					return errors.New(text)
				}
			}
			return nil
		})
	}
	code, text := ask("DELETE", ports[1], "/switchover", "")
	require.Equal(t, 404, code, text)
	at := time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05+00:00")
	later := fmt.Sprintf(`{"leader":"node1","candidate":"node2","scheduled_at":%q}`, at)
	code, text = ask("POST", ports[2], "/switchover", later)
	require.Equal(t, 202, code, text)
	shown("/cluster", fmt.Sprintf(`"scheduled_switchover":{"at":%q,"from":"node1","to":"node2"}`, at))
	shown("/ui", "A switchover from node1 to node2 is scheduled.")
	shown("/ui/plan?node=node2", "standby switchover --cancel")
	for _, n := range nodes {
		out := n.Must(t, "repmgr -f $C service status")
		require.Contains(t, out, "\nA switchover from node1 to node2 is scheduled. It begins at ")
		require.Contains(t, out, "\nTo take it back: repmgr standby switchover --cancel\n")
	}
	code, text = ask("POST", ports[2], "/switchover", later)
	require.Equal(t, 412, code, text)
	require.Contains(t, text, "another one was asked for")
	code, text = ask("DELETE", ports[1], "/switchover", "")
	require.Equal(t, 200, code, text)
	require.NotContains(t, nodes[2].Must(t, "repmgr -f $C service status"), "is scheduled")
	out, code := nodes[2].Sh(t, "repmgr -f $C standby switchover --cancel 2>&1")
	require.Equal(t, 18, code, out)
	require.Contains(t, out, "no switchover is scheduled")
	nodes[1].Must(t, "repmgr -f $C standby switchover --at='"+time.Now().Add(time.Hour).Format(time.DateTime)+"'")
	require.Contains(t, nodes[2].Must(t, "repmgr -f $C standby switchover --cancel"), "was taken back")

	code, text = ask("PATCH", ports[1], "/config", `{"pause": true}`)
	require.Equal(t, 200, code, text)
	shown("/patroni", `"paused_by":"ada over HTTP from 127.0.0.1"`)
	shown("/ui", "by ada over HTTP from 127.0.0.1: no daemon acts")
	for _, command := range []string{"service status", "cluster explain"} {
		out, _ = nodes[2].Sh(t, "repmgr -f $C "+command+" 2>&1")
		require.Contains(t, out, " by ada over HTTP from 127.0.0.1", command)
	}
	code, text = ask("POST", ports[1], "/switchover", `{"leader":"node1","candidate":"node2"}`)
	require.Equal(t, 412, code, text)
	var refused struct {
		Error, Hint string
		Obstacles   []struct{ Code, Text, Hint string }
	}
	require.NoError(t, json.Unmarshal([]byte(text), &refused))
	require.Contains(t, refused.Error, "failover is paused")
	require.Equal(t, "failover_paused", refused.Obstacles[0].Code)
	require.Equal(t, refused.Hint, refused.Obstacles[0].Hint)
	code, text = ask("POST", ports[1], "/failover", `{"candidate":"node2"}`) // with a primary it is a switchover
	require.Equal(t, 412, code, text)
	code, text = ask("PATCH", ports[1], "/config", `{"pause": null}`)
	require.Equal(t, 200, code, text)

	conf, err := os.ReadFile(nodes[1].Conf())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(nodes[1].Conf(), []byte(strings.ReplaceAll(string(conf), "127.0.0.0/8,::1", "192.0.2.0/24")), 0o600))
	nodes[1].Must(t, "kill -HUP $(cat pid)")
	pgtest.WaitFor(t, "the list to be in force", func(context.Context) error {
		if code, text := ask("PATCH", ports[1], "/config", "{}"); code != 403 || !strings.Contains(text, "http_allowlist") {
			return fmt.Errorf("%d: %s", code, text)
		}
		return nil
	})
}
