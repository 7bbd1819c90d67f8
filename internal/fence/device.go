package fence

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
)

// device is a watchdog device of the kernel, such as /dev/watchdog: it resets the machine when
// nobody has written to it for its timeout. It is armed while the local server is a primary
// with a lease, so that the primary also ends where nothing on the machine runs any more, not
// even the watchdog process. It is owned by one goroutine.
type device struct {
	f       *os.File // nil: it is not armed
	timeout time.Duration
}

// arm opens the device, which starts it, and sets its timeout: whole seconds, no
// more than fence_timeout, so that the reset comes before another primary does.
func (d *device) arm(path string, fence time.Duration) error {
	if d.f != nil {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return failure.WithHint(failure.Of(failure.ErrConfig, "open watchdog_device: %w", err), "Is the module loaded (modprobe softdog), and may this user write the device? Another program may hold it.")
	}
	d.f, d.timeout = f, max(time.Second, fence.Truncate(time.Second))
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 {
		return nil // a plain file, as in a test, has no timeout to set
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(d.timeout/time.Second)); err != nil {
		d.disarm()
		return failure.WithHint(failure.Of(failure.ErrConfig, "set the timeout of watchdog_device %s to %s: %w", path, d.timeout, err), "A device that can not do that does not serve: set fence_timeout higher, or use softdog.")
	}
	return nil
}

// feed writes to the device if the primary may go on for left, and that is longer than the
// device would wait, less the margin by which a candidate waits longer.
func (d *device) feed(left time.Duration) error {
	if d.f == nil || left+election.Margin < d.timeout {
		return nil
	}
	if _, err := d.f.Write([]byte{'1'}); err != nil {
		return fmt.Errorf("feed watchdog_device: %w", err)
	}
	return nil
}

// disarm stops the device, because there is no primary to guard.
func (d *device) disarm() {
	if d.f == nil {
		return
	}
	_, _ = d.f.Write([]byte{'V'})
	_ = d.f.Close()
	d.f = nil
}

// follow arms, feeds or disarms the device as the lease requires; left is nil without a lease.
func (d *device) follow(s *Settings, left *time.Duration) error {
	if left == nil || s.Device == "" {
		d.disarm()
		return nil
	}
	if err := d.arm(s.Device, s.FenceTimeout); err != nil {
		return err
	}
	return d.feed(*left)
}

func (g *Guard) noteDevice(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.device = err
}

// mayArm reports why a required watchdog device could not be used, or nil. The device is not
// opened, because that would start it.
func (g *Guard) mayArm() error {
	s := g.settings.Load()
	if s.Device == "" || !s.DeviceRequired {
		return nil
	}
	if _, err := g.Trouble(); err != nil {
		return err
	}
	if err := unix.Access(s.Device, unix.W_OK); err != nil {
		return failure.WithHint(failure.Of(failure.ErrConfig, "watchdog_required is on, and watchdog_device %s can not be used: %w", s.Device, err), "Load its module (modprobe softdog), let this user write the device, or turn watchdog_required off.")
	}
	return nil
}
