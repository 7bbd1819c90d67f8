package basebackup

import (
	"sync"
	"sync/atomic"
	"time"
)

const progressInterval = 100 * time.Millisecond

// meter counts what a copy has done. Its fields are written by the goroutines
// that do the work and read by the one that reports.
type meter struct {
	phase                         atomic.Value // Phase
	bytes, total, files, walBytes atomic.Int64
	tablespace, tablespaces       atomic.Int64
}

func (m *meter) setPhase(p Phase) { m.phase.Store(p) }

func (m *meter) snapshot() Progress {
	p, _ := m.phase.Load().(Phase)
	return Progress{
		Phase: p, Bytes: m.bytes.Load(), TotalBytes: m.total.Load(), Files: int(m.files.Load()),
		WALBytes: m.walBytes.Load(), Tablespace: int(m.tablespace.Load()), Tablespaces: int(m.tablespaces.Load()),
	}
}

// report calls f until the returned func is called, which waits for the last call.
func (m *meter) report(f func(Progress)) (stop func()) {
	m.setPhase(PhaseConnect)
	if f == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(progressInterval)
		defer t.Stop()
		for {
			f(m.snapshot())
			select {
			case <-t.C:
			case <-done:
				f(m.snapshot())
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}
