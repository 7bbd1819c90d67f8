package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// page is a manual page while it is written.
type page struct{ strings.Builder }

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

var escape = strings.NewReplacer(`\`, `\e`, `-`, `\-`)

// text writes words that are no request of the formatter, whatever they begin with.
func (p *page) text(s string) {
	s = escape.Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	p.line("%s", s)
}

func newPage(name string, section int, at time.Time, version, what string) *page {
	p := &page{}
	p.line(`.TH %s %d "%s" "repmgr %s" "repmgr for Go"`, strings.ToUpper(name), section, at.Format(time.DateOnly), version)
	p.line(".SH NAME\n%s \\- %s", name, escape.Replace(what))
	return p
}

var (
	// item is an option or a command of a help text, with what is said of it.
	item = regexp.MustCompile(`^ {2,6}(\S.*?)(?: {2,}(\S.*))?$`)
	more = regexp.MustCompile(`^ {20,}(\S.*)$`) // the explanation goes on, or begins below a long option
)

// help writes a help text of our programs, whose headings end with a colon, as sections of the page.
func (p *page) help(text, heading string) {
	listed := false // in a list of options, commands or examples
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if m := more.FindStringSubmatch(line); m != nil && listed {
			p.text(m[1])
			continue
		}
		switch m := item.FindStringSubmatch(line); {
		case line == "":
			p.line(".PP")
			listed = false
		case m != nil:
			p.line(".TP\n.B %s", escape.Replace(m[1]))
			if m[2] != "" {
				p.text(m[2])
			}
			listed = true
		case strings.HasSuffix(line, ":"):
			p.line("%s %s", heading, escape.Replace(strings.TrimSuffix(line, ":")))
		default:
			p.text(line)
		}
	}
}

func ask(args ...string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("run %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// command is a line of the overview of repmgr that names one.
var command = regexp.MustCompile(`(?m)^  ([a-z][a-z -]*[a-z])(?: \[HOST\]| bash\|zsh\|fish)? {2,}(\S.*)$`)

// manuals writes the manual pages of the programs, from what they say of themselves, and of repmgr.conf, from the sample.
func (p programs) manuals(dir string, at time.Time) error {
	v, err := p.version()
	if err != nil {
		return err
	}
	overview, err := ask(p.tool, "--help")
	if err != nil {
		return err
	}
	tool := newPage("repmgr", 1, at, v, "replication manager for PostgreSQL clusters")
	_, overview, _ = strings.Cut(overview, "\n\n")
	tool.help(overview, ".SH")
	for _, m := range command.FindAllStringSubmatch(overview, -1) {
		text, err := ask(append(append([]string{p.tool}, strings.Fields(m[1])...), "--help")...)
		if err != nil {
			return err
		}
		_, text, _ = strings.Cut(text, "\n\n")
		tool.line(".SH %s", strings.ToUpper(escape.Replace(m[1])))
		tool.text(m[2])
		tool.help(text, ".SS")
	}
	tool.line(".SH SEE ALSO\nrepmgrd(1), repmgr.conf(5), /usr/share/doc/repmgr\\-go")

	text, err := ask(p.daemon, "--help")
	if err != nil {
		return err
	}
	daemon := newPage("repmgrd", 1, at, v, "replication management daemon for PostgreSQL")
	_, text, _ = strings.Cut(text, "\n\n")
	daemon.help(text, ".SH")
	daemon.line(".SH SEE ALSO\nrepmgr(1), repmgr.conf(5), /usr/share/doc/repmgr\\-go")

	sample, err := os.ReadFile("docs/repmgr.conf.sample")
	if err != nil {
		return err
	}
	conf := newPage("repmgr.conf", 5, at, v, "configuration of repmgr and repmgrd")
	conf.sample(string(sample))
	conf.line(".SH SEE ALSO\nrepmgr(1), repmgrd(1), /usr/share/doc/repmgr\\-go/repmgr.conf.sample")
	for name, page := range map[string]*page{"repmgr.1": tool, "repmgrd.1": daemon, "repmgr.conf.5": conf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(page.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sample writes the sample of repmgr.conf: a paragraph is a comment, and under it the key with its default.
func (p *page) sample(text string) {
	p.line(".SH DESCRIPTION")
	keys := false
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		var said []string
		key := ""
		for line := range strings.Lines(paragraph) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "# ") || line == "#" {
				said = append(said, strings.TrimSpace(strings.TrimPrefix(line, "#")))
			} else {
				key = strings.TrimPrefix(line, "#")
			}
		}
		if key != "" && !keys {
			p.line(".SH KEYS")
			keys = true
		}
		if key != "" {
			p.line(".TP\n.B %s", escape.Replace(key))
		}
		for _, line := range said {
			if line == "" {
				p.line(".PP")
			} else {
				p.text(line)
			}
		}
	}
}
