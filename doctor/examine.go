package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// check is one question.
type check struct {
	id       string
	severity Severity
	ask      func(Facts, tell)
}

// tell adds a finding about a node; nil: about the cluster.
type tell func(n *Node, remedy, format string, args ...any)

// checks are all questions, in the order of the page. Those that cluster show and service status ask, too, are
// in [known].
var checks = []check{
	{"not_examined", Warning, notExamined},
	{"not_durable", Critical, notDurable},
	{"read_only", Critical, readOnly},
	{"can_not_rewind", Warning, canNotRewind},
	{"no_hot_standby", Critical, noHotStandby},
	{"settings_too_small", Critical, settingsTooSmall},
	{"senders_used_up", Critical, sendersUsedUp},
	{"slots_used_up", Critical, slotsUsedUp},
	{"nobody_may_win", Critical, nobodyMayWin},
	{"too_many_failovers", Critical, tooManyFailovers},
	{"one_more_loss", Warning, oneMoreLoss},
	{"two_voters", Warning, twoVoters},
	{"archive_fails", Critical, archiveFails},
	{"archive_behind", Warning, archiveBehind},
	{"wal_not_kept", Warning, walNotKept},
	{"slot_keeps_wal", Warning, slotKeepsWAL},
	{"disk_fills", Critical, diskFills},
	{"slot_left_behind", Warning, slotLeftBehind},
	{"slots_without_limit", Warning, slotsWithoutLimit},
	{"slot_of_nobody", Warning, slotOfNobody},
	{"logical_slot_lost", Warning, logicalSlotLost},
	{"failover_slot_missing", Warning, failoverSlotMissing},
	{"synchronized_slot_missing", Warning, synchronizedSlotMissing},
	{"pending_restart", Warning, pendingRestart},
	{"prepared_transactions", Warning, preparedTransactions},
	{"clocks_differ", Warning, clocksDiffer},
	{"versions_differ", Warning, versionsDiffer},
	{"settings_differ", Warning, settingsDiffer},
	{"weak_commits", Warning, weakCommits},
	{"waiver_void", Warning, waiverVoid},
}

// known are the findings of cluster show and service status, and how bad they are.
var known = map[report.FindingCode]Severity{
	report.NoPrimary: Critical, report.TwoPrimaries: Critical, report.Deposed: Critical, report.Unreachable: Critical, report.Rejected: Critical,
	report.Inactive: Warning, report.WrongRole: Critical, report.ReplayPaused: Warning, report.NotAttached: Critical, report.NotStreaming: Warning,
	report.WrongUpstream: Warning, report.UpstreamUnreachable: Critical, report.WALGone: Critical, report.Diverged: Critical, report.SlotLost: Critical, report.UpstreamCircle: Critical,
	report.Namesake: Critical, report.Name: Critical, report.DaemonMissing: Critical, report.DaemonTrouble: Warning, report.RouterFailing: Warning, report.SecondDaemon: Warning,
	report.DaemonSilent: Critical, report.DaemonUnknown: Warning, report.LeaseRunsOut: Critical, report.CanNotFence: Critical, report.NoPledge: Critical,
	report.NoStream: Critical, report.ForeignDaemon: Critical, report.Paused: Warning, report.MixedFailover: Warning, report.CanNotFailOver: Critical,
}

// IDs are the ids of all checks, in their order.
func IDs() (all []string) {
	for _, c := range checks {
		all = append(all, c.id)
	}
	codes := slices.Collect(maps.Keys(known))
	slices.Sort(codes)
	for _, code := range codes {
		all = append(all, string(code))
	}
	return all
}

// Examine makes all checks.
func Examine(f Facts) Report {
	f.ids = IDs()
	r := Report{Findings: []Finding{}, Slots: []Pinned{}, Checks: len(checks) + len(known)}
	f.each(func(n *Node) { r.Slots = append(r.Slots, forecast(n)...) })
	slices.SortStableFunc(r.Slots, func(a, b Pinned) int { return cmp.Compare(b.Kept, a.Kept) })
	names := map[registry.NodeID]string{}
	for _, n := range f.Nodes {
		names[n.Record.ID] = n.Record.Name
	}
	for _, one := range f.Findings {
		severity, ok := known[one.Code]
		if !ok {
			severity = Warning
		}
		r.Findings = append(r.Findings, Finding{ID: string(one.Code), Severity: severity, NodeID: one.NodeID, Node: names[one.NodeID], Text: one.Text, Remedy: f.remedy(one)})
	}
	for _, c := range checks {
		c.ask(f, func(n *Node, remedy, format string, args ...any) {
			one := Finding{ID: c.id, Severity: c.severity, Text: fmt.Sprintf(format, args...), Remedy: remedy}
			if n != nil {
				one.NodeID, one.Node = n.Record.ID, n.Record.Name
			}
			r.Findings = append(r.Findings, one)
		})
	}
	waive(r.Findings, f.Waivers, f.Now)
	order(r.Findings)
	return r
}

// each calls do for the nodes that hold data and told their state.
func (f Facts) each(do func(*Node)) {
	for i := range f.Nodes {
		if f.Nodes[i].data() {
			do(&f.Nodes[i])
		}
	}
}

