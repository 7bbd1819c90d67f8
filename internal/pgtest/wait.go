package pgtest

import (
	"context"
	"errors"
	"os"
	"strconv"
	"testing"
	"time"
)

// Timeout is d times REPMGR_TEST_TIMEOUT_SCALE: slow machines raise it.
func Timeout(d time.Duration) time.Duration {
	if f, err := strconv.ParseFloat(os.Getenv("REPMGR_TEST_TIMEOUT_SCALE"), 64); err == nil && f > 0 {
		return time.Duration(float64(d) * f)
	}
	return d
}

// patience is how long anything here may take.
func patience() time.Duration { return Timeout(30 * time.Second) }

// Poll is [WaitFor] for whoever has something to do about an error, and a limit of its own.
func Poll(limit time.Duration, ok func(context.Context) error) error { return poll(limit, ok) }

// poll calls ok every few milliseconds until it returns nil, or d is over: then
// it returns the last error. ok's context ends with d.
func poll(d time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var last error
	// Quick at first; slower later, because a try may cost a server process.
	for pause := 2 * time.Millisecond; ; pause = min(pause*5/4, 20*time.Millisecond) {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		// The error of a try that the deadline cut off says less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if fatal := (final{}); errors.As(err, &fatal) {
			return fatal.error
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(pause):
		}
	}
}

// final ends poll at once: waiting longer cannot help.
type final struct{ error }

// WaitFor calls ok every 2 to 20 milliseconds until it returns nil. After 30
// seconds it fails the test with what was waited for and the last error.
func WaitFor(t testing.TB, what string, ok func(context.Context) error) {
	t.Helper()
	start := time.Now()
	if err := poll(patience(), ok); err != nil {
		t.Fatalf("waited %s for %s: %v", time.Since(start).Round(time.Millisecond), what, err)
	}
}
