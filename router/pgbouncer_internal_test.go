package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRewrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ from, want string }{
		"host and port":  {"app = host=old port=1 dbname=app", "app = host=b port=2 dbname=app"},
		"none so far":    {"app = dbname=app", "app = host=b port=2 dbname=app"},
		"nothing at all": {"app =", "app = host=b port=2"},
		"fallback":       {"* = host=old", "* = host=b port=2"},
		"blanks":         {"  app=user=x  host = old   pool_size=5", "  app= host=b port=2 user=x   pool_size=5"},
		"a quoted name":  {`"my = db" = host=old`, `"my = db" = host=b port=2`},
		"a host in what is quoted": {
			"app = host='old' connect_query='select ''host=x'' , port=3' port=9",
			"app = host=b port=2 connect_query='select ''host=x'' , port=3'",
		},
		"hostaddr is another word": {"app = xhost=1 port=2", "app = host=b port=2 xhost=1"},
		"what is no database":      {"; app = host=old\n# x = host=old\n[databases]\n%include x.ini\n", "; app = host=old\n# x = host=old\n[databases]\n%include x.ini\n"},
		"a whole pgbouncer.ini": {
			"[databases]\napp = dbname=app\n\n[pgbouncer]\nlisten_port = 6432\nauth_file = users.txt\n[users]\nx = pool_mode=session\n[databases]\nb=\n",
			"[databases]\napp = host=b port=2 dbname=app\n\n[pgbouncer]\nlisten_port = 6432\nauth_file = users.txt\n[users]\nx = pool_mode=session\n[databases]\nb= host=b port=2\n",
		},
		"a quote that is not at the beginning": {"app = password=a'host=b user=x", "app = host=b port=2 password=a'host=b user=x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, _ := rewrite(c.from, "b", "2")
			require.Equal(t, c.want, got)
			again, _ := rewrite(got, "b", "2")
			require.Equal(t, got, again)
		})
	}
}

// linkedFile is a file of databases, in a directory of its own, and another name of it.
func linkedFile(t *testing.T, text string) (dir, file, link string) {
	t.Helper()
	dir = t.TempDir()
	file, link = filepath.Join(dir, "real.ini"), filepath.Join(dir, "link.ini")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o640))
	require.NoError(t, os.Symlink(file, link))
	return dir, file, link
}

func TestRewriteFile(t *testing.T) {
	t.Parallel()
	dir, file, link := linkedFile(t, "[databases]\napp = dbname=app\n")
	names, err := rewriteFile(t.Context(), link, "/run/postgresql", "5432")
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"app": true}, names)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "[databases]\napp = host=/run/postgresql port=5432 dbname=app\n", string(text))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())
	_, err = rewriteFile(t.Context(), link, "/run/postgresql", "5432")
	require.NoError(t, err)
	again, err := os.Stat(file)
	require.NoError(t, err)
	require.True(t, os.SameFile(info, again), "nothing has changed")

	require.NoError(t, os.WriteFile(file, []byte("; nothing here\n"), 0o640))
	_, err = rewriteFile(t.Context(), file, "b", "2")
	require.ErrorContains(t, err, "has no line of a database")
	_, err = rewriteFile(t.Context(), filepath.Join(dir, "none"), "b", "2")
	require.ErrorIs(t, err, os.ErrNotExist)
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	_, err = rewriteFile(t.Context(), fifo, "b", "2")
	require.ErrorContains(t, err, "is no file")
	require.ErrorContains(t, (&PgBouncer{File: fifo}).Hold(t.Context()), "is no file", "it does not wait, and no switchover with it")
	if os.Getuid() != 0 { // root may write anywhere
		require.NoError(t, os.WriteFile(file, []byte("app =\n"), 0o640))
		require.NoError(t, os.Chmod(dir, 0o500))
		require.ErrorContains(t, (&PgBouncer{File: file}).Hold(t.Context()), "can not be replaced", "nobody would let the clients go on")
		require.NoError(t, os.Chmod(dir, 0o700))
	}
	if os.Getuid() == 0 {
		full := t.TempDir()
		require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"))
		t.Cleanup(func() { _ = unix.Unmount(full, 0) })
		file := filepath.Join(full, "a.ini")
		require.NoError(t, os.WriteFile(file, []byte("app =\n"), 0o640))
		_, err = rewriteFile(t.Context(), file, "b", "2")
		require.ErrorIs(t, err, unix.ENOSPC)
		_, again := rewriteFile(t.Context(), file, "b", "2")
		require.EqualError(t, again, err.Error(), "it is one trouble, and not a new one each second")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.repmgr"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// Several PgBouncers have one file, whatever they call it: none is in the way of another, and a reader finds all of it each time.
func TestRewriteFile_Together(t *testing.T) {
	t.Parallel()
	_, file, link := linkedFile(t, "app = dbname=app\n")
	for round := range 20 {
		var failed [8]error
		var wg sync.WaitGroup
		for i := range failed {
			wg.Go(func() {
				if _, failed[i] = rewriteFile(t.Context(), []string{file, link}[i%2], fmt.Sprintf("host%d", round), "5432"); failed[i] == nil {
					_, _, _, failed[i] = readFile(file)
				}
			})
		}
		wg.Wait()
		require.NoError(t, errors.Join(failed[:]...))
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("app = host=host%d port=5432 dbname=app\n", round), string(text))
	}
}

// The disk hangs while a router replaces a file: another one with this file has its own deadline, and one with another file does not wait.
func TestRewriteFile_OneHangs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, other := filepath.Join(dir, "a.ini"), filepath.Join(dir, "b.ini")
	for _, path := range []string{file, other} {
		require.NoError(t, os.WriteFile(path, []byte("app =\n"), 0o640))
	}
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	rewriting.Store(file, turn)
	late := errors.New("no answer")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, late)
	defer cancel()
	_, err := rewriteFile(ctx, file, "b", "2")
	require.ErrorIs(t, err, late)
	_, err = rewriteFile(t.Context(), other, "b", "2")
	require.NoError(t, err)
	<-turn
	_, err = rewriteFile(t.Context(), file, "b", "2")
	require.NoError(t, err)
}

// Where nobody listens the error is one line, with the address.
func TestPgBouncer_NobodyThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := l.Addr().(*net.TCPAddr)
	require.NoError(t, l.Close())
	p := &PgBouncer{Console: fmt.Sprintf("host=127.0.0.1 port=%d user=x", at.Port)}
	_, err = p.connect(t.Context())
	require.EqualError(t, err, at.String()+": connect: connection refused")
}