// primary is the server that accepts writes; nil: none told so.
func (f Facts) primary() (p *Node) {
	f.each(func(n *Node) {
		if !n.Status.InRecovery {
			p = n
		}
	})
	return p
}

// possible calls do for the nodes that are or may become the primary.
func (f Facts) possible(do func(*Node)) {
	f.each(func(n *Node) {
		if !n.Status.InRecovery || n.Record.Priority > 0 {
			do(n)
		}
	})
}

func notExamined(f Facts, tell tell) {
	for i := range f.Nodes {
		if n := &f.Nodes[i]; n.Failed != nil {
			tell(n, "Try again; see its log.", "it answered, and could not be examined: %v", n.Failed)
		}
	}
}

func notDurable(f Facts, tell tell) {
	f.each(func(n *Node) {
		for _, name := range []string{"fsync", "full_page_writes"} {
			if n.Server.Settings[name] == "off" {
				tell(n, "ALTER SYSTEM SET "+name+" = on; SELECT pg_reload_conf();", "%s is off: a crash of its machine can destroy its data", name)
			}
		}
	})
}

func readOnly(f Facts, tell tell) {
	f.possible(func(n *Node) {
		if n.Server.ReadOnly {
			tell(n, "ALTER SYSTEM SET default_transaction_read_only = off; SELECT pg_reload_conf();", "default_transaction_read_only is on: as the primary it would refuse writes")
		}
	})
}

func canNotRewind(f Facts, tell tell) {
	f.each(func(n *Node) {
		if n.Server.Settings["data_checksums"] == "off" && n.Server.Settings["wal_log_hints"] == "off" {
			tell(n, "ALTER SYSTEM SET wal_log_hints = on; and restart it.", "it has neither data checksums nor wal_log_hints: after a failover it could not be rewound, only copied anew")
		}
	})
}

func noHotStandby(f Facts, tell tell) {
	f.each(func(n *Node) {
		if n.Server.Settings["hot_standby"] == "off" {
			tell(n, "ALTER SYSTEM SET hot_standby = on; and restart it.", "hot_standby is off: as a standby it can not be asked for its vote")
		}
		if n.Server.Settings["wal_level"] == "minimal" {
			tell(n, "ALTER SYSTEM SET wal_level = replica; and restart it.", "wal_level is minimal: as the primary nobody could stream from it")
		}
	})
}

// settingsTooSmall: a standby whose setting is smaller than that of its primary stops replaying.
func settingsTooSmall(f Facts, tell tell) {
	for _, name := range postgres.ReplaySettings {
		var values []string
		least, most := 1<<62, -1 // of all, and of those that may be the primary
		f.each(func(n *Node) {
			if v, err := strconv.Atoi(n.Server.Settings[name]); err == nil {
				least = min(least, v)
				values = append(values, fmt.Sprintf("%s %d", n.Record.Name, v))
			}
		})
		f.possible(func(n *Node) {
			if v, err := strconv.Atoi(n.Server.Settings[name]); err == nil {
				most = max(most, v)
			}
		})
		if most > least {
			tell(nil, fmt.Sprintf("Set %s to %d on all nodes; raise it on the standbys first. It needs a restart: repmgr cluster restart --pending keeps to that order", name, most),
				"%s differs (%s): a node with less stops replaying below a primary with more", name, strings.Join(values, ", "))
		}
	}
}

func sendersUsedUp(f Facts, tell tell) {
	f.possible(func(n *Node) {
		if c := n.Peer.Capacity; c.Known && c.Senders < f.others() {
			tell(n, "Raise max_wal_senders, which needs a restart.", "as the primary it has room for %d standbys (max_wal_senders %s), and there would be %d", c.Senders, n.Server.Settings["max_wal_senders"], f.others())
		}
	})
}

// others is the number of data nodes beside one of them.
func (f Facts) others() (count int) {
	for _, n := range f.Nodes {
		if n.Record.Role != registry.RoleWitness {
			count++
		}
	}
	return count - 1
}

func tooManyFailovers(f Facts, say tell) {
	if f.Automatic && f.TooMany {
		say(nil, "repmgr cluster failovers says why each came. Where more are wanted: failovers_per_hour in repmgr.conf, and HUP. When the primary is lost: repmgr cluster failover --force",
			"there were as many failovers within the last hour as failovers_per_hour allows: no further one comes by itself")
	}
}

func nobodyMayWin(f Facts, tell tell) {
	candidates := 0
	f.possible(func(n *Node) {
		if n.Status.InRecovery {
			candidates++
		}
	})
	if f.Automatic && f.primary() != nil && candidates == 0 {
		tell(nil, "Add a standby, start one, or give one a priority above 0.", "no standby that answers may be promoted")
	}
}

func oneMoreLoss(f Facts, tell tell) {
	if f.Required && f.Rule.Acks > 0 && len(f.Rule.Sync) <= f.Rule.Acks {
		tell(nil, "Add a standby, or set durability = preferred.", "commits wait for %d of %d standbys (durability=required): when one more is lost, writes wait", f.Rule.Acks, len(f.Rule.Sync))
	}
}

