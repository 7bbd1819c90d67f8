package report

import (
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// Watcher is a node with what its daemon says.
type Watcher struct {
	Record  registry.Record
	Answers bool                   // its server answered here
	Monitor *registry.Announcement // nil: none runs there, or that is not known
}

// Matrix says which nodes reach which, as the daemon of each node sees it.
type Matrix struct {
	Nodes []MatrixNode `json:"nodes"`
	Cells []Cell       `json:"cells"` // of each node to each node, in the order of Nodes
}

// MatrixNode is a node of a [Matrix].
type MatrixNode struct {
	ID   registry.NodeID `json:"node_id"`
	Name string          `json:"node_name"`
}

// Contact says whether one node reaches another.
type Contact string

const (
	ContactYes     Contact = "yes"
	ContactNo      Contact = "no"
	ContactUnknown Contact = "unknown"
)

// Cell is how one node reaches another.
type Cell struct {
	From    registry.NodeID `json:"from_node_id"`
	To      registry.NodeID `json:"to_node_id"`
	Contact Contact         `json:"contact"`
	Why     string          `json:"why,omitempty"`         // where it is not yes
	Age     *float64        `json:"age_seconds,omitempty"` // since the daemon of From said so; nil: it was found out now, or not at all
}

// Issues are the cells that are not yes, in words.
func (m Matrix) Issues() (all []string) {
	names := map[registry.NodeID]string{}
	for _, n := range m.Nodes {
		names[n.ID] = n.Name
	}
	unknown := map[registry.NodeID]bool{}
	for _, c := range m.Cells {
		switch {
		case c.Contact == ContactNo:
			all = append(all, fmt.Sprintf("%s does not reach %s: %s", names[c.From], names[c.To], c.Why))
		case c.Contact == ContactUnknown && !unknown[c.From]:
			unknown[c.From] = true
			all = append(all, fmt.Sprintf("it is not known which nodes %s reaches: %s", names[c.From], c.Why))
		}
	}
	return all
}

// MatrixOf makes the matrix of these nodes.
func MatrixOf(nodes []Watcher) Matrix {
	m := Matrix{Nodes: []MatrixNode{}, Cells: []Cell{}}
	for _, from := range nodes {
		m.Nodes = append(m.Nodes, MatrixNode{from.Record.ID, from.Record.Name})
		for _, to := range nodes {
			m.Cells = append(m.Cells, cellOf(from, to.Record))
		}
	}
	return m
}

func cellOf(from Watcher, to registry.Record) Cell {
	c := Cell{From: from.Record.ID, To: to.ID, Contact: ContactUnknown}
	said := from.Monitor
	if said != nil {
		c.Age = &said.Age
	}
	switch {
	case !from.Answers:
		c.Why, c.Age = "its server does not answer here", nil
	case c.From == c.To:
		c.Contact, c.Age = ContactYes, nil
	case said == nil:
		c.Why = "no repmgrd runs there"
	case time.Duration(said.Age*float64(time.Second)) > registry.PresenceSilent:
		c.Why = fmt.Sprintf("its repmgrd has said nothing for %.0f s", said.Age)
	case said.NotSeen[to.ID] != "":
		c.Contact, c.Why = ContactNo, "it "+said.NotSeen[to.ID]
	case said.NotSeen == nil:
		c.Why = "its repmgrd does not say so"
	case said.Mode != registry.FailoverAutomatic:
		c.Why = "its repmgrd asks the other nodes only with failover=automatic"
	default:
		c.Contact = ContactYes
	}
	return c
}
