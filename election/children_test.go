package election

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The command is run once when too few standbys are attached, for long enough since the newest
// loss, and again only after enough were attached.
func TestPolicy_MissesChildren(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		limits Children
		lost   int  // of three standbys
		paused bool // failover is
		dark   bool // the witness does not answer
		runs   bool
	}{
		"one is left":                      {Children{}, 2, false, false, false},
		"none is left":                     {Children{}, 3, false, false, true},
		"none is left while paused":        {Children{}, 3, true, false, false},
		"one fewer than there must be":     {Children{ConnectedMin: 3}, 1, false, false, true},
		"as many as there must be":         {Children{ConnectedMin: 2}, 1, false, false, false},
		"so many are lost":                 {Children{LostMin: 2}, 2, false, false, true},
		"fewer are lost":                   {Children{LostMin: 2}, 1, false, false, false},
		"more must be lost than there are": {Children{LostMin: 9}, 3, false, false, true},
		"the witness counts":               {Children{Witness: true}, 3, false, false, false},
		"the witness counts, and is dark":  {Children{Witness: true}, 3, false, true, true},
		"nobody was lost":                  {Children{ConnectedMin: 9}, 0, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.limits.Command, test.limits.After = true, 30*time.Second
			p := Policy{Interval: time.Second, Children: test.limits}
			o := Observation{
				Now: start, Self: 1, RowKnown: true, Local: View{Up: true}, Node: Node{Registered: true, Role: Primary, Active: true},
				Peers: []Peer{{ID: 1, Role: Primary, Answer: Answers, Running: Primary}, {ID: 5, Role: Witness, Answer: Answers}},
			}
			if test.paused {
				o.Peers[0].Paused, o.Peers[0].PauseSeq = true, 1
			}
			if test.dark {
				o.Peers[1].Answer = Silent
			}
			var s State
			step := func(after time.Duration, attached int) bool {
				o.Now, o.Children = start.Add(after), map[int32]bool{}
				for id := range int32(3) {
					o.Children[id+2] = int(id) < attached
				}
				d := p.Step(s, o)
				s = d.Next
				for _, a := range d.Actions {
					if a.Verb == RunChildrenCommand {
						return true
					}
				}
				return false
			}
			require.False(t, step(0, 3))
			require.False(t, step(time.Second, 3-test.lost))
			require.False(t, step(30*time.Second, 3-test.lost), "the newest loss is not old enough")
			require.Equal(t, test.runs, step(31*time.Second, 3-test.lost))
			require.False(t, step(60*time.Second, 3-test.lost), "once")
			require.False(t, step(61*time.Second, 3))
			require.False(t, step(62*time.Second, 3-test.lost))
			require.Equal(t, test.runs, step(93*time.Second, 3-test.lost), "and again")
		})
	}
}
