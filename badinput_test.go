package repmgr_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

// requireError wants an error of that kind whose text names what it is about,
// and help beside it.
func requireError(t *testing.T, err, want error, names ...string) {
	t.Helper()
	require.ErrorIs(t, err, want)
	for _, name := range names {
		require.ErrorContains(t, err, name)
	}
	require.NotEmpty(t, repmgr.Hint(err), "no hint for: %v", err)
}

// A server that can not be reached, each way told apart by name.
func TestConnect_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Password: "right", Settings: map[string]string{"max_connections": "5", "superuser_reserved_connections": "0", "max_wal_senders": "2"}})
	silentHost, silentPort := pgtest.Blackhole(t)
	muteHost, mutePort := pgtest.Mute(t)
	banner := listen(t, "HTTP/1.1 400 Bad Request\r\n\r\n")
	conninfo := func(host string, port int) string {
		return repmgr.FormatConninfo(map[string]string{"host": host, "port": strconv.Itoa(port), "user": "postgres", "connect_timeout": "1"})
	}
	tests := map[string]struct {
		conninfo string
		want     repmgr.Reach
	}{
		"nothing listens":         {conninfo("127.0.0.1", pgtest.Port(t)), repmgr.ReachRefused},
		"packets are dropped":     {conninfo(silentHost, silentPort), repmgr.ReachTimeout},
		"accepted, never answers": {conninfo(muteHost, mutePort), repmgr.ReachTimeout},
		"something else listens":  {conninfo("127.0.0.1", banner), repmgr.ReachNotPostgres},
		"unknown host":            {conninfo("no-such-host.invalid", 5432), repmgr.ReachNoHost},
		"wrong password":          {server.Conninfo("password=wrong"), repmgr.ReachRejected},
		"no such database":        {server.Conninfo("password=right", "dbname=nope"), repmgr.ReachRejected},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := repmgr.Connect(t.Context(), test.conninfo)
			requireError(t, err, repmgr.ErrConnect)
			var ce *repmgr.ConnectError
			require.ErrorAs(t, err, &ce)
			require.Equal(t, test.want, ce.Reach, err.Error())
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "wrong")
			require.Less(t, time.Since(start), pgtest.Timeout(10*time.Second), "connect_timeout is 1 s")
		})
	}
}

// A server that is just being stopped says of TLS, which is asked for first, that it
// has none, and then no more: that it has no TLS is not what is wrong.
func TestConnect_ToAServerThatEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		host    string
		then    func(net.Conn) // the second attempt, without TLS
		sslmode string
		want    repmgr.Reach
		text    string
		hint    string
	}{
		"it is gone":       {"127.0.77.1", nil, "prefer", repmgr.ReachRefused, "connection refused", "Nothing listens"},
		"it hangs up":      {"127.0.77.2", func(c net.Conn) { _, _ = c.Read(make([]byte, 1024)); _ = c.Close() }, "prefer", repmgr.ReachBroken, "EOF", "was it just stopped"},
		"it resets":        {"127.0.77.3", func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() }, "prefer", repmgr.ReachBroken, "connection reset", "was it just stopped"},
		"TLS is asked for": {"127.0.77.4", nil, "require", repmgr.ReachNotPostgres, "refused TLS", "sslmode=prefer"},
		"it says so": {"127.0.77.5", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1024))
			text := "SFATAL\x00VFATAL\x00C57P03\x00Mthe database system is shutting down\x00\x00"
			_, _ = c.Write(append([]byte{'E', 0, 0, 0, byte(len(text) + 4)}, text...))
			_ = c.Close()
		}, "prefer", repmgr.ReachStarting, "shutting down", "starting up or shutting down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", test.host+":0") // of its own: nobody else comes to listen there
			require.NoError(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer l.Close()
				c, err := l.Accept()
				if err != nil {
					return
				}
				if test.then == nil {
					_ = l.Close()
				}
				_, _ = io.ReadFull(c, make([]byte, 8)) // the request for TLS
				_, _ = c.Write([]byte("N"))
				_ = c.Close()
				if test.then != nil {
					if c, err = l.Accept(); err == nil {
						test.then(c)
					}
				}
			}()
			_, err = repmgr.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres sslmode=%s", test.host, l.Addr().(*net.TCPAddr).Port, test.sslmode))
			<-done
			var ce *repmgr.ConnectError
			require.ErrorAs(t, err, &ce)
			require.Equal(t, test.want, ce.Reach, err.Error())
			require.ErrorContains(t, err, test.text)
			require.Contains(t, repmgr.Hint(err), test.hint)
			if test.sslmode == "prefer" {
				require.NotContains(t, err.Error(), "TLS")
			}
		})
	}
}

