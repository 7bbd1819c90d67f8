package surfaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/router"
)

// database is a connection, or a pool.
type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// client writes a row in a transaction, again and again, over one connection as long as that lasts, or over a pool.
type client struct {
	name     string
	open     func(ctx context.Context) (db database, drop func(), err error)
	from, to int64 // its rows
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	acks   []int64
	failed []error
}

func startClient(t *testing.T, name string, number int64, open func(context.Context) (database, func(), error)) *client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &client{name: name, open: open, from: number * 1_000_000, to: (number + 1) * 1_000_000, cancel: cancel}
	c.wg.Go(func() { c.run(ctx) })
	t.Cleanup(c.stop)
	c.goesOn(t)
	return c
}

func (c *client) stop() { c.cancel(); c.wg.Wait() }

func (c *client) run(ctx context.Context) {
	var db database
	drop := func() {}
	defer func() { drop() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for id := c.from; id < c.to && ctx.Err() == nil; id++ {
		err := func() (err error) {
			limited, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if db == nil {
				if db, drop, err = c.open(limited); err != nil {
					db, drop = nil, func() {}
					return err
				}
			}
			return pgx.BeginFunc(limited, db, func(tx pgx.Tx) error {
				_, err := tx.Exec(limited, `INSERT INTO clients VALUES ($1)`, id)
				return err
			})
		}()
		c.mu.Lock()
		if err == nil {
			c.acks = append(c.acks, id)
		} else if ctx.Err() == nil {
			c.failed = append(c.failed, err)
		}
		c.mu.Unlock()
		if err != nil {
			drop()
			db, drop = nil, func() {}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// over opens connections to conninfo.
func over(conninfo string) func(context.Context) (database, func(), error) {
	return func(ctx context.Context) (database, func(), error) {
		conn, err := pgx.Connect(ctx, conninfo)
		return conn, func() {
			limited, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			_ = conn.Close(limited)
		}, err
	}
}

func (c *client) state() (acks int, failed []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acks), c.failed
}

// goesOn waits until the client has written again.
func (c *client) goesOn(t *testing.T) {
	t.Helper()
	before, _ := c.state()
	pgtest.WaitFor(t, "commits of "+c.name, func(context.Context) error {
		now, failed := c.state()
		if now < before+5 {
			return fmt.Errorf("%d more, after the errors %w", now-before, errors.Join(failed...))
		}
		return nil
	})
}

// The daemons push to a HAProxy without any health check, and to a PgBouncer: both lead to the primary after it was killed, after it
// has stopped to answer, and after a switchover, of which the clients of PgBouncer see no error.
func TestRouters(t *testing.T) {
	t.Parallel()
	dir := pgtest.ShortDir(t)
	socket, databases, console := filepath.Join(dir, "socket"), filepath.Join(dir, "databases.ini"), pgtest.Port(t)
	require.NoError(t, os.WriteFile(databases, []byte("app = dbname=postgres user=postgres\n"), 0o600))
	nodes := daemontest.ClusterOf(t, 3, func(int) []string {
		return []string{
			"synchronous_mode=quorum", "rejoin=rewind", "hang_timeout=3", "router_haproxy_socket='" + socket + "'", "router_haproxy_backend=pushed",
			fmt.Sprintf("router_pgbouncer='host=127.0.0.1 port=%d user=postgres'", console), "router_pgbouncer_file='" + databases + "'",
		}
	})
	nodes[0].Exec(t, `CREATE TABLE clients (id bigint PRIMARY KEY)`)

	// The routers are started after the daemons, which try again.
	front := pgtest.Port(t)
	var conf strings.Builder
	fmt.Fprintf(&conf, "global\n stats socket %s mode 600 level admin\n maxconn 100\ndefaults\n mode tcp\n timeout connect 2s\n timeout client 1m\n timeout server 1m\nlisten pushed\n bind 127.0.0.1:%d\n", socket, front)
	for i, n := range nodes {
		fmt.Fprintf(&conf, " server node%d 127.0.0.1:%d\n", i+1, n.Port)
	}
	file := filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(file, []byte(conf.String()), 0o600))
	endHAProxy := daemontest.Begin(t, exec.Command(program(t, "haproxy"), "-db", "-f", file))
	t.Cleanup(func() { endHAProxy() })
	bouncer := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(bouncer, fmt.Appendf(nil, "[databases]\n%%include %s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nadmin_users = postgres\nlogfile = %s/pgbouncer.log\n", databases, console, dir), 0o600))
	endBouncer := daemontest.Begin(t, exec.Command(program(t, "pgbouncer"), "-q", bouncer))
	t.Cleanup(func() { endBouncer() })
	p := &haproxy{socket: socket}
	leadTo := func(want ...int) (primary int) {
		t.Helper()
		pgtest.WaitFor(t, fmt.Sprintf("a primary of %v behind HAProxy", want), func(context.Context) error {
			up, err := p.up("pushed")
			if err != nil || len(up) != 1 {
				return errors.Join(err, fmt.Errorf("up are %v", up))
			}
			for _, primary = range want {
				if up[0] == fmt.Sprintf("node%d", primary) {
					return nil
				}
			}
			return fmt.Errorf("up are %v", up)
		})
		return primary
	}
	leadTo(1)
	through := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres connect_timeout=2", front)
	pooled := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=app connect_timeout=10 default_query_exec_mode=exec", console)
	hosts, ports := make([]string, len(nodes)), make([]string, len(nodes))
	for i, n := range nodes {
		hosts[i], ports[i] = "127.0.0.1", fmt.Sprint(n.Port)
	}
	follower, err := pgfollow.New(fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres", strings.Join(hosts, ","), strings.Join(ports, ",")), pgfollow.Hold(20*time.Second))
	require.NoError(t, err)
	t.Cleanup(follower.Close)
	pool, err := follower.Pool(t.Context())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	clients := []*client{
		startClient(t, "HAProxy", 1, over(through)), startClient(t, "PgBouncer", 2, over(pooled)), startClient(t, "PgBouncer", 3, over(pooled)),
		startClient(t, "pgfollow", 4, func(context.Context) (database, func(), error) { return pool, func() {}, nil }),
	}
	all := func() {
		t.Helper()
		for _, c := range clients {
			c.goesOn(t)
		}
	}

	// A switchover: the clients of PgBouncer wait.
	nodes[1].Must(t, "repmgr -f $C standby switchover")
	leadTo(2)
	all()
	for _, c := range clients[1:3] {
		_, failed := c.state()
		require.Empty(t, failed, "PgBouncer holds its clients back")
	}
	pgtest.WaitFor(t, "the former primary as a standby", func(ctx context.Context) error { return nodes[1].StreamsTo(ctx, "node1") })

	// The machine of the primary stops: nothing ends the sessions but HAProxy, which is told to.
	idle, err := pgx.Connect(t.Context(), through)
	require.NoError(t, err)
	defer idle.Close(context.Background())
	nodes[1].EndDaemon() // it would kill the server
	nodes[1].Freeze()
	primary := leadTo(1, 3)
	ended := make(chan error, 1) // 1: the test may have failed before it is read
	go func() {
		_, err := idle.Exec(context.Background(), "SELECT pg_sleep(60)")
		ended <- err
	}()
	pgtest.WaitFor(t, "the end of a session with a server that hangs", func(context.Context) error {
		select {
		case err := <-ended:
			require.Error(t, err)
			return nil
		default:
			return errors.New("it waits")
		}
	})
	clients[0].goesOn(t)
	nodes[1].Kill()
	nodes[1].Watch(t)
	all()

	// The primary is killed.
	pgtest.WaitFor(t, "the other standby", func(ctx context.Context) error {
		return nodes[primary-1].StreamsTo(ctx, fmt.Sprintf("node%d", 4-primary))
	})
	pgtest.WaitFor(t, "the former primary as a standby", func(ctx context.Context) error { return nodes[primary-1].StreamsTo(ctx, "node2") })
	nodes[primary-1].Kill()
	next := leadTo(2, 4-primary)
	all()

	// What was acknowledged is there, and no router that is gone holds anything up.
	for _, c := range clients {
		c.stop()
		require.Equal(t, strconv.Itoa(len(c.acks)), nodes[next-1].QueryString(t, `SELECT count(*) FROM clients WHERE id = ANY ($1)`, c.acks), c.name)
	}
	endHAProxy()
	endBouncer()
	pgtest.WaitFor(t, "three nodes", func(ctx context.Context) error {
		return errors.Join(nodes[next-1].StreamsTo(ctx, fmt.Sprintf("node%d", primary)), nodes[next-1].StreamsTo(ctx, fmt.Sprintf("node%d", 6-primary-next)))
	})
	nodes[primary-1].Must(t, "repmgr -f $C standby switchover")
	text, err := os.ReadFile(databases)
	require.NoError(t, err)
	require.Contains(t, string(text), fmt.Sprintf("port=%d dbname=postgres user=postgres", nodes[primary-1].Port))
}

// startPgBouncer starts one that includes a file of databases, with a directory of its own for its socket.
func startPgBouncer(t *testing.T, dir, databases string, port int, more string) *exec.Cmd {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	file := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "[databases]\n%%include %s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir = %s\nauth_type = any\npool_mode = transaction\nadmin_users = postgres\nlogfile = %[3]s/log\n%s\n", databases, port, dir, more), 0o600))
	cmd := exec.Command(program(t, "pgbouncer"), "-q", file)
	end := daemontest.Begin(t, cmd)
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGCONT); end() })
	return cmd
}

