package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgfollow"
)

const (
	clientsSee  = "8. What clients see that commit every 20 ms, all at once: the longest time without an acknowledged commit"
	clientKills = 20 // REPMGR_BENCH_LONG=1: 100
	clientMoves = 10
	clientTick  = 20 * time.Millisecond
)

// client commits rows in one way of reaching the primary, and notes when each was acknowledged.
type client struct {
	name string
	// session commits until something fails, or ctx ends. acked is called after each commit.
	session func(ctx context.Context, acked func()) error

	mu   sync.Mutex
	acks []time.Time
	last error
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.session(ctx, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.acks = append(c.acks, time.Now())
		})
		c.mu.Lock()
		c.last = err
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(clientTick):
		}
	}
}

// gap is the longest time without an acknowledgement that began after from; over reports whether it has ended for good.
func (c *client) gap(from time.Time) (longest time.Duration, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, _ := slices.BinarySearchFunc(c.acks, from, time.Time.Compare)
	last := from
	if i > 0 {
		last = c.acks[i-1]
	}
	for _, at := range c.acks[i:] {
		longest, last = max(longest, at.Sub(last)), at
	}
	return longest, len(c.acks)-i > 25 && time.Since(last) < 10*clientTick
}

// inserting commits rows over connections of pgx to conninfo.
func inserting(conninfo string) func(context.Context, func()) error {
	return func(ctx context.Context, acked func()) error {
		conn, err := pgx.Connect(ctx, conninfo)
		if err != nil {
			return err
		}
		defer func() {
			limited, cancel := context.WithTimeout(context.Background(), clientTick)
			defer cancel()
			_ = conn.Close(limited)
		}()
		return every(ctx, func() error {
			_, err := conn.Exec(ctx, `INSERT INTO clients DEFAULT VALUES`)
			if err == nil {
				acked()
			}
			return err
		})
	}
}

