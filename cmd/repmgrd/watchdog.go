package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/nowait"
)

const (
	beatLimit     = 20 * time.Millisecond // of one write to the watchdog, which reads at once or is stopped
	watchdogAgain = time.Second           // between two starts of it

	watchdogGoodbye = 3 * time.Second // until one that was told to end is killed
)

// watchdogPipe leads to the watchdog that runs at this moment.
type watchdogPipe struct {
	mu sync.Mutex
	w  *os.File
}

func (p *watchdogPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return 0, io.ErrClosedPipe
	}
	f, err := nowait.Of(p.w)
	if err != nil {
		return 0, err
	}
	n, err := f.WriteNow(b)
	switch {
	case err != nil || n == len(b):
		return n, err
	case n == 0: // the watchdog is stopped, and the pipe is full
		return 0, io.ErrShortWrite
	}
	_ = p.w.SetWriteDeadline(time.Now().Add(beatLimit)) // of what was begun
	rest, err := p.w.Write(b[n:])
	return n + rest, err
}

func (p *watchdogPipe) lead(to *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		_ = p.w.Close()
	}
	p.w = to
}

// end tells the watchdog that it is not needed any more.
func (p *watchdogPipe) end() error {
	_, err := p.Write([]byte(`{"bye": true}` + "\n"))
	return err
}

// watchdogKeeper runs the watchdog, this program in another process, and starts
// it again when it ends.
type watchdogKeeper struct {
	log  *slog.Logger
	args []string
	pipe watchdogPipe
	runs bool
	wg   sync.WaitGroup
}

// keep makes a watchdog run under that configuration, until ctx ends. wg waits
// for its end.
func (k *watchdogKeeper) keep(ctx context.Context, cfg repmgr.Config) {
	switch {
	case cfg.Failover != repmgr.FailoverAutomatic || cfg.NodeID == 0:
		return // one that runs already has nothing to do
	case k.runs:
		_ = k.pipe.end() // the next one reads the configuration anew
		return
	}
	k.runs = true
	k.wg.Go(func() {
		for ctx.Err() == nil {
			err := runWatchdog(ctx, k.args, &k.pipe)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				k.log.Warn("the watchdog has ended, and is started again", "reason", err)
			} else {
				k.log.Info("the watchdog is started again, to read the configuration anew")
			}
			select {
			case <-ctx.Done():
			case <-time.After(watchdogAgain):
			}
		}
	})
}

func runWatchdog(ctx context.Context, args []string, pipe *watchdogPipe) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, os.Stdout, os.Stderr
	cmd.Cancel, cmd.WaitDelay = pipe.end, watchdogGoodbye
	err = cmd.Start()
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return fmt.Errorf("start the watchdog: %w", err)
	}
	pipe.lead(w)
	err = cmd.Wait()
	pipe.lead(nil)
	return err
}

// watchdog is that other process: it fences where the daemon can not.
func (d *daemon) watchdog(ctx context.Context) error {
	logs, shut, err := d.open()
	if err != nil {
		return err
	}
	defer shut()
	c, err := repmgr.New(d.cfg)
	if err != nil {
		return err
	}
	if err := syscall.SetNonblock(0, true); err != nil { // so that a read ends when it is closed
		return err
	}
	in := os.NewFile(0, "beats")
	beats, err := nowait.Of(in)
	if err != nil {
		return err
	}
	if err := c.Watchdog(ctx, struct {
		io.Reader
		io.Closer
	}{beats, in}); err != nil && !errors.Is(err, ctx.Err()) {
		logs.logger.Error("the watchdog ends", "err", err)
		return err
	}
	return nil
}