// The daemons push to several PgBouncers: two processes behind one port, which share a file, one with a file of its own, one that
// hangs, and one that is down. All clients go on after a switchover, without an error, and after the primary was killed.
func TestRouters_SeveralPgBouncers(t *testing.T) {
	t.Parallel()
	dir := pgtest.ShortDir(t)
	shared, own := filepath.Join(dir, "shared.ini"), filepath.Join(dir, "own.ini")
	for _, file := range []string{shared, own} {
		require.NoError(t, os.WriteFile(file, []byte("app = dbname=postgres user=postgres\n"), 0o600))
	}
	together, alone, hung, down := pgtest.Port(t), pgtest.Port(t), pgtest.Port(t), pgtest.Port(t)
	list := fmt.Sprintf("host=%[1]s/a port=%[2]d user=postgres, host=%[1]s/b port=%[2]d user=postgres, host=127.0.0.1 port=%[3]d user=postgres file=%[4]s, host=%[1]s/d port=%[5]d user=postgres, port=%[6]d host=127.0.0.1 user=postgres",
		dir, together, alone, own, hung, down)
	metrics := []int{pgtest.Port(t), pgtest.Port(t), pgtest.Port(t)}
	nodes := daemontest.ClusterOf(t, 3, func(id int) []string {
		return []string{"synchronous_mode=quorum", "rejoin=rewind", "router_pgbouncer='" + list + "'", "router_pgbouncer_file='" + shared + "'", fmt.Sprintf("http_listen='127.0.0.1:%d'", metrics[id-1])}
	})
	nodes[0].Exec(t, `CREATE TABLE clients (id bigint PRIMARY KEY)`)
	startPgBouncer(t, dir+"/a", shared, together, "so_reuseport = 1")
	startPgBouncer(t, dir+"/b", shared, together, "so_reuseport = 1")
	startPgBouncer(t, dir+"/c", own, alone, "")
	hangs := startPgBouncer(t, dir+"/d", shared, hung, "")
	app := func(host string, port int) func(context.Context) (database, func(), error) {
		return over(fmt.Sprintf("host=%s port=%d user=postgres dbname=app connect_timeout=10 default_query_exec_mode=exec", host, port))
	}
	clients := []*client{startClient(t, "a", 1, app(dir+"/a", together)), startClient(t, "b", 2, app(dir+"/b", together)), startClient(t, "c", 3, app("127.0.0.1", alone))}
	startClient(t, "d", 4, app(dir+"/d", hung)).stop() // it was told where the primary is
	require.NoError(t, hangs.Process.Signal(syscall.SIGSTOP))
	before := map[*client]int{} // the errors until it was told
	for _, c := range clients {
		_, failed := c.state()
		before[c] = len(failed)
	}

	// The one that is down is said to be, by the daemons of all nodes. The others were told.
	failing := fmt.Sprintf("PgBouncer at 127.0.0.1:%d does not take what it is told, so its clients may be led to a node that is not the primary: 127.0.0.1:%[1]d: connect: connection refused", down)
	pgtest.WaitFor(t, "doctor finds it", func(context.Context) error {
		out, _ := nodes[0].Sh(t, "repmgr -f $C doctor")
		if !strings.Contains(out, "router_failing") || strings.Count(out, failing) != 3 {
			return errors.New(out)
		}
		return nil
	})
	for destination, want := range map[string]string{fmt.Sprintf("127.0.0.1:%d", down): "1", fmt.Sprintf("127.0.0.1:%d", alone): "0"} {
		require.Contains(t, get(t, metrics[0], "/metrics"), fmt.Sprintf(`repmgr_router_failing{cluster="repmgr",node="node1",node_id="1",router="pgbouncer",destination="%s"} %s`, destination, want))
	}

	nodes[1].Must(t, "repmgr -f $C standby switchover")
	for _, c := range clients {
		c.goesOn(t)
		_, failed := c.state()
		require.Empty(t, failed[before[c]:], "PgBouncer holds its clients back: %s", c.name)
	}
	for _, file := range []string{shared, own} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(text), fmt.Sprintf("port=%d dbname=postgres user=postgres", nodes[1].Port), file)
	}
	pgtest.WaitFor(t, "the former primary as a standby", func(ctx context.Context) error { return nodes[1].StreamsTo(ctx, "node1") })
	nodes[1].Kill()
	for _, c := range clients {
		c.goesOn(t)
	}
	require.NoError(t, hangs.Process.Signal(syscall.SIGCONT)) // it is told as soon as it answers
	startClient(t, "d", 5, app(dir+"/d", hung))
}

