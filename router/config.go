package router

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/settings"
)

// FromConfig makes the routers that the keys router_* of a configuration name. The configuration must be valid.
func FromConfig(cfg repmgr.Config, log *slog.Logger) (*Routers, error) {
	var all []Router
	for _, address := range settings.List(cfg.RouterHAProxySocket) {
		all = append(all, &HAProxy{Address: address, Backend: cfg.RouterHAProxyBackend})
	}
	bouncers, problem := settings.ParsePgBouncers(cfg.RouterPgBouncer)
	if problem != "" {
		return nil, errors.New("router_pgbouncer " + problem)
	}
	for _, p := range bouncers {
		all = append(all, &PgBouncer{Console: p.Conninfo, File: cmp.Or(p.File, cfg.RouterPgBouncerFile)})
	}
	if cfg.RouterVIP != "" {
		address, err := settings.ParsePrefix(cfg.RouterVIP)
		if err != nil {
			return nil, fmt.Errorf("router_vip: %w", err)
		}
		all = append(all, &VIP{Address: address, Interface: cfg.RouterVIPInterface})
	}
	return New(log, all...), nil
}
