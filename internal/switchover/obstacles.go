package switchover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/plan"
)

// The steps of a handover, as they are named in a plan, in the log and in the result.
const (
	StepChecked      = "checked"
	StepCheckpointed = "checkpointed"
	StepHeld         = "held" // only where there is a router that can do that
	StepNoticed      = "noticed"
	StepStopped      = "stopped"
	StepReceived     = "received"
	StepElected      = "elected"
	StepReturned     = "returned"
	StepRestarted    = "restarted" // instead of the last two, where the primary is only restarted
)

// Limits are the thresholds of the configuration.
type Limits struct {
	Archive int // WAL segments that may wait for the archiver: archive_ready_critical
}

const (
	lagLimit        = 64 << 20        // bytes of WAL that the target may lack, or have to replay, when the shutdown begins
	longTransaction = 5 * time.Minute // the age of a transaction that is worth a warning
)

// Plan is the plan of a switchover: its steps, and everything that stands in its way.
func (f Facts) Plan(p election.Policy, l Limits) plan.Plan {
	all := plan.Plan{Command: "standby switchover", Steps: f.steps(), Obstacles: []plan.Obstacle{}, Warnings: []plan.Obstacle{}}
	add := func(to *[]plan.Obstacle, force bool, code, node, hint, format string, args ...any) {
		*to = append(*to, plan.Obstacle{Code: code, Node: node, Hint: hint, Force: force, Text: fmt.Sprintf(format, args...)})
	}
	must := func(code, node, hint, format string, args ...any) {
		add(&all.Obstacles, false, code, node, hint, format, args...)
	}
	may := func(code, node, hint, format string, args ...any) {
		add(&all.Obstacles, true, code, node, hint, format, args...)
	}
	warn := func(code, node, hint, format string, args ...any) {
		add(&all.Warnings, true, code, node, hint, format, args...)
	}
	primary, target := voters.PeerOf(f.Peers, f.Rule.Primary), voters.PeerOf(f.Peers, int32(f.Target.ID))
	from, to := f.Primary.Name, f.Target.Name

	switch unfenced := election.Unfenced(primary, f.Peers); {
	case primary.Answer != election.Answers || primary.Running != election.Primary:
		must("primary_lost", from, "See repmgr cluster explain: a primary that is lost is replaced by a failover.", "it does not run as the primary")
	case election.Paused(f.Peers):
		must("failover_paused", "", "Run repmgr service unpause.", "failover is paused, so no daemon acts")
	case election.Foreign(f.Peers):
		must("repmgr5_daemon", "", "Stop the repmgrd of repmgr 5 on all nodes.", "a repmgrd of repmgr 5 runs beside ours")
	case unfenced != "":
		must("no_daemon", from, "Run repmgrd there with failover=automatic: it stops its server and brings it back.", "%s", unfenced)
	}

	switch unfit := p.Fit(f.Rule, target); {
	case target.ID == f.Rule.Primary:
		must("target_is_primary", to, "Nothing to do, or name another node.", "it is the primary already")
		return all
	case target.Answer != election.Answers:
		must("target_lost", to, "Start its server, or name another node.", "its server %s", target.Answer)
		return all
	case unfit != "":
		must("target_unfit", to, "Mend that, or name another node.", "%s", unfit)
	case target.Receives != f.Rule.Primary || !target.Receiving:
		must("target_not_attached", to, "Run on it first: repmgr standby follow", "it does not stream from the primary")
	}
	if target.ReplayPaused {
		may("target_paused", to, "Run on it: SELECT pg_wal_replay_resume();", "its replay is paused, so another node could be elected in its place")
	}
	server := f.Servers[1]
	switch {
	case server.Err != nil:
		must("target_unknown", to, "Look at its log.", "it could not be asked: %v", server.Err)
	case server.Received > lagLimit:
		may("target_lags", to, "Wait until it has caught up.", "it lacks %s of the primary's WAL", wording.Bytes(server.Received))
	case server.Replay > lagLimit:
		may("target_replays", to, "Wait until it has replayed that: no write is possible before.", "it has %s of WAL to replay", wording.Bytes(server.Replay))
	}
	if server.ReadOnly {
		may("target_read_only", to, "Run on it: ALTER SYSTEM SET default_transaction_read_only = off; SELECT pg_reload_conf();", "default_transaction_read_only is on")
	}
	f.followers(may, warn)
	f.shutdown(l, may, warn)
	switch refused := p.HandoverRefused(time.Now(), f.Rule, f.Peers, target.ID, true); refused {
	case "", election.RefusedHealth, election.RefusedPaused, election.RefusedForeign, election.RefusedNoneFit: // said above
	case election.RefusedNoMajority, election.RefusedNoPledge:
		must("no_majority", "", "See repmgr cluster explain.", "no majority of the voters can pledge itself")
	default:
		must("election_refused", "", "See repmgr cluster explain.", "the election would be refused: %s", refused)
	}
	return all
}

type adder func(code, node, hint, format string, args ...any)