// A server in maintenance stays there, and the daemon says so where it is that of the primary: no client reaches that.
func TestRouters_HAProxyInMaintenance(t *testing.T) {
	t.Parallel()
	dir := pgtest.ShortDir(t)
	socket, file := filepath.Join(dir, "socket"), filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "global\n stats socket %s mode 600 level admin\ndefaults\n mode tcp\n timeout connect 2s\n timeout client 1m\n timeout server 1m\nlisten primary\n bind 127.0.0.1:%d\n server node1 127.0.0.1:1 disabled\n server node2 127.0.0.1:2\n", socket, pgtest.Port(t)), 0o600))
	end := daemontest.Begin(t, exec.Command(program(t, "haproxy"), "-db", "-f", file))
	t.Cleanup(func() { end() })
	h := &router.HAProxy{Address: socket, Backend: "primary"}
	node1, node2 := registry.Record{ID: 1, Name: "node1"}, registry.Record{ID: 2, Name: "node2"}
	pgtest.WaitFor(t, "HAProxy", func(ctx context.Context) error {
		return h.Point(ctx, router.Destination{Primary: node2, Others: []registry.Record{node1}})
	})
	require.ErrorContains(t, h.Point(t.Context(), router.Destination{Primary: node1, Others: []registry.Record{node2}}), "primary/node1, is in maintenance")
	up, err := pgtest.HAProxyUp(socket, "primary")
	require.NoError(t, err)
	require.Empty(t, up, "the former primary gets no clients all the same")
	other := &router.HAProxy{Address: socket, Backend: "other"}
	require.Contains(t, repmgr.Hint(other.Leave(t.Context(), node1)), "router_haproxy_backend")
}