// listen answers every connection in another protocol.
func listen(t *testing.T, answer string) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 8))
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

func TestRegister_RefusesWhatIsNotRight(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	ctx := t.Context()

	_, err := node1.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrRegistered, "node ID 1", "node1")
	rec, err := node1.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.RolePrimary, rec.Role)

	_, err = node1.RegisterStandby(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrNotStandby, "node1")

	// A second primary, with the metadata of the first.
	other := pgtest.Start(t, pgtest.Options{Name: "other"})
	second := newNode(t, 2, other)
	other.Exec(t, repmgr.Schema)
	other.Exec(t, `INSERT INTO repmgr.nodes VALUES (1, NULL, true, 'node1', 'primary', 'default', 100, $1, 'postgres', NULL, '')`, node1.Conninfo())
	_, err = second.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrPrimaryExists, "node1")

	// An old primary comes back, with an old copy of the rows: node1's standby was promoted.
	other.Exec(t, `UPDATE repmgr.nodes SET type = 'standby'`)
	_, err = second.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: true})
	requireError(t, err, repmgr.ErrPrimaryExists, "node1", "timeline 1")

	// Another cluster's name.
	foreign := newNode(t, 1, node1.Server, func(c *repmgr.Config) { c.ClusterName = "prod" })
	_, err = foreign.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: true})
	requireError(t, err, repmgr.ErrConfig, "prod", "test")

	// Names and ids of others.
	standby := pgtest.NewStandby(t, node1.Server, pgtest.Options{Name: "node2"})
	sameName := newNode(t, 2, standby, func(c *repmgr.Config) { c.NodeName = "node1" })
	_, err = sameName.RegisterStandby(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrRegistered, "node1", "node ID 1")
	sameButCase := newNode(t, 2, standby, func(c *repmgr.Config) { c.NodeName = "NODE1" })
	_, err = sameButCase.RegisterStandby(ctx, repmgr.RegisterOptions{Force: true})
	requireError(t, err, repmgr.ErrRegistered, "NODE1", "only in case", "node1")
	for _, name := range []string{"*", "a, b", `a"b`, "node 2"} {
		cfg := newNode(t, 2, standby).cfg
		cfg.NodeName = name
		_, err = repmgr.New(cfg)
		require.ErrorIs(t, err, repmgr.ErrConfig)
		require.ErrorContains(t, err, fmt.Sprintf(`"node_name" = %q: must be of letters, digits`, name))
	}
	sameID := newNode(t, 1, standby, func(c *repmgr.Config) { c.NodeName = "node2" })
	_, err = sameID.RegisterStandby(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrRegistered, "node ID 1")
	_, err = sameID.RegisterStandby(ctx, repmgr.RegisterOptions{Force: true})
	requireError(t, err, repmgr.ErrRegistered, "node ID 1", "another running server")
	node2 := newNode(t, 2, standby)
	_, err = node2.RegisterStandby(ctx, repmgr.RegisterOptions{UpstreamID: 7})
	requireError(t, err, repmgr.ErrNotRegistered, "7")
	_, err = node2.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrNotPrimary, "node2")

	nodes, err := node1.Nodes(ctx)
	require.NoError(t, err)
	require.Len(t, nodes, 1, "a refused registration changes nothing")
}

