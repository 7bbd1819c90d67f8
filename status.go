package repmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
	"github.com/pgrepmgr/repmgr/wal"
)

// ClusterStatus is every registered node, as it is and as it should be.
type ClusterStatus struct {
	Nodes    []NodeView `json:"nodes"`
	Issues   []string   `json:"issues"`   // empty: all is well
	Findings []Finding  `json:"findings"` // the issues, each with a code that stays the same
}

// NodeView is a registered node with what was seen of it.
type NodeView struct {
	Record
	Reach    postgres.Reach `json:"reach"`
	Running  Role           `json:"running,omitempty"`  // what it runs as; empty: unknown
	Status   string         `json:"status"`             // repmgr's cell with its marker, where it has one: "* running", "running", "! running as primary", "? unreachable", "- failed"
	Upstream string         `json:"upstream"`           // repmgr's cell: "node1", or with "? " unknown, "! " wrong
	Timeline wal.Timeline   `json:"timeline,omitempty"` // 0: unknown
	Attached string         `json:"attached,omitempty"` // streaming, catchup, or empty: not attached, or unknown
	LostWAL  *LostWAL       `json:"lost_wal,omitempty"` // of a standby that can not go on, because what it needs next is gone
	Error    string         `json:"error,omitempty"`    // why it could not be read
}

// Finding is one thing that is wrong: Text is for people and may be reworded,
// Code stays what it is.
type Finding = report.Finding

// FindingCode names a kind of finding, for programs.
type FindingCode = report.FindingCode

const (
	FindingNoPrimary           = report.NoPrimary           // no registered node runs as the primary, and the registered one does not answer
	FindingTwoPrimaries        = report.TwoPrimaries        // more than one node runs as primary
	FindingDeposed             = report.Deposed             // it runs as primary, and another node is known to have taken its place
	FindingUnreachable         = report.Unreachable         // the server does not answer
	FindingRejected            = report.Rejected            // the server lives, and does not let us look: the login, its slots, or it starts
	FindingInactive            = report.Inactive            // it runs, and is registered as inactive
	FindingWrongRole           = report.WrongRole           // it does not run as what it is registered as
	FindingReplayPaused        = report.ReplayPaused        // WAL replay is paused
	FindingNotAttached         = report.NotAttached         // a standby does not receive from its upstream
	FindingNotStreaming        = report.NotStreaming        // it is attached, and has not caught up
	FindingWrongUpstream       = report.WrongUpstream       // it receives from another node than the registered one
	FindingUpstreamUnreachable = report.UpstreamUnreachable // it receives nothing, and its upstream does not answer
	FindingWALGone             = report.WALGone             // a standby needs WAL that its upstream does not have any more
	FindingSlotLost            = report.SlotLost            // the slot of a standby is invalid: nothing streams through it
	FindingUpstreamCircle      = report.UpstreamCircle      // nodes are registered as each other's upstream

	FindingNamesake          = report.Namesake          // another server streams under the name of a node
	FindingName              = report.Name              // a name that PostgreSQL reads differently
	FindingNoReceiver        = report.NoReceiver        // of node status: no WAL receiver runs
	FindingDownstreamMissing = report.DownstreamMissing // registered downstream nodes are not attached
	FindingSlotsMissing      = report.SlotsMissing      // slots of registered downstream nodes are not there
	FindingSlotsInactive     = report.SlotsInactive     // slots that nobody uses keep WAL
	FindingDaemonMissing     = report.DaemonMissing     // no repmgrd runs, where failover is automatic
	FindingDaemonTrouble     = report.DaemonTrouble     // what a repmgrd says of its own trouble
	FindingSecondDaemon      = report.SecondDaemon      // a second repmgrd of one node runs, which changes nothing
	FindingDaemonSilent      = report.DaemonSilent      // a repmgrd has said nothing for long
	FindingDaemonUnknown     = report.DaemonUnknown     // what runs there could not be read
	FindingLeaseRunsOut      = report.LeaseRunsOut      // a primary has no contact to a majority, and is about to be stopped, or should have been
	FindingCanNotFence       = report.CanNotFence
	FindingNoPledge          = report.NoPledge       // its vote can not be stored or read
	FindingNoStream          = report.NoStream       // it could not log in for replication to a node that may be promoted
	FindingForeignDaemon     = report.ForeignDaemon  // daemons of repmgr 5 run beside ours
	FindingPaused            = report.Paused         // until somebody unpauses it
	FindingMixedFailover     = report.MixedFailover  // automatic on some nodes, manual on others
	FindingCanNotFailOver    = report.CanNotFailOver // too few votes, or no standby
)

