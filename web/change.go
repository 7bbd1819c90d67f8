package web

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/plan"
)

const (
	bodyLimit   = 64 << 10         // bytes of a request
	changeLimit = 10 * time.Minute // how long a change may take, whether or not the client waits for it
)

// refusal is an answer that is no success.
type refusal struct {
	code int
	error
}

func (r *refusal) Unwrap() error { return r.error }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// inTheWay is an error with everything that stands in the way of a change.
type inTheWay struct {
	error
	obstacles []plan.Obstacle
}

func (e *inTheWay) Unwrap() error { return e.error }

// no is the document of a change that was not made.
type no struct {
	failure
	Obstacles []plan.Obstacle  `json:"obstacles,omitempty"` // of a switchover or a restart that can not begin
	Refusal   election.Refusal `json:"refusal,omitempty"`   // of a failover
	Health    election.Health  `json:"health,omitempty"`    // of the primary, with refusal
}

// change carries out what changes something, with the paths, codes and words of Patroni. One change runs at a time.
func (h *handler) change(w http.ResponseWriter, r *http.Request, path string) {
	if !h.mayChange(w, r) {
		return
	}
	do := map[string]func(context.Context, health.View, []byte) (int, any, error){
		"POST switchover": func(ctx context.Context, v health.View, b []byte) (int, any, error) {
			return h.switchover(ctx, v, b, false)
		},
		"POST failover": func(ctx context.Context, v health.View, b []byte) (int, any, error) {
			return h.switchover(ctx, v, b, true)
		},
		"DELETE switchover": h.takeBack,
		"DELETE restart":    noRestart,
		"POST restart":      h.restart,
		"POST reload":       h.reload,
		"PATCH config": func(ctx context.Context, _ health.View, b []byte) (int, any, error) {
			return h.pause(ctx, b, client(r))
		},
	}[r.Method+" "+path]
	switch {
	case h.o.Cluster == nil:
		refused(w, r, refuse(http.StatusNotImplemented, "this handler only answers questions"))
		return
	case do == nil:
		refused(w, r, refuse(http.StatusNotImplemented, "%s /%s is not known here", r.Method, path))
		return
	}
	content, err := readBody(w, r)
	if err != nil {
		refused(w, r, err)
		return
	}
	if !h.changing.CompareAndSwap(false, true) {
		refused(w, r, refuse(http.StatusServiceUnavailable, "another change is under way"))
		return
	}
	defer h.changing.Store(false)
	h.o.Logger.Info("a change was asked for over HTTP", "from", r.RemoteAddr, "method", r.Method, "path", "/"+path)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), changeLimit)
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(changeLimit + writeWithin))
	code, said, err := do(ctx, h.look(), content)
	if err != nil {
		refused(w, r, err)
		return
	}
	if line, ok := said.(string); ok {
		text(w, code, line)
		return
	}
	answer(w, r, code, said)
}

// refused answers an error, with what to do about it: as text, and as JSON with the evidence to whoever accepts that.
func refused(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusServiceUnavailable
	var known *refusal
	switch {
	case errors.As(err, &known):
		code = known.code
	case errors.Is(err, repmgr.ErrRefused), errors.Is(err, repmgr.ErrPaused):
		code = http.StatusPreconditionFailed
	}
	hint := repmgr.Hint(err)
	if !acceptsJSON(r) {
		text(w, code, strings.TrimSuffix(err.Error()+"\n"+hint, "\n"))
		return
	}
	document := no{failure: failure{err.Error(), hint}}
	if e := (*inTheWay)(nil); errors.As(err, &e) {
		document.Obstacles = e.obstacles
	}
	if e := (*repmgr.RefusalError)(nil); errors.As(err, &e) {
		document.Refusal, document.Health = e.Refusal, e.Health
	}
	answer(w, r, code, document)
}

// acceptsJSON reports whether a request names JSON among what it accepts. That it accepts everything, as most clients say, does not count.
func acceptsJSON(r *http.Request) bool {
	for accepted := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		kind, params, err := mime.ParseMediaType(accepted)
		if weight, bad := strconv.ParseFloat(params["q"], 64); err == nil && kind == "application/json" && (bad != nil || weight > 0) {
			return true
		}
	}
	return false
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength < 0 {
		return nil, refuse(http.StatusLengthRequired, "Content-Length is missing")
	}
	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", bodyLimit)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the body was not complete: %v", err)
	}
	return content, nil
}

