package wait

import (
	"context"
	"time"
)

// Pause waits, or returns early with the reason why ctx ended.
func Pause(ctx context.Context, d time.Duration) error {
	return Until(ctx, nil, d)
}

// Until waits for something to come over a channel, or for d, or returns early with the reason why
// ctx ended.
func Until(ctx context.Context, c <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c:
	case <-t.C:
	}
	return nil
}
