package election_test

import (
	"testing"

	"github.com/pgrepmgr/repmgr/election"
)

func TestPeer_Holds(t *testing.T) {
	t.Parallel()
	rule := election.Rule{Term: 2, Seq: 3}
	for name, test := range map[string]struct {
		peer election.Peer
		want bool
	}{
		"its tables show it":                     {election.Peer{Running: election.Standby, Term: 2, Rule: rule}, true},
		"it was told":                            {election.Peer{Running: election.Standby, Term: 1, Rule: election.Rule{Term: 1, Seq: 1}, Announced: rule}, true},
		"it shows an older one":                  {election.Peer{Running: election.Standby, Term: 2, Rule: election.Rule{Term: 2, Seq: 2}}, false},
		"it pledged itself in a later term":      {election.Peer{Running: election.Standby, Term: 3, Rule: rule}, false},
		"it was told, and is pledged in a later": {election.Peer{Running: election.Standby, Term: 3, Announced: rule}, false},
	} {
		if got := test.peer.Holds(rule); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
