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

	// How a former version of the protocol did it.
	"believes the setting":         "",
	"pledge waits for replay":      "nobody serves",
	"archive stays attached":       "from the archive",
	"blind resume":                 "",
	"elected at its target":        "lacks",
	"duplicate counts":             "",
	"unknown sender is life":       "nobody serves",
	"markers before the kill":      "both accepted writes",
	"unreadable ballot votes":      "voted in term",
	"held by a later pledge":       "",
	"cascade left in place":        "nobody serves",
	"stray may win":                "",
	"a segment names the timeline": "",
	"rogue is left alone":          "",
	"fence is believed":            "both accepted writes",
	"manual is replaced":           "both accepted writes",
	"one-sided pause":              "both accepted writes",
	"rejected is fenced":           "nobody serves",
	"recovery for ever":            "nobody serves",
	"monotonic lease":              "both accepted writes",
	"an equal one replaces it":     "is fenced for another",
	"what it had before":           "is fenced for another",
	"silent and so behind":         "is fenced for another",

	"a handover is forgotten":   "nobody serves",
	"no lease after a handover": "nobody serves", // but the one that is cut off
	"restarts without a look":   "both accepted writes",
}

const forGood = time.Hour

// stages are clusters in which a planted fault must show, and without it nothing.
var stages = map[string]stage{
	// The standby comes back after a long absence, the checkpointer is busy, and the primary is cut off.
	"believes the setting": {nodes: 2, witnesses: 1, quorum: true, busy: true, plan: []fault{
		{kind: "crash", at: 3 * time.Second, a: 2, d: 6 * time.Second}, {kind: "isolate", at: 11500 * time.Millisecond, a: 1, d: forGood},
	}},
	"pledge waits for replay": {nodes: 3, quorum: true, served: another, plan: []fault{
		{kind: "long query", at: 3 * time.Second, a: 3, d: forGood}, {kind: "host crash", at: 6 * time.Second, a: 1, d: forGood},
	}},
	"blind resume": {nodes: 3, quorum: true, served: another, plan: []fault{
		{kind: "narrow", at: 3 * time.Second, a: 3, d: forGood}, {kind: "host crash", at: 6 * time.Second, a: 1, d: forGood},
	}},
	// Node 3 stands at a recovery target: to resume it promotes it, with what it had replayed.
	"elected at its target": {nodes: 3, quorum: true, plan: []fault{
		{kind: "target", at: 3 * time.Second, a: 3, d: forGood}, {kind: "host crash", at: 6 * time.Second, a: 1, d: forGood},
	}},
	"unknown sender is life": {nodes: 4, served: another, plan: []fault{
		{kind: "unnamed", at: time.Second, a: 4, d: forGood}, {kind: "cascade", at: 2 * time.Second, a: 4, b: 2, d: forGood}, {kind: "crash", at: 6 * time.Second, a: 1, d: forGood},
	}},
	"markers before the kill": {nodes: 3, served: another, plan: []fault{
		{kind: "stalled volume", at: 4 * time.Second, a: 1, d: forGood}, {kind: "isolate", at: 4 * time.Second, a: 1, d: forGood},
	}},
	"archive stays attached": {nodes: 3, quorum: true, archive: true, served: another, plan: []fault{{kind: "isolate", at: 5 * time.Second, a: 1, d: forGood}}},
	"duplicate counts": {nodes: 3, quorum: true, plan: []fault{
		{kind: "copy", at: 2 * time.Second, a: 2, d: forGood}, {kind: "isolate", at: 9 * time.Second, a: 1, d: forGood},
	}},
	"unreadable ballot votes": {nodes: 3, quorum: true, plan: []fault{
		{kind: "broken", at: 3 * time.Second, a: 2, d: forGood}, {kind: "broken", at: 3 * time.Second, a: 3, d: forGood}, {kind: "host crash", at: 5 * time.Second, a: 1, d: forGood},
	}},
	// The primary wakes up beside a winner that has no rule yet, and tells a pledged standby of its own.
	"held by a later pledge": {nodes: 3, quorum: true, plan: []fault{
		{kind: "hang", at: 6 * time.Second, a: 1, d: 4500 * time.Millisecond}, {kind: "monitor crash", step: "promoted", a: 1, d: 5 * time.Second},
	}},
	"cascade left in place": {nodes: 4, quorum: true, served: another, plan: []fault{
		{kind: "cascade", at: 2 * time.Second, a: 4, b: 3, d: forGood}, {kind: "host crash", at: 8 * time.Second, a: 1, d: forGood},
	}},
	// Node 3 was promoted by hand, killed, and started as a standby: it has another timeline, and less.
	"stray may win": {nodes: 3, quorum: true, plan: []fault{
		{kind: "monitor crash", at: 2900 * time.Millisecond, a: 3, d: forGood},
		{kind: "outside and back", at: 3 * time.Second, a: 3, d: forGood},
		{kind: "host crash", at: 10 * time.Second, a: 1, d: forGood},
	}},
	// Node 3 was rewound, and fell behind.
	"a segment names the timeline": {nodes: 3, quorum: true, plan: []fault{
		{kind: "outside promotion", at: 3 * time.Second, a: 3, d: forGood},
		{kind: "cut", at: 11 * time.Second, a: 1, b: 3, d: forGood},
		{kind: "host crash", at: 11300 * time.Millisecond, a: 1, d: forGood},
	}},
	"rogue is left alone": {nodes: 3, served: 1, plan: []fault{{kind: "outside promotion", at: 4 * time.Second, a: 3, d: forGood}}},
	"fence is believed": {nodes: 3, served: 1, plan: []fault{
		{kind: "can not fence", at: time.Second, a: 1, d: forGood}, {kind: "isolate", at: 5 * time.Second, a: 1, d: forGood},
	}},
	"manual is replaced": {nodes: 3, served: 1, plan: []fault{
		{kind: "manual", at: time.Second, a: 1, d: forGood}, {kind: "isolate", at: 5 * time.Second, a: 1, d: forGood},
	}},
	"one-sided pause": {nodes: 3, served: another, plan: []fault{
		{kind: "isolate", at: 4 * time.Second, a: 1, d: forGood}, {kind: "pause", at: 4100 * time.Millisecond, a: 1, d: forGood},
	}},
	"rejected is fenced": {nodes: 3, served: 1, plan: []fault{
		{kind: "login changed", at: 4 * time.Second, a: 2, d: forGood}, {kind: "login changed", at: 4 * time.Second, a: 3, d: forGood},
	}},
	"recovery for ever": {nodes: 3, served: another, plan: []fault{{kind: "endless recovery", at: 4 * time.Second, a: 1, d: forGood}}},
	// The monitor that hands over dies when the server has ended: the others go on with it.
	"a handover is forgotten": {nodes: 3, served: another, plan: []fault{
		{kind: "switchover", at: 3 * time.Second, a: 1, b: 2}, {kind: "monitor crash", step: "stopped", a: 1, d: forGood},
	}},
	// The target stands still during the shutdown, so that the primary goes on; then it is cut off.
	"no lease after a handover": {nodes: 3, served: another, plan: []fault{
		{kind: "switchover", at: 2 * time.Second, a: 1, b: 2}, {kind: "hang", step: "noticed", a: 0, d: 4 * time.Second}, {kind: "isolate", at: 7 * time.Second, a: 1, d: forGood},
	}},
	// The host of the primary stands still while its server is down, and another node is elected.
	"restarts without a look": {nodes: 3, served: another, strict: 500 * time.Millisecond, plan: []fault{
		{kind: "restart", at: 3 * time.Second, a: 1, b: 2}, {kind: "host hang", step: "stopped", a: 1, d: 12 * time.Second},
	}},
	// The host of the primary stands still, and its network is not back when it wakes up.
	"monotonic lease": {nodes: 3, served: another, strict: 1200 * time.Millisecond, plan: []fault{
		{kind: "isolate", at: 4 * time.Second, a: 1, d: forGood}, {kind: "suspend", at: 4 * time.Second, a: 1, d: 7 * time.Second},
	}},
	// Cut from its standby, but not from the witness: the primary finds out at its next look.
	"no wait": {nodes: 2, witnesses: 1, quorum: false, low: 0, plan: []fault{{kind: "cut", at: 4 * time.Second, a: 1, b: 2, d: forGood}}},
	// What only node 2 acknowledged is lost with it; node 3 is behind.
	"coverage ignored": {nodes: 3, witnesses: 2, quorum: true, low: 0, plan: []fault{
		{kind: "cut", at: 6 * time.Second, a: 1, b: 3, d: forGood},
		{kind: "host crash", at: 6300 * time.Millisecond, a: 1, d: forGood},
		{kind: "host crash", at: 6300 * time.Millisecond, a: 2, d: forGood},
	}},
	// The winner is lost with its first commits; the former primary is back, and the witness knows of the term.
	"witness told late": {nodes: 2, witnesses: 1, quorum: true, low: 0, plan: []fault{
		{kind: "crash", at: 4 * time.Second, a: 1, d: 3 * time.Second}, {kind: "host crash", step: "opened", a: 0, d: forGood},
	}},
	// Node 3 is behind when the primary is lost.
	"reversed ranking": {nodes: 3, witnesses: 0, quorum: true, low: 0, plan: []fault{
		{kind: "cut", at: 6 * time.Second, a: 1, b: 3, d: forGood}, {kind: "host crash", at: 6300 * time.Millisecond, a: 1, d: forGood},
	}},
	// Node 2 may not be promoted and acknowledges nothing: the winner goes on alone, and is cut off with what it acknowledged.
	"open at once": {nodes: 3, witnesses: 0, quorum: true, low: 2, plan: []fault{
		{kind: "host hang", at: 4 * time.Second, a: 1, d: 5 * time.Second}, {kind: "isolate", step: "promoted", a: 0, d: 8 * time.Second},
	}},
	// The primary is stopped, and goes on while the coordinator is stopped.
	"pledge keeps the receiver": {nodes: 3, witnesses: 0, quorum: true, low: 0, plan: []fault{
		{kind: "host hang", at: 4 * time.Second, a: 1, d: 3200 * time.Millisecond}, {kind: "monitor hang", step: "counted", a: 1, d: 2 * time.Second},
	}},
	// An answer that was on its way for long says that the voter was free when it was asked.
	"lease from the end of the round": {nodes: 2, witnesses: 1, quorum: false, low: 0, plan: []fault{
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
			first, most := max(1, suspects[bug]), count("SIM_PLANTED", 500)
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
var suspects = map[string]uint64{"ballot not checked": 3050, "follows an older term": 2515, "lower first": 335, "set after promote": 525, "no quorum": 50, "dead voters not counted": 50}
