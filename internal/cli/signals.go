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
	default:
		return fmt.Sprintf("stopped by signal %d", e.Signal)
	}
}

// ExitCode is the shell's: 128 and the number of the signal.
func (e *SignalError) ExitCode() int { return ExitSignalledBase + int(e.Signal) }

// SignalContext returns a context that SIGINT or SIGTERM ends, with a
// [SignalError] as its cause. After the first signal the system's own handling
// is back, so the second one ends the process at once. The caller calls stop,
// which waits for what SignalContext started.
func SignalContext(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1) // 1: the first signal counts, the next is the system's
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
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
