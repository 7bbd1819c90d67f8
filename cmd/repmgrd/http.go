package main

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/web"
)

const listenAgain = 5 * time.Second // after http_listen could not be had

// httpService answers on http_listen for as long as the daemon runs.
type httpService struct {
	events  web.Events
	cluster atomic.Pointer[repmgr.Cluster] // with the configuration in force
	wg      sync.WaitGroup
}

// prepare has the events of the Monitor told to the readers of /events. It is called before the Monitor is made.
func (s *httpService) prepare(cfg *repmgr.Config) {
	if cfg.HTTPListen != "" {
		cfg.Notifiers = append(cfg.Notifiers, &s.events)
	}
}

// use puts a configuration in force, where HTTP is answered at all.
func (s *httpService) use(cfg repmgr.Config) error {
	if cfg.HTTPListen == "" {
		return nil
	}
	c, err := repmgr.New(cfg)
	if err == nil {
		s.cluster.Store(c)
	}
	return err
}

// start listens until ctx ends. A daemon that can not, because the port is in use or a certificate can not be read, guards its
// server all the same: it says why, and tries again.
func (s *httpService) start(ctx context.Context, cfg repmgr.Config, m *repmgr.Monitor, routers func() []health.Router, log *slog.Logger) error {
	if cfg.HTTPListen == "" {
		return nil
	}
	if err := s.use(cfg); err != nil {
		return err
	}
	if cfg.HTTPTokenFile != "" {
		if err := web.CheckToken(cfg.HTTPTokenFile); err != nil {
			log.Error("http_token_file can not be used: only clients with a certificate may change anything over HTTP", "err", err)
		}
	}
	server := &web.Server{
		Listen: cfg.HTTPListen, Cert: cfg.HTTPCert, Key: cfg.HTTPKey, ClientCA: cfg.HTTPClientCA, Logger: log,
		Handler: web.Handler(m, web.Options{Cluster: s.cluster.Load, Events: &s.events, TokenFile: cfg.HTTPTokenFile, Metrics: cfg.MetricsCompat, Routers: routers, Logger: log}),
	}
	s.wg.Go(func() {
		said := ""
		for ctx.Err() == nil {
			err := server.Serve(ctx, func(at net.Addr) { said = ""; log.Info("answering HTTP", "address", at.String()) })
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
