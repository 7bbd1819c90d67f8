package basebackup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgrepmgr/repmgr/wal"
)

const (
	walDir     = "pg_wal"
	archiveDir = "pg_wal/archive_status"

	statusInterval = 10 * time.Second
)

// createTemporarySlot makes a physical slot that ends with c's session, with
// its WAL reserved from the source's last checkpoint on.
func createTemporarySlot(c *conn) (string, error) {
	slot := fmt.Sprintf("basebackup_%d", c.pg.PID())
	name, err := quoteIdentifier(slot)
	if err == nil {
		_, err = c.command("CREATE_REPLICATION_SLOT "+name+" TEMPORARY PHYSICAL RESERVE_WAL", 1)
	}
	if err != nil {
		return "", fmt.Errorf("create temporary slot %s: %w", slot, err)
	}
	return slot, nil
}

// walStream receives WAL into pg_wal from the segment in which the backup
// starts up to its end. It belongs to the WAL goroutine, but for stopAt.
type walStream struct {
	conn     *conn
	slot     string // empty: none
	target   *target
	source   source
	timeline wal.Timeline
	start    wal.LSN
	timeout  time.Duration
	meter    *meter

	mu      sync.Mutex
	stop    wal.LSN // at which to end; 0 is not known yet; under mu
	waiting bool    // between two messages, where a deadline loses nothing; under mu

	pos     wal.LSN // next byte to receive
	durable wal.LSN // complete segments before it are on disk
	segment *os.File
	segName string

	heard, asked, told time.Time // last message; last request for one; last status
}

// stopAt ends the stream as soon as everything before lsn is received.
func (w *walStream) stopAt(lsn wal.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop = lsn
	if w.waiting {
		_ = w.conn.net.SetReadDeadline(time.Now()) // wakes the reader
	}
}

// await sets the deadline of the next read: soon while waiting for a message,
// the one of a dead source within one. It reports whether there is more to read.
func (w *walStream) await(waiting bool) (more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = waiting
	after := w.timeout
	if waiting {
		after = min(statusInterval, w.timeout/2)
	}
	_ = w.conn.net.SetReadDeadline(time.Now().Add(after))
	return w.stop == 0 || w.pos < w.stop
}

// run streams one timeline after the other: a source that is a standby can move
// to another one when its own upstream does.
func (w *walStream) run() (err error) {
	defer func() {
		if w.segment != nil {
			w.segment.Close()
		}
		if err != nil {
			err = fmt.Errorf("stream WAL: %w", err)
		}
	}()
	w.await(false)
	for from := w.start; ; {
		if err := w.fetchHistory(); err != nil {
			return err
		}
		if err := w.begin(from); err != nil {
			return err
		}
		if err := w.receive(); err != nil {
			return err
		}
		if err := w.pad(); err != nil {
			return err
		}
		if !w.await(false) {
			return w.end()
		}
		if from, err = w.nextTimeline(); err != nil {
			return err
		}
	}
}

