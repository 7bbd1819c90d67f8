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
		h, asked := play(t, s, "/repmgr"), map[string]*atomic.Int32{"/repmgr/ui": {}, "/repmgr/ui/ask": {}, "/repmgr/events": {}}
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
		assert.Positive(t, asked["/repmgr/events"].Load(), name)
		assert.NotRegexp(t, said, log, name)
		shoot(t, server.URL+"/repmgr/ui", name)
		server.CloseClientConnections() // a reader of events
		server.Close()
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
