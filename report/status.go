package report

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Look is what one look at a registered node has shown: its state, or the reason why there is none.
type Look struct {
	Record registry.Record
	Status registry.NodeStatus
	Rows   []registry.Record  // of a primary: its own rows, which count more than any copy
	Rule   election.Rule      // the newest rule that it has; zero: none, or unknown
	Lost   *follow.LostWAL    // of a standby whose next WAL is gone; nil: it is not, or that was not looked for
	Apart  *follow.Divergence // of a standby that has diverged; nil: it has not, or that was not looked for
	Err    error
}

// Reach says how the server answered.
func (l Look) Reach() postgres.Reach {
	var ce *postgres.ConnectError
	switch {
	case l.Err == nil:
		return postgres.ReachOK
	case errors.As(l.Err, &ce):
		return ce.Reach
	default:
		return postgres.ReachRejected // it answered, though not with its state
	}
}

// Primaries are the looks at the servers that accept writes.
func Primaries(looks []Look) []Look {
	var found []Look
	for _, l := range looks {
		if l.Err == nil && !l.Status.InRecovery && l.Record.Role != registry.RoleWitness {
			found = append(found, l)
		}
	}
	return found
}

// ClusterStatus is every registered node, as it is and as it should be.
type ClusterStatus struct {
	Nodes    []NodeView `json:"nodes"`
	Issues   []string   `json:"issues"`   // empty: all is well
	Findings []Finding  `json:"findings"` // the issues, each with a code that stays the same
}

// NodeView is a registered node with what was seen of it.
type NodeView struct {
	registry.Record
	Reach    postgres.Reach     `json:"reach"`
	Running  registry.Role      `json:"running,omitempty"`    // what it runs as; empty: unknown
	Status   string             `json:"status"`               // repmgr's cell with its marker, where it has one: "* running", "running", "! running as primary", "? unreachable", "- failed"
	Upstream string             `json:"upstream"`             // repmgr's cell: "node1", or with "? " unknown, "! " wrong
	Timeline wal.Timeline       `json:"timeline,omitempty"`   // 0: unknown
	Attached string             `json:"attached,omitempty"`   // streaming, catchup, or empty: not attached, or unknown
	Sync     string             `json:"sync_state,omitempty"` // of a standby that streams, as its upstream says: async, sync, quorum, potential
	Lag      *int64             `json:"lag_bytes,omitempty"`  // of a standby: WAL of the primary that it has not received; nil: unknown
	LostWAL  *follow.LostWAL    `json:"lost_wal,omitempty"`   // of a standby that can not go on, because what it needs next is gone
	Diverged *follow.Divergence `json:"diverged,omitempty"`   // of a standby that has WAL that its upstream never had
	Error    string             `json:"error,omitempty"`      // why it could not be read
}

// Compare compares what was seen with what is registered.
func Compare(looks []Look) ClusterStatus {
	st := ClusterStatus{Nodes: []NodeView{}, Issues: []string{}}
	found := Findings{}
	for _, p := range looks {
		v := NodeView{Record: p.Record, Reach: p.Reach(), LostWAL: p.Lost, Diverged: p.Apart}
		v.Conninfo = conninfo.Redact(v.Conninfo) // rows of a C repmgr may hold a password
		if p.Err == nil {
			v.Running, v.Timeline = p.Status.Role(), p.Status.Timeline
			if p.Record.Role == registry.RoleWitness && !p.Status.InRecovery {
				v.Running = registry.RoleWitness
			}
			if p.Record.Role == registry.RoleWitness && p.Status.InRecovery {
				found.Add(WrongRole, p.Record.ID, "%s is registered as witness but running as standby: it can keep no vote", p.Record)
			}
			if p.Status.ReplayPaused {
				found.Add(ReplayPaused, p.Record.ID, "WAL replay is paused on %s", p.Record)
			}
		} else {
			v.Error = p.Err.Error()
		}
		if v.Status = statusCell(p, &found); p.Err == nil && !p.Status.InRecovery {
			if why := DeposedReason(p, looks); why != "" {
				v.Status = "! deposed"
				found.Add(Deposed, p.Record.ID, "%s runs as primary and was deposed: %s", p.Record, why)
			}
		}
		v.Upstream, v.Attached = upstreamCell(p, looks, &found)
		v.Sync, v.Lag = progress(p, looks)
		st.Nodes = append(st.Nodes, v)
	}
	recs := make([]registry.Record, len(looks))
	for i, p := range looks {
		recs[i] = p.Record
	}
	for _, r := range recs {
		if up, ok := registry.ByID(recs, r.UpstreamID); ok {
			if err := registry.CheckLoop(recs, r.ID, up); err != nil {
				found.Add(UpstreamCircle, r.ID, "%s receives nothing: its upstreams are a circle", r)
			}
		}
	}
	findDuplicates(looks, &found)
	judgePrimary(looks, &found)
	st.Issues, st.Findings = append(st.Issues, found.Texts()...), found
	return st
}

