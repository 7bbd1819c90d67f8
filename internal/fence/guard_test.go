package fence

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// stopped is a Guard of a data directory without a server, and what it tells.
func stopped(t *testing.T) (g *Guard, dir string, told *[]registry.Event) {
	t.Helper()
	dir, told = t.TempDir(), new([]registry.Event)
	at := func(string) *postmaster.Server {
		return &postmaster.Server{Dir: dir, Options: postmaster.Options{BinDir: filepath.Join(dir, "none"), Logger: slog.New(slog.DiscardHandler)}}
	}
	g = New(func(e registry.Event) { *told = append(*told, e) }, func() {})
	g.Use(Settings{
		Node: 1, Automatic: true, SilenceTimeout: 100 * time.Millisecond, FenceTimeout: 125 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Find: func(dir string) (*postmaster.Server, error) { return at(dir), nil }, At: at,
	})
	g.SetDataDirectory(dir)
	return g, dir, told
}

// What was fenced is no primary until it is seen as one after that, and its data
// directory is that of a standby.
func TestGuard_Fence(t *testing.T) {
	t.Parallel()
	g, dir, told := stopped(t)
	before := election.Peer{ID: 1, Role: election.Primary, Running: election.Primary, Answer: election.Answers, SeenAt: time.Now()}
	g.NotePrimary(before)
	require.True(t, g.IsPrimary())
	require.True(t, g.Fence(t.Context(), "a test"))
	require.FileExists(t, filepath.Join(dir, "standby.signal"))
	require.FileExists(t, filepath.Join(dir, postmaster.FencedMark), "it has no program to start with")
	require.False(t, g.Unmarked())
	require.Equal(t, []registry.Event{{Type: registry.EventFence, Success: true, Details: "a test"}}, *told)
	require.False(t, g.IsPrimary())
	g.NotePrimary(before)
	require.False(t, g.IsPrimary(), "it was seen before its end")
	before.SeenAt = time.Now()
	g.NotePrimary(before)
	require.True(t, g.IsPrimary())
}

// A server that was started after it was fenced is no fenced one any more, whoever has started it.
func TestGuard_VoidMark(t *testing.T) {
	t.Parallel()
	g, dir, _ := stopped(t)
	started := time.Now().Add(-time.Minute)
	require.True(t, g.Fence(t.Context(), "a test"))
	g.VoidMark(started)
	require.FileExists(t, filepath.Join(dir, postmaster.FencedMark), "that fence has ended it")
	g.VoidMark(time.Now().Add(time.Minute))
	require.NoFileExists(t, filepath.Join(dir, postmaster.FencedMark))
	g.VoidMark(time.Now().Add(time.Minute))
}

// A disk that does not answer holds up no fence: the marks are missing until it answers,
// and what stands against them is told once.
func TestGuard_FenceOnADiskThatHangs(t *testing.T) {
	t.Parallel()
	g, dir, told := stopped(t)
	fifo := filepath.Join(dir, "standby.signal.tmp") // its opening waits for a reader
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	require.True(t, g.Fence(t.Context(), "a test"))
	require.True(t, g.Unmarked())
	s := g.settings.Load()
	require.False(t, g.keepDown(t.Context(), s))
	require.Len(t, *told, 2)
	require.Contains(t, (*told)[1].Details, "does not answer")
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer reader.Close()
	require.Eventually(t, func() bool { return g.keepDown(t.Context(), s) }, time.Minute, 10*time.Millisecond)
	require.FileExists(t, filepath.Join(dir, postmaster.FencedMark))
	require.False(t, g.Unmarked())
	require.Len(t, *told, 3)
	require.Contains(t, (*told)[2].Details, "sync", "a pipe is no file")
}

// A server on another machine is not ours to stop, and that is told once for each reason.
func TestGuard_FencesNothingElsewhere(t *testing.T) {
	t.Parallel()
	g, dir, told := stopped(t)
	g.elsewhere = true
	for range 2 {
		require.False(t, g.Fence(t.Context(), "a test"))
	}
	require.Len(t, *told, 1)
	require.False(t, (*told)[0].Success)
	require.NoFileExists(t, filepath.Join(dir, "standby.signal"))
}

// The device is fed while there is more time than it would wait, and let go where there
// is no lease. A file takes what a device would be told.
func TestDevice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "watchdog")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	s := &Settings{Device: path, FenceTimeout: 2500 * time.Millisecond}
	var d device
	for _, left := range []time.Duration{s.FenceTimeout, 0} {
		require.NoError(t, d.follow(s, &left))
	}
	require.NoError(t, d.follow(s, nil))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "1V", string(text))
	s.Device = filepath.Join(path, "missing")
	require.ErrorContains(t, d.follow(s, &s.FenceTimeout), "open watchdog_device")
}

// Who is told that there is nothing to guard, and then nothing any more, looks at nobody and ends.
func TestWatchdog_LooksAtNobodyWithoutALease(t *testing.T) {
	t.Parallel()
	g, dir, _ := stopped(t)
	for _, last := range []*Beat{nil, {Bye: true}} {
		r, w := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- Watchdog(t.Context(), r, *g.settings.Load(), func(context.Context) (*voters.Watch, error) {
				t.Error("it looks at the voters")
				return nil, io.EOF
			})
		}()
		to := json.NewEncoder(w)
		require.NoError(t, to.Encode(Beat{PID: 4711, Dir: dir}))
		if last != nil {
			require.NoError(t, to.Encode(last))
		} else {
			require.NoError(t, w.Close())
		}
		require.NoError(t, <-ended)
	}
}
