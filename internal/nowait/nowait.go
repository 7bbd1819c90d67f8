// Package nowait makes non-blocking system calls without telling Go's scheduler of them. A
// normal system call wakes the scheduler's monitoring thread, which then polls at short
// intervals until nothing runs any more; that is a third of the CPU time of an idle daemon.
package nowait

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// File is an open file, socket or pipe in non-blocking mode. Deadlines and Close are those of
// the connection that it was made from.
type File struct{ raw syscall.RawConn }

// Of returns the File for c.
func Of(c syscall.Conn) (File, error) {
	raw, err := c.SyscallConn()
	return File{raw}, err
}

// Read reads what is there, and waits in Go's scheduler where there is nothing.
func (f File) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err = f.do(f.raw.Read, syscall.SYS_READ, b, &n); err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// Write writes as much as there is room for, at least one byte, and waits in Go's scheduler where there is none.
func (f File) Write(b []byte) (n int, err error) {
	err = f.do(f.raw.Write, syscall.SYS_WRITE, b, &n)
	return n, err
}

// WriteNow is [File.Write] without any waiting: where there is no room it writes 0 bytes.
func (f File) WriteNow(b []byte) (n int, err error) {
	var errno syscall.Errno
	err = f.raw.Write(func(fd uintptr) bool {
		n, errno = call(syscall.SYS_WRITE, fd, b)
		return true
	})
	if err == nil && errno != 0 && errno != syscall.EAGAIN {
		err = os.NewSyscallError("write", errno)
	}
	return n, err
}

func (f File) do(when func(func(fd uintptr) bool) error, number uintptr, b []byte, n *int) error {
	var errno syscall.Errno
	err := when(func(fd uintptr) bool {
		*n, errno = call(number, fd, b)
		return errno != syscall.EAGAIN
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// call does a read or a write, and repeats it where a signal interrupted it.
func call(number, fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// conn is a connection that reads and writes by a [File].
type conn struct {
	net.Conn
	file File
	over atomic.Pointer[error] // of the first read that failed
}

// Conn wraps c so that it reads and writes by a [File]. A connection without a file descriptor
// is returned as it is.
func Conn(c net.Conn) net.Conn {
	if s, ok := c.(syscall.Conn); ok {
		if f, err := Of(s); err == nil {
			return &conn{Conn: c, file: f}
		}
	}
	return c
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	if err = c.failed("read", err); err != nil {
		c.over.CompareAndSwap(nil, &err)
	}
	return n, err
}

// Ended reports whether the other side has ended a connection in order, whatever became of it later: the
// first read that failed met its end. It knows that of a [Conn], also under TLS.
func Ended(c net.Conn) bool {
	own, ok := own(c)
	if !ok {
		return false
	}
	err := own.over.Load()
	return err != nil && *err == io.EOF //nolint:errorlint // it is never wrapped
}

// GoesOn forgets the read that failed, after one that only waited for a time limit of ours on a connection that is still used.
func GoesOn(c net.Conn) {
	if own, ok := own(c); ok {
		own.over.Store(nil)
	}
}

func own(c net.Conn) (*conn, bool) {
	if under, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = under.NetConn()
	}
	own, ok := c.(*conn)
	return own, ok
}

func (c *conn) Write(b []byte) (written int, err error) {
	for err == nil && written < len(b) {
		var n int
		n, err = c.file.Write(b[written:])
		written += n
	}
	return written, c.failed("write", err)
}

// failed returns the error in the form that the connection itself would return.
func (c *conn) failed(doing string, err error) error {
	var op *net.OpError
	var errno syscall.Errno
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // it is never wrapped
		return err
	case errors.As(err, &op): // an error of the waiting
		err = op.Err
	case errors.As(err, &errno):
		err = os.NewSyscallError(doing, errno)
	}
	return &net.OpError{Op: doing, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// BootTime is the value of CLOCK_BOOTTIME; 0 where the system has no such clock.
func BootTime() time.Duration {
	const boottime = 7
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, boottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}
