package report

import (
	"fmt"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// Happening is the event of a change that the daemon of the node self has observed, with a text for people. primary
// and child are the nodes that it is about, where it is about any.
func Happening(what election.Event, self string, primary, child registry.Record) registry.Event {
	e := registry.Event{Type: registry.EventType(what), Success: true}
	switch what {
	case election.LocalDisconnect, election.StandbyFailure:
		e.Success, e.Details = false, fmt.Sprintf("the server of %s does not answer", self)
	case election.LocalReconnect, election.StandbyRecovery:
		e.Details = fmt.Sprintf("the server of %s answers again", self)
	case election.UpstreamDisconnect:
		e.Success, e.Details = false, fmt.Sprintf("the primary, %s, is not reachable from %s", primary, self)
	case election.UpstreamReconnect:
		e.Details = fmt.Sprintf("%s is reachable from %s", primary, self)
	case election.StandbyReconnect:
		e.Details = fmt.Sprintf("%s runs as a standby of %s now", self, primary)
	case election.ChildConnect, election.ChildDisconnect, election.ChildReconnect:
		e.Success = what != election.ChildDisconnect
		e.PeerID, e.Peer = child.ID, child.Name
		e.Details = fmt.Sprintf(map[election.Event]string{
			election.ChildConnect:    "%s has attached",
			election.ChildReconnect:  "%s has attached again",
			election.ChildDisconnect: "%s is not attached any more",
		}[what], child)
	}
	return e
}

// Followed is a sentence about a standby that follows its primary. wasPrimary: that was the primary before;
// wasUpstream: the standby followed it before.
func Followed(node, upstream registry.Record, wasPrimary, wasUpstream bool) string {
	switch {
	case wasUpstream:
		return fmt.Sprintf("%s follows %s again, which is the primary as before", node, upstream)
	case wasPrimary:
		return fmt.Sprintf("%s follows %s, which is the primary as before", node, upstream)
	}
	return fmt.Sprintf("%s follows new primary %s", node, upstream)
}
