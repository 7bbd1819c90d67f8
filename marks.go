package repmgr

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/internal/salvage"
)

const (
	markLimit = time.Second     // a fence waits for its marks; they go on being written beside it
	markAgain = time.Second     // between two attempts that failed
	markEnd   = 5 * time.Second // until a Monitor that ends gives up a disk that does not answer
)

// marks are what makes a server that was fenced come back as a standby only. They
// are written after its end, which waits for no disk, and until they are there the
// server stays down, whoever starts it.
type marks struct {
	mu    sync.Mutex // held over a fence: one at a time
	why   string     // of the fence whose marks are missing; empty: none
	done  chan error // capacity 1, of an attempt under way; nil: none
	began time.Time
	fault string // what was last told of marks that failed

	unfenced map[string]string // what was last told of fences that failed, by their reason
}

// fence ends the local server at once, and makes it a standby of nobody. The end
// comes first, and asks for nothing but its processes: the disk of the data
// directory may be what has failed. It reports whether the server has ended.
func (m *Monitor) fence(ctx context.Context, c *Cluster, why string) bool {
	start := time.Now()
	m.marks.mu.Lock()
	srv, err := m.stoppable(c)
	if err == nil {
		err = srv.Fence(ctx)
	}
	if err != nil {
		defer m.marks.mu.Unlock()
		if text := err.Error(); m.marks.unfenced[why] != text {
			if m.marks.unfenced == nil {
				m.marks.unfenced = map[string]string{}
			}
			m.marks.unfenced[why] = text
			m.log.Error("this node could not be fenced: it may accept writes while another node is the primary", "reason", why, "err", err, "hint", Hint(err))
			m.noteFence(Event{Type: EventFence, Details: fmt.Sprintf("not fenced (%s): %v", why, err)})
		}
		return false
	}
	m.log.Warn("this node was fenced", "reason", why, "elapsed", time.Since(start))
	m.setLastFence(why)
	m.marks.why, m.marks.fault, m.marks.unfenced = why, "", nil
	m.noteFence(Event{Type: EventFence, Success: true, Details: why})
	m.marks.mu.Unlock()
	if m.keepDown(ctx, c) && !m.fenceOnly {
		m.startFenced(ctx, c)
	}
	return true
}

// stoppable is the local server, as it was when it was shown that it can be
// stopped: to find it anew may take its disk.
func (m *Monitor) stoppable(c *Cluster) (*salvage.Server, error) {
	m.shared.mu.Lock()
	srv, elsewhere, dir := m.shared.srv, m.shared.elsewhere, m.shared.dir
	m.shared.mu.Unlock()
	switch {
	case elsewhere:
		return nil, kind(ErrRefused, "its server runs on another machine")
	case srv != nil:
		return newLocalServer(c.cfg, srv.Dir), nil
	}
	return c.localServer(dir)
}

// keepDown writes the marks of the last fence, and ends whatever was started before
// they are there. It reports whether nothing is missing.
func (m *Monitor) keepDown(ctx context.Context, c *Cluster) bool {
	k := &m.marks
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.why == "" {
		return true
	}
	srv, err := m.stoppable(c)
	if err != nil {
		return false
	}
	limit := time.Duration(0)
	if k.done == nil && time.Since(k.began) >= markAgain {
		limit = markLimit
		done, why := make(chan error, 1), k.why
		k.done, k.began = done, time.Now()
		go func() { done <- srv.Mark(why) }() // endMarking waits for it
	}
	err = errUnmarked
	if k.done != nil {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case err = <-k.done:
			k.done = nil
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if len(srv.Processes()) > 0 { // somebody has started it, perhaps as a primary
		if errFence := srv.Fence(ctx); errFence != nil {
			return false
		}
	}
	switch {
	case err == nil:
		if k.fault != "" {
			m.log.Info("the fenced server is marked as a standby now")
		}
		k.why, k.began, k.fault = "", time.Time{}, ""
	case k.fault != err.Error() && (k.fault == "" || err != errUnmarked): //nolint:errorlint // that very one
		k.fault = err.Error()
		m.log.Error("this node was stopped, and stays down: it could not be made a standby yet", "reason", k.why, "err", err, "hint", "Make room on its disk, or mend it. Start it as a standby only: repmgr node rejoin")
		m.noteFence(Event{Type: EventFence, Success: true, Details: fmt.Sprintf("%s; stopped, and not made a standby yet: %v", k.why, err)})
	}
	return err == nil
}

var errUnmarked = fmt.Errorf("its disk does not answer within %s", markLimit)

// unmarked reports whether a fence lacks its marks.
func (m *Monitor) unmarked() bool {
	m.marks.mu.Lock()
	defer m.marks.mu.Unlock()
	return m.marks.why != ""
}

// endMarking waits for the marks that are being written. On a disk that does not
// answer nothing ends them but the end of the process.
func (m *Monitor) endMarking() {
	m.marks.mu.Lock()
	done := m.marks.done
	m.marks.done = nil
	m.marks.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done: //nolint:errcheck // whoever starts the server next looks for the marks
	case <-time.After(markEnd):
		m.log.Error("the marks of a fenced server are not written: its disk does not answer")
	}
}
