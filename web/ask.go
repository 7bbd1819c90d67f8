package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	askLimit   = 10 * time.Second // how long a question may take for which other nodes are asked
	askAgain   = time.Second      // how long its answer serves all who ask the same
	askAtOnce  = 4                // different questions
	askHistory = 100              // failovers in an answer, at most
)

// ask answers /repmgr/v1/...: what --json prints for the command of the same name.
func (h *handler) ask(w http.ResponseWriter, r *http.Request, v health.View, path string) {
	if refused := h.mayAsk(r); refused != "" {
		text(w, http.StatusForbidden, refused)
		return
	}
	if path == "v1/monitor" {
		answer(w, r, http.StatusOK, newBody(v, ""))
		return
	}
	if h.o.Cluster == nil {
		text(w, http.StatusNotFound, "this handler answers health checks only")
		return
	}
	key, question, err := h.question(v, path, r.URL.Query())
	switch {
	case err != nil:
		answer(w, r, http.StatusBadRequest, failure{err.Error(), ""})
	case question == nil:
		text(w, http.StatusNotFound, "there is no "+r.URL.Path+": see /repmgr/v1/status, cluster, explain, why, why-not, failovers, doctor, matrix, plan, monitor")
	case r.Method == http.MethodHead: // whoever wants no answer has nobody asked
		answer(w, r, http.StatusOK, nil)
	default:
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(askLimit + writeWithin))
		code, document := h.questions.ask(r.Context(), key, question)
		answer(w, r, code, document)
	}
}

// failure is the document of a question that has no answer.
type failure struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// question is what a path asks for. key is the same for the same question.
func (h *handler) question(v health.View, path string, q url.Values) (key string, ask func(context.Context) (any, error), err error) {
	c := h.o.Cluster()
	node, err := nodeOf(v, q.Get("node"))
	if err != nil {
		return "", nil, err
	}
	switch path {
	case "v1/status":
		ask = func(ctx context.Context) (any, error) { return c.ServiceStatus(ctx) }
	case "v1/cluster":
		ask = func(ctx context.Context) (any, error) { return c.Status(ctx) }
	case "v1/explain":
		ask = func(ctx context.Context) (any, error) { return c.Explain(ctx, repmgr.ExplainOptions{}) }
	case "v1/why":
		ask = func(ctx context.Context) (any, error) { return c.Why(ctx) }
	case "v1/why-not":
		if node == 0 {
			return "", nil, fmt.Errorf("which node? Add ?node=NAME")
		}
		ask = func(ctx context.Context) (any, error) { return c.WhyNot(ctx, node) }
	case "v1/failovers":
		ask = func(ctx context.Context) (any, error) { return c.Failovers(ctx, askHistory) }
	case "v1/doctor":
		ask = func(ctx context.Context) (any, error) { return c.Doctor(ctx) }
	case "v1/matrix":
		ask = func(ctx context.Context) (any, error) { return c.Matrix(ctx) }
	case "v1/plan":
		ask = func(ctx context.Context) (any, error) {
			return c.PlanSwitchover(ctx, repmgr.SwitchoverOptions{To: node})
		}
	}
	if ask != nil {
		ask = h.remembering(path, ask)
	}
	return path + "?" + node.String(), ask, nil
}

// remembering makes a question leave its answer where the dashboard finds it, whoever asks it. A panic in it ends the
// question and not the daemon.
func (h *handler) remembering(path string, ask func(context.Context) (any, error)) func(context.Context) (any, error) {
	return func(ctx context.Context) (document any, err error) {
		began := time.Now() // what happened after that, the answer need not know
		defer func() {
			if p := recover(); p != nil {
				h.o.Logger.Error("a question was not answered because of an error in this program", "path", path, "panic", p, "stack", string(debug.Stack()))
				err = errors.New("the question was not answered: see the log of repmgrd")
			}
			h.memory.put(path, document, err, began)
		}()
		return ask(ctx)
	}
}

// nodeOf finds a node by its name or its id. Empty: 0.
func nodeOf(v health.View, name string) (repmgr.NodeID, error) {
	if name == "" {
		return 0, nil
	}
	if r, ok := registry.ByName(v.Records, name); ok {
		return r.ID, nil
	}
	if id, err := strconv.ParseInt(name, 10, 32); err == nil {
		if r, ok := registry.ByID(v.Records, repmgr.NodeID(id)); ok {
			return r.ID, nil
		}
	}
	return 0, fmt.Errorf("no node is called %q: see /cluster", name)
}

// questions asks each question once at a time, for all who want to know.
type questions struct {
	free chan struct{}

	mu    sync.Mutex
	asked map[string]*asked
}

type asked struct {
	done     chan struct{} // closed when the answer is there
	at       time.Time     // when it was
	code     int
	document any
}

func newQuestions() *questions {
	return &questions{free: make(chan struct{}, askAtOnce), asked: map[string]*asked{}}
}

func (q *questions) ask(ctx context.Context, key string, ask func(context.Context) (any, error)) (code int, document any) {
	a, mine := q.join(key)
	if mine {
		a.code, a.document = q.answer(ctx, ask)
		q.mu.Lock()
		a.at = time.Now()
		q.mu.Unlock()
		close(a.done)
		return a.code, a.document
	}
	select {
	case <-a.done:
		return a.code, a.document
	case <-ctx.Done():
		return http.StatusServiceUnavailable, failure{context.Cause(ctx).Error(), ""}
	}
}

// join finds the question where it is being asked, or was just now. mine: it is up to the caller to ask it.
func (q *questions) join(key string) (a *asked, mine bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, a := range q.asked {
		if !a.at.IsZero() && time.Since(a.at) > askAgain {
			delete(q.asked, k)
		}
	}
	if a := q.asked[key]; a != nil {
		return a, false
	}
	a = &asked{done: make(chan struct{})}
	q.asked[key] = a
	return a, true
}

// answer asks. Others wait for the answer, so it goes on when the first who asked has gone.
func (q *questions) answer(ctx context.Context, ask func(context.Context) (any, error)) (code int, document any) {
	select {
	case q.free <- struct{}{}:
		defer func() { <-q.free }()
	default:
		return http.StatusServiceUnavailable, failure{"too many questions at once", "Ask again in a moment."}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
	defer cancel()
	document, err := ask(ctx)
	if err != nil {
		return http.StatusServiceUnavailable, failure{err.Error(), repmgr.Hint(err)}
	}
	return http.StatusOK, document
}
