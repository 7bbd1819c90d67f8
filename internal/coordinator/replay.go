package coordinator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// drain waits until the winner, and only the winner, has replayed all of its WAL. It resumes a
// paused replay and ends the sessions that the replay waits for. The replayed WAL may contain a
// newer rule, so the votes are counted once more.
func (a *Election) drain(ctx context.Context) error {
	before := voters.PeerOf(a.pledged, a.tally.Winner)
	if a.Reaffirm || before.Replayed >= before.Position.LSN && !before.ReplayPaused {
		return nil
	}
	var err error
	if a.conn == nil {
		if a.conn, err = a.Connect(ctx, *a.res.Winner); err != nil {
			return err
		}
	}
	begun, ended := time.Now(), 0
	if ended, err = replayAll(ctx, a.conn, before, a.PromotionTimeout); err != nil {
		return err
	}
	view, err := a.w.Look(ctx, a.conn, *a.res.Winner)
	if err != nil {
		return err
	}
	if view.Idle && view.Replayed < view.Position.LSN { // the rest on its disk is not a WAL record
		view.Position.LSN = view.Replayed
	}
	for i, p := range a.pledged {
		if p.ID == a.tally.Winner {
			a.pledged[i] = withIdentity(p, view)
		}
	}
	a.tally = a.policy.Count(a.rule, a.res.Term, a.res.Health, a.pledged)
	switch {
	case a.tally.Refusal != "":
		return a.refuse(a.tally.Refusal, a.res.Health, describe(a.pledged))
	case a.tally.Winner != before.ID:
		return a.refuse(election.RefusedPledges, a.res.Health, fmt.Sprintf("what %s has replayed makes node %d the winner", a.res.Winner, a.tally.Winner))
	}
	a.logStep("drained", "%s has replayed %s in %s%s", a.res.Winner, wording.Bytes(before.Position.LSN.Bytes(before.Replayed)), time.Since(begun).Round(time.Millisecond), endedText(ended))
	return nil
}

func endedText(sessions int) string {
	if sessions == 0 {
		return ""
	}
	return fmt.Sprintf("; %s that it waited for were ended", wording.Count(sessions, "session"))
}

// replayAll waits until a detached standby has replayed all of its WAL. It gives up when
// nothing was replayed for limit. It returns how many sessions it has ended for the replay.
func replayAll(ctx context.Context, n *registry.Server, p election.Peer, limit time.Duration) (ended int, err error) {
	last, at := wal.LSN(0), time.Now()
	if p.ReplayPaused && p.ReplayBlocked == "" {
		if _, err := n.Conn.Exec(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END`); err != nil {
			return 0, n.QueryError("resume WAL replay", err)
		}
	}
	if err := ballot.ResumeReplay(ctx, n.Conn); err != nil {
		return 0, err
	}
	err = n.Poll(ctx, func() (bool, error) {
		var now wal.LSN
		var idle bool
		var waits string
		err := n.Conn.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn(), d.idle, coalesce((SELECT wait_event_type || '/' || wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), '')
			FROM `+postgres.IdleSQL+` d`).Scan(&now, &idle, &waits)
		switch {
		case err != nil:
			return false, n.QueryError("look at the replay", err)
		case now >= p.Position.LSN || idle && now == last && time.Since(at) > 2*postgres.NudgeInterval:
			return true, nil
		case now != last:
			last, at = now, time.Now()
		case time.Since(at) > limit:
			return false, failure.WithHint(fmt.Errorf("replay of %s stands at %s for %s, on its way to %s", n.Name, now, limit, p.Position.LSN), "Look at its log and its disk.")
		case inConflict(waits):
			tag, err := n.Conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND application_name NOT LIKE 'repmgr%'
				AND (current_setting('is_superuser') = 'on' OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = usesysid AND r.rolsuper))`)
			if err != nil {
				return false, n.QueryError("end the sessions that the replay waits for", err)
			}
			ended += int(tag.RowsAffected())
		}
		return false, nil
	})
	return ended, err
}

// inConflict reports whether the startup process waits for sessions of the standby.
func inConflict(waits string) bool {
	kind, event, _ := strings.Cut(waits, "/")
	return kind == "Lock" || kind == "BufferPin" || strings.HasPrefix(event, "RecoveryConflict")
}

// confirm asks whether a data node has the row of the new rule. Once that row is written, and
// with tell, a node that does not have it in time is told the rule directly: it may replay
// slowly or not stream yet, and it is enough that it knows the rule.
func (a *Election) confirm(ctx context.Context, n *registry.Server, id int32, tell bool) (knows bool, err error) {
	if err := n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM repmgr.rules WHERE term >= $1)`, a.res.Term).Scan(&knows); err != nil {
		return false, n.QueryError("look for the rule", err)
	}
	rule := a.writtenRule()
	if !knows && (!tell || !rule.Known()) {
		return false, nil
	}
	err = ballot.LockedAgain(ctx, n.Conn, func(b ballot.Ballot) error {
		switch {
		case b.Term > a.res.Term: // it has pledged itself to a newer election, which did not see the rule
			return fmt.Errorf("%w: it holds %q", registry.ErrSuperseded, b)
		case knows:
			return nil
		}
		return n.StoreRuleAndReload(ctx, rule)
	})
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holders = append(a.holders, id)
	return true, nil
}

// writtenRule is the new rule once its row is written; before that, it is the zero Rule.
func (a *Election) writtenRule() election.Rule {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.hasRow {
		return election.Rule{}
	}
	return a.tally.Rule
}
