package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

const (
	logQueue   = 1024            // records that wait until they can be written
	logGoodbye = 2 * time.Second // until what waits at the end is left out
	logStamp   = len("[2006-01-02 15:04:05] ")
)

// logOutput is the daemon's log: standard error, a file, or syslog. It can be opened anew and
// given another level while it is in use.
//
// A goroutine of its own writes it, so that a stalled disk, a reader that is stopped, or a syslogd
// that hangs holds up neither an election nor a fence. What does not fit into the queue meanwhile
// is left out, and the log says how many records that were.
type logOutput struct {
	logger *slog.Logger
	level  slog.LevelVar
	stderr io.Writer
	stamp  int // bytes of the date at the start of a record, which syslog writes itself

	mu   sync.Mutex // of one record on its way into the queue
	next slog.Level // of that record

	queue   chan logRecord
	lost    atomic.Int64
	to      atomic.Pointer[destination]
	used    *destination // by work, which owns it
	end     chan struct{}
	written chan struct{} // closed when nothing is written any more
}

type logRecord struct {
	level slog.Level
	text  []byte
}

// destination is where the log goes: what is not nil, else standard error.
type destination struct {
	file   *os.File
	syslog *syslog.Writer
}

func openLog(cfg repmgr.Config, stderr io.Writer) (*logOutput, error) {
	l := &logOutput{stderr: stderr, queue: make(chan logRecord, logQueue), end: make(chan struct{}), written: make(chan struct{})}
	l.used = &destination{}
	l.to.Store(l.used)
	if cfg.LogFormat == repmgr.LogJSON {
		l.logger = slog.New(logHandler{slog.NewJSONHandler(l, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: plainJSON}), l})
	} else {
		l.logger, l.stamp = slog.New(logHandler{cli.NewLogHandler(l, cli.LogOptions{Level: &l.level, Stamp: true}), l}), logStamp
	}
	err := l.reopen(cfg)
	if err != nil && cfg.LogFile != "" {
		return nil, err
	}
	go l.work()
	if err != nil {
		l.logger.Warn("the log goes to standard error", "err", err, "hint", "Is a syslog daemon running, with a socket at /dev/log? Or set log_file.")
	}
	return l, nil
}

// plainJSON writes repmgr's names of levels, and errors as their text.
func plainJSON(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case slog.Level:
		if a.Key == slog.LevelKey {
			return slog.String(a.Key, cli.LevelName(v))
		}
	case error:
		return slog.String(a.Key, v.Error())
	}
	return a
}

// reopen takes over the level and the place. Where that can not be opened, the log goes on as before.
func (l *logOutput) reopen(cfg repmgr.Config) (err error) {
	l.level.Set(cfg.LogLevel.Level())
	to := new(destination)
	if cfg.LogFile != "" {
		to.file, err = openLogFile(cfg.LogFile)
	} else if facility, ok := facilities[cfg.LogFacility]; ok {
		if to.syslog, err = syslog.New(facility, "repmgrd"); err != nil {
			err = fmt.Errorf("log_facility %s: %w", cfg.LogFacility, err)
		}
	}
	if err != nil {
		return err
	}
	l.to.Store(to)
	select {
	case l.queue <- logRecord{}: // so that the old place is closed also where there is nothing to write
	default:
	}
	return nil
}

// facilities are those of log_facility that are not standard error.
var facilities = map[repmgr.LogFacility]syslog.Priority{
	"USER":   syslog.LOG_USER,
	"LOCAL0": syslog.LOG_LOCAL0, "LOCAL1": syslog.LOG_LOCAL1, "LOCAL2": syslog.LOG_LOCAL2, "LOCAL3": syslog.LOG_LOCAL3,
	"LOCAL4": syslog.LOG_LOCAL4, "LOCAL5": syslog.LOG_LOCAL5, "LOCAL6": syslog.LOG_LOCAL6, "LOCAL7": syslog.LOG_LOCAL7,
}

func openLogFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	return f, nil
}

// logHandler tells its log the level of the record that it hands on.
type logHandler struct {
	slog.Handler
	l *logOutput
}

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	h.l.next = r.Level
	return h.Handler.Handle(ctx, r)
}

func (h logHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(a), h.l}
}

func (h logHandler) WithGroup(name string) slog.Handler {
	return logHandler{h.Handler.WithGroup(name), h.l}
}

// Write takes one record from the handler, and waits for nothing.
func (l *logOutput) Write(p []byte) (int, error) {
	select {
	case l.queue <- logRecord{l.next, bytes.Clone(p)}:
	default:
		l.lost.Add(1)
	}
	return len(p), nil
}

// work writes the records until close.
func (l *logOutput) work() {
	defer close(l.written)
	defer func() { l.used.close() }()
	for {
		select {
		case r := <-l.queue:
			l.write(r)
			continue
		default:
		}
		if n := l.lost.Swap(0); n > 0 {
			l.logger.Warn("the log could not be written in time, and records are missing before this one", "records", n)
			continue
		}
		select {
		case r := <-l.queue:
			l.write(r)
		case <-l.end:
			if len(l.queue) == 0 {
				return
			}
		}
	}
}

func (l *logOutput) write(r logRecord) {
	to := l.to.Load()
	if to != l.used { // closing one waits for what is written there
		l.used.close()
		l.used = to
	}
	err := errors.ErrUnsupported
	switch {
	case r.text == nil:
		return
	case to.file != nil:
		_, err = to.file.Write(r.text)
	case to.syslog != nil:
		err = to.send(r.level, string(bytes.TrimRight(r.text[min(l.stamp, len(r.text)):], "\n")))
	}
	if err != nil { // the disk is full, or syslogd is gone
		_, _ = l.stderr.Write(r.text)
	}
}

func (d *destination) send(level slog.Level, text string) error {
	switch {
	case level > slog.LevelError+2:
		return d.syslog.Emerg(text)
	case level > slog.LevelError+1:
		return d.syslog.Alert(text)
	case level > slog.LevelError:
		return d.syslog.Crit(text)
	case level == slog.LevelError:
		return d.syslog.Err(text)
	case level >= slog.LevelWarn:
		return d.syslog.Warning(text)
	case level >= repmgr.LevelNotice:
		return d.syslog.Notice(text)
	case level >= slog.LevelInfo:
		return d.syslog.Info(text)
	}
	return d.syslog.Debug(text)
}

func (d *destination) close() {
	if d.file != nil {
		_ = d.file.Close()
	}
	if d.syslog != nil {
		_ = d.syslog.Close()
	}
}

// close writes what waits, for a short time, and closes the file.
func (l *logOutput) close() {
	close(l.end)
	select {
	case <-l.written:
	case <-time.After(logGoodbye): // the process ends without waiting for the disk
	}
}
