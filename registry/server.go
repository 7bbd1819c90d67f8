package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
)

// Server is a server of the cluster over one connection, together with its metadata. It is not
// safe for concurrent use.
type Server struct {
	postgres.Server
	Level Level // as last seen

	foreign foreignState // of the extension of repmgr 5
}

// Connect opens a connection to the server that conninfo names, and waits for it no
// longer than its connect_timeout ([postgres.DefaultConnectTimeout] where it has none).
// Messages call the server by name; where that is empty, by its address. The error is a
// [postgres.ConnectError].
func Connect(ctx context.Context, name, conninfo string) (*Server, error) {
	if name == "" {
		name = "server " + postgres.Address(conninfo)
	}
	conn, err := postgres.Dial(ctx, name, conninfo)
	if err != nil {
		return nil, err
	}
	return &Server{Server: postgres.Server{Name: name, Conninfo: conninfo, Conn: conn}}, nil
}

// ConnectPatiently is [Connect] with a limit of its own in the place of the conninfo's
// connect_timeout, which is often too short for a slow line, and without cancel requests
// to a server whose connections break. Where settled is false, the first look settles the
// session, which saves a round trip: see [postgres.LookFirst].
func ConnectPatiently(ctx context.Context, name, info string, limit time.Duration, settled bool) (*Server, error) {
	if params, err := conninfo.Parse(info); err == nil {
		params["connect_timeout"] = fmt.Sprint(int(limit.Seconds()) + 1)
		info = conninfo.Format(params)
	}
	cfg, err := postgres.ConnConfig(info)
	if err != nil {
		return nil, err
	}
	n := &Server{Server: postgres.Server{Name: name, Conninfo: info}}
	if !settled {
		cfg.AfterConnect, n.Level = nil, Ours
	}
	if n.Conn, err = postgres.DialUncancelled(ctx, n.Name, cfg); err != nil {
		return nil, err
	}
	return n, nil
}

// Close ends the connection. It may be called twice, and on nil.
func (n *Server) Close() {
	if n != nil {
		n.Server.Close()
	}
}

const recordColumns = `n.node_id, coalesce(n.upstream_node_id, 0) AS upstream_node_id, coalesce(u.node_name, '') AS upstream_node_name,
	n.active, n.node_name, n.type, n.location, n.priority, n.conninfo, n.repluser, coalesce(n.slot_name, '') AS slot_name, n.config_file`

// RecordsSQL reads all nodes, in the order of their ids.
const RecordsSQL = `SELECT ` + recordColumns + `
	FROM repmgr.nodes n LEFT JOIN repmgr.nodes u ON u.node_id = n.upstream_node_id ORDER BY n.node_id`

// Records reads repmgr.nodes as this server has it.
func (n *Server) Records(ctx context.Context) ([]Record, error) {
	if err := n.NeedNodes(ctx); err != nil {
		return nil, err
	}
	rows, err := n.Conn.Query(ctx, RecordsSQL)
	if err != nil {
		return nil, n.QueryError("read repmgr.nodes", err)
	}
	recs, err := pgx.CollectRows(rows, pgx.RowToStructByName[Record])
	if err != nil {
		return nil, n.QueryError("read repmgr.nodes", err)
	}
	return recs, nil
}

// Level says which metadata tables a server has.
type Level int

const (
	None         Level = iota
	OnlyRepmgr5        // the tables of repmgr 5 that were not adopted: nodes, events, monitoring_history
	OtherVersion       // ours, of another version
	Ours
)

