package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

// Node is the state of a node: what it is, what it should be, and
// what is wrong.
type Node struct {
	Record          registry.Record     `json:"node"`
	Status          registry.NodeStatus `json:"status"`
	DataBytes       int64               `json:"data_bytes"`         // of all databases; -1: this login may not read it
	ArchiveReady    int                 `json:"archive_ready"`      // WAL segments waiting for the archiver; -1: this login may not read it
	ReplicationLag  time.Duration       `json:"replication_lag_ns"` // how long ago a standby was last in step; -1: unknown, or not a standby
	Children        int                 `json:"downstream"`         // registered downstream nodes that are active
	LostWAL         *follow.LostWAL     `json:"lost_wal,omitempty"` // of a standby that can not go on, because the WAL that it needs next is gone
	Diverged        *follow.Divergence  `json:"diverged,omitempty"` // of a standby that has WAL that its upstream never had
	MissingSlots    []string            `json:"missing_slots"`      // of registered downstream nodes
	InactiveSlots   []string            `json:"inactive_slots"`
	MissingChildren []string            `json:"missing_downstream"` // registered downstream nodes that are not attached
	Issues          []string            `json:"issues"`             // empty: all is well
	Findings        []Finding           `json:"findings"`           // the issues, each with a code that stays the same

	stuck    Findings // why a standby can not go on, and what to do; empty: it can
	upstream Look     // of a standby: its registered upstream; zero: there is none
}

// NoteUpstream notes what the looks have shown of the upstream of a standby, and, where it can not go on, why
// and what to do about it. How far behind it is, is then unknown.
func NoteUpstream(r *Node, p Look, looks []Look) {
	for _, q := range looks {
		if q.Record.ID == r.Record.UpstreamID {
			r.upstream = q
		}
	}
	if code, why, remedy := Stuck(p, looks); code != "" {
		r.LostWAL, r.Diverged, r.ReplicationLag = p.Lost, p.Apart, -1
		r.stuck.Add(code, r.Record.ID, "%s. %s", why, remedy)
	}
}

// Judge compares the state of a node with the rows of all nodes, and notes what is wrong.
func Judge(r *Node, recs []registry.Record) {
	slots := map[string]registry.Slot{}
	for _, s := range r.Status.Slots {
		slots[s.Name] = s
		if s.Physical && !s.Active && !s.Temporary && s.Name != registry.HandoverSlot { // which is there for a moment; doctor names one that stayed
			r.InactiveSlots = append(r.InactiveSlots, s.Name)
		}
	}
	for _, d := range recs {
		if d.UpstreamID != r.Record.ID || !d.Active || d.Role != registry.RoleStandby {
			continue
		}
		r.Children++
		if _, ok := slots[d.SlotName]; d.SlotName != "" && !ok {
			r.MissingSlots = append(r.MissingSlots, d.SlotName)
		}
		if registry.Attachment(r.Status, d.Name) == "" {
			r.MissingChildren = append(r.MissingChildren, d.String())
		}
	}
	found := Findings{}
	issue := func(code FindingCode, format string, args ...any) { found.Add(code, r.Record.ID, format, args...) }
	if r.Record.Role != registry.RoleWitness && r.Record.Role != r.Status.Role() {
		issue(WrongRole, "node is registered as %s but running as %s", r.Record.Role, r.Status.Role())
	}
	if len(r.MissingChildren) > 0 {
		issue(DownstreamMissing, "downstream nodes not attached: %s", strings.Join(r.MissingChildren, ", "))
	}
	if len(r.MissingSlots) > 0 {
		issue(SlotsMissing, "replication slots missing: %s", strings.Join(r.MissingSlots, ", "))
	}
	if len(r.InactiveSlots) > 0 {
		issue(SlotsInactive, "replication slots inactive, keeping WAL: %s", strings.Join(r.InactiveSlots, ", "))
	}
	if r.Status.ReplayPaused {
		issue(ReplayPaused, "WAL replay is paused")
	}
	if r.Status.InRecovery && r.Status.Receiver == nil {
		issue(NoReceiver, "no WAL receiver is running: the node receives nothing")
	}
	found = append(found, r.stuck...)
	r.Issues, r.Findings = append(r.Issues, found.Texts()...), found
}

// ReportRow is one line of the node status. Where Text is empty, only CSV has it.
type ReportRow struct{ Key, Text, CSV string }

// Rows lists the report in repmgr's order and words. verbose adds the system identifier.
func (r Node) Rows(verbose bool) []ReportRow {
	s := r.Status
	var rows []ReportRow
	add := func(key, text string, csv ...string) {
		rows = append(rows, ReportRow{key, text, append(csv, text)[0]})
	}
	version, _, _ := strings.Cut(s.Version, " ") // not what a packager added
	add("PostgreSQL version", version)
	if r.DataBytes >= 0 {
		add("Total data size", wording.Bytes(r.DataBytes))
	} else {
		add("Total data size", "(no privilege to read it)")
	}
	add("Conninfo", r.Record.Conninfo)
	if verbose {
		add("System identifier", s.SystemIdentifier)
	}
	add("Role", string(s.Role()))
	add("WAL archiving", archiving(s))
	command, pending, files := s.Settings.ArchiveCommand, "", max(0, r.ArchiveReady)
	switch {
	case s.Settings.ArchiveMode == "off":
		command, files = "", 0
	case r.ArchiveReady >= 0:
		pending = fmt.Sprintf("%d pending files", files)
	}
	add("Archive command", orNone(command))
	add("WALs pending archiving", pending, fmt.Sprint(files)) // in CSV always: scripts count lines
	add("Replication connections", fmt.Sprintf("%d (of maximal %d)", len(s.Senders), s.Settings.MaxWALSenders))
	add("Replication slots", r.slots())
	if s.InRecovery {
		upstream := orNone("")
		if r.Record.UpstreamID != 0 {
			upstream = fmt.Sprintf("%s (ID: %d)", r.Record.UpstreamName, r.Record.UpstreamID)
		}
		add("Upstream node", upstream)
		lag := "n/a"
		if r.ReplicationLag >= 0 {
			lag = fmt.Sprintf("%d seconds", int64(r.ReplicationLag.Seconds()))
		}
		add("Replication lag", lag)
		add("Last received LSN", s.ReceivedLSN.String())
		add("Last replayed LSN", s.ReplayedLSN.String())
	} else {
		add("Upstream node", "", orNone("")) // text shows it for a standby only
		add("Replication lag", "n/a")
		add("Last received LSN", "", orNone(""))
		add("Last replayed LSN", "", orNone(""))
	}
	return rows
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

func archiving(s registry.NodeStatus) string {
	switch {
	case s.Settings.ArchiveMode == "off":
		return "off"
	case s.InRecovery && s.Settings.ArchiveMode != "always":
		return `disabled (on standbys "archive_mode" must be set to "always" to be effective)`
	default:
		return "enabled"
	}
}

func (r Node) slots() string {
	if r.Status.Settings.MaxSlots == 0 {
		return "disabled"
	}
	physical := 0
	for _, s := range r.Status.Slots {
		if s.Physical {
			physical++
		}
	}
	text := fmt.Sprintf("%d physical (of maximal %d; %d missing)", physical, r.Status.Settings.MaxSlots, len(r.MissingSlots))
	if len(r.InactiveSlots) > 0 {
		text += fmt.Sprintf("; %d inactive", len(r.InactiveSlots))
	}
	return text
}
