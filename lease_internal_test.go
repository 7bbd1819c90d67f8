package repmgr

import (
	"testing"

	"github.com/pgrepmgr/repmgr/report"
)

// A lease that runs out, or is over while the server runs, is a finding; one that is
// renewed all the time is none, however old what was said of it is.
func TestServiceNode_Lease(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		left, age float64
		runsOut   bool
		want      bool
	}{
		{2.4, 0.3, false, false},
		{2.0, 1.9, false, false},
		{1.6, 7, false, false},
		{1.2, 0.3, true, true},
		{-0.5, 2, true, true},
		{-0.3, 0.3, true, true},
		{0, 3, false, true}, // of a former version
	} {
		yes := true
		n := ServiceNode{NodeView: NodeView{Record: Record{ID: 7, Name: "node7", Role: RolePrimary}}, Monitor: &Announcement{PID: 4711, Mode: FailoverAutomatic, LeaseLeft: &test.left, Age: test.age, RunsOut: test.runsOut, CanFence: &yes}}
		var found report.Findings
		n.findings(true, true, &found)
		if found.Has(FindingLeaseRunsOut) != test.want || len(found) > 1 {
			t.Errorf("%+v: found %v", test, found)
		}
	}
}
