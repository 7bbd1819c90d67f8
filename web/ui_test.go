package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/topology"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
	"github.com/pgrepmgr/repmgr/wal"
)

// visit asks a handler as a client on this machine does.
func visit(t *testing.T, h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:8008"+path, http.NoBody)
	r.RemoteAddr = "127.0.0.1:4711"
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i] == "From" {
			r.RemoteAddr = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A browser sees the dashboard at /, with the code of the health check. Everything else gets what Patroni answers.
func TestRootIsAHealthCheckForAllButBrowsers(t *testing.T) {
	t.Parallel()
	h := play(t, scenes()["healthy"], "")
	for name, header := range map[string][]string{
		"no Accept": nil, "curl": {"Accept", "*/*"}, "JSON": {"Accept", "application/json, text/*"},
		"a monitoring that takes HTML, with a password of its own": {"Accept", "text/html, image/gif, */*; q=.2", "Authorization", "Basic eDp5"},
		"a script in a page": {"Accept", "text/html", "Sec-Fetch-Dest", "empty"}, "a browser elsewhere": {"Sec-Fetch-Dest", "document", "From", "10.0.0.9:4711"},
	} {
		w := visit(t, h, "GET", "/", header...)
		assert.Equal(t, 200, w.Code, name)
		assert.Equal(t, "application/json", w.Header().Get("Content-Type"), name)
		assert.Contains(t, w.Body.String(), `"patroni"`, name)
		assert.Empty(t, w.Header().Get("Content-Security-Policy"), name)
	}
	for _, method := range []string{"HEAD", "OPTIONS"} {
		assert.NotContains(t, visit(t, h, method, "/", "Sec-Fetch-Dest", "document").Header().Get("Content-Type"), "html", method)
	}
	w := visit(t, h, "GET", "/", "Sec-Fetch-Dest", "document")
	assert.Equal(t, 200, w.Code)
	assert.Contains(t, w.Body.String(), "node1 is the primary of term 5.")
	standby := newHandler(func() health.View { return view(2) }, Options{})
	w = visit(t, standby, "GET", "/", "Sec-Fetch-Dest", "document")
	assert.Equal(t, 503, w.Code)
	assert.Contains(t, w.Body.String(), `<main data-event="0">`)
	assert.Equal(t, 200, visit(t, standby, "GET", "/ui").Code)
	assert.Contains(t, visit(t, h, "GET", "/primary", "Sec-Fetch-Dest", "document").Body.String(), `"patroni"`)
}

var (
	links   = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	foreign = regexp.MustCompile(`(?:https?:)?//[a-z0-9]`)
)

// All that a page loads, and all that it leads to, comes from here, and answers.
func TestPages(t *testing.T) {
	t.Parallel()
	for name, s := range scenes() {
		h := play(t, s, "/repmgr")
		open, done := []string{"/repmgr/ui", "/repmgr/ui/failovers/4", "/repmgr/ui/failovers/1", "/repmgr/ui/nothing", "/repmgr/ui/failovers/x"}, map[string]bool{}
		for len(open) > 0 {
			path := open[0]
			open = open[1:]
			if done[path] {
				continue
			}
			done[path] = true
			w := visit(t, h, "GET", path)
			if w.Code == 204 {
				continue // /ui/ask has no content
			}
			body := w.Body.String()
			assert.Contains(t, []int{200, 404}, w.Code, "%s %s: %s", name, path, body) // 404: there is no cluster to ask
			assert.Equal(t, policy, w.Header().Get("Content-Security-Policy"), path)
			assert.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"), path)
			assert.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"), path)
			assert.NotContains(t, body, "ZgotmplZ", path)
			assert.NotContains(t, body, "password=", path)
			if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
				continue
			}
			assert.Contains(t, body, `data-base="/repmgr/ui"`, path)
			assert.NotRegexp(t, `<style|<script>| style=| on[a-z]+="`, body, path)
			for _, link := range links.FindAllStringSubmatch(body, -1) {
				require.True(t, strings.HasPrefix(link[1], "/repmgr/ui"), "%s: %s", path, link[1])
				open = append(open, strings.ReplaceAll(link[1], "&amp;", "&"))
			}
			assert.Empty(t, foreign.FindAllString(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), -1), path)
		}
		assert.Greater(t, len(done), 12, name)
	}
}

