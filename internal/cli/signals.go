package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// SignalError is the cause of a context that a signal ended.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string {
	switch e.Signal {
	case syscall.SIGINT:
		return "interrupted (SIGINT)"
	case syscall.SIGTERM:
		return "told to stop (SIGTERM)"
	case syscall.SIGHUP:
		return "hung up (SIGHUP)"
	default:
		return fmt.Sprintf("stopped by signal %d", e.Signal)
	}
}

// ExitCode is the shell's: 128 and the number of the signal.
func (e *SignalError) ExitCode() int { return ExitSignalledBase + int(e.Signal) }

// SignalContext returns a context that SIGINT, SIGTERM or one of more ends, with
// a [SignalError] as its cause. After the first signal the system's own handling
// is back, so the second one ends the process at once. A SIGHUP that is ignored,
// as under nohup, stays ignored. The caller calls stop, which waits for what
// SignalContext started.
func SignalContext(parent context.Context, more ...os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1) // 1: the first signal counts, the next is the system's
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	for _, s := range more {
		if s != syscall.SIGHUP || !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&SignalError{s.(syscall.Signal)})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() {
		cancel(errors.New("program ended"))
		<-done
	}
}
