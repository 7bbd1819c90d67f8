package repmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// tellPledge says when the local server could not give its pledge in an election,
// and when it could again: the log, and an event.
func (m *Monitor) tellPledge() {
	me := peerOf(m.watch.peers(), int32(m.cluster.cfg.NodeID))
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
	lost  string   // the vote that the server has lost and could not be given back; empty: none
	twice string   // the two votes of one term that were told last
	names []string // those of guardedSettings that its file had last
}

// guardedSettings are those in the file of ALTER SYSTEM that nobody takes out again
// who only changes them.
var guardedSettings = []string{"primary_conninfo", pausedSetting}

// keepVote keeps the node's vote a second time, and writes it back where its server
// has lost it: ALTER SYSTEM RESET ALL, or a program that rewrites postgresql.auto.conf.
// Of the settings beside it, it tells that they are gone.
func (m *Monitor) keepVote(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.local == nil {
		return
	}
	m.recall()
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	set, err := ballot.ReadSettings(ctx, m.local.conn)
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
	return strings.TrimSuffix(a.Candidate, chosenMark) == strings.TrimSuffix(b.Candidate, chosenMark)
}

// restoreVote writes the node's vote back. Until that is done nobody counts on a
// pledge of this node.
func (m *Monitor) restoreVote(ctx context.Context, b, kept ballot.Ballot) {
	err := ballot.Restore(ctx, m.local.conn, kept)
	m.report("writing back the vote of "+m.cluster.self(), err)
	if err == nil {
		err = m.local.reload(ctx) // so that others look
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
// until it reads its configuration again.
func (m *Monitor) tellLost(set map[string]string) {
	var now, gone []string
	for _, name := range guardedSettings {
		if _, ok := set[name]; ok {
			now = append(now, name)
		} else if slices.Contains(m.vote.names, name) {
			gone = append(gone, name)
		}
	}
	m.vote.names = now
	if len(gone) == 0 {
		return
	}
	remedy := "If that was not meant, set them again with ALTER SYSTEM."
	if slices.Contains(gone, "primary_conninfo") {
		remedy = "Without primary_conninfo a standby stops streaming when its server reads its configuration again. To set it anew: repmgr standby follow"
	}
	text := fmt.Sprintf("%s gone from postgresql.auto.conf: somebody else wrote that file, or ran ALTER SYSTEM RESET", strings.Join(gone, ", "))
	m.log.Warn("settings of this node were lost", "settings", strings.Join(gone, ", "), "hint", remedy)
	m.tell(Event{Type: EventSettingsLost, Details: text + ". " + remedy})
}
