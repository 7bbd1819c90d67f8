package doctor

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// healthy are the facts of a primary and two standbys where nothing is wrong.
func healthy() Facts {
	node := func(id registry.NodeID, name string, standby bool) Node {
		return Node{
			Record: registry.Record{ID: id, Name: name, Role: registry.RoleStandby, Priority: 100, SlotName: "slot_" + name},
			Answer: true, Status: registry.NodeStatus{Version: "15.18", InRecovery: standby}, Peer: election.Peer{ID: int32(id), Capacity: election.Capacity{Known: true, Senders: 5, Slots: 5}},
			Server: Server{At: now, Asked: now, Settings: map[string]string{
				"fsync": "on", "full_page_writes": "on", "data_checksums": "on", "wal_log_hints": "off", "hot_standby": "on", "wal_level": "replica", "archive_mode": "on",
				"max_slot_wal_keep_size": "1024", "max_connections": "100", "restart_after_crash": "on", "wal_keep_size": "0", "wal_segment_size": "16777216",
			}},
		}
	}
	return Facts{
		Now: now, Automatic: true, Required: true, Nodes: []Node{node(1, "node1", false), node(2, "node2", true), node(3, "node3", true)},
		Rule: election.Rule{Term: 1, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true, Sync: []int32{2, 3}, Acks: 1},
	}
}

func size(n int64) *int64 { return &n }

func at(t time.Time) *time.Time { return &t }

