package repmgr

import (
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/internal/nowait"
)

// Sleep lets a Monitor, which must not run yet, believe that its machine sleeps
// whenever the returned func is called.
func (m *Monitor) Sleep() func(time.Duration) {
	var slept atomic.Int64
	m.guard.BootTime = func() time.Duration { return nowait.BootTime() + time.Duration(slept.Load()) }
	return func(d time.Duration) { slept.Add(int64(d)) }
}
