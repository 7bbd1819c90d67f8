package ballot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func appendTo(t *testing.T, path, text string) (undo func()) {
	t.Helper()
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(old, text...), 0o600))
	return func() { require.NoError(t, os.WriteFile(path, old, 0o600)) }
}

// What PostgreSQL reads from the file of ALTER SYSTEM is what we read.
func TestSettings_AsPostgreSQLReadsThem(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	conn := server.Conn(t)
	ctx := t.Context()
	for _, value := range []string{`plain`, `it's`, `a\b`, `tab	and "quotes"`, `# no comment`, `k=v`, `äöü`, ``} {
		_, err := conn.Exec(ctx, `SELECT set_config('repmgr.a', '', false)`)
		require.NoError(t, err)
		quoted := "'" + strings.ReplaceAll(value, "'", "''") + "'"
		_, err = conn.Exec(ctx, `ALTER SYSTEM SET repmgr.a = `+quoted)
		require.NoError(t, err)
		got, err := ballot.ReadSettings(ctx, conn)
		require.NoError(t, err)
		require.Equal(t, server.QueryString(t, `SELECT setting FROM pg_file_settings WHERE name = 'repmgr.a'`), got["repmgr.a"])
	}
	auto := filepath.Join(server.Dir, "postgresql.auto.conf")
	for _, line := range []string{"repmgr.a 'two words'", " RepMgr.A='case' # why", "repmgr.a=word", "repmgr.a = 17kB", `repmgr.a = 'o\047n\tx'''`, "\t# repmgr.a = 'comment'", "repmgr.a = 'one'\nrepmgr.a = 'two'"} {
		undo := appendTo(t, auto, line+"\n")
		got, err := ballot.ReadSettings(ctx, conn)
		require.NoError(t, err, line)
		require.Equal(t, server.QueryString(t, `SELECT setting FROM pg_file_settings WHERE lower(name) = 'repmgr.a' ORDER BY seqno DESC LIMIT 1`), got["repmgr.a"], line)
		undo()
	}
	for _, line := range []string{"repmgr.a = 'open", "repmgr.a", "repmgr.a = 'x' y", "repmgr.a = = 'x'", "repmgr.a == 'x'"} {
		undo := appendTo(t, auto, line+"\n")
		_, err := ballot.Read(ctx, conn)
		require.ErrorIs(t, err, ballot.ErrUnreadable, line)
		require.ErrorIs(t, ballot.Pledge(ctx, conn, ballot.Ballot{Node: 1, Term: 9, Candidate: "c"}, ballot.Witness), ballot.ErrUnreadable)
		undo()
	}
	require.NoError(t, os.Remove(auto))
	_, err := ballot.Read(ctx, conn)
	require.ErrorIs(t, err, ballot.ErrUnreadable)
	require.ErrorIs(t, ballot.Pledge(ctx, conn, ballot.Ballot{Node: 1, Term: 9, Candidate: "c"}, ballot.Witness), ballot.ErrUnreadable)
}

// An error anywhere in the configuration hides no vote, and nobody pledges
// themselves whose server would not heed it.
func TestPledge_BrokenConfiguration(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "standby"})
	ctx := t.Context()
	conf := filepath.Join(standby.Dir, "postgresql.conf")
	first := ballot.Ballot{Node: 2, Term: 5, Candidate: "a"}
	require.NoError(t, ballot.Pledge(ctx, standby.Conn(t), first, ballot.Standby))
	for _, broken := range []string{"work_mem = 'x\n", "include 'gone.conf'\n", "no_such_setting = 1\n"} {
		undo := appendTo(t, conf, broken)
		got, err := ballot.Read(ctx, standby.Conn(t))
		require.NoError(t, err)
		require.Equal(t, first, got, broken)
		for _, term := range []int64{3, 5, 6} {
			err = ballot.Pledge(ctx, standby.Conn(t), ballot.Ballot{Node: 2, Term: term, Candidate: "b"}, ballot.Standby)
			require.ErrorIs(t, err, ballot.ErrUnheeded)
			require.ErrorContains(t, err, "its configuration file has an error: "+conf+" line ")
			if strings.HasPrefix(broken, "no_such_setting") {
				require.ErrorContains(t, err, `: unrecognized configuration parameter "no_such_setting"`)
			}
		}
		undo()
	}
	undo := appendTo(t, conf, "shared_buffers = '17MB'\n") // waits for a restart: no error
	require.NoError(t, ballot.Pledge(ctx, standby.Conn(t), ballot.Ballot{Node: 2, Term: 6, Candidate: "b"}, ballot.Standby))
	undo()
	if standby.Major < 17 {
		return
	}
	appendTo(t, conf, "allow_alter_system = off\n")
	standby.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "the setting", func(context.Context) error {
		if standby.QueryString(t, `SHOW allow_alter_system`) != "off" {
			return errors.New("still on")
		}
		return nil
	})
	err := ballot.Pledge(ctx, standby.Conn(t), ballot.Ballot{Node: 2, Term: 7, Candidate: "b"}, ballot.Standby)
	require.ErrorIs(t, err, ballot.ErrUnheeded)
	require.ErrorContains(t, err, "allow_alter_system is off")
}
