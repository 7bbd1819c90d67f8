package repmgr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// tellPledge says when the local server could not give its pledge in an election,
// and when it could again: the log, and an event.
func (m *Monitor) tellPledge() {
	me := voters.PeerOf(m.watch.Peers(), int32(m.cluster.cfg.NodeID))
	if m.cluster.cfg.NodeID == 0 || me.Answer != election.Answers || me.NoPledge == m.noPledge {
		return
	}
	m.noPledge = me.NoPledge
	e := Event{Type: EventPledgeAbility, Success: me.NoPledge == "", Details: "this node could pledge itself in an election again"}
	var err error
	if me.NoPledge != "" {
		e.Details = "this node could not pledge itself in an election: " + me.NoPledge
		err = errors.New(me.NoPledge)
	}
	m.report(fmt.Sprintf("a pledge of %s", m.self), err)
	m.tell(e)
}

// vote is what this Monitor knows of its own node's ballot, and of the settings
// beside it. It is owned by the goroutine of Run.
type vote struct {
	lost  string            // the vote that the server has lost and could not be given back; empty: none
	twice string            // the two votes of one term that were told last
	names map[string]string // those of guardedSettings that its file had last, and their values
	of    time.Time         // the start of the server that they were read of
}

// guardedSettings are those in the file of ALTER SYSTEM that nobody takes out again
// who only changes them: what a standby streams by, what clients find the server by,
// and what a clone has set for good.
var (
	guardedSettings = append([]string{"primary_conninfo", registry.PausedSetting}, startSettings...)
	startSettings   = append(slices.Clone(placeSettings), "recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_timeline", "recovery_target_xid")
	placeSettings   = []string{"port", "listen_addresses", "unix_socket_directories", "hba_file", "ident_file"}
)

// keepVote keeps the node's vote a second time, and writes it back where its server
// has lost it: ALTER SYSTEM RESET ALL, or a program that rewrites postgresql.auto.conf.
// Of the settings beside it, it tells that they are gone.
func (m *Monitor) keepVote(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.local == nil || m.yields {
		return
	}
	m.recall()
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	set, err := ballot.ReadSettings(ctx, m.local.Conn)
	if errors.Is(err, ballot.ErrMissing) {
		err = nil // it held nothing that was kept
	}
	var b ballot.Ballot
	if err == nil {
		b, err = ballot.Parse(set[ballot.Setting])
	}
	m.report("reading the vote of "+m.cluster.self(), err)
	if err != nil {
		return
	}
	m.tellLost(set)
	self := int32(m.cluster.cfg.NodeID)
	kept := m.kept.Ballot
	switch {
	case b.Node == self && b.Term > kept.Term, b.Node == self && b.Term == kept.Term && sameCandidate(b, kept) && b != kept:
		m.kept.Ballot = b
		m.writeKept()
	case b.Node == self && b.Term == kept.Term && b.Term > 0 && b != kept:
		if text := kept.String() + " " + b.String(); m.vote.twice != text {
			m.vote.twice = text
			m.tell(Event{Type: EventVoteLost, Details: fmt.Sprintf("this node gave two votes in term %d: %q was lost, and then %q given", b.Term, kept, b)})
			m.log.Error("this node gave two votes in one term", "first", kept, "second", b, "hint", "Look at repmgr cluster show: two nodes may run as primary. Nobody but ALTER SYSTEM may write postgresql.auto.conf.")
		}
	case b.Term < kept.Term:
		m.restoreVote(ctx, b, kept)
		return
	}
	m.vote.lost = ""
}

// sameCandidate reports whether two ballots are for one candidate: the mark of its
// victory comes later.
func sameCandidate(a, b ballot.Ballot) bool {
	return strings.TrimSuffix(a.Candidate, ballot.ChosenMark) == strings.TrimSuffix(b.Candidate, ballot.ChosenMark)
}

// restoreVote writes the node's vote back. Until that is done nobody counts on a
// pledge of this node.
func (m *Monitor) restoreVote(ctx context.Context, b, kept ballot.Ballot) {
	err := ballot.Restore(ctx, m.local.Conn, kept)
	m.report("writing back the vote of "+m.cluster.self(), err)
	if err == nil {
		err = m.local.Reload(ctx) // so that others look
	}
	told := m.vote.lost != ""
	m.vote.lost = kept.String()
	details := fmt.Sprintf("the vote %q was gone from postgresql.auto.conf, which had %q: somebody else wrote that file, or ran ALTER SYSTEM RESET", kept, b)
	if err == nil {
		m.vote.lost = ""
		m.log.Warn("the vote of this node was lost, and was written back", "kept", kept, "found", b)
		m.tell(Event{Type: EventVoteLost, Success: true, Details: details + "; it was written back"})
		m.lookNow()
		return
	}
	if !told {
		m.tell(Event{Type: EventVoteLost, Details: fmt.Sprintf("%s; it could not be written back: %v", details, err)})
	}
}

// tellLost says that settings have vanished from the file of ALTER SYSTEM. Who only
// changes them does not take them out. A running server goes on with what it had
// until it reads its configuration again, or starts.
func (m *Monitor) tellLost(set map[string]string) {
	now, gone := map[string]string{}, map[string]string{}
	fresh := !m.vote.of.Equal(m.sample.local.StartedAt) // who brings a server back writes its file anew
	for _, name := range guardedSettings {
		if value, ok := set[name]; ok {
			now[name] = value
		} else if value, ok := m.vote.names[name]; ok && (!fresh || !slices.Contains(startSettings, name)) {
			gone[name] = value
		}
	}
	m.vote.names, m.vote.of = now, m.sample.local.StartedAt
	if len(gone) == 0 {
		return
	}
	remedy := lostRemedy(gone, m.sample.local.InRecovery)
	names := strings.Join(slices.DeleteFunc(slices.Clone(guardedSettings), func(name string) bool { _, ok := gone[name]; return !ok }), ", ")
	text := fmt.Sprintf("%s gone from postgresql.auto.conf: somebody else wrote that file, or ran ALTER SYSTEM RESET", names)
	m.log.Warn("settings of this node were lost", "settings", names, "hint", remedy)
	m.tell(Event{Type: EventSettingsLost, Details: text + ". " + remedy})
}

// lostRemedy says what each lost setting means, and what to do about it.
func lostRemedy(gone map[string]string, standby bool) string {
	var all []string
	if _, ok := gone["primary_conninfo"]; ok && standby {
		all = append(all, "Without primary_conninfo a standby stops streaming when its server reads its configuration again. To set it anew: repmgr standby follow.")
	} else if ok {
		all = append(all, "This server is a primary: it needs no primary_conninfo, and is given one when it becomes a standby.")
	}
	if _, ok := gone[registry.PausedSetting]; ok {
		all = append(all, "If failover is still to be paused: repmgr service pause.")
	}
	for _, name := range placeSettings {
		if value, ok := gone[name]; ok {
			all = append(all, fmt.Sprintf("At its next start the server would do without the %s that it has now; before that: ALTER SYSTEM SET %s = '%s';", name, name, strings.ReplaceAll(value, "'", "''")))
		}
	}
	if slices.ContainsFunc(slices.Sorted(maps.Keys(gone)), func(name string) bool { return strings.HasPrefix(name, "recovery_target") }) {
		all = append(all, "pg_file_settings shows an error (cannot be changed without restarting the server) for each of recovery_target* until the next start: that does no harm.")
	}
	return strings.Join(all, " ")
}
