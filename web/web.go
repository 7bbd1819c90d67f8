package web

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/health"
)

// Options are the choices of [Handler]. The zero value answers health checks at "/" and changes nothing.
type Options struct {
	Prefix    string                 // before each path, such as "/repmgr"; empty: none
	Cluster   func() *repmgr.Cluster // the cluster now, for /repmgr/v1/... and for changes; nil: there are neither
	Events    *Events                // a notifier of the same Monitor, for /events; nil: there is no such path
	TokenFile string                 // holds the password of a request that changes something; empty: only a client certificate allows it
	Allowlist []netip.Prefix         // from where something may be changed, beside the password or the certificate; empty: as HTTPAllowlist of the cluster's configuration
	Metrics   repmgr.MetricsCompat   // whose names /metrics gives beside ours
	Routers   func() []health.Router // those that the program tells where the primary is, for /metrics; nil: none
	Logger    *slog.Logger           // for what is changed, and for wrong passwords; nil: none
}

// Handler answers for a Monitor. Serve it with limits, as [Server] has them. It is safe for concurrent use.
func Handler(m *repmgr.Monitor, o Options) http.Handler { return newHandler(m.View, o) }

// newHandler makes a handler that answers from the views that look returns.
func newHandler(look func() health.View, o Options) *handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	h := &handler{o: o, look: look, token: newSecret(o.TokenFile), guesses: make(chan struct{}, guessesAtOnce), questions: newQuestions(), refreshing: make(chan struct{}, askTogether)}
	return h
}

type handler struct {
	o          Options
	look       func() health.View
	seen       atomic.Pointer[health.View]
	token      *secret
	guesses    chan struct{} // taken by each answer to a wrong password
	questions  *questions
	refreshing chan struct{} // taken by each question that is asked for the dashboard
	scrapes    scrapes
	memory     memory
	trail      trail
	changing   atomic.Bool // a change is under way
}

// viewFor is how long one view answers all requests, so that a flood of them does not disturb the Monitor.
const viewFor = 10 * time.Millisecond

func (h *handler) view() health.View {
	if v := h.seen.Load(); v != nil && time.Since(v.At) < viewFor {
		return *v
	}
	v := h.look()
	h.seen.Store(&v)
	h.trail.note(v)
	return v
}

// ServeHTTP routes by hand: [http.ServeMux] would redirect //primary.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, h.o.Prefix)
	if !ok || r.URL.Path == "*" && h.o.Prefix != "" {
		http.NotFound(w, r)
		return
	}
	path = strings.Trim(path, "/")
	w.Header().Set("Server", "repmgr/"+repmgr.Version)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		h.read(w, r, path)
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		h.change(w, r, path)
	default:
		text(w, http.StatusNotImplemented, "this method is not known here")
	}
}

func (h *handler) read(w http.ResponseWriter, r *http.Request, path string) {
	v := h.view()
	first, rest, _ := strings.Cut(path, "/")
	switch first {
	case "ui", "events", "repmgr":
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		if otherOrigin(r) {
			text(w, http.StatusForbidden, "a page of another origin may not ask this")
			return
		}
	}
	if r.Method == http.MethodOptions && slices.Contains([]string{"metrics", "events", "repmgr", "ui"}, first) { // these are no health checks
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		answer(w, r, http.StatusOK, nil)
		return
	}
	switch first {
	case "role":
		role(w, r, v)
	case "patroni":
		answer(w, r, http.StatusOK, newBody(v, ""))
	case "cluster":
		answer(w, r, http.StatusOK, newMembers(v))
	case "history":
		answer(w, r, http.StatusOK, history(v))
	case "config":
		answer(w, r, http.StatusOK, h.config(r, v))
	case "failsafe":
		text(w, http.StatusBadGateway, "there is no failsafe mode: a majority of the voters decides")
	case "metrics":
		h.metrics(w, v)
	case "events":
		h.events(w, r)
	case "repmgr":
		h.ask(w, r, v, rest)
	case "ui":
		h.ui(w, r, v, rest)
	default:
		verdict := judge(v, path, r.URL.Query())
		if path == "" && r.Method == http.MethodGet && browses(r) && h.mayAsk(r) == "" {
			h.page(w, statusOf(verdict), "dashboard", h.dashboard(v)) // the code stays: something may look at it alone
			return
		}
		answer(w, r, statusOf(verdict), newBody(v, verdict.Why))
	}
}

// role is the answer for checks that look for a word in the body.
func role(w http.ResponseWriter, r *http.Request, v health.View) {
	code := http.StatusOK
	if !v.Running().OK {
		code = http.StatusServiceUnavailable
	}
	word := roleOf(v)
	if r.Method == http.MethodOptions {
		word = ""
	}
	text(w, code, word)
}

func statusOf(v health.Verdict) int {
	if v.OK {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// text answers a line for people.
func text(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(line + "\n"))
}

// answer answers a document. A request with OPTIONS gets its status only.
func answer(w http.ResponseWriter, r *http.Request, code int, document any) {
	if r.Method == http.MethodOptions {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(code)
		return
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // nothing here is HTML, and people read it
	if err := e.Encode(document); err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes())
}