// What the dashboard says of each state.
func TestDashboard(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"healthy": {"node1 is the primary of term 5.", "If node1 died now, node2 would win", "this primary may write until", "3 of 3 answer, and 2 are a majority", "59 checks: all is well.", "Term 4", "standby_recovery", "/ui/plan?node=node2", `<noscript><img src="/ui/ask"`, `<main data-event="3">`, "standby: all is well"},
		"lagging": {"312 MB", "300 MB", "disk_fills", "accepted until 2026-12-31", "the disk is full in 31 hours"},
		"cascade": {"witness", "node4", "5 of 5 answer"},
		"paused":  {"Failover is paused", "repmgr -f /etc/repmgr.conf service unpause", `id="forecast" class="bad"`, "refuses connections, last seen 3 min ago"},
		"down":    {"No node answers this daemon.", "No primary is in office. The last one was node1, of term 5, last seen 12 min ago.", "Asked 12 min ago: it may be otherwise now.", "As this daemon sees it, nobody would take its place: ", "What was so 12 min ago", `class="bad old"`, "The last attempt had no answer: connect to node &#34;node1&#34;", "Term 4"},
	} {
		body := visit(t, play(t, scenes()[name], ""), "GET", "/ui").Body.String()
		for _, text := range want {
			assert.Contains(t, body, text, name)
		}
		assert.NotContains(t, body, "secret", name)
	}
}

// A daemon of another node knows the lease from what the daemon of the primary has said.
func TestLeaseText(t *testing.T) {
	t.Parallel()
	left, over := 2.1, -1.0
	for want, c := range map[string]struct {
		node registry.NodeID
		said *repmgr.Announcement
	}{
		"this primary may write until": {1, nil}, "the daemon of node1 has said nothing of one": {2, nil},
		"5 s ago its daemon said that node1 may write for 2.1 s": {2, &repmgr.Announcement{LeaseLeft: &left}},
		"node1 has no contact to a majority any more":            {2, &repmgr.Announcement{LeaseLeft: &over}},
	} {
		v := view(c.node)
		why := remembered{Document: repmgr.Reasoning{Monitors: []repmgr.MonitorWord{{ID: 1, Name: "node1", Monitor: c.said}}}, At: v.At.Add(-5 * time.Second)}
		assert.Contains(t, leaseText(v, why), want)
		if why.Old = true; c.said != nil {
			assert.Equal(t, "not known now: the daemon of node1 was asked 5 s ago", leaseText(v, why))
		}
	}
	v := view(1)
	v.Automatic, v.Peers = false, nil
	assert.Equal(t, "none: this daemon takes no part in elections", leaseText(v, remembered{}))
	v.Yields = true
	assert.Equal(t, "the other repmgrd of this node keeps it", leaseText(v, remembered{}))
}

