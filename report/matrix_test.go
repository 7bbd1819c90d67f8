package report

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
)

func TestMatrixOf(t *testing.T) {
	t.Parallel()
	watcher := func(id registry.NodeID, name string, said *registry.Announcement) Watcher {
		return Watcher{Record: registry.Record{ID: id, Name: name}, Answers: true, Monitor: said}
	}
	down := watcher(3, "node3", nil)
	down.Answers = false
	m := MatrixOf([]Watcher{
		watcher(1, "node1", &registry.Announcement{Mode: registry.FailoverAutomatic, Age: 1, NotSeen: map[registry.NodeID]string{3: "is silent"}}),
		watcher(2, "node2", &registry.Announcement{Mode: registry.FailoverAutomatic, Age: 99, NotSeen: map[registry.NodeID]string{}}),
		down,
		watcher(4, "node4", nil),
		watcher(5, "node5", &registry.Announcement{Mode: registry.FailoverManual, NotSeen: map[registry.NodeID]string{}}),
	})
	var row string
	for i, c := range m.Cells {
		if i > 0 && i%5 == 0 {
			row += " "
		}
		row += map[Contact]string{ContactYes: "*", ContactNo: "x", ContactUnknown: "?"}[c.Contact]
	}
	require.Equal(t, "**x** ?*??? ????? ???*? ????*", row)
	require.Contains(t, m.Issues(), "node1 does not reach node3: it is silent")
	require.Contains(t, m.Issues(), "it is not known which nodes node2 reaches: its repmgrd has said nothing for 99 s")
	require.InDelta(t, 1, *m.Cells[1].Age, 0)
	require.Nil(t, m.Cells[0].Age)
}
