package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
)

// view is that of a node in a cluster of three, whose primary is node 1 and where commits wait for node 2.
func view(id registry.NodeID) health.View {
	now := time.Now()
	rule := election.Rule{Term: 5, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true, Sync: []int32{2}, Acks: 1}
	v := health.View{
		At: now, Cluster: "shop", NodeID: id, Node: "node" + id.String(), LookedAt: now, Interval: 2 * time.Second, Silence: 2 * time.Second,
		Automatic: true, Phase: election.AsStandby, Reason: "standby is monitored", Rule: rule, LocalAnswer: election.Answers, LocalSeenAt: now,
		Local:    registry.NodeStatus{StartedAt: now.Add(-time.Hour), VersionNum: 150018, SystemIdentifier: "7", InRecovery: id != 1, CurrentLSN: 5000, ReceivedLSN: 5000, ReplayedLSN: 3000},
		Upstream: health.Upstream{ID: 1, SeenAt: now, LSN: 5000},
		Lease:    health.Lease{Known: id == 1, Needed: id == 1, Proven: id == 1, Left: 2 * time.Second},
	}
	for i := int32(1); i <= 3; i++ {
		r := registry.Record{ID: registry.NodeID(i), Name: "node" + registry.NodeID(i).String(), Active: true, Role: registry.RoleStandby, Priority: 100, Location: "ams", Conninfo: fmt.Sprintf("host=10.0.0.%d port=5433", i)}
		p := election.Peer{ID: i, Role: election.Standby, Answer: election.Answers, Tried: now, SeenAt: now, Running: election.Standby, Rule: rule, Receiving: true, Replayed: 3000}
		p.Position.Timeline, p.Position.LSN = 4, 5000
		if i == 1 {
			r.Role, p.Role, p.Running, p.Receiving, p.Replayed = registry.RolePrimary, election.Primary, election.Primary, false, 0
		}
		v.Records, v.Peers = append(v.Records, r), append(v.Peers, p)
	}
	return v
}

// serve serves a view on a socket of its own, and returns its address.
func serve(t *testing.T, v health.View, o Options) string {
	t.Helper()
	return listen(t, &Server{Handler: newHandler(func() health.View { return later(v) }, o)})
}

func listen(t *testing.T, s *Server) string {
	t.Helper()
	s.Listen = "127.0.0.1:0"
	ctx, stop := context.WithCancel(t.Context())
	at, ended := make(chan string, 1), make(chan error, 1)
	go func() { ended <- s.Serve(ctx, func(a net.Addr) { at <- a.String() }) }()
	t.Cleanup(func() { stop(); assert.NoError(t, <-ended) })
	select {
	case address := <-at:
		return address
	case err := <-ended:
		ended <- nil
		require.NoError(t, err)
		return ""
	}
}

// raw sends bytes as they are, and returns what comes back.
func raw(t *testing.T, address, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = c.Write([]byte(request))
	require.NoError(t, err)
	answer, _ := io.ReadAll(c)
	return string(answer)
}

func request(t *testing.T, method, url, body string, header ...string) (code int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	res, err := (&http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b)
}

