package repmgr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/internal/shell"
)

// EventTimeFormat is how the time of an event that is in no table is given to
// commands: as repmgr does. One that is in repmgr.events has the form that
// PostgreSQL gives it.
const EventTimeFormat = "2006-01-02 15:04:05-0700"

// stamp is the time for a command.
func (e Event) stamp() string {
	if !e.written {
		return e.At.Format(EventTimeFormat)
	}
	if _, offset := e.At.Zone(); offset%3600 != 0 {
		return e.At.Format("2006-01-02 15:04:05.999999-07:00")
	}
	return e.At.Format("2006-01-02 15:04:05.999999-07")
}

// CommandNotifier runs a shell command for each event. Its placeholders are
// repmgr's: %n node id, %e event, %s 1 or 0, %t time, %d details, %p, %a and %c
// id, name and conninfo of the other node, %% a percent sign. They may stand in
// or outside quotes, and whatever an event holds, it is never executed. The same
// values are in the command's environment as REPMGR_NODE_ID, REPMGR_EVENT, ...
type CommandNotifier struct {
	Command string
	Types   []EventType // only these; empty: all
}

// Notify runs the command and waits for it, no longer than ctx.
func (n CommandNotifier) Notify(ctx context.Context, e Event) error {
	if len(n.Types) > 0 && !slices.Contains(n.Types, e.Type) {
		return nil
	}
	success, peer := "0", ""
	if e.Success {
		success = "1"
	}
	if e.PeerID != 0 {
		peer = e.PeerID.String()
	}
	out, err := shell.Run(ctx, n.Command, map[byte]shell.Value{
		'n': {Env: "REPMGR_NODE_ID", Text: strconv.Itoa(int(e.NodeID))},
		'e': {Env: "REPMGR_EVENT", Text: string(e.Type)},
		's': {Env: "REPMGR_SUCCESS", Text: success},
		't': {Env: "REPMGR_TIMESTAMP", Text: e.stamp()},
		'd': {Env: "REPMGR_DETAILS", Text: e.Details},
		'p': {Env: "REPMGR_PEER_ID", Text: peer},
		'a': {Env: "REPMGR_PEER_NAME", Text: e.Peer},
		'c': {Env: "REPMGR_PEER_CONNINFO", Text: Redact(e.PeerConninfo)},
	})
	if err != nil {
		return fmt.Errorf("event_notification_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 3)))
	}
	return nil
}

// WebhookNotifier posts each event as JSON.
type WebhookNotifier struct {
	URL    string
	Types  []EventType  // only these; empty: all
	Client *http.Client // defaults to http.DefaultClient
}

// Notify posts the event; an answer other than 2xx is an error.
func (n WebhookNotifier) Notify(ctx context.Context, e Event) error {
	if len(n.Types) > 0 && !slices.Contains(n.Types, e.Type) {
		return nil
	}
	e.PeerConninfo = Redact(e.PeerConninfo)
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event webhook: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("event webhook: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := n.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		var ue *url.Error // its text holds the URL, and that may hold a token
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("event webhook: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("event webhook: answer %s", res.Status)
	}
	return nil
}

// LogNotifier writes each event to a log.
type LogNotifier struct{ Logger *slog.Logger }

// Notify never fails.
func (n LogNotifier) Notify(ctx context.Context, e Event) error {
	level := LevelNotice
	if !e.Success {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("event", string(e.Type)), slog.Int("node_id", int(e.NodeID))}
	if e.Details != "" {
		attrs = append(attrs, slog.String("details", e.Details))
	}
	n.Logger.LogAttrs(ctx, level, "event", attrs...)
	return nil
}

// allNotifiers are those of the program and those of the configuration file.
func (c Config) allNotifiers() []Notifier {
	all := slices.Clone(c.Notifiers)
	if c.EventNotificationCommand != "" {
		all = append(all, CommandNotifier{Command: c.EventNotificationCommand, Types: c.EventNotifications})
	}
	if c.EventWebhookURL != "" {
		all = append(all, WebhookNotifier{URL: c.EventWebhookURL, Types: c.EventNotifications})
	}
	return all
}

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