// decode reads a body into what it must hold. An empty body is an empty object.
func decode(content []byte, into any) error {
	if len(content) == 0 {
		return nil
	}
	err := json.Unmarshal(content, into)
	var other *json.UnmarshalTypeError
	switch {
	case errors.As(err, &other):
		return refuse(http.StatusBadRequest, "the body is not the JSON that is wanted: %s must not be a JSON %s", cmp.Or(other.Field, "it"), other.Value)
	case err != nil:
		return refuse(http.StatusBadRequest, "the body is not the JSON that is wanted: %v", err)
	}
	return nil
}

// noRestart takes no restart back: none can be scheduled.
func noRestart(context.Context, health.View, []byte) (int, any, error) {
	return 0, nil, refuse(http.StatusNotFound, "no restart is scheduled")
}

// takeBack takes back a switchover that has not begun.
func (h *handler) takeBack(ctx context.Context, _ health.View, _ []byte) (int, any, error) {
	res, err := h.o.Cluster().CancelSwitchover(ctx, repmgr.SwitchoverOptions{})
	switch {
	case errors.Is(err, repmgr.ErrNotScheduled):
		return 0, nil, &refusal{http.StatusNotFound, err}
	case errors.Is(err, repmgr.ErrRefused):
		return 0, nil, &refusal{http.StatusConflict, err}
	case err != nil:
		return 0, nil, err
	}
	return http.StatusOK, fmt.Sprintf("The switchover from %q to %q was taken back", res.From.Name, res.To.Name), nil
}

// switchover hands the primary over. As a failover it may be asked for where there is no primary, too.
func (h *handler) switchover(ctx context.Context, v health.View, content []byte, failover bool) (int, any, error) {
	var ask struct {
		Leader    string `json:"leader"`
		Candidate string `json:"candidate"`
		At        string `json:"scheduled_at"`
	}
	if err := decode(content, &ask); err != nil {
		return 0, nil, err
	}
	lead := leader(v)
	named, unknown := nodeOf(v, ask.Candidate)
	switch {
	case !failover && ask.Leader == "":
		return 0, nil, refuse(http.StatusBadRequest, "leader is missing: the name of the present primary")
	case failover && ask.Leader == "" && ask.Candidate == "":
		return 0, nil, refuse(http.StatusBadRequest, "candidate is missing: the name of the node that is to be the primary")
	case failover && ask.At != "":
		return 0, nil, refuse(http.StatusBadRequest, "a failover can not be scheduled")
	case unknown != nil:
		return 0, nil, refuse(http.StatusPreconditionFailed, "candidate does not exists: %v", unknown)
	case lead == 0 && failover:
		return h.elect(ctx, ask.Candidate)
	case lead == 0:
		return 0, nil, refuse(http.StatusPreconditionFailed, "there is no primary that could hand over: POST /failover")
	case ask.Leader != "" && ask.Leader != v.Name(lead):
		return 0, nil, refuse(http.StatusPreconditionFailed, "leader name does not match: the primary is %q", v.Name(lead))
	case ask.Candidate == v.Name(lead):
		return 0, nil, refuse(http.StatusBadRequest, "%q is the primary already", ask.Candidate)
	}
	o := repmgr.SwitchoverOptions{}
	var err error
	if o.At, err = scheduled(ask.At, v.At); err != nil {
		return 0, nil, err
	}
	if o.To = named; named == 0 {
		if o.To, err = h.candidate(ctx); err != nil {
			return 0, nil, err
		}
	}
	res, err := h.o.Cluster().Switchover(ctx, o)
	switch {
	case err != nil:
		return 0, nil, &inTheWay{err, res.Plan.Standing(o.Force)}
	case res.Scheduled:
		return http.StatusAccepted, "Switchover scheduled", nil
	case ask.Candidate != "" && res.To.Name != ask.Candidate:
		return http.StatusOK, fmt.Sprintf("Switched over to %q instead of %q", res.To.Name, ask.Candidate), nil
	}
	return http.StatusOK, fmt.Sprintf("Successfully switched over to %q", res.To.Name), nil
}

// candidate is the node that an election would choose, where nobody is named: not the one that happens to be asked.
func (h *handler) candidate(ctx context.Context) (repmgr.NodeID, error) {
	res, err := h.o.Cluster().Explain(ctx, repmgr.ExplainOptions{})
	switch {
	case err != nil:
		return 0, err
	case res.Forecast.Winner == 0:
		return 0, refuse(http.StatusPreconditionFailed, "switchover is not possible: no good candidates have been found: %s", res.Forecast.Refusal)
	}
	return repmgr.NodeID(res.Forecast.Winner), nil
}

