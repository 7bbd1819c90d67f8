package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Plan is the schedule of one run: one cluster and the faults that it meets, one
// after the other. It follows from its options alone.
type Plan struct {
	PlanOptions
	Faults []Fault
}

// PlanOptions are what a plan is made from. Topology and Mode may be lists, with
// commas: the seed chooses.
type PlanOptions struct {
	Seed     uint64
	Count    int
	Topology string
	Mode     string   // off or quorum
	Only     []string // nemeses: names, or beginnings of names and *; empty: all
	PairsPct int      // how many of a hundred faults are two at once
	Each     bool     // every nemesis once and in turn: Count and PairsPct do not matter
	Plain    bool
	Peer     bool
	Ext4     bool // the disks can be frozen
}

// Fault is one entry of a plan.
type Fault struct {
	N       int
	Nemeses []string      // one or two
	Seed    uint64        // of the choices that are made when it happens
	Later   time.Duration // of the second one, after the first
	Settle  time.Duration // quiet time before
}

func (f Fault) String() string { return strings.Join(f.Nemeses, " + ") }

// NewPlan draws the plan.
func NewPlan(o PlanOptions) (Plan, error) {
	rng := rand.New(rand.NewPCG(o.Seed, 0x6368616f73))
	topologies, modes := strings.Split(o.Topology, ","), strings.Split(o.Mode, ",")
	o.Topology = topologies[rng.IntN(len(topologies))]
	o.Mode = modes[rng.IntN(len(modes))]
	if Topology(o.Topology).data() == 0 {
		return Plan{}, fmt.Errorf("topology %q: want %s, %s, %s, %s or %s", o.Topology, Three, ThreeWitness, Five, TwoWitness, TwoEtcd)
	}
	if o.Mode != "off" && o.Mode != "quorum" {
		return Plan{}, fmt.Errorf("mode %q: want off or quorum", o.Mode)
	}
	var all, pairs []Nemesis
	for _, n := range Nemeses() {
		if !o.wants(n.Name) || !n.Needs.met(Topology(o.Topology), o.Plain, o.Peer, o.Ext4, o.Mode == "quorum") {
			continue
		}
		all = append(all, n)
		if n.Pairs {
			pairs = append(pairs, n)
		}
	}
	if len(all) == 0 {
		return Plan{}, fmt.Errorf("no nemesis of %q fits topology %s", o.Only, o.Topology)
	}
	p := Plan{PlanOptions: o}
	if o.Each {
		for i, n := range all {
			p.Faults = append(p.Faults, Fault{N: i + 1, Nemeses: []string{n.Name}, Seed: rng.Uint64(), Settle: moment})
		}
		return p, nil
	}
	for i := range o.Count {
		f := Fault{N: i + 1, Seed: rng.Uint64(), Settle: time.Duration(200+rng.IntN(800)) * time.Millisecond}
		two := rng.IntN(100) < o.PairsPct && len(pairs) > 1
		if two {
			first, second := draw(rng, pairs), draw(rng, pairs)
			f.Nemeses, f.Later = []string{first, second}, time.Duration(rng.IntN(2000))*time.Millisecond
		} else {
			f.Nemeses = []string{draw(rng, all)}
		}
		p.Faults = append(p.Faults, f)
	}
	return p, nil
}

func (o PlanOptions) wants(name string) bool {
	return len(o.Only) == 0 || slices.ContainsFunc(o.Only, func(s string) bool {
		start, open := strings.CutSuffix(s, "*")
		return name == s || open && strings.HasPrefix(name, start)
	})
}

func draw(rng *rand.Rand, from []Nemesis) string {
	sum := 0
	for _, n := range from {
		sum += n.Weight
	}
	at := rng.IntN(sum)
	for _, n := range from {
		if at -= n.Weight; at < 0 {
			return n.Name
		}
	}
	return from[0].Name
}
