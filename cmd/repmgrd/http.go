package main

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/web"
)

const listenAgain = 5 * time.Second // after http_listen could not be had

// httpService answers on http_listen for as long as the daemon runs.
type httpService struct {
	events web.Events
	server web.Server
	wg     sync.WaitGroup
}

// prepare checks the files that http_... name, and has the events of the Monitor told to their readers. It is called before the
// Monitor is made.
func (s *httpService) prepare(cfg *repmgr.Config) error {
	if cfg.HTTPListen == "" {
		return nil
	}
	cfg.Notifiers = append(cfg.Notifiers, &s.events)
	s.server = web.Server{Listen: cfg.HTTPListen, Cert: cfg.HTTPCert, Key: cfg.HTTPKey, ClientCA: cfg.HTTPClientCA, Logger: cfg.Logger}
	if cfg.HTTPTokenFile != "" {
		if err := web.CheckToken(cfg.HTTPTokenFile); err != nil {
			return repmgr.WithHint(err, "Without http_token_file only clients with a certificate may change anything over HTTP.")
		}
	}
	return s.server.Check()
}

// start listens until ctx ends. A daemon that can not listen guards its server all the same, so it says why, and tries again.
func (s *httpService) start(ctx context.Context, cfg repmgr.Config, m *repmgr.Monitor, log *slog.Logger) error {
	if cfg.HTTPListen == "" {
		return nil
	}
	cluster, err := repmgr.New(cfg)
	if err != nil {
		return err
	}
	s.server.Handler = web.Handler(m, web.Options{Cluster: cluster, Events: &s.events, TokenFile: cfg.HTTPTokenFile, Metrics: cfg.MetricsCompat, Logger: log})
	s.wg.Go(func() {
		said := ""
		for ctx.Err() == nil {
			err := s.server.Serve(ctx, func(at net.Addr) { said = ""; log.Info("answering HTTP", "address", at.String()) })
			if err != nil && err.Error() != said {
				said = err.Error()
				log.Error("HTTP is not answered: load balancers take this node for down", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(listenAgain):
			}
		}
	})
	return nil
}