// followers are the checks of the nodes that are to stream from the target, the former primary
// among them.
func (f Facts) followers(may, warn adder) {
	target := voters.PeerOf(f.Peers, int32(f.Target.ID))
	count, slots := 0, 0
	for _, o := range f.Peers {
		if o.ID == target.ID || o.ID == election.Arbiter || o.Role == election.Witness || o.Answer != election.Answers {
			continue
		}
		count++
		if o.NeedsSlot {
			slots++
		}
		if why := o.NoStream[target.ID]; why != "" && o.ID == f.Rule.Primary {
			may("primary_can_not_stream", f.Names[o.ID], "Allow it in pg_hba.conf of the target, database replication.", "it could not stream from the target: %s", why)
		} else if why != "" {
			warn("can_not_stream", f.Names[o.ID], "Allow it in pg_hba.conf of the target, database replication.", "it could not stream from the target: %s", why)
		}
	}
	if c := target.Capacity; c.Known && c.Senders < count {
		may("max_wal_senders", f.Target.Name, "Raise max_wal_senders there, which needs a restart.", "%d nodes are to stream from it, and it has room for %d", count, c.Senders)
	}
	if c := target.Capacity; c.Known && c.Slots < slots {
		may("max_replication_slots", f.Target.Name, "Raise max_replication_slots there, which needs a restart.", "%d nodes need a slot on it, and it has room for %d", slots, c.Slots)
	}
	var small []string
	for name, n := range f.Servers[1].Capacity {
		if f.Servers[0].Capacity[name] < n {
			small = append(small, fmt.Sprintf("%s %d (%d)", name, f.Servers[0].Capacity[name], n))
		}
	}
	if slices.Sort(small); len(small) > 0 && !f.InPlace {
		may("primary_settings", f.Primary.Name, "Raise them there to the values in parentheses (ALTER SYSTEM): the switchover restarts it.", "as a standby it could not replay, because these settings are smaller than those of the target: %s", strings.Join(small, ", "))
	}
	if !f.Servers[0].Rewinds {
		warn("can_not_rewind", f.Primary.Name, "Set wal_log_hints = on, which needs a restart.", "it has neither data checksums nor wal_log_hints: after a failover it could not be rewound")
	}
	if restart := f.Servers[0].Restart; len(restart) > 0 {
		warn("pending_restart", f.Primary.Name, "They take effect with this restart.", "settings wait for a restart: %s", strings.Join(restart, ", "))
	}
}

// shutdown are the checks of what the shutdown of the primary ends or waits for.
func (f Facts) shutdown(l Limits, may, warn adder) {
	s, on := f.Shutdown, f.Primary.Name
	switch {
	case s.Failing && s.Archive != 0:
		may("archive_fails", on, "See the server's log, and mend archive_command.", "the newest attempt to archive a WAL segment failed, and the shutdown tries it again")
	case l.Archive > 0 && s.Archive >= l.Archive:
		may("archive_behind", on, "Wait until they are archived.", "%d WAL segments wait for the archiver, and the shutdown waits for them", s.Archive)
	}
	if s.Backups > 0 {
		may("backup_runs", on, "Wait until it has ended.", "%d base backups run, and end with an error", s.Backups)
	}
	if s.Transaction > longTransaction {
		warn("long_transaction", on, "Wait until it has ended, if it must not be lost.", "a transaction has been open for %s: it is rolled back", s.Transaction.Round(time.Second))
	}
	if s.Prepared > 0 {
		warn("prepared_transactions", on, "Commit or roll them back on the new primary.", "%d prepared transactions keep their locks on the new primary", s.Prepared)
	}
}

// steps are the steps of a handover, with the names under which they are logged.
func (f Facts) steps() []plan.Step {
	from, to := f.Primary.Name, f.Target.Name
	goesOn := from + " goes on as the primary"
	return []plan.Step{
		{Name: StepChecked, Node: from, Effect: "all checks are made again", Undo: goesOn},
		{Name: StepCheckpointed, Node: from, Effect: "a checkpoint is written, so that the one of the shutdown is short", Check: to + " has received nearly all WAL", Undo: goesOn},
		{Name: StepNoticed, Node: "all", Effect: "the other nodes are told to leave the election to the daemon of " + from, Check: to + " was told", Undo: goesOn},
		{Name: StepStopped, Node: from, Effect: "the server is shut down in order: all sessions end, and its standbys receive the last WAL", Check: "pg_control says that the shutdown is complete", Undo: "the server is killed and started again; " + goesOn},
		{Name: StepReceived, Node: to, Effect: "nothing", Check: to + " has the record of the shutdown", Undo: "the server is started again; " + goesOn},
		{Name: StepElected, Node: to, Effect: "a majority of the voters elects it in a new term, it is promoted, and the other standbys stream from it", Check: "its first commit is on enough standbys", Undo: "the other daemons hold an election"},
		{Name: StepReturned, Node: from, Effect: "the server is started as a standby of " + to, Check: "it streams", Undo: "its daemon tries it again, and repmgr node rejoin does it by hand"},
	}
}
