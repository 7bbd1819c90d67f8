package chaos

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// The two faults that the peers are measured with.
const (
	killFault = "kill server"
	cutFault  = "cut primary off"
)

// outages measures write outages, alone on the machine: ours so many times, and
// the peer a few times, with its defaults and tuned. Three nodes, one client; of a
// cut, one on each side.
func (s Settings) outages(ctx context.Context, stdout, stderr io.Writer) error {
	s.Topology, s.Pairs = string(Three), 0
	measure := func(suite, only, mode string, runs int, seed uint64) error {
		m := s
		m.Suite, m.Only, m.Mode, m.PerRun = suite, only, mode, runs
		m.Sides = only == cutFault // somebody writes on the wrong side
		fmt.Fprintf(stdout, "%s: %d times %q, synchronous_mode %s\n", suite, runs, only, mode)
		return m.isolate(ctx, stdout, stderr, seed, "-alone")
	}
	for i, mode := range []string{"off", "quorum"} {
		seed := s.Seed + uint64(10*i)
		if err := measure("ours", killFault, mode, s.Outage, seed); err != nil {
			return err
		}
		if err := measure("ours", "kill postmaster", mode, s.Outage, seed+1); err != nil {
			return err
		}
		if err := measure("ours", cutFault, mode, max(1, s.Outage/5), seed+2); err != nil {
			return err
		}
	}
	if Peer(s.PgBin, false).Missing() != nil || s.PeerRuns == 0 {
		fmt.Fprintln(stdout, "repmgr 5 is not measured: it is not installed (scripts/deps bench does it), or -peer-runs is 0")
		return nil
	}
	for i, only := range []string{killFault, cutFault} {
		if err := measure("tuned", only, "off", 2*s.PeerRuns, s.Seed+100+uint64(i)); err != nil {
			return err
		}
		if err := measure("peer", only, "off", s.PeerRuns, s.Seed+200+uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// soak keeps the weather bad and the processor busy for so long. Every minute is
// one result: what counts is that no failover happens and no row is lost.
func (r *runner) soak(ctx context.Context, d time.Duration) error {
	const piece = time.Minute
	if err := r.rebuild(ctx); err != nil {
		return err
	}
	defer r.stopWriters()
	storm := Nemesis{Name: "soak: 200 ms of jitter, 20 % loss, processor starved", Expect: None, Patient: true, Do: func(ctx context.Context, s *scene) error {
		for _, n := range s.c.nodes {
			if s.c.net == nil {
				break
			}
			if err := s.c.net.setWeather(n.name(), Weather{Jitter: 200 * time.Millisecond, Loss: 0.2}, s.rng.Uint64()); err != nil {
				return err
			}
		}
		starve, _ := FindNemesis("processor starved")
		return starve.Do(ctx, s)
	}, Undo: func(_ context.Context, s *scene) error {
		for _, n := range s.c.nodes {
			if s.c.net != nil {
				s.c.net.calm(n.name())
			}
		}
		return nil
	}}
	for began, i := time.Now(), 0; time.Since(began) < d; i++ {
		storm.Hold = span(min(piece, d), min(piece, d))
		res, err := r.faultOf(ctx, Fault{N: i + 1, Seed: r.plan.Seed + uint64(i)}, storm)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.emit(res)
		if res.Rebuilt {
			if err := r.rebuild(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// summary of the results of one nemesis and mode.
type summary struct {
	Suite, Nemesis, Mode          string
	N, Failovers, False, Lost     int
	Fenced, Rebuilt, Helped, Fell int
	Outages, Follows, Healed      []float64
	FencedFor                     int64
	Acked                         int
	Alone                         bool
	problems                      map[string]int
}

// summarise groups results, in the order of [Nemeses], pairs last.
func summarise(results []Result) (all []*summary) {
	find := map[string]*summary{}
	order := []string{}
	for _, r := range results {
		name := r.Nemesis
		if strings.Contains(name, " + ") {
			name = "two at once"
		}
		key := r.Suite + "/" + name + "/" + r.Mode
		s := find[key]
		if s == nil {
			s = &summary{Suite: r.Suite, Nemesis: name, Mode: r.Mode, Alone: true, problems: map[string]int{}}
			find[key] = s
			order = append(order, key)
		}
		s.add(r)
	}
	rank := map[string]int{"two at once": 1000}
	for i, n := range Nemeses() {
		rank[n.Name] = i
	}
	for _, key := range order {
		all = append(all, find[key])
	}
	sortStable(all, func(a, b *summary) int {
		if a.Suite != b.Suite {
			return strings.Compare(a.Suite, b.Suite)
		}
		if d := rank[a.Nemesis] - rank[b.Nemesis]; d != 0 {
			return d
		}
		return strings.Compare(a.Mode, b.Mode)
	})
	return all
}

func (s *summary) add(r Result) {
	s.N++
	s.Acked += r.Acked
	s.Lost += r.Lost
	s.Fenced += r.Fenced
	s.FencedFor = max(s.FencedFor, r.FencedForMS)
	s.Alone = s.Alone && r.Alone
	s.Outages = append(s.Outages, r.OutageMS)
	if !r.Rebuilt {
		s.Healed = append(s.Healed, float64(r.HealedMS))
	}
	if r.FollowMS >= 0 {
		s.Follows = append(s.Follows, r.FollowMS)
	}
	if r.Promotions > 0 {
		s.Failovers++
	}
	count := func(n *int, yes bool) {
		if yes {
			*n++
		}
	}
	count(&s.False, r.FalseFailover)
	count(&s.Rebuilt, r.Rebuilt)
	count(&s.Helped, r.Helped)
	count(&s.Fell, len(r.Problems) > 0)
	for _, p := range r.Problems {
		s.problems[p]++
	}
}
