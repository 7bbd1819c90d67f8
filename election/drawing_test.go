package election

import (
	"flag"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var draw = flag.Bool("draw", false, "write the drawing of docs/failover.md anew")

// situations are all combinations of what a Monitor's decision hangs on, at one instant.
func situations(now time.Time) (all []Observation) {
	rule := Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}}
	later := Rule{Term: 4, Seq: 1, Primary: 3, Voters: []int32{1, 2, 3}}
	own := Rule{Term: 5, Seq: 1, Primary: 2, Voters: []int32{1, 2, 3}}
	for _, local := range []View{{}, {Up: true}, {Up: true, InRecovery: true}} {
		for _, node := range []Node{{}, {true, Primary, true, 0}, {true, Standby, true, 0}, {true, Witness, true, 0}} {
			for _, self := range []int32{1, 2} {
				for _, other := range []Answer{Answers, Refused, Silent} {
					for _, r := range []Rule{rule, later, own} {
						for flags := range 16 {
							running := Primary
							if local.InRecovery {
								running = Standby
							}
							primary := Peer{ID: 1, Role: Primary, Priority: 100, Answer: other, Ended: true, SeenAt: now.Add(-3 * time.Second), Running: Primary, Rule: rule, Monitored: true, Automatic: true, CanFence: true}
							if other == Answers {
								primary.SeenAt = now
							}
							me := Peer{ID: self, Role: node.Role, Priority: 100, Answer: Answers, SeenAt: now, Running: running, Rule: rule, Detached: flags&1 != 0, Term: int64(3 + flags>>3&1), Monitored: true, Automatic: true, CanFence: true}
							winner := Peer{ID: 3, Role: Standby, Priority: 100, Answer: Answers, SeenAt: now, Running: Standby, Rule: r, Monitored: true, Automatic: true, CanFence: true}
							if r.Primary == 3 {
								winner.Running = Primary
							}
							if r.Primary == self {
								me.Rule, me.Term = r, r.Term+int64(flags>>3&1)
							}
							peers := []Peer{me, winner}
							if self != 1 {
								peers = append(peers, primary)
							}
							o := Observation{
								Now: now, Local: local, Node: node, RowKnown: flags&2 != 0, Upstream: View{Up: flags&4 != 0},
								Self: self, Rule: r, Peers: peers, WasPrimary: flags&1 != 0,
							}
							failed, forked, pledged, waiting, won := o, o, o, o, o
							waiting.Busy, waiting.Interruptible = local.InRecovery, local.InRecovery // only a standby waits for another node
							won.Peers = slices.Clone(peers)
							won.Peers[0].WonElection, won.Peers[0].Term = true, r.Term+1
							failed.Last = Outcome{Verb: Elect, At: now.Add(-100 * time.Millisecond)}
							limited, paused := failed, failed
							limited.Last.Reason = Reason(RefusedTooMany)
							paused.Peers = slices.Clone(peers)
							paused.Peers[0].Paused, paused.Peers[0].PauseSeq = true, 1
							forked.Diverged = true
							pledged.Peers = slices.Clone(peers)
							for i := range pledged.Peers {
								pledged.Peers[i].Term, pledged.Peers[i].Candidate, pledged.Peers[i].Detached = r.Term+1, "node9.1", true
							}
							all = append(all, o, failed, limited, paused, forked, pledged, waiting, won, Observation{Now: now, Observer: true, Rule: r, Peers: peers})
						}
					}
				}
			}
		}
	}
	return all
}

// edges are what Step can decide, in every state that it can come to: the
// reason, what is done, and the phase. Where it comes from does not matter, so
// that a Monitor that dies and returns decides the same.
func edges() []string {
	p := Policy{Interval: time.Second, Automatic: true, Silence: 2 * time.Second, Fence: 2 * time.Second, Patience: time.Second}
	type kind struct {
		phase    Phase
		role     Role
		lost     time.Time
		observer bool
	}
	found, seen := map[string]bool{}, map[kind]bool{}
	now := time.Unix(1000, 0)
	all := situations(now)
	var visit func(s State, observer bool)
	visit = func(s State, observer bool) {
		k := kind{s.Phase, s.Role, s.LostAt, observer}
		if seen[k] {
			return
		}
		seen[k] = true
		for _, o := range all {
			if s.Phase != "" && o.Observer != observer {
				continue // a Monitor does not come by a node, nor lose its own
			}
			d := p.Step(s, o)
			found[edge(d)] = true
			next := State{Phase: d.Next.Phase, Role: d.Next.Role, Reason: d.Next.Reason, Health: d.Next.Health, LostAt: d.Next.LostAt, TurnsAt: d.Next.TurnsAt, DisconnectedAt: d.Next.DisconnectedAt}
			visit(next, o.Observer)
			if !next.LostAt.IsZero() { // later
				next.LostAt, next.TurnsAt, next.PrimarySince = now.Add(-time.Minute), now.Add(-time.Minute), now.Add(-time.Minute)
				visit(next, o.Observer)
			}
		}
	}
	visit(State{}, false)
	return slices.Sorted(maps.Keys(found))
}

var spaces = regexp.MustCompile("[^a-z]+")

// edge draws a decision. Bookkeeping is left out.
func edge(d Decision) string {
	arrow := "-->"
	for _, a := range d.Actions {
		switch a.Verb {
		case Fence, Elect, Interrupt, Reaffirm, Follow, Rejoin, Register, Reconcile, RecordPromotion:
			arrow = "-- " + string(a.Verb) + " -->"
		}
	}
	reason := string(d.Reason)
	return spaces.ReplaceAllString(reason, "_") + "[\"" + reason + "\"] " + arrow + " " + string(d.Next.Phase)
}

// The drawing on the page has the edges that Step has, and no other.
func TestDrawing(t *testing.T) {
	const page = "../docs/failover.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)flowchart LR\n(.*?)```")
	got := edges()
	if *draw {
		text = block.ReplaceAll(text, []byte("flowchart LR\n    "+strings.Join(got, "\n    ")+"\n```"))
		if err := os.WriteFile(page, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for line := range strings.Lines(string(block.FindSubmatch(text)[1])) {
		want = append(want, strings.TrimSpace(line))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/failover.md does not draw what Step does (go test ./election -run Drawing -draw)\ngot  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}