func TestRegisterStandby_BeforeThePrimaryIsRefused(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "node1"})
	node2 := newNode(t, 2, pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2"}))
	_, err := node2.RegisterStandby(t.Context(), repmgr.RegisterOptions{})
	requireError(t, err, repmgr.ErrNotRegistered, "no repmgr metadata")
	require.Contains(t, repmgr.Hint(err), "primary register")
}

// Rows that name two primaries, of which one runs as a standby, are put right from there.
func TestRegisterStandby_WhoseRowSaysPrimary(t *testing.T) {
	t.Parallel()
	node5 := startPrimary(t, func(c *repmgr.Config) { c.NodeID, c.NodeName = 5, "node5" })
	node3 := addStandby(t, node5, 3)
	node5.Exec(t, `UPDATE repmgr.nodes SET type = 'primary', upstream_node_id = NULL WHERE node_id = 3`)
	waitSame(t, node5, node3)
	_, err := node3.RegisterStandby(t.Context(), repmgr.RegisterOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, "3:standby:5:true 5:primary:0:true", nodesOf(t, node5))

	// Nor can a daemon make a second one of an inactive row.
	server, err := registry.Connect(t.Context(), "", node5.Conninfo())
	require.NoError(t, err)
	defer server.Close()
	for role, want := range map[string]string{"primary": "3:primary:0:false 5:primary:0:true", "standby": "3:standby:0:true 5:primary:0:true"} {
		node5.Exec(t, `UPDATE repmgr.nodes SET type = $1, upstream_node_id = NULL, active = false WHERE node_id = 3`, role)
		require.NoError(t, server.MarkActive(t.Context(), 3, true))
		require.Equal(t, want, nodesOf(t, node5))
	}
}

func TestUnregister(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2, func(c *repmgr.Config) { c.UseReplicationSlots = true })
	ctx := t.Context()
	_, err := node1.UnregisterPrimary(ctx, repmgr.UnregisterOptions{Force: true})
	requireError(t, err, repmgr.ErrRefused, "node2")
	_, err = node1.UnregisterStandby(ctx, repmgr.UnregisterOptions{NodeID: 9})
	requireError(t, err, repmgr.ErrNotRegistered, "9")
	require.Contains(t, repmgr.Hint(err), "2 (node2, standby)")

	_, err = node1.UnregisterStandby(ctx, repmgr.UnregisterOptions{})
	requireError(t, err, repmgr.ErrRefused, "is registered as primary, not as standby")
	require.Equal(t, "Use: repmgr primary unregister --node-id=1", repmgr.Hint(err))

	_, err = node2.UnregisterStandby(ctx, repmgr.UnregisterOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, "repmgr_slot_2", node1.QueryString(t, `SELECT slot_name FROM pg_replication_slots WHERE active`))
	node2.Stop("fast")
	_, err = node1.UnregisterStandby(ctx, repmgr.UnregisterOptions{NodeID: 2})
	require.NoError(t, err)
	require.Equal(t, "0", node1.QueryString(t, `SELECT count(*) FROM pg_replication_slots`), "an idle slot would keep WAL for ever")
	_, err = node1.UnregisterPrimary(ctx, repmgr.UnregisterOptions{})
	requireError(t, err, repmgr.ErrRefused, "running primary")
	_, err = node1.UnregisterPrimary(ctx, repmgr.UnregisterOptions{Force: true})
	require.NoError(t, err)
}

