package pgtest_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// recording is a test whose end is only noted.
type recording struct {
	testing.TB
	said string
}

func (r *recording) Helper() {}

func (r *recording) Fatalf(format string, args ...any) {
	r.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// Where another server has the port of ours, nothing is written there.
func TestServer_ForeignOneIsNoticed(t *testing.T) {
	t.Parallel()
	foreign := pgtest.Start(t, pgtest.Options{Name: "foreign"})
	ours := &pgtest.Server{Name: "ours", Dir: t.TempDir(), Port: foreign.Port, BinDir: foreign.BinDir, Major: foreign.Major}
	for what, f := range map[string]func(testing.TB){
		"Exec":        func(tb testing.TB) { ours.Exec(tb, `CREATE TABLE lost (id int)`) },
		"Query":       func(tb testing.TB) { pgtest.Query[int](tb, ours, `SELECT 1`) },
		"QueryString": func(tb testing.TB) { ours.QueryString(tb, `CREATE TABLE lost (id int)`) },
		"Conn":        func(tb testing.TB) { ours.Conn(tb) },
	} {
		tb := &recording{TB: t}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f(tb)
		}()
		<-ended
		if !strings.Contains(tb.said, "is not ours in") {
			t.Errorf("%s: %q", what, tb.said)
		}
	}
	if got := foreign.QueryString(t, `SELECT count(*) FROM pg_class WHERE relname = 'lost'`); got != "0" {
		t.Errorf("it has %s tables of ours", got)
	}
}

// A port that is taken at any address is not free.
func TestPort_IsFreeAtAllAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1", "127.9.8.7", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		if port := l.Addr().(*net.TCPAddr).Port; pgtest.Free(port) {
			t.Errorf("%s: port %d is taken", address, port)
		}
		l.Close()
		pgtest.WaitFor(t, "a port that is free again", func(context.Context) error { // a child that is being forked may hold one for a moment
			l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
			if err != nil {
				return err
			}
			port := l.Addr().(*net.TCPAddr).Port
			if l.Close(); !pgtest.Free(port) {
				return fmt.Errorf("%s: port %d is not", address, port)
			}
			return nil
		})
	}
}
