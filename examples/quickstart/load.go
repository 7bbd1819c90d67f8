package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// query returns the only value of sql's result, over a connection of its own.
func query[T any](ctx context.Context, s *server, sql string, args ...any) (value T, err error) {
	conn, err := pgx.Connect(ctx, s.conninfo())
	if err != nil {
		return value, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, sql, args...).Scan(&value); err != nil {
		return value, fmt.Errorf("query %s: %w", s.name, err)
	}
	return value, nil
}

// writer is an application that counts what it was promised: it commits receipt
// after receipt, each in a transaction of its own, until its server is gone.
type writer struct {
	stop  context.CancelFunc
	ended chan struct{}

	// Valid once it has ended.
	last int64 // the last receipt whose commit was acknowledged
	err  error // why it ended by itself
}

const createReceipts = `CREATE TABLE IF NOT EXISTS receipts (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`

// startWriter writes receipts on s, beginning with number first. It returns
// after the first one is acknowledged.
func startWriter(ctx context.Context, s *server, first int64) (*writer, error) {
	ctx, stop := context.WithCancel(ctx)
	w := &writer{stop: stop, ended: make(chan struct{}), last: first - 1}
	acknowledged := make(chan struct{})
	go func() {
		defer close(w.ended)
		w.err = w.write(ctx, s, sync.OnceFunc(func() { close(acknowledged) }))
	}()
	select {
	case <-acknowledged:
		return w, nil
	case <-w.ended:
		stop()
		return nil, fmt.Errorf("write on %s: %w", s.name, w.err)
	}
}

func (w *writer) write(ctx context.Context, s *server, acknowledged func()) error {
	conn, err := pgx.Connect(ctx, s.conninfo())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, createReceipts); err != nil {
		return err
	}
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		// What begins is finished: a commit that we gave up on would be neither promised nor refused.
		if _, err := conn.Exec(context.WithoutCancel(ctx), `INSERT INTO receipts (id) VALUES ($1)`, w.last+1); err != nil {
			return err
		}
		w.last++
		acknowledged()
		<-pace.C
	}
	return nil
}

// end stops the writer, if its server has not done so, and returns the last
// receipt that was acknowledged.
func (w *writer) end() int64 {
	w.stop()
	<-w.ended
	return w.last
}

// pgbench runs its load for so many seconds: 400 transactions a second, which
// leaves something of a small machine to the four servers.
func (s *story) pgbench(n *node, seconds int) (*task, error) {
	args := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(n.port), "-U", "postgres", "-n", "-c", "4", "-R", "400", "-T", strconv.Itoa(seconds), "postgres"}
	s.command("pgbench %s &", strings.Join(args, " "))
	return s.background("pgbench", args...)
}

var (
	transactions = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	perSecond    = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
)

// readPgbench finds the figures in pgbench's report.
func readPgbench(report string) (n int64, tps float64, err error) {
	a, b := transactions.FindStringSubmatch(report), perSecond.FindStringSubmatch(report)
	if a == nil || b == nil {
		return 0, 0, fmt.Errorf("pgbench: %s", report)
	}
	n, err1 := strconv.ParseInt(a[1], 10, 64)
	tps, err2 := strconv.ParseFloat(b[1], 64)
	return n, tps, errors.Join(err1, err2)
}

// contents is a count and a checksum of a table's rows, whatever their order.
func contents(ctx context.Context, s *server, table string) (string, error) {
	return query[string](ctx, s, fmt.Sprintf(`SELECT count(*) || ' ' || left(md5(coalesce(sum(hashtextextended(t::text, 0)), 0)::text), 12) FROM %s t`, table))
}