// Status looks at all registered nodes at once and compares what it sees with what is
// registered: on the primary where there is one, else in the local copy. It takes no longer
// than the slowest answer, and no longer than one connect_timeout.
func (c *Cluster) Status(ctx context.Context) (ClusterStatus, error) {
	probes, err := c.probeNodes(ctx)
	if err != nil {
		return ClusterStatus{}, err
	}
	return compareWithRegistered(probes), nil
}

// probeNodes looks at all nodes that the primary, or else the local node, has registered.
func (c *Cluster) probeNodes(ctx context.Context, ask ...followUp) ([]probe, error) {
	recs, err := c.Nodes(ctx)
	if errors.Is(err, ErrConnect) {
		return nil, hint(err, "%s To ask another node, add its address: -h HOST -p PORT", Hint(err))
	}
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	probes := c.survey(ctx, recs, ask...)
	found := slices.DeleteFunc(primaries(probes), func(p probe) bool { return deposedReason(p, probes) != "" })
	if len(found) == 1 && len(found[0].records) > 0 {
		probes = c.withPrimaryRows(ctx, probes, found[0].records, ask)
	}
	c.seekLostWAL(ctx, probes)
	return probes, nil
}

// withPrimaryRows replaces the rows of a copy, which may be old, by those of the primary. It
// looks only at the nodes that are new, or have another address, in the primary's rows.
func (c *Cluster) withPrimaryRows(ctx context.Context, probes []probe, recs []Record, ask []followUp) []probe {
	var missing []Record
	fresh := make([]probe, len(recs))
	for i, r := range recs {
		at := slices.IndexFunc(probes, func(p probe) bool { return p.record.ID == r.ID && p.record.Conninfo == r.Conninfo })
		if at < 0 {
			missing = append(missing, r)
			continue
		}
		fresh[i] = probes[at]
		fresh[i].record = r
	}
	for _, p := range c.survey(ctx, missing, ask...) {
		fresh[slices.IndexFunc(recs, func(r Record) bool { return r.ID == p.record.ID })] = p
	}
	return fresh
}

// compareWithRegistered compares what was seen with what is registered.
func compareWithRegistered(probes []probe) ClusterStatus {
	st := ClusterStatus{Nodes: []NodeView{}, Issues: []string{}}
	found := report.Findings{}
	for _, p := range probes {
		v := NodeView{Record: p.record, Reach: p.reach(), LostWAL: p.lost}
		v.Conninfo = Redact(v.Conninfo) // rows of a C repmgr may hold a password
		if p.err == nil {
			v.Running, v.Timeline = p.status.Role(), p.status.Timeline
			if p.record.Role == RoleWitness && !p.status.InRecovery {
				v.Running = RoleWitness
			}
			if p.record.Role == RoleWitness && p.status.InRecovery {
				found.Add(FindingWrongRole, p.record.ID, "%s is registered as witness but running as standby: it can keep no vote", p.record)
			}
			if p.status.ReplayPaused {
				found.Add(FindingReplayPaused, p.record.ID, "WAL replay is paused on %s", p.record)
			}
		} else {
			v.Error = p.err.Error()
		}
		if v.Status = statusCell(p, &found); p.err == nil && !p.status.InRecovery {
			if why := deposedReason(p, probes); why != "" {
				v.Status = "! deposed"
				found.Add(FindingDeposed, p.record.ID, "%s runs as primary and was deposed: %s", p.record, why)
			}
		}
		v.Upstream, v.Attached = upstreamCell(p, probes, &found)
		st.Nodes = append(st.Nodes, v)
	}
	recs := make([]Record, len(probes))
	for i, p := range probes {
		recs[i] = p.record
	}
	for _, r := range recs {
		if up, ok := registry.ByID(recs, r.UpstreamID); ok {
			if err := registry.CheckLoop(recs, r.ID, up); err != nil {
				found.Add(FindingUpstreamCircle, r.ID, "%s receives nothing: its upstreams are a circle", r)
			}
		}
	}
	findDuplicates(probes, &found)
	judgePrimary(probes, &found)
	st.Issues, st.Findings = append(st.Issues, found.Texts()...), found
	return st
}

