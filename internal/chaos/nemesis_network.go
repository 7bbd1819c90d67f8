package chaos

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// cuts: packets vanish.
func cuts() []Nemesis {
	const from, to = 6 * time.Second, 9 * time.Second
	cut := func(name string, e Expect, weight int, from, to time.Duration, ways func(s *scene) []way) Nemesis {
		return Nemesis{Name: name, Expect: e, Needs: needsNetwork, Weight: weight, Pairs: true, Hold: span(from, to), Do: func(_ context.Context, s *scene) error {
			return s.c.net.set(dropped, ways(s)...)
		}}
	}
	halves := cut("cut in halves", Either, 15, from, to, func(s *scene) []way {
		order := s.rng.Perm(len(s.c.nodes))
		var left, right []*node
		for i, j := range order {
			if i < len(order)/2 {
				left = append(left, s.c.nodes[j])
			} else {
				right = append(right, s.c.nodes[j])
			}
		}
		s.hit(left...)
		s.target += " |"
		s.hit(right...)
		return both(named(left...), named(right...))
	})
	halves.Needs |= needsTwo
	bridge := cut("bridge node", None, 10, 2*time.Second, 6*time.Second, func(s *scene) []way {
		a, b := s.hit(s.primary()), s.hit(s.standby())
		return both(named(a), named(b))
	})
	bridge.Needs |= needsTwo
	ring := cut("majorities ring", Either, 20, from, to, func(s *scene) (ways []way) {
		s.target = "all"
		order := s.rng.Perm(len(s.c.nodes))
		for i, j := range order {
			for k := i + 2; k < len(order); k++ { // not the neighbours
				if (k+1)%len(order) != i {
					ways = append(ways, both(named(s.c.nodes[j]), named(s.c.nodes[order[k]]))...)
				}
			}
		}
		return ways
	})
	ring.Needs |= needsFive
	witness := cut("cut witness off", None, 5, 2*time.Second, 6*time.Second, func(s *scene) []way {
		n := s.hit(s.c.nodes[len(s.c.nodes)-1])
		return both(named(n), s.others(false, n))
	})
	witness.Needs |= needsWitness
	etcd := cut("cut etcd off", None, 10, 2*time.Second, 6*time.Second, func(s *scene) []way {
		s.target = etcdName
		return both([]string{etcdName}, s.c.names())
	})
	etcd.Needs |= needsEtcd
	frozen := cut("stop daemon of primary and cut it off, clients reach it", Failover, 15, from, to, func(s *scene) []way {
		return both(named(s.primary()), s.others(false, s.primary()))
	})
	off := frozen.Do
	frozen.Pairs, frozen.Do = false, func(ctx context.Context, s *scene) error { // its watchdog has to fence
		return errors.Join(s.freeze(ctx, func(s *scene) []int { return daemonOf(s.hit(s.primary())) }), off(ctx, s))
	}
	return []Nemesis{
		cut("cut primary off", Failover, 30, from, to, func(s *scene) []way {
			n := s.hit(s.primary())
			return both(named(n), s.others(true, n))
		}),
		cut("cut primary off, clients reach it", Failover, 20, from, to, func(s *scene) []way {
			n := s.hit(s.primary())
			return both(named(n), s.others(false, n))
		}),
		frozen,
		cut("primary hears nothing", Failover, 10, from, to, func(s *scene) []way {
			n := s.hit(s.primary())
			return oneWay(s.others(true, n), named(n))
		}),
		cut("primary is not heard", Failover, 10, from, to, func(s *scene) []way {
			n := s.hit(s.primary())
			return oneWay(named(n), s.others(true, n))
		}),
		cut("blink of primary under 1 s", None, 10, 100*time.Millisecond, 900*time.Millisecond, func(s *scene) []way {
			n := s.hit(s.primary())
			return both(named(n), s.others(true, n))
		}),
		cut("cut standby off", None, 10, 2*time.Second, 6*time.Second, func(s *scene) []way {
			n := s.hit(s.standby())
			return both(named(n), s.others(true, n))
		}),
		cut("standby hears nothing", None, 5, 2*time.Second, 6*time.Second, func(s *scene) []way {
			n := s.hit(s.standby())
			return oneWay(s.others(true, n), named(n))
		}),
		cut("standby is not heard", None, 5, 2*time.Second, 6*time.Second, func(s *scene) []way {
			n := s.hit(s.standby())
			return oneWay(named(n), s.others(true, n))
		}),
		cut("everybody alone", Either, 10, 3*time.Second, from, func(s *scene) []way {
			s.target = "all"
			all := s.others(false)
			return both(all, all)
		}),
		halves, bridge, ring, witness, etcd,
		{Name: "flapping primary", Expect: Either, Needs: needsNetwork, Pairs: true, Hold: span(0, moment), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.primary())
			ways := both(named(n), s.others(true, n))
			for range 4 + s.rng.IntN(4) {
				if err := s.c.net.set(dropped, ways...); err != nil {
					return err
				}
				if err := wait.Pause(ctx, time.Duration(200+s.rng.IntN(1500))*time.Millisecond); err != nil {
					return err
				}
				if err := s.c.net.set(delivered, ways...); err != nil {
					return err
				}
				if err := wait.Pause(ctx, time.Duration(100+s.rng.IntN(900))*time.Millisecond); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

// refusals: the network answers for the machine.
func refusals() []Nemesis {
	refuse := func(name string, f fate) Nemesis {
		return Nemesis{Name: name, Expect: Failover, Needs: needsNetwork, Pairs: true, Hold: span(6*time.Second, 9*time.Second), Do: func(_ context.Context, s *scene) error {
			n := s.hit(s.primary())
			return s.c.net.set(f, both(named(n), s.others(true, n))...)
		}}
	}
	pull := func(name string, e Expect, from, to time.Duration, who func(s *scene) *node) Nemesis {
		return Nemesis{Name: name, Expect: e, Needs: needsNetwork, Pairs: true, Hold: span(from, to), Do: func(_ context.Context, s *scene) error {
			return s.c.net.cable(s.hit(who(s)).name(), false)
		}}
	}
	return []Nemesis{
		refuse("primary rejected by reset", reset),
		refuse("primary rejected by ICMP", unreachable),
		pull("cable of primary", Failover, 6*time.Second, 9*time.Second, (*scene).primary),
		pull("cable of standby", None, 2*time.Second, 6*time.Second, (*scene).standby),
	}
}

// weathers: packets are late or get lost.
func weathers() []Nemesis {
	blow := func(name string, from, to time.Duration, w Weather, who func(s *scene) []*node) Nemesis {
		return Nemesis{Name: name, Expect: None, Needs: needsNetwork, Pairs: true, Patient: true, Hold: span(from, to), Do: func(_ context.Context, s *scene) error {
			for _, n := range who(s) {
				s.hit(n)
				if err := s.c.net.setWeather(n.name(), w, s.rng.Uint64()); err != nil {
					return err
				}
			}
			return nil
		}, Undo: func(_ context.Context, s *scene) error {
			for _, n := range s.c.nodes {
				s.c.net.calm(n.name())
			}
			return nil
		}}
	}
	primary := func(s *scene) []*node { return []*node{s.primary()} }
	all := func(s *scene) []*node { return s.c.nodes }
	return []Nemesis{
		blow("200 ms of jitter everywhere", 4*time.Second, 8*time.Second, Weather{Jitter: 200 * time.Millisecond}, all),
		blow("20 % loss at primary", 4*time.Second, 8*time.Second, Weather{Loss: 0.2}, primary),
		blow("200 ms of jitter and 20 % loss at primary", 4*time.Second, 8*time.Second, Weather{Jitter: 200 * time.Millisecond, Loss: 0.2}, primary),
	}
}

// oneWay is the direction from each of these to each of those.
func oneWay(these, those []string) (ways []way) {
	for _, a := range these {
		for _, b := range those {
			if a != b && !slices.Contains(ways, way{a, b}) {
				ways = append(ways, way{a, b})
			}
		}
	}
	return ways
}
