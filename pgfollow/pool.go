package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool makes a pool that follows the primary, with the settings of the connection string. It is an
// ordinary one, for everything that takes a pool; close it before the Follower.
func (f *Follower) Pool(ctx context.Context) (*pgxpool.Pool, error) {
	cfg, err := f.poolConfig()
	if err != nil {
		return nil, err
	}
	f.Attach(cfg)
	return pgxpool.NewWithConfig(ctx, cfg)
}

func (f *Follower) poolConfig() (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(f.connString)
	if err == nil && f.dial != nil {
		cfg.ConnConfig.DialFunc = f.dial
	}
	return cfg, err
}

// Attach makes the pool of a configuration follow the primary, before the pool is made. cfg names the
// nodes that the Follower has, with the login and the TLS settings of its own; a node that it does not
// name is reached as the Follower reaches it. Its hooks are called as well: BeforeConnect with a
// configuration that names the primary, PrepareConn for a connection to the primary. Its
// ValidateConnect is replaced.
func (f *Follower) Attach(cfg *pgxpool.Config) {
	f.attach(cfg, &route{
		choose: f.await,
		serves: func(o origin) bool {
			p, _ := f.now()
			return o.generation == p.generation && o.node == p.node
		},
	})
}

// route says where the connections of a pool go.
type route struct {
	ways     [][]*pgconn.FallbackConfig             // to log in to each node
	choose   func(context.Context) (present, error) // waits until there is a node
	serves   func(origin) bool                      // a connection of that origin goes there still
	standbys bool                                   // the nodes may be standbys
}

// origin is where and when a connection was made. The generation of one that was made to a standby is 0.
type origin struct {
	f          *Follower
	node       int
	generation uint64
}

// originKey is where a connection has its origin.
const originKey = "github.com/pgrepmgr/repmgr/pgfollow"

// originOf is the origin of a connection. false: no Follower has made it.
func originOf(c *pgx.Conn) (o origin, ok bool) {
	o, ok = c.PgConn().CustomData()[originKey].(origin)
	return o, ok
}

func (r *route) fresh(c *pgx.Conn) bool {
	o, ok := originOf(c)
	return ok && r.serves(o) && !c.IsClosed()
}

func (f *Follower) attach(cfg *pgxpool.Config, r *route) {
	own := nodesOf(cfg.ConnConfig)
	for _, n := range f.nodes {
		ways := n.ways
		if i := slices.IndexFunc(own, func(o node) bool { return o.name == n.name }); i >= 0 {
			ways = own[i].ways
		}
		r.ways = append(r.ways, ways)
	}
	if cfg.ConnConfig.ConnectTimeout == 0 { // a pool would wait for two minutes
		cfg.ConnConfig.ConnectTimeout = 2 * f.silence
	}
	before, prepare, release, ping := cfg.BeforeConnect, cfg.PrepareConn, cfg.AfterRelease, cfg.ShouldPing
	if old := cfg.BeforeAcquire; prepare == nil && old != nil { //nolint:staticcheck // it is deprecated, and in use
		prepare = func(ctx context.Context, c *pgx.Conn) (bool, error) { return old(ctx, c), nil } //nolint:unparam // the type asks for it
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
				return !c.IsClosed(), err // the same primary may come back
			}
		}
		if !r.fresh(c) {
			return false, nil // the pool closes it, and tries the next one
		}
		if err := f.caughtUp(ctx, c); err != nil || prepare == nil {
			return !c.IsClosed(), err
		}
		return prepare(ctx, c)
	}
	if release != nil { // without one, PrepareConn looks in any case
		cfg.AfterRelease = func(c *pgx.Conn) bool { return r.fresh(c) && release(c) }
	}
	cfg.ShouldPing = func(ctx context.Context, p pgxpool.ShouldPingParams) bool {
		now, _ := f.now()
		switch {
		case !r.fresh(p.Conn), !r.standbys && !now.up: // it is closed, or waited for, a moment later
			return false
		case ping != nil:
			return ping(ctx, p)
		}
		return p.IdleDuration > time.Second // as pgxpool does
	}
}

// connectTo points c at a node, to which a network connection is made here: as long as that fails, the
// node is chosen anew.
func (f *Follower) connectTo(ctx context.Context, c *pgx.ConnConfig, r *route, before func(context.Context, *pgx.ConnConfig) error) error {
	began := time.Now()
	held, cancel := f.held(ctx)
	defer cancel()
	for {
		p, err := r.choose(held)
		if err != nil {
			return err
		}
		direct(c, r.ways[p.node])
		first, err := f.reach(ctx, c, func() bool { return r.serves(origin{f, p.node, p.generation}) })
		if err != nil {
			select {
			case <-held.Done():
				return fmt.Errorf("%w; the last attempt: %w", f.noPrimary(held, began), err)
			case <-time.After(searchInterval):
				continue
			}
		}
		f.use(c, r, origin{f, p.node, p.generation}, first)
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
func (f *Follower) use(c *pgx.ConnConfig, r *route, o origin, first net.Conn) {
	dial := c.DialFunc
	c.DialFunc = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if conn = first; conn != nil {
			first = nil
			return f.link(conn, o)
		}
		// A second way to log in; or a statement is to be cancelled: the pool waits for that, also where the node is dead.
		if p, _ := f.now(); o.generation != 0 && o.generation != p.generation {
			return nil, errStale
		}
		ctx, cancel := context.WithTimeout(ctx, f.silence)
		defer cancel()
		if conn, err = dial(ctx, network, address); err != nil {
			return nil, err
		}
		return f.link(conn, o)
	}
	if address, _, err := net.SplitHostPort(first.RemoteAddr().String()); err == nil {
		c.LookupFunc = func(context.Context, string) ([]string, error) { return []string{address}, nil }
	}
	c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[originKey] = o
		return validate(ctx, conn, r.standbys)
	}
}

// reach makes the network connection to the node, as long as that is wanted.
func (f *Follower) reach(ctx context.Context, c *pgx.ConnConfig, wanted func() bool) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	defer f.whenChanged(ctx, func() {
		if !wanted() {
			cancel()
		}
	})()
	hosts := []string{c.Host}
	if network, _ := pgconn.NetworkAddress(c.Host, c.Port); network != "unix" {
		if hosts, err = c.LookupFunc(ctx, c.Host); err != nil {
			return nil, err
		}
	}
	err = fmt.Errorf("%s has no address", c.Host)
	for i, host := range hosts {
		if conn, err = dialOne(ctx, c, host, len(hosts)-i); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// dialOne tries one address, which may be one with a port of its own, for its part of the time that is left.
func dialOne(ctx context.Context, c *pgx.ConnConfig, host string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	network, address := pgconn.NetworkAddress(host, c.Port)
	if _, _, err := net.SplitHostPort(host); err == nil {
		address = host
	}
	return c.DialFunc(ctx, network, address)
}

// whenChanged calls do now and at each change of the primary, until ctx ends or done is called.
func (f *Follower) whenChanged(ctx context.Context, do func()) (done func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			_, changed := f.now()
			do()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
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

// link registers a connection, unless it is stale by now. One that was made to a standby is not cut.
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
