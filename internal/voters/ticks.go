package voters

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/internal/wait"
)

// ticks come once per heartbeat interval, at the same moment for all periodic work: a process
// that wakes up rarely costs little. They use a timer of the kernel on CLOCK_BOOTTIME. It costs
// a tenth of what the timers of the Go scheduler cost, and it fires at once when the machine
// was suspended beyond it.
type ticks struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next tick; nil: there are no ticks
}

// began is when this process started.
var began = time.Now()

// SinceTick is the time since the last multiple of d, counted from the start of this process.
func SinceTick(d time.Duration) time.Duration { return time.Since(began) % d }

// coming returns a channel that is closed at the next tick. nil: there are no ticks.
func (t *ticks) coming() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// start prepares the ticks; run must be called next.
func (t *ticks) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = make(chan struct{})
}

func (t *ticks) run(ctx context.Context, every func() time.Duration) {
	timer := newTimerfd()
	defer timer.close()
	defer context.AfterFunc(ctx, timer.close)()
	for {
		d := every()
		if timer.wait(ctx, d-SinceTick(d)) != nil {
			return
		}
		t.mu.Lock()
		close(t.next)
		t.next = make(chan struct{})
		t.mu.Unlock()
	}
}

// timerfd is a timer of the kernel. nil: there is none, and a timer of Go is used.
type timerfd struct{ f *os.File }

func newTimerfd() *timerfd {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil
	}
	return &timerfd{os.NewFile(uintptr(fd), "timerfd")}
}

func (t *timerfd) close() {
	if t != nil {
		_ = t.f.Close() // closing it twice is harmless
	}
}

// wait waits until d, which is greater than 0, has passed, or until the timer is closed with
// ctx.
func (t *timerfd) wait(ctx context.Context, d time.Duration) error {
	if t == nil {
		return wait.Pause(ctx, d)
	}
	conn, err := t.f.SyscallConn()
	if err == nil {
		errCall := conn.Control(func(fd uintptr) {
			err = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
		})
		if errCall != nil {
			err = errCall
		}
	}
	var expired nowait.File
	if err == nil {
		expired, err = nowait.Of(t.f)
	}
	if err == nil {
		_, err = expired.Read(make([]byte, 8))
	}
	if err != nil && ctx.Err() == nil {
		return wait.Pause(ctx, d)
	}
	return context.Cause(ctx)
}

// Rest waits until d has passed or, where there are ticks, until the tick nearest to that
// moment. It ends earlier when wake receives a token.
func (w *Watch) Rest(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	pulse := w.heartbeatInterval()
	tick := w.ticks.coming()
	var over <-chan time.Time
	if tick == nil || d < pulse/4 {
		tick = nil
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	for until := time.Now().Add(d - pulse/2); ; tick = w.ticks.coming() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
			return nil
		case <-over:
			return nil
		case <-tick:
			if time.Now().After(until) {
				return nil
			}
		}
	}
}
