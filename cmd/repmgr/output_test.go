package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// try runs a command line in process, as an ordinary user.
func try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errs)
	a.geteuid = func() int { return 101 }
	defer a.close()
	code = a.finish(a.execute(t.Context(), args))
	return out.String(), errs.String(), code
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{
		"repmgr":           "--help",
		"standby":          "standby -?",
		"primary-register": "master register --help",
		"standby-clone":    "standby --help clone",
		"standby-register": "standby register --help",
		"standby-follow":   "standby follow -?",
		"cluster-show":     "cluster show --help",
		"cluster-event":    "cluster event --help",
		"node-status":      "node status --help",
		"node-rejoin":      "node rejoin --help",
		"node-check":       "standby check --help",
		"node-screen":      "node screen --help",
		"witness-register": "witness register --help",
		"service-status":   "daemon status --help",
		"service-pause":    "service pause -?",
		"daemon-start":     "daemon start -?",
		"completion":       "completion --help",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, errs, code := try(t, strings.Fields(args)...)
			require.Equal(t, "", errs)
			require.Equal(t, 0, code)
			golden(t, "help/"+name, out)
			for line := range strings.Lines(out) {
				require.LessOrEqual(t, len(line), 101, "too wide: %s", line)
			}
		})
	}
}

// What a command line can have wrong, all of it at once, with exit code 1.
func TestCommandLineErrors(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, line := range []string{
		"", "frobnicate", "standby", "standby clne", "--limit=3", "standby promote now",
		"--foo standby clone --bar node1 --method=zip --upstream-node-id=0",
		"cluster event --limit=x --csv --json", "cluster event --format=json --csv", "cluster show --json --format=text", "standby promote --format=csv",
		"standby clone", "standby clone node1 -h node2 --upstream-node-id=1 --upstream-conninfo=x", "standby clone node1 -p 1 -p 2 -p 3", "standby clone -h",
		"standby follow -w -W", "standby follow --wait=soon", "standby follow --wa", "standby follow --force=1",
		"-L LOUD cluster show", "cluster show --node", "cluster show", "-f /nowhere/repmgr.conf cluster show",
		"standby switchover --siblings-follow", "standby switchover --cancel --to=2", "witness", "witness register", "service pause --dry-run", "daemon start -w -W", "node check --nagios", "node check --role --csv", "node control",
		"completion", "completion csh", "-q standby clone", "-t standby clone",
	} {
		out, errs, code := try(t, strings.Fields(line)...)
		if !strings.Contains(line, "json") {
			require.Equal(t, "", out, line)
		}
		require.Equal(t, 1, code, line)
		fmt.Fprintf(&all, "$ repmgr %s\n%s\n", line, errs)
	}
	golden(t, "errors", all.String())
}

func TestErrorsAreOneJSONDocument(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"cluster show --json --foo", "--format=json standby clone", "-f /nowhere --json standby promote", "--json standby switchover"} {
		out, _, code := try(t, strings.Fields(line)...)
		var doc failure
		require.NoError(t, json.Unmarshal([]byte(out), &doc), line)
		require.Equal(t, code, doc.ExitCode, line)
		require.NotEmpty(t, doc.Error, line)
	}
}

// An answer that nobody gets is an error, and so the exit code says.
func TestAnswerThatCanNotBeWritten(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { _ = full.Close() }()
	for _, line := range []string{"--help", "standby clone --help", "--version", "--version --json", "--version-number", "completion fish", "--dump-config", "--dump-config --json"} {
		var errs bytes.Buffer
		a := newApp(strings.NewReader(""), full, &errs)
		require.Equal(t, 1, a.finish(a.execute(t.Context(), strings.Fields(line))), line)
		require.Equal(t, "ERROR: write the answer to standard output: write /dev/full: no space left on device\n", errs.String(), line)
	}
}

func TestOutputFormAskedForTwice(t *testing.T) {
	t.Parallel()
	conf := config(t, "node_id=1\nconninfo='host=/nonexistent port=1'\n")
	for _, forms := range []string{"--json --format=json", "--csv --format=csv", "--format=csv"} {
		_, errs, code := try(t, append(strings.Fields(forms), "-f", conf, "cluster", "show")...)
		require.Equal(t, cli.ExitConnect, code, errs)
	}
}

// An option of another command is never fatal: scripts pass more than they need.
func TestIrrelevantOptionsOnlyWarn(t *testing.T) {
	t.Parallel()
	conf := config(t, "node_id=1\nconninfo='host=/nonexistent port=1'\n")
	_, errs, code := try(t, "-f", conf, "standby", "promote", "-W", "-S", "postgres", "--limit=3", "-c")
	require.Equal(t, cli.ExitConnect, code)
	require.Equal(t, 4, strings.Count(errs, "is ignored"), errs)
	_, errs, _ = try(t, "-f", conf, "standby", "promote", "-W", "-t", "--limit=3")
	require.NotContains(t, errs, "WARNING")
	require.NotContains(t, errs, "HINT")
}

