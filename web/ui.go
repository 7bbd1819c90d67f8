package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/plan"
)

//go:embed ui
var uiFiles embed.FS

// policy lets a page load only what comes from here, and run nothing that stands in the page itself.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// assets are the files that the pages load. They hold nothing of the cluster.
var assets = map[string]string{"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}

var templates = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("").Funcs(template.FuncMap{"bytes": wording.Bytes, "seconds": seconds, "day": dayAndClock}).ParseFS(uiFiles, "ui/*.html"))
})

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }

func dayAndClock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// browses reports whether a browser opens an address. No load balancer and no monitoring says that.
func browses(r *http.Request) bool { return r.Header.Get("Sec-Fetch-Dest") == "document" }

// otherOrigin reports whether a page of another origin lets a browser ask: it could not read the answer, but have all nodes
// asked, take the readers of /events, and measure the picture. Whoever opens an address may come from anywhere.
func otherOrigin(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return (site == "cross-site" || site == "same-site") && !browses(r)
}

// frame is what all pages have.
type frame struct {
	Base    string // before the path of each page: /ui, behind the prefix
	Title   string
	Cluster string
	Node    string // whose daemon this is
	At      time.Time
}

func (h *handler) frame(v health.View, title string) frame {
	return frame{Base: h.o.Prefix + "/ui", Title: title, Cluster: scope(v), Node: v.Node, At: v.At}
}

// ui answers /ui/...: pages for people. They change nothing.
func (h *handler) ui(w http.ResponseWriter, r *http.Request, v health.View, path string) {
	if r.Method == http.MethodOptions {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return
	}
	if kind, ok := assets[path]; ok {
		content, _ := uiFiles.ReadFile("ui/" + path) // it is compiled in
		secure(w, kind)
		_, _ = w.Write(content)
		return
	}
	if refused, code := h.mayLook(w, r); refused != "" {
		h.page(w, code, "note", note{h.frame(v, "Not allowed"), refused, "This page is for clients on the same machine, and for those with the password (over TLS) or a client certificate: docs/http.md. " +
			fmt.Sprintf("From elsewhere: ssh -L %[1]s:127.0.0.1:%[1]s HOST, then http://127.0.0.1:%[1]s%s/ui", portOf(r), h.o.Prefix), v.At})
		return
	}
	first, rest, _ := strings.Cut(path, "/")
	switch first {
	case "":
		h.page(w, http.StatusOK, "dashboard", h.dashboard(v))
	case "ask":
		h.refresh(w, r, v) // also where no script runs: it is an image then
		w.WriteHeader(http.StatusNoContent)
	case "topology.svg":
		secure(w, "image/svg+xml")
		_, _ = w.Write(pictureOf(v, "").SVG())
	case "failovers":
		h.failoverPage(w, r, v, rest)
	case "explain", "why", "why-not", "doctor", "matrix", "plan":
		h.answerPage(w, r, v, first)
	default:
		h.page(w, http.StatusNotFound, "note", note{h.frame(v, "No such page"), "There is no page " + r.URL.Path + ".", "", v.At})
	}
}