// seeSchema finds out which metadata a server has, without an error in its log. [Ours] is
// remembered; anything else is looked up again each time.
func (n *Server) seeSchema(ctx context.Context) (version int, err error) {
	if n.Level == Ours {
		return SchemaVersion, nil
	}
	var nodes, ours bool
	err = n.Conn.QueryRow(ctx, `SELECT bool_and(found) FILTER (WHERE t IN ('nodes', 'events', 'monitoring_history')), bool_and(found) FILTER (WHERE t <> 'monitoring_history')
		FROM unnest(ARRAY['metadata', 'nodes', 'events', 'standby_state', 'monitoring_history']) t, LATERAL (SELECT to_regclass('repmgr.' || t) IS NOT NULL AS found) f`).Scan(&nodes, &ours)
	if err != nil {
		return 0, n.QueryError("look for the metadata", err)
	}
	n.Level = None
	if nodes {
		n.Level = OnlyRepmgr5
	}
	if !ours {
		return 0, nil
	}
	if err := n.Conn.QueryRow(ctx, `SELECT coalesce(max(schema_version), 0) FROM repmgr.metadata`).Scan(&version); err != nil {
		return 0, n.QueryError("read the version of the metadata", err)
	}
	if version > 0 {
		n.Level = OtherVersion
	}
	if version == SchemaVersion {
		n.Level = Ours
	}
	return version, nil
}

// NeedNodes is [Server.NeedSchema] for callers that use only tables that repmgr 5 has as well:
// those can be used before they are adopted.
func (n *Server) NeedNodes(ctx context.Context) error {
	if n.Level == OnlyRepmgr5 {
		return nil
	}
	err := n.NeedSchema(ctx)
	if n.Level == OnlyRepmgr5 {
		return nil
	}
	return err
}

// HasSchema reports whether the server has all of our tables, and not only those of repmgr 5,
// which has no rules, failovers and samples.
func (n *Server) HasSchema(ctx context.Context) (bool, error) {
	err := n.NeedSchema(ctx)
	if n.Level == OnlyRepmgr5 {
		return false, nil
	}
	return err == nil, err
}

// NeedSchema returns an error where the server does not have our tables in this version. It
// causes no error in the server's log.
func (n *Server) NeedSchema(ctx context.Context) error {
	version, err := n.seeSchema(ctx)
	switch {
	case err != nil:
		return err
	case n.Level == Ours:
		return nil
	case version > SchemaVersion:
		return failure.WithHint(failure.Of(failure.ErrSchemaVersion, "the metadata of %s has version %d, this program knows %d", n.Name, version, SchemaVersion),
			"Use the repmgr that made it, or a newer one.")
	case version > 0:
		return failure.WithHint(failure.Of(failure.ErrNotRegistered, "the metadata of %s has version %d, this program needs %d", n.Name, version, SchemaVersion),
			"Bring it up to date, on the primary: repmgr primary register --force")
	case n.Level == OnlyRepmgr5:
		return failure.WithHint(failure.Of(failure.ErrNotRegistered, "the metadata in database %q of %s is that of repmgr 5, and was not adopted", n.Conn.Config().Database, n.Name),
			"Stop every repmgrd of repmgr 5. Then, on the primary: repmgr adopt. A witness of repmgr 5 is registered anew after that, on its machine: repmgr witness register -h PRIMARY --force")
	}
	return failure.WithHint(failure.Of(failure.ErrNotRegistered, "there is no repmgr metadata in database %q of %s", n.Conn.Config().Database, n.Name),
		"Run repmgr primary register on the primary first, with a conninfo that names this database.")
}

// CreateSchema creates the tables or brings them to this version. created reports whether there
// were none. Where nothing is to be done it costs one cheap query.
func (n *Server) CreateSchema(ctx context.Context, schema string) (created bool, err error) {
	switch err := n.NeedSchema(ctx); {
	case err == nil:
		return false, nil
	case !errors.Is(err, failure.ErrNotRegistered):
		return false, err
	}
	created = n.Level == None
	ctx = postgres.LimitStatement(ctx) // this call bypasses the driver's tracer
	defer postgres.EndStatement(ctx)
	// One simple-protocol query is one transaction: all of it or nothing.
	if _, err := n.Conn.PgConn().Exec(ctx, schema).ReadAll(); err != nil {
		return false, n.QueryError("create the repmgr schema", err)
	}
	return created, n.NeedSchema(ctx)
}
