package repmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// notifyQueue hands events to slow notifiers without holding up who sends them.
// No event is lost while it runs. Run it in one goroutine.
type notifyQueue struct {
	mu      sync.Mutex
	waiting []queued
	wake    chan struct{} // capacity 1: a token that says "look again"
}

type queued struct {
	event Event
	to    []Notifier
}

func newNotifyQueue() *notifyQueue { return &notifyQueue{wake: make(chan struct{}, 1)} }

func (q *notifyQueue) add(e Event, to []Notifier) {
	q.mu.Lock()
	q.waiting = append(q.waiting, queued{e, to})
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *notifyQueue) take() (queued, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return queued{}, false
	}
	first := q.waiting[0]
	q.waiting = q.waiting[1:]
	return first, true
}

// run delivers until ctx ends, and then for no longer than limit what still waits.
func (q *notifyQueue) run(ctx context.Context, log *slog.Logger, limit time.Duration) {
	for ctx.Err() == nil {
		q.drain(context.WithoutCancel(ctx), log, limit)
		select {
		case <-q.wake:
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errors.New("the daemon stopped"))
	defer cancel()
	q.drain(ctx, log, limit)
}

func (q *notifyQueue) drain(ctx context.Context, log *slog.Logger, limit time.Duration) {
	for item, ok := q.take(); ok; item, ok = q.take() {
		for _, n := range item.to {
			deliver(ctx, log, limit, n, item.event)
		}
	}
}

func deliver(ctx context.Context, log *slog.Logger, limit time.Duration, n Notifier, e Event) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within event_notification_timeout (%s)", limit))
	defer cancel()
	if err := n.Notify(ctx, e); err != nil {
		log.Warn("event notification did not succeed", "event", e.Type, "err", err)
	}
}
