package voters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// The end of a server ends all connections to it. One session that is terminated,
// or idle for too long, proves nothing.
func TestVoter_EndedIsTheServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	n := &Voter{w: &Watch{wake: func() {}}}
	open := func() *session {
		node, err := registry.Connect(t.Context(), "", s.Conninfo())
		require.NoError(t, err)
		s := &session{Server: node}
		n.opened(s)
		return s
	}
	end := func(node *session) {
		ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(30*time.Second))
		defer cancel()
		_, err := node.Conn.WaitForNotification(ctx)
		require.NoError(t, ctx.Err())
		n.noteEnded(node, err)
	}
	idle := open()
	_, err := idle.Conn.Exec(t.Context(), `SET idle_session_timeout = '10ms'`)
	if postgres.SQLState(err) != "42704" { // before PostgreSQL 14
		require.NoError(t, err)
		end(idle)
		require.False(t, n.Peer().Ended, "an idle session")
	} else {
		n.closed(idle)
	}
	first, second := open(), open()
	s.Exec(t, `SELECT pg_terminate_backend($1)`, int32(first.Conn.PgConn().PID()))
	end(first)
	require.False(t, n.Peer().Ended, "one of two")
	s.Kill()
	end(second)
	require.True(t, n.Peer().Ended)
	n.noteAnswer(election.Refused, time.Now(), nil)
	require.True(t, n.Peer().Ended)
	n.noteAnswer(election.Silent, time.Now(), nil)
	require.False(t, n.Peer().Ended, "a port that falls silent and refuses later may be a firewall's")
}

// The end of a server is seen also by whoever waits for the answer to a statement: the driver then says of some only that
// the connection is closed.
func TestVoter_EndedDuringAStatement(t *testing.T) {
	t.Parallel()
	const statement = `SELECT pg_sleep(60) WHERE $1`
	for name, ask := range map[string]func(context.Context, *registry.Server) error{
		"a row": func(ctx context.Context, n *registry.Server) error {
			var none string
			return n.Conn.QueryRow(ctx, statement, true).Scan(&none)
		},
		"a command": func(ctx context.Context, n *registry.Server) error {
			_, err := n.Conn.Exec(ctx, statement, true)
			return err
		},
		"several at once": func(ctx context.Context, n *registry.Server) error {
			b := &pgx.Batch{}
			b.Queue(`SELECT 1`)
			b.Queue(statement, true)
			b.Queue(`SELECT 2`)
			return n.Conn.SendBatch(ctx, b).Close()
		},
		"without a plan": func(ctx context.Context, n *registry.Server) error {
			_, err := n.Conn.Exec(ctx, `SELECT 1; SELECT pg_sleep(60)`, pgx.QueryExecModeSimpleProtocol)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Name: "node1"})
			n := &Voter{w: &Watch{wake: func() {}}, ctx: t.Context()}
			node, err := registry.Connect(t.Context(), "", s.Conninfo())
			require.NoError(t, err)
			one := &session{Server: node}
			n.opened(one)
			n.idle = []*session{one} // as most are, it was listened on while nobody used it
			n.listen()
			require.Equal(t, "idle", s.QueryString(t, `SELECT state FROM pg_stat_activity WHERE pid = $1`, int32(node.Conn.PgConn().PID())))
			require.Equal(t, one, n.takeIdle())
			ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(30*time.Second))
			defer cancel()
			ended := make(chan error, 1) // 1: the test may have failed before it is read
			go func() { ended <- ask(ctx, node) }()
			pgtest.WaitFor(t, "the statement", func(context.Context) error {
				if got := s.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'`, int32(node.Conn.PgConn().PID())); got != "1" {
					return errors.New("it does not run")
				}
				return nil
			})
			s.Kill()
			err = <-ended
			require.Error(t, err)
			require.NoError(t, ctx.Err())
			n.noteEnded(one, err)
			require.True(t, n.Peer().Ended, "%v", err)
		})
	}
}

