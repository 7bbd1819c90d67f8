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
)

func TestWatchText(t *testing.T) {
	t.Parallel()
	st := repmgr.ClusterStatus{Nodes: []repmgr.NodeView{node(1, "node1", repmgr.RolePrimary, "", "* running")}, Issues: []string{"one", "two"}}
	require.Regexp(t, `(?s)^ ID .* node1 .*\n\n- one\n- two\n$`, watchText(st, nil))
	require.Equal(t, "nobody answers\n\n", watchText(st, errors.New("nobody answers")))
	require.Equal(t, "a?b?c?", printable("a\x1bb\u009bc\x7f"))
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
	require.Contains(t, string(drawn[:n]), "\x1b[Hfirst\x1b[K\r\nsecon\x1b[K\r\nthird\x1b[K\x1b[J")
}
