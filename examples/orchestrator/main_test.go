package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/repmgrtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// newNode writes the repmgr.conf of a server, and registers it.
func newNode(t *testing.T, id int, s *pgtest.Server) (conf string) {
	t.Helper()
	conf = filepath.Join(t.TempDir(), "repmgr.conf")
	text := fmt.Sprintf("cluster=test\nnode=%d\nconninfo='%s'\ndata_directory='%s'\npg_bindir='%s'\nfailover=automatic\nsynchronous_mode=quorum\nmonitor_interval_secs=100ms\n", id, s.Conninfo(), s.Dir, s.BinDir)
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
	cfg, err := repmgr.LoadConfig(conf)
	require.NoError(t, err)
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	if id == 1 {
		_, err = c.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	} else {
		_, err = c.RegisterStandby(t.Context(), repmgr.RegisterOptions{WaitSync: time.Minute})
	}
	require.NoError(t, err)
	return conf
}

// start runs the program, and returns its address and what it prints.
func start(t *testing.T, args ...string) (at string, lines <-chan line) {
	t.Helper()
	listen := fmt.Sprintf("127.0.0.1:%d", pgtest.Port(t))
	read, write := io.Pipe()
	said := make(chan line, 100)
	go func() {
		defer close(said)
		for d := json.NewDecoder(read); ; {
			var l line
			if d.Decode(&l) != nil {
				return
			}
			said <- l
		}
	}()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx, append([]string{"-listen", listen}, args...), write, t.Output()) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		_ = write.Close()
	})
	return "http://" + listen, said
}

// next is the next line, but for those of one kind.
func next(t *testing.T, lines <-chan line, what string) line {
	t.Helper()
	late := time.After(pgtest.Timeout(30 * time.Second))
	for {
		select {
		case l := <-lines:
			if l.What == what {
				return l
			}
			t.Logf("%+v", l)
		case <-late:
			require.FailNow(t, "there is no line", what)
		}
	}
}

// move asks for a switchover.
func move(ctx context.Context, at, to string) (code int, text string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at+"/move", strings.NewReader(url.Values{"to": {to}}.Encode()))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(r)
}

func do(r *http.Request) (code int, text string, err error) {
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func get(ctx context.Context, url string) (code int, text string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	return do(r)
}

// newCollector takes traces as a collector does.
func newCollector(t *testing.T) (address string, sent <-chan []span) {
	t.Helper()
	traces := make(chan []span, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			ResourceSpans []struct {
				ScopeSpans []struct{ Spans []span }
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "not a trace", http.StatusBadRequest)
			return
		}
		traces <- body.ResourceSpans[0].ScopeSpans[0].Spans
	}))
	t.Cleanup(s.Close)
	return s.URL, traces
}

// requireTrace waits for the trace of the change of the primary that l tells of: the spans of its steps follow each other, and fill the one above them.
func requireTrace(t *testing.T, name string, l line, sent <-chan []span) {
	t.Helper()
	var spans []span
	select {
	case spans = <-sent:
	case <-time.After(pgtest.Timeout(30 * time.Second)):
		require.FailNow(t, "no trace was sent")
	}
	root := spans[0]
	require.Equal(t, name, root.Name)
	require.Len(t, spans, 1+len(l.Steps))
	ids, end := map[string]bool{root.ID: true}, root.Start
	for _, s := range spans[1:] {
		require.Equal(t, []string{root.Trace, root.ID, end}, []string{s.Trace, s.Parent, s.Start})
		ids[s.ID], end = true, s.End
	}
	require.Equal(t, root.End, end)
	require.Len(t, ids, len(spans), "each span has an id of its own")
	require.Contains(t, fmt.Sprint(root.Attributes), l.To)
}

// A collector that takes no trace is named, with what it says.
func TestTraces_Refused(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	err := traces{s.URL}.Notify(t.Context(), repmgr.Event{Failover: &repmgr.FailoverRecord{}})
	require.ErrorContains(t, err, s.URL+"/v1/traces answers 404 Not Found: 404 page not found")
	require.NoError(t, traces{s.URL}.Notify(t.Context(), repmgr.Event{}), "it has no trace")
}

