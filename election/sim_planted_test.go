package election_test

import (
	"strings"
	"testing"
)

// planted are faults of the protocol, each a switch in the simulation. The
// simulation is worth something as long as it finds every one of them; what it
// says of it begins with, or holds, these words.
var planted = map[string]string{
	"no fence":                        "both accepted writes",
	"no quorum":                       "",
	"reversed ranking":                "lost",
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

// TestSim_Planted holds that the simulation finds each planted fault.
func TestSim_Planted(t *testing.T) {
	t.Parallel()
	for bug, words := range planted {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			first := suspects[bug]
			if first == 0 {
				first = 1
			}
			limit := first + count("SIM_PLANTED", 300)
			for seed := first; seed < limit; seed++ {
				w := newWorld(seed, bug)
				broken := w.run()
				if len(broken) == 0 || words != "" && !strings.Contains(broken[0], words) {
					continue
				}
				t.Logf("seed %d of %d: %s", seed, limit-1, broken[0])
				return
			}
			t.Errorf("not found in seeds %d to %d: the simulation is too weak", first, limit-1)
		})
	}
}

// suspects are where to begin to look for what is rare.
var suspects = map[string]uint64{}
