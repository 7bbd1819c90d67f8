package report_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
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
		n := report.ServiceNode{NodeView: report.NodeView{Record: registry.Record{ID: 7, Name: "node7", Role: registry.RolePrimary}}, Monitor: &registry.Announcement{PID: 4711, Mode: registry.FailoverAutomatic, LeaseLeft: &test.left, Age: test.age, RunsOut: test.runsOut, CanFence: &yes}}
		found := report.ServiceStatus{Nodes: []report.ServiceNode{n}}.Find(true)
		if found.Has(report.LeaseRunsOut) != test.want || len(found) > 2 || !found.Has(report.CanNotFailOver) { // there is no standby
			t.Errorf("%+v: found %v", test, found)
		}
	}
}

// A daemon that can not stop its server is said to be one, with what that means in each mode.
func TestServiceStatus_Find(t *testing.T) {
	t.Parallel()
	for quorum, want := range map[bool]string{true: "its commits wait", false: "synchronous_mode=off"} {
		found := report.ServiceStatus{Rule: &election.Rule{Quorum: quorum}, Nodes: []report.ServiceNode{
			{Monitor: &registry.Announcement{Mode: registry.FailoverAutomatic, CanFence: new(false), Unable: "why"}},
		}}.Find(true)
		i := slices.IndexFunc(found, func(f report.Finding) bool { return f.Code == report.CanNotFence })
		require.Contains(t, found[i].Text, want)
		require.Equal(t, !quorum, strings.Contains(found[i].Text, "synchronous_mode=off"))
	}
}

// A router that does not take what it is told is named, whatever decides about failovers.
func TestServiceStatus_Routers(t *testing.T) {
	t.Parallel()
	n := report.ServiceNode{NodeView: report.NodeView{Record: registry.Record{ID: 7, Name: "node7"}}, Monitor: &registry.Announcement{Mode: registry.FailoverManual, Routers: map[string]string{"HAProxy at /b": "no answer", "HAProxy at /a": "refused"}}}
	require.Equal(t, report.Findings{
		{Code: report.RouterFailing, NodeID: 7, Text: `repmgrd on node "node7" (ID: 7): HAProxy at /a does not take what it is told, so its clients may be led to a node that is not the primary: refused`},
		{Code: report.RouterFailing, NodeID: 7, Text: `repmgrd on node "node7" (ID: 7): HAProxy at /b does not take what it is told, so its clients may be led to a node that is not the primary: no answer`},
	}, report.ServiceStatus{Nodes: []report.ServiceNode{n}}.Find(false))
}

// A switchover is scheduled where the primary of the newest rule has the request, and has not begun it.
func TestServiceStatus_Scheduled(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for name, c := range map[string]struct {
		change func(h *election.Handover, nodes []report.ServiceNode)
		want   *report.Scheduled
	}{
		"scheduled":          {func(*election.Handover, []report.ServiceNode) {}, &report.Scheduled{From: "node1", To: "node2", At: now.Add(time.Hour)}},
		"it has begun":       {func(h *election.Handover, _ []report.ServiceNode) { h.Begun = true }, nil},
		"it is a restart":    {func(h *election.Handover, _ []report.ServiceNode) { h.Restart = true }, nil},
		"its time is over":   {func(h *election.Handover, _ []report.ServiceNode) { h.Until = now }, nil},
		"of an earlier term": {func(h *election.Handover, _ []report.ServiceNode) { h.Term = 2 }, nil},
		"another is the primary": {func(_ *election.Handover, nodes []report.ServiceNode) {
			nodes[1].Rule = &election.Rule{Term: 4, Primary: 2}
		}, nil},
		"no rule is known": {func(_ *election.Handover, nodes []report.ServiceNode) { nodes[0].Rule = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := []report.ServiceNode{
				{NodeView: report.NodeView{Record: registry.Record{ID: 1, Name: "node1"}}, Rule: &election.Rule{Term: 3, Primary: 1}, Handover: election.Handover{ID: "x", Term: 3, Target: 2, Start: now.Add(time.Hour), Until: now.Add(2 * time.Hour)}},
				{NodeView: report.NodeView{Record: registry.Record{ID: 2, Name: "node2"}}},
			}
			c.change(&nodes[0].Handover, nodes)
			st := report.ServiceStatus{Nodes: nodes}
			st.Settle(now)
			require.Equal(t, c.want, st.Scheduled)
		})
	}
}

// A pause says since when, and by whom, where that is known.
func TestServiceStatus_PausedBy(t *testing.T) {
	t.Parallel()
	st := report.ServiceStatus{Nodes: []report.ServiceNode{{NodeView: report.NodeView{Record: registry.Record{Name: "node1"}}, Paused: new(true), Monitor: &registry.Announcement{Mode: registry.FailoverAutomatic}}}}
	for want, by := range map[string]*election.Pause{"failover is paused on node1;": nil, "failover is paused on node1 by ada@desk;": {Seq: 1, By: "ada@desk"}} {
		st.PausedBy = by
		found := st.Find(true)
		i := slices.IndexFunc(found, func(f report.Finding) bool { return f.Code == report.Paused })
		require.Contains(t, found[i].Text, want)
	}
}
