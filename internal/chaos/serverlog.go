package chaos

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A server's log tells to the millisecond what no poll would: when it was
// promoted, and when it began to stream. The prefix is '%n [%p] '.

// logEvent is a line of a server's log that matters here.
type logEvent struct {
	At       time.Time
	Node     int
	What     what
	Timeline int
}

type what string

const (
	chosen    what = "timeline chosen"   // by a promotion
	promoted  what = "promoted"          // commits are possible from here on
	streaming what = "streaming started" // by a standby
)

var logLine = regexp.MustCompile(`^(\d+)\.(\d{3}) \[\d+\] LOG:  (selected new timeline ID: (\d+)|archive recovery complete|(?:started streaming WAL from primary|restarted WAL streaming) at \S+ on timeline (\d+))`)

// readLog returns what a log says from an offset on, and where it ended.
func (n *node) readLog(from int64) (events []logEvent, end int64) {
	f, err := os.Open(n.logFile())
	if err != nil {
		return nil, from
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, from
	}
	b, _ := io.ReadAll(f)
	if cut := bytes.LastIndexByte(b, '\n'); cut >= 0 {
		return parseLog(n.id, string(b[:cut+1])), from + int64(cut) + 1
	}
	return nil, from
}

// parseLog knows that the timeline of a promotion is named a few lines before it is complete.
func parseLog(node int, text string) (events []logEvent) {
	timeline := 0
	for line := range strings.Lines(text) {
		m := logLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		seconds, _ := strconv.ParseInt(m[1], 10, 64)
		millis, _ := strconv.ParseInt(m[2], 10, 64)
		e := logEvent{At: time.UnixMilli(seconds*1000 + millis), Node: node}
		switch {
		case m[4] != "":
			timeline, _ = strconv.Atoi(m[4])
			e.What, e.Timeline = chosen, timeline
		case m[5] != "":
			e.What = streaming
			e.Timeline, _ = strconv.Atoi(m[5])
		case timeline != 0:
			e.What, e.Timeline = promoted, timeline
			timeline = 0
		default:
			continue // recovery from a backup or after a crash
		}
		events = append(events, e)
	}
	return events
}
