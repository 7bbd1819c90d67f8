package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"strings"
	"time"
)

// pageText is what the page says beside the figures.
//
//go:embed testdata/page.md
var pageText string

// page writes the figures as the page of the manual. It is made of a whole run
// only: a page that shows a part would lose the rest.
func (r *table) page(path string) error {
	if path == "" {
		return nil
	}
	sections := map[string]bool{}
	for _, f := range r.figures {
		sections[f.Section] = true
	}
	for _, s := range []string{startUp, showing, viewing, idling, failingOver, cloning, switchingOver, clientsSee} {
		if !sections[s] {
			fmt.Fprintf(os.Stderr, "bench: no page: nothing was measured for %q\n", s)
			return nil
		}
	}
	var text bytes.Buffer
	r.print(&text)
	run := fmt.Sprintf("%s, %s. Load average %s.", r.Machine, time.Now().UTC().Format("2 January 2006, 15:04 UTC"), r.Load)
	verdict := "All limits were met."
	if short := r.short(); len(short) > 0 {
		verdict = "**Limits that were not met:**\n\n- " + strings.Join(short, "\n- ")
	}
	body := indent(text.String())
	page := strings.NewReplacer("{{run}}", run, "{{verdict}}", verdict, "{{table}}", body).Replace(pageText)
	return os.WriteFile(path, []byte(page), 0o600)
}

func indent(text string) string {
	var b strings.Builder
	_, table, _ := strings.Cut(text, "\nmedian ") // the machine and the load stand above
	for line := range strings.Lines("median " + table) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			line = "    " + line
		}
		b.WriteString(line + "\n")
	}
	return strings.TrimRight(b.String(), "\n")
}

// short are the figures that fell short of their limits.
func (r *table) short() (all []string) {
	for _, f := range r.figures {
		if f.verdict() == "SHORT" {
			all = append(all, fmt.Sprintf("%s: %s: %s %s, limit %s", f.Section, f.What, f.Ours, f.Unit, f.Limit))
		}
	}
	return all
}
