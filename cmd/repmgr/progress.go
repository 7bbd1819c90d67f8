package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr"
)

// progressEvery is how often a copy that nobody watches says how far it is.
const progressEvery = 10 * time.Second

// progress shows how far a copy is: a bar that is redrawn on a terminal; a line
// now and then elsewhere with -v; nothing with -q or --json. It is used from
// one goroutine at a time.
type progress struct {
	app   *app
	width int           // of the terminal; 0: there is none
	next  time.Duration // when the next line is due
	drawn bool
}

func newProgress(a *app) *progress {
	p := &progress{app: a, next: progressEvery}
	if a.Quiet || a.json || a.LogToFile {
		return p
	}
	if f, ok := a.err.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			p.width = cmp.Or(int(size.Col), 80) // a terminal may not know
		}
	}
	return p
}

func (p *progress) show(c repmgr.CopyProgress) {
	switch {
	case p.width > 0:
		fmt.Fprintf(p.app.err, "\r\x1b[K%s", progressBar(c, p.width-1))
		p.drawn = true
	case p.app.Verbose && c.Elapsed >= p.next:
		p.next += progressEvery
		p.app.log.Info(strings.TrimSpace(progressText(c)))
	}
}

// end takes the bar away, so that messages begin on a clean line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.app.err, "\r\x1b[K")
	}
}

// progressBar is a line of at most width characters.
func progressBar(c repmgr.CopyProgress, width int) string {
	text := progressText(c)
	room := width - len(text) - 3
	if c.Total <= 0 || room < 10 {
		return text[:min(len(text), width)]
	}
	room = min(room, 40)
	full := int(int64(room) * min(c.Done, c.Total) / c.Total)
	return fmt.Sprintf("[%s%s] %s", strings.Repeat("=", full), strings.Repeat(" ", room-full), text)
}

func progressText(c repmgr.CopyProgress) string {
	rate := ""
	if s := c.Elapsed.Seconds(); s > 0.2 {
		rate = fmt.Sprintf("  %s/s", size(int64(float64(c.Done)/s)))
	}
	at := c.Elapsed.Round(time.Second)
	if c.Total <= 0 {
		return fmt.Sprintf("%s  %s%s  %s", c.Phase, size(c.Done), rate, at)
	}
	// The estimate is made before the copy: a database that grows goes past it.
	return fmt.Sprintf("%3d%%  %s of %s%s  %s  %s", min(100, 100*c.Done/c.Total), size(c.Done), size(max(c.Total, c.Done)), rate, at, c.Phase)
}

// size writes bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d kB", n>>10)
	}
}