// deposedReason says, where a node runs as primary and another one is known to have replaced
// it, which one that is and what to do. Empty: no node that answers knows of another one.
func deposedReason(p probe, probes []probe) string {
	if p.err != nil || p.status.InRecovery || p.record.Role == RoleWitness {
		return ""
	}
	var by probe
	since := ""
	rule := p.rule
	for _, q := range probes {
		if q.rule.Compare(rule) > 0 {
			rule = q.rule
		}
	}
	switch {
	case rule.Term > p.rule.Term && rule.Primary != int32(p.record.ID):
		since = fmt.Sprintf(" since term %d", rule.Term)
		by.record = Record{ID: NodeID(rule.Primary), Name: fmt.Sprint(rule.Primary)}
		for _, q := range probes {
			if q.record.ID == by.record.ID {
				by = q
			}
		}
	case rule.Known():
		return ""
	default: // it was promoted by hand, which only its own rows show
		for _, q := range primaries(probes) {
			me, ok := registry.ByID(q.records, p.record.ID)
			its, _ := registry.ByID(q.records, q.record.ID)
			if q.record.ID != p.record.ID && q.status.Timeline > p.status.Timeline && its.Role == RolePrimary && ok && (me.Role != RolePrimary || !me.Active) {
				by, since = q, fmt.Sprintf(", promoted to timeline %d", q.status.Timeline)
			}
		}
	}
	if by.record.ID == 0 {
		return ""
	}
	return fmt.Sprintf("%s is the primary%s. The others do not get what is written here. Stop the server; then, on %s, this saves what only it has, and makes a standby of it: %s",
		by.record, since, p.record.Name, follow.RejoinCommand(p.record, by.record, "--force-rewind"))
}

// judgePrimary reports where there is not exactly one primary. A primary that lives and rejects
// the login counts as one.
func judgePrimary(probes []probe, found *report.Findings) {
	var names []string
	for _, p := range primaries(probes) {
		names = append(names, p.record.String())
	}
	lives := slices.ContainsFunc(probes, func(p probe) bool {
		return p.record.Role == RolePrimary && p.record.Active && p.err != nil && p.reach().Answers()
	})
	switch {
	case len(names) > 1:
		found.Add(FindingTwoPrimaries, 0, "%d nodes run as primary: %s", len(names), strings.Join(names, ", "))
	case len(names) == 0 && !lives:
		found.Add(FindingNoPrimary, 0, "no node that answers runs as primary; who should be promoted, and how: repmgr cluster explain")
	}
}