// mayLook says why a client may not see the pages; empty: it may. A browser asks for the password only where it does not
// send it in clear text.
func (h *handler) mayLook(w http.ResponseWriter, r *http.Request) (refused string, code int) {
	if local(r) {
		return "", http.StatusOK
	}
	if _, _, given := r.BasicAuth(); r.TLS == nil && !given {
		return "The connection is not encrypted.", http.StatusForbidden
	}
	if refused, code = h.known(r); code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="repmgr"`)
	}
	return refused, code
}

// portOf is the port that a request came to.
func portOf(r *http.Request) string {
	at, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if tcp, ok := at.(*net.TCPAddr); ok {
		return strconv.Itoa(tcp.Port)
	}
	return "8008"
}

const html = "text/html; charset=utf-8"

func secure(w http.ResponseWriter, kind string) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Referrer-Policy", "no-referrer")
}

// page writes a page from its template.
func (h *handler) page(w http.ResponseWriter, code int, name string, data any) {
	var b bytes.Buffer
	if err := templates().ExecuteTemplate(&b, name, data); err != nil {
		h.o.Logger.Error("a page can not be made", "page", name, "err", err)
		text(w, http.StatusInternalServerError, "this page can not be made: see the log of repmgrd")
		return
	}
	secure(w, html)
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes())
}

// note is a page with a text.
type note struct {
	frame
	Text, Hint string
	Asked      time.Time
}

// dashboardQuestion is one that the dashboard shows the answer of.
type dashboardQuestion struct {
	path   string
	serves time.Duration // how old the answer may be
}

var asks = []dashboardQuestion{{"v1/explain", 10 * time.Second}, {"v1/why", 10 * time.Second}, {"v1/failovers", 30 * time.Second}, {"v1/doctor", time.Minute}}

// askTogether leaves room for the questions of others.
const askTogether = askAtOnce / 2

// memory keeps the newest answer to each question: it is still of use when no node answers any more. It is safe for
// concurrent use.
type memory struct {
	mu      sync.Mutex
	answers map[string]remembered
}

type remembered struct {
	Document any       // nil: there was no answer yet
	At       time.Time // when it was begun to be asked for
	Tried    time.Time // when the question was last asked
	Failed   string    // why the last attempt had no answer; empty: it had one
	Old      bool      // it may not be true any more
}

func (m *memory) get(path string) remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answers[path]
}

// put takes the answer to a question that was asked at a time, or why there was none.
func (m *memory) put(path string, document any, err error, asked time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers == nil {
		m.answers = map[string]remembered{}
	}
	if asked.Before(m.answers[path].Tried) {
		return
	}
	a := remembered{Document: document, At: asked, Tried: asked}
	if err != nil {
		a = m.answers[path]
		a.Tried, a.Failed = asked, strings.TrimSpace(err.Error()+"\n"+repmgr.Hint(err))
	}
	m.answers[path] = a
}

// recall is the answer to a question of the dashboard. It is old where it should long have been asked again, and where
// something has happened since.
func (h *handler) recall(path string, now time.Time) remembered {
	a := h.memory.get(path)
	_, event := h.o.Events.last()
	for _, s := range asks {
		if s.path == path {
			a.Old = a.At.Before(event) || now.Sub(a.At) > 3*s.serves
		}
	}
	return a
}

// refresh asks the questions of the dashboard whose answers are too old, or of before the newest event, and waits for the
// answers. However many look at pages, a few questions at a time are asked for these.
func (h *handler) refresh(w http.ResponseWriter, r *http.Request, v health.View) {
	if h.o.Cluster == nil {
		return
	}
	patient(w)
	var wg sync.WaitGroup
	_, event := h.o.Events.last()
	for _, s := range asks {
		wg.Go(func() {
			select {
			case h.refreshing <- struct{}{}:
				defer func() { <-h.refreshing }()
			case <-r.Context().Done():
				return
			}
			if due(h.memory.get(s.path), s, event, time.Now()) {
				_, _ = h.answerTo(r, v, s.path, nil)
			}
		})
	}
	wg.Wait()
}

// due reports whether a question is to be asked again: its answer is too old, or of before the newest event. A node that
// comes and goes makes an event every few seconds, so that an answer serves a third of its time whatever happens.
func due(a remembered, s dashboardQuestion, event, now time.Time) bool {
	age := now.Sub(a.Tried)
	return age >= s.serves || a.Tried.Before(event) && age >= s.serves/3
}

// patient lets an answer take as long as questions may.
func patient(w http.ResponseWriter) {
	limit := askLimit * time.Duration((len(asks)+askTogether-1)/askTogether)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit + writeWithin))
}

// answerTo asks a question. Whoever wants no answer (HEAD) has nobody asked: there is no document then.
func (h *handler) answerTo(r *http.Request, v health.View, path string, q url.Values) (code int, document any) {
	if h.o.Cluster == nil {
		return http.StatusNotFound, failure{"this handler answers health checks only", ""}
	}
	key, question, err := h.question(v, path, q)
	if err != nil {
		return http.StatusBadRequest, failure{err.Error(), ""}
	}
	if r.Method == http.MethodHead {
		return http.StatusOK, nil
	}
	return h.questions.ask(r.Context(), key, question)
}

// failoverPage shows a failover by its term. The ones that are remembered are shown although no node answers now.
func (h *handler) failoverPage(w http.ResponseWriter, r *http.Request, v health.View, term string) {
	number, err := strconv.ParseInt(term, 10, 64)
	if err != nil {
		h.page(w, http.StatusNotFound, "note", note{h.frame(v, "No such failover"), "A failover has the number of its term: " + h.o.Prefix + "/ui/failovers/7.", "", v.At})
		return
	}
	find := func(document any) *failoverRow {
		all, _ := document.([]repmgr.FailoverRecord)
		for _, f := range all {
			if f.Term == number {
				row := newFailoverRow(f)
				return &row
			}
		}
		return nil
	}
	found := find(h.memory.get("v1/failovers").Document)
	if found == nil {
		patient(w)
		code, document := h.answerTo(r, v, "v1/failovers", nil)
		if document == nil {
			secure(w, html)
			return
		}
		if f, failed := document.(failure); failed {
			h.page(w, code, "note", note{h.frame(v, "Failovers"), f.Error, f.Hint, v.At})
			return
		}
		found = find(document)
	}
	if found == nil {
		h.page(w, http.StatusNotFound, "note", note{h.frame(v, "No such failover"), fmt.Sprintf("No failover of term %d is recorded. The newest %d are kept here.", number, askHistory), "", v.At})
		return
	}
	h.page(w, http.StatusOK, "failover", struct {
		frame
		Failover failoverRow
	}{h.frame(v, fmt.Sprintf("The failover of term %d", number)), *found})
}

// answerPage asks a question now, and shows its answer.
func (h *handler) answerPage(w http.ResponseWriter, r *http.Request, v health.View, name string) {
	patient(w)
	code, document := h.answerTo(r, v, "v1/"+name, r.URL.Query())
	f := h.frame(v, titles[name])
	switch d := document.(type) {
	case nil:
		secure(w, html)
	case failure:
		h.page(w, code, "note", note{f, d.Error, d.Hint, time.Now()})
	case repmgr.Explanation:
		h.page(w, code, "note", note{f, presumed(v, d.Lost.Name, d.String()), "On the command line: repmgr cluster explain", d.At})
	case repmgr.Reasoning:
		h.page(w, code, "note", note{f, d.String(), "On the command line: repmgr cluster why", d.At})
	case repmgr.WhyNotAnswer:
		f.Title = "Why " + d.Node.Name + " is not the primary"
		h.page(w, code, "note", note{f, strings.Join(d.Reasons, "\n"), fmt.Sprintf("On the command line: repmgr cluster why-not --node-id=%d", d.Node.ID), d.Explanation.At})
	case repmgr.Matrix:
		h.page(w, code, "matrix", newMatrixPage(f, d))
	case doctor.Report:
		h.page(w, code, "doctor", doctorPage{f, newExamination(remembered{Document: d, At: time.Now()}, v.At)})
	case plan.Plan:
		to := ""
		if id, err := nodeOf(v, r.URL.Query().Get("node")); err == nil && id != 0 {
			f.Title, to = "The plan of a switchover to "+v.Name(int32(id)), " --to="+id.String()
		}
		page := planPage{frame: f, Plan: d, Command: command(v, "standby switchover"+to), Cancel: command(v, "standby switchover --cancel")}
		if asked, ok := v.Scheduled(); ok {
			page.Scheduled = scheduledText(v, asked)
		}
		h.page(w, code, "plan", page)
	}
}

var titles = map[string]string{
	"explain": "If the primary died now", "why": "What was decided last", "why-not": "Why not that node", "doctor": "Would all work?",
	"matrix": "Which nodes reach which", "plan": "The plan of a switchover",
}
