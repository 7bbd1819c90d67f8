package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func TestWatchText(t *testing.T) {
	t.Parallel()
	st := repmgr.ClusterStatus{Nodes: []repmgr.NodeView{node(1, "node1", repmgr.RolePrimary, "", "* running")}, Issues: []string{"one", "two"}}
	require.Regexp(t, `(?s)^- one\n- two\n\n ID .* node1 .*\n$`, watchText(st, nil))
	require.Equal(t, "nobody answers\n\n", watchText(st, errors.New("nobody answers")))
	require.Equal(t, "a?b?c?d?e?", printable("a\x1bb\u009bc\x7fd\u202ee\u2028"))
}

// A signal other than that of Ctrl-C is told by the exit code.
func TestEnded(t *testing.T) {
	t.Parallel()
	for signal, want := range map[unix.Signal]bool{unix.SIGINT: false, unix.SIGTERM: true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		require.NoError(t, ended(ctx))
		cancel(&cli.SignalError{Signal: signal})
		require.Equal(t, want, ended(ctx) != nil)
	}
}

// On a terminal the table is drawn on a screen of its own; a key ends it, and the terminal is as it was.
func TestTerminal(t *testing.T) {
	t.Parallel()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	defer screen.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer tty.Close()
	require.NoError(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 3, Col: 5}))
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)

	require.Nil(t, openTerminal(strings.NewReader(""), tty))
	term := openTerminal(tty, tty)
	require.NotNil(t, term)
	require.NoError(t, term.draw("first line\nsecond\nthird\nfourth\n"))
	require.False(t, term.quit(t.Context(), 10*time.Millisecond))
	raw, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0}, []byte{raw.Cc[unix.VSUSP], raw.Cc[unix.VQUIT]})
	for range 2 { // a second Ctrl-C does not end the program before the terminal is as it was
		require.NoError(t, unix.Kill(os.Getpid(), unix.SIGINT))
		select {
		case <-term.signals:
		case <-time.After(10 * time.Second):
			require.Fail(t, "the signal did not come")
		}
	}
	require.NoError(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 4, Col: 5}))
	require.False(t, term.quit(t.Context(), time.Minute), "what was drawn does not fit any more")
	term.drawn = term.size()
	_, err = screen.WriteString("xq")
	require.NoError(t, err)
	require.True(t, term.quit(t.Context(), time.Minute))
	ended, end := context.WithCancel(t.Context())
	end()
	require.True(t, term.quit(ended, time.Minute))
	term.close()
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)
	require.Equal(t, before, after)
	drawn := make([]byte, 4096)
	n, err := screen.Read(drawn)
	require.NoError(t, err)
	require.Contains(t, string(drawn[:n]), "\x1b[H\x1b[Kfirst\r\n\x1b[Ksecon\r\n\x1b[J... a")
}
