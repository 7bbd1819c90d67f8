// Command repmgrd watches a node of a PostgreSQL replication cluster for as
// long as it runs. The watching is the library's [repmgr.Monitor]; this program
// is what makes it a daemon: command line, pid file, signals, log, systemd.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func main() { os.Exit(start()) }

func start() int {
	calmScheduler()
	ctx, stop := cli.SignalContext(context.Background())
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// run performs one command line and returns the exit code. As a daemon it
// returns when ctx ends, and in the foreground process that started one when
// that has started or failed.
func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) int {
	d := &daemon{out: stdout, err: stderr, geteuid: os.Geteuid, closeInherited: cli.CloseInherited}
	return d.perform(ctx, args)
}

func (d *daemon) perform(ctx context.Context, args []string) int {
	signal.Ignore(syscall.SIGPIPE) // whoever reads our output may go; the server is guarded all the same
	err := d.execute(ctx, args)
	if err == nil {
		return cli.ExitOK
	}
	code := cli.ExitConfig
	var coded *exitError
	if errors.As(err, &coded) {
		code = coded.code
	}
	d.report(err)
	return code
}

// exitError is an error with the exit code that scripts expect of it.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// grammar is the command line of repmgrd.
type grammar struct {
	Help              bool          `short:"?" help:"show this help, then exit"`
	Version           bool          `short:"V" help:"output version information, then exit"`
	Verbose           bool          `short:"v" help:"output verbose activity information"`
	LogLevel          string        `short:"L" placeholder:"LEVEL" help:"DEBUG, INFO, NOTICE, WARNING or ERROR (default: INFO)"`
	ConfigFile        string        `short:"f" placeholder:"PATH" help:"path to the configuration file (also --config_file)"`
	PgBindir          string        `name:"pg_bindir" short:"b" placeholder:"DIR" help:"directory of PostgreSQL's programs"`
	Daemonize         bool          `short:"d" default:"true" placeholder:"BOOL" help:"run in the background (default: true); under systemd and in\ncontainers say --daemonize=false"`
	PidFile           string        `short:"p" xor:"pid" placeholder:"PATH" help:"pid file (default: repmgrd_pid_file; else repmgrd-<node_id>.pid\nin /run/repmgr, $XDG_RUNTIME_DIR or /run/postgresql; else\n/tmp/repmgrd.pid)"`
	NoPidFile         bool          `xor:"pid" help:"write no pid file"`
	ShowPidFile       bool          `short:"s" help:"output the path of the pid file, then exit"`
	MonitoringHistory bool          `short:"m" help:"write monitoring history, as monitoring_history=on does"`
	Automatic         time.Duration `hidden:"" help:"as failover=automatic, for a switchover: until a line on standard input, or nothing is under way after its end, at most so long"`
	Watchdog          bool          `hidden:"" help:"guard for the daemon that writes to our standard input"`
}

const helpEnd = `Signals: HUP reads the configuration again and reopens the log, TERM and INT stop.
PostgreSQL need not run when repmgrd starts, and may come and go.`

// daemon is one run of the program.
type daemon struct {
	grammar

	out, err io.Writer
	geteuid  func() int

	closeInherited func() // nil: the process is not ours alone

	ready *os.File // open: the process that started us waits there to hear that we run
	cfg   repmgr.Config
}

