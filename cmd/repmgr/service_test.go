package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/cli"
	"github.com/pgrepmgr/repmgr/wal"
)

// serviceNodes are a primary, a paused standby, one without a daemon, and one that is gone.
func serviceNodes() repmgr.ServiceStatus {
	yes, no, lease := true, false, 1.94
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	rule := &election.Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3, 4}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}
	gone := node(4, "node4", repmgr.RoleStandby, "? node1", "? unreachable")
	gone.Reach, gone.Running = repmgr.ReachTimeout, ""
	return repmgr.ServiceStatus{Rule: rule, Nodes: []repmgr.ServiceNode{
		{NodeView: node(1, "node1", repmgr.RolePrimary, "", "* running"), Monitored: &yes, Paused: &no, Rule: rule, Monitor: &repmgr.Announcement{
			PID: 101, Mode: repmgr.FailoverAutomatic, Phase: "in office", Reason: "a majority answers, the lease holds", LeaseLeft: &lease, At: at,
		}},
		{NodeView: node(2, "node2", repmgr.RoleStandby, "node1", "running"), Monitored: &yes, Paused: &yes, Rule: rule, Monitor: &repmgr.Announcement{
			PID: 102, Mode: repmgr.FailoverAutomatic, Phase: "watching", Reason: "paused", SeenAt: at.Add(-1500 * time.Millisecond), At: at, Age: 0.7,
		}},
		{NodeView: node(3, "node3", repmgr.RoleStandby, "node1", "running"), Monitored: &no, Paused: &no},
		{NodeView: gone},
	}}
}

func TestServiceStatus(t *testing.T) {
	t.Parallel()
	for name, cmd := range map[string]serviceStatus{
		"text": {}, "compact": {Compact: true}, "detail": {Detail: true}, "csv": {csv: csv{CSV: true}}, "csv-detail": {csv: csv{CSV: true}, Detail: true},
	} {
		var out bytes.Buffer
		cmd.print(&out, serviceNodes())
		golden(t, "service-status-"+name, out.String())
	}
}

// A switchover that is to begin is shown with how it is taken back.
func TestServiceStatus_Scheduled(t *testing.T) {
	t.Parallel()
	st := serviceNodes()
	st.Scheduled = &repmgr.ScheduledSwitchover{From: "node1", To: "node3", At: time.Date(2026, 5, 4, 3, 0, 0, 0, time.Local)}
	var out bytes.Buffer
	(&serviceStatus{}).print(&out, st)
	golden(t, "service-status-scheduled", strings.ReplaceAll(out.String(), st.Scheduled.At.Format("MST"), "ZONE"))
	out.Reset()
	(&serviceStatus{csv: csv{CSV: true}}).print(&out, st)
	require.NotContains(t, out.String(), "scheduled")
	text, err := json.Marshal(st)
	require.NoError(t, err)
	require.Contains(t, string(text), `"scheduled_switchover":{"from":"node1","to":"node3","at":"2026-05-04T03:00:00`)
}

// The lease of a healthy primary holds, however long ago it was told of; seconds are
// shown only where they count down.
func TestServiceStatus_Lease(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		left    float64
		runsOut bool
		cell    string
	}{
		"holds": {0.4, false, "holds"}, "runs out": {1.24, true, "1.2 s"}, "is over": {-0.4, true, "0.0 s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := serviceNodes()
			st.Nodes[0].Monitor.LeaseLeft, st.Nodes[0].Monitor.RunsOut, st.Nodes[0].Monitor.Age = &test.left, test.runsOut, 4
			require.Equal(t, test.cell, detailCells(st.Nodes[0], " s")[3])
		})
	}
}

