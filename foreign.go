package repmgr

import (
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// ForeignDaemon is a repmgrd of the C repmgr 5, as the extension of that says in the shared
// memory of the server that it watches.
type ForeignDaemon = registry.ForeignDaemon

// asideHint says what to do where daemons of both programs run.
const asideHint = "Daemons of both programs would make two primaries. Stop those of repmgr 5 on every node, or those of this one."

// standAside says, where a daemon of repmgr 5 lives on any of these nodes, why a
// Monitor does not act. nil: none does.
func standAside(nodes []string) error {
	if len(nodes) == 0 {
		return nil
	}
	return hint(kind(ErrRefused, "a repmgrd of repmgr 5 runs on %s: this one only watches", strings.Join(nodes, ", ")), asideHint)
}

// noteForeigners says once that this Monitor stands aside, and when that is over.
func (m *Monitor) noteForeigners(peers []election.Peer) {
	const what = "failing over"
	if m.cluster.cfg.Failover != FailoverAutomatic || !election.Foreign(peers) {
		m.report(what, nil)
		return
	}
	err := standAside(m.watch.Foreign(peers))
	if m.lastErr[what] == "" {
		m.tell(Event{Type: EventFailoverRefused, Details: err.Error()})
	}
	m.report(what, err)
}

// foreigners names the nodes with a daemon of repmgr 5.
func foreigners(probes []probe) (names []string) {
	for _, p := range probes {
		if d := p.foreign; p.err == nil && d != nil {
			names = append(names, fmt.Sprintf("%s (PID %d)", p.record.Name, d.PID))
		}
	}
	return names
}
