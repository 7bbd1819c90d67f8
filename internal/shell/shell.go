package shell

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Value is the value of a %x in a command of the user's, and the name of
// the environment variable that carries it.
type Value struct{ Env, Text string }

// Run runs a command of the configuration through /bin/sh. Values never
// become part of the program text, so nothing in them can be executed: each
// value turns into an expansion of an environment variable, quoted as its
// surroundings ask for. env is added to its environment. The command ends with ctx.
func Run(ctx context.Context, command string, values map[byte]Value, env ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", Expand(command, values))
	cmd.Env = append(os.Environ(), env...)
	for _, p := range values {
		cmd.Env = append(cmd.Env, p.Env+"="+p.Text)
	}
	cmd.WaitDelay = 2 * time.Second
	EndWithGroup(cmd)
	defer UsualSlack()()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out, err
}

// UsualSlack gives what is started until its result is called the timer slack that the
// kernel gives (prctl, PR_SET_TIMERSLACK), whatever this process has: repmgrd has a long
// one, and a PostgreSQL server's short sleeps are not to grow with it.
func UsualSlack() (end func()) {
	const usual = 50 * time.Microsecond
	runtime.LockOSThread()
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || was <= int(usual) || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(was), 0, 0, 0)
		runtime.UnlockOSThread()
	}
}

// EndWithGroup makes a command end together with all that it started, and keeps
// it from asking a person: without a terminal a prompt is an error, not a hang.
func EndWithGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// Expand replaces %x in a shell command. In the open, an empty value is no
// argument at all, as with repmgr; in quotes it stays an empty string. An
// unknown %x stays as it is, and %% is a percent sign.
func Expand(command string, values map[byte]Value) string {
	var out strings.Builder
	var quote byte // the quote that we are in, or 0
	for i := 0; i < len(command); i++ {
		ch := command[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(command) && command[i+1] != '%':
			out.WriteByte(ch)
			i++
			out.WriteByte(command[i])
		case ch == '%' && i+1 < len(command) && command[i+1] == '%':
			i++
			out.WriteByte('%')
		case ch == '%' && i+1 < len(command) && values[command[i+1]].Env != "":
			i++
			env := values[command[i]].Env
			switch quote {
			case '"':
				out.WriteString("${" + env + "}")
			case '\'':
				out.WriteString(`'"${` + env + `}"'`)
			default:
				out.WriteString("${" + env + `:+"${` + env + `}"}`)
			}
		default:
			if quote == ch {
				quote = 0
			} else if quote == 0 && (ch == '"' || ch == '\'') {
				quote = ch
			}
			out.WriteByte(ch)
		}
	}
	return out.String()
}

// Quote writes a word so that a shell takes it as one, plain where it can.
func Quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// LastLines is the end of a program's output, where it says why it stopped.
func LastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// AfterColon puts a program's words behind ours, where it had any.
func AfterColon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