func twoVoters(f Facts, tell tell) {
	if f.Automatic && len(f.Rule.Voters) == 2 {
		tell(nil, "Add a witness (repmgr witness register), a third node, or an etcd.", "there are two votes, and a majority is two: nothing fails over by itself")
	}
}

func archiveFails(f Facts, tell tell) {
	f.each(func(n *Node) {
		s := n.Server
		if s.Failed != nil && (s.Archived == nil || s.Failed.After(*s.Archived)) && (s.Settings["archive_mode"] == "always" || s.Settings["archive_mode"] == "on" && !n.Status.InRecovery) {
			tell(n, "See its log for what archive_command says.", "archiving fails (%s, at %s): WAL fills the disk, and a shutdown waits for it", s.FailedWAL, s.Failed.Local().Format(time.DateTime))
		}
	})
}

// archiveLimit is how many segments may wait for the archiver.
const archiveLimit = 64

func archiveBehind(f Facts, tell tell) {
	f.each(func(n *Node) {
		if n.Server.Ready > archiveLimit {
			tell(n, "See how long archive_command takes.", "%d WAL segments wait for the archiver", n.Server.Ready)
		}
	})
}

func pendingRestart(f Facts, tell tell) {
	f.each(func(n *Node) {
		if len(n.Server.Restart) > 0 {
			tell(n, "repmgr cluster restart --pending, which keeps to the order that these settings need", "settings wait for a restart: %s", strings.Join(n.Server.Restart, ", "))
		}
	})
}

// preparedLimit is how old a prepared transaction may be.
const preparedLimit = time.Hour

func preparedTransactions(f Facts, tell tell) {
	p := f.primary()
	if p != nil && p.Server.PreparedAt != nil && p.Server.At.Sub(*p.Server.PreparedAt) > preparedLimit {
		tell(p, "COMMIT PREPARED or ROLLBACK PREPARED: see pg_prepared_xacts.", "%d prepared transactions, the oldest for %s: their locks stay, also after a switchover", p.Server.Prepared, p.Server.At.Sub(*p.Server.PreparedAt).Round(time.Minute))
	}
}

// clockLimit is how much a clock may differ, beside what the answer took.
const clockLimit = 2 * time.Second

func clocksDiffer(f Facts, tell tell) {
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if !n.Answer || n.Server.At.IsZero() {
			continue
		}
		if off := n.Server.At.Sub(n.Server.Asked); off.Abs() > clockLimit+n.Server.Took {
			tell(n, "Let NTP set it.", "its clock is %s from that of this machine: what logs and events say of the order of things is wrong", off.Round(100*time.Millisecond))
		}
	}
}

func versionsDiffer(f Facts, tell tell) {
	if on := f.groups(func(n *Node) string { return n.Status.Version }); len(on) > 1 {
		tell(nil, "Update the older ones, the standbys first.", "the nodes run different versions of PostgreSQL: %s", strings.Join(on, "; "))
	}
}

// settingsDiffer: what clients notice after a failover.
func settingsDiffer(f Facts, tell tell) {
	for _, name := range []string{"archive_mode", "max_slot_wal_keep_size", "restart_after_crash"} {
		if on := f.groups(func(n *Node) string { return n.Server.Settings[name] }); len(on) > 1 {
			tell(nil, "Set it to the same value on all nodes.", "%s differs: %s", name, strings.Join(on, "; "))
		}
	}
}

// groups are the values that nodes have, each with its nodes. A node without a value is left out.
func (f Facts) groups(value func(*Node) string) (texts []string) {
	nodes := map[string][]string{}
	f.each(func(n *Node) {
		if v := value(n); v != "" {
			nodes[v] = append(nodes[v], n.Record.Name)
		}
	})
	for _, v := range slices.Sorted(maps.Keys(nodes)) {
		texts = append(texts, fmt.Sprintf("%s on %s", v, strings.Join(nodes[v], ", ")))
	}
	return texts
}

func weakCommits(f Facts, tell tell) {
	if !f.Rule.Quorum {
		return
	}
	f.each(func(n *Node) {
		for _, where := range n.Server.Weak {
			tell(n, "Take it away there, or set it to on.", "synchronous_commit is weaker than on (%s): with synchronous_mode=quorum, a failover can lose what such sessions committed", where)
		}
	})
}

// waiverVoid: a waiver that waives nothing, because it is over or misspelled.
func waiverVoid(f Facts, tell tell) {
	for _, w := range f.Waivers {
		named := func(n Node) bool { return n.Record.Name == w.Node }
		switch {
		case !slices.Contains(f.ids, w.ID):
			tell(nil, "Correct its name, or leave it out.", "the waiver %s accepts nothing: there is no check %q", w, w.ID)
		case w.Node != "" && !slices.ContainsFunc(f.Nodes, named):
			tell(nil, "Correct the name of the node, or leave it out.", "the waiver %s accepts nothing: no node of the name %q is registered", w, w.Node)
		case !f.Now.Before(w.Until):
			tell(nil, "Mend what it was for and leave it out, or give it a later day.", "the waiver %s accepts nothing any more: its day is past", w)
		}
	}
}
