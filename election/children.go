package election

import (
	"slices"
	"time"
)

// Children says when a primary has too few standbys, so that child_nodes_disconnect_command is run.
type Children struct {
	Command      bool          // there is one
	ConnectedMin int           // child_nodes_connected_min_count: fewer are too few; 0 or less: DisconnectMin says it
	LostMin      int           // child_nodes_disconnect_min_count: so many lost ones are too many; 0 or less: one must be left
	After        time.Duration // child_nodes_disconnect_timeout: since the newest loss
	Witness      bool          // child_nodes_connected_include_witness: a witness that answers counts as attached
}

// few reports whether too few standbys are attached. children are those that were seen since this
// monitor started, and whether each is attached now. Where none was lost they are not too few.
func (c Children) few(children map[int32]bool, peers []Peer) bool {
	attached := 0
	for _, is := range children {
		if is {
			attached++
		}
	}
	lost := len(children) - attached
	all := len(children)
	for _, p := range peers {
		if c.Witness && p.Role == Witness {
			all++
			if p.Answer == Answers {
				attached++
			}
		}
	}
	least := 1
	switch {
	case c.ConnectedMin > 0:
		least = c.ConnectedMin
	case c.LostMin > 0:
		least = max(1, all-c.LostMin+1)
	}
	return lost > 0 && attached < least
}

// missChildren adds to the decision of a primary that child_nodes_disconnect_command is to be run: once,
// until enough standbys are attached again.
func (p Policy) missChildren(d Decision, o Observation, lostNow bool) Decision {
	if lostNow {
		d.Next.ChildLostAt = o.Now
	}
	switch {
	case !p.Children.few(d.Next.Children, o.Peers):
		d.Next.ChildrenFew = false
	case slices.ContainsFunc(o.Peers, func(peer Peer) bool { return peer.Restarting(o.Now, o.Rule) }): // it is down on purpose
		d.Next.ChildLostAt = o.Now
	case p.Children.Command && !d.Next.ChildrenFew && !Paused(o.Peers) && !o.Busy && o.Now.Sub(d.Next.ChildLostAt) >= p.Children.After:
		d.Next.ChildrenFew = true
		d.Actions = append(d.Actions, Action{Verb: RunChildrenCommand})
	}
	return d
}
