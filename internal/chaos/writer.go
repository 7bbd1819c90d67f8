package chaos

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Ack is a commit that a server has acknowledged to a client.
type Ack struct {
	ID   int64
	Sent time.Time // when the client sent it
	At   time.Time // when the client heard of it
	Node int       // who acknowledged
}

// writer is a client: it commits one row after the other on whichever server of
// its DSN takes writes, retries at once, and remembers what was acknowledged. An
// id is used once: after an error nobody knows whether its row is there. Safe for
// concurrent use.
type writer struct {
	id     int
	name   string
	every  time.Duration
	cfg    *pgconn.Config
	nodeOf map[string]int // by address
	log    func(string, ...any)

	patience atomic.Int64 // time.Duration of one try
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex
	acks []Ack
	next int64
	last error
}

// How long a client waits for an answer when the network is well, and for each
// server of its DSN to let it in.
const (
	tryLimit     = 500 * time.Millisecond
	connectLimit = 300 * time.Millisecond
)

// startWriter lets a client write from machine m to the nodes.
func (c *cluster) startWriter(id int, m *machine, nodes []*node, every time.Duration) (*writer, error) {
	cfg, err := pgconn.ParseConfig(c.dsn(nodes))
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = m.dial
	w := &writer{id: id, name: m.name, every: every, cfg: cfg, nodeOf: map[string]int{}, next: 1, log: c.o.Log}
	for _, n := range nodes {
		w.nodeOf[net.JoinHostPort(n.m.ip, strconv.Itoa(n.port))] = n.id
	}
	w.patience.Store(int64(tryLimit))
	ctx, cancel := context.WithCancel(c.ctx)
	w.cancel = cancel
	w.wg.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *writer) stop() {
	w.cancel()
	w.wg.Wait()
}

// waits sets how long the client waits for an answer: longer where the line is slow.
func (w *writer) waits(d time.Duration) { w.patience.Store(int64(d)) }

func (w *writer) run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	var conn *pgconn.PgConn
	defer func() { drop(conn) }()
	failed := 0
	for ctx.Err() == nil {
		var err error
		if conn, err = w.try(ctx, conn); err != nil {
			w.mu.Lock()
			w.last = err
			w.mu.Unlock()
			drop(conn)
			conn = nil
			if failed++; failed%2 == 1 {
				continue // at once, but it does not spin
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// drop forgets a connection: no good-bye to a server that may not listen.
func drop(conn *pgconn.PgConn) {
	if conn != nil {
		_ = conn.Conn().Close()
	}
}

// try commits one row, over a new connection if conn is nil.
func (w *writer) try(ctx context.Context, conn *pgconn.PgConn) (*pgconn.PgConn, error) {
	patience := time.Duration(w.patience.Load())
	if conn == nil {
		cfg := w.cfg.Copy()
		cfg.ConnectTimeout = max(connectLimit, patience-tryLimit) // for each host
		ctx, cancel := context.WithTimeout(ctx, time.Duration(1+len(w.nodeOf))*patience)
		defer cancel()
		var err error
		if conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w.mu.Lock()
	id := w.next
	w.next++
	w.mu.Unlock()
	sent := time.Now()
	err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO chaos VALUES (%d, %d)", w.id, id)).Close()
	if err != nil {
		return conn, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, Ack{id, sent, time.Now(), w.nodeOf[conn.Conn().RemoteAddr().String()]})
	return conn, nil
}

// mark is the id that is written next.
func (w *writer) mark() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// since returns the acknowledgements of ids from, up to now.
func (w *writer) since(from int64) []Ack {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := len(w.acks)
	for i > 0 && w.acks[i-1].ID >= from {
		i--
	}
	return append([]Ack(nil), w.acks[i:]...)
}

// newest returns the last acknowledgements, at most n.
func (w *writer) newest(n int) []Ack {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Ack(nil), w.acks[max(0, len(w.acks)-n):]...)
}

func (w *writer) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}