// A standby's Monitor that sees its primary leaves out every second question to
// another standby, and none to anybody else, nor while anything is amiss.
func TestVoter_PassesEverySecondPulse(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing is dialled
	calm := func() *Voter {
		w := &Watch{wake: func() {}}
		w.Use(Settings{Self: 2, SilenceTimeout: 2 * time.Second, Conninfo: func(registry.Record) string { return "host=127.0.0.1" }})
		w.skipStandbys.Store(true)
		n := &Voter{w: w, ctx: ctx, results: make(chan attempt, maxOpenConns), listener: &listener{}}
		n.View = election.Peer{ID: 3, Role: election.Standby, Running: election.Standby, Answer: election.Answers, SeenAt: time.Now()}
		return n
	}
	for what, change := range map[string]func(*Voter){
		"an election may be near":   func(n *Voter) { n.w.skipStandbys.Store(false) },
		"its own server":            func(n *Voter) { n.View.ID = 2 },
		"a primary":                 func(n *Voter) { n.View.Running = election.Primary },
		"registered as a primary":   func(n *Voter) { n.View.Role = election.Primary },
		"a witness":                 func(n *Voter) { n.View.Role = election.Witness },
		"silent":                    func(n *Voter) { n.View.Answer = election.Silent },
		"late a moment ago":         func(n *Voter) { n.late = time.Now() },
		"its end would go unheard":  func(n *Voter) { n.listener = nil },
		"a question is on its way":  func(n *Voter) { n.open = 1 },
		"somebody waits for a look": func(n *Voter) { n.waiting = []job{{}} },
	} {
		n := calm()
		require.True(t, n.skipsHeartbeat())
		change(n)
		require.False(t, n.skipsHeartbeat(), what)
	}
	n := calm()
	for range 3 {
		n.newestAttempt, n.firstAttempt = time.Time{}, time.Time{}
		n.ask()
		require.Zero(t, n.open, "the first pulse goes by")
		require.Less(t, n.unansweredFor(), n.lateAfter(), "and what is not asked is not late")
		n.newestAttempt = time.Time{}
		n.ask()
		require.Equal(t, 1, n.open, "the second does not")
		n.countReturned(<-n.results)
		n.w.wg.Wait()
	}
	n.wg.Wait()
}

// What one connection was told of a broken configuration the other one knows, too:
// else the node could pledge itself and could not, in turn.
func TestVoter_OneKnowsOfAFault(t *testing.T) {
	t.Parallel()
	n, now := &Voter{}, time.Now()
	n.setFault(now, "its configuration file has an error")
	n.setFault(now.Add(-time.Second), "") // asked before, answered later
	at, fault := n.faultSeen()
	require.Equal(t, now, at)
	require.NotEmpty(t, fault)
	n.setFault(now.Add(time.Second), "")
	_, fault = n.faultSeen()
	require.Empty(t, fault)
	var gone *Voter
	gone.setFault(now, "")
	at, _ = gone.faultSeen()
	require.True(t, at.IsZero())
}

// A connection of a watcher that has ended, as all of them do in the crash of one
// process of a server, costs that server no cancel request; one of a command does.
func TestVoter_CancelsNothing(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	relayed := make(chan net.Conn, 16)
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
			if err != nil {
				_ = conn.Close()
				return
			}
			relayed <- server
			go func() { _, _ = io.Copy(server, conn) }()
			go func() { _, _ = io.Copy(conn, server); _ = conn.Close() }()
		}
	}()
	conninfo := s.Conninfo(fmt.Sprintf("port=%d", l.Addr().(*net.TCPAddr).Port), "sslmode=disable")
	dialled := func(n *registry.Server, err error) (again int) {
		t.Helper()
		require.NoError(t, err)
		_ = (<-relayed).Close() // as the process of a server that crashed ends
		_, err = n.Conn.WaitForNotification(t.Context())
		require.Error(t, err)
		<-n.Conn.PgConn().CleanupDone()
		return len(relayed)
	}
	require.Zero(t, dialled(registry.ConnectPatiently(t.Context(), "node1", conninfo, time.Second, true)))
	require.Zero(t, dialled(registry.ConnectPatiently(t.Context(), "node1", conninfo, time.Second, false)))
	require.Equal(t, 1, dialled(registry.Connect(t.Context(), "", conninfo)))
}
