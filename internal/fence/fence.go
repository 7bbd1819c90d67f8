package fence

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	markLimit = time.Second     // how long a fence waits for its marks; they are written in the background
	markAgain = time.Second     // the time between two attempts that failed
	markEnd   = 5 * time.Second // how long a daemon that ends waits for a disk that does not answer
)

// marks are the files that let a fenced server come back only as a standby. They are written
// after the server was ended, because that must not wait for a disk. Until they are written
// the server is ended again whenever somebody starts it.
type marks struct {
	mu    sync.Mutex // held over a fence: one at a time
	why   string     // the reason of the fence whose marks are not written yet; empty: there is none
	done  chan error // the result of a running attempt, with capacity 1; nil: no attempt runs
	began time.Time
	fault string // the error of writing the marks that was last reported

	unfenced map[string]string // the errors of failed fences that were last reported, by the reason of the fence
}

// Fence ends the local server at once, and starts it again as a standby without an
// upstream. It reports whether the server has ended. While its marks as a standby can not
// be written it stays down, and Run goes on trying.
func (g *Guard) Fence(ctx context.Context, why string) bool {
	s := g.settings.Load()
	if !g.stop(ctx, s, why) {
		return false
	}
	if g.keepDown(ctx, s) {
		g.startFenced(ctx, s)
	}
	return true
}

// stop ends the local server at once. It does so before the marks are written, and needs
// nothing but the server's processes, because the disk of the data directory may be what has
// failed. It reports whether the server has ended; keepDown must be called next.
func (g *Guard) stop(ctx context.Context, s *Settings, why string) bool {
	start := time.Now()
	g.marks.mu.Lock()
	srv, err := g.stoppable(s)
	if err == nil {
		err = srv.Fence(ctx)
	}
	if err != nil {
		defer g.marks.mu.Unlock()
		if text := err.Error(); g.marks.unfenced[why] != text {
			if g.marks.unfenced == nil {
				g.marks.unfenced = map[string]string{}
			}
			g.marks.unfenced[why] = text
			s.Logger.Error("this node could not be fenced: it may accept writes while another node is the primary", "reason", why, "err", err, "hint", failure.Hint(err))
			g.tell(registry.Event{Type: registry.EventFence, Details: fmt.Sprintf("not fenced (%s): %v", why, err)})
		}
		return false
	}
	s.Logger.Warn("this node was fenced", "reason", why, "elapsed", time.Since(start))
	g.noteFenced(why)
	g.marks.why, g.marks.fault, g.marks.unfenced = why, "", nil
	g.tell(registry.Event{Type: registry.EventFence, Success: true, Details: why})
	g.marks.mu.Unlock()
	return true
}

func (g *Guard) noteFenced(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fenced, g.fencedAt, g.primarySince = why, time.Now(), time.Time{}
}

func (g *Guard) lastFence() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fenced
}

// stoppable is the local server as it was when the ability to stop it was last shown. Finding
// it again could need its disk.
func (g *Guard) stoppable(s *Settings) (*postmaster.Server, error) {
	g.mu.Lock()
	srv, elsewhere, dir := g.srv, g.elsewhere, g.dir
	g.mu.Unlock()
	switch {
	case elsewhere:
		return nil, failure.Of(failure.ErrRefused, "its server runs on another machine")
	case srv != nil:
		return s.At(srv.Dir), nil
	}
	return s.Find(dir)
}

