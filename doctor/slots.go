package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/reconcile"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

func slotsUsedUp(f Facts, tell tell) {
	f.possible(func(n *Node) {
		need := 0
		for _, o := range f.Nodes {
			if o.Record.ID != n.Record.ID && o.Record.SlotName != "" && o.Record.Role != registry.RoleWitness {
				need++
			}
		}
		if c := n.Peer.Capacity; c.Known && c.Slots < need {
			tell(n, "Raise max_replication_slots, which needs a restart, or drop slots that nobody uses.", "as the primary it has room for %d replication slots, and %d are needed", c.Slots, need)
		}
	})
}

// keepLimit is how much WAL a slot that nobody uses may keep.
const keepLimit = 1 << 30

func slotKeepsWAL(f Facts, tell tell) {
	f.each(func(n *Node) {
		left := f.leftBehind(n)
		for _, s := range n.Server.Slots {
			if !s.Active && s.Kept != nil && *s.Kept > keepLimit && left[s.Name] == "" {
				tell(n, fmt.Sprintf("Start its consumer, or: SELECT pg_drop_replication_slot('%s');", strings.ReplaceAll(s.Name, "'", "''")), "the slot %q, which nobody uses, keeps %s of WAL", s.Name, wording.Bytes(*s.Kept))
			}
		}
	})
}

// fillLimit is for how long the disk should last.
const fillLimit = 48.0

func diskFills(f Facts, tell tell) {
	f.each(func(n *Node) {
		left := f.leftBehind(n)
		for _, p := range forecast(n) {
			if p.fills() && left[p.Slot] == "" {
				tell(n, "Start the consumer of the slot, drop it, or set max_slot_wal_keep_size.", "its disk is full in %.0f hours at the present rate (%s of WAL per hour): the slot %q, which nobody uses, keeps all of it",
					*p.HoursLeft, wording.Bytes(*p.PerHour), p.Slot)
			}
		}
	})
}

// fills reports whether the disk is full soon because of the slot.
func (p Pinned) fills() bool { return p.HoursLeft != nil && *p.HoursLeft <= fillLimit }

// leftBehind are the names of the slots that the repmgrd of the node drops by itself before the disk is full, because their
// owners stream from another node now, and why. A failover leaves them on the former primary.
func (f Facts) leftBehind(n *Node) map[string]string {
	look, peers, left := reconcile.Look{Self: n.Record, Status: n.Status}, []election.Peer{}, map[string]string{}
	for _, o := range f.Nodes {
		look.Records, peers = append(look.Records, o.Record), append(peers, o.Peer)
	}
	for slot, why := range reconcile.LeftoverSlots(look, peers) {
		if n.Peer.Automatic && slot.Physical {
			left[slot.Name] = why
		}
	}
	for _, p := range forecast(n) {
		if p.HoursLeft != nil && *p.HoursLeft <= reconcile.LeftoverGrace.Hours() {
			delete(left, p.Slot)
		}
	}
	return left
}

// slotLeftBehind names what would be a slot that keeps WAL for nobody, or fills the disk, if repmgrd did not drop it before that.
func slotLeftBehind(f Facts, tell tell) {
	f.each(func(n *Node) {
		left := f.leftBehind(n)
		for _, s := range n.Server.Slots {
			big := slices.ContainsFunc(forecast(n), func(p Pinned) bool { return p.Slot == s.Name && (p.Kept > keepLimit || p.fills()) })
			if left[s.Name] == "" || !big {
				continue
			}
			then := ""
			if s.Unused != nil && s.Unused.Add(reconcile.LeftoverGrace).After(n.Server.At) {
				then = ", at " + s.Unused.Add(reconcile.LeftoverGrace).Local().Format(time.TimeOnly) + " at the earliest"
			}
			tell(n, fmt.Sprintf("Nothing. To have the space at once: SELECT pg_drop_replication_slot('%s');", s.Name),
				"the slot %q keeps %s of WAL for nobody: %s. The repmgrd of %s drops it when that has been so for %.0f minutes%s", s.Name, wording.Bytes(*s.Kept), left[s.Name], n.Record.Name, reconcile.LeftoverGrace.Minutes(), then)
		}
	})
}

// walNotKept: with an archive a shutdown begins a new segment, and its checkpoint removes those before.
func walNotKept(f Facts, tell tell) {
	p := f.primary()
	if p == nil || !slices.Contains([]string{"on", "always"}, p.Server.Settings["archive_mode"]) {
		return
	}
	kept, errKept := strconv.ParseInt(p.Server.Settings["wal_keep_size"], 10, 64) // in MB
	segment, errSegment := strconv.ParseInt(p.Server.Settings["wal_segment_size"], 10, 64)
	if errKept != nil || errSegment != nil || kept<<20 >= 2*segment {
		return
	}
	var names []string
	f.each(func(n *Node) {
		if n != p && n.Record.SlotName == "" && n.Record.UpstreamID == p.Record.ID {
			names = append(names, n.Record.Name)
		}
	})
	if len(names) > 0 {
		tell(p, fmt.Sprintf("ALTER SYSTEM SET wal_keep_size = '%dMB'; SELECT pg_reload_conf(); Or use_replication_slots=yes.", 4*segment>>20),
			"it has an archive, and keeps no WAL for %s: when somebody shuts it down, its last checkpoint can remove what they have not received yet, and a failover would lose that. A switchover keeps it", strings.Join(names, ", "))
	}
}

