// Command orchestrator keeps the nodes of one machine running as a cluster, and is the one place where somebody may move the primary. It
// does for each node what repmgrd does, prints a line of JSON for each change of the primary, shows the cluster under /cluster/, and
// hands the primary over when it is asked to, unless something speaks against it.
//
//	orchestrator -listen 127.0.0.1:8090 node1/repmgr.conf node2/repmgr.conf node3/repmgr.conf
//	curl -d to=node2 http://127.0.0.1:8090/move
//	curl http://127.0.0.1:8090/cluster/primary
//
// and http://127.0.0.1:8090/cluster/ui in a browser. A line that it prints:
//
//	{"at":"...","what":"failover","from":"node2","to":"node1","term":3,"outage_ms":266.154,"reason":"primary is dead: ...","steps":[{"step":"surveyed","ms":22.777}, ...]}
//
// With -traces the same is sent to a collector of OpenTelemetry, as a trace with a span for each step.
//
// A file with conninfo and failover=automatic, but without a node, makes an observer, for a
// machine without PostgreSQL: it answers the same, and holds an election when the repmgrd of the nodes are gone.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/web"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is the system's
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "orchestrator:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. When it returns, all that it started has ended; the servers of the nodes go on.
func run(ctx context.Context, args []string, out, logTo io.Writer) error {
	flags := flag.NewFlagSet("orchestrator", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8090", "`address` for HTTP")
	collector := flags.String("traces", "", "send the traces of failovers to the collector at this `address`, such as http://127.0.0.1:4318")
	calm := flags.Duration("calm", time.Minute, "refuse to move the primary for so long after it has changed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("name the repmgr.conf of each node of this machine")
	}
	if u, err := url.Parse(*collector); *collector != "" && (err != nil || u.Host == "") { // else it would be noticed in the first failover
		return fmt.Errorf("-traces=%q: want an address such as http://127.0.0.1:4318", *collector)
	}
	log := slog.New(slog.NewTextHandler(logTo, nil))
	o := &orchestrator{calm: *calm, lines: json.NewEncoder(out)}
	events := &web.Events{}
	var monitors []*repmgr.Monitor
	for i, file := range flags.Args() {
		cfg, err := repmgr.LoadConfig(file)
		if err != nil {
			return err
		}
		cfg.Logger = log.With("node", cfg.NodeName)
		cfg.Notifiers = append(cfg.Notifiers, repmgr.NotifierFunc(o.note))
		if *collector != "" {
			cfg.Notifiers = append(cfg.Notifiers, traces{*collector})
		}
		if i == 0 { // any node will do to look at the cluster from
			cfg.Notifiers = append(cfg.Notifiers, events)
			if o.cluster, err = repmgr.New(cfg); err != nil {
				return err
			}
		}
		monitor, err := repmgr.NewMonitor(cfg)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		monitors = append(monitors, monitor)
	}
	o.monitor = monitors[0]

	ctx, cancel := context.WithCancel(ctx)
	mux := http.NewServeMux()
	mux.Handle("/cluster/", web.Handler(o.monitor, web.Options{Prefix: "/cluster", Cluster: func() *repmgr.Cluster { return o.cluster }, Events: events, Logger: log}))
	mux.HandleFunc("POST /move", func(w http.ResponseWriter, r *http.Request) {
		if foreign(r.Host, *listen) {
			answer(w, http.StatusForbidden, map[string]any{"error": "name this program by an address, by localhost, or as -listen does"})
			return
		}
		o.move(ctx, w, r)
	})
	// No page of another site may move the primary through the browser of somebody who can.
	server := &web.Server{Listen: *listen, Handler: http.NewCrossOriginProtection().Handler(mux), Logger: log}

	var wg sync.WaitGroup
	ended := make([]error, len(monitors))
	for i, m := range monitors {
		wg.Go(func() { ended[i] = m.Run(ctx) }) // it returns when ctx ends, and then nil
	}
	err := server.Serve(ctx, func(a net.Addr) { log.Info("listening", "address", a.String()) })
	cancel() // Serve may have failed by itself: then the monitors end too
	wg.Wait()
	return errors.Join(append(ended, err)...)
}

type orchestrator struct {
	cluster *repmgr.Cluster // as seen from the first node
	monitor *repmgr.Monitor // of that
	calm    time.Duration

	mu    sync.Mutex
	lines *json.Encoder
}

// line is what is printed. A log shipper, a chat or a pager may be at the other end.
type line struct {
	At       time.Time `json:"at"`
	What     string    `json:"what"` // failover, switchover, or refused: there is no primary, and a person has to look
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Term     int64     `json:"term,omitempty"`
	OutageMS float64   `json:"outage_ms,omitempty"` // left out: not known
	Reason   string    `json:"reason"`
	Steps    []step    `json:"steps,omitempty"`
}

type step struct {
	Step string  `json:"step"`
	MS   float64 `json:"ms"` // since the election began
}

// note is told of all that happens, by all Monitors at once. The one that has held an election, and no other, says how it went.
func (o *orchestrator) note(_ context.Context, e repmgr.Event) error {
	l := line{At: e.At, Reason: e.Details}
	switch {
	case e.Type == repmgr.EventFailoverRefused:
		l.What = "refused"
	case e.Failover == nil:
		return nil
	case e.Type == repmgr.EventSwitchover:
		l.What = "switchover"
	default:
		l.What = "failover"
	}
	if f := e.Failover; f != nil {
		l.From, l.To, l.Term, l.Reason, l.OutageMS = f.Former, f.Primary, f.Term, string(f.Reason), ms(f.Outage)
		for _, s := range f.Steps {
			l.Steps = append(l.Steps, step{s.Step, ms(s.After)})
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lines.Encode(l)
}

// move hands the primary over to the node of the form's field "to", or to the one that an election would choose. It goes on when the client has gone.
func (o *orchestrator) move(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	const limit = 5 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit))
	var choice repmgr.SwitchoverOptions
	if name := r.FormValue("to"); name != "" {
		for _, n := range o.monitor.View().Records { // from its memory, also while its server is down
			if n.Name == name {
				choice.To = n.ID
			}
		}
		if choice.To == 0 {
			answer(w, http.StatusNotFound, map[string]any{"error": "there is no node " + name})
			return
		}
	}
	if why := o.objections(ctx, choice); len(why) > 0 {
		answer(w, http.StatusConflict, map[string]any{"refused": why})
		return
	}
	res, err := o.cluster.Switchover(ctx, choice)
	switch {
	case errors.Is(err, repmgr.ErrRefused): // something came up meanwhile; nothing was changed
		answer(w, http.StatusConflict, map[string]any{"refused": []string{err.Error()}})
	case err != nil:
		answer(w, http.StatusInternalServerError, map[string]any{"error": err.Error(), "hint": repmgr.Hint(err)})
	default:
		answer(w, http.StatusOK, map[string]any{"from": res.From.Name, "to": res.To.Name, "term": res.Term, "ms": ms(res.Elapsed), "returned": res.Returned})
	}
}

// foreign reports whether a request names another host. For a browser a page under a name that was made to lead here (DNS rebinding)
// is of one origin with us; an address leads nowhere else.
func foreign(host, listen string) bool {
	name := (&url.URL{Host: host}).Hostname()
	_, err := netip.ParseAddr(name)
	return err != nil && name != "localhost" && (name == "" || name != (&url.URL{Host: listen}).Hostname())
}

// objections are all reasons not to move the primary now: a rule of our own, and what the library finds.
func (o *orchestrator) objections(ctx context.Context, choice repmgr.SwitchoverOptions) (why []string) {
	past, err := o.cluster.Failovers(ctx, 1) // whoever held it
	if err != nil {
		return []string{err.Error()}
	}
	if len(past) > 0 {
		if ago := time.Since(past[0].StartedAt); ago < o.calm {
			why = append(why, fmt.Sprintf("the primary has changed %s ago; wait until it is %s", ago.Round(time.Millisecond), o.calm))
		}
	}
	p, err := o.cluster.PlanSwitchover(ctx, choice)
	if err != nil {
		return append(why, err.Error())
	}
	for _, obstacle := range p.Obstacles {
		why = append(why, obstacle.String())
	}
	return why
}

func answer(w http.ResponseWriter, code int, what map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(what) // the client may be gone
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
