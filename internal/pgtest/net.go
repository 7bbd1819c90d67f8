package pgtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// Port reserves a TCP port that nothing listens on, at no address of this machine,
// until the test ends. No other test of this machine gets it meanwhile, in any process: the
// name of an abstract Unix socket is the lock. The range is below the one the
// kernel takes ports from for outgoing connections.
func Port(t testing.TB) int {
	t.Helper()
	const first, count = 20000, 12000
	for i, start := 0, rand.IntN(count); i < count; i++ {
		port := first + (start+i)%count
		lock, err := net.Listen("unix", fmt.Sprintf("@repmgr-pgtest-port-%d", port))
		if err != nil {
			continue
		}
		if !free(port) {
			lock.Close()
			continue
		}
		t.Cleanup(func() { lock.Close() })
		return port
	}
	t.Fatal("pgtest: no free port")
	return 0
}

// free reports whether nothing listens on a port: not on 127.0.0.1, not on ::1 and
// on no other address. It binds and does not listen: so a child that is being
// forked in this moment, and holds the socket until it executes, is in nobody's way.
func free(port int) bool {
	for _, a := range []struct {
		family  int
		address syscall.Sockaddr
	}{{syscall.AF_INET, &syscall.SockaddrInet4{Port: port}}, {syscall.AF_INET6, &syscall.SockaddrInet6{Port: port}}} {
		fd, err := syscall.Socket(a.family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			continue // no such addresses here
		}
		err = errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), syscall.Bind(fd, a.address))
		_ = syscall.Close(fd)
		if errors.Is(err, syscall.EADDRINUSE) {
			return false
		}
	}
	return true
}

// Blackhole returns a loopback address that drops SYNs, as a host does that is
// cut off: a dial hangs until its own timeout. It is a listener whose queue is
// full and stays so.
func Blackhole(t testing.TB) (host string, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("pgtest: make black hole: %v", err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	port = Port(t)
	if err := errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), // a connection of who had the port before may linger
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}),
		syscall.Listen(fd, 0),
	); err != nil {
		t.Fatalf("pgtest: make black hole: %v", err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for range 16 {
		conn, err := net.DialTimeout("tcp4", address, 100*time.Millisecond)
		if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
			return "127.0.0.1", port
		}
		if err != nil {
			t.Fatalf("pgtest: make black hole: %v", err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("pgtest: the kernel's queue for the black hole does not fill")
	return "", 0
}

// Mute returns a loopback address that accepts connections and never answers,
// as a stopped postmaster does: a dial succeeds and the handshake hangs.
func Mute(t testing.TB) (host string, port int) {
	t.Helper()
	port = Port(t)
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("pgtest: make mute listener: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return "127.0.0.1", port
}
