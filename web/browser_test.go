package web

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
)

// said is what a page that breaks its policy, or whose script fails, makes a browser write.
var said = regexp.MustCompile(`(?i)content security policy|refused to|uncaught|CONSOLE.*error`)

// browse lets a real browser show a page, and returns what the document is then, and what the browser wrote.
func browse(t *testing.T, url string, args ...string) (document, log string) {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("there is no Chromium: scripts/deps installs it on Debian")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	home := t.TempDir()
	cmd := exec.CommandContext(ctx, program, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr", "--user-data-dir=" + home,
	}, append(args, url)...)...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	require.NoError(t, cmd.Run(), "%s", &errs)
	return out.String(), errs.String()
}

// The script of the dashboard runs in a real browser, and nothing breaks the policy. With REPMGR_SCREENSHOTS=DIR it also
// leaves pictures of what was seen.
func TestBrowser(t *testing.T) { // not parallel: it would take the processor from tests that look at times
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		secure(w, "text/html")
		fmt.Fprint(w, `<!doctype html><p style="color: red">x</p><script>document.title = "ran"</script>`)
	}))
	defer bad.Close()
	document, log := browse(t, bad.URL, "--dump-dom")
	require.NotContains(t, document, "<title>ran")
	require.Regexp(t, said, log, "a page that breaks the policy must be noticed")
	for name, s := range scenes() {
		h, asked := play(t, s, "/repmgr"), map[string]*atomic.Int32{"/repmgr/ui": {}, "/repmgr/ui/ask": {}}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n := asked[r.URL.Path]; n != nil {
				n.Add(1)
			}
			h.ServeHTTP(w, r)
		}))
		document, log := browse(t, server.URL+"/repmgr/ui", "--dump-dom", "--virtual-time-budget=6000")
		assert.Contains(t, document, `data-live="yes"`, name)
		assert.Regexp(t, `<p id="lost"[^>]* hidden`, document, name)
		assert.Greater(t, asked["/repmgr/ui"].Load(), int32(2), "%s: it is drawn again", name)
		assert.Positive(t, asked["/repmgr/ui/ask"].Load(), name)
		assert.NotRegexp(t, said, log, name)
		shoot(t, server.URL+"/repmgr/ui", name)
		server.Close()
	}
}

// What is selected does not keep the page from saying that the primary is lost; an event makes the page ask again; and with a
// password that is wrong now it stops.
func TestBrowserShowsThePresent(t *testing.T) { // not parallel, as TestBrowser
	well, down := play(t, scenes()["healthy"], ""), play(t, scenes()["down"], "")
	require.NoError(t, down.o.Events.Notify(t.Context(), repmgr.Event{Type: repmgr.EventStandbyFailure, At: time.Now()}))
	refuse := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	for want, then := range map[string]http.Handler{"No primary is in office. The last one was node1": down, "does not take the password any more": refuse} {
		var pages, asked atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := http.Handler(well)
			switch r.URL.Path {
			case "/ui":
				if pages.Add(1) > 3 {
					h = then
				}
			case "/ui/ask":
				asked.Add(1)
			}
			h.ServeHTTP(w, r)
			if r.URL.Path == "/ui/live.js" {
				fmt.Fprint(w, `document.getSelection().selectAllChildren(document.querySelector('.command'));`)
			}
		}))
		document, _ := browse(t, server.URL+"/ui", "--dump-dom", "--virtual-time-budget=19000")
		server.Close()
		assert.Contains(t, document, want)
		if then == down {
			assert.GreaterOrEqual(t, asked.Load(), int32(3), "at the beginning, after 10 s, and after the event")
		} else {
			assert.Equal(t, int32(4), pages.Load(), "it was refused, and stopped")
		}
	}
}

// shoot takes pictures, where somebody wants them.
func shoot(t *testing.T, url, name string) {
	t.Helper()
	dir := os.Getenv("REPMGR_SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, size := range []string{"1280,1750", "390,3200"} {
		for scheme, number := range map[string]string{"dark": "0", "light": "1"} {
			file := filepath.Join(dir, fmt.Sprintf("%s-%.3s-%s.png", name, size, scheme))
			browse(t, url, "--screenshot="+file, "--window-size="+size, "--hide-scrollbars", "--blink-settings=preferredColorScheme="+number)
		}
	}
}
