package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool makes a pool that follows the primary, with the settings of the connection string. It is an
// ordinary one, for everything that takes a pool; close it before the Follower.
func (f *Follower) Pool(ctx context.Context) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(f.connString)
	if err != nil {
		return nil, err
	}
	f.Attach(cfg)
	return pgxpool.NewWithConfig(ctx, cfg)
}

// Attach makes the pool of a configuration follow the primary, before the pool is made. The hooks that
// cfg has are called as well: BeforeConnect with a configuration that names the primary, PrepareConn
// for a connection to the primary. Its hosts and its ValidateConnect are replaced.
func (f *Follower) Attach(cfg *pgxpool.Config) {
	f.attach(cfg, route{
		choose: f.await,
		serves: func(o origin) bool {
			p, _ := f.now()
			return o.generation == p.generation && o.node == p.node
		},
	})
}

// route says where the connections of a pool go.
type route struct {
	choose   func(context.Context) (present, error) // waits until there is a node
	serves   func(origin) bool                      // a connection of that origin goes there still
	standbys bool                                   // the nodes may be standbys
}

// origin is where and when a connection was made. The generation of one to a standby is 0.
type origin struct {
	node       int
	generation uint64
}

// originKey is where a connection has its origin.
const originKey = "github.com/pgrepmgr/repmgr/pgfollow"

func (r route) fresh(c *pgx.Conn) bool {
	o, ok := c.PgConn().CustomData()[originKey].(origin)
	return ok && r.serves(o)
}

func (f *Follower) attach(cfg *pgxpool.Config, r route) {
	before, prepare, release, ping := cfg.BeforeConnect, cfg.PrepareConn, cfg.AfterRelease, cfg.ShouldPing
	if old := cfg.BeforeAcquire; prepare == nil && old != nil {
		prepare = func(ctx context.Context, c *pgx.Conn) (bool, error) { return old(ctx, c), nil }
	}
	if cfg.PingTimeout == 0 {
		cfg.PingTimeout = f.silence
	}
	cfg.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error { return f.connectTo(ctx, c, r, before) }
	cfg.PrepareConn = func(ctx context.Context, c *pgx.Conn) (bool, error) {
		if !r.standbys {
			held, cancel := f.held(ctx)
			defer cancel()
			if _, err := f.await(held); err != nil {
				return true, err // the same primary may come back
			}
		}
		if !r.fresh(c) {
			return false, nil // the pool closes it, and tries the next one
		}
		if err := f.caughtUp(ctx, c); err != nil || prepare == nil {
			return true, err
		}
		return prepare(ctx, c)
	}
	cfg.AfterRelease = func(c *pgx.Conn) bool { return r.fresh(c) && (release == nil || release(c)) }
	cfg.ShouldPing = func(ctx context.Context, p pgxpool.ShouldPingParams) bool {
		switch {
		case !r.fresh(p.Conn): // it is closed a moment later
			return false
		case ping != nil:
			return ping(ctx, p)
		}
		return p.IdleDuration > time.Second // as pgxpool does
	}
}

// connectTo points c at a node, to which a network connection is made here: as long as that fails, the
// node is chosen anew.
func (f *Follower) connectTo(ctx context.Context, c *pgx.ConnConfig, r route, before func(context.Context, *pgx.ConnConfig) error) error {
	began := time.Now()
	held, cancel := f.held(ctx)
	defer cancel()
	for {
		p, err := r.choose(held)
		if err != nil {
			return err
		}
		f.direct(c, p.node)
		first, err := f.reach(held, c)
		if err != nil {
			select {
			case <-held.Done():
				return fmt.Errorf("%w; the last attempt: %w", f.noPrimary(began, ctx.Err()), err)
			case <-time.After(searchInterval):
				continue
			}
		}
		f.use(c, r, origin{p.node, p.generation}, first)
		if before != nil {
			err = before(ctx, c)
		}
		if err != nil {
			_ = first.Close()
		}
		return err
	}
}

// use makes c log in over a network connection that was made already.
func (f *Follower) use(c *pgx.ConnConfig, r route, o origin, first net.Conn) {
	dial := c.DialFunc
	c.DialFunc = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if conn = first; conn != nil {
			first = nil
		} else if conn, err = dial(ctx, network, address); err != nil { // a second way to log in, or to cancel a statement
			return nil, err
		}
		return f.link(conn, o)
	}
	c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[originKey] = o
		return validate(ctx, conn, r.standbys)
	}
}

// reach makes the network connection to the node.
func (f *Follower) reach(ctx context.Context, c *pgx.ConnConfig) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	hosts := []string{c.Host}
	if network, _ := pgconn.NetworkAddress(c.Host, c.Port); network != "unix" {
		if hosts, err = c.LookupFunc(ctx, c.Host); err != nil {
			return nil, err
		}
	}
	err = fmt.Errorf("%s has no address", c.Host)
	for _, host := range hosts {
		network, address := pgconn.NetworkAddress(host, c.Port)
		if conn, err = c.DialFunc(ctx, network, address); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// validate refuses a server that has another role than it had a moment ago.
func validate(ctx context.Context, conn *pgconn.PgConn, standbys bool) error {
	standby := conn.ParameterStatus("in_hot_standby")
	if standby == "" { // PostgreSQL 13
		result := conn.ExecParams(ctx, `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'on' ELSE 'off' END`, nil, nil, nil, nil).Read()
		if result.Err != nil {
			return result.Err
		}
		standby = string(result.Rows[0][0])
	}
	if standby == "on" && !standbys {
		return errors.New("it is not the primary any more")
	}
	return nil
}

// link is the network connection of a connection to the primary. It can be cut by somebody else than
// its user: whoever waits for an answer gets an error at once, and the pool drops the connection.
type link struct {
	net.Conn

	f          *Follower
	generation uint64
	stale      atomic.Bool
}

var errStale = errors.New("the connection was cut: there is another primary")

// link registers a connection, unless it is stale by now. One to a standby is not cut.
func (f *Follower) link(conn net.Conn, o origin) (net.Conn, error) {
	if o.generation == 0 {
		return conn, nil
	}
	l := &link{Conn: conn, f: f, generation: o.generation}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.generation != f.state.generation {
		_ = conn.Close()
		return nil, errStale
	}
	f.links[l] = struct{}{}
	return l, nil
}

// Close is called by the user of the connection.
func (l *link) Close() error {
	l.f.mu.Lock()
	delete(l.f.links, l)
	l.f.mu.Unlock()
	return l.Conn.Close()
}

// cut ends what runs on the connection.
func (l *link) cut() {
	l.stale.Store(true)
	_ = l.Conn.Close()
}

func (l *link) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	return n, l.why(err)
}

func (l *link) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(b)
	return n, l.why(err)
}

func (l *link) why(err error) error {
	if err != nil && l.stale.Load() {
		return errStale
	}
	return err
}
