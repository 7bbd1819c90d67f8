package web

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/topology"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/wal"
)

const (
	trailEvery = 5 * time.Second
	trailFor   = 10 * time.Minute
)

// trail is what views of the last minutes have said of the lag of the standbys and of the WAL of the primary. It is safe for
// concurrent use.
type trail struct {
	mu   sync.Mutex
	past []moment // the oldest first; no more than fit into trailFor
}

type moment struct {
	at       time.Time
	end      wal.LSN         // of the WAL of the primary; 0: not known
	unplayed map[int32]int64 // what standbys had not replayed, where that is known
}

// note remembers what a view says, where the one before was trailEvery ago.
func (t *trail) note(v health.View) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.past); n > 0 && v.At.Sub(t.past[n-1].at) < trailEvery {
		return
	}
	m := moment{at: v.At, unplayed: map[int32]int64{}}
	for _, n := range nodesOf(v) {
		if n.Unplayed >= 0 {
			m.unplayed[n.ID] = n.Unplayed
		}
		if n.Writes && n.Mood == topology.Well {
			m.end = n.LSN
		}
	}
	t.past = append(slices.DeleteFunc(t.past, func(old moment) bool { return v.At.Sub(old.at) > trailFor }), m)
}

// keep looks at the memory of the Monitor until ctx ends, also where nobody asks anything.
func (h *handler) keep(ctx context.Context) {
	for h.view(); wait.Pause(ctx, trailEvery) == nil; h.view() {
	}
}

// value is one of a course; -1: not known.
type value struct {
	at    time.Time
	bytes int64
}

// lag is the course of what a standby had not replayed.
func (t *trail) lag(id int32) (all []value) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.past {
		bytes, known := m.unplayed[id]
		if !known {
			bytes = -1
		}
		all = append(all, value{m.at, bytes})
	}
	return all
}

// rate is the course of how much WAL the primary wrote in a second. Where another one was promoted it may go back.
func (t *trail) rate() (all []value) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := 1; i < len(t.past); i++ {
		a, b := t.past[i-1], t.past[i]
		bytes := int64(-1)
		if a.end != 0 && b.end >= a.end {
			bytes = int64(float64(b.end.Bytes(a.end)) / b.at.Sub(a.at).Seconds())
		}
		all = append(all, value{b.at, bytes})
	}
	return all
}

// spark is a course as a small picture.
type spark struct {
	Text  string   // what it shows, for those who do not see it
	Most  string   // its greatest value
	Lines []string // the points of each part without a gap
}

const sparkWidth, sparkHeight = 120.0, 24.0 // as the template and the style sheet have it

// newSpark draws a course. Values up to least do not reach the top. nil: there are not two values to draw.
func newSpark(all []value, now time.Time, least int64, what, per string) *spark {
	known := slices.DeleteFunc(slices.Clone(all), func(v value) bool { return v.bytes < 0 })
	if len(known) < 2 {
		return nil
	}
	byBytes := func(a, b value) int { return int(min(1, max(-1, a.bytes-b.bytes))) }
	low, high := slices.MinFunc(known, byBytes).bytes, slices.MaxFunc(known, byBytes).bytes
	s := &spark{Most: "up to " + wording.Bytes(high) + per}
	s.Text = fmt.Sprintf("%s in the last %s: %s to %s%s; last %s", what, span(now.Sub(known[0].at)), wording.Bytes(low), wording.Bytes(high), per, wording.Bytes(known[len(known)-1].bytes))
	var line []string
	end := func() {
		if len(line) > 0 {
			s.Lines = append(s.Lines, strings.Join(append(line, line[len(line)-1]), " ")) // the last point twice: one alone is a dot
		}
		line = nil
	}
	var before time.Time
	for _, v := range all {
		if v.bytes < 0 || v.at.Sub(before) > 3*trailEvery {
			end()
		}
		if before = v.at; v.bytes >= 0 {
			x := sparkWidth * (1 - now.Sub(v.at).Seconds()/trailFor.Seconds())
			y := sparkHeight - 1 - (sparkHeight-2)*float64(v.bytes)/float64(max(high, least))
			line = append(line, fmt.Sprintf("%.1f,%.1f", max(0, x), y))
		}
	}
	end()
	return s
}

func span(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return fmt.Sprintf("%d min", int(d.Minutes()))
}

const leastRate = 64 << 10 // bytes in a second

// of is the course of a node: of the primary its WAL, of a standby its lag; nil: there is nothing to draw.
func (t *trail) of(n node, now time.Time) *spark {
	switch {
	case n.Votes:
		return nil
	case n.Writes:
		return newSpark(t.rate(), now, leastRate, "WAL that "+n.Name+" wrote", " per second")
	}
	return newSpark(t.lag(n.ID), now, topology.Much, "WAL that "+n.Name+" had not replayed", "")
}
