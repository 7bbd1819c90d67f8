package chaos

import (
	"context"
	"math/rand/v2"
	"time"
)

// Expect is what a cluster should make of a fault.
type Expect string

const (
	Failover Expect = "failover" // another node takes over
	None     Expect = "none"     // the primary stays: anything else is a false failover
	Either   Expect = "either"   // both are right
)

// Nemesis is a kind of fault.
type Nemesis struct {
	Name    string
	Expect  Expect
	Needs   need             // what it can not do without
	Hold    [2]time.Duration // how long the fault stays, at least and at most
	Weight  int              // how often a plan draws it; 0: 10
	Pairs   bool             // it may come together with another one
	Patient bool             // clients wait longer for their answers meanwhile: the line is slow
	Steady  bool             // the primary's server must not be ended by anybody
	Helped  bool             // it may be that an operator has to start the primary again: nobody could take its place without a loss
	Do      func(ctx context.Context, s *scene) error
	Undo    func(ctx context.Context, s *scene) error // nil: the fault is over by itself, or what every fault's end does is enough
}

// need is a set of conditions of a nemesis.
type need int

const (
	needsNetwork  need = 1 << iota // network namespaces
	needsTwo                       // at least two standbys
	needsFive                      // five data nodes
	needsWitness                   // a witness
	needsEtcd                      // an etcd
	needsDieAt                     // a daemon that heeds REPMGR_TEST_DIE_AT
	needsExt4                      // disks that can be frozen: -ext4
	needsFailover                  // a daemon of ours with its command line
	needsOff                       // synchronous_mode=off
)

// met tells whether a cluster has what is needed.
func (n need) met(t Topology, plain, peer, ext4, quorum bool) bool {
	has := func(bit need, there bool) bool { return n&bit == 0 || there }
	return has(needsNetwork, !plain) && has(needsTwo, t.data() >= 3) && has(needsFive, t.data() >= 5) &&
		has(needsWitness, t.witness()) && has(needsEtcd, t == TwoEtcd) && has(needsExt4, ext4 && !plain) && has(needsDieAt, !peer) && has(needsFailover, !peer) && has(needsOff, !quorum)
}

// scene is one fault as it happens: the cluster, who is who when it begins, and
// what the fault leaves for its end. All chance comes from rng.
type scene struct {
	c       *cluster
	before  state
	rng     *rand.Rand
	target  string // who was hit, for the report
	picked  *node  // the standby of the fault
	second  bool   // another fault of the same moment came before
	cleanup []func()
	at      time.Time                         // when the fault began, where there was something to prepare; zero: at once
	expect  Expect                            // where it depends on the cluster; empty: as the nemesis says
	steady  bool                              // the primary's server must not be ended by anybody
	stray   *node                             // it was promoted by hand: what it acknowledges is nobody's promise
	after   []func(ctx context.Context) error // when all is well again: what had to stay until then is taken back
}

// now ends the preparation: the fault begins.
func (s *scene) now() { s.at = time.Now() }

func (s *scene) primary() *node { return s.before.Primary }

// standby picks one standby, for the whole fault.
func (s *scene) standby() *node {
	if s.picked == nil {
		all := s.c.standbys(s.before.Primary)
		s.picked = all[s.rng.IntN(len(all))]
	}
	return s.picked
}

// hit notes the target.
func (s *scene) hit(nodes ...*node) *node {
	for _, n := range nodes {
		if s.target != "" {
			s.target += ","
		}
		s.target += n.name()
		if n == s.before.Primary {
			s.target += " (primary)"
		}
	}
	return nodes[0]
}

// others are the names of all machines but these, clients and etcd too when asked.
func (s *scene) others(clients bool, but ...*node) (names []string) {
	for _, n := range s.c.nodes {
		out := false
		for _, b := range but {
			out = out || n == b
		}
		if !out {
			names = append(names, n.name())
		}
	}
	if s.c.etcd != nil {
		names = append(names, etcdName)
	}
	if clients {
		names = append(names, s.c.client.name)
	}
	return names
}

func named(nodes ...*node) (names []string) {
	for _, n := range nodes {
		names = append(names, n.name())
	}
	return names
}

func span(from, to time.Duration) [2]time.Duration { return [2]time.Duration{from, to} }

// Nemeses are all kinds of faults, in the order of the report.
func Nemeses() []Nemesis {
	var all []Nemesis
	all = append(all, killings()...)
	all = append(all, stops()...)
	all = append(all, operators()...)
	all = append(all, exhaustions()...)
	all = append(all, cuts()...)
	all = append(all, refusals()...)
	all = append(all, weathers()...)
	all = append(all, replays()...)
	all = append(all, strays()...)
	all = append(all, configurations()...)
	all = append(all, namesakes()...)
	all = append(all, append(switchovers(all), restarts(all)...)...)
	for i := range all {
		if all[i].Weight == 0 {
			all[i].Weight = 10
		}
	}
	return all
}

// FindNemesis returns the nemesis of that name.
func FindNemesis(name string) (Nemesis, bool) {
	for _, n := range Nemeses() {
		if n.Name == name {
			return n, true
		}
	}
	return Nemesis{}, false
}