// keepDown writes the marks of the last fence, and ends whatever was started before they are
// written. It reports whether all marks are there.
func (g *Guard) keepDown(ctx context.Context, s *Settings) bool {
	k := &g.marks
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.why == "" {
		return true
	}
	srv, err := g.stoppable(s)
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
	if len(srv.Processes()) > 0 { // it was started by somebody else, perhaps as a primary
		if errFence := srv.Fence(ctx); errFence != nil {
			return false
		}
	}
	switch {
	case err == nil:
		if k.fault != "" {
			s.Logger.Info("the fenced server is marked as a standby now")
		}
		k.why, k.began, k.fault = "", time.Time{}, ""
	case k.fault != err.Error() && (k.fault == "" || err != errUnmarked): //nolint:errorlint // only this error value
		k.fault = err.Error()
		s.Logger.Error("this node was stopped, and stays down: it could not be made a standby yet", "reason", k.why, "err", err, "hint", "Make room on its disk, or mend it. Start it as a standby only: repmgr node rejoin")
		g.tell(registry.Event{Type: registry.EventFence, Success: true, Details: fmt.Sprintf("%s; stopped, and not made a standby yet: %v", k.why, err)})
	}
	return err == nil
}

var errUnmarked = fmt.Errorf("its disk does not answer within %s", markLimit)

// Unmarked reports whether the marks of a fence are not written yet.
func (g *Guard) Unmarked() bool {
	g.marks.mu.Lock()
	defer g.marks.mu.Unlock()
	return g.marks.why != ""
}

// endMarking waits for the marks that are being written. On a disk that does not answer, only
// the end of the process ends that.
func (g *Guard) endMarking() {
	g.marks.mu.Lock()
	done := g.marks.done
	g.marks.done = nil
	g.marks.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done: //nolint:errcheck // the next start of the server checks for the marks
	case <-time.After(markEnd):
		g.settings.Load().Logger.Error("the marks of a fenced server are not written: its disk does not answer")
	}
}

// startFenced starts a fenced server that does not run, as a standby without an upstream.
func (g *Guard) startFenced(ctx context.Context, s *Settings) {
	srv, err := s.Find(g.DataDirectory())
	if err != nil || srv.Runs() {
		return
	}
	mark, why := srv.ReadMark()
	if mark == nil || g.isSuspended() {
		return
	}
	if err = srv.Detach(); err == nil {
		err = srv.Start(ctx)
	}
	if err != nil {
		s.Logger.Warn("the fenced server does not start as a standby yet", "err", err, "hint", failure.Hint(err))
		_ = wait.Pause(ctx, s.SilenceTimeout)
		return
	}
	if why != g.lastFence() { // the watchdog process has fenced it
		g.tell(registry.Event{Type: registry.EventFence, Success: true, At: mark.ModTime(), Details: why})
	}
	g.marks.mu.Lock() // a fence that goes on beside this one writes its mark while it holds the lock
	defer g.marks.mu.Unlock()
	_ = srv.Unmark(mark)
}

// VoidMark removes the mark of a fence that the local server, which runs, has outlived: it was
// started since. Two processes may fence a server at once, and the mark of the second is there when
// what followed from the first is over; later it would make a standby of a primary that was shut down.
func (g *Guard) VoidMark(started time.Time) {
	srv, err := g.stoppable(g.settings.Load())
	if err != nil {
		return
	}
	mark, why := srv.ReadMark() // without the lock: a fence must not wait for the disk
	if mark == nil || !mark.ModTime().Before(started) || !g.marks.mu.TryLock() {
		return // TryLock: a fence goes on
	}
	defer g.marks.mu.Unlock()
	if g.marks.why != "" {
		return
	}
	if err := srv.Unmark(mark); err == nil {
		g.settings.Load().Logger.Info("the mark of a fence was removed: the server was started since", "reason", why)
	}
}

// killLeftovers ends the processes that a dead postmaster has left behind, because they can
// still commit. A server that is just starting is left alone.
func (g *Guard) killLeftovers(ctx context.Context, s *Settings) {
	srv, err := s.Find(g.DataDirectory())
	if err != nil || srv.Runs() {
		return
	}
	killed, err := srv.KillChildren(ctx)
	if killed > 0 {
		s.Logger.Warn("the postmaster is dead: processes that it left behind were killed", "processes", killed)
	}
	if err != nil {
		s.Logger.Warn("the postmaster is dead, and processes that it left behind may still run", "err", err)
	}
}
