package restart

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
)

// A restart of one server alone is refused where a standby would not replay after it, and does now.
func TestCheckAlone(t *testing.T) {
	t.Parallel()
	const conns = "max_connections"
	for name, test := range map[string]struct {
		running, next map[registry.NodeID]int // of the primary (1), of standbys (2, 3) and of a witness (4); else 100
		refused       []registry.NodeID       // whose restart is
		change        func(said map[registry.NodeID]Server)
	}{
		"nothing changes":                    {},
		"it rises everywhere":                {next: map[registry.NodeID]int{1: 200, 2: 200, 3: 200}, refused: []registry.NodeID{1}},
		"it rises on the standbys":           {next: map[registry.NodeID]int{2: 200, 3: 200}},
		"they have it already":               {running: map[registry.NodeID]int{2: 200, 3: 200}, next: map[registry.NodeID]int{1: 200, 2: 200, 3: 200}},
		"it falls everywhere":                {next: map[registry.NodeID]int{1: 50, 2: 50, 3: 50}, refused: []registry.NodeID{2, 3}},
		"it falls on the primary":            {next: map[registry.NodeID]int{1: 50}},
		"a witness has less":                 {running: map[registry.NodeID]int{4: 10}, next: map[registry.NodeID]int{4: 5}},
		"a standby has less already":         {running: map[registry.NodeID]int{1: 200}, next: map[registry.NodeID]int{1: 200, 2: 200}},
		"it rises, and one standby is ready": {running: map[registry.NodeID]int{2: 200}, next: map[registry.NodeID]int{1: 200, 2: 200}, refused: []registry.NodeID{1}},
		"nobody is the primary": {
			next: map[registry.NodeID]int{1: 200}, change: func(said map[registry.NodeID]Server) { delete(said, 1) },
		},
		"no standby can be asked": {
			next: map[registry.NodeID]int{1: 200}, change: func(said map[registry.NodeID]Server) { delete(said, 2); delete(said, 3) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said, nodes, refused := map[registry.NodeID]Server{}, []registry.Record{}, []registry.NodeID(nil)
			value := func(of map[registry.NodeID]int, id registry.NodeID) map[string]int {
				if v, ok := of[id]; ok {
					return map[string]int{conns: v}
				}
				return map[string]int{conns: 100}
			}
			for id, role := range map[registry.NodeID]registry.Role{1: registry.RolePrimary, 2: registry.RoleStandby, 3: registry.RoleStandby, 4: registry.RoleWitness} {
				nodes = append(nodes, registry.Record{ID: id, Name: "node" + id.String(), Role: role})
				said[id] = Server{Running: value(test.running, id), Next: value(test.next, id), Writes: role != registry.RoleStandby}
			}
			if test.change != nil {
				test.change(said)
			}
			for id := range registry.NodeID(4) {
				if err := CheckAlone(id+1, nodes, maps.Clone(said)); err != nil {
					require.ErrorContains(t, err, "would not replay: max_connections would be ")
					refused = append(refused, id+1)
				}
			}
			require.Equal(t, test.refused, refused)
		})
	}
}
