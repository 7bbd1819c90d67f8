package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

// logOutput is the daemon's log: standard error or a file, which can be opened
// anew and given another level while it is in use.
type logOutput struct {
	logger *slog.Logger
	level  slog.LevelVar
	stderr io.Writer

	mu   sync.Mutex
	file *os.File // nil: standard error
}

func openLog(cfg repmgr.Config, stderr io.Writer) (*logOutput, error) {
	l := &logOutput{stderr: stderr}
	if err := l.reopen(cfg); err != nil {
		return nil, err
	}
	if cfg.LogFormat == repmgr.LogJSON {
		l.logger = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: plainJSON}))
	} else {
		l.logger = slog.New(cli.NewLogHandler(l, cli.LogOptions{Level: &l.level, Stamp: true}))
	}
	if cfg.LogFile == "" && cfg.LogFacility != repmgr.LogStderr && cfg.LogFacility != "" {
		l.logger.Warn("log_facility is not available: the log goes to standard error", "log_facility", cfg.LogFacility)
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

// reopen takes level and file over. Where the file can not be opened, the log
// goes on as before.
func (l *logOutput) reopen(cfg repmgr.Config) error {
	l.level.Set(cfg.LogLevel.Level())
	var file *os.File
	if cfg.LogFile != "" {
		var err error
		if file, err = openLogFile(cfg.LogFile); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file = file
	return nil
}

func openLogFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	return f, nil
}

// Write writes one record.
func (l *logOutput) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		return l.file.Write(p)
	}
	return l.stderr.Write(p)
}

func (l *logOutput) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
