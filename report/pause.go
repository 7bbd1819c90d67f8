package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// PauseWarning says what it means that only some of all nodes were reached by a pause, or by its end. Empty:
// nothing.
func PauseWarning(r election.Rule, seq int64, paused bool, reached map[registry.NodeID]string, all int) string {
	var peers []election.Peer
	var names []string
	for _, id := range slices.Sorted(maps.Keys(reached)) {
		peers = append(peers, election.Peer{ID: int32(id), Paused: paused, PauseSeq: seq})
		names = append(names, reached[id])
	}
	primary := reached[registry.NodeID(r.Primary)] != ""
	switch {
	case !r.Known():
	case paused && !r.PausePreventsElection(r.Primary, peers):
		return fmt.Sprintf("paused on %d of %d nodes (%s): the others could elect a primary, so the primary keeps its lease, and is stopped where it has no contact to a majority for fence_timeout",
			len(names), all, cmp.Or(strings.Join(names, ", "), "none"))
	case !paused && !primary && !r.Quorum:
		return "the primary was not reached, and may hold the pause: with synchronous_mode=off nobody takes its place unless it is known to be dead, or an operator forces it"
	}
	return ""
}