// findDuplicates reports the names under which more than one server streams.
func findDuplicates(probes []probe, found *report.Findings) {
	for _, up := range probes {
		for _, p := range probes {
			switch senders := registry.SendersOf(up.status, p.record.Name); {
			case up.err != nil || len(senders) == 0:
			case len(senders) > 1:
				found.Add(FindingNamesake, p.record.ID, "%d servers stream from %s under the name of %s, from %s: one of them is not that node, or its connection has just broken", len(senders), up.record, p.record, registry.AddressesOf(senders))
			case p.err == nil && p.status.Receiver == nil:
				found.Add(FindingNamesake, p.record.ID, "a server at %s streams from %s under the name of %s, which receives from nobody", registry.AddressesOf(senders), up.record, p.record)
			}
		}
	}
}

// statusCell is the node's cell in the Status column. What is wrong is added to found.
func statusCell(p probe, found *report.Findings) string {
	r := p.record
	bad := func(cell string, code FindingCode, format string, args ...any) string {
		found.Add(code, r.ID, format, args...)
		return cell
	}
	switch reach := p.reach(); {
	case reach == postgres.ReachOK && r.Role == RoleWitness, reach == postgres.ReachOK && r.Role == p.status.Role():
		if !r.Active {
			return bad("! running", FindingInactive, "%s is running but registered as inactive", r)
		}
		return map[Role]string{RolePrimary: "* ", RoleWitness: "* "}[r.Role] + "running"
	case reach == postgres.ReachOK:
		return bad("! running as "+string(p.status.Role()), FindingWrongRole, "%s is registered as %s but running as %s", r, r.Role, p.status.Role())
	case reach.Answers() && r.Role == RoleWitness && r.Active:
		return bad("? rejected", FindingRejected, "unable to connect to %s: %s", r, connectReason(p.err))
	case reach.Answers() && r.Role == RoleWitness:
		return bad("! failed", FindingRejected, "unable to connect to %s, registered as inactive: %s", r, connectReason(p.err))
	case reach.Answers() && r.Active:
		return bad("? running", FindingRejected, "unable to connect to %s: %s", r, connectReason(p.err))
	case reach.Answers():
		return bad("! running", FindingRejected, "%s is running but registered as inactive, and does not let us connect: %s", r, connectReason(p.err))
	case r.Active:
		return bad("? unreachable", FindingUnreachable, "unable to connect to %s: %s", r, connectReason(p.err))
	default:
		return bad("- failed", FindingUnreachable, "%s is registered as inactive and not reachable: %s", r, connectReason(p.err))
	}
}

// connectReason is the reason without the name of the node, which the finding already has.
func connectReason(err error) string {
	_, why, found := strings.Cut(err.Error(), "): ")
	if !found {
		return err.Error()
	}
	return why
}

// upstreamCell is the node's cell in the Upstream column: the registered
// upstream, marked where the servers tell otherwise.
func upstreamCell(p probe, probes []probe, found *report.Findings) (cell, attached string) {
	r := p.record
	if r.Role == RolePrimary || r.UpstreamID == 0 {
		return "", ""
	}
	var up probe
	for _, q := range probes {
		if q.record.ID == r.UpstreamID {
			up = q
		}
	}
	switch {
	case r.Role == RoleWitness && p.err == nil:
		return r.UpstreamName, ""
	case r.Role == RoleWitness:
		return "? " + r.UpstreamName, ""
	case p.err == nil && up.err != nil && p.status.InRecovery && p.status.Receiver == nil:
		found.Add(FindingUpstreamUnreachable, r.ID, "%s receives nothing: its upstream, %s, is not reachable", r, up.record)
		return "? " + r.UpstreamName, ""
	case p.err != nil || up.record.ID == 0 || up.err != nil:
		return "? " + r.UpstreamName, ""
	case !p.status.InRecovery:
		return "! " + r.UpstreamName, "" // the Status column already says it
	}
	attached = registry.Attachment(up.status, r.Name)
	slot, _ := slotOf(up.status, r.SlotName)
	switch {
	case attached == "streaming":
		return r.UpstreamName, attached
	case p.lost != nil:
		found.Add(FindingWALGone, r.ID, "%s can not go on: %s. %s", r, p.lost, remedy(*p.lost, r, probes))
		return "! " + r.UpstreamName, attached
	case slot.WALStatus == "lost":
		found.Add(FindingSlotLost, r.ID, "%s can not stream: its slot %q on %s is lost (see max_slot_wal_keep_size there). A new one is made by, on %s: repmgr%s standby follow",
			r, slot.Name, up.record, r.Name, follow.ConfOption(r))
		return "! " + r.UpstreamName, attached
	}
	switch attached {
	case "":
		for _, q := range probes {
			if q.err == nil && registry.Attachment(q.status, r.Name) != "" {
				found.Add(FindingWrongUpstream, r.ID, "%s is attached to %s, not to its registered upstream %q (ID: %d)", r, q.record, r.UpstreamName, r.UpstreamID)
				return "! " + q.record.Name, registry.Attachment(q.status, r.Name)
			}
		}
		found.Add(FindingNotAttached, r.ID, "%s is not attached to its upstream node %q (ID: %d)", r, r.UpstreamName, r.UpstreamID)
		return "! " + r.UpstreamName, ""
	default:
		found.Add(FindingNotStreaming, r.ID, "%s is attached to its upstream node %q (ID: %d), in state %q", r, r.UpstreamName, r.UpstreamID, attached)
		return "? " + r.UpstreamName, attached
	}
}