// As in repmgr 5, issues are no failure of service status: only that there is not exactly
// one primary is one, in each form of the answer.
func TestServiceStatus_ExitCodes(t *testing.T) {
	t.Parallel()
	finding := func(code repmgr.FindingCode) []repmgr.Finding {
		return []repmgr.Finding{{Code: code, Text: "something"}}
	}
	for name, test := range map[string]struct {
		findings []repmgr.Finding
		code     int
	}{
		"all is well":            {nil, cli.ExitOK},
		"no primary":             {finding(repmgr.FindingNoPrimary), cli.ExitIssues},
		"also no primary":        {append(finding(repmgr.FindingUnreachable), finding(repmgr.FindingNoPrimary)...), cli.ExitIssues},
		"two primaries":          {finding(repmgr.FindingTwoPrimaries), cli.ExitIssues},
		"a deposed primary":      {finding(repmgr.FindingDeposed), cli.ExitIssues},
		"a node is gone":         {finding(repmgr.FindingUnreachable), cli.ExitOK},
		"a daemon is missing":    {finding(repmgr.FindingDaemonMissing), cli.ExitOK},
		"it can not fail over":   {finding(repmgr.FindingCanNotFailOver), cli.ExitOK},
		"it is paused":           {finding(repmgr.FindingPaused), cli.ExitOK},
		"a lease is running out": {finding(repmgr.FindingLeaseRunsOut), cli.ExitOK},
	} {
		for form, set := range map[string]func(*app, *serviceStatus){
			"text": func(*app, *serviceStatus) {}, "terse": func(a *app, _ *serviceStatus) { a.Terse = true },
			"csv": func(_ *app, cmd *serviceStatus) { cmd.CSV = true }, "json": func(a *app, _ *serviceStatus) { a.json = true },
		} {
			t.Run(name+", "+form, func(t *testing.T) {
				t.Parallel()
				var out, errs bytes.Buffer
				a, cmd, st := newApp(nil, &out, &errs), &serviceStatus{}, serviceNodes()
				set(a, cmd)
				for _, f := range test.findings {
					st.Issues, st.Findings = append(st.Issues, f.Text), append(st.Findings, f)
				}
				require.Equal(t, test.code, a.finish(cmd.tell(a, st)))
				require.NotEmpty(t, out.String())
				require.Equal(t, len(test.findings) > 0 && form == "text", errs.Len() > 0)
			})
		}
	}
	conf := config(t, "node_id=1\nconninfo='host=/nonexistent port=1'\n")
	_, _, code := try(t, "-f", conf, "service", "status")
	require.Equal(t, cli.ExitConnect, code, "nobody can be asked")
	_, _, code = try(t, "-f", conf+".missing", "service", "status")
	require.Equal(t, cli.ExitConfig, code)
}

// What is not known is left out: a rule that nobody has written is no rule of term 0.
func TestJSONLeavesOutUnknownRules(t *testing.T) {
	t.Parallel()
	for _, doc := range []any{repmgr.Explanation{}, repmgr.Reasoning{}, repmgr.FailoverResult{}, repmgr.MonitorStatus{}, election.Forecast{}} {
		text, err := json.Marshal(doc)
		require.NoError(t, err)
		require.NotContains(t, string(text), `"rule":`, "%T", doc)
	}
	text, err := json.Marshal(election.Rule{Term: 1, Line: wal.Lineage{Past: wal.History{{Timeline: 1, SwitchLSN: 16}}}})
	require.NoError(t, err)
	require.Contains(t, string(text), `"line":{"past":[{"timeline":1,`)
	var older, newer election.Rule
	require.NoError(t, json.Unmarshal([]byte(`{"term":1,"line":{"timeline":0,"past":null}}`), &older))
	require.NoError(t, json.Unmarshal([]byte(`{"term":1}`), &newer))
	require.Equal(t, older, newer)
}

// A node that could not be paused makes exit code 26; what was done is told all the same.
func TestPauseTellsOfEachNode(t *testing.T) {
	t.Parallel()
	conf := config(t, "node_id=1\nconninfo='host=/nonexistent port=1'\n")
	_, _, code := try(t, "-f", conf, "service", "pause")
	require.Equal(t, cli.ExitConnect, code, "it did not begin")

	res := repmgr.PauseResult{Paused: true, Nodes: []repmgr.PausedNode{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2", Error: "no answer"}}}
	run := func(json bool, err error) (stdout, stderr string, code int) {
		var out, errs bytes.Buffer
		a := newApp(nil, &out, &errs)
		a.json, a.cfg = json, repmgr.DefaultConfig()
		err = a.pause(pauseService{}, "paused", func(*repmgr.Cluster, repmgr.PauseOptions) (repmgr.PauseResult, error) { return res, err })
		code = a.finish(err)
		return out.String(), errs.String(), code
	}
	out, errs, code := run(false, errors.New("no answer"))
	require.Equal(t, cli.ExitPause, code)
	require.Empty(t, out)
	require.Equal(t, "NOTICE: node 1 (node1) paused\nNOTICE: node 2 (node2) not paused\nERROR: no answer\n", errs)
	out, _, code = run(true, errors.New("no answer"))
	require.Equal(t, cli.ExitPause, code)
	require.JSONEq(t, `{"paused": true, "nodes": [{"node_id": 1, "node_name": "node1"}, {"node_id": 2, "node_name": "node2", "error": "no answer"}]}`, out)
	res.Nodes[1].Error = ""
	_, _, code = run(false, nil)
	require.Equal(t, cli.ExitOK, code)
}

func TestDaemonExitCodes(t *testing.T) {
	t.Parallel()
	a := newApp(nil, &bytes.Buffer{}, &bytes.Buffer{})
	for want, err := range map[int]error{
		cli.ExitOK: nil, cli.ExitConfig: repmgr.ErrConfig, cli.ExitConnect: repmgr.ErrConnect,
		cli.ExitDaemon: fmt.Errorf("x: %w", repmgr.ErrRefused),
	} {
		require.Equal(t, want, exitCode("daemon start", a.controlled(repmgr.DaemonResult{}, err, "started")))
	}
	require.Equal(t, cli.ExitDaemon, exitCode("daemon stop", a.controlled(repmgr.DaemonResult{}, repmgr.ErrTimeout, "stopped")))
}
