package pgtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// SSHD is a real sshd on loopback that lets the current OS user in with a key
// made for the test. It stops when its test ends.
type SSHD struct {
	Host    string
	Port    int
	User    string
	KeyFile string
	Options []string // for ssh, before the host: the port, the key, the known host
}

// StartSSHD starts an sshd. It skips the test when there is none.
func StartSSHD(t testing.TB) *SSHD {
	t.Helper()
	// sshd insists on its absolute path.
	path, err := Program("sshd")
	if err != nil {
		t.Skip("pgtest: no sshd: install the package openssh-server (scripts/deps does)")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	dir := t.TempDir()
	s := &SSHD{Host: "127.0.0.1", Port: Port(t), User: me.Username, KeyFile: filepath.Join(dir, "id")}
	for _, key := range []string{s.KeyFile, filepath.Join(dir, "host")} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("pgtest: make key: %v: %s", err, out)
		}
	}
	hostKey, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	knownHosts := filepath.Join(dir, "known_hosts")
	config := strings.Join([]string{
		"ListenAddress 127.0.0.1", "Port " + strconv.Itoa(s.Port), "HostKey " + dir + "/host", "AuthorizedKeysFile " + s.KeyFile + ".pub",
		"PidFile none", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"MaxStartups 100", "MaxSessions 100", "PrintMotd no", "",
	}, "\n")
	for path, text := range map[string]string{knownHosts: fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, hostKey), dir + "/sshd_config": config} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatalf("pgtest: %v", err)
		}
	}
	s.Options = []string{
		"-F", "none", "-p", strconv.Itoa(s.Port), "-i", s.KeyFile, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "UserKnownHostsFile=" + knownHosts, "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR",
	}
	serve(t, "sshd", dir, s.Port, path, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	return s
}

// SSHCommand is the command line for "rsync -e" and its like.
func (s *SSHD) SSHCommand() string { return "ssh " + strings.Join(s.Options, " ") }

// serve runs a program that listens on that port of 127.0.0.1 until the test ends.
func serve(t testing.TB, name, dir string, port int, path string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	ended, err := startTied(cmd, syscall.SIGTERM)
	if err != nil {
		t.Fatalf("pgtest: start %s: %v", name, err)
	}
	read := func() string { b, _ := os.ReadFile(log.Name()); return string(b) }
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, tail(read(), 50))
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		<-ended
	})
	err = poll(patience(), func(ctx context.Context) error {
		select {
		case <-ended:
			return final{fmt.Errorf("it ended: %s", read())}
		default:
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Fatalf("pgtest: start %s: %v", name, err)
	}
}