// What was answered long ago, or before an event, or what is refuted by what this daemon sees, is not shown as of now.
func TestForecastIsOfNow(t *testing.T) {
	t.Parallel()
	node2Dies := func(v *health.View) { v.Peers[1].Answer = election.Refused }
	pause := func(v *health.View) {
		for i := range v.Peers {
			v.Peers[i].Paused, v.Peers[i].PauseSeq = true, 4
		}
	}
	for name, c := range map[string]struct {
		asked  time.Duration
		event  bool
		change func(v *health.View)
		old    bool
		mood   topology.Mood
		now    string
	}{
		"just now":         {5 * time.Second, false, func(*health.View) {}, false, topology.Well, ""},
		"long ago":         {time.Hour, false, func(*health.View) {}, true, topology.Unknown, "As this daemon sees it, node2 would win."},
		"before an event":  {5 * time.Second, true, func(*health.View) {}, true, topology.Unknown, "node2 would win"},
		"then paused":      {5 * time.Second, false, pause, true, topology.Bad, "As this daemon sees it, nobody would take its place: failover is paused"},
		"the winner died":  {5 * time.Second, false, node2Dies, true, topology.Bad, "nobody would take its place"},
		"by hand since":    {time.Hour, false, func(v *health.View) { v.Automatic, v.Peers = false, nil }, true, topology.Unknown, ""},
		"of another term":  {5 * time.Second, false, func(v *health.View) { v.Rule.Term++ }, true, topology.Unknown, "node2 would win"},
		"no rule is known": {time.Hour, false, func(v *health.View) { v.Rule = election.Rule{} }, true, topology.Unknown, ""},
	} {
		s := scenes()["healthy"]
		s.asked = c.asked
		h := play(t, s, "")
		v := later(s.view)
		c.change(&v)
		if c.event {
			h.o.Events.at = v.At
		}
		f := newForecast(h.recall("v1/explain", v.At), v, h.foresee(v))
		assert.Equal(t, c.old, f.Old, name)
		assert.Equal(t, c.mood, f.Mood, name)
		assert.Contains(t, f.Now, c.now, name)
		assert.Equal(t, c.now == "", f.Now == "", name)
		why := h.recall("v1/why", v.At)
		assert.Equal(t, c.asked > time.Minute || c.event, why.Old, name)
	}
	s := scenes()["healthy"]
	v := s.view
	h := newHandler(func() health.View { return v }, Options{})
	assert.Equal(t, "As this daemon sees it, node2 would win.", newForecast(h.recall("v1/explain", v.At), v, h.foresee(v)).Now, "before it was asked")
}

// What a daemon says that takes no part in elections, that has just been started, and that of a witness.
func TestFactsAndBanners(t *testing.T) {
	t.Parallel()
	said := func(v health.View) (all string) {
		for _, b := range banners(v, repmgr.Explanation{}) {
			all += b.Text + "\n"
		}
		for _, f := range facts(v, remembered{}, nodesOf(v)) {
			all += f.Name + ": " + f.Text + "\n"
		}
		return all
	}
	v := view(1)
	assert.Contains(t, said(v), "Votes: 3 of 3 answer, and 2 are a majority; without node1 it would be 2\n")
	v.Peers[2].SeenAt = v.At.Add(-time.Minute) // this process did not run
	assert.Contains(t, said(v), "Votes: 2 of 3 answer")
	v.Automatic, v.Peers = false, nil
	assert.Contains(t, said(v), "takes no part in elections. It sees")
	assert.NotContains(t, said(v), "Votes:")
	assert.Contains(t, banners(v, repmgr.Explanation{Manual: true})[0].Text, "Nobody takes over by itself.")
	v.LookedAt = time.Time{}
	assert.NotContains(t, said(v), "failover=manual")

	w := view(3)
	w.Records[2].Role, w.Peers[2].Role, w.Peers[2].Running = registry.RoleWitness, election.Witness, election.Primary
	w.Peers[0].Answer, w.Peers[0].SeenAt = election.Refused, w.At.Add(-20*time.Second)
	_, text := office(w)
	assert.Equal(t, "No primary is in office. The last one was node1, of term 5, last seen 20 s ago.", text)
	assert.Equal(t, "nobody is known to have one", leaseText(w, remembered{}))

	assert.Contains(t, daemonText(map[int32]repmgr.MonitorWord{1: {Monitor: &repmgr.Announcement{Phase: "standby", Reason: "all is well", Age: 90}}}, 1), "has said nothing for 1m30s; before that: standby")
	assert.Equal(t, "all of it: there is no standby", riskText(v, nil))
}