// LostWAL says why a standby can not go on: the server that it would stream from
// does not have the WAL any more that comes next.
type LostWAL = follow.LostWAL

// remedy is what an operator does about it: one command, on the node itself.
func remedy(l LostWAL, node Record, probes []probe) string {
	primary, _ := registry.ByID(recordsOf(probes), node.UpstreamID)
	if found := primaries(probes); len(found) == 1 {
		primary = found[0].record
	}
	if l.Archive {
		return "Look at its log for what restore_command says. To copy it anew, on " + node.Name + ": " + follow.RecloneCommand(node, primary)
	}
	return "It has to be copied anew. Run on " + node.Name + ": " + follow.RecloneCommand(node, primary)
}

func recordsOf(probes []probe) []Record {
	recs := make([]Record, len(probes))
	for i, p := range probes {
		recs[i] = p.record
	}
	return recs
}

// slotOf is the slot of that name.
func slotOf(s registry.NodeStatus, name string) (registry.Slot, bool) {
	for _, slot := range s.Slots {
		if slot.Name == name {
			return slot, true
		}
	}
	return registry.Slot{}, false
}

// seekLostWAL finds the standbys that receive nothing and never will again, and notes that in
// their probes. It looks at all of them at the same time.
func (c *Cluster) seekLostWAL(ctx context.Context, probes []probe) {
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	found := make([]*LostWAL, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		up, ok := upstreamProbe(probes, p.record)
		if !ok || p.err != nil || p.record.Role != RoleStandby || registry.NextLSN(p.status) == 0 || attachedAnywhere(probes, p.record.Name) {
			continue
		}
		wg.Go(func() {
			if n, err := c.connectTo(ctx, up.record); err == nil {
				defer n.Close()
				found[i] = follow.FindLostWAL(ctx, n, up.record, p.status)
			}
		})
	}
	wg.Wait()
	for i := range probes {
		probes[i].lost = found[i]
	}
}

// attachedAnywhere reports whether any of the servers sends to the standby of that name.
func attachedAnywhere(probes []probe, name string) bool {
	return slices.ContainsFunc(probes, func(p probe) bool { return p.err == nil && registry.Attachment(p.status, name) == "streaming" })
}

// upstreamProbe is the server from which a standby would stream: its registered upstream if
// that answers, else the primary.
func upstreamProbe(probes []probe, r Record) (probe, bool) {
	for _, p := range probes {
		if p.record.ID == r.UpstreamID && p.err == nil {
			return p, true
		}
	}
	if found := primaries(probes); len(found) == 1 {
		return found[0], true
	}
	return probe{}, false
}
