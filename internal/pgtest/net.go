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

// Port reserves a TCP port of 127.0.0.1 that nothing listens on, until the test
// ends. No other test of this machine gets it meanwhile, in any process: the
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
		// Asked by dialling, not by listening: a child that is being forked in this
		// moment would hold the listener, and with it the port, until it executes.
		conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			lock.Close()
			continue
		}
		t.Cleanup(func() { lock.Close() })
		return port
	}
	t.Fatal("pgtest: no free port")
	return 0
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
