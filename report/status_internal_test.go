package report

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// The Status column, by what is registered and what answers.
func TestJudge_StatusCell(t *testing.T) {
	t.Parallel()
	refused := &postgres.ConnectError{Target: "x", Reach: postgres.ReachRefused, Err: errors.New("refused")}
	starting := &postgres.ConnectError{Target: "x", Reach: postgres.ReachStarting, Err: errors.New("starting")}
	rec := func(role registry.Role, active bool) registry.Record {
		return registry.Record{ID: 1, Name: "n", Role: role, Active: active}
	}
	tests := []struct {
		name   string
		record registry.Record
		runs   registry.Role
		err    error
		want   string
		fine   bool
	}{
		{"primary runs", rec(registry.RolePrimary, true), registry.RolePrimary, nil, "* running", true},
		{"primary runs, inactive", rec(registry.RolePrimary, false), registry.RolePrimary, nil, "! running", false},
		{"primary runs as standby", rec(registry.RolePrimary, true), registry.RoleStandby, nil, "! running as standby", false},
		{"inactive primary runs as standby", rec(registry.RolePrimary, false), registry.RoleStandby, nil, "! running as standby", false},
		{"primary starts", rec(registry.RolePrimary, true), "", starting, "? running", false},
		{"inactive primary starts", rec(registry.RolePrimary, false), "", starting, "! running", false},
		{"primary gone", rec(registry.RolePrimary, true), "", refused, "? unreachable", false},
		{"inactive primary gone", rec(registry.RolePrimary, false), "", refused, "- failed", false},
		{"standby runs", rec(registry.RoleStandby, true), registry.RoleStandby, nil, "running", true},
		{"standby runs, inactive", rec(registry.RoleStandby, false), registry.RoleStandby, nil, "! running", false},
		{"standby runs as primary", rec(registry.RoleStandby, true), registry.RolePrimary, nil, "! running as primary", false},
		{"standby starts", rec(registry.RoleStandby, true), "", starting, "? running", false},
		{"standby gone", rec(registry.RoleStandby, true), "", refused, "? unreachable", false},
		{"inactive standby gone", rec(registry.RoleStandby, false), "", refused, "- failed", false},
		{"witness runs", rec(registry.RoleWitness, true), registry.RolePrimary, nil, "* running", true},
		{"witness runs, inactive", rec(registry.RoleWitness, false), registry.RolePrimary, nil, "! running", false},
		{"witness rejects", rec(registry.RoleWitness, true), "", starting, "? rejected", false},
		{"inactive witness rejects", rec(registry.RoleWitness, false), "", starting, "! failed", false},
		{"witness gone", rec(registry.RoleWitness, true), "", refused, "? unreachable", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := Look{Record: test.record, Err: test.err, Status: registry.NodeStatus{InRecovery: test.runs == registry.RoleStandby}}
			var found Findings
			require.Equal(t, test.want, statusCell(p, &found))
			require.Equal(t, test.fine, len(found) == 0, found)
		})
	}
}

