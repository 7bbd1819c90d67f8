package repmgr

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// The end of a server ends all connections to it. One session that is terminated,
// or idle for too long, proves nothing.
func TestWatcher_EndedIsTheServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	n := &watcher{w: &watch{wake: func() {}}}
	open := func() *Node {
		node, err := Connect(t.Context(), s.Conninfo())
		require.NoError(t, err)
		n.opened(node, nil)
		return node
	}
	end := func(node *Node) {
		ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(30*time.Second))
		defer cancel()
		_, err := node.conn.WaitForNotification(ctx)
		require.NoError(t, ctx.Err())
		n.ended(node, err)
	}
	idle := open()
	_, err := idle.conn.Exec(t.Context(), `SET idle_session_timeout = '10ms'`)
	if sqlState(err) != "42704" { // before PostgreSQL 14
		require.NoError(t, err)
		end(idle)
		require.False(t, n.snapshot().Ended, "an idle session")
	} else {
		n.closed(idle)
	}
	first, second := open(), open()
	s.Exec(t, `SELECT pg_terminate_backend($1)`, int32(first.conn.PgConn().PID()))
	end(first)
	require.False(t, n.snapshot().Ended, "one of two")
	s.Kill()
	end(second)
	require.True(t, n.snapshot().Ended)
	n.answer(election.Refused, time.Now(), nil)
	require.True(t, n.snapshot().Ended)
	n.answer(election.Silent, time.Now(), nil)
	require.False(t, n.snapshot().Ended, "a port that falls silent and refuses later may be a firewall's")
}
