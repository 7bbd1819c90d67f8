package repmgr

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/registry"
)

// localServer is the server of the configuration on this machine.
type localServer struct {
	salvage.Server
	cfg Config
}

// localServer finds the server of this machine by its data directory: that of
// the configuration, or dir where it names none.
func (c *Cluster) localServer(dir string) (*localServer, error) {
	dir = cmp.Or(c.cfg.DataDirectory, dir)
	if dir == "" {
		return nil, hint(kind(ErrConfig, "the data directory of %s is not known", c.self()), "Set data_directory in repmgr.conf: a server that is down can not be asked.")
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, hint(kind(ErrDirectory, "find the data directory: %w", err), "Is data_directory in repmgr.conf right, and is this the machine of %s?", c.self())
	}
	return newLocalServer(c.cfg, abs), nil
}

func newLocalServer(cfg Config, dir string) *localServer {
	o := postmaster.Options{
		BinDir: cfg.PgBindir, ConfigDirectory: cfg.ConfigDirectory, StartCommand: cfg.ServiceStartCommand, StopCommand: cfg.ServiceStopCommand,
		PgCtlOptions: cfg.PgCtlOptions, StartTimeout: cfg.StandbyReconnectTimeout, StopTimeout: cfg.ShutdownCheckTimeout, Logger: cfg.Logger,
	}
	return &localServer{salvage.Server{Server: postmaster.Server{Options: o, Dir: dir}, Root: cfg.SalvageDirectory}, cfg}
}

// isAt reports whether the server at the other end of n is this one. A session that
// ends meanwhile, as that of a server which is being stopped, is an error: its process
// is gone, and that says nothing of where it ran.
func (s *localServer) isAt(ctx context.Context, n *registry.Server) (bool, error) {
	var backend int
	ask := func() error {
		if err := n.Conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
			return n.QueryError("ask for the process", err)
		}
		return nil
	}
	if err := ask(); err != nil || s.Serves(backend) {
		return err == nil, err
	}
	return false, ask()
}