// Each check finds what it is for, and nothing else does; where all is well there is no finding.
func TestExamine(t *testing.T) {
	t.Parallel()
	require.Empty(t, Examine(healthy()).Findings)
	for id, change := range map[string]func(*Facts){
		"not_examined":       func(f *Facts) { f.Nodes[1].Answer, f.Nodes[1].Failed = false, os.ErrDeadlineExceeded },
		"not_durable":        func(f *Facts) { f.Nodes[1].Server.Settings["fsync"] = "off" },
		"read_only":          func(f *Facts) { f.Nodes[1].Server.ReadOnly = true },
		"can_not_rewind":     func(f *Facts) { f.Nodes[0].Server.Settings["data_checksums"] = "off" },
		"no_hot_standby":     func(f *Facts) { f.Nodes[0].Server.Settings["hot_standby"] = "off" },
		"settings_too_small": func(f *Facts) { f.Nodes[2].Server.Settings["max_connections"] = "90" },
		"senders_used_up":    func(f *Facts) { f.Nodes[2].Peer.Capacity.Senders = 1 },
		"slots_used_up":      func(f *Facts) { f.Nodes[2].Peer.Capacity.Slots = 1 },
		"nobody_may_win":     func(f *Facts) { f.Nodes[1].Record.Priority, f.Nodes[2].Record.Priority = 0, 0 },
		"one_more_loss":      func(f *Facts) { f.Rule.Sync = []int32{2} },
		"two_voters":         func(f *Facts) { f.Rule.Voters = []int32{1, 2} },
		"archive_fails": func(f *Facts) {
			f.Nodes[0].Server.Archived, f.Nodes[0].Server.Failed = at(now.Add(-time.Hour)), at(now.Add(-time.Minute))
		},
		"archive_behind": func(f *Facts) { f.Nodes[0].Server.Ready = 65 },
		"wal_not_kept": func(f *Facts) {
			f.Nodes[0].Server.Settings["wal_keep_size"], f.Nodes[2].Record.SlotName, f.Nodes[2].Record.UpstreamID = "16", "", 1
		},
		"slot_keeps_wal": func(f *Facts) {
			f.Nodes[0].Server.Slots = []Slot{{Name: "debezium", Kept: size(2 << 30)}}
		},
		"disk_fills": func(f *Facts) {
			s := &f.Nodes[0].Server
			s.Slots, s.Settings["max_slot_wal_keep_size"], s.WALBytes, s.WALSince, s.Free = []Slot{{Name: "debezium", Kept: size(1)}}, "-1", 10<<30, now.Add(-10*time.Hour), size(7<<30)
			f.Nodes[1].Server.Settings["max_slot_wal_keep_size"], f.Nodes[2].Server.Settings["max_slot_wal_keep_size"] = "-1", "-1"
			f.Waivers = []Waiver{{ID: "slots_without_limit", Until: now.Add(time.Hour)}}
		},
		"slot_left_behind": func(f *Facts) { // node2 was the primary before, and node3 streams from node1 now
			n, owner := &f.Nodes[1], &f.Nodes[2]
			n.Server.Slots, n.Status.Slots, n.Peer.Automatic = []Slot{{Name: "slot_node3", Kept: size(2 << 30)}}, []registry.Slot{{Name: "slot_node3", Physical: true}}, true
			owner.Peer.Answer, owner.Peer.Running, owner.Peer.Receiving, owner.Peer.Receives = election.Answers, election.Standby, true, 1
		},
		"waiver_void": func(f *Facts) { f.Waivers = []Waiver{{ID: "not_durable", Node: "node9", Until: now.Add(time.Hour)}} },
		"slots_without_limit": func(f *Facts) {
			for i := range f.Nodes {
				f.Nodes[i].Server.Settings["max_slot_wal_keep_size"] = "-1"
			}
			f.Nodes[0].Server.Slots = []Slot{{Name: "slot_node2", Active: true, Kept: size(1)}}
		},
		"slot_of_nobody": func(f *Facts) { f.Nodes[1].Server.Slots = []Slot{{Name: "repmgr_slot_9"}} },
		"logical_slot_lost": func(f *Facts) {
			f.Nodes[0].Server.Slots = []Slot{{Name: "debezium", Logical: true, Active: true}}
		},
		"failover_slot_missing": func(f *Facts) {
			f.Nodes[0].Server.Slots = []Slot{{Name: "sub", Logical: true, Failover: true}}
			f.Nodes[1].Server.Synced = []string{"sub"}
		},
		"synchronized_slot_missing": func(f *Facts) {
			f.Nodes[0].Server.Slots = []Slot{{Name: "slot_node2", Active: true}, {Name: "slot_node3"}}
			f.Nodes[0].Server.Settings["synchronized_standby_slots"] = `slot_node2, "slot_node3"`
		},
		"pending_restart": func(f *Facts) { f.Nodes[0].Server.Restart = []string{"shared_buffers"} },
		"prepared_transactions": func(f *Facts) {
			f.Nodes[0].Server.Prepared, f.Nodes[0].Server.PreparedAt = 1, at(now.Add(-2*time.Hour))
		},
		"clocks_differ":   func(f *Facts) { f.Nodes[2].Server.At = now.Add(-time.Minute) },
		"versions_differ": func(f *Facts) { f.Nodes[2].Status.Version = "15.3" },
		"settings_differ": func(f *Facts) { f.Nodes[2].Server.Settings["archive_mode"] = "off" },
		"weak_commits":    func(f *Facts) { f.Nodes[0].Server.Weak = []string{"role app has local"} },
		"wal_gone":        func(f *Facts) { f.Findings = []report.Finding{{Code: report.WALGone, NodeID: 2, Text: "x"}} },
	} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			f := healthy()
			change(&f)
			var found []string
			for _, one := range Examine(f).Findings {
				if one.Waived == "" {
					found = append(found, one.ID)
				}
			}
			require.Equal(t, []string{id}, found)
		})
	}
}

// A forecast says when the disk is full, and who keeps the WAL.
func TestExamine_Forecast(t *testing.T) {
	t.Parallel()
	f := healthy()
	s := &f.Nodes[0].Server
	s.Slots, s.Settings["max_slot_wal_keep_size"], s.WALBytes, s.WALSince, s.Free = []Slot{{Name: "a", Active: true, Kept: size(5)}, {Name: "debezium", Kept: size(100)}}, "-1", 10<<30, now.Add(-10*time.Hour), size(7<<30)
	r := Examine(f)
	require.Len(t, r.Slots, 2)
	require.Equal(t, "debezium", r.Slots[0].Slot)
	require.InDelta(t, 7, *r.Slots[0].HoursLeft, 0.01)
	require.Nil(t, r.Slots[1].HoursLeft, "it is in use")
	require.Contains(t, r.Findings[0].Text, `its disk is full in 7 hours at the present rate (1024 MB of WAL per hour): the slot "debezium"`)
}

