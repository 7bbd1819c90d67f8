package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func (cmd *clusterWatch) needsConfig() bool { return !cmd.given() }

func (cmd *clusterWatch) Run(ctx context.Context, a *app) error {
	var t *terminal
	if !a.json {
		t = openTerminal(a.in, a.out)
	}
	if t == nil {
		return (&clusterShow{Compact: true, connection: cmd.connection}).Run(ctx, a)
	}
	defer t.close()
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	if err := t.draw("asking the nodes ..."); err != nil {
		return fmt.Errorf("write to the terminal: %w", err)
	}
	for {
		st, err := c.Status(ctx)
		if ctx.Err() != nil {
			return ended(ctx)
		}
		head := fmt.Sprintf("%s, every %d s; q ends it\n\n", time.Now().Format(time.DateTime), cmd.Interval)
		if err := t.draw(head + watchText(st, err)); err != nil {
			return fmt.Errorf("write to the terminal: %w", err)
		}
		if t.quit(ctx, time.Duration(cmd.Interval)*time.Second) {
			return ended(ctx)
		}
	}
}

// ended says why it is over: q and Ctrl-C are no failure.
func ended(ctx context.Context) error {
	var signal *cli.SignalError
	if errors.As(context.Cause(ctx), &signal) && signal.Signal == unix.SIGINT {
		return nil
	}
	return context.Cause(ctx)
}

// watchText is what is wrong, and then what cluster show --compact prints: the screen may be too small for all of it.
func watchText(st repmgr.ClusterStatus, err error) string {
	var b strings.Builder
	if err != nil {
		fmt.Fprintf(&b, "%v\n%s\n", err, repmgr.Hint(err))
		return b.String()
	}
	for _, issue := range st.Issues {
		fmt.Fprintf(&b, "- %s\n", issue)
	}
	if len(st.Issues) > 0 {
		b.WriteString("\n")
	}
	show := clusterShow{Compact: true}
	show.print(&b, st)
	return b.String()
}

// terminal is a screen that is drawn again and again, and the keys that are pressed.
type terminal struct {
	in, out *os.File
	before  *unix.Termios
	drawn   unix.Winsize   // the size that was drawn for
	signals chan os.Signal // of those that would end the program before it gives the terminal back; the context has seen the first
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
	raw.Lflag &^= unix.ICANON | unix.ECHO         // Ctrl-C stays a signal
	raw.Cc[unix.VSUSP], raw.Cc[unix.VQUIT] = 0, 0 // Ctrl-Z and Ctrl-\ would leave the terminal as it is
	if unix.IoctlSetTermios(int(i.Fd()), unix.TCSETS, &raw) != nil {
		return nil
	}
	fmt.Fprint(o, "\x1b[?1049h\x1b[?25l") // a screen of its own, without a cursor
	t := &terminal{in: i, out: o, before: before, signals: make(chan os.Signal, 1)}
	signal.Notify(t.signals, unix.SIGINT, unix.SIGTERM)
	return t
}

// size is that of the screen; zero: not known.
func (t *terminal) size() unix.Winsize {
	if size, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ); err == nil {
		return *size
	}
	return unix.Winsize{}
}

// draw replaces what is on the screen, without a flicker. The last line says how much has no room.
func (t *terminal) draw(text string) error {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	t.drawn = t.size()
	if rows := int(t.drawn.Row); rows > 0 && len(lines) > rows {
		lines = append(lines[:rows-1], fmt.Sprintf("... and %d more lines", len(lines)-rows+1))
	}
	for i, line := range lines {
		r := []rune(printable(line))
		if columns := int(t.drawn.Col); columns > 0 && len(r) > columns {
			r = r[:columns]
		}
		erase := "\x1b[K" // first: behind a full line it would take the last character
		if i == len(lines)-1 {
			erase = "\x1b[J"
		}
		lines[i] = erase + string(r)
	}
	_, err := fmt.Fprint(t.out, "\x1b[H"+strings.Join(lines, "\n"))
	return err
}

// printable takes control characters, also those of the direction of writing, out of what other machines have said.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, line)
}

// keyEvery is how long a press of a key, or a signal, may be noticed late.
const keyEvery = 100 * time.Millisecond

// quit waits so long for somebody who ends it, and no longer where the screen has another size now.
func (t *terminal) quit(ctx context.Context, d time.Duration) bool {
	for until := time.Now().Add(d); time.Now().Before(until) && t.size() == t.drawn; {
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
	signal.Stop(t.signals)
}
