package follow

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Login is what a server, or this process in its place, needs to log in to another server for
// replication, in addition to what is registered.
type Login struct {
	Passfile      string // a password file; empty: the default one
	Password      string // of the replication role
	WritePassword bool   // write Password into primary_conninfo
}

// PrimaryConninfo is the connection string with which the standby of that name reaches its
// upstream: the registered address, the replication role, and the name by which the upstream
// knows the standby.
func (l Login) PrimaryConninfo(upstream registry.Record, name string) (string, error) {
	params, err := conninfo.Parse(upstream.Conninfo)
	if err != nil {
		return "", failure.Of(failure.ErrConfig, "conninfo of %s: %w", upstream, err)
	}
	for _, key := range []string{"replication", "password", "options", "application_name", "fallback_application_name", "target_session_attrs"} {
		delete(params, key)
	}
	params["user"] = upstream.ReplicationUser
	if params["user"] == "" {
		delete(params, "user")
	}
	if name != "" {
		params["application_name"] = name[:min(len(name), 63)]
	}
	if l.Passfile != "" {
		params["passfile"] = l.Passfile
	}
	if l.WritePassword {
		params["password"] = l.Password
	}
	return conninfo.Format(params), nil
}

// Settings are the server settings that make a data directory a standby of upstream. An empty
// value is intended: it overrides a value in postgresql.conf.
func (l Login) Settings(upstream registry.Record, name, slot string) (map[string]string, error) {
	conninfo, err := l.PrimaryConninfo(upstream, name)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"primary_conninfo":         conninfo,
		"primary_slot_name":        slot,
		"recovery_target_timeline": "latest",
	}, nil
}

// Config parses a connection string for a replication connection. user is the replication role;
// empty: that of the connection string.
func (l Login) Config(info, user string) (*pgx.ConnConfig, error) {
	params, err := conninfo.Parse(info)
	if err != nil {
		return nil, failure.Of(failure.ErrConfig, "conninfo: %w", err)
	}
	if user != "" && user != conninfo.User(params) {
		params["user"] = user
		delete(params, "password") // it belongs to another user; a password file may have the right one
		if params["passfile"] == "" && l.Passfile != "" {
			params["passfile"] = l.Passfile
		}
	}
	cfg, err := postgres.ConnConfig(conninfo.Format(params))
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "true"
	cfg.AfterConnect = nil // it runs SQL, which a replication connection can not
	return cfg, nil
}

// Dial opens a physical replication connection to a node that is reached by info, within
// the connect_timeout of that.
func (l Login) Dial(ctx context.Context, node registry.Record, info string) (*pgconn.PgConn, error) {
	cfg, err := l.Config(info, node.ReplicationUser)
	if err != nil {
		return nil, err
	}
	ctx, cancel := postgres.Limit(ctx, cfg)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, postgres.Explained(ctx, node.String()+" for replication", cfg, err)
	}
	return conn, nil
}

// History reads the history of a timeline over a replication connection.
func (l Login) History(ctx context.Context, of registry.Record, info string, t wal.Timeline) (wal.History, error) {
	conn, err := l.Dial(ctx, of, info)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	results, err := conn.Exec(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", t)).ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return nil, failure.Of(failure.ErrQuery, "read the history of timeline %d of %s: %w", t, of, errors.Join(err, errors.New("no history came")))
	}
	return wal.ParseHistory(results[0].Rows[0][1])
}
