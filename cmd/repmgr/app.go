package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

// app is one run of the program.
type app struct {
	grammar

	in      io.Reader
	out     io.Writer // answers: tables, CSV, JSON
	err     io.Writer // messages
	geteuid func() int

	model   *kong.Application
	line    cli.Line
	command string // the command words, as "standby clone"
	json    bool
	log     *slog.Logger
	logFile *os.File
	cfg     repmgr.Config
	askable bool // the command could ask another node, by its connection options

	shutArbiter func() // nil: none was opened
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	a := &app{in: stdin, out: stdout, err: stderr, geteuid: os.Geteuid}
	a.log = slog.New(cli.NewLogHandler(stderr, cli.LogOptions{Level: slog.LevelInfo}))
	return a
}

func (a *app) close() {
	if a.shutArbiter != nil {
		a.shutArbiter()
	}
	if a.logFile != nil {
		_ = a.logFile.Close()
	}
}

// checker is a command with rules that no tag can say. check returns what is wrong.
type checker interface{ check() []string }

// configOptional is a command that may do without a configuration file.
type configOptional interface{ needsConfig() bool }

// execute reads the command line and performs it.
func (a *app) execute(ctx context.Context, args []string) error {
	parser, err := kong.New(&a.grammar, kong.Name("repmgr"), kong.Description("replication manager for PostgreSQL clusters"), kong.NoDefaultHelp())
	if err != nil {
		return err // the grammar is wrong, not the user
	}
	a.model = parser.Model
	a.model.Detail = helpEnd
	a.line = cli.Arrange(parser.Model, args)
	a.json = a.line.Has("json") || slices.Contains(a.line.Args, "--format=json")
	if a.line.Has("terse") {
		a.log = slog.New(cli.NewLogHandler(a.err, cli.LogOptions{Level: slog.LevelInfo, Terse: true}))
	}
	switch {
	case a.line.Has("help"):
		return a.write(func(w io.Writer) { cli.WriteHelp(w, a.model, a.line.Node) })
	case a.line.Has("version"):
		return a.answer(versionDoc(), func(w io.Writer) { fmt.Fprintln(w, "repmgr "+versionText()) })
	case a.line.Has("version-number"):
		return a.write(func(w io.Writer) { fmt.Fprintln(w, versionNumber()) })
	case a.line.Node == a.model.Node && len(a.line.Faults) == 0 && a.line.Has("dump-config"):
		a.line.Node = a.model.Children[len(a.model.Children)-1] // the grammar's default command
	case a.line.Node == a.model.Node && len(a.line.Faults) == 0:
		return a.usage("no command given")
	}
	a.command = strings.Join(commandWords(a.line.Node), " ")
	kctx, err := parser.Parse(a.line.Args)
	if err != nil {
		if len(a.line.Faults) == 0 {
			a.line.Faults = append(a.line.Faults, err.Error())
		}
		return a.usage(a.line.Faults...)
	}
	cmd := a.line.Node.Target.Addr().Interface()
	if err := a.settle(cmd); err != nil {
		return err
	}
	kctx.BindTo(ctx, (*context.Context)(nil))
	kctx.Bind(a)
	return blameSignal(ctx, kctx.Run())
}

func commandWords(node *kong.Node) []string {
	if node == nil || node.Parent == nil {
		return nil
	}
	return append(commandWords(node.Parent), node.Name)
}

// usage is a command line that can not be obeyed, with all of its faults.
func (a *app) usage(faults ...string) error {
	help := strings.Join(append(append([]string{"repmgr"}, commandWords(a.line.Node)...), "--help"), " ")
	return &usageError{faults, "See: " + help}
}

// settle puts options and configuration together: output form, log, settings.
func (a *app) settle(cmd any) error {
	faults := a.line.Faults
	if c, ok := cmd.(checker); ok {
		faults = append(faults, c.check()...)
	}
	faults = append(faults, a.form(cmd)...)
	if _, dumping := cmd.(*dumpConfig); a.DumpConfig && !dumping {
		faults = append(faults, "option --dump-config stands without a command")
	}
	level, ok := cli.ParseLevel(a.LogLevel)
	if a.LogLevel != "" && !ok {
		faults = append(faults, fmt.Sprintf("option --log-level: %q is none of %s", a.LogLevel, cli.Levels))
	}
	if len(faults) > 0 {
		return a.usage(faults...)
	}
	optional := false
	if c, ok := cmd.(configOptional); ok {
		optional = !c.needsConfig()
	}
	if err := a.loadConfig(optional); err != nil {
		return err
	}
	if a.PgBindir != "" {
		a.cfg.PgBindir = a.PgBindir
	}
	if a.LogLevel == "" {
		level = a.cfg.LogLevel.Level()
		if a.Verbose {
			level = slog.LevelDebug
		}
	}
	if a.line.Has("dry-run") {
		level = min(level, slog.LevelInfo) // its findings are at INFO
	}
	if a.Quiet {
		level = slog.LevelError
	}
	if err := a.openLog(level); err != nil {
		return err
	}
	a.cfg.Logger = a.log
	for _, w := range a.cfg.Warnings {
		a.log.Warn(w.String(), "hint", w.Remedy)
	}
	for _, w := range a.line.Warnings {
		if !a.Terse {
			a.log.Warn(w)
		}
	}
	return nil
}

