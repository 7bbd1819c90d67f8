package outbox_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/outbox"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/registry"
)

// What one daemon could not write the next one finds, but for what came with a copy of
// another node's directory.
func TestOutbox_OutlivesItsDaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "global"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "global", "pg_control"), nil, 0o600))
	known := false
	d := outbox.Daemon{
		Node: 1, Log: slog.New(slog.DiscardHandler), Report: func(string, error) {}, Tell: func(registry.Event) {}, Wake: func() {},
		Disk: func() *postmaster.Server { return &postmaster.Server{Dir: dir} },
		Primary: func(context.Context, func(context.Context, *registry.Server) error) (bool, error) {
			return known, nil
		},
	}
	file := filepath.Join(dir, postmaster.EventsFile)
	first := outbox.New()
	first.Keep(t.Context(), d, false)
	for _, id := range []registry.NodeID{1, 2} {
		first.Add(registry.Event{NodeID: id, Type: registry.EventFence, At: time.Now()}, nil)
	}
	first.Keep(t.Context(), d, true)
	require.NoFileExists(t, file, "somebody else is at work in the directory")
	first.Leave(d)
	require.FileExists(t, file)

	second := outbox.New()
	second.Keep(t.Context(), d, false)
	second.Leave(d)
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(kept), `"node_id":1`)
	require.NotContains(t, string(kept), `"node_id":2`)

	known = true
	second.Keep(t.Context(), d, false)
	second.Leave(d)
	require.NoFileExists(t, file)

	// A file that can not be read is put aside, so that only one daemon tells of it.
	require.NoError(t, os.WriteFile(file, []byte(`{"events":[`), 0o600))
	var log strings.Builder
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	for range 2 {
		outbox.New().Keep(t.Context(), d, false)
	}
	require.NoFileExists(t, file)
	require.FileExists(t, filepath.Join(dir, postmaster.DamagedEventsFile))
	require.Equal(t, 1, strings.Count(log.String(), "can not be read"))
}

// A notifier that is slow, or fails, holds up nobody, and loses nothing at the end.
func TestOutbox_Deliver(t *testing.T) {
	t.Parallel()
	b := outbox.New()
	var got []string
	slow := func(ctx context.Context, e registry.Event) error {
		got = append(got, e.Details)
		if e.Details == "hangs" {
			<-ctx.Done()
		}
		return errors.New("no")
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.Deliver(ctx, slog.New(slog.DiscardHandler), 50*time.Millisecond) })
	for _, text := range []string{"a", "hangs", "b", "c"} {
		b.Add(registry.Event{Details: text}, []outbox.Notify{slow})
	}
	stop()
	wg.Wait()
	require.Equal(t, []string{"a", "hangs", "b", "c"}, got)
}
