package repmgr

import (
	"errors"
	"fmt"

	"github.com/pgrepmgr/repmgr/election"
)

// tellPledge says when the local server could not give its pledge in an election,
// and when it could again: the log, and an event.
func (m *Monitor) tellPledge() {
	me := peerOf(m.watch.peers(), int32(m.cluster.cfg.NodeID))
	if m.cluster.cfg.NodeID == 0 || me.Answer != election.Answers || me.NoPledge == m.noPledge {
		return
	}
	m.noPledge = me.NoPledge
	e := Event{Type: EventPledgeAbility, Success: me.NoPledge == "", Details: "this node could pledge itself in an election again"}
	var err error
	if me.NoPledge != "" {
		e.Details = "this node could not pledge itself in an election: " + me.NoPledge
		err = errors.New(me.NoPledge)
	}
	m.report(fmt.Sprintf("a pledge of %s", m.self), err)
	m.tell(e)
}
