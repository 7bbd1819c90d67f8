package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Writer is a client that commits one row every few milliseconds on whichever
// server takes it, retries at once, and remembers which commits were
// acknowledged and when. Safe for concurrent use.
type Writer struct {
	o      WriterOptions
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	acks  []ack
	start time.Time
	end   time.Time // zero while running
	last  error     // of the newest failed try
}

type ack struct {
	id int64
	at time.Time
}

// WriterOptions of a Writer.
type WriterOptions struct {
	Conninfos []string      // servers, tried in turn
	Interval  time.Duration // between commits. Defaults to 5 ms.
	Timeout   time.Duration // of one try: connect, or insert and commit. Defaults to 500 ms.
	Table     string        // made by StartWriter if missing. Defaults to pgtest_writer.
}

// Gap is a time without acknowledged commits.
type Gap struct{ From, To time.Time }

// Duration of the gap.
func (g Gap) Duration() time.Duration { return g.To.Sub(g.From) }

// StartWriter makes the table, starts writing, and returns after the first
// acknowledged commit. The writer stops when t ends, or at Stop.
func StartWriter(t testing.TB, o WriterOptions) *Writer {
	t.Helper()
	if o.Interval == 0 {
		o.Interval = 5 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 500 * time.Millisecond
	}
	if o.Table == "" {
		o.Table = "pgtest_writer"
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Writer{o: o, cancel: cancel, start: time.Now()}
	t.Cleanup(w.Stop)
	w.wg.Go(func() { w.run(ctx) })
	WaitFor(t, "the writer's first commit", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.acks) == 0 {
			return fmt.Errorf("no commit yet: %w", w.last)
		}
		return nil
	})
	return w
}

func (w *Writer) run(ctx context.Context) {
	tick := time.NewTicker(w.o.Interval)
	defer tick.Stop()
	var c *pgx.Conn
	defer func() { w.drop(c) }()
	server := 0
	for id := int64(1); ctx.Err() == nil; id++ {
		var err error
		if c, err = w.write(ctx, c, server, id); err != nil {
			w.mu.Lock()
			w.last = err
			w.mu.Unlock()
			w.drop(c)
			c = nil
			if server = (server + 1) % len(w.o.Conninfos); server != 0 {
				continue // at once, until all have been tried
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// write commits one row, over a new connection if c is nil. An id is used once:
// after an error nobody knows whether its row is there.
func (w *Writer) write(ctx context.Context, c *pgx.Conn, server int, id int64) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()
	if c == nil {
		var err error
		if c, err = pgx.Connect(ctx, w.o.Conninfos[server]); err != nil {
			return nil, err
		}
		if err := ofThisRun(c); err != nil {
			return c, err
		}
		if id == 1 || w.count() == 0 {
			if _, err := c.Exec(ctx, "CREATE TABLE IF NOT EXISTS "+w.o.Table+" (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())"); err != nil {
				return c, err
			}
		}
	}
	if _, err := c.Exec(ctx, "INSERT INTO "+w.o.Table+" (id) VALUES ($1)", id); err != nil {
		return c, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, ack{id, time.Now()})
	return c, nil
}

// ofThisRun proves that a server is one of the tests of this run: its data is among their files.
func ofThisRun(c *pgx.Conn) error {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.PgConn().PID()))
	if err != nil {
		return fmt.Errorf("prove whose server it is: %w", err)
	}
	base, err := filepath.EvalSymlinks(base())
	if err == nil && !strings.HasPrefix(dir, base+"/") {
		err = fmt.Errorf("a server that works in %s is none of this run, which has its files in %s", dir, base)
	}
	return err
}

func (w *Writer) drop(c *pgx.Conn) {
	if c != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_ = c.Close(ctx)
	}
}

func (w *Writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acks)
}

// Stop stops writing and waits for the end of the try in flight. It may be
// called twice.
func (w *Writer) Stop() {
	w.cancel()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.end.IsZero() {
		w.end = time.Now()
	}
}

// Acknowledged returns the ids of the rows whose commit was acknowledged.
func (w *Writer) Acknowledged() []int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]int64, len(w.acks))
	for i, a := range w.acks {
		ids[i] = a.id
	}
	return ids
}

// LongestGap is the longest time between two acknowledged commits, or since
// the last one until now or Stop.
func (w *Writer) LongestGap() Gap {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.end
	if end.IsZero() {
		end = time.Now()
	}
	longest := Gap{w.start, w.start}
	for i, a := range w.acks {
		next := end
		if i+1 < len(w.acks) {
			next = w.acks[i+1].at
		}
		if next.Sub(a.at) > longest.Duration() {
			longest = Gap{a.at, next}
		}
	}
	return longest
}

// WaitForMore waits until n more commits are acknowledged.
func (w *Writer) WaitForMore(t testing.TB, n int) {
	t.Helper()
	want := w.count() + n
	WaitFor(t, fmt.Sprintf("%d more acknowledged commits", n), func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.acks) < want {
			return fmt.Errorf("%d of %d, last failed try: %w", len(w.acks), want, w.last)
		}
		return nil
	})
}

// Missing returns the acknowledged rows that the server does not have. Rows
// that were never acknowledged may be there: that is no fault.
func (w *Writer) Missing(t testing.TB, conninfo string) (ids []int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	acknowledged := w.Acknowledged() // before the query: later ones may be missing in it
	rows, _ := connect(t, conninfo).Query(ctx, "SELECT id FROM "+w.o.Table)
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatalf("pgtest: read the writer's rows: %v", err)
	}
	there := make(map[int64]bool, len(got))
	for _, id := range got {
		there[id] = true
	}
	for _, id := range acknowledged {
		if !there[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// Verify fails the test when the server lacks an acknowledged row.
func (w *Writer) Verify(t testing.TB, conninfo string) {
	t.Helper()
	if missing := w.Missing(t, conninfo); len(missing) > 0 {
		t.Errorf("%d of %d acknowledged rows are missing: %v", len(missing), w.count(), missing)
	}
}
