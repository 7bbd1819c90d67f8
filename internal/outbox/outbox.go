package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	maxEvents     = 100              // the number of events that are kept; the oldest is dropped for a newer one
	batchSize     = 20               // the number of events that are written in one round trip
	retryInterval = 10 * time.Second // the time to the next attempt after one that failed
	storeLimit    = 5 * time.Second  // how long to wait for a disk that does not answer
)

// list is the events that are not written to a primary yet.
type list struct {
	Events  []registry.Event `json:"events"`  // oldest first
	Dropped int              `json:"dropped"` // the number of earlier events that were dropped
}

// trim drops the oldest events where there are too many.
func (l *list) trim() {
	if over := len(l.Events) - maxEvents; over > 0 {
		l.Events, l.Dropped = l.Events[over:], l.Dropped+over
	}
}

// Outbox holds the events of one daemon. Add and Later may be called from any goroutine;
// Deliver runs in a goroutine of its own; everything else is called from one goroutine. Files
// are written in the background, because the disk may be what has failed.
type Outbox struct {
	notifications notifications

	mu        sync.Mutex       // protects the next three
	later     []registry.Event // events that the daemon must still tell
	rows      list             // events for repmgr.events
	fileStale bool             // the file differs from rows

	storedRead bool       // the file of an earlier daemon was read
	storing    chan error // capacity 1: the result of a write to disk that runs; nil: none runs
	oneByOne   bool       // an attempt failed, so the next one writes a single event
	tryAt      time.Time  // when the next write to a primary may be tried
	storeAt    time.Time  // when the next write to disk may be tried
}

// New makes an empty outbox.
func New() *Outbox { return &Outbox{notifications: notifications{wake: make(chan struct{}, 1)}} }

// Daemon is what an outbox needs of the daemon whose events it holds.
type Daemon struct {
	Node registry.NodeID
	Log  *slog.Logger

	// Disk is the data directory of the node. nil: it is unknown or on another machine, or
	// another daemon keeps its events there.
	Disk func() *postmaster.Server

	// Primary runs do on the primary, over a connection that is open. known is false where there
	// is none.
	Primary func(ctx context.Context, do func(context.Context, *registry.Server) error) (known bool, err error)

	Report func(what string, err error) // reports a problem; a nil error means that it is over
	Tell   func(registry.Event)
	Wake   func() // makes it call Keep again
}

// Add queues an event for these notifiers and, where it is not in it yet, for repmgr.events.
func (b *Outbox) Add(e registry.Event, to []Notify) {
	b.notifications.add(e, to)
	if registry.Written(e) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows.Events, b.fileStale = append(b.rows.Events, e), true
	b.rows.trim()
}

// Later queues an event that the daemon tells when it has time. It gets the current time where
// it has none.
func (b *Outbox) Later(e registry.Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.later = append(b.later, e)
}

// Due returns the events that Later has queued, oldest first, and empties that queue.
func (b *Outbox) Due() (events []registry.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	events, b.later = b.later, nil
	return events
}

// Keep writes the queued events to a primary, or to a file until there is one. busy means that
// something else works in the data directory, so that no file may be written there.
func (b *Outbox) Keep(ctx context.Context, d Daemon, busy bool) {
	b.readStored(d)
	b.write(ctx, d)
	if !busy {
		b.store(d)
	}
}

// Leave writes to a file what the daemon could not write to a primary before its end.
func (b *Outbox) Leave(d Daemon) {
	b.awaitStore()
	b.storeAt = time.Time{}
	b.store(d)
	b.awaitStore()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.rows.Events) > 0 && (b.fileStale || b.storing != nil) {
		d.Log.Warn("events that no primary has taken are not kept: the disk does not answer, or there is no data directory", "events", len(b.rows.Events))
	}
}

// Storing reports whether events are being written into the data directory. The directory must
// not be replaced before that is over.
func (b *Outbox) Storing() bool {
	if len(b.storing) > 0 {
		b.awaitStore()
	}
	return b.storing != nil
}

// nextBatch are the events that are written next.
func (b *Outbox) nextBatch() []registry.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := batchSize
	if b.oneByOne {
		n = 1
	}
	return slices.Clone(b.rows.Events[:min(len(b.rows.Events), n)])
}

