package topology

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// OfStatus is the picture of what `repmgr cluster show` has seen.
func OfStatus(st report.ClusterStatus) Picture {
	p := Picture{Title: "The nodes of the cluster, and which of them streams from which"}
	for _, n := range st.Nodes {
		box := Node{ID: int32(n.ID), Name: n.Name, Role: string(cmp.Or(n.Running, n.Role)), Votes: n.Role == registry.RoleWitness}
		box.Writes = n.Running == registry.RolePrimary && strings.HasPrefix(n.Status, "* ")
		box.Mood = moodOf(st, n)
		box.Lines = []string{placeText(n), strings.TrimSpace(strings.TrimLeft(n.Status, "*!?- "))}
		p.Nodes = append(p.Nodes, box)
		if s, ok := streamOf(st, n); ok {
			p.Streams = append(p.Streams, s)
		}
	}
	return p
}

func placeText(n report.NodeView) string {
	text := n.Location
	if n.Timeline != 0 {
		text = fmt.Sprintf("timeline %d, %s", n.Timeline, text)
	}
	return strings.TrimSuffix(text, ", ")
}

// moodOf is bad where the node itself is, and doubtful where something else is wrong with it.
func moodOf(st report.ClusterStatus, n report.NodeView) Mood {
	switch {
	case strings.HasPrefix(n.Status, "- "):
		return Unknown
	case strings.HasPrefix(n.Status, "! "), n.Reach != postgres.ReachOK && !n.Reach.Answers():
		return Bad
	}
	for _, f := range st.Findings {
		if f.NodeID == n.ID {
			return Doubt
		}
	}
	return Well
}

// streamOf is what leads to a standby: from the node that sends to it, or else from its registered upstream.
func streamOf(st report.ClusterStatus, n report.NodeView) (Stream, bool) {
	if n.Role != registry.RoleStandby || n.Running == registry.RolePrimary {
		return Stream{}, false
	}
	s := Stream{From: int32(n.UpstreamID), To: int32(n.ID), Mood: Well, Label: n.Sync, Behind: -1}
	name := strings.TrimLeft(n.Upstream, "!? ")
	for _, up := range st.Nodes {
		if up.Name == name {
			s.From = int32(up.ID)
		}
	}
	if n.Lag != nil {
		s.Behind = *n.Lag
	}
	switch {
	case n.Attached == "streaming" && s.Behind >= Huge:
		s.Mood = Doubt
	case n.Attached == "streaming":
	case n.Attached != "":
		s.Mood, s.Label = Doubt, n.Attached
	case n.Reach != postgres.ReachOK:
		s.Mood, s.Label = Unknown, "not known"
	default:
		s.Mood, s.Label = Bad, "nothing"
	}
	return s, s.From != 0
}
