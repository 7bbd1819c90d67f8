package fence

import (
	"context"
	"time"
)

// reading is one moment on three clocks: the wall clock, CLOCK_MONOTONIC, which stands still
// while the machine is suspended, and CLOCK_BOOTTIME, which does not.
type reading struct {
	at   time.Time // the wall clock and the monotonic clock
	boot time.Duration
}

// readingTolerance is the longest time that may pass between reading the clocks of one reading.
const readingTolerance = time.Millisecond

// readClocks reads the clocks nearly at the same moment. Where something came in between, it
// tries again.
func readClocks(boot func() time.Duration) (r reading) {
	best := time.Hour
	for range 5 {
		before := time.Now()
		b := boot()
		if after := time.Now(); after.Sub(before) < best {
			best, r = after.Sub(before), reading{after, b}
		}
		if best < readingTolerance {
			break
		}
	}
	return r
}

// sleptBetween is how much more time passed between two readings than the monotonic clock
// shows: by CLOCK_BOOTTIME where the machine was suspended, and by the wall clock where a
// virtual machine was stopped from outside. The second can not be told from a clock that was
// set forward, so only a jump of more than step counts. 0: the machine was awake.
func sleptBetween(from, to reading, step time.Duration) time.Duration {
	mono := to.at.Sub(from.at)
	lost := to.boot - from.boot - mono
	if lost < 20*readingTolerance {
		lost = 0
	}
	if jump := to.at.Round(0).Sub(from.at.Round(0)) - mono; jump > step {
		lost = max(lost, jump)
	}
	return lost
}

// sleeps are the last times for which the machine was suspended, since the lease is kept.
type sleeps struct {
	last reading
	past []sleep
}

type sleep struct {
	woke time.Time
	lost time.Duration
}

const sleepsKept = 64

// note adds a reading, and returns how long the machine slept since the reading before.
func (s *sleeps) note(now reading, step time.Duration) (lost time.Duration) {
	if !s.last.at.IsZero() {
		lost = sleptBetween(s.last, now, step)
	}
	s.last = now
	if lost > 0 {
		s.past = append(s.past, sleep{now.at, lost})
		s.past = s.past[max(0, len(s.past)-sleepsKept):]
	}
	return lost
}

// adjusted moves a moment of the monotonic clock back by the sleeps since then, so that its age
// is the true one.
func (s *sleeps) adjusted(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	lost := time.Duration(0)
	for _, p := range s.past {
		if t.Before(p.woke) {
			lost += p.lost
		}
	}
	return t.Add(-lost)
}

// checkSleep notices that this machine or this process did not run for a while. What is known
// of the voters is then old, so all of them are probed again.
func (k *leaseKeeper) checkSleep(ctx context.Context, s *Settings) {
	was := k.sleeps.last.at
	now := readClocks(k.BootTime)
	lost := k.sleeps.note(now, s.heartbeatInterval())
	stopped := !was.IsZero() && now.at.Sub(was) > s.heartbeatInterval()*3/2
	if lost > 0 {
		s.Logger.Warn("this machine was asleep, or its clock was set forward: what was known is older than it seemed, and the voters are asked anew", "for", lost.Round(time.Millisecond))
	}
	if lost > 0 || stopped {
		k.watch.RefreshAll(ctx, 2*s.heartbeatInterval())
		k.sleeps.last = readClocks(k.BootTime) // the time of the probes was no sleep
	}
}