// A password in conninfo reaches no table, no log, no event and no error, and
// the cluster works with it all the same.
func TestSecrets_StayOut(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-pass"
	server := pgtest.Start(t, pgtest.Options{Name: "node1", Password: secret})
	var log lockedBuffer
	change := func(c *repmgr.Config) {
		c.Conninfo += " password=" + secret
		c.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.UsePrimaryConninfoPassword = true
		c.EventNotificationCommand = `printf '%s\n' "%n %e %d %c" >&2; env | grep -c ` + secret + ` >&2; exit 1`
	}
	node1 := newNode(t, 1, server, change)
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node2 := prepareStandby(t, node1, 2, change)
	_, err = node2.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: node2.Dir, FastCheckpoint: true})
	require.NoError(t, err)
	node2.Start(t)
	_, err = node2.RegisterStandby(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	require.Equal(t, "running", node1.view(t, 2).Status)
	require.Equal(t, "running", node2.view(t, 2).Status)

	dump, err := os.ReadFile(filepath.Join(node2.Dir, "postgresql.auto.conf"))
	require.NoError(t, err)
	require.Contains(t, string(dump), secret, "asked for by use_primary_conninfo_password")
	for _, q := range []string{`SELECT string_agg(n::text, ' ') FROM repmgr.nodes n`, `SELECT string_agg(e::text, ' ') FROM repmgr.events e`} {
		conn := node1.Conn(t)
		var text string
		require.NoError(t, conn.QueryRow(t.Context(), q).Scan(&text))
		require.NotContains(t, text, secret)
	}
	require.Contains(t, log.String(), "event_notification_command")
	require.NotContains(t, log.String(), secret)
	_, err = repmgr.New(repmgr.Config{NodeID: 1, Conninfo: "host=a password=" + secret + " nonsense=1"})
	require.ErrorIs(t, err, repmgr.ErrConfig)
	require.NotContains(t, err.Error(), secret)
}

func TestFollow_Refuses(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	ctx := t.Context()
	_, err := node1.Follow(ctx, repmgr.FollowOptions{UpstreamID: 2})
	requireError(t, err, repmgr.ErrNotStandby, "node1")
	_, err = node2.Follow(ctx, repmgr.FollowOptions{UpstreamID: 5})
	requireError(t, err, repmgr.ErrNotRegistered, "5")
	_, err = node2.Follow(ctx, repmgr.FollowOptions{UpstreamID: 2})
	require.ErrorIs(t, err, repmgr.ErrConfig)
	_, err = node1.Promote(ctx, repmgr.PromoteOptions{})
	requireError(t, err, repmgr.ErrNotStandby, "node1")

	// node2 is promoted; node3 stays behind, with rows that node2 never had.
	node2.Stop("fast")
	node1.Exec(t, `CREATE TABLE only_here AS SELECT generate_series(1, 1000)`)
	waitSame(t, node1, node3)
	node1.Kill()
	node2.StartAgain()
	_, err = node2.Promote(ctx, repmgr.PromoteOptions{Force: true})
	require.NoError(t, err)
	before := node3.QueryString(t, `SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'`)
	_, err = node3.Follow(ctx, repmgr.FollowOptions{})
	requireError(t, err, repmgr.ErrTimelineDiverged, "node3", "node2", "timeline 2")
	for _, asked := range []*node{node2, node3} {
		v := asked.view(t, 3)
		require.NotNil(t, v.Diverged)
		require.Contains(t, v.Diverged.Why, "can not follow")
		require.Contains(t, v.Diverged.Remedy, "node rejoin")
		require.Nil(t, v.LostWAL)
	}
	rep, err := node3.NodeStatus(ctx)
	require.NoError(t, err)
	require.Contains(t, strings.Join(rep.Issues, "\n"), "node rejoin")
	not, err := node2.WhyNot(ctx, 3)
	require.NoError(t, err)
	require.Contains(t, strings.Join(not.Reasons, "\n"), "can not follow")
	require.Contains(t, strings.Join(not.Reasons, "\n"), "node rejoin")
	require.Equal(t, before, node3.QueryString(t, `SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'`), "nothing changed")

	// Promoted apart: both are on timeline 2, and neither can follow the other.
	node3.Exec(t, `SELECT pg_promote()`)
	_, err = node2.Follow(ctx, repmgr.FollowOptions{})
	require.ErrorIs(t, err, repmgr.ErrRefused)
	require.ErrorContains(t, err, "more than one node runs as primary")
	node4 := newNode(t, 4, pgtest.NewStandby(t, node3.Server, pgtest.Options{Name: "node4"}))
	node3.Kill()
	node2.Exec(t, `INSERT INTO repmgr.nodes VALUES (4, 2, true, 'node4', 'standby', 'default', 100, $1, 'postgres', NULL, '')`, node4.Conninfo())
	_, err = node4.Follow(ctx, repmgr.FollowOptions{Target: node2.Conninfo()})
	requireError(t, err, repmgr.ErrTimelineDiverged, "node4", "node2", "promoted apart")
}

