// Package remote runs repmgrd on other machines over ssh, for the time of one command: for a
// cluster without daemons, as those of repmgr 5 often are.
//
// A daemon ends when it is told to, and by itself where the connection is lost, when it has done
// what it has begun.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/registry"
)

// Login is how to reach the other machines, and what runs there.
type Login struct {
	SSHOptions string          // options for ssh
	User       string          // the OS user there; empty: as ssh decides
	Program    string          // repmgrd there: a path, or a name in PATH
	Self       registry.NodeID // this node, which is reached without ssh; 0: none
}

const (
	checkTimeout = 20 * time.Second
	stopTimeout  = 30 * time.Second
	sshLost      = 255 // the exit code of ssh for its own errors
)

// tryScript says whether the program can be started. The program of repmgr 5 does not know --automatic.
const tryScript = `[ "$(id -u)" != 0 ] || { echo "the OS user there is root"; exit 1; }
[ -r "$1" ] || { echo "$1 can not be read"; exit 1; }
"$0" --automatic=1s --version`

// command is a command on the machine of the node. A word is passed on as it is.
func (l Login) command(ctx context.Context, node registry.Record, words ...string) (*exec.Cmd, error) {
	if node.ID == l.Self && l.Self != 0 {
		return exec.CommandContext(ctx, words[0], words[1:]...), nil
	}
	params, err := conninfo.Parse(node.Conninfo)
	host := params["host"]
	if host == "" {
		host = params["hostaddr"]
	}
	if err != nil || host == "" || strings.ContainsAny(host, "/,") {
		return nil, failure.WithHint(failure.Of(failure.ErrRefused, "the conninfo of %s names no host to log in to by ssh", node), "Start repmgrd there yourself, with failover=automatic.")
	}
	if l.User != "" {
		host = l.User + "@" + host
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = shell.Quote(w)
	}
	return exec.CommandContext(ctx, "/bin/sh", "-c", "exec "+shell.SSH(l.SSHOptions)+` "$@"`, "ssh", "--", host, strings.Join(quoted, " ")), nil
}

// Check tries whether repmgrd could be started on the machine of the node. Nothing is changed.
func (l Login) Check(ctx context.Context, node registry.Record) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %s", checkTimeout))
	defer cancel()
	if words := strings.Fields(l.SSHOptions); slices.Contains(words, "-n") || slices.Contains(words, "-f") {
		return failure.WithHint(failure.Of(failure.ErrConfig, "ssh_options %q: with -n or -f the daemon that is started could not be told to stop", l.SSHOptions), "Take them out of ssh_options.")
	}
	if node.ConfigFile == "" {
		return failure.WithHint(failure.Of(failure.ErrRefused, "the row of %s names no configuration file", node), "Register it anew on its machine, with --force.")
	}
	cmd, err := l.command(ctx, node, "sh", "-c", tryScript, l.Program, node.ConfigFile)
	if err != nil {
		return err
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && !bytes.Contains(out, []byte("repmgrd")):
		err = errors.New("that is not repmgrd")
	}
	if err != nil {
		return failure.WithHint(failure.Of(failure.ErrRefused, "repmgrd can not be started on the machine of %s: %w%s", node, err, shell.AfterColon(shell.LastLines(out, 2))),
			"This must work there, without a password (-R, ssh_options, repmgr_bindir): %s --version, and %s must be readable. Or start repmgrd there yourself, with failover=automatic.", l.Program, node.ConfigFile)
	}
	return nil
}

// Daemon is a repmgrd that was started.
type Daemon struct {
	Node  registry.Record
	life  time.Duration
	in    io.WriteCloser
	out   output
	ended chan struct{}
	err   error // valid when ended is closed
}

// output keeps what a daemon has written. It is safe for concurrent use.
type output struct {
	mu   sync.Mutex
	text []byte
}

const keptOutput = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text = append(o.text, p...); len(o.text) > keptOutput {
		o.text = bytes.Clone(o.text[len(o.text)-keptOutput/2:])
	}
	return len(p), nil
}

func (o *output) last(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return shell.LastLines(o.text, n)
}

// Start starts a daemon with failover=automatic on the machine of the node. Where this process or the connection is lost, it
// ends by itself, as soon as what was begun is done, and after life in any case. The caller must call Stop.
func (l Login) Start(node registry.Record, life time.Duration) (*Daemon, error) {
	cmd, err := l.command(context.Background(), node, l.Program, "-f", node.ConfigFile, "--daemonize=false", fmt.Sprintf("--automatic=%.0fs", life.Seconds()))
	if err != nil {
		return nil, err
	}
	d := &Daemon{Node: node, life: life, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &d.out, &d.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for us: the daemons are told to stop
	if d.in, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, failure.Of(failure.ErrRefused, "start repmgrd on the machine of %s: %w", node, err)
	}
	go func() { // Stop waits for it
		d.err = cmd.Wait()
		close(d.ended)
	}()
	return d, nil
}

// Failed is the error of a daemon that has ended by itself; nil: it runs.
func (d *Daemon) Failed() error {
	select {
	case <-d.ended:
		return failure.Of(failure.ErrRefused, "repmgrd on the machine of %s has ended (%v)%s", d.Node, d.err, shell.AfterColon(d.out.last(3)))
	default:
		return nil
	}
}

// Stop ends the daemon, and waits for that. An error says that it may still run.
func (d *Daemon) Stop() error {
	_, _ = io.WriteString(d.in, "stop\n")
	select {
	case <-d.ended:
		if exit := (*exec.ExitError)(nil); errors.As(d.err, &exit) && exit.ExitCode() == sshLost {
			return failure.Of(failure.ErrTimeout, "the connection to the machine of %s was lost; its repmgrd, which acts as with failover=automatic, ends by itself when nothing is under way, in some seconds, at the latest after %s", d.Node, d.life)
		}
		return nil
	case <-time.After(stopTimeout):
		_ = d.in.Close()
		return failure.Of(failure.ErrTimeout, "repmgrd on the machine of %s does not end within %s; it ends by itself within %s", d.Node, stopTimeout, d.life)
	}
}