// The codes of Patroni's paths, on the primary, on the standby that commits wait for, and on another standby.
func TestHealthPaths(t *testing.T) {
	t.Parallel()
	at := [3]string{serve(t, view(1), Options{}), serve(t, view(2), Options{}), serve(t, view(3), Options{})}
	for path, want := range map[string][3]int{
		"/": {200, 503, 503}, "/primary": {200, 503, 503}, "/master": {200, 503, 503}, "/read-write": {200, 503, 503}, "/leader": {200, 503, 503},
		"//primary": {200, 503, 503}, "/primary/": {200, 503, 503}, "/x/primary/y": {200, 503, 503},
		"/standby-leader": {503, 503, 503}, "/standby_leader": {503, 503, 503},
		"/replica": {503, 200, 200}, "/replica/x": {503, 200, 200}, "/replica?lag=2000": {503, 200, 200}, "/replica?lag=1kB": {503, 503, 503}, "/replica?lag=10MB": {503, 200, 200}, "/replica?lag=-1": {503, 503, 503},
		"/replica?replication_state=streaming": {503, 200, 200}, "/replica?tag_location=ams": {503, 200, 200}, "/replica?tag_location=fra": {503, 503, 503}, "/replica?tag_other=x": {503, 503, 503},
		"/read-only": {200, 200, 200}, "/sync": {503, 200, 503}, "/synchronous": {503, 200, 503}, "/read-only-sync": {200, 200, 503}, "/quorum": {503, 503, 503}, "/read-only-quorum": {200, 503, 503},
		"/async": {503, 503, 200}, "/asynchronous": {503, 503, 200}, "/health": {200, 200, 200}, "/liveness": {200, 200, 200},
		"/readiness": {200, 200, 200}, "/readiness?lag=1000": {200, 503, 503}, "/readiness?lag=1000&mode=write": {200, 200, 200},
		"/nothing": {503, 503, 503}, "/../../etc/passwd": {503, 503, 503}, "/%2e%2e/etc/passwd": {503, 503, 503},
		"/patroni": {200, 200, 200}, "/cluster": {200, 200, 200}, "/history": {200, 200, 200}, "/config": {200, 200, 200}, "/failsafe": {502, 502, 502}, "/metrics": {200, 200, 200}, "/role": {200, 200, 200},
	} {
		for i, address := range at {
			for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
				answer := raw(t, address, method+" "+path+" HTTP/1.0\r\n\r\n")
				assert.True(t, strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.0 %d ", want[i])), "node%d: %s %s: %s", i+1, method, path, answer)
			}
		}
	}
	_, text := request(t, "GET", "http://"+at[1]+"/primary", "")
	assert.Contains(t, text, "node1 is the primary of term 5")
	for i, want := range []string{"primary\n", "standby\n", "standby\n"} {
		_, text := request(t, "GET", "http://"+at[i]+"/role", "")
		assert.Equal(t, want, text)
	}
}

