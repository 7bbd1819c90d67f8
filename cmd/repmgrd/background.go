package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/cli"
)

const (
	// startTimeout is how long a daemon may take to say that it runs. It opens a
	// log and a pid file, and no connection, before it does.
	startTimeout = 30 * time.Second
	// readyVariable holds the number of the descriptor on which it says so.
	readyVariable = "REPMGRD_READY_FD"
	readyText     = "ready\n"
)

// background starts this program again as the leader of a session of its own
// and waits until that runs or has failed. A Go program has threads from the
// beginning and can not fork.
func (d *daemon) background(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return &exitError{code: cli.ExitSystem, err: fmt.Errorf("find this program: %w", err)}
	}
	output, err := d.backgroundOutput()
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return &exitError{code: cli.ExitSystem, err: fmt.Errorf("make a pipe: %w", err)}
	}
	defer func() { _ = r.Close() }()

	cmd := exec.Command(self, d.backgroundArgs()...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return &exitError{code: cli.ExitSystem, err: fmt.Errorf("start in the background: %w", err)}
	}
	if err := r.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	text, err := io.ReadAll(r)
	switch {
	case err != nil:
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return &exitError{code: cli.ExitSystem, err: fmt.Errorf("wait for the daemon to start, at most %s: %w", startTimeout, err)}
	case string(text) == readyText:
		fmt.Fprintln(d.out, d.started(cmd.Process.Pid))
		return cmd.Process.Release()
	}
	_, _ = d.err.Write(text) // the daemon's own words
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{code: exit.ExitCode(), err: errors.New("repmgrd did not start")}
	}
	return &exitError{code: cli.ExitSystem, err: errors.New("repmgrd ended without a word")}
}

// started says that the daemon runs, and where to look for it.
func (d *daemon) started(pid int) string {
	pidFile, log := "no pid file", "no log"
	if path := d.pidFile(); path != "" {
		pidFile = "pid file " + path
	}
	if _, ok := facilities[d.cfg.LogFacility]; ok {
		log = "log to syslog, facility " + string(d.cfg.LogFacility)
	}
	if d.cfg.LogFile != "" {
		log = "log " + d.cfg.LogFile
	}
	return fmt.Sprintf("repmgrd runs in the background with PID %d; %s; %s", pid, pidFile, log)
}

// backgroundArgs say the same as ours did, from the directory /.
func (d *daemon) backgroundArgs() []string {
	args := []string{"--daemonize=false", "--config-file=" + d.cfg.File}
	if d.NoPidFile {
		args = append(args, "--no-pid-file")
	} else {
		args = append(args, "--pid-file="+d.pidFile())
	}
	for option, value := range map[string]string{"--pg_bindir": d.PgBindir, "--log-level": d.LogLevel} {
		if value != "" {
			args = append(args, option+"="+value)
		}
	}
	if d.Verbose {
		args = append(args, "--verbose")
	}
	if d.MonitoringHistory {
		args = append(args, "--monitoring-history")
	}
	if d.Automatic > 0 {
		args = append(args, "--automatic="+d.Automatic.String())
	}
	return args
}

// backgroundOutput is where a daemon's standard error goes: nobody reads it, but
// in the log file it shows how a crash came about.
func (d *daemon) backgroundOutput() (*os.File, error) {
	path := d.cfg.LogFile
	if _, syslog := facilities[d.cfg.LogFacility]; path == "" && !syslog {
		fmt.Fprintln(d.err, "WARNING: log_file is not set: nobody will see the log of the daemon")
		fmt.Fprintln(d.err, "HINT: Set log_file in "+d.cfg.File+", or run with --daemonize=false.")
	}
	if path == "" {
		path = os.DevNull
	}
	return openLogFile(path)
}

// inheritReady is the descriptor on which a process in the foreground waits for
// us; nil where there is none.
func inheritReady() *os.File {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil
	}
	_ = os.Unsetenv(readyVariable) // our own children have nothing to say there
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready")
}

// tellReady says that the daemon runs.
func (d *daemon) tellReady() {
	if d.ready == nil {
		return
	}
	_, _ = io.WriteString(d.ready, readyText)
	_ = d.ready.Close()
	d.ready = nil
}
