package report_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// The slot that keeps WAL during a handover has no reader, and is no alarm.
func TestJudge_InactiveSlots(t *testing.T) {
	t.Parallel()
	n := report.Node{Record: registry.Record{ID: 1, Role: registry.RolePrimary}}
	n.Status.Slots = []registry.Slot{{Name: registry.HandoverSlot, Physical: true}, {Name: "repmgr_slot_2", Physical: true}}
	report.Judge(&n, nil)
	require.Equal(t, []string{"repmgr_slot_2"}, n.InactiveSlots)
}