// Of several processes of PgBouncer on one port nobody knows which one is told: none is paused, and the daemon says why.
func TestRouters_PgBouncerOfSeveralProcesses(t *testing.T) {
	t.Parallel()
	dir, port := pgtest.ShortDir(t), pgtest.Port(t)
	databases := filepath.Join(dir, "databases.ini")
	require.NoError(t, os.WriteFile(databases, []byte("app =\n"), 0o600))
	startPgBouncer(t, filepath.Join(dir, "p"), databases, port, "so_reuseport = 1")
	p := &router.PgBouncer{Console: fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", port), File: databases}
	pgtest.WaitFor(t, "PgBouncer, which says that it may be one of several", func(ctx context.Context) error {
		err := p.Point(ctx, router.Destination{Primary: registry.Record{ID: 1, Name: "node1", Conninfo: "host=127.0.0.1 port=1"}})
		if err == nil || !strings.Contains(err.Error(), "so_reuseport") {
			return fmt.Errorf("it says: %w", err)
		}
		return nil
	})
	require.ErrorContains(t, p.Hold(t.Context()), "so_reuseport")
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=pgbouncer default_query_exec_mode=simple_protocol", port))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), "SHOW DATABASES")
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	require.NoError(t, err)
	for _, row := range all {
		require.EqualValues(t, 0, row["paused"], row)
	}
}

// Two PgBouncers that have one file are told at the same time, again and again: none is in the way of the other.
func TestRouters_PgBouncersWithOneFile(t *testing.T) {
	t.Parallel()
	dir := pgtest.ShortDir(t)
	databases := filepath.Join(dir, "databases.ini")
	require.NoError(t, os.WriteFile(databases, []byte("app =\n"), 0o600))
	var all [2]*router.PgBouncer
	for i := range all {
		port := pgtest.Port(t)
		startPgBouncer(t, filepath.Join(dir, strconv.Itoa(i)), databases, port, "")
		all[i] = &router.PgBouncer{Console: fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", port), File: databases}
		pgtest.WaitFor(t, "PgBouncer", all[i].Release)
	}
	for port := range 20 {
		var failed [len(all)]error
		var wg sync.WaitGroup
		for i, p := range all {
			wg.Go(func() {
				failed[i] = p.Point(t.Context(), router.Destination{Primary: registry.Record{ID: 1, Name: "node1", Conninfo: fmt.Sprintf("host=127.0.0.1 port=%d", port+1)}})
			})
		}
		wg.Wait()
		require.NoError(t, errors.Join(failed[:]...))
	}
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := pgtest.Program(name)
	require.NoError(t, err)
	return path
}
