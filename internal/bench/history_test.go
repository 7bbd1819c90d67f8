package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const viewing = "3. Status views over the monitoring history"

// fillSQL makes the history of two standbys that sampled every two seconds,
// the newest rows last.
const fillSQL = `INSERT INTO repmgr.monitoring_history
	(primary_node_id, standby_node_id, last_monitor_time, last_apply_time, last_wal_primary_location, last_wal_standby_location, replication_lag, apply_lag)
	SELECT 1, 2 + i %% 2, at, at - interval '1 s', 'FF/0'::pg_lsn - i * 1000, 'FF/0'::pg_lsn - i * 1000 - 500, 500, 0
	FROM (SELECT i, now() - i / 2 * interval '2 s' AS at FROM generate_series(%d::bigint, %d + 1, -1) AS i) AS s`

const million = 1_000_000

func TestStatusViews(t *testing.T) {
	wanted(t)
	nodes := servers(t)
	for name, n := range nodes {
		silent(t, n, 2, 3) // rows of standbys: nobody asks them anything here
		fill(t, n, 0, 3*million)
		if name == "ours" {
			n.server.Exec(t, `INSERT INTO repmgr.standby_state (standby_node_id, primary_node_id, last_monitor_time, last_apply_time, in_step_time,
				stale_after, last_wal_primary_location, last_wal_standby_location, replication_lag, apply_lag)
				SELECT id, 1, now(), now(), now(), interval '7 s', '1/0', '1/0', 0, 0 FROM generate_series(2, 3) AS id`)
		}
	}
	views := func(rows string, our *node, theirs *node) {
		their := stat{}
		if theirs != nil {
			their = query(t, theirs, `SELECT * FROM repmgr.replication_status`, 15)
		}
		for _, view := range []string{"repl_status", "repmgr.replication_status"} {
			results.add(figure{
				Section: viewing, What: "SELECT * FROM " + view + ", " + rows + " rows", Unit: "ms",
				Peer: peerName + " replication_status", Theirs: their, Ours: query(t, our, `SELECT * FROM `+view, 50), Limit: limit{Value: 2},
			})
		}
	}
	views("3 million", nodes["ours"], nodes["peer"])
	if os.Getenv("REPMGR_BENCH_LONG") == "1" {
		fill(t, nodes["ours"], 3*million, 30*million)
		views("30 million", nodes["ours"], nil)
	}
}

// fill adds history in pieces, each well inside the time that a statement of a
// test may take.
func fill(t *testing.T, n *node, from, to int) {
	t.Helper()
	for ; to > from; to -= million {
		n.server.Exec(t, fmt.Sprintf(fillSQL, to, to-million))
	}
	c := n.server.Conn(t)
	_, err := c.Exec(t.Context(), `VACUUM ANALYZE repmgr.monitoring_history`)
	require.NoError(t, err)
	require.NoError(t, c.Close(t.Context()))
}

// query measures a query over one connection, as psql sends it, after a few
// runs that count for nothing.
func query(t *testing.T, n *node, sql string, times int) (s stat) {
	t.Helper()
	c := n.server.Conn(t)
	defer c.Close(t.Context())
	for i := -3; i < times; i++ {
		began := time.Now()
		rows, err := c.Query(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
		count := 0
		for rows.Next() {
			count++
		}
		took := time.Since(began)
		require.NoError(t, rows.Err())
		require.Equal(t, 2, count, strings.TrimSpace(sql))
		if i >= 0 {
			s.Samples = append(s.Samples, milliseconds(took))
		}
	}
	return s
}
