package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// Notify tells somebody of an event. It returns when ctx ends.
type Notify = func(ctx context.Context, e registry.Event) error

// notifications hand events to slow notifiers without holding up who sends them.
type notifications struct {
	mu      sync.Mutex
	waiting []notification
	wake    chan struct{} // capacity 1: a token that says "look again"
}

type notification struct {
	event registry.Event
	to    []Notify
}

func (q *notifications) add(e registry.Event, to []Notify) {
	q.mu.Lock()
	q.waiting = append(q.waiting, notification{e, to})
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *notifications) take() (notification, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return notification{}, false
	}
	first := q.waiting[0]
	q.waiting = q.waiting[1:]
	return first, true
}

func (q *notifications) deliver(ctx context.Context, log *slog.Logger, limit time.Duration) {
	for n, ok := q.take(); ok; n, ok = q.take() {
		for _, notify := range n.to {
			Deliver(ctx, log, limit, notify, n.event)
		}
	}
}

// Deliver delivers notifications until ctx ends, and then for no longer than limit what
// still waits. A notifier has limit for each event. It is called once.
func (b *Outbox) Deliver(ctx context.Context, log *slog.Logger, limit time.Duration) {
	q := &b.notifications
	for ctx.Err() == nil {
		q.deliver(context.WithoutCancel(ctx), log, limit)
		select {
		case <-q.wake:
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errors.New("the daemon stopped"))
	defer cancel()
	q.deliver(ctx, log, limit)
}

// Deliver tells one notifier of one event, and logs where that does not succeed.
func Deliver(ctx context.Context, log *slog.Logger, limit time.Duration, notify Notify, e registry.Event) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within event_notification_timeout (%s)", limit))
	defer cancel()
	if err := notify(ctx, e); err != nil {
		log.Warn("event notification did not succeed", "event", e.Type, "err", err)
	}
}