// A slot that repmgrd drops by itself is no alarm, and it is said when that will be; where the disk is full before, or no
// repmgrd drops it, it is one.
func TestExamine_SlotLeftBehind(t *testing.T) {
	t.Parallel()
	ids := func(change func(n, owner *Node)) (all []string, text string) {
		f := healthy()
		n, owner := &f.Nodes[1], &f.Nodes[2]
		n.Server.Slots, n.Status.Slots = []Slot{{Name: owner.Record.SlotName, Kept: size(1 << 20), Unused: at(now.Add(-time.Minute))}}, []registry.Slot{{Name: owner.Record.SlotName, Physical: true}}
		n.Server.WALBytes, n.Server.WALSince, n.Server.Free, n.Peer.Automatic = 10<<30, now.Add(-10*time.Hour), size(7<<30), true
		owner.Peer.Answer, owner.Peer.Running, owner.Peer.Receiving, owner.Peer.Receives = election.Answers, election.Standby, true, 1
		for i := range f.Nodes {
			f.Nodes[i].Server.Settings["max_slot_wal_keep_size"] = "-1"
		}
		change(n, owner)
		for _, one := range Examine(f).Findings {
			if one.ID != "slots_without_limit" {
				all, text = append(all, one.ID), one.Text
			}
		}
		return all, text
	}
	found, text := ids(func(*Node, *Node) {})
	require.Equal(t, []string{"slot_left_behind"}, found)
	require.Contains(t, text, `streams from another node. The repmgrd of node2 drops it when that has been so for 10 minutes, at `+now.Add(9*time.Minute).Local().Format(time.TimeOnly)+" at the earliest")
	_, text = ids(func(n, _ *Node) { n.Server.Slots[0].Unused = nil })
	require.True(t, strings.HasSuffix(text, "for 10 minutes"), text)
	for name, change := range map[string]func(n, owner *Node){
		"it is used again":         func(_, owner *Node) { owner.Peer.Receives = 2 },
		"nobody drops it":          func(n, _ *Node) { n.Peer.Automatic = false },
		"the disk is full earlier": func(n, _ *Node) { n.Server.Free = size(1 << 20) },
	} {
		found, _ := ids(change)
		require.Equal(t, []string{"disk_fills"}, found, name)
	}
	found, _ = ids(func(n, _ *Node) { n.Server.Free = nil })
	require.Empty(t, found, "it keeps little, and for some minutes")
}

// A waiver holds until the end of its day, for its node, and is in the report.
func TestWaivers(t *testing.T) {
	t.Parallel()
	f := healthy()
	f.Nodes[1].Server.Settings["fsync"], f.Nodes[2].Server.Settings["fsync"] = "off", "off"
	w, err := ParseWaiver("not_durable@node2:2026-11-30")
	require.NoError(t, err)
	f.Waivers = []Waiver{w}
	r := Examine(f)
	require.Empty(t, r.Findings[0].Waived)
	require.Equal(t, "2026-11-30", r.Findings[1].Waived)
	require.Equal(t, Critical, r.Worst())
	f.Now = w.Until
	require.Empty(t, Examine(f).Findings[0].Waived)
	f = healthy()
	f.Waivers = []Waiver{w, {ID: "not_durable", Until: now}, {ID: "nothing", Until: w.Until}, {ID: "not_durable", Node: "node9", Until: w.Until}}
	var void []string
	for _, one := range Examine(f).Findings {
		require.Equal(t, "waiver_void", one.ID)
		void = append(void, one.Text)
	}
	require.Equal(t, []string{
		"the waiver not_durable:2026-11-28 accepts nothing any more: its day is past",
		`the waiver nothing:2026-11-30 accepts nothing: there is no check "nothing"`,
		`the waiver not_durable@node9:2026-11-30 accepts nothing: no node of the name "node9" is registered`,
	}, void)
	for _, bad := range []string{"not_durable", "nothing:2026-01-01", "not_durable:soon", ""} {
		_, err := ParseWaiver(bad)
		require.Error(t, err, bad)
	}
}

// Each check has a section on the page, and the page has no other.
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/doctor.md")
	require.NoError(t, err)
	var sections []string
	for line := range strings.Lines(string(page)) {
		if id, ok := strings.CutPrefix(line, "### "); ok {
			sections = append(sections, strings.TrimSpace(id))
		}
	}
	require.ElementsMatch(t, IDs(), sections)
}
