package restart

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
)

// A setting is raised on the standbys first and lowered on the primary first, and what can not be
// done in either order is named.
func TestOrder(t *testing.T) {
	t.Parallel()
	const conns, senders = "max_connections", "max_wal_senders"
	for name, test := range map[string]struct {
		primary, standby map[string]int // after a restart; before, all have 100 connections and 10 senders
		chosen           []int32
		before, after    []int32
		obstacle         string
		mayHandOver      bool
	}{
		"nothing changes":                 {chosen: []int32{1, 2, 3}, before: []int32{2, 3}, mayHandOver: true},
		"one rises":                       {map[string]int{conns: 200}, map[string]int{conns: 200}, []int32{1, 2, 3}, []int32{2, 3}, nil, "", true},
		"one falls":                       {map[string]int{conns: 50}, map[string]int{conns: 50}, []int32{1, 2, 3}, nil, []int32{2, 3}, "", false},
		"one rises, another falls":        {map[string]int{conns: 200, senders: 5}, map[string]int{conns: 200, senders: 5}, []int32{1, 2, 3}, nil, nil, "both_orders", true},
		"it rises on the primary alone":   {map[string]int{conns: 200}, nil, []int32{1}, nil, nil, "below_primary", true},
		"it rises, the standbys left out": {map[string]int{conns: 200}, map[string]int{conns: 200}, []int32{1}, nil, nil, "below_primary", true},
		"it falls on the standbys alone":  {nil, map[string]int{conns: 50}, []int32{2, 3}, nil, nil, "below_primary", true},
		"it rises on the standbys alone":  {nil, map[string]int{conns: 200}, []int32{1, 2, 3}, []int32{2, 3}, nil, "", false},
		"the witness is bound by no rule": {map[string]int{conns: 200}, map[string]int{conns: 200}, []int32{1, 2, 3, 4}, []int32{2, 3, 4}, nil, "", true},
		"only a standby":                  {map[string]int{conns: 200}, map[string]int{conns: 200}, []int32{3}, []int32{3}, nil, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := Facts{Rule: election.Rule{Primary: 1}, Chosen: test.chosen, Servers: map[int32]Server{}, Names: map[int32]string{1: "node1", 2: "node2", 3: "node3", 4: "node4"}}
			for id := range int32(4) {
				f.Peers = append(f.Peers, election.Peer{ID: id + 1, Role: election.Standby})
				s := Server{Running: map[string]int{conns: 100, senders: 10}, Next: map[string]int{conns: 100, senders: 10}}
				next := test.standby
				if id == 0 {
					next = test.primary
				}
				for key, value := range next {
					s.Next[key] = value
				}
				f.Servers[id+1] = s
			}
			f.Peers[3].Role = election.Witness
			f.Servers[4] = Server{Running: map[string]int{conns: 10}, Next: map[string]int{conns: 10}}
			before, after, obstacles := f.order()
			require.Equal(t, test.before, before)
			require.Equal(t, test.after, after)
			if test.obstacle == "" {
				require.Empty(t, obstacles)
				require.Equal(t, test.mayHandOver, f.mayHandOver(2, after))
				return
			}
			require.Len(t, obstacles, 2)
			require.Equal(t, test.obstacle, obstacles[0].Code)
		})
	}
}
