package cli

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Inherited are the descriptors above 2 that this process was started with, and would
// hand on to what it starts: a pipe of an ssh session, a lock of whoever started it.
// Those that a Go program opens itself end with it. Where there is no /proc it finds none.
func Inherited() (fds []int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// KeepInherited keeps them from what this process starts: a server would hold them for as long as it runs.
func KeepInherited() {
	for _, fd := range Inherited() {
		unix.CloseOnExec(fd)
	}
}

// CloseInherited closes them.
func CloseInherited() {
	for _, fd := range Inherited() {
		_ = unix.Close(fd)
	}
}
