// Command service is a small service that survives a failover: it keeps a counter in a table. While the primary
// changes its clients wait, and where commits wait for standbys no number is given twice. Where the answer to a COMMIT is
// lost, the next primary is asked what became of it; a client gets an error where that is not known, or nothing was counted.
//
//	service -db 'host=node1,node2,node3 user=app dbname=app' -port 8090
//	curl -X POST localhost:8090/count
//
// What it takes is a pool of pgfollow in the place of that of pgx, and Retry around the transaction.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgrepmgr/repmgr/pgfollow"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is the system's
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, logTo io.Writer) error {
	flags := flag.NewFlagSet("service", flag.ContinueOnError)
	db := flags.String("db", "", "`conninfo` with all nodes")
	port := flags.Int("port", 8090, "`port` of 127.0.0.1")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logTo, nil))
	f, err := pgfollow.New(*db)
	if err != nil {
		return err
	}
	defer f.Close()
	pool, err := f.Pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS counter (id int PRIMARY KEY, n bigint NOT NULL)`); err != nil {
		return err
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /count", func(w http.ResponseWriter, r *http.Request) {
		n, err := count(r.Context(), pool)
		var unknown *pgfollow.CommitUnknownError
		switch {
		case errors.As(err, &unknown): // nobody knows: the client must look before it repeats that
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case err != nil: // nothing was done
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, n)
		}
	})
	server := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", *port), Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for p := range f.Changes(ctx) {
			log.Info("primary", "node", p.Node, "term", p.Term, "timeline", p.Timeline)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		limited, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer stop()
		_ = server.Shutdown(limited)
	})
	err = server.ListenAndServe()
	cancel()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func count(ctx context.Context, pool *pgxpool.Pool) (n int64, err error) {
	err = pgfollow.Retry(ctx, pool, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `INSERT INTO counter VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = counter.n + 1 RETURNING n`).Scan(&n)
	})
	var unknown *pgfollow.CommitUnknownError
	if errors.As(err, &unknown) {
		switch outcome, _ := pgfollow.OutcomeOf(ctx, pool, unknown.Transaction); outcome {
		case pgfollow.Committed:
			err = nil
		case pgfollow.Aborted, pgfollow.Lost:
			err = pgfollow.ErrNotCommitted
		}
	}
	return n, err
}
