package repmgr

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/report"
)

// The Status column, by what is registered and what answers.
func TestJudge_StatusCell(t *testing.T) {
	t.Parallel()
	refused := &postgres.ConnectError{Target: "x", Reach: postgres.ReachRefused, Err: errors.New("refused")}
	starting := &postgres.ConnectError{Target: "x", Reach: postgres.ReachStarting, Err: errors.New("starting")}
	rec := func(role Role, active bool) Record { return Record{ID: 1, Name: "n", Role: role, Active: active} }
	tests := []struct {
		name   string
		record Record
		runs   Role
		err    error
		want   string
		fine   bool
	}{
		{"primary runs", rec(RolePrimary, true), RolePrimary, nil, "* running", true},
		{"primary runs, inactive", rec(RolePrimary, false), RolePrimary, nil, "! running", false},
		{"primary runs as standby", rec(RolePrimary, true), RoleStandby, nil, "! running as standby", false},
		{"inactive primary runs as standby", rec(RolePrimary, false), RoleStandby, nil, "! running as standby", false},
		{"primary starts", rec(RolePrimary, true), "", starting, "? running", false},
		{"inactive primary starts", rec(RolePrimary, false), "", starting, "! running", false},
		{"primary gone", rec(RolePrimary, true), "", refused, "? unreachable", false},
		{"inactive primary gone", rec(RolePrimary, false), "", refused, "- failed", false},
		{"standby runs", rec(RoleStandby, true), RoleStandby, nil, "running", true},
		{"standby runs, inactive", rec(RoleStandby, false), RoleStandby, nil, "! running", false},
		{"standby runs as primary", rec(RoleStandby, true), RolePrimary, nil, "! running as primary", false},
		{"standby starts", rec(RoleStandby, true), "", starting, "? running", false},
		{"standby gone", rec(RoleStandby, true), "", refused, "? unreachable", false},
		{"inactive standby gone", rec(RoleStandby, false), "", refused, "- failed", false},
		{"witness runs", rec(RoleWitness, true), RolePrimary, nil, "* running", true},
		{"witness runs, inactive", rec(RoleWitness, false), RolePrimary, nil, "! running", false},
		{"witness rejects", rec(RoleWitness, true), "", starting, "? rejected", false},
		{"inactive witness rejects", rec(RoleWitness, false), "", starting, "! failed", false},
		{"witness gone", rec(RoleWitness, true), "", refused, "? unreachable", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := probe{record: test.record, err: test.err, status: NodeStatus{InRecovery: test.runs == RoleStandby}}
			var found report.Findings
			require.Equal(t, test.want, statusCell(p, &found))
			require.Equal(t, test.fine, len(found) == 0, found)
		})
	}
}

// The Upstream column, by what the upstream says of its standbys.
func TestJudge_UpstreamCell(t *testing.T) {
	t.Parallel()
	sends := func(state string) NodeStatus {
		return NodeStatus{Senders: []WALSender{{ApplicationName: "node2", State: state}}}
	}
	standby := probe{record: Record{ID: 2, Name: "node2", Role: RoleStandby, UpstreamID: 1, UpstreamName: "node1"}, status: NodeStatus{InRecovery: true}}
	receiving := standby
	receiving.status.Receiver = &WALReceiver{}
	node1 := Record{ID: 1, Name: "node1", Role: RolePrimary, Active: true}
	node3 := Record{ID: 3, Name: "node3", Role: RoleStandby, Active: true}
	tests := map[string]struct {
		standby, up, other probe
		cell, attached     string
		fine               bool
	}{
		"streaming":             {standby, probe{record: node1, status: sends("streaming")}, probe{}, "node1", "streaming", true},
		"catching up":           {standby, probe{record: node1, status: sends("catchup")}, probe{}, "? node1", "catchup", false},
		"not attached":          {standby, probe{record: node1}, probe{}, "! node1", "", false},
		"attached to another":   {standby, probe{record: node1}, probe{record: node3, status: sends("streaming")}, "! node3", "streaming", false},
		"upstream not readable": {receiving, probe{record: node1, err: ErrConnect}, probe{}, "? node1", "", true},
		"upstream gone":         {standby, probe{record: node1, err: ErrConnect}, probe{}, "? node1", "", false},
		"standby not readable":  {probe{record: standby.record, err: ErrConnect}, probe{record: node1}, probe{}, "? node1", "", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var found report.Findings
			cell, attached := upstreamCell(test.standby, []probe{test.standby, test.up, test.other}, &found)
			require.Equal(t, test.cell, cell)
			require.Equal(t, test.attached, attached)
			require.Equal(t, test.fine, len(found) == 0, found)
		})
	}
}

func TestJudge_TwoPrimariesAreAnIssue(t *testing.T) {
	t.Parallel()
	p := func(id NodeID) probe {
		return probe{record: Record{ID: id, Name: id.String(), Role: RolePrimary, Active: true}}
	}
	require.Contains(t, compareWithRegistered([]probe{p(1), p(2)}).Issues, `2 nodes run as primary: node "1" (ID: 1), node "2" (ID: 2)`)
	require.Empty(t, compareWithRegistered([]probe{p(1)}).Issues)
}

// Nobody is the primary where the registered one does not answer. One that rejects
// this login, or is full, lives.
func TestJudge_NoPrimary(t *testing.T) {
	t.Parallel()
	primary := Record{ID: 1, Name: "node1", Role: RolePrimary, Active: true}
	for reach, want := range map[postgres.Reach]bool{postgres.ReachRefused: true, postgres.ReachTimeout: true, postgres.ReachNoHost: true, postgres.ReachRejected: false, postgres.ReachFull: false, postgres.ReachStarting: false} {
		st := compareWithRegistered([]probe{{record: primary, err: &postgres.ConnectError{Reach: reach, Err: errors.New("x")}}})
		require.Equal(t, want, report.Findings(st.Findings).Has(FindingNoPrimary), reach)
		require.Len(t, st.Findings, len(st.Issues))
		for i, f := range st.Findings {
			require.Equal(t, st.Issues[i], f.Text)
			require.NotEmpty(t, f.Code)
		}
	}
}