// DeposedReason says, where a node runs as primary and another one is known to have replaced
// it, which one that is and what to do. Empty: no node that answers knows of another one.
func DeposedReason(p Look, looks []Look) string {
	if p.Err != nil || p.Status.InRecovery || p.Record.Role == registry.RoleWitness {
		return ""
	}
	var by Look
	since := ""
	rule := p.Rule
	for _, q := range looks {
		if q.Rule.Compare(rule) > 0 {
			rule = q.Rule
		}
	}
	switch {
	case rule.Term > p.Rule.Term && rule.Primary != int32(p.Record.ID):
		since = fmt.Sprintf(" since term %d", rule.Term)
		by.Record = registry.Record{ID: registry.NodeID(rule.Primary), Name: fmt.Sprint(rule.Primary)}
		for _, q := range looks {
			if q.Record.ID == by.Record.ID {
				by = q
			}
		}
	case rule.Known():
		return ""
	default: // it was promoted by hand, which only its own rows show
		for _, q := range Primaries(looks) {
			me, ok := registry.ByID(q.Rows, p.Record.ID)
			its, _ := registry.ByID(q.Rows, q.Record.ID)
			if q.Record.ID != p.Record.ID && q.Status.Timeline > p.Status.Timeline && its.Role == registry.RolePrimary && ok && (me.Role != registry.RolePrimary || !me.Active) {
				by, since = q, fmt.Sprintf(", promoted to timeline %d", q.Status.Timeline)
			}
		}
	}
	if by.Record.ID == 0 {
		return ""
	}
	return fmt.Sprintf("%s is the primary%s. The others do not get what is written here. Stop the server; then, on %s, this saves what only it has, and makes a standby of it: %s",
		by.Record, since, p.Record.Name, follow.RejoinCommand(p.Record, by.Record, "--force-rewind"))
}

// judgePrimary reports where there is not exactly one primary. A primary that lives and rejects
// the login counts as one.
func judgePrimary(looks []Look, found *Findings) {
	var names []string
	for _, p := range Primaries(looks) {
		names = append(names, p.Record.String())
	}
	lives := slices.ContainsFunc(looks, func(p Look) bool {
		return p.Record.Role == registry.RolePrimary && p.Record.Active && p.Err != nil && p.Reach().Answers()
	})
	switch {
	case len(names) > 1:
		found.Add(TwoPrimaries, 0, "%d nodes run as primary: %s", len(names), strings.Join(names, ", "))
	case len(names) == 0 && !lives:
		found.Add(NoPrimary, 0, "no node that answers runs as primary; who should be promoted, and how: repmgr cluster explain")
	}
}

// findDuplicates reports the names under which more than one server streams.
func findDuplicates(looks []Look, found *Findings) {
	for _, up := range looks {
		for _, p := range looks {
			switch senders := registry.SendersOf(up.Status, p.Record.Name); {
			case up.Err != nil || len(senders) == 0:
			case len(senders) > 1:
				found.Add(Namesake, p.Record.ID, "%d servers stream from %s under the name of %s, from %s: one of them is not that node, or its connection has just broken", len(senders), up.Record, p.Record, registry.AddressesOf(senders))
			case p.Err == nil && p.Status.Receiver == nil:
				found.Add(Namesake, p.Record.ID, "a server at %s streams from %s under the name of %s, which receives from nobody", registry.AddressesOf(senders), up.Record, p.Record)
			}
		}
	}
}

