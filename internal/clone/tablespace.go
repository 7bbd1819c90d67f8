package clone

import (
	"context"

	"github.com/pgrepmgr/repmgr/registry"
)

// Tablespace is one of the source. Those that every server has have no location.
type Tablespace struct {
	Name     string
	Location string
	Bytes    int64 // -1: this login may not read it
}

// ReadTablespaces reads the tablespaces of a server.
func ReadTablespaces(ctx context.Context, n *registry.Server) ([]Tablespace, error) {
	rows, err := n.Conn.Query(ctx, `
		SELECT spcname, coalesce(pg_tablespace_location(oid), ''),
		       CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') OR has_tablespace_privilege(oid, 'CREATE') THEN pg_tablespace_size(oid) ELSE -1 END
		  FROM pg_tablespace`)
	if err != nil {
		return nil, n.QueryError("read the tablespaces", err)
	}
	defer rows.Close()
	var list []Tablespace
	for rows.Next() {
		var t Tablespace
		if err := rows.Scan(&t.Name, &t.Location, &t.Bytes); err != nil {
			return nil, n.QueryError("read the tablespaces", err)
		}
		list = append(list, t)
	}
	if err := rows.Err(); err != nil {
		return nil, n.QueryError("read the tablespaces", err)
	}
	return list, nil
}