// The Upstream column, by what the upstream says of its standbys.
func TestJudge_UpstreamCell(t *testing.T) {
	t.Parallel()
	sends := func(state string) registry.NodeStatus {
		return registry.NodeStatus{Senders: []registry.WALSender{{ApplicationName: "node2", State: state}}}
	}
	standby := Look{Record: registry.Record{ID: 2, Name: "node2", Role: registry.RoleStandby, UpstreamID: 1, UpstreamName: "node1"}, Status: registry.NodeStatus{InRecovery: true}}
	receiving := standby
	receiving.Status.Receiver = &registry.WALReceiver{}
	node1 := registry.Record{ID: 1, Name: "node1", Role: registry.RolePrimary, Active: true}
	node3 := registry.Record{ID: 3, Name: "node3", Role: registry.RoleStandby, Active: true}
	tests := map[string]struct {
		standby, up, other Look
		cell, attached     string
		fine               bool
	}{
		"streaming":             {standby, Look{Record: node1, Status: sends("streaming")}, Look{}, "node1", "streaming", true},
		"catching up":           {standby, Look{Record: node1, Status: sends("catchup")}, Look{}, "? node1", "catchup", false},
		"not attached":          {standby, Look{Record: node1}, Look{}, "! node1", "", false},
		"attached to another":   {standby, Look{Record: node1}, Look{Record: node3, Status: sends("streaming")}, "! node3", "streaming", false},
		"upstream not readable": {receiving, Look{Record: node1, Err: failure.ErrConnect}, Look{}, "? node1", "", true},
		"upstream gone":         {standby, Look{Record: node1, Err: failure.ErrConnect}, Look{}, "? node1", "", false},
		"standby not readable":  {Look{Record: standby.Record, Err: failure.ErrConnect}, Look{Record: node1}, Look{}, "? node1", "", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var found Findings
			cell, attached := upstreamCell(test.standby, []Look{test.standby, test.up, test.other}, &found)
			require.Equal(t, test.cell, cell)
			require.Equal(t, test.attached, attached)
			require.Equal(t, test.fine, len(found) == 0, found)
		})
	}
}

func TestJudge_TwoPrimariesAreAnIssue(t *testing.T) {
	t.Parallel()
	p := func(id registry.NodeID) Look {
		return Look{Record: registry.Record{ID: id, Name: id.String(), Role: registry.RolePrimary, Active: true}}
	}
	require.Contains(t, Compare([]Look{p(1), p(2)}).Issues, `2 nodes run as primary: node "1" (ID: 1), node "2" (ID: 2)`)
	require.Empty(t, Compare([]Look{p(1)}).Issues)
}

// Nobody is the primary where the registered one does not answer. One that rejects
// this login, or is full, lives.
func TestJudge_NoPrimary(t *testing.T) {
	t.Parallel()
	primary := registry.Record{ID: 1, Name: "node1", Role: registry.RolePrimary, Active: true}
	for reach, want := range map[postgres.Reach]bool{postgres.ReachRefused: true, postgres.ReachTimeout: true, postgres.ReachNoHost: true, postgres.ReachRejected: false, postgres.ReachFull: false, postgres.ReachStarting: false} {
		st := Compare([]Look{{Record: primary, Err: &postgres.ConnectError{Reach: reach, Err: errors.New("x")}}})
		require.Equal(t, want, Findings(st.Findings).Has(NoPrimary), reach)
		require.Len(t, st.Findings, len(st.Issues))
		for i, f := range st.Findings {
			require.Equal(t, st.Issues[i], f.Text)
			require.NotEmpty(t, f.Code)
		}
	}
}

// How a standby streams is what its upstream says; how far it is behind is measured at the primary.
func TestCompare_Progress(t *testing.T) {
	t.Parallel()
	look := func(id registry.NodeID, role registry.Role, s registry.NodeStatus) Look {
		s.InRecovery = role == registry.RoleStandby
		return Look{Record: registry.Record{ID: id, Name: "node" + id.String(), Role: role, Active: true}, Status: s}
	}
	sender := func(name, sync string) []registry.WALSender {
		return []registry.WALSender{{ApplicationName: name, State: "streaming", SyncState: sync}}
	}
	st := Compare([]Look{
		look(1, registry.RolePrimary, registry.NodeStatus{CurrentLSN: 5000, Senders: sender("node2", "quorum")}),
		look(2, registry.RoleStandby, registry.NodeStatus{ReceivedLSN: 4000, Senders: sender("node3", "async")}),
		look(3, registry.RoleStandby, registry.NodeStatus{ReceivedLSN: 6000}),
		look(4, registry.RoleStandby, registry.NodeStatus{}),
	})
	zero, lag := int64(0), int64(1000)
	for i, want := range []struct {
		sync string
		lag  *int64
	}{{"", nil}, {"quorum", &lag}, {"async", &zero}, {"", nil}} {
		require.Equal(t, want.sync, st.Nodes[i].Sync)
		require.Equal(t, want.lag, st.Nodes[i].Lag)
	}
}
