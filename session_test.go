package repmgr_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// worstSettings are defaults that harm a session that does not bring its own,
// each with what serves the test's own connections, and the first major that
// knows it.
var worstSettings = []struct {
	name, worst, good string
	since             int
}{
	{"default_transaction_isolation", "'serializable'", "'read committed'", 0},
	{"default_transaction_read_only", "on", "off", 0},
	{"default_transaction_deferrable", "on", "off", 0},
	{"statement_timeout", "'1ms'", "0", 0},
	{"lock_timeout", "'1ms'", "0", 0},
	{"idle_in_transaction_session_timeout", "'1ms'", "0", 0},
	{"idle_session_timeout", "'200ms'", "0", 14}, // shorter than the time between two looks; walsenders live under it, too
	{"transaction_timeout", "'1ms'", "0", 17},
	{"client_connection_check_interval", "'1ms'", "0", 14},
	{"exit_on_error", "on", "off", 0},
	{"synchronous_commit", "remote_apply", "on", 0},
	{"search_path", "trap", `"$user", public`, 0},
	{"row_security", "off", "on", 0},
	{"client_encoding", "'LATIN1'", "'UTF8'", 0},
	{"datestyle", "'SQL', 'DMY'", "'ISO', 'MDY'", 0},
	{"intervalstyle", "'sql_standard'", "'postgres'", 0},
	{"timezone", "'America/St_Johns'", "'UTC'", 0},
	{"bytea_output", "'escape'", "'hex'", 0},
	{"extra_float_digits", "-15", "1", 0},
	{"standard_conforming_strings", "off", "on", 0},
	{"backslash_quote", "off", "on", 0},
	{"escape_string_warning", "on", "off", 0},
	{"transform_null_equals", "on", "off", 0},
	{"quote_all_identifiers", "on", "off", 0},
	{"array_nulls", "off", "on", 0},
	{"xmlbinary", "'hex'", "'base64'", 0},
	{"check_function_bodies", "off", "on", 0},
	{"default_table_access_method", "'trap'", "'heap'", 0},
	{"jit", "on", "off", 0},
	{"jit_above_cost", "0", "100000", 0},
	{"work_mem", "'64kB'", "'4MB'", 0},
	{"client_min_messages", "'debug5'", "'notice'", 0},
	{"session_replication_role", "'replica'", "'origin'", 0},
	{"track_activities", "off", "on", 0},
	{"plan_cache_mode", "'force_generic_plan'", "'auto'", 0},
	{"enable_seqscan", "off", "on", 0},
	{"event_triggers", "off", "on", 17},
	{"stats_fetch_consistency", "'snapshot'", "'cache'", 15},
}

// settingLevels are the places where a default can stand.
var settingLevels = []string{"server", "database", "role", "role in database"}

// ours is the login of the nodes in these tests. The test's own, postgres, keeps
// good defaults everywhere.
const ours = "user=ours"

func asOurs(c *repmgr.Config) { c.Conninfo += " " + ours }

// setAt sets a default at a level, on a primary and, where it is the server's, on all nodes.
func setAt(t *testing.T, level, name, value string, nodes ...*node) {
	t.Helper()
	switch level {
	case "server":
		if name == "transaction_timeout" && value != "DEFAULT" {
			value = "'200ms'" // each login is a transaction, too, which nobody can give more time
		}
		for _, n := range nodes {
			n.Exec(t, `ALTER SYSTEM SET `+name+` = `+value)
			n.Exec(t, `SELECT pg_reload_conf()`)
		}
		return
	case "database":
		level = "DATABASE postgres"
	case "role":
		level = "ROLE ours"
	case "role in database":
		level = "ROLE ours IN DATABASE postgres"
	}
	nodes[0].Exec(t, `ALTER `+level+` SET `+name+` = `+value)
}

func resetAt(t *testing.T, level, name string, nodes ...*node) {
	t.Helper()
	if level == "server" {
		for _, n := range nodes {
			n.Exec(t, `ALTER SYSTEM RESET `+name)
			n.Exec(t, `SELECT pg_reload_conf()`)
		}
		return
	}
	setAt(t, level, name, "DEFAULT", nodes...)
}

