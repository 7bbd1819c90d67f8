package nowait

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Over a connection of this kind everything comes as over one of Go's, whatever the
// size: what was written, deadlines, the end, and the words for a failure.
func TestConn_IsLikeGos(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dial := func() (ours net.Conn, theirs *net.TCPConn) {
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		other, err := l.Accept()
		require.NoError(t, err)
		ours, theirs = Conn(c), other.(*net.TCPConn)
		require.NotEqual(t, c, ours)
		require.Equal(t, ours, Conn(ours))
		t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
		return ours, theirs
	}
	ours, theirs := dial()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // more than there is room for
	echo, sink := theirs, ours
	go func() { _, _ = io.Copy(echo, echo); _ = echo.CloseWrite() }()
	written := make(chan error, 1)
	go func() { _, err := sink.Write(sent); written <- err }()
	got := make([]byte, len(sent))
	_, err = io.ReadFull(ours, got)
	require.NoError(t, err)
	require.NoError(t, <-written)
	require.True(t, bytes.Equal(sent, got))

	require.NoError(t, ours.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err = ours.Read(got)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, ours.SetReadDeadline(time.Time{}))

	require.NoError(t, ours.(*conn).Conn.(*net.TCPConn).CloseWrite())
	_, err = ours.Read(got)
	require.Equal(t, io.EOF, err)

	ours, theirs = dial()
	require.NoError(t, theirs.SetLinger(0))
	require.NoError(t, theirs.Close())
	_, err = ours.Read(got)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Contains(t, err.Error(), "read tcp ")
	require.Contains(t, err.Error(), ": read: connection reset by peer")
	_, err = ours.Write(sent)
	require.ErrorIs(t, err, syscall.EPIPE)

	ours, _ = dial()
	ended := make(chan error, 1)
	last := ours
	go func() { _, err := last.Read(make([]byte, 1)); ended <- err }()
	require.NoError(t, ours.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	var op *net.OpError
	_, err = ours.Read(got)
	require.True(t, errors.As(err, &op))
	require.Equal(t, "read", op.Op)
}

// A pipe that is full takes nothing, and nobody waits for it.
func TestFile_WriteNow(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	in, err := Of(w)
	require.NoError(t, err)
	out, err := Of(r)
	require.NoError(t, err)
	line := bytes.Repeat([]byte("x"), 400)
	var all int
	for n := len(line); n > 0; all += n {
		n, err = in.WriteNow(line)
		require.NoError(t, err)
		require.Contains(t, []int{0, len(line)}, n, "a short line is written whole or not at all")
	}
	require.Greater(t, all, 100*len(line))
	n, err := out.Read(make([]byte, all))
	require.NoError(t, err)
	require.Equal(t, all, n)
	require.NoError(t, w.Close())
	_, err = out.Read(line)
	require.Equal(t, io.EOF, err)
	require.NoError(t, r.Close())
	_, err = in.WriteNow(line)
	require.Error(t, err)
}

// It counts on.
func TestBootTime(t *testing.T) {
	t.Parallel()
	first := BootTime()
	require.Positive(t, first)
	require.GreaterOrEqual(t, BootTime(), first)
}

// How a connection has ended is known by its first read that failed.
func TestEnded(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for name, c := range map[string]struct {
		do   func(t *testing.T, ours net.Conn, theirs *net.TCPConn)
		want bool
	}{
		"in order": {func(_ *testing.T, _ net.Conn, theirs *net.TCPConn) { _ = theirs.Close() }, true},
		"by a reset": {func(_ *testing.T, _ net.Conn, theirs *net.TCPConn) {
			_, _ = theirs.SetLinger(0), theirs.Close()
		}, false},
		"by us": {func(_ *testing.T, ours net.Conn, _ *net.TCPConn) { _ = ours.Close() }, false},
		"in order, after a time limit of ours": {func(t *testing.T, ours net.Conn, theirs *net.TCPConn) {
			_ = ours.SetDeadline(time.Unix(1, 0))
			_, err := ours.Read(make([]byte, 1))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			_, _ = ours.SetDeadline(time.Time{}), theirs.Close()
		}, false},
		"in order, after a time limit after which it went on": {func(t *testing.T, ours net.Conn, theirs *net.TCPConn) {
			_ = ours.SetDeadline(time.Unix(1, 0))
			_, err := ours.Read(make([]byte, 1))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			GoesOn(ours)
			_, _ = ours.SetDeadline(time.Time{}), theirs.Close()
		}, true},
	} {
		direct, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		other, err := l.Accept()
		require.NoError(t, err)
		ours := Conn(direct)
		c.do(t, ours, other.(*net.TCPConn))
		require.False(t, Ended(ours) && c.want, "%s: nobody has read it yet", name)
		_, err = ours.Read(make([]byte, 1))
		require.Error(t, err, name)
		require.Equal(t, c.want, Ended(ours), name)
		require.Equal(t, c.want, Ended(tls.Client(ours, nil)), name)
		require.False(t, Ended(direct), "%s: not one of ours", name)
		_, _ = ours.Close(), other.Close()
	}
}