// statusCell is the node's cell in the Status column. What is wrong is added to found.
func statusCell(p Look, found *Findings) string {
	r := p.Record
	bad := func(cell string, code FindingCode, format string, args ...any) string {
		found.Add(code, r.ID, format, args...)
		return cell
	}
	switch reach := p.Reach(); {
	case reach == postgres.ReachOK && r.Role == registry.RoleWitness, reach == postgres.ReachOK && r.Role == p.Status.Role():
		if !r.Active {
			return bad("! running", Inactive, "%s is running but registered as inactive", r)
		}
		return map[registry.Role]string{registry.RolePrimary: "* ", registry.RoleWitness: "* "}[r.Role] + "running"
	case reach == postgres.ReachOK:
		return bad("! running as "+string(p.Status.Role()), WrongRole, "%s is registered as %s but running as %s", r, r.Role, p.Status.Role())
	case reach.Answers() && r.Role == registry.RoleWitness && r.Active:
		return bad("? rejected", Rejected, "unable to connect to %s: %s", r, connectReason(p.Err))
	case reach.Answers() && r.Role == registry.RoleWitness:
		return bad("! failed", Rejected, "unable to connect to %s, registered as inactive: %s", r, connectReason(p.Err))
	case reach.Answers() && r.Active:
		return bad("? running", Rejected, "unable to connect to %s: %s", r, connectReason(p.Err))
	case reach.Answers():
		return bad("! running", Rejected, "%s is running but registered as inactive, and does not let us connect: %s", r, connectReason(p.Err))
	case r.Active:
		return bad("? unreachable", Unreachable, "unable to connect to %s: %s", r, connectReason(p.Err))
	default:
		return bad("- failed", Unreachable, "%s is registered as inactive and not reachable: %s", r, connectReason(p.Err))
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
func upstreamCell(p Look, looks []Look, found *Findings) (cell, attached string) {
	r := p.Record
	if r.Role == registry.RolePrimary || r.UpstreamID == 0 {
		return "", ""
	}
	var up Look
	for _, q := range looks {
		if q.Record.ID == r.UpstreamID {
			up = q
		}
	}
	switch {
	case r.Role == registry.RoleWitness && p.Err == nil:
		return r.UpstreamName, ""
	case r.Role == registry.RoleWitness:
		return "? " + r.UpstreamName, ""
	case p.Err == nil && up.Err != nil && p.Status.InRecovery && p.Status.Receiver == nil:
		found.Add(UpstreamUnreachable, r.ID, "%s receives nothing: its upstream, %s, is not reachable", r, up.Record)
		return "? " + r.UpstreamName, ""
	case p.Err != nil || up.Record.ID == 0 || up.Err != nil:
		return "? " + r.UpstreamName, ""
	case !p.Status.InRecovery:
		return "! " + r.UpstreamName, "" // the Status column already says it
	}
	attached = registry.Attachment(up.Status, r.Name)
	slot, _ := slotOf(up.Status, r.SlotName)
	switch {
	case attached == "streaming":
		return r.UpstreamName, attached
	case p.Apart != nil || p.Lost != nil:
		code, why, remedy := Stuck(p, looks)
		found.Add(code, r.ID, "%s. %s", why, remedy)
		return "! " + r.UpstreamName, attached
	case slot.WALStatus == "lost":
		found.Add(SlotLost, r.ID, "%s can not stream: its slot %q on %s is lost (see max_slot_wal_keep_size there). A new one is made by, on %s: repmgr%s standby follow",
			r, slot.Name, up.Record, r.Name, follow.ConfOption(r))
		return "! " + r.UpstreamName, attached
	}
	switch attached {
	case "":
		if q, state := attachedTo(looks, r.Name); state != "" {
			found.Add(WrongUpstream, r.ID, "%s is attached to %s, not to its registered upstream %q (ID: %d)", r, q, r.UpstreamName, r.UpstreamID)
			return "! " + q.Name, state
		}
		found.Add(NotAttached, r.ID, "%s is not attached to its upstream node %q (ID: %d)", r, r.UpstreamName, r.UpstreamID)
		return "! " + r.UpstreamName, ""
	default:
		found.Add(NotStreaming, r.ID, "%s is attached to its upstream node %q (ID: %d), in state %q", r, r.UpstreamName, r.UpstreamID, attached)
		return "? " + r.UpstreamName, attached
	}
}

// progress is how far a standby is: its state in synchronous replication, and the WAL of the primary that it has not
// received.
func progress(p Look, looks []Look) (sync string, lag *int64) {
	if p.Record.Role != registry.RoleStandby {
		return "", nil
	}
	for _, up := range looks {
		if senders := registry.SendersOf(up.Status, p.Record.Name); up.Err == nil && len(senders) > 0 {
			sync = senders[0].SyncState
		}
	}
	has := max(p.Status.ReceivedLSN, p.Status.ReplayedLSN) // from an archive it receives nothing
	if found := Primaries(looks); len(found) == 1 && p.Err == nil && p.Status.InRecovery && has != 0 && p.Apart == nil && p.Status.Timeline == found[0].Status.Timeline {
		n := max(0, found[0].Status.CurrentLSN.Bytes(has))
		lag = &n
	}
	return sync, lag
}

// Stuck is why the standby can never receive again, and what to do about it, in sentences; empty: nothing was found.
func Stuck(p Look, looks []Look) (code FindingCode, why, remedy string) {
	switch {
	case p.Apart != nil:
		return Diverged, p.Apart.Why, p.Apart.Remedy
	case p.Lost != nil:
		return WALGone, fmt.Sprintf("%s can not go on: %s", p.Record, p.Lost), Remedy(*p.Lost, p.Record, looks)
	}
	return "", "", ""
}

// MayHaveDiverged reports whether it is worth asking whether the standby has diverged from up: nobody sends to it,
// and up is the one primary, in office.
func MayHaveDiverged(p, up Look, looks []Look) bool {
	found := Primaries(looks)
	_, attached := attachedTo(looks, p.Record.Name)
	return len(found) == 1 && found[0].Record.ID == up.Record.ID && DeposedReason(up, looks) == "" && p.Status.Receiver == nil && attached == ""
}

// attachedTo is the first server that sends to the standby of that name, and in which state. The state is empty where none does.
func attachedTo(looks []Look, name string) (to registry.Record, state string) {
	for _, q := range looks {
		if q.Err == nil {
			if state = registry.Attachment(q.Status, name); state != "" {
				return q.Record, state
			}
		}
	}
	return registry.Record{}, ""
}

// Remedy is what an operator does about it: one command, on the node itself.
func Remedy(l follow.LostWAL, node registry.Record, looks []Look) string {
	primary, _ := registry.ByID(recordsOf(looks), node.UpstreamID)
	if found := Primaries(looks); len(found) == 1 {
		primary = found[0].Record
	}
	if l.Archive {
		return "Look at its log for what restore_command says. To copy it anew, on " + node.Name + ": " + follow.RecloneCommand(node, primary)
	}
	return "It has to be copied anew. Run on " + node.Name + ": " + follow.RecloneCommand(node, primary)
}

func recordsOf(looks []Look) []registry.Record {
	recs := make([]registry.Record, len(looks))
	for i, p := range looks {
		recs[i] = p.Record
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

// AttachedAnywhere reports whether any of the servers sends to the standby of that name.
func AttachedAnywhere(looks []Look, name string) bool {
	return slices.ContainsFunc(looks, func(p Look) bool { return p.Err == nil && registry.Attachment(p.Status, name) == "streaming" })
}

// UpstreamOf is the server from which a standby would stream: its registered upstream if
// that answers, else the primary.
func UpstreamOf(looks []Look, r registry.Record) (Look, bool) {
	for _, p := range looks {
		if p.Record.ID == r.UpstreamID && p.Err == nil {
			return p, true
		}
	}
	if found := Primaries(looks); len(found) == 1 {
		return found[0], true
	}
	return Look{}, false
}
