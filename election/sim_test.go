package election_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const bound = 25 * time.Second // for all to be well again after the last fault

// converged is the one primary that every node follows and that acknowledges writes.
func (w *world) converged() *server {
	var one *server
	for _, h := range w.hosts {
		if s := h.s; s.up && s.primary() && !s.starting {
			if one != nil {
				return nil
			}
			one = s
		}
	}
	if one == nil || len(w.judge.acks) == 0 {
		return nil
	}
	for _, h := range w.hosts {
		if s := h.s; s.data() && !s.leads(one) {
			return nil
		}
	}
	if last := w.judge.acks[len(w.judge.acks)-1]; last.srv != one.h.id || w.now-last.at > 500*time.Millisecond {
		return nil
	}
	return one
}

// run lets the world go on until all is well again, or has broken.
func (w *world) run() []string {
	var well time.Duration
	for len(w.judge.broken) == 0 {
		w.step()
		if w.healed == 0 || w.seq%16 != 0 {
			continue
		}
		switch one := w.converged(); {
		case one == nil && w.now-w.healed > bound:
			w.judge.overlaps()
			w.judge.break_("not well again %v after all is healed: %s", bound, w.state())
		case one == nil:
			well = 0
		case well == 0:
			well = w.now
		case w.now-well > 1500*time.Millisecond:
			w.judge.close(one)
			if (w.name == "switchover" || w.name == "restart") && w.judge.lost > 0 {
				w.judge.break_("a %s has lost %d commits", w.name, w.judge.lost)
			}
			if w.name == "harmless" && w.judge.failover > 0 {
				w.judge.break_("a failover although only a standby or a minority was hurt")
			}
			return w.judge.broken
		}
	}
	return w.judge.broken
}

func (w *world) state() string {
	var b strings.Builder
	for _, h := range w.hosts {
		s := h.s
		fmt.Fprintf(&b, "\n\tnode %d: up %v, primary %v, %d on %d, upstream %d (%v), ballot %v, rule %+v, set %+v, monitor %v %q %q %q busy %v", h.id, s.up, s.primary(), len(s.wal), s.tl,
			s.conninfo, s.conn != 0, s.ballot, s.rule(), s.ssn, h.m.up, h.m.st.Reason, h.m.st.Health, h.m.last.Reason, h.m.busy)
	}
	return b.String()
}

func (w *world) describe() string {
	mode := "off"
	if w.quorum {
		mode = "quorum"
	}
	return fmt.Sprintf("%d data nodes, %d voters, synchronous_mode=%s, %s: %v", w.nodes, len(w.hosts), mode, w.name, w.plan)
}

func count(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// TestSim runs clusters of the seeds 1 to SIM_SEEDS (1500), or the one of
// SIM_SEED with its trace, as the stage SIM_STAGE where that is given.
func TestSim(t *testing.T) {
	t.Parallel()
	if seed := count("SIM_SEED", 0); seed > 0 {
		w := newWorld(seed, os.Getenv("SIM_BUG"))
		if st, ok := stages[os.Getenv("SIM_STAGE")]; ok {
			w = st.world(seed, os.Getenv("SIM_BUG"))
		}
		w.tracing = true
		broken := w.run()
		t.Logf("%s\n%s", w.describe(), w.trace.String())
		for _, b := range broken {
			t.Error(b)
		}
		return
	}
	var mu sync.Mutex
	var failovers, apart, lost, acks, bad int
	asked, done := map[string]int{}, map[string]int{}
	first := count("SIM_FROM", 1)
	seeds := count("SIM_SEEDS", 1500)
	each := func(from uint64) {
		for seed := from; seed < first+seeds; seed += 2 {
			w := newWorld(seed, "")
			about := w.describe()
			broken := w.run()
			mu.Lock()
			failovers, apart, lost, acks = failovers+w.judge.failover, apart+w.judge.apart, lost+w.judge.lost, acks+len(w.judge.acks)
			if w.name == "switchover" || w.name == "restart" {
				asked[w.name] += w.asked
				done[w.name] += map[string]int{"switchover": w.judge.failover, "restart": w.restarts}[w.name]
			}
			if len(broken) > 0 {
				if bad++; bad <= 10 {
					t.Errorf("seed %d: %s\n\t%s\n\treplay: SIM_SEED=%d go test ./election -run 'TestSim$' -v", seed, strings.Join(broken, "\n\t"), about, seed)
				}
			}
			mu.Unlock()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { each(first) })
	wg.Go(func() { each(first + 1) })
	wg.Wait()
	for what, all := range asked {
		t.Logf("of %d times %s beside which nothing went wrong %d were done", all, what, done[what])
		if all > 10 && done[what]*3 < all*2 {
			t.Errorf("%s: too few were done", what)
		}
	}
	t.Logf("%d clusters: %d failovers, %d commits acknowledged, %d lost (synchronous_mode=off), %d times two servers accepted writes while one was stopped or back by itself, %d broken", seeds, failovers, acks, lost, apart, bad)
}
