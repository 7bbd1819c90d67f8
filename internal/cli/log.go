package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// levelNames are repmgr's, from the least severe.
var levelNames = []struct {
	level slog.Level
	name  string
}{
	{slog.LevelDebug, "DEBUG"},
	{slog.LevelInfo, "INFO"},
	{slog.LevelInfo + 2, "NOTICE"},
	{slog.LevelWarn, "WARNING"},
	{slog.LevelError, "ERROR"},
	{slog.LevelError + 1, "CRIT"},
	{slog.LevelError + 2, "ALERT"},
	{slog.LevelError + 3, "EMERG"},
}

// LevelName is repmgr's word for a level.
func LevelName(l slog.Level) string {
	name := levelNames[0].name
	for _, n := range levelNames {
		if l >= n.level {
			name = n.name
		}
	}
	return name
}

// Levels are repmgr's words for the levels, for a message.
var Levels = func() string {
	names := make([]string, len(levelNames))
	for i, n := range levelNames {
		names[i] = n.name
	}
	return strings.Join(names, ", ")
}()

// ParseLevel reads repmgr's word for a level, in any case.
func ParseLevel(name string) (slog.Level, bool) {
	for _, n := range levelNames {
		if strings.EqualFold(name, n.name) {
			return n.level, true
		}
	}
	return 0, false
}

// LogOptions say how a log is written.
type LogOptions struct {
	Level slog.Leveler
	Terse bool // leave out DETAIL and HINT
	Stamp bool // the daemon's form, "[2006-01-02 15:04:05] [LEVEL] message", instead of "LEVEL: message"
}

// NewLogHandler writes each record to w in one Write, in repmgr's form. The
// message is a sentence: the attributes stand below it, those named detail and
// hint as lines of their own, the others together in a DETAIL line before them.
// With Stamp a record is one line, and they follow it as key=value.
// It is safe for concurrent use.
func NewLogHandler(w io.Writer, o LogOptions) slog.Handler {
	return &logHandler{w: w, o: o, mu: new(sync.Mutex)}
}

type logHandler struct {
	w      io.Writer
	o      LogOptions
	mu     *sync.Mutex
	attrs  []slog.Attr
	prefix string
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.o.Level.Level() }

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append(c.attrs[:len(c.attrs):len(c.attrs)], prefixed(h.prefix, attrs)...)
	return &c
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	c := *h
	if name != "" {
		c.prefix += name + "."
	}
	return &c
}

func prefixed(prefix string, attrs []slog.Attr) []slog.Attr {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = slog.Attr{Key: prefix + a.Key, Value: a.Value}
	}
	return out
}

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var line, below bytes.Buffer
	var others []string
	if h.o.Stamp {
		fmt.Fprintf(&line, "[%s] [%s] %s", r.Time.Format(time.DateTime), LevelName(r.Level), r.Message)
	} else {
		fmt.Fprintf(&line, "%s: %s", LevelName(r.Level), r.Message)
	}
	add := func(a slog.Attr) bool {
		v := a.Value.Resolve()
		help := a.Key == "detail" || a.Key == "hint"
		switch {
		case a.Key == "" || h.o.Terse && (help || !h.o.Stamp) || help && v.String() == "":
		case help && !h.o.Stamp:
			for text := range strings.Lines(v.String()) {
				fmt.Fprintf(&below, "%s: %s\n", strings.ToUpper(a.Key), strings.TrimRight(text, "\n"))
			}
		default:
			others = append(others, a.Key+"="+quoted(v.String()))
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(func(a slog.Attr) bool { return add(slog.Attr{Key: h.prefix + a.Key, Value: a.Value}) })
	switch {
	case len(others) > 0 && h.o.Stamp:
		line.WriteString(" " + strings.Join(others, " ") + "\n")
	case len(others) > 0:
		line.WriteString("\nDETAIL: " + strings.Join(others, ", ") + "\n")
	default:
		line.WriteByte('\n')
	}
	line.Write(below.Bytes())
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(line.Bytes())
	return err
}

// quoted puts a value in quotes where a reader could not tell its end.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " ,=\"\n\t") {
		return fmt.Sprintf("%q", s)
	}
	return s
}