// prepareLevels makes the login, and what the worst settings name, and gives the
// test's own login good defaults.
func prepareLevels(t *testing.T, primary *pgtest.Server) {
	t.Helper()
	primary.Exec(t, `CREATE ROLE ours SUPERUSER LOGIN; CREATE SCHEMA trap; CREATE ACCESS METHOD trap TYPE TABLE HANDLER heap_tableam_handler;
		CREATE FUNCTION trap.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT 1/0 = 1'`)
	for _, s := range worstSettings {
		if s.since <= primary.Major {
			primary.Exec(t, `ALTER ROLE postgres IN DATABASE postgres SET `+s.name+` = `+s.good)
		}
	}
}

func addOurs(t *testing.T, from *node, id repmgr.NodeID, change ...func(*repmgr.Config)) *node {
	t.Helper()
	n := prepareStandby(t, from, id, append(change, asOurs)...)
	_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: from.Conninfo(ours), Dir: n.Dir, FastCheckpoint: true})
	require.NoError(t, err)
	n.Start(t)
	n.cfg.DataDirectory = n.Dir
	_, err = n.RegisterStandby(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	return n
}

// healthy runs the commands that ask, and wants them to find nothing wrong.
func healthy(t *testing.T, n *node) {
	t.Helper()
	ctx := t.Context()
	st, err := n.Status(ctx)
	require.NoError(t, err)
	require.Empty(t, st.Issues)
	svc, err := n.ServiceStatus(ctx)
	require.NoError(t, err)
	for _, v := range svc.Nodes {
		require.Empty(t, v.ServiceError)
	}
	_, err = n.Explain(ctx, repmgr.ExplainOptions{})
	require.NoError(t, err)
	_, err = n.Events(ctx, repmgr.EventFilter{})
	require.NoError(t, err)
}

// No default of the server, the database, the role, or the role in the database
// harms a session of ours: each one alone leaves the commands as they are.
func TestSessions_EachDefault(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	prepareLevels(t, s)
	node1 := newNode(t, 1, s, asOurs)
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node2 := addOurs(t, node1, 2)
	for _, level := range settingLevels {
		for _, d := range worstSettings {
			if d.since > node1.Major {
				continue
			}
			setAt(t, level, d.name, d.worst, node1, node2)
			waitSame(t, node1, node2)
			t.Run(level+"/"+d.name, func(t *testing.T) { healthy(t, node2) })
			resetAt(t, level, d.name, node1, node2)
		}
	}
}

// With all of them at once, set while everybody is healthy, nobody is fenced, and
// every command, a failover and a rejoin work.
func TestSessions_WorstDefaults(t *testing.T) {
	needRejoin(t)
	for _, level := range settingLevels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Name: "node1"})
			prepareLevels(t, s)
			off := automatic(repmgr.SynchronousOff)
			node1 := newNode(t, 1, s, asOurs, off)
			node1.cfg.DataDirectory = node1.Dir
			_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
			require.NoError(t, err)
			nodes := []*node{node1, addOurs(t, node1, 2, off)}
			for _, d := range worstSettings {
				if d.since <= node1.Major {
					setAt(t, level, d.name, d.worst, nodes...)
				}
			}
			nodes = append(nodes, addOurs(t, node1, 3, off)) // its server's are those of its source
			var monitors []*repmgr.Monitor
			for _, n := range nodes {
				m, _ := n.monitor(t)
				monitors = append(monitors, m)
			}
			waitReady(t, nodes, 3, repmgr.SynchronousOff)
			waitSame(t, node1, nodes[2])
			for _, n := range nodes {
				healthy(t, n)
			}
			_, err = nodes[1].Pause(t.Context(), repmgr.PauseOptions{})
			require.NoError(t, err)
			_, err = nodes[2].Follow(t.Context(), repmgr.FollowOptions{})
			require.NoError(t, err)
			_, err = nodes[1].Unpause(t.Context(), repmgr.PauseOptions{})
			require.NoError(t, err)
			waitLooked(t, nodes)
			_, err = node1.Cleanup(t.Context(), repmgr.CleanupOptions{})
			require.NoError(t, err)

			nodes[0].Kill()
			winner := waitPrimary(t, nodes[1:]...)
			nodes[0].events.waitRejoin(t)
			waitSame(t, winner, nodes[0])
			for _, m := range monitors {
				require.NotEqual(t, election.Fenced, m.Status().Phase)
			}
			pgtest.WaitFor(t, "three nodes that are well", func(ctx context.Context) error {
				st, err := winner.Status(ctx)
				if err == nil && len(st.Issues) > 0 {
					err = fmt.Errorf("%s", strings.Join(st.Issues, "; "))
				}
				return err
			})
			_, err = nodes[0].UnregisterStandby(t.Context(), repmgr.UnregisterOptions{Force: true})
			require.NoError(t, err)
		})
	}
}

