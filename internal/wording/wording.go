package wording

import (
	"fmt"
	"time"
)

// Bytes writes a size as pg_size_pretty does.
func Bytes(n int64) string {
	units := []string{"bytes", "kB", "MB", "GB", "TB", "PB"}
	v, i := n, 0
	for v >= 10*1024 && i < len(units)-1 {
		v = (v + 512) / 1024
		i++
	}
	return fmt.Sprintf("%d %s", v, units[i])
}

// Duration keeps of a time what a person reads.
func Duration(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(time.Millisecond)
	default:
		return d.Round(time.Microsecond)
	}
}

// Scheduled says which switchover is to begin, and when.
func Scheduled(from, to string, at time.Time) string {
	return fmt.Sprintf("A switchover from %s to %s is scheduled. It begins at %s.", from, to, at.Local().Format("2006-01-02 15:04:05 MST"))
}

// PausedBy goes on after "failover is paused": since when, and by whom. A part that is not known is left out.
func PausedBy(since time.Time, by string) (text string) {
	if !since.IsZero() {
		text = " since " + since.Local().Format("2006-01-02 15:04:05 MST")
	}
	if by != "" {
		text += " by " + by
	}
	return text
}

// Count is a number with its noun, such as "1 vote" and "3 votes".
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
