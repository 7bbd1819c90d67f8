package chaos

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// machine is where a node or a client lives: a network namespace with one
// address, or, without namespaces, this machine itself. Safe for concurrent use.
type machine struct {
	name  string
	ip    string
	fd    int    // of the network namespace; -1: there is none
	inode uint64 // of the network namespace
}

// newMachine makes a network namespace. It lives as long as a process is in it
// or this one has it open.
func newMachine(name, ip string) (*machine, error) {
	m := &machine{name: name, ip: ip, fd: -1}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			m.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("make network namespace of %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return nil, fmt.Errorf("look at network namespace of %s: %w", name, err)
	}
	m.inode = st.Ino
	return m, nil
}

func (m *machine) close() {
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
	}
}

// within calls fn on a thread inside the machine: what it starts and the sockets
// that it opens, itself and not in another goroutine, are there.
func (m *machine) within(fn func() error) error {
	if m.fd < 0 {
		return fn()
	}
	runtime.LockOSThread()
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(back)
	if err := unix.Setns(m.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace of %s: %w", m.name, err)
	}
	errFn := fn()
	if err := unix.Setns(back, unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("chaos: leave network namespace of %s: %v", m.name, err))
	}
	runtime.UnlockOSThread()
	return errFn
}

// dial is a DialFunc for addresses that are numbers: those are dialed in the
// calling goroutine.
func (m *machine) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = m.within(func() error {
		c, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// postgresUser is who servers and daemons run as: nil, the current user, when
// that is not root.
func postgresUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("find the user that servers run as: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("user %s has ids %s:%s", u.Username, u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// start starts cmd inside the machine. It has no terminal, and its own session.
func (m *machine) start(cmd *exec.Cmd, as *syscall.Credential) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: as}
	behind(cmd)
	return m.within(cmd.Start)
}

// output runs cmd inside the machine to its end.
func (m *machine) output(cmd *exec.Cmd, as *syscall.Credential) error {
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := m.start(cmd, as); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %s: %w: %s", m.name, cmd, err, out.String())
	}
	return nil
}
