package repmgr

import "fmt"

// Finding is one thing that is wrong: Text is for people and may be reworded,
// Code stays what it is.
type Finding struct {
	Code   FindingCode `json:"code"`
	NodeID NodeID      `json:"node_id,omitempty"` // the node that it is about; 0: it is about the cluster
	Text   string      `json:"text"`
}

// FindingCode names a kind of finding, for programs.
type FindingCode string

const (
	FindingNoPrimary           FindingCode = "no_primary"           // no registered node runs as the primary, and the registered one does not answer
	FindingTwoPrimaries        FindingCode = "two_primaries"        // more than one node runs as primary
	FindingDeposed             FindingCode = "deposed_primary"      // it runs as primary, and another node is known to have taken its place
	FindingUnreachable         FindingCode = "node_unreachable"     // the server does not answer
	FindingRejected            FindingCode = "node_rejects_us"      // the server lives, and does not let us look: the login, its slots, or it starts
	FindingInactive            FindingCode = "node_inactive"        // it runs, and is registered as inactive
	FindingWrongRole           FindingCode = "wrong_role"           // it does not run as what it is registered as
	FindingReplayPaused        FindingCode = "replay_paused"        // WAL replay is paused
	FindingNotAttached         FindingCode = "not_attached"         // a standby does not receive from its upstream
	FindingNotStreaming        FindingCode = "not_streaming"        // it is attached, and has not caught up
	FindingWrongUpstream       FindingCode = "wrong_upstream"       // it receives from another node than the registered one
	FindingUpstreamUnreachable FindingCode = "upstream_unreachable" // it receives nothing, and its upstream does not answer
	FindingWALGone             FindingCode = "wal_gone"             // a standby needs WAL that its upstream does not have any more
	FindingSlotLost            FindingCode = "slot_lost"            // the slot of a standby is invalid: nothing streams through it
	FindingUpstreamCircle      FindingCode = "upstream_circle"      // nodes are registered as each other's upstream

	FindingNamesake          FindingCode = "namesake"           // another server streams under the name of a node
	FindingName              FindingCode = "node_name"          // a name that PostgreSQL reads differently
	FindingNoReceiver        FindingCode = "no_receiver"        // of node status: no WAL receiver runs
	FindingDownstreamMissing FindingCode = "downstream_missing" // registered downstream nodes are not attached
	FindingSlotsMissing      FindingCode = "slots_missing"      // slots of registered downstream nodes are not there
	FindingSlotsInactive     FindingCode = "slots_inactive"     // slots that nobody uses keep WAL
	FindingDaemonMissing     FindingCode = "repmgrd_missing"    // no repmgrd runs, where failover is automatic
	FindingDaemonTrouble     FindingCode = "repmgrd_trouble"    // what a repmgrd says of its own trouble
	FindingSecondDaemon      FindingCode = "repmgrd_twice"      // a second repmgrd of one node runs, which changes nothing
	FindingDaemonSilent      FindingCode = "repmgrd_silent"     // a repmgrd has said nothing for long
	FindingDaemonUnknown     FindingCode = "repmgrd_unknown"    // what runs there could not be read
	FindingLeaseRunsOut      FindingCode = "lease_runs_out"     // a primary has no contact to a majority, and is about to be stopped, or should have been
	FindingCanNotFence       FindingCode = "repmgrd_can_not_fence"
	FindingNoPledge          FindingCode = "can_not_pledge"    // its vote can not be stored or read
	FindingNoStream          FindingCode = "can_not_stream"    // it could not log in for replication to a node that may be promoted
	FindingForeignDaemon     FindingCode = "repmgr5_daemon"    // daemons of repmgr 5 run beside ours
	FindingPaused            FindingCode = "failover_paused"   // until somebody unpauses it
	FindingMixedFailover     FindingCode = "failover_mixed"    // automatic on some nodes, manual on others
	FindingCanNotFailOver    FindingCode = "can_not_fail_over" // too few votes, or no standby
)

// findings collects what is wrong.
type findings []Finding

func (f *findings) add(code FindingCode, node NodeID, format string, args ...any) {
	*f = append(*f, Finding{code, node, fmt.Sprintf(format, args...)})
}

// texts are the findings as people read them.
func (f findings) texts() []string {
	all := []string{}
	for _, one := range f {
		all = append(all, one.Text)
	}
	return all
}

// has reports whether there is one of that kind.
func (f findings) has(code FindingCode) bool {
	for _, one := range f {
		if one.Code == code {
			return true
		}
	}
	return false
}