func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "repmgr.conf")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestConfigurationFaultsAndWarnings(t *testing.T) {
	t.Parallel()
	_, errs, code := try(t, "-f", config(t, "node_id=0\npriority=-3\nconninfo='host=h'\n"), "cluster", "show")
	require.Equal(t, 1, code)
	require.Equal(t, 2, strings.Count(errs, "ERROR: "), errs)
	_, errs, _ = try(t, "-f", config(t, "node_id=1\nconninfo='host=/nonexistent'\nfrobs=1\n"), "cluster", "show")
	require.Contains(t, errs, "WARNING: ")
	require.Contains(t, errs, "frobs")
	out, _, code := try(t, "-f", config(t, "node_id=1\nconninfo='host=h password=hunter2'\n"), "--dump-config")
	require.Equal(t, 0, code)
	require.Contains(t, out, "node_id|1\n")
	require.NotContains(t, out, "hunter2")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	out, _, code := try(t, "--version")
	require.Equal(t, 0, code)
	require.True(t, strings.HasPrefix(out, "repmgr "+repmgr.Version+" "), out)
	out, _, _ = try(t, "--version-number")
	require.Equal(t, "100\n", out)
}

// Files of a clone would be root's, and PostgreSQL refuses those.
func TestCloneRefusesRoot(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errs)
	a.geteuid = func() int { return 0 }
	code := a.finish(a.execute(t.Context(), []string{"standby", "clone", "node1", "-D", t.TempDir()}))
	require.Equal(t, 1, code)
	require.Contains(t, errs.String(), "runuser -u postgres -- repmgr standby clone")
}

// shellExit is the error of a program that ended with code.
func shellExit(t *testing.T, code int) error {
	err := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("exit %d", code)).Run()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	return err
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		command string
		err     error
		want    int
	}{
		{"cluster show", nil, 0},
		{"cluster show", errors.New("anything"), 1},
		{"cluster show", &repmgr.ConnectError{Target: "x", Err: errors.New("y")}, 6},
		{"cluster event", repmgr.ErrQuery, 7},
		{"cluster show", errIssues, 25},
		{"standby promote", fmt.Errorf("x: %w", repmgr.ErrPrimaryExists), 8},
		{"standby promote", repmgr.ErrNotStandby, 8},
		{"standby promote", repmgr.ErrMetadata, 7},
		{"standby promote", &repmgr.ConnectError{Target: "x", Err: errors.New("y")}, 6},
		{"primary register", repmgr.ErrPrimaryExists, 1},
		{"standby follow", repmgr.ErrTimelineDiverged, 23},
		{"standby follow", repmgr.ErrNotAttached, 23},
		{"standby follow", fmt.Errorf("x: %w", repmgr.ErrRefused), 23},
		{"standby promote", fmt.Errorf("x: %w", repmgr.ErrRefused), 8},
		{"primary unregister", repmgr.ErrRefused, 1},
		{"standby clone", fmt.Errorf("%w: %w", repmgr.ErrCopy, shellExit(t, 77)), 14},
		{"standby follow", shellExit(t, 77), 1},
		{"cluster show", fmt.Errorf("x: %w", &cli.SignalError{Signal: syscall.SIGHUP}), 129},
		{"standby clone", repmgr.ErrDirectory, 14},
		{"standby clone", repmgr.ErrCopy, 14},
		{"standby register", repmgr.ErrTimeout, 20},
		{"node rejoin", repmgr.ErrServerControl, 4},
		{"node rejoin", repmgr.ErrConnect, 6},
		{"node rejoin", repmgr.ErrTimelineDiverged, 24},
		{"node rejoin", repmgr.ErrRejoin, 24},
		{"node rejoin", repmgr.ErrRefused, 24},
		{"node rejoin", repmgr.ErrNotRegistered, 1},
		{"witness register", repmgr.ErrConnect, 1},
		{"witness unregister", repmgr.ErrConnect, 6},
	} {
		require.Equal(t, c.want, exitCode(c.command, c.err), "%s: %v", c.command, c.err)
	}
}

// What a signal ended has the shell's exit code, whatever the work made of it.
func TestSignalIsTheOutcome(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	require.Equal(t, repmgr.ErrCopy, blameSignal(ctx, repmgr.ErrCopy))
	signal := &cli.SignalError{Signal: syscall.SIGINT}
	cancel(signal)
	require.Equal(t, 130, exitCode("standby clone", blameSignal(ctx, repmgr.ErrCopy)))
	require.EqualError(t, blameSignal(ctx, fmt.Errorf("stopped: %w", signal)), "stopped: interrupted (SIGINT)")
	require.NoError(t, blameSignal(ctx, nil))
}