func (d *daemon) execute(ctx context.Context, args []string) error {
	d.ready = inheritReady()
	parser, err := kong.New(&d.grammar, kong.Name("repmgrd"), kong.Description("replication management daemon for PostgreSQL"), kong.NoDefaultHelp())
	if err != nil {
		return err // the grammar is wrong, not the user
	}
	parser.Model.Detail = helpEnd
	line := cli.Arrange(parser.Model, args)
	switch {
	case line.Has("help"):
		var text bytes.Buffer
		cli.WriteHelp(&text, parser.Model, parser.Model.Node)
		_, err := d.out.Write(text.Bytes())
		return err
	case line.Has("version"):
		_, err := fmt.Fprintf(d.out, "repmgrd %s (repmgr for Go, %s)\n", repmgr.Version, runtime.Version())
		return err
	}
	if len(line.Faults) == 0 {
		if _, err := parser.Parse(line.Args); err != nil {
			line.Faults = append(line.Faults, err.Error())
		}
	}
	if _, ok := cli.ParseLevel(d.LogLevel); d.LogLevel != "" && !ok {
		line.Faults = append(line.Faults, fmt.Sprintf("option --log-level: %q is none of %s", d.LogLevel, cli.Levels))
	}
	if len(line.Faults) > 0 {
		return &exitError{cli.ExitConfig, errors.New(strings.Join(line.Faults, "\n")), "See: repmgrd --help"}
	}
	if d.ShowPidFile {
		if d.cfg, err = d.load(); err != nil && d.ConfigFile != "" {
			return err
		}
		_, err := fmt.Fprintln(d.out, d.pidFile())
		return err
	}
	if d.geteuid() == 0 {
		return &exitError{
			cli.ExitConfig, errors.New("repmgrd can not be run as root: the commands of the configuration would run as root"),
			"Run it as the operating system user that runs PostgreSQL: runuser -u postgres -- repmgrd ...",
		}
	}
	if d.cfg, err = d.load(); err != nil {
		return err
	}
	if d.closeInherited != nil { // now that -f, which may name one, is read
		d.closeInherited()
	}
	if d.Watchdog {
		return d.watchdog(ctx)
	}
	if d.Daemonize {
		return d.background(ctx)
	}
	return d.serve(ctx)
}

// load reads the configuration and lays the command line over it.
func (d *daemon) load() (repmgr.Config, error) {
	path, found, err := repmgr.FindConfig(d.ConfigFile)
	if err != nil {
		return repmgr.Config{}, err
	}
	if !found {
		return repmgr.Config{}, &exitError{cli.ExitConfig, errors.New("no configuration file found"), "Name it with -f, or put it at ./repmgr.conf or /etc/repmgr.conf."}
	}
	cfg, err := repmgr.LoadConfig(path)
	if err != nil {
		return cfg, err
	}
	// The daemon changes its directory: what is relative is relative to the file.
	for _, path := range []*string{&cfg.LogFile, &cfg.RepmgrdPidFile, &cfg.HTTPCert, &cfg.HTTPKey, &cfg.HTTPClientCA, &cfg.HTTPTokenFile} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(filepath.Dir(cfg.File), *path)
		}
	}
	if d.PgBindir != "" {
		cfg.PgBindir = d.PgBindir
	}
	if d.MonitoringHistory {
		cfg.MonitoringHistory = true
	}
	if d.Automatic > 0 {
		cfg.HTTPListen = "" // it is there for a switchover only
	}
	if d.Automatic > 0 && cfg.Failover != repmgr.FailoverAutomatic { // without daemons nobody would adjust whom commits wait for
		cfg.Failover, cfg.SynchronousMode = repmgr.FailoverAutomatic, repmgr.SynchronousOff
	}
	switch {
	case d.LogLevel != "":
		cfg.LogLevel = repmgr.LogLevel(strings.ToUpper(d.LogLevel))
	case d.Verbose:
		cfg.LogLevel = repmgr.LogDebug
	}
	return cfg, nil
}

// pidFile is the path of the pid file, or "" for none.
func (d *daemon) pidFile() string {
	path := d.PidFile
	switch {
	case d.NoPidFile:
		return ""
	case path != "":
	default:
		path = d.cfg.PidFile()
	}
	if p, err := filepath.Abs(path); err == nil {
		path = p
	}
	return path
}

// report prints why the program ends, where whoever started it can read it.
func (d *daemon) report(err error) {
	w := d.err
	if d.ready != nil {
		w = d.ready
		defer func() { _ = d.ready.Close() }()
	}
	hint := repmgr.Hint(err)
	var coded *exitError
	if errors.As(err, &coded) && coded.hint != "" {
		hint = coded.hint
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "ERROR: %s\n", strings.TrimRight(line, "\n"))
	}
	if hint != "" {
		fmt.Fprintf(w, "HINT: %s\n", hint)
	}
}
