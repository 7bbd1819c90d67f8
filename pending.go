package repmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	pendingMax   = 100              // events that are kept; an older one gives way to a newer one
	pendingBatch = 20               // events of one round trip
	pendingAgain = 10 * time.Second // between two attempts, where one failed
)

// waiting are events that no primary has taken yet.
type waiting struct {
	Events  []Event `json:"events"`  // oldest first
	Dropped int     `json:"dropped"` // those before them, for which there was no room
}

// pending are those of a Monitor. Whoever emits an event adds it, without waiting for
// anything. Run writes them to a primary when one is at hand, and to disk until then:
// beside itself, for that disk may be what has failed.
type pending struct {
	mu sync.Mutex // of the next two
	waiting
	stale bool // what is on disk is another list

	// Below: owned by the goroutine of Run.
	recalled bool       // what an earlier Monitor has left is in the list
	storing  chan error // capacity 1, of a write to disk under way; nil: none
	one      bool       // an attempt failed: the next one is with one event
	tryAt    time.Time  // when they may be written to a primary again
	storeAt  time.Time  // and to disk
}

func (p *pending) add(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Events, p.stale = append(p.Events, e), true
	p.cut()
}

// cut makes room.
func (p *pending) cut() {
	if over := len(p.Events) - pendingMax; over > 0 {
		p.Events, p.Dropped = p.Events[over:], p.Dropped+over
	}
}

// oldest are the next ones to be written.
func (p *pending) oldest() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := pendingBatch
	if p.one {
		n = 1
	}
	return slices.Clone(p.Events[:min(len(p.Events), n)])
}

// done takes the oldest ones out, and returns how many were dropped before them.
func (p *pending) done(written []Event) (dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range written { // some may have given way meanwhile
		if len(p.Events) > 0 && p.Events[0].At.Equal(e.At) && p.Events[0].Type == e.Type {
			p.Events = p.Events[1:]
		}
	}
	dropped, p.Dropped, p.stale = p.Dropped, 0, true
	return dropped
}

// isStoring reports whether they are being written into the data directory: a rejoin
// begins when that is over.
func (p *pending) isStoring() bool {
	if len(p.storing) > 0 {
		p.settle(markEnd)
	}
	return p.storing != nil
}

// settle waits so long for the write to disk that is under way, if there is one.
func (p *pending) settle(limit time.Duration) {
	if p.storing == nil {
		return
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case err = <-p.storing:
	case <-timer.C:
		return
	}
	p.storing = nil
	if err != nil {
		p.mu.Lock()
		p.stale = true
		p.mu.Unlock()
		p.storeAt = time.Now().Add(pendingAgain)
	}
}

// keepEvents writes the events that wait where they belong, or keeps them on disk.
func (m *Monitor) keepEvents(ctx context.Context) {
	m.recallEvents()
	m.writeEvents(ctx)
	m.storeEvents()
}