// removeWritten removes the events that were written, and returns how many were dropped before them.
func (b *Outbox) removeWritten(written []registry.Event) (dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range written { // some may have been dropped meanwhile
		if len(b.rows.Events) > 0 && b.rows.Events[0].At.Equal(e.At) && b.rows.Events[0].Type == e.Type {
			b.rows.Events = b.rows.Events[1:]
		}
	}
	dropped, b.rows.Dropped, b.fileStale = b.rows.Dropped, 0, true
	return dropped
}

// awaitStore waits, for a limited time, for a write to disk that is under way.
func (b *Outbox) awaitStore() {
	if b.storing == nil {
		return
	}
	timer := time.NewTimer(storeLimit)
	defer timer.Stop()
	var err error
	select {
	case err = <-b.storing:
	case <-timer.C:
		return
	}
	b.storing = nil
	if err != nil {
		b.mu.Lock()
		b.fileStale = true
		b.mu.Unlock()
		b.storeAt = time.Now().Add(retryInterval)
	}
}

// readStored reads, once, the events that the previous daemon could not write.
func (b *Outbox) readStored(d Daemon) {
	if b.storedRead {
		return
	}
	disk := d.Disk()
	if disk == nil {
		return
	}
	b.storedRead = true
	var old list
	file := filepath.Join(disk.Dir, postmaster.EventsFile)
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &old)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if aside := filepath.Join(disk.Dir, postmaster.DamagedEventsFile); text != nil && os.Rename(file, aside) == nil {
			file = aside
		}
		d.Log.Warn("events that an earlier repmgrd could not write to repmgr.events can not be read: they are in no table", "file", file, "err", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var own []registry.Event
	for _, e := range old.Events {
		if e.NodeID == d.Node { // a copied data directory also has the events of its source
			own = append(own, e)
		}
	}
	b.rows.Events, b.fileStale = append(own, b.rows.Events...), true
	b.rows.Dropped += old.Dropped
	b.rows.trim()
}

// write writes queued events to repmgr.events, oldest first.
func (b *Outbox) write(ctx context.Context, d Daemon) {
	events := b.nextBatch()
	if len(events) == 0 || time.Now().Before(b.tryAt) {
		return
	}
	known, err := d.Primary(ctx, func(ctx context.Context, n *registry.Server) error { return n.WriteLateEvents(ctx, events) })
	if !known {
		return
	}
	if strings.HasPrefix(postgres.SQLState(err), "22") && len(events) == 1 { // the database can not represent its text and never will
		d.Log.Warn("event not written to repmgr.events", "event", events[0].Type, "details", events[0].Details, "err", err)
		err = nil
	}
	d.Report("writing the events that waited for a primary", err)
	if b.oneByOne = err != nil; b.oneByOne {
		b.tryAt = time.Now().Add(retryInterval)
		return
	}
	if dropped := b.removeWritten(events); dropped > 0 {
		d.Tell(registry.Event{Type: registry.EventEventsDropped, Details: fmt.Sprintf("%d events of this node from before %s are in no table: its daemon kept the newest %d while there was no primary", dropped, events[0].At.Format(registry.EventTimeFormat), maxEvents)})
	}
}

// store writes the queued events to a file where the file differs.
func (b *Outbox) store(d Daemon) {
	b.mu.Lock()
	stale := b.fileStale
	b.mu.Unlock()
	if b.Storing() || !stale || !b.storedRead || time.Now().Before(b.storeAt) {
		return
	}
	disk := d.Disk()
	if disk == nil {
		return // without a data directory on this machine nothing is stored
	}
	b.mu.Lock()
	empty := len(b.rows.Events) == 0 && b.rows.Dropped == 0
	text, err := json.Marshal(b.rows)
	b.fileStale = false
	b.mu.Unlock()
	if err != nil {
		return
	}
	done := make(chan error, 1)
	b.storing = done
	go func() { // Leave waits for it
		done <- disk.Store(postmaster.EventsFile, text, empty)
		d.Wake()
	}()
}
