package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr"
)

func (cmd *clusterWatch) needsConfig() bool { return !cmd.given() }

func (cmd *clusterWatch) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	var t *terminal
	if !a.json {
		t = openTerminal(a.in, a.out)
	}
	if t == nil {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		return a.answer(st, func(w io.Writer) { fmt.Fprint(w, watchText(st, nil)) })
	}
	defer t.close()
	for {
		st, err := c.Status(ctx)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how it is ended
		}
		head := fmt.Sprintf("%s, every %d s; q ends it\n\n", time.Now().Format(time.DateTime), cmd.Interval)
		if err := t.draw(head + watchText(st, err)); err != nil {
			return fmt.Errorf("write to the terminal: %w", err)
		}
		if t.quit(ctx, time.Duration(cmd.Interval)*time.Second) {
			return nil
		}
	}
}

// watchText is what cluster show --compact prints, with what is wrong below it.
func watchText(st repmgr.ClusterStatus, err error) string {
	var b strings.Builder
	if err != nil {
		fmt.Fprintf(&b, "%v\n%s\n", err, repmgr.Hint(err))
		return b.String()
	}
	show := clusterShow{Compact: true}
	show.print(&b, st)
	for i, issue := range st.Issues {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "- %s\n", issue)
	}
	return b.String()
}

// terminal is a screen that is drawn again and again, and the keys that are pressed.
type terminal struct {
	in, out *os.File
	before  *unix.Termios
}

// openTerminal takes the terminal of the program over, without an echo and without waiting for ends of lines; nil: it has none.
func openTerminal(in io.Reader, out io.Writer) *terminal {
	i, isFile := in.(*os.File)
	o, alsoFile := out.(*os.File)
	if !isFile || !alsoFile {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(o.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	before, err := unix.IoctlGetTermios(int(i.Fd()), unix.TCGETS)
	if err != nil {
		return nil
	}
	raw := *before
	raw.Lflag &^= unix.ICANON | unix.ECHO // Ctrl-C stays a signal
	if unix.IoctlSetTermios(int(i.Fd()), unix.TCSETS, &raw) != nil {
		return nil
	}
	fmt.Fprint(o, "\x1b[?1049h\x1b[?25l") // a screen of its own, without a cursor
	return &terminal{i, o, before}
}

// draw replaces what is on the screen, without a flicker. What is too much for it is left out.
func (t *terminal) draw(text string) error {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if size, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		lines = lines[:min(len(lines), int(size.Row))]
		for i, line := range lines {
			if r := []rune(line); len(r) > int(size.Col) {
				lines[i] = string(r[:size.Col])
			}
		}
	}
	for i, line := range lines {
		lines[i] = printable(line) + "\x1b[K"
	}
	_, err := fmt.Fprint(t.out, "\x1b[H"+strings.Join(lines, "\n")+"\x1b[J")
	return err
}

// printable takes control characters out of what other machines have said.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, line)
}

// keyEvery is how long a press of a key, or a signal, may be noticed late.
const keyEvery = 100 * time.Millisecond

// quit waits so long for somebody who ends it.
func (t *terminal) quit(ctx context.Context, d time.Duration) bool {
	for until := time.Now().Add(d); time.Now().Before(until); {
		ready := []unix.PollFd{{Fd: int32(t.in.Fd()), Events: unix.POLLIN}}
		n, _ := unix.Poll(ready, int(keyEvery.Milliseconds())) // a signal may interrupt it
		if ctx.Err() != nil {
			return true
		}
		if n <= 0 {
			continue
		}
		key := make([]byte, 64)
		if n, err := t.in.Read(key); err != nil || strings.ContainsAny(string(key[:n]), "qQ\x03\x04") {
			return true
		}
	}
	return false
}

// close gives the terminal back as it was.
func (t *terminal) close() {
	fmt.Fprint(t.out, "\x1b[?25h\x1b[?1049l")
	_ = unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.before)
}
