package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func failovers() []repmgr.FailoverRecord {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.Local)
	lost := int64(40960)
	return []repmgr.FailoverRecord{
		{
			Term: 4, FormerID: 2, Former: "node2", PrimaryID: 3, Primary: "node3", Coordinator: "node3.812", Reason: election.HealthDead, StartedAt: at, Outage: 118 * time.Millisecond, LostBytes: &lost,
			Steps: []repmgr.FailoverStep{
				{Step: "surveyed", After: 2300 * time.Microsecond, Evidence: "primary is dead; node 1 standby at 0/5034A70 on timeline 2"},
				{Step: "recruited", After: 31 * time.Millisecond, Evidence: "2 of 3 voters pledged themselves"},
				{Step: "ruled", After: 96 * time.Millisecond, Evidence: "term 4 is open"},
			},
		},
		{Term: 2, FormerID: 9, PrimaryID: 2, Primary: "node2", Coordinator: "observer.7", Reason: election.HealthSilent, StartedAt: at.AddDate(0, -1, 0)},
	}
}

func TestClusterFailovers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cmd   clusterFailovers
		steps bool
	}{"text": {}, "csv": {cmd: clusterFailovers{csv: csv{CSV: true}}}, "steps": {steps: true}} {
		var out bytes.Buffer
		c.cmd.print(&out, failovers(), c.steps)
		golden(t, "cluster-failovers-"+name, out.String())
	}
	var out bytes.Buffer
	new(clusterFailovers).print(&out, ofTerm(failovers(), 3), true)
	require.Equal(t, "no matching failovers found\n", out.String())
	require.Equal(t, "node2", ofTerm(failovers(), 2)[0].Primary)
}

func TestFailoverTellsWhoWon(t *testing.T) {
	t.Parallel()
	rec := func(id int) *repmgr.Record {
		return &repmgr.Record{ID: repmgr.NodeID(id), Name: fmt.Sprintf("node%d", id)}
	}
	res := repmgr.FailoverResult{Term: 4, Health: election.HealthDead, Former: rec(1), Winner: rec(3), Outage: 117600 * time.Microsecond, Following: []repmgr.Record{*rec(2), *rec(4)}}
	told := func(res repmgr.FailoverResult) string {
		var errs bytes.Buffer
		newApp(nil, nil, &errs).tellFailover(res)
		return errs.String()
	}
	require.Equal(t, "NOTICE: node \"node3\" (ID: 3) is the primary of term 4: "+string(election.HealthDead)+"; without a primary for 118ms\nNOTICE: following it: node2, node4\n", told(res))
	res.Following = nil
	require.Contains(t, told(res), "WARNING: no standby follows it yet\n")
	res.DryRun = true
	require.Equal(t, "INFO: node \"node3\" (ID: 3) would win: "+string(election.HealthDead)+"\n", told(res))
}

func TestFailoverCommandLines(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"cluster-explain":   {"cluster", "explain", "--help"},
		"cluster-why":       {"cluster", "why", "--help"},
		"cluster-why-not":   {"cluster", "why-not", "--help"},
		"cluster-failovers": {"cluster", "failovers", "--help"},
		"cluster-failover":  {"cluster", "failover", "--help"},
	} {
		out, errs, code := try(t, args...)
		require.Equal(t, cli.ExitOK, code, errs)
		golden(t, "help/"+name, out)
	}
	_, errs, code := try(t, "cluster", "why-not")
	require.Equal(t, cli.ExitConfig, code)
	require.Equal(t, "ERROR: option --node-id is missing: the node that is not the primary\nHINT: See: repmgr cluster why-not --help\n", errs)
	conf := config(t, "node_id=1\nconninfo='host=/nonexistent port=1'\n")
	for _, cmd := range []string{"explain", "why", "failovers", "failover", "show", "event", "matrix"} {
		_, errs, code = try(t, "-f", conf, "cluster", cmd)
		require.Equal(t, cli.ExitConnect, code, "%s: %s", cmd, errs)
		require.Contains(t, errs, "To ask another node, add its address: -h HOST -p PORT", cmd)
	}
	_, errs, code = try(t, "-f", conf, "cluster", "cleanup")
	require.Equal(t, cli.ExitConnect, code)
	require.NotContains(t, errs, "-h HOST", "it has no such option")
}

// A refusal has a number of its own, which is not that of a promotion that failed.
func TestFailoverExitCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want int
	}{
		{&repmgr.RefusalError{Refusal: election.RefusedNoMajority}, 11},
		{&repmgr.RefusalError{Refusal: election.RefusedPaused}, 11},
		{repmgr.ErrTimeout, 11},
		{repmgr.ErrPromotion, 8},
		{repmgr.ErrMetadata, 7},
		{repmgr.ErrNotRegistered, 1},
	} {
		require.Equal(t, c.want, exitCode("cluster failover", c.err), "%v", c.err)
	}
}
