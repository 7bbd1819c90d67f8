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

// Value is the value of a placeholder %x in a user's command, and the name of the environment
// variable that carries it.
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

// UsualSlack gives programs that are started before end is called the kernel's default timer
// slack (prctl, PR_SET_TIMERSLACK). repmgrd has a long timer slack, and a PostgreSQL server that
// inherits it would sleep longer than it wants to.
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

// EndWithGroup makes a command end together with all processes that it started. The command has
// no terminal, so that a prompt for a password fails and does not hang.
func EndWithGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// Expand replaces the placeholders %x in a shell command. Outside of quotes an empty value is no
// argument at all, as in repmgr 5; inside of quotes it is an empty string. An unknown %x stays
// as it is, and %% is a percent sign.
func Expand(command string, values map[byte]Value) string {
	var out strings.Builder
	var quote byte // the kind of quotes around the present position, or 0
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

// Quote quotes a word for a shell, if that is necessary.
func Quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// SSH is the command line of ssh. Where an option is given twice, ssh uses the first: so the
// user's options come first. ssh ends when its peer stops answering.
func SSH(options string) string {
	return "ssh " + options + " -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
}

// LastLines returns the last lines of a program's output, which usually say why it stopped.
func LastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// AfterColon returns ": " and s, or "" where s is empty, to append a program's output to a message.
func AfterColon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
