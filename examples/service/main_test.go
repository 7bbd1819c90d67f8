package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The primary is stopped and a standby promoted; the service goes on counting.
func TestService(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{Name: "node1"})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2"})
	port := pgtest.Port(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-db", fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=postgres", primary.Port, standby.Port), "-port", fmt.Sprint(port)}, io.Discard)
	}()
	counted := func(want int) {
		t.Helper()
		pgtest.WaitFor(t, fmt.Sprint(want), func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/count", port), nil)
			require.NoError(t, err)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err // it does not listen yet
			}
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", res.Status, text)
			}
			require.Equal(t, fmt.Sprint(want), strings.TrimSpace(string(text)))
			return nil
		})
	}
	counted(1)
	counted(2)
	primary.Stop("fast")
	standby.Exec(t, `SELECT pg_promote()`)
	counted(3)
	cancel()
	require.NoError(t, <-done)
}
