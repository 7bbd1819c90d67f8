package basebackup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	readSize   = 1 << 20   // what is received before it is written; stays in the processor's cache
	readShort  = 256 << 10 // a read of less than this has caught up with the source
	readFloor  = 32 << 10  // less free space than this in the buffer is not worth a read
	maxMessage = 64 << 20  // longer control messages than this are nonsense

	connectTimeout = 30 * time.Second // when the conninfo has no connect_timeout
	goodbyeTimeout = 2 * time.Second
	cancelTimeout  = time.Second
)

// idleTimeout is set to 0 with the login, because a replication connection can set nothing
// later. The connection for WAL is idle until the checkpoint of the backup is complete, which
// may take minutes.
const idleTimeout = "idle_session_timeout"

// keepAlive notices a dead host in about 25 s while nothing is due to arrive.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// conn is a replication connection whose messages are parsed in place. pgconn
// makes it and logs in; afterwards the socket is ours, since reading gigabytes
// of CopyData through pgconn costs a copy and a lock for each message. It is not
// safe for concurrent use, but for wake and the end of its context.
type conn struct {
	pg  *pgconn.PgConn
	net net.Conn

	buf     []byte
	filled  int          // of buf, since it was last reused
	hasty   bool         // the last read was a short one, of a plain TCP socket
	reuse   func() error // nil, or called before buf is overwritten
	cur     []byte       // received, not yet consumed; a part of buf
	scratch []byte       // for messages that straddle two reads
	body    int          // bytes of the current message still to come

	parameters map[string]string
	unwatch    func() bool
}

// pin makes every connection after the first go to the address that the first
// one reached: with several hosts in the conninfo, data and WAL must not come
// from two servers.
type pin struct {
	cfg           *pgconn.Config
	network, addr string
	fixed         bool
}

// newPin returns a pin on a copy of cfg that asks for replication.
func newPin(cfg *pgconn.Config, applicationName string) *pin {
	p := &pin{cfg: cfg.Copy()}
	if p.cfg.RuntimeParams == nil {
		p.cfg.RuntimeParams = map[string]string{}
	}
	p.cfg.RuntimeParams["replication"] = "true"
	p.cfg.RuntimeParams["application_name"] = applicationName
	p.cfg.RuntimeParams[idleTimeout] = "0"
	// They ask in SQL, which such a connection does not speak.
	p.cfg.ValidateConnect, p.cfg.AfterConnect = nil, nil
	if p.cfg.ConnectTimeout == 0 {
		p.cfg.ConnectTimeout = connectTimeout
	}
	dialHost := p.cfg.DialFunc
	p.cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if p.fixed {
			network, addr = p.network, p.addr
		}
		p.network, p.addr = network, addr
		return dialHost(ctx, network, addr)
	}
	return p
}

// dial opens one connection. When ctx ends, its socket is closed.
func (p *pin) dial(ctx context.Context) (*conn, error) {
	pg, err := pgconn.ConnectConfig(ctx, p.cfg)
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == codeUndefinedObject {
		delete(p.cfg.RuntimeParams, idleTimeout) // PostgreSQL 13 has no such limit
		pg, err = pgconn.ConnectConfig(ctx, p.cfg)
	}
	if err != nil {
		return nil, err
	}
	p.fixed = true
	if err := settle(ctx, pg); err != nil {
		_ = pg.Close(ctx)
		return nil, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	if n := h.Frontend.ReadBufferLen(); n != 0 {
		h.Conn.Close()
		return nil, fmt.Errorf("take over connection: %d unexpected bytes after the login", n)
	}
	raw := h.Conn
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(keepAlive) // without it the copy still works
	}
	c := &conn{pg: pg, net: h.Conn, buf: make([]byte, readSize), parameters: h.ParameterStatuses}
	// The bare socket: closing TLS politely could wait for the peer.
	c.unwatch = context.AfterFunc(ctx, func() { raw.Close() })
	return c, nil
}

// settle ends the reading of pgconn's own: after a write that took long it has a
// goroutine that would take the answer to our first command away. SyncConn's
// question is SQL, which a replication connection refuses, so it may only look:
// the question is one of the replication protocol.
func settle(ctx context.Context, pg *pgconn.PgConn) error {
	look, cancel := context.WithCancel(ctx)
	cancel()
	ctx, cancel = context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %s", connectTimeout))
	defer cancel()
	for pg.SyncConn(look) != nil {
		if _, err := pg.Exec(ctx, "SHOW wal_segment_size").ReadAll(); err != nil {
			return fmt.Errorf("take over connection: %w", err)
		}
	}
	return nil
}

// close ends the session. Politely, it waits until the server has let go of
// everything that the session held, its temporary slot included.
func (c *conn) close(abort bool) {
	defer c.net.Close()
	if !c.unwatch() || abort {
		return
	}
	_ = c.net.SetDeadline(time.Now().Add(goodbyeTimeout))
	if c.send(&pgproto3.Terminate{}) != nil {
		return
	}
	for c.refill() == nil {
	}
}

func (c *conn) send(m pgproto3.FrontendMessage) error {
	b, err := m.Encode(nil)
	if err != nil {
		return err
	}
	_, err = c.net.Write(b)
	return explain(err)
}

func (c *conn) query(sql string) error { return c.send(&pgproto3.Query{String: sql}) }