// What net/http would refuse or answer otherwise.
func TestRequestsOfLoadBalancers(t *testing.T) {
	t.Parallel()
	at := serve(t, view(1), Options{})
	for _, r := range []string{
		"GET /primary HTTP/1.1\r\n\r\n", "HEAD /primary HTTP/1.1\r\nConnection: close\r\n\r\n", "OPTIONS / HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.0\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET //primary HTTP/1.0\r\n\r\n", "GET /primary HTTP/1.0\n\n",
	} {
		assert.Regexp(t, `^HTTP/1\.[01] 200 `, raw(t, at, r), "%q", r)
	}
	assert.Regexp(t, `^HTTP/1\.1 403 `, raw(t, at, "GET /repmgr/v1/monitor HTTP/1.1\r\n\r\n"), "it does not name this machine")
	// In pieces, and with a second request behind a first one that has no Host.
	c, err := net.Dial("tcp", at)
	require.NoError(t, err)
	defer c.Close()
	for _, part := range []string{"GET /prim", "ary HTTP/1.1\r", "\nX: y\r\n", "\r\nGET /replica HTTP/1.1\r\n\r\n"} {
		_, err := c.Write([]byte(part))
		require.NoError(t, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	answers, _ := io.ReadAll(c)
	assert.Equal(t, 1, bytes.Count(answers, []byte("HTTP/1.1 ")), "%s", answers)
	for _, bad := range []string{
		"GET /primary HTTP/1.1\r\nHost : x\r\n\r\n", "GET /primary HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET /primary HTTP/1.1\r\nX: " + strings.Repeat("y", 64<<10) + "\r\n\r\n", "\r\n\r\n", "nonsense\r\n\r\n",
	} {
		assert.Regexp(t, `^(HTTP/1\.1 4\d\d |$)`, raw(t, at, bad), "%.40q", bad)
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	at := serve(t, view(2), Options{})
	var b map[string]any
	_, text := request(t, "GET", "http://"+at+"/patroni", "")
	require.NoError(t, json.Unmarshal([]byte(text), &b))
	for key, want := range map[string]any{
		"state": "running", "role": "replica", "server_version": 150018.0, "timeline": 4.0, "replication_state": "streaming", "sync_standby": true,
		"database_system_identifier": "7", "xlog": map[string]any{"received_location": 5000.0, "replayed_location": 3000.0, "replayed_timestamp": nil, "paused": false},
		"patroni": map[string]any{"version": "repmgr " + repmgr.Version, "scope": "shop", "name": "node2"},
	} {
		assert.Equal(t, want, b[key], key)
	}
	var c struct {
		Members []map[string]any `json:"members"`
	}
	_, text = request(t, "GET", "http://"+at+"/cluster", "")
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	require.Len(t, c.Members, 3)
	assert.Equal(t, map[string]any{"name": "node1", "role": "leader", "state": "running", "host": "10.0.0.1", "port": 5433.0, "timeline": 4.0, "tags": map[string]any{"location": "ams", "priority": 100.0}}, c.Members[0])
	assert.Equal(t, []any{"sync_standby", "streaming", 2000.0, 0.0}, []any{c.Members[1]["role"], c.Members[1]["state"], c.Members[1]["lag"], c.Members[1]["receive_lag"]})
	assert.Equal(t, "replica", c.Members[2]["role"])

	_, text = request(t, "GET", "http://"+serve(t, view(1), Options{Metrics: repmgr.MetricsPatroni})+"/metrics", "")
	for _, line := range []string{
		`repmgr_is_primary{cluster="shop",node="node1",node_id="1"} 1`, `repmgr_voters_reachable{cluster="shop",node="node1",node_id="1"} 3`,
		`repmgr_standby_streaming{cluster="shop",node="node1",node_id="1",standby="node3"} 1`, `patroni_primary{scope="shop",name="node1"} 1`, `patroni_xlog_location{scope="shop",name="node1"} 5000`,
	} {
		assert.Contains(t, text, line+"\n")
	}
	assert.NotContains(t, text, "e+")
	for _, path := range []string{"/metrics", "/events", "/ui", "/repmgr/v1/doctor"} {
		assert.Regexp(t, `(?s)^HTTP/1.0 200 .*\r\n\r\n$`, raw(t, at, "OPTIONS "+path+" HTTP/1.0\r\nHost: localhost\r\n\r\n"), path)
	}
	assert.Equal(t, strings.Count(text, "# TYPE "), strings.Count(text, "# HELP "))
}

// A request may change something, or see more than a health check, only if it may.
func TestWhoMay(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600))
	c, err := repmgr.New(repmgr.Config{NodeID: 1, Conninfo: "host=127.0.0.1 port=1 dbname=none user=none", HTTPTokenFile: token})
	require.NoError(t, err)
	open := "http://" + serve(t, view(1), Options{Cluster: func() *repmgr.Cluster { return c }, TokenFile: token})
	closed := "http://" + serve(t, view(1), Options{Cluster: func() *repmgr.Cluster { return c }})
	for name, q := range map[string]struct {
		url, method, path, body string
		header                  []string
		code                    int
		text                    string
	}{
		"no token is set":           {closed, "POST", "/switchover", `{"leader":"node1"}`, nil, 403, "http_token_file"},
		"no password":               {open, "POST", "/switchover", `{"leader":"node1"}`, nil, 401, "needs a password"},
		"wrong password":            {open, "POST", "/switchover", `{"leader":"node1"}`, []string{"Authorization", "Bearer x"}, 401, "is wrong"},
		"another origin":            {open, "POST", "/switchover", `{"leader":"node1"}`, []string{"Authorization", "Bearer 0123456789abcdef", "Origin", "http://evil.example"}, 403, "origin"},
		"a foreign name":            {open, "GET", "/repmgr/v1/status", "", []string{"Host", "evil.example"}, 403, "password"},
		"events, a foreign name":    {open, "GET", "/events", "", []string{"Host", "evil.example"}, 403, "password"},
		"through a proxy":           {open, "GET", "/repmgr/v1/status", "", []string{"Host", "localhost", "X-Forwarded-For", "10.0.0.9"}, 403, "password"},
		"through another proxy":     {open, "GET", "/events", "", []string{"Forwarded", "for=10.0.0.9"}, 403, "password"},
		"through a third one":       {open, "HEAD", "/ui", "", []string{"Via", "1.1 proxy"}, 403, ""},
		"a proxy, in clear text":    {open, "POST", "/switchover", "", []string{"Authorization", "Bearer 0123456789abcdef", "X-Forwarded-For", ""}, 403, "clear text"},
		"a check through a proxy":   {open, "GET", "/primary", "", []string{"X-Forwarded-For", "10.0.0.9"}, 200, "node1"},
		"a health check may":        {open, "GET", "/primary", "", []string{"Host", "evil.example"}, 200, "node1"},
		"bearer":                    {open, "POST", "/switchover", "", []string{"Authorization", "bearer 0123456789abcdef"}, 400, "leader is missing"},
		"a number as a name":        {open, "POST", "/switchover", `{"leader":7}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "wanted: leader must not be a JSON number\n"},
		"a list":                    {open, "POST", "/switchover", `[]`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "wanted: it must not be a JSON array\n"},
		"the methods of a question": {open, "OPTIONS", "/repmgr/v1/status", "", nil, 200, ""},
		"basic":                     {open, "POST", "/switchover", "", []string{"Authorization", "Basic eDowMTIzNDU2Nzg5YWJjZGVm"}, 400, "leader is missing"},
		"wrong leader":              {open, "POST", "/switchover", `{"leader":"node2"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 412, `the primary is "node1"`},
		"unknown candidate":         {open, "POST", "/switchover", `{"leader":"node1","candidate":"x"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 412, `no node is called "x"`},
		"itself":                    {open, "POST", "/switchover", `{"leader":"node1","candidate":"node1"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "already"},
		"in the past":               {open, "POST", "/switchover", `{"leader":"node1","scheduled_at":"2020-01-01T00:00:00+00:00"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 422, "past"},
		"without a zone":            {open, "POST", "/switchover", `{"leader":"node1","scheduled_at":"2030-01-01T00:00:00"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "zone"},
		"no time":                   {open, "POST", "/switchover", `{"leader":"node1","scheduled_at":"soon"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 422, "soon"},
		"no JSON":                   {open, "POST", "/switchover", `leader`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "JSON"},
		"failover of nobody":        {open, "POST", "/failover", `{}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "candidate is missing"},
		"no restart is scheduled":   {open, "DELETE", "/restart", "", []string{"Authorization", "Bearer 0123456789abcdef"}, 404, "no restart is scheduled"},
		"taken back by anybody":     {open, "DELETE", "/switchover", "", nil, 401, "needs a password"},
		"nobody is asked for HEAD":  {open, "HEAD", "/repmgr/v1/status", "", nil, 200, ""},
		"HEAD of nothing":           {open, "HEAD", "/repmgr/v1/nothing", "", nil, 404, ""},
		"HEAD, a foreign name":      {open, "HEAD", "/repmgr/v1/status", "", []string{"Host", "evil.example"}, 403, ""},
		"failover to nobody":        {open, "POST", "/failover", `{"candidate":"typo"}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 412, `no node is called "typo"`},
		"other settings":            {open, "PATCH", "/config", `{"ttl":10}`, []string{"Authorization", "Bearer 0123456789abcdef"}, 400, "ALTER SYSTEM"},
		"huge":                      {open, "POST", "/switchover", strings.Repeat(" ", 70<<10), []string{"Authorization", "Bearer 0123456789abcdef"}, 413, "65536"},
		"unknown change":            {open, "POST", "/reinitialize", "{}", []string{"Authorization", "Bearer 0123456789abcdef"}, 501, "/reinitialize"},
		"unknown question":          {open, "GET", "/repmgr/v1/nothing", "", nil, 404, "/repmgr/v1/status"},
		"question without a node":   {open, "GET", "/repmgr/v1/why-not", "", nil, 400, "which node"},
		"nobody answers":            {open, "GET", "/repmgr/v1/status", "", nil, 503, "error"},
	} {
		t.Run(name, func(t *testing.T) { // one after the other, as one change at a time may be under way
			code, text := request(t, q.method, q.url+q.path, q.body, q.header...)
			assert.Equal(t, q.code, code, text)
			assert.Contains(t, text, q.text)
		})
	}
}

// To a client that names JSON, a change that is refused says why in fields; to all others it says the same in sentences.
func TestRefusalsAsJSON(t *testing.T) {
	t.Parallel()
	stuck := []plan.Obstacle{{Code: "target_lags", Node: "node2", Text: "it is far behind", Hint: "Wait for it.", Force: true}}
	for name, test := range map[string]struct {
		err    error
		accept []string
		code   int
		want   string
	}{
		"text":            {&inTheWay{repmgr.WithHint(repmgr.ErrRefused, "wait"), stuck}, nil, 412, "refused\nwait\n"},
		"all is accepted": {refuse(404, "none"), []string{"*/*"}, 404, "none\n"},
		"JSON is not":     {refuse(404, "none"), []string{"text/plain, application/json;q=0"}, 404, "none\n"},
		"another JSON":    {refuse(404, "none"), []string{"application/problem+json"}, 404, "none\n"},
		"obstacles": {
			&inTheWay{repmgr.WithHint(repmgr.ErrRefused, "wait"), stuck},
			[]string{"application/json"},
			412,
			`{"error":"refused","hint":"wait","obstacles":[{"code":"target_lags","node":"node2","text":"it is far behind","hint":"Wait for it.","force_overrides":true}]}` + "\n",
		},
		"no obstacle": {&inTheWay{errors.New("no answer"), nil}, []string{"text/html", "Application/JSON; charset=utf-8"}, 503, `{"error":"no answer"}` + "\n"},
		"a failover": {
			repmgr.WithHint(&repmgr.RefusalError{Refusal: election.RefusedNoMajority, Health: election.HealthSilent, Detail: "1 of 3"}, "start them"),
			[]string{"text/html;q=0.9,application/json;q=0.5"},
			412,
			`{"error":"no failover: ` + string(election.RefusedNoMajority) + ` (1 of 3)","hint":"start them","refusal":"` + string(election.RefusedNoMajority) + `","health":"` + string(election.HealthSilent) + `"}` + "\n",
		},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/switchover", http.NoBody)
		for _, a := range test.accept {
			r.Header.Add("Accept", a)
		}
		refused(w, r, test.err)
		assert.Equal(t, test.code, w.Code, name)
		assert.Equal(t, test.want, w.Body.String(), name)
	}
	at := serve(t, view(1), Options{})
	_, text := request(t, "POST", "http://"+at+"/switchover", "", "Accept", "application/json")
	assert.JSONEq(t, `{"error":"this is not allowed to anybody: set http_token_file, or http_client_ca"}`, text)
}

// Only listed addresses change anything, with the right password, and whoever is not listed can not try any. Questions stay open.
func TestAllowlist(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600))
	of := func(list ...string) (all []netip.Prefix) {
		for _, text := range list {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	configured := repmgr.Config{NodeID: 1, Conninfo: "host=127.0.0.1 port=1 dbname=none user=none", HTTPAllowlist: of("192.0.2.0/24")}
	c, err := repmgr.New(configured)
	require.NoError(t, err)
	for _, test := range []struct {
		list []netip.Prefix // none: that of the cluster
		from string
		may  bool
	}{
		{nil, "192.0.2.9:5", true},
		{nil, "[::ffff:192.0.2.9]:5", true},
		{nil, "192.0.3.9:5", false},
		{nil, "127.0.0.1:5", false},
		{nil, "@", false},
		{nil, "", false},
		{of("10.0.0.7/32", "fd00::/8"), "10.0.0.7:5", true},
		{of("10.0.0.7/32", "fd00::/8"), "10.0.0.8:5", false},
		{of("10.0.0.7/32", "fd00::/8"), "[fd12::1]:5", true},
		{of("10.0.0.7/32"), "192.0.2.9:5", false},
		{of("fe80::/10"), "[fe80::1%eth0]:5", true},
		{of("::/0"), "[2001:db8::1]:5", true},
		{of("::/0"), "10.0.0.7:5", false},
		{of("0.0.0.0/0"), "[::ffff:10.0.0.7]:5", true},
		{of("0.0.0.0/0"), "[::1]:5", false},
		{[]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)}, "10.1.2.3:5", true},
		{[]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)}, "11.1.2.3:5", false},
		{of("10.1.2.3/8"), "10.9.9.9:5", true},
		{[]netip.Prefix{{}}, "10.9.9.9:5", false},
	} {
		h := newHandler(func() health.View { return view(1) }, Options{Cluster: func() *repmgr.Cluster { return c }, TokenFile: token, Allowlist: test.list})
		ask := func(method, path, password string) (int, string) {
			w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("{}"))
			r.RemoteAddr, r.TLS = test.from, &tls.ConnectionState{}
			r.Header.Set("Authorization", "Bearer "+password)
			h.ServeHTTP(w, r)
			return w.Code, w.Body.String()
		}
		what := fmt.Sprint(test)
		code, text := ask("POST", "/switchover", "0123456789abcdef")
		if test.may {
			assert.Equal(t, 400, code, what+text) // it has named no leader
		} else {
			assert.Equal(t, 403, code, what+text)
			assert.Contains(t, text, "http_allowlist", what)
			code, _ = ask("POST", "/switchover", "wrong")
			assert.Equal(t, 403, code, what)
		}
		code, _ = ask("GET", "/primary", "")
		assert.Equal(t, 200, code, what)
	}
}

// What is scheduled, and who has paused, is seen by all nodes.
func TestScheduledAndPaused(t *testing.T) {
	t.Parallel()
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for id := registry.NodeID(1); id <= 3; id++ {
		v := view(id)
		v.Peers[0].Handover = election.Handover{ID: "x", Term: 5, Target: 3, Start: start, Until: start.Add(time.Second)}
		for i := range v.Peers {
			v.Peers[i].Paused, v.Peers[i].PauseSeq, v.Peers[i].PausedBy = true, 4, election.Pause{Seq: 4, Since: start, By: "ada@desk"}
		}
		assert.Equal(t, &scheduledSwitchover{"2030-01-02T03:04:05+00:00", "node1", "node3"}, newMembers(v).Scheduled)
		b := newBody(v, "")
		assert.Equal(t, []any{start, "ada@desk"}, []any{b.Repmgr.PausedSince, b.Repmgr.PausedBy})
		shown := fmt.Sprint(banners(v, nil))
		assert.Contains(t, shown, "Failover is paused since "+dayAndClock(start)+" by ada@desk:")
		assert.Contains(t, shown, "A switchover from node1 to node3 is scheduled. It begins at "+dayAndClock(start))
		v.Peers[0].Handover.Begun = true
		v.Peers[0].PauseSeq, v.Peers[0].Paused = 5, false
		assert.Nil(t, newMembers(v).Scheduled)
		b = newBody(v, "")
		assert.Empty(t, b.Repmgr.PausedBy)
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	s := newSecret(path)
	_, err := s.read()
	require.ErrorContains(t, err, "no such file")
	for content, want := range map[string]string{"short\n": "16 are the least", "": "16 are the least"} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err = s.read()
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef"), 0o600))
	require.NoError(t, os.Chmod(path, 0o644))
	_, err = s.read()
	require.ErrorContains(t, err, "chmod")
	require.NoError(t, os.Chmod(path, 0o600))
	value, err := s.read()
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", string(value))
	require.NoError(t, os.WriteFile(path, []byte("another one that is longer"), 0o600))
	value, err = s.read()
	require.NoError(t, err)
	require.Equal(t, "another one that is longer", string(value))
	require.NoError(t, os.Chmod(path, 0o644))
	_, err = s.read()
	require.ErrorContains(t, err, "chmod", "its time and its size are the same")
}

// A file that can not be read to its end holds nobody up: what was made before stays in force, and the next state of the file counts.
func TestFilesThatBlock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	require.ErrorContains(t, CheckToken(path), "is no regular file")

	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("first"), 0o600))
	blocked, release := make(chan struct{}), make(chan struct{})
	m := &made[string]{paths: []string{path}, from: func(files []file) (string, error) {
		if string(files[0].content) == "blocks" {
			close(blocked)
			<-release
		}
		return string(files[0].content), nil
	}}
	value, err := m.get()
	require.NoError(t, err)
	require.Equal(t, "first", value)
	require.NoError(t, os.WriteFile(path, []byte("blocks"), 0o600))
	for range 100 {
		value, err = m.get()
		require.NoError(t, err)
		require.Equal(t, "first", value)
	}
	<-blocked
	close(release)
	require.Eventually(t, func() bool { value, err = m.get(); return err == nil && value == "blocks" }, 20*time.Second, time.Millisecond)
}

// Idle connections keep nobody out, and a reader that does not read holds nothing up.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	at := serve(t, view(1), Options{})
	for i := range 3 * connections {
		c, err := net.Dial("tcp", at)
		require.NoError(t, err)
		defer c.Close()
		if i%2 == 0 { // it has begun a request, and never ends it
			_, _ = c.Write([]byte("G"))
		}
	}
	code, _ := request(t, "GET", "http://"+at+"/primary", "")
	assert.Equal(t, 200, code)
}

func TestEvents(t *testing.T) {
	t.Parallel()
	var events Events
	at := serve(t, view(1), Options{Events: &events})
	require.NoError(t, events.Notify(t.Context(), repmgr.Event{Type: "before", PeerConninfo: "host=secret"}))
	read := func(last string) (next func() string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+"/events", http.NoBody)
		require.NoError(t, err)
		r.Header.Set("Last-Event-ID", last)
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { _ = res.Body.Close() })
		lines := bufio.NewScanner(res.Body)
		return func() string {
			for lines.Scan() {
				if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
					require.True(t, lines.Scan())
					kind := lines.Text()
					require.True(t, lines.Scan())
					require.NotContains(t, lines.Text(), "secret")
					return text + " " + kind
				}
			}
			return "ended"
		}
	}
	now := read("")
	old := read("12345-1") // of another process: all that there is
	first := old()
	assert.Regexp(t, `^\d+-1 event: before$`, first)
	require.NoError(t, events.Notify(t.Context(), repmgr.Event{Type: "after"}))
	assert.Regexp(t, `^\d+-2 event: after$`, now())
	assert.Regexp(t, `^\d+-2 event: after$`, old())
	id, _, _ := strings.Cut(first, " ")
	assert.Regexp(t, `^\d+-2 event: after$`, read(id)())
}

// Questions that are the same are asked once.
func TestQuestions(t *testing.T) {
	t.Parallel()
	q := newQuestions()
	asked, answered := make(chan struct{}, 10), make(chan struct{})
	ask := func(context.Context) (any, error) {
		asked <- struct{}{}
		<-answered
		return "yes", t.Context().Err()
	}
	results := make(chan any, 3)
	for range 3 {
		go func() { _, a := q.ask(t.Context(), "same", ask); results <- a }()
	}
	<-asked
	close(answered)
	for range 3 {
		assert.Equal(t, "yes", <-results)
	}
	assert.Empty(t, asked)
}

// BenchmarkPrimary is the time of a health check over a connection that stays open.
func BenchmarkPrimary(b *testing.B) {
	v := view(1)
	look := func() health.View { v.At = time.Now(); v.LookedAt = v.At; return v }
	ctx, stop := context.WithCancel(b.Context())
	at, ended := make(chan string, 1), make(chan error, 1)
	s := &Server{Listen: "127.0.0.1:0", Handler: newHandler(look, Options{})}
	go func() { ended <- s.Serve(ctx, func(a net.Addr) { at <- a.String() }) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}()
	url := "http://" + <-at + "/primary"
	for b.Loop() {
		res, err := http.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
}