// fetchHistory stores the history of the timeline; the first one has none.
func (w *walStream) fetchHistory() error {
	if w.timeline == 1 {
		return nil
	}
	row, err := w.conn.command(fmt.Sprintf("TIMELINE_HISTORY %d", w.timeline), 2)
	if err != nil {
		return fmt.Errorf("fetch history of timeline %d: %w", w.timeline, err)
	}
	name := wal.HistoryFileName(w.timeline)
	if string(row[0]) != name {
		return fmt.Errorf("fetch history of timeline %d: got file %q", w.timeline, row[0])
	}
	f, err := w.target.walFile(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(row[1]); err != nil {
		return explainFile(err)
	}
	return w.target.walDone(name)
}

// begin asks for WAL from the first byte of the segment that holds from.
func (w *walStream) begin(from wal.LSN) error {
	w.pos = from - from%wal.LSN(w.source.segSize)
	w.durable = w.pos
	cmd := "START_REPLICATION "
	if w.slot != "" {
		name, err := quoteIdentifier(w.slot)
		if err != nil {
			return err
		}
		cmd += "SLOT " + name + " "
	}
	cmd += fmt.Sprintf("PHYSICAL %s TIMELINE %d", w.pos, w.timeline)
	if err := w.conn.query(cmd); err != nil {
		return err
	}
	if err := w.conn.expect('W'); err != nil {
		return fmt.Errorf("start at %s on timeline %d: %w", w.pos, w.timeline, err)
	}
	now := time.Now()
	w.heard, w.told, w.asked = now, now, time.Time{}
	return nil
}

// receive writes what comes, until the stop is reached or the timeline ends.
func (w *walStream) receive() error {
	defer w.await(false)
	for w.await(true) {
		kind, err := w.conn.next()
		if isTimeout(err) {
			if err := w.idle(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		w.await(false)
		w.heard, w.asked = time.Now(), time.Time{}
		switch kind {
		case 'd':
			if err := w.message(); err != nil {
				return err
			}
		case 'c':
			return nil
		case 'C': // not asked for: the source shuts down
			return fmt.Errorf("%w: it ended the stream", ErrSourceLost)
		default:
			return fmt.Errorf("unexpected message %q", kind)
		}
	}
	return nil
}

// idle is called after a while without a message, and when stopAt wakes the reader.
func (w *walStream) idle() error {
	now := time.Now()
	if silent := now.Sub(w.heard); silent >= w.timeout {
		return fmt.Errorf("%w: it was silent for %v", ErrSourceLost, silent.Round(time.Second))
	}
	// An answer is asked for once in each silence, which proves the source
	// alive even with wal_sender_timeout = 0.
	ask := w.asked.IsZero() && now.Sub(w.heard) >= min(statusInterval, w.timeout/2)
	if ask {
		w.asked = now
	}
	if ask || now.Sub(w.told) >= statusInterval {
		return w.status(ask)
	}
	return nil
}

// message takes one message of the replication protocol.
func (w *walStream) message() error {
	kind, err := w.conn.take(1)
	if err != nil {
		return err
	}
	switch kind[0] {
	case 'w':
		h, err := w.conn.take(24)
		if err != nil {
			return err
		}
		if at := wal.LSN(binary.BigEndian.Uint64(h)); at != w.pos {
			return fmt.Errorf("got WAL from %s, want %s", at, w.pos)
		}
		for w.conn.body > 0 {
			p, err := w.conn.some()
			if err != nil {
				return err
			}
			if err := w.write(p); err != nil {
				return err
			}
		}
	case 'k':
		k, err := w.conn.take(17)
		if err != nil {
			return err
		}
		if k[16] != 0 || time.Since(w.told) >= statusInterval {
			return w.status(false)
		}
	default:
		return fmt.Errorf("unexpected replication message %q", kind[0])
	}
	return nil
}

// write appends p at pos, across segments.
func (w *walStream) write(p []byte) error {
	for len(p) > 0 {
		off := int64(w.pos % wal.LSN(w.source.segSize))
		if w.segment == nil {
			if err := w.open(); err != nil {
				return err
			}
		}
		k := min(int64(len(p)), int64(w.source.segSize)-off)
		if _, err := w.segment.WriteAt(p[:k], off); err != nil {
			return explainFile(err)
		}
		w.pos += wal.LSN(k)
		w.meter.walBytes.Add(k)
		p = p[k:]
		if off+k == int64(w.source.segSize) {
			if err := w.closeSegment(); err != nil {
				return err
			}
			// Tells the slot, so that the source need not keep it for us.
			if err := w.status(false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walStream) open() (err error) {
	w.segName = wal.SegmentName(w.timeline, w.pos, w.source.segSize)
	w.segment, err = w.target.walFile(w.segName)
	return err
}

// closeSegment ends a complete segment. It is put on disk before the source
// hears of it: a slot's flush position is a promise.
func (w *walStream) closeSegment() error {
	f := w.segment
	w.segment = nil
	if !w.target.o.NoSync {
		if err := f.Sync(); err != nil {
			f.Close()
			return explainFile(err)
		}
	}
	if err := f.Close(); err != nil {
		return explainFile(err)
	}
	w.durable = w.pos
	return w.target.walDone(w.segName)
}

// pad fills the last segment with zeros up to its size, as the server wants it.
func (w *walStream) pad() error {
	if w.segment == nil {
		return nil
	}
	zeros := make([]byte, readSize)
	for off := int64(w.pos % wal.LSN(w.source.segSize)); off < int64(w.source.segSize); {
		k := min(int64(len(zeros)), int64(w.source.segSize)-off)
		if _, err := w.segment.WriteAt(zeros[:k], off); err != nil {
			return explainFile(err)
		}
		off += k
	}
	f := w.segment
	w.segment = nil
	if err := f.Close(); err != nil {
		return explainFile(err)
	}
	return w.target.walDone(w.segName)
}

// status tells the source how far we are. It counts as flushed only what is in
// complete segments, and nothing as applied.
func (w *walStream) status(ask bool) error {
	w.told = time.Now()
	b := make([]byte, 34)
	b[0] = 'r'
	binary.BigEndian.PutUint64(b[1:], uint64(w.pos))
	binary.BigEndian.PutUint64(b[9:], uint64(w.durable))
	binary.BigEndian.PutUint64(b[25:], uint64(w.told.UnixMicro()-epoch2000))
	if ask {
		b[33] = 1
	}
	return w.conn.send(&pgproto3.CopyData{Data: b})
}

const epoch2000 = 946684800 * 1e6 // PostgreSQL's epoch, in microseconds of Unix

// end leaves the stream, so that the session can end politely.
func (w *walStream) end() error {
	_ = w.conn.net.SetReadDeadline(time.Now().Add(goodbyeTimeout))
	if err := w.status(false); err != nil {
		return err
	}
	if err := w.conn.send(&pgproto3.CopyDone{}); err != nil {
		return err
	}
	for {
		// All the WAL is here: what the source says now changes nothing.
		if kind, err := w.conn.next(); err != nil || kind == 'Z' {
			return nil
		}
	}
}

// nextTimeline answers the end of a timeline and returns where the next begins.
func (w *walStream) nextTimeline() (wal.LSN, error) {
	if err := w.conn.send(&pgproto3.CopyDone{}); err != nil {
		return 0, err
	}
	kind, err := w.conn.next()
	if err != nil {
		return 0, err
	}
	if kind != 'T' { // a source that shuts down names no next timeline
		return 0, fmt.Errorf("%w: it ended the stream", ErrSourceLost)
	}
	rows, err := w.conn.moreRows()
	if err != nil {
		return 0, err
	}
	if len(rows) != 1 || len(rows[0]) < 2 {
		return 0, errors.New("read next timeline: want one row of two columns")
	}
	next, err := parseTimeline(rows[0][0])
	if err != nil {
		return 0, err
	}
	at, err := wal.ParseLSN(string(rows[0][1]))
	if err != nil {
		return 0, err
	}
	if next <= w.timeline {
		return 0, fmt.Errorf("read next timeline: %d after %d", next, w.timeline)
	}
	w.timeline = next
	return at, w.conn.ready()
}

// walFile creates a file of pg_wal.
func (t *target) walFile(name string) (*os.File, error) {
	f, err := t.base.OpenFile(path.Join(walDir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, t.fileMode)
	if err == nil {
		err = f.Chmod(t.fileMode)
	}
	return f, explainFile(err)
}

// walDone marks a file of pg_wal as archived: its origin has seen to that.
func (t *target) walDone(name string) error {
	f, err := t.base.OpenFile(path.Join(archiveDir, name+".done"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, t.fileMode)
	if err == nil {
		err = f.Close()
	}
	return explainFile(err)
}
