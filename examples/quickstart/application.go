package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// application is a client as it should be: it knows all servers, asks for the
// one that takes writes, and after an error asks again at once. An order whose
// commit ended in an error may be there or not: it counts for nothing.
type application struct {
	stop  context.CancelFunc
	ended chan struct{}
	names map[string]string // of the nodes, by address

	mu      sync.Mutex
	orders  []int64 // acknowledged
	last    time.Time
	by      string        // whose the last acknowledgement was
	longest time.Duration // without one
	commits int           // and so on: since the last look
	servers []string
	note    string
}

const orderLimit = 5 * time.Second // for one commit

// startApplication makes the table and begins. The nodes' order is that in which
// it asks them.
func startApplication(ctx context.Context, nodes []*node) (*application, error) {
	a := &application{ended: make(chan struct{}), names: map[string]string{}}
	var hosts, ports []string
	for _, n := range nodes {
		a.names[fmt.Sprintf("127.0.0.1:%d", n.port)] = n.name
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, fmt.Sprint(n.port))
	}
	dsn := fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres connect_timeout=2 target_session_attrs=read-write", strings.Join(hosts, ","), strings.Join(ports, ","))
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, `CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return nil, err
	}
	ctx, a.stop = context.WithCancel(ctx)
	a.last = time.Now()
	go func() {
		defer close(a.ended)
		next := int64(1)
		for ctx.Err() == nil {
			next = a.session(ctx, dsn, next)
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	return a, nil
}

// session writes until something goes wrong. It returns the number of the next order.
func (a *application) session(ctx context.Context, dsn string, next int64) int64 {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		a.failed(err)
		return next
	}
	defer conn.Close(context.WithoutCancel(ctx))
	by := a.names[conn.PgConn().Conn().RemoteAddr().String()]
	pace := time.NewTicker(3 * time.Millisecond)
	defer pace.Stop()
	for ; ctx.Err() == nil; next++ {
		// What begins is finished: see the writer of receipts.
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), orderLimit)
		_, err := conn.Exec(limit, `INSERT INTO orders (id) VALUES ($1)`, next)
		cancel()
		if err != nil {
			a.failed(err)
			return next + 1
		}
		a.acknowledged(next, by)
		<-pace.C
	}
	return next
}

func (a *application) acknowledged(order int64, by string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.longest, a.last, a.by = max(a.longest, now.Sub(a.last)), now, by
	a.orders = append(a.orders, order)
	a.commits++
	if !slices.Contains(a.servers, by) {
		a.servers = append(a.servers, by)
	}
}

// failed keeps the first error since the last look.
func (a *application) failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var pgErr *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case a.note != "":
	case errors.As(err, &connect):
		a.note = "no server takes writes"
	case errors.As(err, &pgErr):
		a.note = pgErr.Message
	default:
		a.note = "the connection is gone"
	}
}

// since tells what it got since the last look.
func (a *application) since() (commits int, by, note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	commits, by, note = a.commits, strings.Join(a.servers, ", "), a.note
	a.commits, a.servers, a.note = 0, nil, ""
	return commits, by, note
}

// outage is the longest time without an acknowledgement, up to now, and who has
// given the last one.
func (a *application) outage() (time.Duration, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(a.longest, time.Since(a.last)), a.by
}

// end stops it, and returns the orders that were acknowledged.
func (a *application) end() []int64 {
	a.stop()
	<-a.ended
	return a.orders
}