// Names and texts of other machines stay text.
func TestPagesEscape(t *testing.T) {
	t.Parallel()
	const evil = `"><script>alert(1)</script>`
	s := scenes()["lagging"]
	for i := range s.view.Records {
		s.view.Records[i].Name += evil
		s.view.Records[i].Location = evil
	}
	s.view.Cluster, s.view.Node, s.view.Reason = evil, evil, evil
	s.view.Peers[1].Candidate, s.view.Peers[1].NoPledge, s.view.Peers[2].Answer = evil, evil, evil
	s.doctor.Findings[0].Text, s.doctor.Findings[0].Remedy, s.doctor.Slots[0].Slot = evil, evil, evil
	h := play(t, s, "")
	require.NoError(t, h.o.Events.Notify(t.Context(), repmgr.Event{Type: evil, Node: evil, Details: evil, At: time.Now()}))
	f := failoversOf(time.Now())
	f[0].Former, f[0].Reason, f[0].Coordinator, f[0].Steps[0].Evidence, f[0].Steps[0].Step = evil, evil, evil, evil, evil
	h.memory.put("v1/failovers", f, nil, time.Now())
	for _, path := range []string{"/ui", "/ui/failovers/5", "/ui/failovers/4", "/ui/" + strings.ReplaceAll(evil, " ", ""), "/ui/topology.svg"} {
		body := visit(t, h, "GET", path).Body.String()
		assert.NotContains(t, strings.ReplaceAll(body, `<script type="module" src="/ui/live.js">`, ""), "<script", path)
		assert.Contains(t, body, "script", path)
	}
}

