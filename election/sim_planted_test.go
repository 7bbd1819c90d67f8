package election_test

import (
	"strings"
	"testing"
	"time"
)

// planted are faults of the protocol, each a switch in the simulation. The
// simulation is worth something as long as it finds every one of them; what it
// says of it begins with, or holds, these words.
var planted = map[string]string{
	"no fence":                        "both accepted writes",
	"no quorum":                       "",
	"reversed ranking":                "",
	"vote not durable":                "went back",
	"pledge keeps the receiver":       "acknowledged to node",
	"no wait":                         "both accepted writes",
	"coverage ignored":                "",
	"set after promote":               "",
	"lower first":                     "",
	"ballot not checked":              "",
	"old primary trusted":             "",
	"dead voters not counted":         "",
	"lease from the end of the round": "both accepted writes",
	"witness told late":               "",
	"follows an older term":           "",
	"open at once":                    "",
}

const forGood = time.Hour

// stages are clusters in which a planted fault must show, and without it nothing.
var stages = map[string]stage{
	// Cut from its standby, but not from the witness: the primary finds out at its next look.
	"no wait": {2, 1, false, 0, []fault{{kind: "cut", at: 4 * time.Second, a: 1, b: 2, d: forGood}}},
	// What only node 2 acknowledged is lost with it; node 3 is behind.
	"coverage ignored": {3, 2, true, 0, []fault{
		{kind: "cut", at: 6 * time.Second, a: 1, b: 3, d: forGood},
		{kind: "host crash", at: 6300 * time.Millisecond, a: 1, d: forGood},
		{kind: "host crash", at: 6300 * time.Millisecond, a: 2, d: forGood},
	}},
	// The winner is lost with its first commits; the former primary is back, and the witness knows of the term.
	"witness told late": {2, 1, true, 0, []fault{
		{kind: "crash", at: 4 * time.Second, a: 1, d: 3 * time.Second}, {kind: "host crash", step: "opened", a: 0, d: forGood},
	}},
	// Node 3 is behind when the primary is lost.
	"reversed ranking": {3, 0, true, 0, []fault{
		{kind: "cut", at: 6 * time.Second, a: 1, b: 3, d: forGood}, {kind: "host crash", at: 6300 * time.Millisecond, a: 1, d: forGood},
	}},
	// Node 2 may not be promoted and acknowledges nothing: the winner goes on alone, and is cut off with what it acknowledged.
	"open at once": {3, 0, true, 2, []fault{
		{kind: "host hang", at: 4 * time.Second, a: 1, d: 5 * time.Second}, {kind: "isolate", step: "promoted", a: 0, d: 8 * time.Second},
	}},
	// The primary is stopped, and goes on while the coordinator is stopped.
	"pledge keeps the receiver": {3, 0, true, 0, []fault{
		{kind: "host hang", at: 4 * time.Second, a: 1, d: 3200 * time.Millisecond}, {kind: "monitor hang", step: "counted", a: 1, d: 2 * time.Second},
	}},
	// An answer that was on its way for long says that the voter was free when it was asked.
	"lease from the end of the round": {2, 1, false, 0, []fault{
		{kind: "slow answers", at: 2 * time.Second, a: 3},
		{kind: "cut", at: 4 * time.Second, a: 1, b: 2, d: forGood},
		{kind: "isolate", step: "recruited", a: 2, d: forGood},
	}},
}

// TestSim_Planted holds that the simulation finds each planted fault.
func TestSim_Planted(t *testing.T) {
	t.Parallel()
	for bug, words := range planted {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			stage, staged := stages[bug]
			first, most := max(1, suspects[bug]), count("SIM_PLANTED", 200)
			for seed := first; seed < first+most; seed++ {
				w := newWorld(seed, bug)
				if staged {
					w = stage.world(seed, bug)
				}
				broken := w.run()
				if len(broken) == 0 || words != "" && !strings.Contains(broken[0], words) {
					continue
				}
				t.Logf("%s: seed %d: %s", bug, seed, broken[0])
				return
			}
			t.Errorf("%s: not found in seeds %d to %d: the simulation is too weak", bug, first, first+most-1)
		})
	}
}

// TestSim_Staged holds that what shows the planted faults is harmless without them.
func TestSim_Staged(t *testing.T) {
	t.Parallel()
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range count("SIM_PLANTED", 200) / 4 {
				if broken := stage.world(seed, "").run(); len(broken) > 0 {
					t.Fatalf("seed %d: %s", seed, strings.Join(broken, "\n"))
				}
			}
		})
	}
}

// suspects are where to begin to look for what is rare.
var suspects = map[string]uint64{"ballot not checked": 230, "follows an older term": 270, "lower first": 70, "set after promote": 145}
