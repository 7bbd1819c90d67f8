package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/repmgrtest"
)

func TestMain(m *testing.M) { repmgrtest.Main(m) }

// The primary is killed while two clients count; each number is given once.
func TestService(t *testing.T) {
	cluster := repmgrtest.Start(t, repmgrtest.Options{})
	port := pgtest.Port(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-db", cluster.ConnString(), "-port", fmt.Sprint(port)}, io.Discard) }()
	count := func(ctx context.Context) (int, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/count", port), nil)
		if err != nil {
			return 0, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err // it does not listen yet
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return 0, err
		}
		if res.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s: %s", res.Status, text)
		}
		return strconv.Atoi(strings.TrimSpace(string(text)))
	}
	next := func() (n int) {
		t.Helper()
		pgtest.WaitFor(t, "a number", func(ctx context.Context) (err error) {
			n, err = count(ctx)
			return err
		})
		return n
	}
	require.Equal(t, 1, next())

	var mu sync.Mutex
	given := map[int]int{}
	counting := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(given)
	}
	clients, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for clients.Err() == nil {
				if n, err := count(clients); err == nil { // else it is not known, or the client leaves
					mu.Lock()
					given[n]++
					mu.Unlock()
				}
			}
		})
	}
	more := func(what string) {
		t.Helper()
		before := counting()
		pgtest.WaitFor(t, what, func(context.Context) error {
			if n := counting(); n < before+50 {
				return fmt.Errorf("%d numbers were given", n)
			}
			return nil
		})
	}
	more("numbers of the first primary")
	cluster.KillPrimary(t)
	cluster.WaitForPrimary(t)
	more("numbers of the second one")
	cluster.Switchover(t)
	more("numbers of the third one")
	leave()
	wg.Wait()
	for n, times := range given {
		require.Equal(t, 1, times, "%d", n)
	}
	require.Greater(t, next(), len(given)+1)
	cancel()
	require.NoError(t, <-done)
}