func node(id int, name string, role repmgr.Role, upstream, status string) repmgr.NodeView {
	v := repmgr.NodeView{Record: repmgr.Record{
		ID: repmgr.NodeID(id), Name: name, Role: role, Active: true, Location: "default", Priority: 100,
		Conninfo: fmt.Sprintf("host=%s user=repmgr dbname=repmgr", name),
	}}
	v.Reach, v.Running, v.Upstream, v.Status, v.Timeline = repmgr.ReachOK, role, upstream, status, 1
	return v
}

func TestClusterShow(t *testing.T) {
	t.Parallel()
	down := node(3, "node3", repmgr.RoleStandby, "? node1", "? unreachable")
	down.Reach, down.Running, down.Timeline = repmgr.ReachTimeout, "", 0
	st := repmgr.ClusterStatus{Nodes: []repmgr.NodeView{
		node(1, "node1", repmgr.RolePrimary, "", "* running"),
		node(2, "node2", repmgr.RoleStandby, "node1", "running"),
		down,
		node(4, "wit", repmgr.RoleWitness, "node1", "* running"),
	}}
	for name, cmd := range map[string]clusterShow{
		"text": {}, "compact": {Compact: true}, "detail": {Detail: true}, "csv": {csv: csv{CSV: true}},
	} {
		var out bytes.Buffer
		cmd.print(&out, st)
		golden(t, "cluster-show-"+name, out.String())
	}
	_, errs, code := try(t, "cluster", "show", "--svg", "--csv")
	require.Contains(t, errs, "--svg and --csv exclude each other")
	require.Equal(t, cli.ExitConfig, code)
}

func TestIssuesGoToStandardErrorAndTheExitCode(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	a := newApp(nil, &out, &errs)
	require.Equal(t, errIssues, a.issues("following issues were detected", []string{"node 2 is gone", "node 3 too"}, false))
	require.Empty(t, out.String())
	require.Equal(t, "WARNING: following issues were detected\n  - node 2 is gone\n  - node 3 too\n", errs.String())
	require.Equal(t, cli.ExitIssues, a.finish(errIssues))
	require.NoError(t, a.issues("x", nil, false))
}

func TestClusterEvent(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.Local)
	events := []repmgr.Event{
		{NodeID: 2, Node: "node2", Type: repmgr.EventStandbyPromote, Success: true, At: at, Details: "promoted"},
		{NodeID: 9, Type: repmgr.EventStandbyRegister, At: at, Details: "a node that is not registered any more"},
	}
	for name, cmd := range map[string]clusterEvent{"text": {}, "compact": {Compact: true}, "csv": {csv: csv{CSV: true}}} {
		var out bytes.Buffer
		cmd.print(&out, events)
		golden(t, "cluster-event-"+name, out.String())
	}
	var out bytes.Buffer
	new(clusterEvent).print(&out, nil)
	require.Equal(t, "no matching events found\n", out.String())
}

func TestNodeStatus(t *testing.T) {
	t.Parallel()
	rep := repmgr.NodeReport{
		Record:        repmgr.Record{ID: 2, Name: "node2", Role: repmgr.RoleStandby, UpstreamID: 1, UpstreamName: "node1", Conninfo: "host=node2 dbname=repmgr"},
		DataBytes:     31 << 20,
		InactiveSlots: []string{"repmgr_slot_3"},
	}
	rep.Status.Version, rep.Status.InRecovery, rep.Status.SystemIdentifier = "15.20", true, "7"
	rep.Status.Settings.ArchiveCommand = "(disabled)"
	rep.Status.Settings.ArchiveMode, rep.Status.Settings.MaxWALSenders, rep.Status.Settings.MaxSlots = "off", 10, 10
	primary := rep
	primary.Record, primary.InactiveSlots, primary.ReplicationLag, primary.ArchiveReady = repmgr.Record{ID: 1, Name: "node1", Role: repmgr.RolePrimary}, nil, -1, 3
	primary.Status.InRecovery, primary.Status.Version = false, "15.18 (Debian 15.18-1.pgdg120+1)"
	primary.Status.Settings.ArchiveMode, primary.Status.Settings.ArchiveCommand = "on", "cp %p /archive/%f"
	unknown := primary
	unknown.ArchiveReady = -1
	for name, cmd := range map[string]nodeStatus{"text": {}, "csv": {csv: csv{CSV: true}}} {
		for node, r := range map[string]repmgr.NodeReport{"": rep, "primary-": primary, "unknown-": unknown} {
			var out bytes.Buffer
			cmd.print(&out, r, true)
			golden(t, "node-status-"+node+name, out.String())
		}
	}
}

