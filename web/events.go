package web

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr"
)

const (
	eventsKept   = 256              // for readers that come back with Last-Event-ID
	eventReaders = 100              // at once
	keepAlive    = 15 * time.Second // between two signs of life to a reader
)

// Events keeps the newest events of a Monitor for the readers of /events. It is a [repmgr.Notifier]: add it to
// Config.Notifiers. The zero value is ready for use, by any number of goroutines.
type Events struct {
	mu      sync.Mutex
	epoch   int64     // of the numbers: they begin anew with each process
	newest  int64     // the number of the newest event
	at      time.Time // when it came, by our clock: the time in an event is that of the primary
	events  []repmgr.Event
	changed chan struct{} // closed when there is another event
	readers int
	tally   tally // for /metrics
}

// Notify takes an event. It never waits.
func (e *Events) Notify(_ context.Context, event repmgr.Event) error {
	event.PeerConninfo = "" // nobody who reads events over HTTP needs to know how to log in
	e.mu.Lock()
	defer e.mu.Unlock()
	e.newest, e.at = e.newest+1, time.Now()
	event.Told = cmp.Or(event.Told, e.at) // it has waited for other notifiers since
	e.tally.note(event)
	e.events = append(e.events, event)
	if len(e.events) > eventsKept {
		e.events = append([]repmgr.Event(nil), e.events[len(e.events)-eventsKept:]...)
	}
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
	return nil
}

// after returns the events after a number, the number of the first of them, and what is closed when there are more.
func (e *Events) after(number int64) (events []repmgr.Event, first int64, more <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	oldest := e.newest - int64(len(e.events)) + 1
	first = max(oldest, number+1)
	return append([]repmgr.Event(nil), e.events[min(first-oldest, int64(len(e.events))):]...), first, e.changed
}

// last returns the number of the newest event, and when it came; zero: there was none.
func (e *Events) last() (number int64, at time.Time) {
	if e == nil {
		return 0, time.Time{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newest, e.at
}

// latest returns so many of the newest events, the newest first.
func (e *Events) latest(most int) []repmgr.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := slices.Clone(e.events[max(0, len(e.events)-most):])
	slices.Reverse(all)
	return all
}

// begin counts a reader, and says where it begins: behind the event that it has read last, or at the newest.
func (e *Events) begin(lastID string) (epoch, number int64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.epoch == 0 {
		e.epoch = time.Now().UnixMilli()
	}
	if e.readers >= eventReaders {
		return 0, 0, false
	}
	e.readers++
	of, id, found := strings.Cut(lastID, "-")
	last, err := strconv.ParseInt(id, 10, 64)
	switch {
	case lastID == "":
		return e.epoch, e.newest, true
	case !found || err != nil || of != strconv.FormatInt(e.epoch, 10) || last < 0 || last > e.newest: // of another process: all that there is may be new
		return e.epoch, 0, true
	}
	return e.epoch, last, true
}

func (e *Events) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers--
}

// events sends each event as it happens, until the reader goes.
func (h *handler) events(w http.ResponseWriter, r *http.Request) {
	all := h.o.Events
	if refused := h.mayAsk(r); refused != "" {
		text(w, http.StatusForbidden, refused)
		return
	}
	if all == nil {
		text(w, http.StatusNotFound, "this handler has no events")
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		return
	}
	epoch, number, ok := all.begin(r.Header.Get("Last-Event-ID"))
	if !ok {
		text(w, http.StatusServiceUnavailable, fmt.Sprintf("%d readers are connected, which is the limit", eventReaders))
		return
	}
	defer all.end()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		events, first, more := all.after(number)
		_ = out.SetWriteDeadline(time.Now().Add(writeWithin)) // a reader that does not read is left
		if err := writeEvents(w, epoch, first, events); err != nil || out.Flush() != nil {
			return
		}
		number = max(number, first+int64(len(events))-1)
		select {
		case <-r.Context().Done():
			return
		case <-more:
		case <-alive.C:
		}
	}
}

// writeEvents writes events, or, where there are none, a comment, which shows that the connection lives.
func writeEvents(w http.ResponseWriter, epoch, first int64, events []repmgr.Event) error {
	if len(events) == 0 {
		_, err := w.Write([]byte(":\n\n"))
		return err
	}
	for i, e := range events {
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "id: %d-%d\nevent: %s\ndata: %s\n\n", epoch, first+int64(i), e.Type, data); err != nil {
			return err
		}
	}
	return nil
}
