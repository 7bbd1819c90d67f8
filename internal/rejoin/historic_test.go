package rejoin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/postgres"
)

// A server that was promoted twice within one segment can send that to a standby
// that saw neither promotion.
func TestMendHistory(t *testing.T) {
	t.Parallel()
	archive := map[string]string{"archive_mode": "on", "archive_command": "true", "wal_keep_size": "64MB"}
	node1 := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: archive})
	node2 := pgtest.NewStandby(t, node1, pgtest.Options{Name: "node2", Settings: archive})
	node3 := pgtest.NewStandby(t, node1, pgtest.Options{Name: "node3", Settings: archive})
	node1.Exec(t, `CREATE TABLE t (i int)`)
	for _, n := range []*pgtest.Server{node2, node3} {
		pgtest.WaitFor(t, n.Name+" to have the table", func(context.Context) error {
			if n.QueryString(t, `SELECT coalesce(to_regclass('t')::text, '')`) == "" {
				return errors.New("not yet")
			}
			return nil
		})
		n.Exec(t, `ALTER SYSTEM SET primary_conninfo = ''`)
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	node1.Kill()
	signal := filepath.Join(node2.Dir, "standby.signal")
	promote := func(n *pgtest.Server, timeline string) {
		t.Helper()
		n.Exec(t, `SELECT pg_promote()`)
		n.Exec(t, `INSERT INTO t SELECT `+timeline)
		require.Equal(t, timeline, n.QueryString(t, `SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int`))
	}
	promote(node2, "2")
	node2.Kill()
	require.NoError(t, os.WriteFile(signal, nil, 0o600))
	node2.StartAgain()
	promote(node2, "3")

	follow := func(n, up *pgtest.Server) {
		n.Exec(t, `ALTER SYSTEM SET primary_conninfo = `+postgres.QuoteLiteral(up.Conninfo("application_name="+n.Name)))
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	rows := func(n *pgtest.Server, want string) {
		t.Helper()
		pgtest.WaitFor(t, n.Name+" to have all rows", func(context.Context) error {
			if got := n.QueryString(t, `SELECT count(*) FROM t`); got != want {
				return errors.New(got + " rows")
			}
			return nil
		})
	}
	removed := func(n *pgtest.Server) {
		t.Helper()
		pgtest.WaitFor(t, n.Name+" to be told that its WAL is gone", func(context.Context) error {
			if !strings.Contains(n.Log(), "has already been removed") {
				return errors.New("it is not")
			}
			return nil
		})
	}
	follow(node3, node2)
	removed(node3)
	mended, err := RestoreHistory(node2.Dir, 3)
	require.NoError(t, err)
	require.Len(t, mended, 1)
	mendedName := mended[0]
	rows(node3, "2")
	mended, err = RestoreHistory(node2.Dir, 3)
	require.NoError(t, err)
	require.Empty(t, mended)
	ready, err := filepath.Glob(filepath.Join(node2.Dir, "pg_wal", "archive_status", mendedName+".ready"))
	require.NoError(t, err)
	require.Empty(t, ready, "the archive has what was whole, under that name")
}
