// Command embed is a small service that owns a Monitor: it does for its node
// what repmgrd does, reacts to what happens, and answers GET /status.
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
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is the system's
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. When it returns, all that it started has ended.
func run(ctx context.Context, args []string, logTo io.Writer) error {
	flags := flag.NewFlagSet("embed", flag.ContinueOnError)
	config := flags.String("config", "repmgr.conf", "the node's configuration `file`")
	port := flags.Int("port", 8088, "`port` of 127.0.0.1 for GET /status")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, err := repmgr.LoadConfig(*config)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logTo, nil))
	cfg.Notifiers = append(cfg.Notifiers, repmgr.NotifierFunc(func(ctx context.Context, e repmgr.Event) error {
		return react(ctx, log, e)
	}))
	monitor, err := repmgr.NewMonitor(cfg)
	if err != nil {
		return err
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(monitor.Status()) // the client may be gone
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		return err
	}
	log.Info("listening", "address", listener.Addr().String())

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var monitorErr error
	wg.Go(func() {
		monitorErr = monitor.Run(ctx) // ends with ctx alone
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(grace) // lets answers in flight be finished
	})
	err = server.Serve(listener)
	cancel() // Serve may have failed by itself: then the monitor ends too
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, monitorErr)
}

// react is where a service does its own work: page somebody, write a line, close a gate. It must return when
// ctx ends. Only the Monitor that has held an election, or has handed over, is told who is the primary now: who
// must know it of every one asks View().Writer() of its own Monitor.
func react(_ context.Context, log *slog.Logger, e repmgr.Event) error {
	if e.Failover != nil {
		log.Warn("the primary was replaced", "node", e.Failover.Primary, "former_primary", e.Failover.Former, "outage", e.Failover.Outage)
		return nil
	}
	switch e.Type {
	case repmgr.EventStandbyFollow:
		log.Info("reads of this node are fresh again", "node", e.Node, "upstream", e.Peer)
	case repmgr.EventUpstreamDisconnect, repmgr.EventLocalDisconnect, repmgr.EventStandbyFailure, repmgr.EventChildDisconnect:
		log.Error("somebody should look", "event", e.Type, "node", e.Node, "details", e.Details)
	default:
		log.Info("noted", "event", e.Type, "node", e.Node, "details", e.Details)
	}
	return nil
}
