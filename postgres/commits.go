package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// weakCommitsSQL are the places that make sessions commit without waiting until a
// standby has the commit on its disk. Our own sessions do not inherit them.
const weakCommitsSQL = `SELECT place || ' has ' || value FROM (
	SELECT 'the server (' || sourcefile || ' line ' || sourceline || ')', lower(setting) FROM pg_catalog.pg_file_settings WHERE name = 'synchronous_commit' AND applied
	UNION ALL
	SELECT concat_ws(' in ', CASE WHEN s.setrole <> 0 THEN 'role ' || quote_ident(pg_get_userbyid(s.setrole)) END, 'database ' || quote_ident(d.datname)), lower(split_part(c, '=', 2))
	  FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c WHERE c LIKE 'synchronous\_commit=%'
) w (place, value) WHERE value IN ('off', 'local', 'remote_write', 'false', 'no', '0') ORDER BY 1`

// WeakCommits lists where synchronous_commit is weaker than on by default.
func (n *Server) WeakCommits(ctx context.Context) ([]string, error) {
	rows, err := n.Conn.Query(ctx, weakCommitsSQL)
	if err != nil {
		return nil, n.QueryError("look at synchronous_commit", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, n.QueryError("look at synchronous_commit", err)
	}
	return all, nil
}

// LeaksAtStart reports whether a server of that version, as server_version_num, can
// acknowledge commits in the first moments after its start without waiting for a standby.
// fixed is the release of its major in which that was mended.
func LeaksAtStart(version int) (fixed string, leaks bool) {
	last := map[int]int{13: 21, 14: 18, 15: 13, 16: 9, 17: 5} // major to minor
	minor, ok := last[version/10000]
	return fmt.Sprintf("%d.%d", version/10000, minor), ok && version%10000 < minor
}
