package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// absence is a row that had been acknowledged before a read was sent that did not show it.
type absence struct {
	Node, Timeline int // who was read from
	Client         int
	Ack            Ack
}

// reader is a client that reads on whoever takes writes, and looks whether it sees
// what was acknowledged to the others: the end may look well, and a primary of a
// branch that did not last may have shown less. Safe for concurrent use.
type reader struct {
	cfg     *pgconn.Config
	nodeOf  map[string]int
	writers []*writer
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	missing []absence
}

const (
	readEvery = 100 * time.Millisecond
	readRows  = 150 // of each client, the newest
)

func (c *cluster) startReader(m *machine, nodes []*node, writers []*writer) (*reader, error) {
	cfg, err := pgconn.ParseConfig(c.dsn(nodes))
	if err != nil {
		return nil, err
	}
	cfg.DialFunc, cfg.ConnectTimeout = m.dial, connectLimit
	r := &reader{cfg: cfg, nodeOf: map[string]int{}, writers: writers}
	for _, n := range nodes {
		r.nodeOf[net.JoinHostPort(n.m.ip, strconv.Itoa(n.port))] = n.id
	}
	ctx, cancel := context.WithCancel(c.ctx)
	r.cancel = cancel
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

func (r *reader) stop() {
	r.cancel()
	r.wg.Wait()
}

// take returns what was missing since the last call. Without a reader nothing is.
func (r *reader) take() []absence {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.missing
	r.missing = nil
	return m
}

func (r *reader) run(ctx context.Context) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	var conn *pgconn.PgConn
	defer func() { drop(conn) }()
	for ctx.Err() == nil {
		var err error
		if conn, err = r.read(ctx, conn); err != nil {
			drop(conn)
			conn = nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// read looks once, over a new connection if conn is nil.
func (r *reader) read(ctx context.Context, conn *pgconn.PgConn) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if conn == nil {
		var err error
		if conn, err = pgconn.ConnectConfig(ctx, r.cfg); err != nil {
			return nil, err
		}
	}
	var where []string
	wanted := map[[2]int64]Ack{}
	for _, w := range r.writers {
		acks := w.newest(readRows)
		for _, a := range acks {
			wanted[[2]int64{int64(w.id), a.ID}] = a
		}
		if len(acks) > 0 {
			where = append(where, fmt.Sprintf("client = %d AND id BETWEEN %d AND %d", w.id, acks[0].ID, acks[len(acks)-1].ID))
		}
	}
	if len(where) == 0 {
		return conn, nil
	}
	res := conn.ExecParams(ctx, `SELECT t, client, id FROM (SELECT CASE WHEN NOT pg_is_in_recovery() THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END) x (t)
		LEFT JOIN chaos ON `+strings.Join(where, " OR "), nil, nil, nil, nil).Read()
	if res.Err != nil {
		return conn, res.Err
	}
	timeline := 0
	for _, row := range res.Rows {
		if row[0] == nil {
			return conn, errors.New("no primary")
		}
		timeline, _ = strconv.Atoi(string(row[0]))
		client, _ := strconv.ParseInt(string(row[1]), 10, 64)
		id, _ := strconv.ParseInt(string(row[2]), 10, 64)
		delete(wanted, [2]int64{client, id})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, a := range wanted {
		r.missing = append(r.missing, absence{r.nodeOf[conn.Conn().RemoteAddr().String()], timeline, int(key[0]), a})
	}
	return conn, nil
}
