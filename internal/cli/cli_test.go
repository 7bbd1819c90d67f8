package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

type grammar struct {
	Verbose bool   `short:"v"`
	Name    string `name:"pg_name" short:"n"`

	Copy struct {
		From  string `arg:"" optional:""`
		Force bool   `short:"F"`
		Wait  OptionalInt
		Only  bool   `aliases:"solely"`
		Count int    `min:"1" max:"9" short:"c"`
		Kind  string `oneof:"a,b" xor:"x"`
		Other bool   `xor:"x"`
		Old   bool   `noeffect:"nobody needs it"`
		Deep  bool   `default:"true" short:"d"`
	} `cmd:"" aliases:"cp"`
	Show struct {
		Width int
		Kind  bool
	} `cmd:""`
}

func arrange(t *testing.T, line string) Line {
	t.Helper()
	k, err := kong.New(&grammar{}, kong.NoDefaultHelp())
	require.NoError(t, err)
	return Arrange(k.Model, strings.Fields(line))
}

func TestArrange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, line, args string
		faults, warnings string
	}{
		{name: "nothing", line: "", args: "--"},
		{name: "options move behind the words", line: "-v -n x copy -F here", args: "copy --verbose --pg_name=x --force -- here"},
		{name: "aliases and case", line: "CP --solely", args: "copy --only --"},
		{name: "dashes and underscores are one", line: "copy --pg-name=x --pg_name=y", args: "copy --pg_name=x --pg_name=y --"},
		{name: "a beginning is enough", line: "copy --fo --verb", args: "copy --force --verbose --"},
		{name: "an optional value stands after =", line: "copy --wait 5 --wait=6", args: "copy --wait --wait=6 -- 5"},
		{name: "bundles", line: "copy -vFc3", args: "copy --verbose --force --count=3 --"},
		{name: "a switch with a default may have its value behind it", line: "copy -dfalse -vd --deep=no -d false", args: "copy --deep=false --verbose --deep --deep=no --deep -- false"},
		{name: "values may begin with a dash", line: "copy -n -x --pg_name=-y", args: "copy --pg_name=-x --pg_name=-y --"},
		{name: "words behind --", line: "copy -- -F", args: "copy -- -F"},
		{name: "options of others", line: "copy --width=3", args: "copy --", warnings: `option --width is not for "copy" and is ignored`},
		{name: "an option of one name is a switch elsewhere", line: "-v show --kind -v", args: "show --verbose --kind --verbose --"},
		{name: "options without effect", line: "copy --old", args: "copy --", warnings: "option --old has no effect: nobody needs it"},
		{
			name: "all faults at once", line: "copy --nope -z --count=0 --count=x --kind=c --force=1 --pg_name", args: "copy --",
			faults: "unknown option --nope|unknown option -z|option --force takes no value|option --pg_name needs a value|option --count: 0 is out of range, minimum is 1|option --count: \"x\" is not a whole number|option --kind: \"c\" is none of a, b",
		},
		{name: "options that exclude each other", line: "copy --kind=a --other", args: "copy --kind=a --other --", faults: "options --kind and --other exclude each other"},
		{name: "ambiguous", line: "copy --o", args: "copy --", faults: "option --o is ambiguous: --old, --only, --other"},
		{name: "unknown word", line: "fly", args: "-- fly", faults: `unknown command "fly": copy, show`},
		{name: "too many words", line: "copy a b", args: "copy -- a b", faults: `too many arguments, beginning with "b"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := arrange(t, c.line)
			require.Equal(t, c.args, strings.Join(got.Args, " "))
			require.Equal(t, c.faults, strings.Join(got.Faults, "|"))
			require.Equal(t, c.warnings, strings.Join(got.Warnings, "|"))
		})
	}
}

func TestLogHandler(t *testing.T) {
	t.Parallel()
	say := func(o LogOptions) string {
		var b bytes.Buffer
		log := slog.New(NewLogHandler(&b, o)).With("node", 2)
		log.Debug("not shown")
		log.Log(context.Background(), slog.LevelInfo+2, "cloned", "dir", "/a b", "detail", "all of it", "hint", "start it")
		log.WithGroup("g").Error("gone", "err", errors.New("x"), "detail", "")
		return b.String()
	}
	require.Equal(t, "NOTICE: cloned\nDETAIL: node=2, dir=\"/a b\"\nDETAIL: all of it\nHINT: start it\nERROR: gone\nDETAIL: node=2, g.err=x, g.detail=\"\"\n", say(LogOptions{Level: slog.LevelInfo}))
	require.Equal(t, "NOTICE: cloned\nERROR: gone\n", say(LogOptions{Level: slog.LevelInfo, Terse: true}))
	require.Regexp(t, `^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[NOTICE\] cloned node=2 dir="/a b" detail="all of it" hint="start it"\n`, say(LogOptions{Level: slog.LevelInfo, Stamp: true}))
	require.NotContains(t, say(LogOptions{Level: slog.LevelError}), "NOTICE")
}

func TestLevels(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRIT", "ALERT", "EMERG"} {
		level, ok := ParseLevel(strings.ToLower(name))
		require.True(t, ok)
		require.Equal(t, name, LevelName(level))
	}
	_, ok := ParseLevel("loud")
	require.False(t, ok)
	require.Equal(t, "DEBUG", LevelName(slog.LevelDebug-4))
}

// asStubborn makes this test binary a program that does not heed the first signal.
const asStubborn = "CLI_TEST_AS_STUBBORN"

func TestMain(m *testing.M) {
	if os.Getenv(asStubborn) != "" {
		ctx, _ := SignalContext(context.Background(), syscall.SIGHUP)
		fmt.Fprintln(os.Stdout, "running")
		<-ctx.Done()
		fmt.Fprintln(os.Stdout, "asked to stop")
		<-time.After(time.Minute)
	}
	os.Exit(m.Run())
}

// Under nohup a program outlives its terminal; SIGTERM still ends it.
func TestIgnoredHangUpStaysIgnored(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "nohup", os.Args[0])
	cmd.Env = append(os.Environ(), asStubborn+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.True(t, lines.Scan(), "SIGTERM is the first signal that it hears")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.EqualError(t, cmd.Wait(), "signal: terminated")
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asStubborn+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for _, want := range []string{"running", "asked to stop"} {
		require.True(t, lines.Scan())
		require.Equal(t, want, lines.Text())
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	}
	require.EqualError(t, cmd.Wait(), "signal: interrupt")
}

// Not parallel: the signal goes to the whole process.
func TestSignalContext(t *testing.T) {
	for sent, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		ctx, stop := SignalContext(t.Context(), syscall.SIGHUP)
		require.NoError(t, syscall.Kill(os.Getpid(), sent))
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("%s did not end the context", sent)
		}
		var signal *SignalError
		require.ErrorAs(t, context.Cause(ctx), &signal)
		require.Equal(t, code, signal.ExitCode())
		stop()
	}
}

// What this process was started with goes on to a child, until it is kept.
func TestKeepInherited(t *testing.T) {
	fd, err := unix.Dup(1) // not close-on-exec
	require.NoError(t, err)
	defer func() { _ = unix.Close(fd) }()
	require.Contains(t, Inherited(), fd)
	child := func() string {
		out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", fmt.Sprintf("test -e /proc/self/fd/%d && echo there", fd)).Output()
		if len(out) > 0 {
			require.NoError(t, err)
		}
		return string(out)
	}
	require.Equal(t, "there\n", child())
	KeepInherited()
	require.Empty(t, child())
	require.Empty(t, Inherited())
}