func slotsWithoutLimit(f Facts, tell tell) {
	f.each(func(n *Node) {
		if n.Server.Settings["max_slot_wal_keep_size"] == "-1" && len(n.Server.Slots) > 0 {
			tell(n, "ALTER SYSTEM SET max_slot_wal_keep_size = '...'; SELECT pg_reload_conf(); The size is what its disk can spare.",
				"it has replication slots (%d) and no max_slot_wal_keep_size: a standby that stays away fills its disk", len(n.Server.Slots))
		}
	})
}

// ours are the names that repmgr gives to slots.
var ours = regexp.MustCompile(`^repmgr_slot_[0-9]+$`)

func slotOfNobody(f Facts, tell tell) {
	owned := func(s Slot) bool {
		return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.Record.SlotName == s.Name })
	}
	f.each(func(n *Node) {
		for _, s := range n.Server.Slots {
			if !s.Active && !s.Logical && !owned(s) && (ours.MatchString(s.Name) || s.Name == registry.HandoverSlot && !n.Peer.Automatic) {
				tell(n, fmt.Sprintf("If that node is not being cloned: SELECT pg_drop_replication_slot('%s');", s.Name), "the slot %q belongs to no registered node, and keeps WAL for nobody", s.Name)
			}
		}
	})
}

// logical are the logical slots of the node, with failover or without.
func (n *Node) logical(failover bool) (names []string) {
	for _, s := range n.Server.Slots {
		if s.Logical && s.Failover == failover {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

func logicalSlotLost(f Facts, tell tell) {
	p := f.primary()
	if p == nil || f.others() == 0 {
		return
	}
	if lost := p.logical(false); len(lost) > 0 {
		remedy := "Disable the subscription and ALTER SUBSCRIPTION ... SET (failover = true), or let the consumer make its slot with failover = true."
		if p.Status.VersionNum < failoverSlotsSince {
			remedy = "PostgreSQL 17 can keep them. Until then: after a failover or a switchover, make them anew and copy their data again."
		}
		tell(p, remedy, "logical slots that no standby has: %s. After a failover or a switchover they are gone, and their consumers miss changes", strings.Join(lost, ", "))
	}
}

const failoverSlotsSince = 170000 // the server_version_num

func failoverSlotMissing(f Facts, tell tell) {
	p := f.primary()
	if p == nil {
		return
	}
	f.possible(func(n *Node) {
		missing := slices.DeleteFunc(p.logical(true), func(name string) bool { return n == p || slices.Contains(n.Server.Synced, name) })
		if len(missing) > 0 {
			tell(n, "On it: sync_replication_slots = on, hot_standby_feedback = on, and a slot of its own (use_replication_slots = yes); on the primary, pg_hba.conf lets its role into the database of primary_conninfo. Its log says what is missing.",
				"as the primary it would lack the logical slots %s, which the primary keeps for a failover", strings.Join(missing, ", "))
		}
	})
}

func synchronizedSlotMissing(f Facts, tell tell) {
	f.possible(func(n *Node) {
		var missing []string
		for _, name := range strings.Split(n.Server.Settings["synchronized_standby_slots"], ",") {
			name = strings.Trim(strings.TrimSpace(name), `"`)
			used := slices.ContainsFunc(n.Server.Slots, func(s Slot) bool { return s.Name == name && s.Active })
			if name != "" && (name == n.Record.SlotName || !n.Status.InRecovery && !used) {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			tell(n, "ALTER SYSTEM SET synchronized_standby_slots = '...'; SELECT pg_reload_conf(); The value names the slots of standbys that stream from it.",
				"while it is the primary, its logical consumers wait for the slots in synchronized_standby_slots that nobody streams through: %s", strings.Join(missing, ", "))
		}
	})
}

// forecast says what the slots of a node keep, and how long its disk lasts.
func forecast(n *Node) (all []Pinned) {
	s := n.Server
	var perHour *int64
	if hours := s.At.Sub(s.WALSince).Hours(); s.WALBytes > 0 && hours > 0.1 {
		rate := int64(float64(s.WALBytes) / hours)
		perHour = &rate
	}
	for _, slot := range s.Slots {
		if slot.Kept == nil {
			continue
		}
		p := Pinned{NodeID: n.Record.ID, Node: n.Record.Name, Slot: slot.Name, Active: slot.Active, Kept: max(0, *slot.Kept), PerHour: perHour}
		if !slot.Active && perHour != nil && *perHour > 0 && s.Free != nil && s.Settings["max_slot_wal_keep_size"] == "-1" {
			left := float64(*s.Free) / float64(*perHour)
			p.HoursLeft = &left
		}
		all = append(all, p)
	}
	return all
}
