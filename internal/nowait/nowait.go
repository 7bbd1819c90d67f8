// Package nowait makes system calls that never wait, and therefore does not tell Go's
// scheduler of them: that would wake its watching thread each time, which then naps in
// short turns until nothing runs any more, and costs an idle daemon a third of all.
package nowait

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// File is an open file, socket or pipe in non-blocking mode. Its deadlines, and its end,
// are those of what it was made of.
type File struct{ raw syscall.RawConn }

// Of is what c reads and writes.
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

// WriteNow is Write that does not wait at all: where there is no room it writes 0 bytes.
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

// call is a read or a write, once more where a signal came between.
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

// conn is a connection that reads and writes in this way.
type conn struct {
	net.Conn
	file File
}

// Conn is c itself where it has no system calls of its own.
func Conn(c net.Conn) net.Conn {
	if s, ok := c.(syscall.Conn); ok {
		if f, err := Of(s); err == nil {
			return &conn{c, f}
		}
	}
	return c
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	return n, c.failed("read", err)
}

func (c *conn) Write(b []byte) (written int, err error) {
	for err == nil && written < len(b) {
		var n int
		n, err = c.file.Write(b[written:])
		written += n
	}
	return written, c.failed("write", err)
}

// failed is the error as the connection itself would have it.
func (c *conn) failed(doing string, err error) error {
	var op *net.OpError
	var errno syscall.Errno
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // it is never wrapped
		return err
	case errors.As(err, &op): // of waiting
		err = op.Err
	case errors.As(err, &errno):
		err = os.NewSyscallError(doing, errno)
	}
	return &net.OpError{Op: doing, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// BootTime is CLOCK_BOOTTIME. 0: there is none.
func BootTime() time.Duration {
	const boottime = 7
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, boottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}
