package main

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// napSlack is how late the kernel may wake a thread of this program.
const napSlack = time.Millisecond

// main runs on the first thread of the process, until calmScheduler has put the program in its own place: a signal that
// whoever started it has asked the kernel for at its own death (PR_SET_PDEATHSIG) belongs to that thread, and is gone when
// another one does that.
func init() { runtime.LockOSThread() }

// calmScheduler lets Go's scheduler wake the processor less often: it takes half of
// all that an idle daemon takes. A daemon waits nearly all the time, so that a second
// thread which runs Go code would only be woken for nothing. And the thread that looks
// after the scheduler naps for 20 µs at a time while anything runs: how late it may be
// woken (PR_SET_TIMERSLACK) it has from the thread that has begun it, before any code of
// ours, so this program is put in its own place once. Where the kernel does not let it,
// nothing changes.
func calmScheduler() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	defer runtime.UnlockOSThread() // of init
	self, err := os.Executable()
	slack, errSlack := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err == nil && errSlack == nil && time.Duration(slack) < napSlack && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(napSlack), 0, 0, 0) == nil {
		_ = unix.Exec(self, os.Args, os.Environ())
	}
}
