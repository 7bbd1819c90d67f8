package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
)

// settledFor is how long this node must be in order before the daemon takes the switchover for done.
const settledFor = 5 * time.Second

// endWithSwitchover ends a daemon that was started for a switchover: at a line on standard input; where
// that ends without one, because whoever started the daemon or the connection is lost, as soon as nothing
// is under way on this node; and after its time. The function that it returns waits for its end.
func (d *daemon) endWithSwitchover(ctx context.Context, cancel context.CancelCauseFunc, monitor *repmgr.Monitor, log *slog.Logger) (wait func()) {
	over := time.AfterFunc(d.Automatic, func() {
		cancel(fmt.Errorf("the time of a switchover (%s) is over", d.Automatic))
	})
	_ = syscall.SetNonblock(0, true) // so that a read ends when it is closed
	in := os.NewFile(0, "standard input")
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := bufio.NewReader(in).ReadString('\n'); err == nil {
			cancel(errors.New("the switchover is done"))
			return
		}
		if ctx.Err() != nil {
			return
		}
		log.Warn("whoever started this daemon for a switchover is gone: it ends when nothing is under way here")
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for since, s := time.Now(), monitor.Status(); !s.Settled || !s.LookedAt.After(since.Add(max(settledFor, 2*d.cfg.SilenceTimeout))); s = monitor.Status() { // it has looked again since
			if !s.Settled {
				since = time.Now()
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel(errors.New("whoever started it for a switchover is gone, and nothing is under way here"))
	})
	return func() {
		over.Stop()
		cancel(nil)
		_ = in.Close()
		wg.Wait()
	}
}