// The primary is moved by request, not again at once, and fails over by itself; each time there is one line that says how it went.
func TestOrchestrator(t *testing.T) {
	node1 := pgtest.Start(t, pgtest.Options{Name: "node1"})
	collector, sent := newCollector(t)
	args := []string{"-calm", "10m", "-traces", collector, newNode(t, 1, node1)}
	servers := []*pgtest.Server{node1}
	for id := 2; id <= 3; id++ {
		s := pgtest.NewStandby(t, node1, pgtest.Options{Name: fmt.Sprintf("node%d", id)})
		servers, args = append(servers, s), append(args, newNode(t, id, s))
	}
	at, lines := start(t, args...)
	var text string
	pgtest.WaitFor(t, "the cluster to be ready for a switchover", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute) // one that was begun is waited for
		defer cancel()
		code, said, err := move(ctx, at, "node2")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, said)
		}
		text = said
		return err
	})
	require.Contains(t, text, `"from":"node1"`)
	require.Contains(t, text, `"to":"node2"`)
	l := next(t, lines, "switchover")
	require.Equal(t, []string{"node1", "node2"}, []string{l.From, l.To})
	require.NotEmpty(t, l.Steps)
	requireTrace(t, "switchover", l, sent)

	rebound, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at+"/move", http.NoBody)
	require.NoError(t, err)
	rebound.Host = "evil.example"
	code, text, err := do(rebound)
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, code, text)
	code, text, err = move(t.Context(), at, "node3")
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, code, text)
	require.Contains(t, text, "the primary has changed ")
	code, text, err = move(t.Context(), at, "node9")
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, code, text)

	pgtest.WaitFor(t, "a failover to be possible", func(ctx context.Context) error {
		_, text, err := get(ctx, at+"/cluster/repmgr/v1/explain")
		if err == nil && !strings.Contains(text, `"blocked_by":[]`) {
			err = errors.New(text)
		}
		const newest = `SELECT coalesce((SELECT term || '/' || seq FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1), '')`
		for _, s := range servers {
			if err == nil && s.QueryString(t, newest) != servers[1].QueryString(t, newest) {
				err = errors.New(s.Name + " has not got the newest rule")
			}
		}
		return err
	})
	servers[1].Kill()
	l = next(t, lines, "failover")
	require.Equal(t, "node2", l.From)
	require.Contains(t, []string{"node1", "node3"}, l.To)
	require.Positive(t, l.OutageMS)
	require.NotEmpty(t, l.Steps)
	requireTrace(t, "failover", l, sent)
	code, text, err = get(t.Context(), at+"/cluster/ui")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, text, l.To)
}

// On a machine without a node it moves the primary all the same: the Monitors elsewhere do it.
func TestOrchestrator_Observer(t *testing.T) {
	c := repmgrtest.Start(t, repmgrtest.Options{})
	conf := filepath.Join(t.TempDir(), "repmgr.conf")
	require.NoError(t, os.WriteFile(conf, []byte("cluster=test\nconninfo='"+c.Nodes()[1].ConnString+"'\nfailover=automatic\nsynchronous_mode=quorum\n"), 0o600))
	at, _ := start(t, conf)
	pgtest.WaitFor(t, "the observer to move the primary", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		code, text, err := move(ctx, at, "node3")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, text)
		}
		return err
	})
	require.Equal(t, "node3", c.WaitForPrimary(t).Name)
}

// A page that a browser was given under a name that leads here counts as one of ours: it may not move the primary.
func TestForeign(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:8090": false, "localhost:8090": false, "localhost": false, "[::1]:8090": false, "[::1]": false, "192.0.2.1:8090": false, "node1:8090": false, "node1": false,
		"evil.example:8090": true, "evil.example": true, "localhost.evil.example:8090": true, "127.0.0.1.evil.example": true, "": true,
	} {
		require.Equal(t, want, foreign(host, "node1:8090"), host)
	}
	require.True(t, foreign("node1:8090", ":8090"), "no name is known")
	require.True(t, foreign("", ":8090"))
}

func TestRun_Refuses(t *testing.T) {
	require.ErrorContains(t, run(t.Context(), nil, io.Discard, io.Discard), "name the repmgr.conf")
	require.ErrorContains(t, run(t.Context(), []string{"-traces", "localhost:4318", "repmgr.conf"}, io.Discard, io.Discard), `-traces="localhost:4318": want an address such as http://`)
	require.ErrorContains(t, run(t.Context(), []string{"/nowhere/repmgr.conf"}, io.Discard, io.Discard), "/nowhere/repmgr.conf")
}