// A default that makes every question of a session like others' fail on a
// standby, put in force under healthy Monitors, fences nobody.
func TestSessions_SerializableFencesNobody(t *testing.T) {
	t.Parallel()
	nodes, monitors := startCluster(t, 3, repmgr.SynchronousOff)
	for _, n := range nodes {
		n.Exec(t, `ALTER SYSTEM SET default_transaction_isolation = 'serializable'`)
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	since := time.Now()
	conn := func(n *node) string { return n.Conninfo("default_transaction_isolation='read committed'") }
	for i, m := range monitors {
		pgtest.WaitFor(t, "looks for longer than a lease lasts", func(context.Context) error {
			if at := m.Status().LookedAt; at.Sub(since) < 2*nodes[i].Config().FenceTimeout {
				return fmt.Errorf("looked last at %s", at)
			}
			return nil
		})
	}
	for i, n := range nodes {
		c, err := pgx.Connect(t.Context(), conn(n))
		require.NoError(t, err)
		var standby bool
		require.NoError(t, c.QueryRow(t.Context(), `SELECT pg_is_in_recovery()`).Scan(&standby))
		require.NoError(t, c.Close(t.Context()))
		require.Equal(t, i > 0, standby, n.cfg.NodeName)
		require.Empty(t, monitors[i].Status().Error)
	}
}

// A pooler between us and the server is refused with words, whatever its mode, and
// whether it lets our settings through or not; nothing has changed then.
func TestSessions_PoolerIsRefused(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	for _, mode := range []string{"session", "transaction"} {
		for name, ignored := range map[string][]string{"lets in": repmgr.PinNames(), "refuses": nil} {
			t.Run(mode+" "+name, func(t *testing.T) {
				n := newNode(t, 1, s)
				cfg := n.cfg
				cfg.Conninfo = pgtest.StartPooler(t, s, mode, ignored...)
				c, err := repmgr.New(cfg)
				require.NoError(t, err)
				_, err = c.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
				require.ErrorIs(t, err, repmgr.ErrConnect)
				require.Contains(t, repmgr.Hint(err), "Let conninfo lead to the PostgreSQL server itself")
				if ignored != nil {
					require.ErrorContains(t, err, "a connection pooler such as PgBouncer answers there")
				}
				require.Equal(t, "", s.QueryString(t, `SELECT to_regnamespace('repmgr')`))
			})
		}
	}
}

// What only hands packets on is no pooler.
func TestSessions_ForwardedPort(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "node1"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	n := newNode(t, 1, s, func(c *repmgr.Config) {
		c.Conninfo = fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", l.Addr().(*net.TCPAddr).Port)
	})
	_, err = n.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	healthy(t, n)
}

// A node's conninfo leads to it whatever it runs as: one that asks for a role is
// refused with words, and in a row that is there already it is not heeded, nor in the environment.
func TestSessions_TargetSessionAttrs(t *testing.T) {
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	for _, attrs := range []string{"read-write", "primary", "standby", "read-only", "prefer-standby"} {
		cfg := node2.cfg
		cfg.Conninfo += " target_session_attrs=" + attrs
		_, err := repmgr.New(cfg)
		require.ErrorIs(t, err, repmgr.ErrConfig)
		require.ErrorContains(t, err, "target_session_attrs="+attrs+" asks for a server that happens to be one")
	}
	cfg := node2.cfg
	cfg.Conninfo += " target_session_attrs=any"
	_, err := repmgr.New(cfg)
	require.NoError(t, err)

	node1.Exec(t, `UPDATE repmgr.nodes SET conninfo = conninfo || ' target_session_attrs=read-write'`)
	waitSame(t, node1, node2)
	healthy(t, node2)
	t.Setenv("PGTARGETSESSIONATTRS", "read-write")
	healthy(t, node2)
}