func TestConnectionOptions(t *testing.T) {
	t.Parallel()
	const ours = "host=own port=5433 user=repmgr dbname=repmgr application_name=node2 sslmode=require"
	for _, c := range []struct {
		name string
		in   connection
		ours string
		want map[string]string
	}{
		{"the host alone keeps port, login and database", connection{Host: "node1"}, ours, map[string]string{"host": "node1", "port": "5433", "user": "repmgr", "dbname": "repmgr", "sslmode": "require"}},
		{"but not the ports of several hosts", connection{Host: "node1"}, "host=a,b port=1,2 user=repmgr", map[string]string{"host": "node1", "user": "repmgr"}},
		{"options win", connection{Host: "node1", Port: []int{1, 2}, Username: "u", Dbname: "d"}, ours, map[string]string{"host": "node1", "port": "1", "user": "u", "dbname": "d", "sslmode": "require"}},
		{"a connection string stands alone", connection{Dbname: "host=x"}, ours, map[string]string{"host": "x"}},
		{"a URI too, and options win over it", connection{Dbname: "postgres://u@x/d", Host: "y"}, "", map[string]string{"host": "y", "user": "u", "dbname": "d"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := c.in.conninfo(c.ours)
			require.NoError(t, err)
			params, err := repmgr.ParseConninfo(got)
			require.NoError(t, err)
			require.Equal(t, c.want, params)
		})
	}
}

func TestProgressBar(t *testing.T) {
	t.Parallel()
	c := repmgr.CopyProgress{Phase: "copying", Done: 512 << 20, Total: 2 << 30, Elapsed: 2 * time.Second}
	require.Equal(t, "[==========                              ]  25%  512 MB of 2.0 GB  256 MB/s  2s  copying", progressBar(c, 120))
	require.LessOrEqual(t, len(progressBar(c, 50)), 50)
	c.Done = 3 << 30
	require.Contains(t, progressBar(c, 120), "100%  3.0 GB of 3.0 GB")
	c.Total = 0
	require.Equal(t, "copying  3.0 GB  1.5 GB/s  2s", progressBar(c, 120))
}

// The scripts are valid in their shells, and the bash one completes.
func TestCompletion(t *testing.T) {
	t.Parallel()
	scripts := map[string]string{}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, errs, code := try(t, "completion", shell)
		require.Equal(t, 0, code, errs)
		scripts[shell] = filepath.Join(t.TempDir(), shell)
		require.NoError(t, os.WriteFile(scripts[shell], []byte(out), 0o600))
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed: its script is not tried", shell)
			continue
		}
		text, err := exec.CommandContext(t.Context(), shell, "-n", scripts[shell]).CombinedOutput()
		require.NoError(t, err, "%s: %s", shell, text)
	}
	complete := func(words ...string) string {
		const try = `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _repmgr; echo "${COMPREPLY[@]}"`
		out, err := exec.CommandContext(t.Context(), "bash", append([]string{"-c", try, "bash", scripts["bash"]}, words...)...).CombinedOutput()
		require.NoError(t, err, string(out))
		return strings.TrimSpace(string(out))
	}
	require.Equal(t, "clone", complete("repmgr", "standby", "cl"))
	require.Equal(t, "standby", complete("repmgr", "-f", "primary", "--verbose", "st"))
	require.Equal(t, "register unregister", complete("repmgr", "master", ""))
	require.Equal(t, "--upstream-node-id= --upstream-conninfo=", complete("repmgr", "standby", "clone", "--upst"))
	require.Equal(t, "bash zsh fish", complete("repmgr", "completion", ""))
	require.Equal(t, "text csv json", complete("repmgr", "cluster", "show", "--format", ""))
	require.Equal(t, "text csv json", complete("repmgr", "cluster", "show", "--format", "="))
	require.Equal(t, "csv", complete("repmgr", "cluster", "show", "--format", "=", "c"))
	require.Equal(t, "rsync", complete("repmgr", "standby", "clone", "--method", "=", "r"))
	require.Equal(t, "clone", complete("repmgr", "--format", "=", "json", "standby", "cl"))
	if _, err := exec.LookPath("fish"); err == nil {
		for line, want := range map[string]string{
			"repmgr standby cl":                "clone\tmake a new standby from a running server\n",
			"repmgr cluster show --format ":    "csv\ttext, csv or json\njson\ttext, csv or json\ntext\ttext, csv or json\n",
			"repmgr standby clone --method=rs": "--method=rsync\tbasebackup (default), rsync or command\n",
		} {
			cmd := exec.CommandContext(t.Context(), "fish", "--no-config", "-c", "source "+scripts["fish"]+`; complete -C "`+line+`"`)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			require.Equal(t, want, string(out))
		}
	}
}
