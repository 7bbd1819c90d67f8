package report

import (
	"fmt"
	"slices"

	"github.com/pgrepmgr/repmgr/registry"
)

// Finding is one thing that is wrong. Text is for people and may change in a later version; Code does not
// change.
type Finding struct {
	Code   FindingCode     `json:"code"`
	NodeID registry.NodeID `json:"node_id,omitempty"` // the node that it is about; 0: it is about the cluster
	Text   string          `json:"text"`
}

// FindingCode names a kind of finding, for programs. Package repmgr says what each means.
type FindingCode string

const (
	NoPrimary           FindingCode = "no_primary"
	TwoPrimaries        FindingCode = "two_primaries"
	Deposed             FindingCode = "deposed_primary"
	Unreachable         FindingCode = "node_unreachable"
	Rejected            FindingCode = "node_rejects_us"
	Inactive            FindingCode = "node_inactive"
	WrongRole           FindingCode = "wrong_role"
	ReplayPaused        FindingCode = "replay_paused"
	NotAttached         FindingCode = "not_attached"
	NotStreaming        FindingCode = "not_streaming"
	WrongUpstream       FindingCode = "wrong_upstream"
	UpstreamUnreachable FindingCode = "upstream_unreachable"
	WALGone             FindingCode = "wal_gone"
	Diverged            FindingCode = "diverged"
	SlotLost            FindingCode = "slot_lost"
	UpstreamCircle      FindingCode = "upstream_circle"

	Namesake          FindingCode = "namesake"
	Name              FindingCode = "node_name"
	NoReceiver        FindingCode = "no_receiver"
	DownstreamMissing FindingCode = "downstream_missing"
	SlotsMissing      FindingCode = "slots_missing"
	SlotsInactive     FindingCode = "slots_inactive"
	DaemonMissing     FindingCode = "repmgrd_missing"
	DaemonTrouble     FindingCode = "repmgrd_trouble"
	RouterFailing     FindingCode = "router_failing"
	SecondDaemon      FindingCode = "repmgrd_twice"
	DaemonSilent      FindingCode = "repmgrd_silent"
	DaemonUnknown     FindingCode = "repmgrd_unknown"
	LeaseRunsOut      FindingCode = "lease_runs_out"
	CanNotFence       FindingCode = "repmgrd_can_not_fence"
	NoPledge          FindingCode = "can_not_pledge"
	NoStream          FindingCode = "can_not_stream"
	ForeignDaemon     FindingCode = "repmgr5_daemon"
	Paused            FindingCode = "failover_paused"
	MixedFailover     FindingCode = "failover_mixed"
	CanNotFailOver    FindingCode = "can_not_fail_over"
)

// Findings collects what is wrong.
type Findings []Finding

// Add adds one. node 0: it is about the cluster.
func (f *Findings) Add(code FindingCode, node registry.NodeID, format string, args ...any) {
	*f = append(*f, Finding{code, node, fmt.Sprintf(format, args...)})
}

// Texts are the findings as people read them.
func (f Findings) Texts() []string {
	all := []string{}
	for _, one := range f {
		all = append(all, one.Text)
	}
	return all
}

// Has reports whether there is one of these kinds.
func (f Findings) Has(codes ...FindingCode) bool {
	return slices.ContainsFunc(f, func(one Finding) bool { return slices.Contains(codes, one.Code) })
}