// scheduled reads the time at which a switchover is to begin.
func scheduled(at string, now time.Time) (time.Time, error) {
	if at == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999Z0700", "2006-01-02 15:04:05.999999Z07:00", "2006-01-02T15:04Z07:00"} {
		if t, err := time.Parse(layout, at); err == nil {
			if t.Before(now) {
				return t, refuse(http.StatusUnprocessableEntity, "scheduled_at %q is in the past", at)
			}
			return t, nil
		}
	}
	for _, layout := range []string{"2006-01-02T15:04:05.999999", "2006-01-02T15:04", "2006-01-02 15:04:05.999999"} {
		if _, err := time.Parse(layout, at); err == nil {
			return time.Time{}, refuse(http.StatusBadRequest, "scheduled_at %q has no time zone", at)
		}
	}
	return time.Time{}, refuse(http.StatusUnprocessableEntity, "scheduled_at %q is no time: want one such as 2026-11-30T03:00:00+00:00", at)
}

// elect holds an election for a primary that is lost.
func (h *handler) elect(ctx context.Context, candidate string) (int, any, error) {
	res, err := h.o.Cluster().Failover(ctx, repmgr.FailoverOptions{})
	switch {
	case err != nil:
		return 0, nil, err
	case res.Winner == nil:
		return 0, nil, refuse(http.StatusServiceUnavailable, "the election has no winner")
	case candidate != "" && res.Winner.Name != candidate:
		return http.StatusOK, fmt.Sprintf("Failed over to %q instead of %q", res.Winner.Name, candidate), nil
	}
	return http.StatusOK, fmt.Sprintf("Successfully failed over to %q", res.Winner.Name), nil
}

// restart restarts the server of this node.
func (h *handler) restart(ctx context.Context, v health.View, content []byte) (int, any, error) {
	var ask struct {
		Pending  bool   `json:"restart_pending"`
		Role     string `json:"role"`
		Schedule string `json:"schedule"`
		Version  string `json:"postgres_version"`
		Timeout  any    `json:"timeout"`
	}
	if err := decode(content, &ask); err != nil {
		return 0, nil, err
	}
	switch {
	case ask.Schedule != "" || ask.Version != "" || ask.Timeout != nil:
		return 0, nil, refuse(http.StatusBadRequest, "schedule, postgres_version and timeout are not known here")
	case ask.Role != "" && ask.Role != patroniRole(v):
		return 0, nil, refuse(http.StatusServiceUnavailable, "this node is no %s, but a %s", ask.Role, patroniRole(v))
	}
	res, err := h.o.Cluster().RollingRestart(ctx, repmgr.RestartOptions{Nodes: []repmgr.NodeID{v.NodeID}, Pending: ask.Pending, Primary: repmgr.RestartInPlace})
	switch {
	case err != nil:
		return 0, nil, &inTheWay{err, res.Plan.Standing(false)}
	case len(res.Restarted) == 0:
		return 0, nil, refuse(http.StatusServiceUnavailable, "nothing was restarted: no setting of this node waits for a restart")
	}
	return http.StatusOK, "restarted successfully", nil
}

// reload makes the server of this node read its configuration again.
func (h *handler) reload(ctx context.Context, _ health.View, _ []byte) (int, any, error) {
	_, err := h.o.Cluster().ControlServer(ctx, repmgr.ServiceReload, repmgr.ServiceOptions{})
	return http.StatusAccepted, "reload scheduled", err
}

// client is who asks: the name in the certificate or before the password, where there is one, and the address.
func client(r *http.Request) string {
	name, _, _ := r.BasicAuth()
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		name = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	return strings.TrimSpace(name + " over HTTP from " + from.Addr().Unmap().String())
}

// pause pauses failover, and ends that: the only setting of a cluster that is changed over HTTP.
func (h *handler) pause(ctx context.Context, content []byte, by string) (int, any, error) {
	var ask map[string]*bool
	err := json.Unmarshal(content, &ask)
	pause, given := ask["pause"]
	if err != nil || !given || len(ask) != 1 {
		return 0, nil, refuse(http.StatusBadRequest, `want {"pause": true}, {"pause": false} or {"pause": null}: settings of PostgreSQL are changed with ALTER SYSTEM`)
	}
	do := h.o.Cluster().Unpause
	if pause != nil && *pause {
		do = h.o.Cluster().Pause
	}
	res, err := do(ctx, repmgr.PauseOptions{By: by})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]bool{"pause": res.Paused}, nil
}
