package repmgr_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
)

// A service with an ordinary login follows a switchover and a failover, with the terms of both, and gets no error where
// it repeats what certainly was not committed.
func TestFollower_KnowsTheTerm(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousQuorum)
	nodes[0].Exec(t, `CREATE ROLE app LOGIN; CREATE TABLE app_rows (id int); GRANT ALL ON app_rows TO app`)
	var hosts, ports []string
	for _, n := range nodes {
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, fmt.Sprint(n.Port))
	}
	f, err := pgfollow.New(fmt.Sprintf("host=%s port=%s user=app dbname=postgres", strings.Join(hosts, ","), strings.Join(ports, ",")), pgfollow.Hold(pgtest.Timeout(30*time.Second)))
	require.NoError(t, err)
	defer f.Close()
	pool, err := f.Pool(t.Context())
	require.NoError(t, err)
	defer pool.Close()
	written := 0
	write := func() {
		t.Helper()
		require.NoError(t, pgfollow.Retry(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO app_rows VALUES ($1)`, written)
			return err
		}))
		written++
	}
	follows := func(n *node, term int64) {
		t.Helper()
		pgtest.WaitFor(t, fmt.Sprintf("term %d of %s", term, n.cfg.NodeName), func(ctx context.Context) error {
			if p, err := f.Wait(ctx); err != nil || p.Node != fmt.Sprintf("127.0.0.1:%d", n.Port) || p.Term != term {
				return fmt.Errorf("%+v, %w", p, err)
			}
			return nil
		})
		write()
	}
	p, err := f.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("127.0.0.1:%d", nodes[0].Port), p.Node)
	write()
	_, err = nodes[1].Switchover(t.Context(), repmgr.SwitchoverOptions{To: 2})
	require.NoError(t, err)
	follows(nodes[1], 2)
	waitReady(t, []*node{nodes[1], nodes[0], nodes[2]}, 3, repmgr.SynchronousQuorum)
	nodes[1].Kill()
	follows(waitPrimary(t, nodes[0], nodes[2]), 3)
	require.Equal(t, fmt.Sprint(written), waitPrimary(t, nodes[0], nodes[2]).QueryString(t, `SELECT count(*) FROM app_rows`))
}
