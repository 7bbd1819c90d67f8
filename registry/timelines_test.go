package registry

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/wal"
)

// Clients are told when each timeline began, and of the first transaction where nothing lies between it and the one before.
func TestTellTimelines(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := pgtest.Start(t, pgtest.Options{})
	n, err := Connect(ctx, "", server.Conninfo())
	require.NoError(t, err)
	defer n.Close()
	schema, err := os.ReadFile("../schema.sql")
	require.NoError(t, err)
	_, err = n.CreateSchema(ctx, string(schema))
	require.NoError(t, err)
	write := func(term int64, seq int, xid uint64, timelines ...wal.Timeline) {
		r := election.Rule{Term: term, Seq: seq, Primary: 1, FirstXid: xid}
		for i, tl := range timelines {
			if r.Line.Timeline = tl; i < len(timelines)-1 {
				r.Line.Past = append(r.Line.Past, wal.HistoryEntry{Timeline: tl, SwitchLSN: wal.LSN(tl)})
			}
		}
		require.NoError(t, n.WriteRule(ctx, r, ""))
	}
	told := func(want string) {
		t.Helper()
		require.NoError(t, n.TellTimelines(ctx))
		require.Equal(t, want, server.QueryString(t, `SELECT setting FROM pg_file_settings WHERE name = 'repmgr.timelines'`))
		pgtest.WaitFor(t, "the setting in this session", func(context.Context) error {
			var now string
			if err := n.Conn.QueryRow(ctx, `SELECT current_setting('repmgr.timelines')`).Scan(&now); err != nil || now != want {
				return fmt.Errorf("it is %q, %w", now, err)
			}
			return nil
		})
		before := server.QueryString(t, `SELECT pg_conf_load_time()::text`)
		require.NoError(t, n.TellTimelines(ctx))
		require.Equal(t, before, server.QueryString(t, `SELECT pg_conf_load_time()::text`), "nothing is written where nothing has changed")
	}
	write(1, 1, 0, 1)
	write(1, 2, 0, 1)
	told("1/1/")
	write(3, 1, 700, 1, 2)
	write(3, 2, 700, 1, 2)
	write(4, 1, 0, 1, 2) // reaffirmed
	told("1/1/ 3/2/700")
	write(6, 1, 900, 1, 2, 3, 4) // somebody else has promoted to timeline 3
	told("1/1/ 3/2/700 6/4/")
	write(7, 1, 0)
	told("1/1/ 3/2/700 6/4/ 7/0/")
	for tl := wal.Timeline(8); tl <= 17; tl++ {
		write(int64(tl), 1, uint64(tl)*1000, tl-1, tl)
	}
	told("8/8/ 9/9/9000 10/10/10000 11/11/11000 12/12/12000 13/13/13000 14/14/14000 15/15/15000 16/16/16000 17/17/17000")
}