// An open stream from a primary that we can not reach is evidence that it lives.
func TestPromote_RefusesWhilePrimaryStillSends(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	host, port := pgtest.Blackhole(t)
	// Our way to node1 is broken; its stream to node2 is not.
	node1.Exec(t, `UPDATE repmgr.nodes SET conninfo = $1 WHERE node_id = 1`, repmgr.FormatConninfo(map[string]string{"host": host, "port": strconv.Itoa(port), "connect_timeout": "1", "user": "postgres"}))
	waitSame(t, node1, node2)
	_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{})
	requireError(t, err, repmgr.ErrRefused, "still receives WAL", "node2")
	require.True(t, pgtest.Query[bool](t, node2.Server, `SELECT pg_is_in_recovery()`))
}

// The checks of a node whose upstream is silent wait for it once.
func TestCheckNode_AsksTheUpstreamOnce(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	host, port := pgtest.Blackhole(t)
	const limit = 4 * time.Second
	silent := map[string]string{"host": host, "port": strconv.Itoa(port), "connect_timeout": fmt.Sprint(limit.Seconds()), "user": "postgres"}
	node1.Exec(t, `UPDATE repmgr.nodes SET conninfo = $1 WHERE node_id = 1`, repmgr.FormatConninfo(silent))
	waitSame(t, node1, node2)
	begun := time.Now()
	res, err := node2.CheckNode(t.Context(), "")
	require.NoError(t, err)
	require.Less(t, time.Since(begun), 2*limit)
	upstream := res.Checks[slices.IndexFunc(res.Checks, func(c repmgr.CheckResult) bool { return c.Check == repmgr.CheckUpstream })]
	require.Equal(t, repmgr.CheckUnknown, upstream.Status)
	require.Contains(t, upstream.Details, "no answer within connect_timeout (4s)")
}

// Ten silent nodes cost no more than one.
func TestStatus_ProbesInParallel(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	host, port := pgtest.Blackhole(t)
	silent := repmgr.FormatConninfo(map[string]string{"host": host, "port": strconv.Itoa(port), "connect_timeout": "1", "user": "postgres"})
	node1.Exec(t, `INSERT INTO repmgr.nodes SELECT n, 1, true, 'node' || n, 'standby', 'default', 100, $1, 'postgres', NULL, '' FROM generate_series(2, 51) n`, silent)
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(20*time.Second)) // one after another they would take 50 s
	defer cancel()
	st, err := node1.Status(ctx)
	require.NoError(t, err)
	require.Len(t, st.Nodes, 51)
	require.Equal(t, "* running", st.Nodes[0].Status)
	for _, n := range st.Nodes[1:] {
		require.Equal(t, "? unreachable", n.Status)
		require.Equal(t, repmgr.ReachTimeout, n.Reach)
	}
	require.Len(t, st.Issues, 50)
	require.Contains(t, st.Issues[0], `node "node2" (ID: 2): no answer within connect_timeout (1s)`)
}

// lockedBuffer takes the log of several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