// recallEvents reads, once, what the Monitor before this one could not write.
func (m *Monitor) recallEvents() {
	p := &m.pending
	if p.recalled || m.cluster.cfg.NodeID == 0 || m.yields { // the other Monitor's
		return
	}
	srv, err := m.cluster.localServer(m.dataDirectory())
	if err != nil || m.isElsewhere() {
		return // the directory is not known yet, or is another machine's
	}
	p.recalled = true
	var old waiting
	text, err := os.ReadFile(filepath.Join(srv.Dir, postmaster.EventsFile))
	if err == nil {
		err = json.Unmarshal(text, &old)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("events that an earlier repmgrd could not write to repmgr.events are lost", "file", filepath.Join(srv.Dir, postmaster.EventsFile), "err", err)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var own []Event
	for _, e := range old.Events {
		if e.NodeID == m.cluster.cfg.NodeID { // a copy of a data directory brings its source's
			own = append(own, e)
		}
	}
	p.Events, p.stale = append(own, p.Events...), true
	p.Dropped += old.Dropped
	p.cut()
}

// An event may have been written before, and its Monitor have died before it knew.
const lateEventSQL = `INSERT INTO repmgr.events (node_id, event, successful, details, event_timestamp)
	SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT FROM repmgr.events WHERE event_timestamp = $5 AND node_id = $1 AND event = $2 AND details = $4)`

// writeEvents writes the events that wait to repmgr.events, oldest first, each with
// the time when it happened.
func (m *Monitor) writeEvents(ctx context.Context) {
	p := &m.pending
	events := p.oldest()
	if len(events) == 0 || time.Now().Before(p.tryAt) {
		return
	}
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	known, err := m.onPrimary(ctx, func(n *registry.Server) error {
		if err := n.NeedNodes(ctx); err != nil {
			return err
		}
		var b pgx.Batch
		for _, e := range events {
			b.Queue(lateEventSQL, int32(e.NodeID), string(e.Type), e.Success, strings.ReplaceAll(strings.ToValidUTF8(e.Details, "?"), "\x00", "?"), e.At)
		}
		if err := n.Conn.SendBatch(ctx, &b).Close(); err != nil {
			return n.QueryError("write the events that waited", err)
		}
		return nil
	})
	if !known {
		return
	}
	if strings.HasPrefix(postgres.SQLState(err), "22") && len(events) == 1 { // its text has no letters there: it never will
		m.log.Warn("event not written to repmgr.events", "event", events[0].Type, "details", events[0].Details, "err", err)
		err = nil
	}
	m.report("writing the events that waited for a primary", err)
	if p.one = err != nil; p.one {
		p.tryAt = time.Now().Add(pendingAgain)
		return
	}
	if dropped := p.done(events); dropped > 0 {
		m.tell(Event{Type: EventEventsDropped, Details: fmt.Sprintf("%d events of this node from before %s are in no table: its daemon kept the newest %d while there was no primary", dropped, events[0].At.Format(EventTimeFormat), pendingMax)})
	}
}

// onPrimary does f on the primary, over a connection that is open, and is false where
// there is none.
func (m *Monitor) onPrimary(ctx context.Context, f func(*registry.Server) error) (known bool, err error) {
	self, ruler := m.cluster.cfg.NodeID, m.ruler()
	if m.primary != nil {
		return true, f(m.primary.Server)
	}
	if ruler == 0 || ruler == self {
		if m.state.Role != election.Primary || m.local == nil {
			return false, nil
		}
		return true, f(m.local.Server)
	}
	// A witness and an observer keep no connection of their own to it.
	if p := voters.PeerOf(m.watch.Peers(), int32(ruler)); p.Answer != election.Answers || p.Running != election.Primary {
		return false, nil
	}
	return true, m.watch.Voter(int32(ruler)).Run(ctx, f)
}

// storeEvents keeps the events that wait on disk, where that has another list.
func (m *Monitor) storeEvents() {
	p := &m.pending
	p.mu.Lock()
	stale := p.stale
	p.mu.Unlock()
	if p.isStoring() || !stale || !p.recalled || time.Now().Before(p.storeAt) || m.action != nil && m.action.verb == election.Rejoin {
		return
	}
	srv, err := m.cluster.localServer(m.dataDirectory())
	if err != nil || m.isElsewhere() || m.yields {
		return // a machine without the data directory keeps nothing
	}
	p.mu.Lock()
	empty := len(p.Events) == 0 && p.Dropped == 0
	text, err := json.Marshal(p.waiting)
	p.stale = false
	p.mu.Unlock()
	if err != nil {
		return
	}
	done := make(chan error, 1)
	p.storing = done
	go func() { // shutdown waits for it
		done <- srv.Store(postmaster.EventsFile, text, empty)
		m.lookNow()
	}()
}

// leaveEvents keeps on disk what this Monitor could not write until its end.
func (m *Monitor) leaveEvents() {
	p := &m.pending
	p.settle(markEnd)
	p.storeAt = time.Time{}
	m.storeEvents()
	p.settle(markEnd)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.Events) > 0 && (p.stale || p.storing != nil) {
		m.log.Warn("events that no primary has taken are not kept: the disk does not answer, or there is no data directory", "events", len(p.Events))
	}
}
