package reconcile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// idleSession is a session that has not read the newest settings of its server, and
// can not any more: its value of work_mem and of synchronous_standby_names is an old one.
func idleSession(t *testing.T, sync string) (s *pgtest.Server, idle *registry.Server, mend func()) {
	t.Helper()
	s = pgtest.Start(t, pgtest.Options{Name: "node1"})
	idle, err := registry.Connect(t.Context(), "idle", s.Conninfo())
	require.NoError(t, err)
	t.Cleanup(func() { idle.Close() })
	for name, value := range map[string]string{"work_mem": "5MB", "synchronous_standby_names": sync} {
		s.Exec(t, `ALTER SYSTEM SET `+name+` = `+postgres.QuoteLiteral(value))
	}
	s.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the server to read them", func(context.Context) error {
		if got := s.QueryString(t, `SELECT current_setting('work_mem') || current_setting('synchronous_standby_names')`); got != "5MB"+sync {
			return errors.New(got)
		}
		return nil
	})
	path := filepath.Join(s.Dir, "postgresql.conf")
	conf, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(conf, "work_mem = '6MB\n"...), 0o600))
	var sees string
	require.NoError(t, idle.Conn.QueryRow(t.Context(), `SELECT current_setting('work_mem') || current_setting('synchronous_standby_names')`).Scan(&sees))
	require.Equal(t, "4MB", sees)
	return s, idle, func() { require.NoError(t, os.WriteFile(path, conf, 0o600)) }
}

// What an idle session remembers of the settings is no reason to leave them alone.
func TestAlterSystem_IdleSession(t *testing.T) {
	t.Parallel()
	s, idle, mend := idleSession(t, "")
	ctx, set := t.Context(), map[string]string{"work_mem": "4096"}
	require.ErrorContains(t, idle.AlterSystem(ctx, set), "would heed no new setting")
	mend()
	require.NoError(t, idle.AlterSystem(ctx, set))
	pgtest.WaitFor(t, "the server to read it", func(context.Context) error {
		if got := s.QueryString(t, `SHOW work_mem`); got != "4MB" {
			return errors.New(got)
		}
		return nil
	})
}

// Nor does it say that commits wait for nobody any more, or for whom they wait.
func TestSyncInForce_IdleSession(t *testing.T) {
	t.Parallel()
	const value = `ANY 1 ("node2")`
	s, idle, mend := idleSession(t, value)
	defer mend()
	w := voters.New(t.Context(), voters.Settings{Self: 1, SilenceTimeout: 2 * time.Second}, nil, func() {})
	defer w.Close()
	l := Leader{Options: Options{
		Self: 1, Quorum: true, SilenceTimeout: 2 * time.Second, Watch: w, Sync: syncrep.Writer{Name: func(id int32) string { return fmt.Sprintf("node%d", id) }},
		Connect: func(ctx context.Context) (*registry.Server, error) {
			return registry.Connect(ctx, "node1", s.Conninfo())
		},
	}}
	l.look = Look{Server: idle, Records: []registry.Record{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2"}}}
	rule := election.Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2}, Quorum: true, Sync: []int32{2}, Acks: 1}
	want := election.SyncSetting{Acks: 1, Standbys: []int32{2}}
	for _, seq := range []int{1, 2} {
		rule.Seq = seq
		set, err := l.syncInForce(t.Context(), []election.Rule{rule})
		require.NoError(t, err)
		require.Equal(t, want, set, "the rule says so, and what is in force was proven, seq %d", seq)
	}
	// In a new term, whoever opened it saw a commit wait. Later nobody did.
	l.provenValue = ""
	rule.Term, rule.Seq = 4, 1
	set, err := l.syncInForce(t.Context(), []election.Rule{rule})
	require.NoError(t, err)
	require.Equal(t, want, set)
	l.provenValue, rule.Seq = "", 2
	set, err = l.syncInForce(t.Context(), []election.Rule{rule})
	require.NoError(t, err)
	require.Equal(t, -1, set.Acks)
}

// Tables of an older version get their columns, once.
func TestAddColumns(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	s.Exec(t, `CREATE SCHEMA repmgr`)
	s.Exec(t, `CREATE TABLE repmgr.rules (term bigint, seq integer)`)
	n, err := registry.Connect(t.Context(), "node1", s.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	reader := s.Conn(t) // who reads the table for long, as pg_dump does, and everybody who comes later would wait for the columns
	_, err = reader.Exec(t.Context(), `BEGIN; SELECT FROM repmgr.rules`)
	require.NoError(t, err)
	limited, cancel := context.WithTimeout(t.Context(), 5*time.Second) // our sessions wait for locks for 10 s
	defer cancel()
	require.ErrorContains(t, addColumns(limited, n), "lock timeout")
	_, err = reader.Exec(t.Context(), `COMMIT`)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, addColumns(t.Context(), n))
		require.Equal(t, "term,seq,line,first_xid", s.QueryString(t, `SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'repmgr.rules'::regclass AND attnum > 0`))
	}
}