// The pages of answers, from documents as the cluster gives them.
func TestAnswerPages(t *testing.T) {
	t.Parallel()
	v := view(1)
	h := newHandler(func() health.View { return v }, Options{})
	f := h.frame(v, "title")
	w := httptest.NewRecorder()
	h.page(w, 200, "plan", planPage{frame: f, Plan: plan.Plan{
		Steps:     []plan.Step{{Name: "stop", Node: "node1", Effect: "its server is shut down", Check: "it is down", Undo: "it is started again"}},
		Obstacles: []plan.Obstacle{{Code: "lag", Node: "node2", Text: "it is far behind", Hint: "Wait for it.", Force: true}}, Warnings: []plan.Obstacle{{Text: "no archive"}},
	}, Command: command(v, "standby switchover --to=2"), Scheduled: "One is asked for already.", Cancel: command(v, "standby switchover --cancel")})
	for _, text := range []string{"One is asked for already.", "repmgr standby switchover --cancel", "its server is shut down", "node2: it is far behind", "Wait for it.", "--force overrides it", "no archive", "repmgr standby switchover --to=2"} {
		assert.Contains(t, w.Body.String(), text)
	}
	w = httptest.NewRecorder()
	age := 1.5
	h.page(w, 200, "matrix", newMatrixPage(f, repmgr.Matrix{
		Nodes: []report.MatrixNode{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2"}},
		Cells: []report.Cell{{From: 1, To: 1, Contact: report.ContactYes}, {From: 1, To: 2, Contact: report.ContactNo, Why: "is silent", Age: &age}, {From: 2, To: 1, Contact: report.ContactYes}, {From: 2, To: 2, Contact: report.ContactUnknown}},
	}))
	for _, text := range []string{"1.5 s", "node1 does not reach node2: is silent"} {
		assert.Contains(t, w.Body.String(), text)
	}
	w = httptest.NewRecorder()
	h.page(w, 200, "doctor", doctorPage{f, newExamination(remembered{Document: doctor.Report{Checks: 3}, At: v.At}, v.At)})
	assert.Contains(t, w.Body.String(), "3 checks: all is well.")
}

// The parts of a bar fill it, and are in the order of time.
func TestFailoverRow(t *testing.T) {
	t.Parallel()
	r := newFailoverRow(failoversOf(time.Now())[1])
	require.Len(t, r.Phases, 7)
	assert.Equal(t, "noticing", r.Phases[0].Name)
	assert.Equal(t, 17*time.Millisecond, r.Phases[0].Took)
	assert.Equal(t, "first commit", r.Phases[6].Name)
	at := 0
	for _, p := range r.Phases {
		assert.Equal(t, at, p.X)
		at += p.Width
	}
	assert.Equal(t, 1000, at)
	assert.Equal(t, 148*time.Millisecond, r.Phases[6].End)
	assert.Empty(t, newFailoverRow(failoversOf(time.Now())[2]).Phases)
	assert.Equal(t, "40 kB of WAL or more were left behind", r.Lost)
	none := int64(0)
	assert.Equal(t, "no WAL was left behind, as far as it was seen", newFailoverRow(repmgr.FailoverRecord{LostBytes: &none}).Lost)
	f := repmgr.FailoverRecord{Steps: []repmgr.FailoverStep{{Step: "ruled", After: 400}, {Step: "another", After: 300}, {Step: "surveyed", After: 100}}}
	other := newFailoverRow(f)
	assert.Equal(t, []string{"surveyed", "another", "ruled"}, []string{other.Phases[0].Step, other.Phases[1].Step, other.Phases[2].Step})
	assert.Equal(t, []time.Duration{100, 200, 100}, []time.Duration{other.Phases[0].Took, other.Phases[1].Took, other.Phases[2].Took})
	assert.Equal(t, r.Phases[6].Shade, other.Phases[2].Shade, "the same phase has the same colour everywhere")
	style, err := uiFiles.ReadFile("ui/style.css")
	require.NoError(t, err)
	for i := range len(shades) + 1 {
		assert.Contains(t, string(style), fmt.Sprintf(".shade%d {", i))
	}
}

// Where there is no lease, none is spoken of.
func TestLease(t *testing.T) {
	t.Parallel()
	says := func(mode repmgr.FailoverMode) remembered {
		return remembered{At: time.Now(), Document: repmgr.Reasoning{Monitors: []repmgr.MonitorWord{{ID: 1, Monitor: &repmgr.Announcement{Mode: mode}}}}}
	}
	paused := func(id registry.NodeID) health.View {
		v := view(id)
		v.Peers[1].Paused = true
		return v
	}
	assert.Equal(t, "none: failover=manual on node1", leaseText(view(2), says(repmgr.FailoverManual)))
	assert.Equal(t, "not known: the daemon of node1 has said nothing of one", leaseText(view(2), says(repmgr.FailoverAutomatic)))
	assert.Equal(t, "none while failover is paused", leaseText(paused(2), says(repmgr.FailoverAutomatic)))
	v := paused(1)
	assert.Contains(t, leaseText(v, remembered{}), "may write until", "it was paused on too few nodes")
	v.Lease = health.Lease{}
	assert.Equal(t, "none while failover is paused", leaseText(v, remembered{}))
}

// A majority that is there now, and would not be without the primary, is not said to be missing.
func TestMajorityWithoutThePrimary(t *testing.T) {
	t.Parallel()
	s := scenes()["healthy"]
	s.view.Peers[2].Answer, s.view.Peers[2].SeenAt = election.Refused, s.view.At.Add(-time.Minute)
	body := visit(t, play(t, s, ""), "GET", "/ui").Body.String()
	assert.Contains(t, body, "without node1 no majority of the voters would answer")
	assert.NotContains(t, body, "no majority of the voters answers")
	assert.Contains(t, body, "2 of 3 answer, and 2 are a majority; without node1 it would be 1")
}

// There is one primary on a page, also where a former one is down.
func TestFormerPrimary(t *testing.T) {
	t.Parallel()
	v := view(3)
	v.Rule.Primary, v.Peers[1].Running, v.Peers[0].Answer = 2, election.Primary, election.NotAccepting
	nodes := nodesOf(v)
	assert.Equal(t, []string{"was primary", "primary", "standby"}, []string{nodes[0].Runs, nodes[1].Runs, nodes[2].Runs})
	assert.Contains(t, string(pictureOf(v, "").SVG()), ">was primary<")
	v.Rule.Primary, v.Peers[1].Running = 1, election.Standby
	assert.Equal(t, "primary", nodesOf(v)[0].Runs, "nobody has taken its place")
}

// A failed question does not take away the last answer.
func TestMemory(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Now()
	m.put("q", "yes", nil, now)
	m.put("q", nil, errors.New("nobody answers"), now.Add(time.Second))
	want := remembered{Document: "yes", At: now, Tried: now.Add(time.Second), Failed: "nobody answers"}
	assert.Equal(t, want, m.get("q"))
	m.put("q", "older", nil, now.Add(-time.Second)) // it took longer than the next one
	assert.Equal(t, want, m.get("q"))
	m.put("q", "no", nil, now.Add(2*time.Second))
	assert.Empty(t, m.get("q").Failed)
}

// An answer is as old as the question, whoever waits for it. Who goes away, or is turned away, does not spoil what is
// remembered; and a panic in a question is the end of that question only.
func TestQuestionsAreRemembered(t *testing.T) {
	t.Parallel()
	h := newHandler(func() health.View { return view(1) }, Options{})
	asked, release := make(chan time.Time, 1), make(chan struct{})
	slow := h.remembering("q", func(context.Context) (any, error) {
		asked <- time.Now()
		<-release
		return "yes", nil
	})
	first, leave := context.WithCancel(t.Context())
	answers := make(chan any, 2)
	go func() { _, a := h.questions.ask(first, "q", slow); answers <- a }()
	began := <-asked
	leave() // it is asked to the end all the same
	go func() { _, a := h.questions.ask(t.Context(), "q", slow); answers <- a }()
	close(release)
	assert.Equal(t, []any{"yes", "yes"}, []any{<-answers, <-answers})
	got := h.memory.get("q")
	assert.Equal(t, "yes", got.Document)
	assert.False(t, got.At.After(began))

	for range askAtOnce {
		h.questions.free <- struct{}{}
	}
	code, _ := h.questions.ask(t.Context(), "other", slow)
	assert.Equal(t, 503, code)
	assert.Equal(t, got, h.memory.get("q"))
	for range askAtOnce {
		<-h.questions.free
	}
	code, document := h.questions.ask(t.Context(), "panics", h.remembering("q", func(context.Context) (any, error) { panic("a fault") }))
	assert.Equal(t, 503, code)
	assert.Contains(t, document.(failure).Error, "see the log of repmgrd")
	assert.Equal(t, "yes", h.memory.get("q").Document)
	assert.Contains(t, h.memory.get("q").Failed, "see the log of repmgrd")
}

// Whoever wants to know only whether a page is there has no other node asked.
func TestHeadAsksNobody(t *testing.T) {
	t.Parallel()
	c, err := repmgr.New(repmgr.Config{NodeID: 1, Conninfo: "host=127.0.0.1 port=1 user=x dbname=x connect_timeout=2"})
	require.NoError(t, err)
	h := newHandler(func() health.View { return view(1) }, Options{Cluster: func() *repmgr.Cluster { return c }})
	for path, code := range map[string]int{
		"": 200, "/ask": 204, "/explain": 200, "/why": 200, "/why-not?node=node2": 200, "/why-not": 400, "/why-not?node=x": 400, "/doctor": 200, "/matrix": 200, "/plan?node=node2": 200,
		"/failovers/7": 200, "/failovers/x": 404, "/topology.svg": 200, "/nothing": 404,
	} {
		w := visit(t, h, "HEAD", "/ui"+path)
		assert.Equal(t, code, w.Code, path)
		assert.Equal(t, code != 204, w.Header().Get("Content-Security-Policy") != "", path)
		assert.Empty(t, h.questions.asked, path)
	}
	assert.Equal(t, 503, visit(t, h, "GET", "/ui/why").Code)
	assert.Len(t, h.questions.asked, 1)
}

// Events make a question be asked again, and many events do not make it be asked all the time. Clocks of other machines
// play no part.
func TestDue(t *testing.T) {
	t.Parallel()
	q, now := dashboardQuestion{"q", 9 * time.Second}, time.Now()
	tried := func(ago int) remembered { return remembered{Tried: now.Add(-time.Duration(ago) * time.Second)} }
	assert.True(t, due(remembered{}, q, time.Time{}, now))
	assert.True(t, due(tried(9), q, time.Time{}, now))
	assert.False(t, due(tried(8), q, now.Add(-10*time.Second), now))
	assert.True(t, due(tried(3), q, now.Add(-time.Second), now))
	assert.False(t, due(tried(2), q, now.Add(-time.Second), now))
	var all Events
	require.NoError(t, all.Notify(t.Context(), repmgr.Event{At: now.Add(time.Hour)}))
	number, at := all.last()
	assert.Equal(t, int64(1), number)
	assert.WithinDuration(t, now, at, time.Minute)
}

// Who is not on this machine, and shows no password, sees nothing. A password is asked for over TLS only.
func TestPagesAreForThoseWhoMayAsk(t *testing.T) {
	t.Parallel()
	h := play(t, scenes()["healthy"], "")
	for _, path := range []string{"/ui", "/ui/explain", "/ui/topology.svg", "/ui/failovers/4", "/ui/ask"} {
		w := visit(t, h, "GET", path, "From", "10.0.0.9:4711")
		assert.Equal(t, 403, w.Code, path)
		assert.NotContains(t, w.Body.String(), "node2", path)
		assert.Empty(t, w.Header().Get("WWW-Authenticate"), path)
	}
	assert.Contains(t, visit(t, h, "GET", "/ui", "From", "10.0.0.9:4711").Body.String(), "http://127.0.0.1:8008/ui")
	for _, path := range []string{"/ui", "/ui/doctor", "/ui/topology.svg", "/events", "/repmgr/v1/monitor"} {
		for header, code := range map[[2]string]int{{"cross-site", "image"}: 403, {"same-site", "empty"}: 403, {"cross-site", "iframe"}: 403, {"same-origin", "empty"}: 200, {"none", "document"}: 200, {"cross-site", "document"}: 200, {}: 200} {
			ctx, cancel := context.WithCancel(t.Context())
			if cancel(); path == "/ui/doctor" && code == 200 {
				code = 404 // there is no cluster to ask
			}
			r := httptest.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:8008"+path, http.NoBody)
			r.RemoteAddr = "127.0.0.1:4711"
			r.Header.Set("Sec-Fetch-Site", header[0])
			r.Header.Set("Sec-Fetch-Dest", header[1])
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			assert.Equal(t, code, w.Code, "%s %s", path, header)
			assert.Equal(t, "same-origin", w.Header().Get("Cross-Origin-Resource-Policy"), path)
		}
	}
	assert.Equal(t, 200, visit(t, h, "GET", "/primary", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image").Code)
	assert.Equal(t, 200, visit(t, h, "GET", "/ui/style.css", "From", "10.0.0.9:4711").Code)
}

// Where failover is manual, a daemon sees its own server, who streams from it, and the primary.
func TestPictureByHand(t *testing.T) {
	t.Parallel()
	v := view(2)
	v.Automatic, v.Peers, v.Rule = false, nil, election.Rule{}
	v.Records[1].UpstreamID, v.Records[2].UpstreamID = 1, 1
	nodes := nodesOf(v)
	assert.Equal(t, []string{"answers", "answers", "not asked: failover=manual"}, []string{nodes[0].Seen, nodes[1].Seen, nodes[2].Seen})
	assert.True(t, nodes[0].Writes)
	assert.Equal(t, int64(2000), nodes[1].Unplayed)

	v.Upstream.SeenAt = v.At.Add(-time.Minute) // it was asked, and does not answer
	nodes = nodesOf(v)
	assert.Equal(t, []string{"bad", "does not answer as primary, last seen 60 s ago"}, []string{string(nodes[0].Mood), nodes[0].Seen})
	v.Rule = election.Rule{Term: 5, Primary: 1, Voters: []int32{1, 2, 3}}
	_, text := office(v)
	assert.Contains(t, text, "The last one was node1, of term 5, last seen 60 s ago")
	v.Upstream = health.Upstream{} // the daemon was started since
	assert.Equal(t, "does not answer as primary, never seen", nodesOf(v)[0].Seen)

	v = view(1) // it was promoted, and its former primary had written more
	v.Automatic, v.Peers, v.Rule, v.Upstream.LSN = false, nil, election.Rule{}, 9000
	v.Records[1].UpstreamID = 1
	v.Local.Senders = []registry.WALSender{{ApplicationName: "node2", State: "streaming", FlushedLSN: 4900, ReplayedLSN: 4900}}
	assert.Equal(t, int64(100), nodesOf(v)[1].Behind)
}

// How far a standby is behind is known only while it and the primary are seen, and where its WAL is a part of that of the
// primary. Otherwise it might be taken for a standby that has everything.
func TestBehindIsKnownOrNot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(v *health.View, p *election.Peer)
		behind int64
		risk   string
	}{
		"it streams": {func(*health.View, *election.Peer) {}, 1000, "1000 bytes of WAL that no standby had"},
		"it has WAL that the primary has not": {func(v *health.View, p *election.Peer) {
			v.Rule.Line = wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: 3500}}}
			v.Peers[0].Position.Timeline, p.Position.LSN, p.Receiving = 2, 6000, false
		}, -1, "not known now"},
		"it has not switched to the timeline yet": {func(v *health.View, _ *election.Peer) {
			v.Rule.Line = wal.Lineage{Timeline: 2, Past: wal.History{{Timeline: 1, SwitchLSN: 4500}}}
			v.Peers[0].Position.Timeline = 2
		}, 1000, "1000 bytes"},
		"the primary is dead":      {func(v *health.View, _ *election.Peer) { v.Peers[0].Answer = election.Refused }, -1, "not known now"},
		"the primary is old":       {func(v *health.View, _ *election.Peer) { v.Peers[0].SeenAt = v.At.Add(-time.Minute) }, -1, "not known now"},
		"it rejects logins":        {func(_ *health.View, p *election.Peer) { p.Answer = election.Rejects }, -1, "not known now"},
		"it is old":                {func(v *health.View, p *election.Peer) { p.SeenAt = v.At.Add(-time.Minute) }, -1, "not known now"},
		"its end is not known":     {func(_ *health.View, p *election.Peer) { p.PositionUnknown = true }, -1, "not known now"},
		"its replay is paused":     {func(_ *health.View, p *election.Peer) { p.ReplayPaused = true }, 1000, "1000 bytes"},
		"its replay can not go on": {func(_ *health.View, p *election.Peer) { p.ReplayBlocked = election.UnfitTarget }, 1000, "1000 bytes"},
	} {
		v := view(1)
		v.Records, v.Peers = v.Records[:2], v.Peers[:2]
		v.Records[1].UpstreamID, v.Peers[1].Position.LSN = 1, 4000
		v.Peers[0].Position.Timeline, v.Peers[1].Position.Timeline = 1, 1
		c.change(&v, &v.Peers[1])
		nodes := nodesOf(v)
		assert.Equal(t, c.behind, nodes[1].Behind, name)
		assert.Contains(t, riskText(v, nodes), c.risk, name)
		if name == "its replay can not go on" {
			assert.Equal(t, []string{"doubt", string(election.UnfitTarget)}, []string{string(nodes[1].Mood), nodes[1].Seen})
		}
	}
}

// The first sentence of the dashboard.
func TestOffice(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(v *health.View){
		"node1 is the primary of term 5.":         func(*health.View) {},
		"2 nodes run as a primary: node1, node2.": func(v *health.View) { v.Peers[1].Running = election.Primary },
		"No primary is in office: the lease of this primary has run out: no majority of the voters answers.": func(v *health.View) { v.Lease.Left = 0 },
		"No primary is in office. The last one was node1, of term 5, last seen just now.":                    func(v *health.View) { v.Peers[0].Answer = election.Refused },
		"node2 was the primary, last seen 60 s ago.": func(v *health.View) {
			*v = view(1)
			v.Rule.Primary, v.Peers[1].Running, v.Peers[0].Running = 2, election.Primary, election.Standby
			v.Peers[1].SeenAt = v.At.Add(-time.Minute)
		},
		"No primary is seen.": func(v *health.View) {
			v.Rule, v.Peers = election.Rule{}, nil
		},
	} {
		v := view(1)
		change(&v)
		mood, got := office(v)
		assert.Equal(t, want, got)
		assert.Equal(t, want == "node1 is the primary of term 5.", mood == topology.Well)
	}
}