// refill reads what has arrived. Nothing may be left in cur. What some returned
// before stays valid until reuse is called.
func (c *conn) refill() error {
	if len(c.buf)-c.filled < readFloor || c.reuse == nil {
		if c.reuse != nil {
			if err := c.reuse(); err != nil {
				return err
			}
		}
		c.filled = 0
	}
	if c.hasty && c.reuse != nil {
		nap()
	}
	n, err := c.net.Read(c.buf[c.filled:])
	_, tcp := c.net.(*net.TCPConn) // TLS reads are always short, a Unix socket holds too little
	c.hasty = tcp && n < readShort
	c.cur = c.buf[c.filled : c.filled+n]
	c.filled += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the server never ends a session that we did not
	}
	return explain(err)
}

// contiguous returns the next n bytes, valid until the next call of any method.
// When it fails, nothing is consumed, so it may be called again after a timeout.
func (c *conn) contiguous(n int) ([]byte, error) {
	if len(c.scratch) == 0 && len(c.cur) >= n {
		b := c.cur[:n]
		c.cur = c.cur[n:]
		return b, nil
	}
	for len(c.scratch) < n {
		if len(c.cur) == 0 {
			if err := c.refill(); err != nil {
				return nil, err
			}
		}
		k := min(n-len(c.scratch), len(c.cur))
		c.scratch = append(c.scratch, c.cur[:k]...)
		c.cur = c.cur[k:]
	}
	b := c.scratch
	c.scratch = c.scratch[:0]
	return b, nil
}

// next begins the next message that matters and returns its type. An error of
// the server comes back as an error.
func (c *conn) next() (byte, error) {
	for {
		if err := c.skip(); err != nil {
			return 0, err
		}
		h, err := c.contiguous(5)
		if err != nil {
			return 0, err
		}
		kind, n := h[0], int64(binary.BigEndian.Uint32(h[1:]))-4
		if n < 0 || n > maxMessage && kind != 'd' {
			return 0, fmt.Errorf("read message %q: its length is %d", kind, n)
		}
		c.body = int(n)
		switch kind {
		case 'N', 'S', 'A': // notice, parameter, notification: skipped by the next turn
		case 'E':
			return 0, c.serverError()
		default:
			return kind, nil
		}
	}
}

func (c *conn) serverError() error {
	b, err := c.rest()
	if err != nil {
		return err
	}
	var m pgproto3.ErrorResponse
	if err := m.Decode(b); err != nil {
		return err
	}
	return explain(pgconn.ErrorResponseToPgError(&m))
}

// expect begins the next message and wants it to be of the given type.
func (c *conn) expect(kind byte) error {
	got, err := c.next()
	if err == nil && got != kind {
		err = fmt.Errorf("read message: got %q, want %q", got, kind)
	}
	return err
}

// skip drops what is left of the current message.
func (c *conn) skip() error {
	for c.body > 0 {
		if _, err := c.some(); err != nil {
			return err
		}
	}
	return nil
}

// some returns a piece of the current message, at least one byte, in place.
func (c *conn) some() ([]byte, error) {
	if len(c.cur) == 0 {
		if err := c.refill(); err != nil {
			return nil, err
		}
	}
	b := c.cur[:min(c.body, len(c.cur))]
	c.cur = c.cur[len(b):]
	c.body -= len(b)
	return b, nil
}

// take returns the next n bytes of the current message.
func (c *conn) take(n int) ([]byte, error) {
	if n > c.body {
		return nil, fmt.Errorf("read message: %d bytes left, want %d", c.body, n)
	}
	b, err := c.contiguous(n)
	if err == nil {
		c.body -= n
	}
	return b, err
}

// rest returns what is left of the current message.
func (c *conn) rest() ([]byte, error) { return c.take(c.body) }

// rows reads one result: its rows up to CommandComplete. nil is NULL.
func (c *conn) rows() ([][][]byte, error) {
	if err := c.expect('T'); err != nil {
		return nil, err
	}
	return c.moreRows()
}

func (c *conn) moreRows() ([][][]byte, error) {
	var rows [][][]byte
	for {
		kind, err := c.next()
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'D':
			b, err := c.rest()
			if err != nil {
				return nil, err
			}
			var m pgproto3.DataRow
			if err := m.Decode(bytes.Clone(b)); err != nil {
				return nil, err
			}
			rows = append(rows, m.Values)
		case 'C':
			return rows, nil
		default:
			return nil, fmt.Errorf("read result: unexpected message %q", kind)
		}
	}
}

// command runs one simple command and returns its only row.
func (c *conn) command(sql string, columns int) ([][]byte, error) {
	if err := c.query(sql); err != nil {
		return nil, err
	}
	rows, err := c.rows()
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) < columns {
		return nil, fmt.Errorf("read result: want one row of %d columns", columns)
	}
	return rows[0], c.ready()
}

// ready reads up to the end of the current command.
func (c *conn) ready() error {
	for {
		kind, err := c.next()
		if err != nil || kind == 'Z' {
			return err
		}
		if kind != 'C' {
			return fmt.Errorf("end command: unexpected message %q", kind)
		}
	}
}

// cancelCommand asks the server to stop what it does, best effort: a backend
// that waits for a checkpoint does not notice that we are gone.
func (c *conn) cancelCommand(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	_ = c.pg.CancelRequest(ctx)
}
