package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgrepmgr/repmgr"
)

// page is what the reader sees: chapters, commands, and what came of them.
type page struct {
	w        io.Writer
	terminal bool
	colors   bool
	dir      string // left out of paths
	chapters int
}

func newPage(w io.Writer) *page {
	p := &page{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	p.colors = p.terminal && os.Getenv("NO_COLOR") == ""
	return p
}

const width = 76 // of a line, up to the end of its time

func (p *page) style(code, text string) string {
	if !p.colors {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p *page) bold(text string) string { return p.style("1", text) }
func (p *page) dim(text string) string  { return p.style("2", text) }

func (p *page) chapter(title string) {
	p.chapters++
	fmt.Fprintf(p.w, "\n%s\n\n", p.bold(fmt.Sprintf("%d  %s", p.chapters, title)))
}

// command shows what a person would type to the same effect.
func (p *page) command(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), p.dir+"/", "")
	fmt.Fprintf(p.w, "   %s\n", p.dim("$ "+text))
}

func (p *page) say(format string, args ...any) {
	fmt.Fprintf(p.w, "   "+format+"\n", args...)
}

// took is a line with the time that it took at its end.
func (p *page) took(d time.Duration, format string, args ...any) {
	text := "   " + fmt.Sprintf(format, args...)
	fmt.Fprintf(p.w, "%s%s\n", text, p.dim(fmt.Sprintf("%*s", max(10, width-utf8.RuneCountInString(text)), short(d))))
}

func (p *page) space() { fmt.Fprintln(p.w) }

// progress redraws one line while a copy runs. Only a terminal can do that.
func (p *page) progress(c repmgr.CopyProgress) {
	if p.terminal && c.Total > 0 {
		const cells = 30
		full := int(cells * min(c.Done, c.Total) / c.Total)
		fmt.Fprintf(p.w, "\r\x1b[K   [%s%s] %s of %s", strings.Repeat("=", full), strings.Repeat(" ", cells-full), bytesOf(c.Done), bytesOf(c.Total))
	}
}

func (p *page) endProgress() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// table has the layout of repmgr's tables. The first row is the header.
func (p *page) table(rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		cells, dashes := make([]string, len(row)), make([]string, len(row))
		for i, cell := range row {
			cells[i] = cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			dashes[i] = strings.Repeat("-", widths[i])
		}
		fmt.Fprintln(p.w, strings.TrimRight("    "+strings.Join(cells, " | "), " "))
		if n == 0 {
			fmt.Fprintln(p.w, "   -"+strings.Join(dashes, "-+-")+"-")
		}
	}
}

// clusterShow is "repmgr cluster show --compact", and what it warns of.
func (p *page) clusterShow(st repmgr.ClusterStatus) {
	rows := [][]string{{"ID", "Name", "Role", "Status", "Upstream", "Location", "Prio.", "TLI"}}
	for _, n := range st.Nodes {
		timeline := "?"
		if n.Timeline != 0 {
			timeline = fmt.Sprint(n.Timeline)
		}
		rows = append(rows, []string{n.ID.String(), n.Name, string(n.Role), n.Status, n.Upstream, n.Location, fmt.Sprint(n.Priority), timeline})
	}
	p.table(rows)
	for _, issue := range st.Issues {
		p.warn(issue)
	}
}

func (p *page) warn(issue string) { p.paragraphs(p.dim("WARNING: " + issue)) }

// serviceStatus is "repmgr service status", but for the columns that are all the
// same here: our monitors are of one process.
func (p *page) serviceStatus(st repmgr.ServiceStatus) {
	rows := [][]string{{"ID", "Name", "Role", "Status", "Upstream", "repmgrd", "Paused?", "Phase"}}
	for _, n := range st.Nodes {
		row := []string{n.ID.String(), n.Name, string(n.Role), n.Status, n.Upstream, "n/a", "n/a", "n/a"}
		if n.Monitored != nil {
			row[5] = map[bool]string{true: "running", false: "not running"}[*n.Monitored]
		}
		if n.Paused != nil {
			row[6] = map[bool]string{true: "yes", false: "no"}[*n.Paused]
		}
		if n.Monitor != nil {
			row[7] = n.Monitor.Phase
		}
		rows = append(rows, row)
	}
	p.table(rows)
	p.say("%s", st.RuleText())
	for _, issue := range st.Issues {
		p.warn(issue)
	}
}

// paragraphs prints long lines, broken between words.
func (p *page) paragraphs(text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, " \n"); line == "" {
			p.space()
			continue
		}
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		out := indent
		for _, word := range strings.Fields(line) {
			if utf8.RuneCountInString(out)+1+utf8.RuneCountInString(word) > width-3 && strings.TrimSpace(out) != "" {
				p.say("%s", out)
				out = indent + "  "
			}
			if strings.TrimSpace(out) != "" {
				out += " "
			}
			out += word
		}
		p.say("%s", strings.TrimRight(out, " "))
	}
}

// short writes a duration to three digits or so.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func bytesOf(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d kB", n>>10)
	default:
		return fmt.Sprintf("%d B", n)
	}
}

// counted writes a number for people: 12,345.
func counted(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// cut shortens a text to n characters.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