// form settles the form of the output. To ask twice for the same one is fine.
func (a *app) form(cmd any) []string {
	c, ok := cmd.(interface{ asCSV() *bool })
	switch csv := ok && *c.asCSV(); {
	case csv && a.JSON:
		return []string{"options --csv and --json exclude each other"}
	case csv && a.Format != "" && a.Format != "csv":
		return []string{"options --csv and --format=" + a.Format + " exclude each other"}
	case a.JSON && a.Format != "" && a.Format != "json":
		return []string{"options --json and --format=" + a.Format + " exclude each other"}
	case a.Format == "csv" && !ok:
		return []string{fmt.Sprintf("%s has no CSV output", a.command)}
	case a.Format == "csv":
		*c.asCSV() = true
	}
	return nil
}

func (a *app) loadConfig(optional bool) error {
	path, found, err := repmgr.FindConfig(a.ConfigFile)
	switch {
	case err != nil:
		return err
	case found:
		if a.cfg, err = repmgr.LoadConfig(path); err == nil {
			a.shutArbiter, err = cli.OpenArbiter(&a.cfg)
		}
		return err
	case optional:
		a.cfg = repmgr.DefaultConfig()
		return nil
	default:
		return &usageError{
			[]string{fmt.Sprintf("%s needs a configuration file, and none was found", a.command)},
			"Name it with -f, or put it at ./repmgr.conf or /etc/repmgr.conf. Three lines will do: cluster, node and conninfo.",
		}
	}
}

// openLog points the messages to standard error, or with --log-to-file to log_file.
func (a *app) openLog(level slog.Level) error {
	o := cli.LogOptions{Level: level, Terse: a.Terse}
	w := a.err
	if a.LogToFile && a.cfg.LogFile != "" {
		f, err := os.OpenFile(a.cfg.LogFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("open log_file: %w", err)
		}
		a.logFile, w, o.Stamp = f, f, true
	}
	a.log = slog.New(cli.NewLogHandler(w, o))
	if a.LogToFile && a.cfg.LogFile == "" {
		a.log.Warn("log_file is not set: messages go to standard error")
	}
	return nil
}

// cluster opens the library on the configuration.
func (a *app) cluster() (*repmgr.Cluster, error) { return repmgr.New(a.cfg) }

// use makes the server that the connection options name the one to ask. It need
// not be the node of the configuration.
func (a *app) use(c connection) error {
	if !c.given() {
		return nil
	}
	conninfo, err := c.conninfo(a.cfg.Conninfo)
	if err != nil {
		return &exitError{cli.ExitConfig, err}
	}
	a.cfg.Conninfo, a.cfg.NodeID, a.cfg.NodeName = conninfo, 0, ""
	return nil
}

// answer prints doc as JSON, or what text prints.
func (a *app) answer(doc any, text func(io.Writer)) error {
	if a.json {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(doc); err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		return a.write(func(w io.Writer) { _, _ = w.Write(b.Bytes()) })
	}
	if text == nil {
		return nil
	}
	return a.write(text)
}

// write prints an answer in one piece: whoever reads it gets all of it, or
// hears that it is not there.
func (a *app) write(text func(io.Writer)) error {
	var b bytes.Buffer
	text(&b)
	if _, err := a.out.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write the answer to standard output: %w", err)
	}
	return nil
}

func (a *app) notice(msg string, attrs ...any) {
	a.log.Log(context.Background(), repmgr.LevelNotice, msg, attrs...)
}

// failure is the JSON document of a command that did not do its work.
type failure struct {
	Error    string `json:"error"`
	Hint     string `json:"hint,omitempty"`
	ExitCode int    `json:"exit_code"`
}

// finish prints an error and returns the exit code.
func (a *app) finish(err error) int {
	code := exitCode(a.command, err)
	var quiet *exitError
	if err == nil || errors.As(err, &quiet) && quiet.err == nil {
		return code
	}
	hint := repmgr.Hint(err)
	if a.askable && quiet == nil && errors.Is(err, repmgr.ErrConnect) {
		hint = strings.TrimSpace(hint + " To ask another node, add its address: -h HOST -p PORT")
	}
	var usage *usageError
	if errors.As(err, &usage) {
		hint = usage.hint
	}
	var cfg *repmgr.ConfigError
	if errors.As(err, &cfg) && hint == "" {
		for _, f := range cfg.Faults {
			hint = strings.TrimPrefix(hint+"\n"+f.Remedy, "\n")
		}
		hint = strings.TrimSpace(hint)
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		if i == len(lines)-1 {
			a.log.Error(line, "hint", hint)
		} else {
			a.log.Error(line)
		}
	}
	if a.json {
		if e := a.answer(failure{err.Error(), hint, code}, nil); e != nil && e.Error() != err.Error() {
			a.log.Error(e.Error())
		}
	}
	return code
}

func versionText() string {
	return fmt.Sprintf("%s (repmgr for Go, %s)", repmgr.Version, runtime.Version())
}

// versionNumber is major, minor and patch with two digits each, as 50500 for 5.5.0.
func versionNumber() int {
	var major, minor, patch int
	_, _ = fmt.Sscanf(repmgr.Version, "%d.%d.%d", &major, &minor, &patch)
	return major*10000 + minor*100 + patch
}

func versionDoc() any {
	return struct {
		Version string `json:"version"`
		Number  int    `json:"version_number"`
	}{repmgr.Version, versionNumber()}
}

const helpEnd = `Options may stand anywhere on the line, and be shortened. Long options take "_" for "-".
Explanation and options of a command: repmgr standby clone --help
`
