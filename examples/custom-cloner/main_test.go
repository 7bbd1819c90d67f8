package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// backup makes last night's backup of the server.
func backup(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	pgtest.NeedPrograms(t, "pg_basebackup")
	dir := filepath.Join(t.TempDir(), "backup")
	out, err := exec.CommandContext(t.Context(), filepath.Join(s.BinDir, "pg_basebackup"), "-d", s.Conninfo(), "-F", "tar", "-c", "fast", "-D", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// args are the command line for a standby of s, and where it will be.
func args(t *testing.T, s *pgtest.Server, backup string) (line []string, dir string, port int) {
	t.Helper()
	port, dir = pgtest.Port(t), filepath.Join(t.TempDir(), "data")
	conf := filepath.Join(t.TempDir(), "repmgr.conf")
	text := fmt.Sprintf("cluster=test\nnode=2\nconninfo='host=127.0.0.1 port=%d user=postgres dbname=postgres'\n", port)
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
	return []string{"-config", conf, "-source", s.Conninfo(), "-backup", backup, "-D", dir, "-port", strconv.Itoa(port)}, dir, port
}

func TestCustomCloner(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: map[string]string{"wal_keep_size": "64MB"}})
	tonight := backup(t, primary)
	primary.Exec(t, `CREATE TABLE since AS SELECT generate_series(1, 1000) AS n`)
	line, dir, port := args(t, primary, tonight)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), line, &out))
	require.Contains(t, out.String(), dir+" is ready to start as a standby of ")

	standby := pgtest.StartDir(t, dir, pgtest.Options{Name: "node2", Port: port})
	end := pgtest.Query[string](t, primary, `SELECT pg_current_wal_lsn()::text`)
	pgtest.WaitFor(t, "standby to catch up", func(context.Context) error {
		if !pgtest.Query[bool](t, standby, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, end) {
			return errors.New("behind")
		}
		return nil
	})
	require.Equal(t, 1000, pgtest.Query[int](t, standby, `SELECT count(*) FROM since`))
}

// What the cloner can not do leaves nothing behind, and a backup of another
// cluster is found out.
func TestCustomCloner_Refuses(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{Name: "node1"})
	other := pgtest.Start(t, pgtest.Options{Name: "other", Fresh: true})
	for wants, from := range map[string]string{"no base.tar": t.TempDir(), "system identifier": backup(t, other)} {
		line, dir, _ := args(t, primary, from)
		err := run(t.Context(), line, &bytes.Buffer{})
		require.ErrorContains(t, err, wants)
		require.NoDirExists(t, dir)
	}
}
