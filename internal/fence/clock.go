package fence

import (
	"context"
	"time"
)

// reading is one moment by three clocks: the wall's, CLOCK_MONOTONIC, which stands
// still while the machine sleeps, and CLOCK_BOOTTIME, which does not.
type reading struct {
	at   time.Time // of the wall, and monotonic
	boot time.Duration
}

// readingTolerance is how close the clocks of a reading must be read after each other.
const readingTolerance = time.Millisecond

// readClocks reads them as if at once: where something came in between, again.
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

// sleptBetween is how much longer it was from one reading to another than the monotonic
// clock says: by CLOCK_BOOTTIME where the machine was suspended, and by the wall
// clock where it was stopped from outside, which nothing inside can tell from a
// clock that was set forward by more than step. 0: it was awake.
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

// sleeps are those of the machine since the lease is kept, the last ones.
type sleeps struct {
	last reading
	past []sleep
}

type sleep struct {
	woke time.Time
	lost time.Duration
}

const sleepsKept = 64

// note takes a reading in, and returns how long the machine slept since the last.
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

// adjusted is a moment of the monotonic clock, as long ago as it truly is: what was
// seen before a sleep is older by that.
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

// checkSleep notices that this machine or this process did not run for a while. What is
// known is then old: everybody is asked anew.
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
		k.sleeps.last = readClocks(k.BootTime) // the waiting was none
	}
}