// every calls do every clientTick until it fails, or ctx ends.
func every(ctx context.Context, do func() error) error {
	tick := time.NewTicker(clientTick)
	defer tick.Stop()
	for {
		if err := do(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// overLibpq commits rows with psql.
func overLibpq(conninfo string) func(context.Context, func()) error {
	return func(ctx context.Context, acked func()) error {
		cmd := exec.CommandContext(ctx, "psql", "-XAt", "-v", "ON_ERROR_STOP=1", conninfo)
		in, errIn := cmd.StdinPipe()
		out, errOut := cmd.StdoutPipe()
		if err := errors.Join(errIn, errOut, cmd.Start()); err != nil {
			return err
		}
		defer func() { _ = cmd.Wait() }()
		defer func() { _ = cmd.Process.Kill() }()
		said := bufio.NewScanner(out)
		return every(ctx, func() error {
			if _, err := io.WriteString(in, "INSERT INTO clients DEFAULT VALUES;\n"); err != nil {
				return err
			}
			if !said.Scan() || said.Text() != "INSERT 0 1" {
				return fmt.Errorf("psql says %q, and ended", said.Text())
			}
			acked()
			return nil
		})
	}
}

func TestClients(t *testing.T) {
	wanted(t)
	kills := clientKills
	if os.Getenv("REPMGR_BENCH_LONG") == "1" {
		kills = 100
	}
	s := ours(t)
	dir := pgtest.ShortDir(t)
	socket, databases, bouncer := filepath.Join(dir, "socket"), filepath.Join(dir, "databases.ini"), pgtest.Port(t)
	require.NoError(t, os.WriteFile(databases, []byte("app = dbname=postgres user=postgres\n"), 0o600))
	var http []int
	extra := func() []string {
		http = append(http, pgtest.Port(t))
		return []string{
			"failover=automatic", "synchronous_mode=quorum", "failovers_per_hour=-1", fmt.Sprintf("http_listen='127.0.0.1:%d'", http[len(http)-1]), "router_haproxy_socket='" + socket + "'",
			fmt.Sprintf("router_pgbouncer='host=127.0.0.1 port=%d user=postgres'", bouncer), "router_pgbouncer_file='" + databases + "'",
		}
	}
	settings := map[string]string{"wal_log_hints": "on"}
	servers := []*pgtest.Server{start(t, pgtest.Options{Name: "node1", Settings: settings})}
	confs := []string{s.register(t, servers[0], extra()...)}
	for id := 2; id <= 3; id++ {
		standby := pgtest.NewStandby(t, servers[0], pgtest.Options{Name: fmt.Sprintf("node%d", id)})
		conf := s.conf(t, id, standby, extra()...)
		s.must(t, s.repmgr, "-f", conf, "standby", "register")
		servers, confs = append(servers, standby), append(confs, conf)
	}
	servers[0].Exec(t, `CREATE TABLE clients (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`)
	for _, conf := range confs {
		s.daemon(t, conf)
	}

	polled, pushed := pgtest.Port(t), pgtest.Port(t)
	var haproxy strings.Builder
	fmt.Fprintf(&haproxy, "global\n stats socket %s mode 600 level admin\n maxconn 200\ndefaults\n mode tcp\n retries 2\n timeout client 30m\n timeout connect 4s\n timeout server 30m\n timeout check 5s\n", socket)
	section := func(name string, port int, timers, more string) {
		fmt.Fprintf(&haproxy, "listen %s\n bind 127.0.0.1:%d\n"+more+" option httpchk HEAD /primary HTTP/1.0\n http-check expect status 200\n default-server %s on-marked-down shutdown-sessions\n", name, port, timers)
		for i, n := range servers {
			fmt.Fprintf(&haproxy, " server node%d 127.0.0.1:%d check port %d\n", i+1, n.Port, http[i])
		}
	}
	section("polled", polled, "inter 3s fall 3 rise 2", "")                              // the timers of Patroni's example
	section("primary", pushed, "inter 1s fastinter 500ms fall 3 rise 1", " retries 0\n") // as in docs/routers.md
	serveFile(t, dir, "haproxy", haproxy.String(), "-db", "-f")
	serveFile(t, dir, "pgbouncer", fmt.Sprintf("[databases]\n%%include %s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nadmin_users = postgres\n", databases, bouncer), "-q")

	hosts, ports := strings.Repeat(",127.0.0.1", len(servers))[1:], ""
	for _, n := range servers {
		ports += fmt.Sprintf(",%d", n.Port)
	}
	several := fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres connect_timeout=2 ", hosts, ports[1:])
	one := "host=127.0.0.1 user=postgres connect_timeout=2 "
	follower, err := pgfollow.New(several)
	require.NoError(t, err)
	t.Cleanup(follower.Close)
	pool, err := follower.Pool(t.Context())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	following := &client{name: "pgfollow", session: func(ctx context.Context, acked func()) error { return insertingByPool(ctx, pool, acked) }}
	viaPush := &client{name: "HAProxy, pushed", session: inserting(fmt.Sprintf("%sport=%d dbname=postgres", one, pushed))}
	viaBouncer := &client{name: "PgBouncer, pushed", session: inserting(fmt.Sprintf("%sport=%d dbname=app default_query_exec_mode=exec", one, bouncer))}
	libpq := &client{name: "libpq, several hosts", session: overLibpq(several + "target_session_attrs=read-write")}
	plain := &client{name: "pgx, several hosts", session: inserting(several + "target_session_attrs=read-write")}
	viaPoll := &client{name: "HAProxy as in Patroni's example", session: inserting(fmt.Sprintf("%sport=%d dbname=postgres", one, polled))}
	clients := []*client{following, viaPush, viaBouncer, libpq, plain, viaPoll}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for _, c := range clients {
		wg.Go(func() { c.run(ctx) })
	}
	for _, disturbance := range []struct {
		name  string
		count int
		limit limit
		do    func(primary int)
	}{
		{"kill -9 of the primary", kills, limit{Value: 200}, func(primary int) { servers[primary].Kill() }},
		{"a switchover", clientMoves, limit{}, func(primary int) {
			s.must(t, s.repmgr, "-f", confs[(primary+1)%3], "standby", "switchover")
		}},
	} {
		gaps := map[*client]*stat{}
		for _, c := range clients {
			gaps[c] = &stat{}
		}
		for range disturbance.count {
			primary := settled(t, servers, clients)
			pgtest.WaitFor(t, "HAProxy to have one server up", func(context.Context) error {
				up, err := pgtest.HAProxyUp(socket, "polled")
				if err == nil && len(up) != 1 {
					err = fmt.Errorf("up are %v", up)
				}
				return err
			}) // for 9 s it takes the one before for one, too
			from := time.Now()
			disturbance.do(primary)
			for _, c := range clients {
				pgtest.WaitFor(t, "commits of "+c.name, func(context.Context) error {
					longest, over := c.gap(from)
					if !over {
						return fmt.Errorf("longest gap so far %s: %w", longest, c.last)
					}
					return nil
				})
				longest, _ := c.gap(from)
				gaps[c].Samples = append(gaps[c].Samples, milliseconds(longest))
			}
		}
		for _, beside := range []struct {
			ours, peer *client
			limit      limit
		}{
			{following, libpq, disturbance.limit},
			{following, plain, limit{}},
			{viaPush, viaPoll, limit{Times: 0.5}},
			{viaBouncer, viaPoll, limit{Times: 0.5}},
		} {
			results.add(figure{
				Section: clientsSee, What: fmt.Sprintf("%s, %d times: %s", disturbance.name, disturbance.count, beside.ours.name), Unit: "ms",
				Peer: beside.peer.name, Ours: *gaps[beside.ours], Theirs: *gaps[beside.peer], Limit: beside.limit,
			})
		}
	}
}

// insertingByPool commits rows over a pool.
func insertingByPool(ctx context.Context, pool *pgxpool.Pool, acked func()) error {
	return every(ctx, func() error {
		_, err := pool.Exec(ctx, `INSERT INTO clients DEFAULT VALUES`)
		if err == nil {
			acked()
		}
		return err
	})
}

// settled waits until there is one primary with two standbys, and all clients write. It returns the primary.
func settled(t *testing.T, servers []*pgtest.Server, clients []*client) (primary int) {
	t.Helper()
	pgtest.WaitFor(t, "a primary with two standbys, and all clients", func(ctx context.Context) error {
		primary = -1
		for i, s := range servers {
			if s.Started() && s.StreamsTo(ctx, fmt.Sprintf("node%d", (i+1)%3+1)) == nil && s.StreamsTo(ctx, fmt.Sprintf("node%d", (i+2)%3+1)) == nil {
				primary = i
			}
		}
		if primary < 0 {
			return errors.New("none yet")
		}
		for _, c := range clients {
			if longest, over := c.gap(time.Now().Add(-time.Second)); !over || longest > 300*time.Millisecond {
				return fmt.Errorf("%s: a gap of %s: %w", c.name, longest, c.last)
			}
		}
		return nil
	})
	return primary
}

// serveFile runs a program with a configuration file until the test ends.
func serveFile(t *testing.T, dir, program, text string, args ...string) {
	t.Helper()
	file := filepath.Join(dir, program+".conf")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	path, err := pgtest.Program(program)
	require.NoError(t, err)
	cmd := exec.Command(path, append(args, file)...)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
