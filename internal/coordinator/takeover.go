package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// tellWitnesses stores the new rule on the voters without data, before anybody can commit under
// it.
func (a *Election) tellWitnesses(ctx context.Context) error {
	limit := a.SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within silence_timeout (%s)", limit))
	defer cancel()
	for _, p := range a.pledged {
		var err error
		switch {
		case p.ID == election.Arbiter:
			err = a.Arbiter.Record(ctx, a.tally.Rule, a.w.Records())
		case p.Role == election.Witness:
			err = a.w.Voter(p.ID).RunNow(ctx, func(n *registry.Server) error { return n.WriteRule(ctx, a.tally.Rule, a.Candidate) })
		}
		if err != nil {
			return fmt.Errorf("tell node %d of the new rule: %w", p.ID, err)
		}
	}
	return nil
}

// warmUp lets a new session on a server in recovery plan the statement that will be its first
// write after the promotion. That saves some milliseconds of the outage.
func warmUp(ctx context.Context, n *registry.Server, r election.Rule) {
	if ok, err := n.HasSchema(ctx); !ok || err != nil {
		return
	}
	_, _ = n.RuleLine(ctx)
	_, _ = n.WALSegmentSize(ctx)
	if args, err := registry.RuleArgs(r, ""); err == nil {
		_, _ = n.Conn.Exec(ctx, `EXPLAIN `+registry.RuleInsertSQL, args...)
	}
}

// promote makes the winner the primary, if its pledge still belongs to this election. The
// setting that makes its commits wait is in force before it accepts any.
func (a *Election) promote(ctx context.Context) error {
	winner := *a.res.Winner
	var conn, probe sync.WaitGroup // both are opened early; commit opens them again if that fails
	limited, cancel := context.WithTimeout(ctx, a.SilenceTimeout/2)
	defer cancel()
	if a.conn == nil {
		conn.Go(func() {
			if a.conn, _ = a.Connect(limited, winner); a.conn != nil {
				warmUp(limited, a.conn, a.tally.Rule)
			}
		})
	}
	var mark sync.WaitGroup
	defer conn.Wait()
	defer probe.Wait()
	defer mark.Wait()
	err := a.w.Voter(int32(winner.ID)).RunNow(ctx, func(n *registry.Server) error {
		if a.tally.Rule.Quorum {
			probe.Go(func() { a.probe, _ = syncrep.NewCommitProbe(limited, n) })
		}
		return n.WithVictory(ctx, func(b ballot.Ballot, firstXid uint64) error {
			a.firstXid = firstXid // for clients that ask what became of their transactions; commit says whether it holds
			if b.Term != a.res.Term || b.Candidate != a.Candidate {
				return fmt.Errorf("%w: %s holds %q", registry.ErrSuperseded, winner, b)
			}
			if a.tally.Rule.Quorum {
				if err := a.Sync.Set(ctx, n, a.tally.Rule.PromotionSetting()); err != nil {
					return err
				}
			} else if err := syncrep.Clear(ctx, n); err != nil {
				return err
			}
			if !a.Reaffirm {
				if err := n.StoreRule(ctx, a.tally.Rule); err != nil { // if it dies before the row is written, this tells that its timeline belongs to this rule
					return err
				}
				b.Candidate += ballot.ChosenMark
				if err := ballot.Write(ctx, n.Conn, b); err != nil {
					return err
				}
			}
			a.makeSlots(ctx, &conn)
			if a.tally.Rule.Quorum { // without quorum no commit waits for the standbys, and this is done after the promotion
				a.pointStandbys(ctx)
				mark.Go(func() {
					if conn.Wait(); a.conn != nil {
						_ = a.markOpen(limited, a.conn) // commit tries it again
					}
				})
			}
			if a.Reaffirm {
				return nil
			}
			return a.Promote(ctx, n, winner)
		})
	})
	if err != nil {
		return err
	}
	a.logStep("promoted", "%s", winner)
	return nil
}

// markOpen marks the synchronous_standby_names of the open term as ours, beside the closed
// value that is in force until then.
func (a *Election) markOpen(ctx context.Context, n *registry.Server) error {
	name := func(id int32) string { return a.w.Record(id).Name }
	closed, value := syncrep.Value(a.tally.Rule.PromotionSetting(), name), syncrep.Value(a.tally.Rule.SyncSetting(), name)
	err := syncrep.WriteMark(ctx, n, syncrep.State{Value: closed, Mark: closed}, value)
	if err == nil {
		a.openValue = value
	}
	return err
}

// pointStandbys makes the pledged standbys connect to the winner. With quorum it runs during
// the promotion, which takes about as long; until the promotion the winner has nothing for them
// but the WAL that it won with. The results are in the channels of pointed.
func (a *Election) pointStandbys(ctx context.Context) {
	a.pointed = map[int32]chan error{}
	for _, p := range a.pledged {
		if p.ID == a.tally.Winner || p.Role == election.Witness || p.ID == election.Arbiter {
			continue
		}
		done := make(chan error, 1)
		a.pointed[p.ID] = done
		a.background.Go(func() {
			limit := firstCommitTimeouts * a.SilenceTimeout
			ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
			defer cancel()
			done <- a.w.Voter(p.ID).RunNow(ctx, func(n *registry.Server) error { return a.pointStandby(ctx, n, a.w.Record(p.ID)) })
		})
	}
}

// makeSlots makes the slots of the followers on the winner, over the connection that the
// goroutines of dialled open. A slot that can not be made delays nothing: its standby follows
// without one, and its own daemon makes it later.
func (a *Election) makeSlots(ctx context.Context, dialled *sync.WaitGroup) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.SilenceTimeout/2, errors.New("no slot within half of silence_timeout"))
	defer cancel()
	a.slots = map[registry.NodeID]string{}
	for _, p := range a.pledged {
		r := a.w.Record(p.ID)
		if p.ID == int32(a.res.Winner.ID) || r.SlotName == "" || r.Role == registry.RoleWitness {
			continue
		}
		if dialled.Wait(); a.conn == nil {
			a.Log.Warn("no replication slots are made: the winner gives no further connection", "winner", a.res.Winner.Name)
			return
		}
		a.slots[r.ID] = a.MakeSlot(ctx, a.conn, r)
		if a.conn.Conn.IsClosed() {
			a.conn = nil
		}
	}
}

// open makes the other standbys follow the winner, where that was not done yet, and opens the
// term: see commit. The wait for the standbys has a limit: a winner without its rule becomes a
// candidate for the next term.
func (a *Election) open(ctx context.Context) error {
	limit := firstCommitTimeouts * a.SilenceTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not acknowledged within %s", limit))
	defer cancel()
	if a.pointed == nil {
		a.pointStandbys(ctx)
	}
	followers := make([]error, len(a.pledged))
	var wg sync.WaitGroup
	for i, p := range a.pledged {
		done, ok := a.pointed[p.ID]
		if !ok {
			followers[i] = errNoStandby
			continue
		}
		wg.Go(func() {
			apart := <-done
			if followers[i] = a.w.Voter(p.ID).RunNow(ctx, func(n *registry.Server) error { return a.awaitFollower(ctx, n, p, apart) }); followers[i] != nil {
				a.Log.Warn("standby does not follow yet", "node_id", p.ID, "err", followers[i], "hint", "Its own repmgrd tries it again.")
			}
			if errors.Is(followers[i], registry.ErrSuperseded) && a.tally.Rule.Quorum {
				cancel()
			}
		})
	}
	a.logStep("repointed", "the others are told")
	err := a.commit(ctx)
	wg.Wait()
	if err != nil {
		return failure.WithHint(failure.Of(failure.ErrMetadata, "%s is promoted, but its first commit was not acknowledged: %w", a.res.Winner, err),
			"Its own repmgrd goes on with it. See repmgr service status.")
	}
	for i, p := range a.pledged {
		if followers[i] == nil {
			a.res.Following = append(a.res.Following, a.w.Record(p.ID))
		}
	}
	a.res.Rule = a.tally.Rule
	a.logStep("ruled", "term %d is open; following: %s", a.res.Term, cmp.Or(names(a.res.Following), "nobody yet"))
	return nil
}

func names(recs []registry.Record) string {
	var all []string
	for _, r := range recs {
		all = append(all, r.Name)
	}
	return strings.Join(all, ", ")
}

// firstCommitTimeouts is how many times silence_timeout the first commit of a term may take.
const firstCommitTimeouts = 3

var errNoStandby = errors.New("no standby")

// awaitFollower waits, for as long as is usual, until a standby streams from the winner and
// knows the new rule. apart is the reason where it could not be made to follow. A standby that
// streamed from another standby follows the winner too, until the term is open: the new term
// counts only what the winner itself sends.
func (a *Election) awaitFollower(ctx context.Context, n *registry.Server, p election.Peer, apart error) error {
	if errors.Is(apart, registry.ErrSuperseded) {
		return apart
	}
	limited, cancel := context.WithTimeoutCause(ctx, a.SilenceTimeout, fmt.Errorf("it does not stream after %s", a.SilenceTimeout))
	defer cancel()
	begun, streams, knows := time.Now(), apart != nil, !a.tally.Rule.Quorum
	err := n.Poll(limited, func() (_ bool, err error) {
		if !streams {
			err = n.Conn.QueryRow(limited, `SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')`).Scan(&streams)
		}
		if err == nil && !knows {
			knows, err = a.confirm(limited, n, p.ID, time.Since(begun) > postgres.NudgeInterval/2)
		}
		return streams && knows, err
	})
	if err = errors.Join(apart, err); err == nil && (!p.Monitored || !p.Automatic) { // otherwise its daemon does that when needed
		err = ballot.EnableArchive(ctx, n.Conn)
	}
	return err
}

// pointStandby gives a standby the settings to stream from the winner, if it can follow it.
func (a *Election) pointStandby(ctx context.Context, n *registry.Server, r registry.Record) error {
	winner, theirs := voters.PeerOf(a.pledged, a.tally.Winner), voters.PeerOf(a.pledged, int32(r.ID))
	if theirs.Position.LSN > winner.Position.LSN || !theirs.On(election.Rule{Line: winner.Line()}) {
		return failure.Of(failure.ErrTimelineDiverged, "%s has WAL up to %s, the winner only up to %s", r, theirs.Position, winner.Position)
	}
	if theirs.ReplayBlocked == election.UnfitOwnWAL {
		return failure.Of(failure.ErrTimelineDiverged, "%s can not follow the winner: %s", r, theirs.ReplayBlocked)
	}
	set, err := a.StandbySettings(*a.res.Winner, r.Name, a.slots[r.ID])
	if err != nil {
		return err
	}
	err = n.WithPledge(ctx, func(b ballot.Ballot) error {
		if b.Term > a.res.Term {
			return fmt.Errorf("%w: %s holds %q", registry.ErrSuperseded, r, b)
		}
		return n.AlterSystem(ctx, set)
	})
	if err == nil {
		err = ballot.ResumeReplay(ctx, n.Conn)
	}
	return err
}

// lineOf is the line of a winner whose own files say own, and whose past was counted before its promotion. The files of
// earlier timelines may be those of another primary (see [rejoin.MendHistories]), but where the last one ended PostgreSQL wrote
// in the promotion itself: the winner may have replayed more than was counted, from an archive.
func lineOf(own wal.Lineage, counted wal.History) wal.Lineage {
	if n, c := len(own.Past)-1, len(counted)-1; n >= 0 && c >= 0 && own.Past[n].Timeline == counted[c].Timeline {
		own.Past = append(slices.Clone(counted[:c]), own.Past[n])
	}
	return own
}

// commit opens the term, over a connection of its own, because it may have to wait. With quorum
// the row of the rule is written without waiting for an acknowledgement, and the commits of
// clients wait until enough nodes hold the rule that no election can miss it. The rows of the
// nodes are written next: that is the first commit which is acknowledged like any other.
func (a *Election) commit(ctx context.Context) error {
	n, err := a.conn, error(nil)
	if n == nil {
		n, err = a.Connect(ctx, *a.res.Winner)
	}
	if err != nil {
		return err
	}
	ctx = postgres.Unlimited(ctx)
	if a.tally.Rule.Quorum {
		if a.probe == nil {
			if a.probe, err = syncrep.NewCommitProbe(ctx, n); err != nil {
				return err
			}
		}
		a.probe.Begin(ctx)
	}
	line, err := n.RuleLine(ctx) // meanwhile the commit of the probe begins to wait
	if err == nil && a.tally.Rule.Quorum {
		err = syncrep.Prove(ctx, n, a.probe, 2*a.SilenceTimeout)
	}
	if err != nil {
		return err
	}
	if line.Known() {
		a.mu.Lock()
		if n := len(line.Past); n > 0 && line.Past[n-1].SwitchLSN == voters.PeerOf(a.pledged, a.tally.Winner).Replayed { // that was read before firstXid, and nothing was replayed since
			a.tally.Rule.FirstXid = a.firstXid
		}
		a.tally.Rule.Line = lineOf(line, a.tally.Rule.Line.Past)
		a.mu.Unlock()
	}
	// Our sessions commit locally, so this does not wait, although nothing else is acknowledged yet.
	if err := n.WriteRule(ctx, a.tally.Rule, a.Candidate); err != nil {
		return err
	}
	a.mu.Lock()
	a.hasRow = true
	a.mu.Unlock()
	wait := "local"
	if a.tally.Rule.Quorum {
		if a.openValue == "" {
			if err := a.markOpen(ctx, n); err != nil {
				return err
			}
		}
		if err := n.Poll(ctx, func() (bool, error) { return a.ruleHeld(), nil }); err != nil {
			return err
		}
		n.Heeded = true // its settings were read when it pledged itself a moment ago
		if err := syncrep.Put(ctx, n, a.openValue); err != nil {
			return err
		}
		wait = "on"
	}
	winner, former, replaced := int32(a.res.Winner.ID), a.rule.Primary, time.Time{}
	if a.Reaffirm {
		former, replaced = a.completes(ctx, n)
	}
	if err := n.InstallPrimary(ctx, winner, former, a.followers(), wait); err != nil {
		return err
	}
	if err := ballot.EnableArchive(ctx, n.Conn); err != nil {
		a.Log.Warn("restore_command is not given back", "node", n.Name, "err", err)
	}
	if replaced.IsZero() {
		replaced = time.Now()
	}
	if seen := a.w.LastSign(former); !seen.IsZero() && former != winner {
		a.res.Outage = max(0, replaced.Sub(seen))
	}
	return nil
}

// completes returns the primary that the winner of a reaffirmation has replaced, and when, where no history
// tells of that yet: the election that promoted the winner had no outcome, or left no record. Else it returns the winner.
func (a *Election) completes(ctx context.Context, n *registry.Server) (former int32, at time.Time) {
	winner := int32(a.res.Winner.ID)
	id, at, err := n.ReplacedUnrecorded(ctx, a.res.Winner.ID)
	if err != nil {
		a.Log.Warn("whether this term completes a failover is not known", "err", err)
	}
	if id == 0 {
		return winner, at
	}
	if former = int32(id); a.rule.Primary != winner {
		former = a.rule.Primary // the newest rule of all: the winner may never have had it
	}
	if a.res.Former == nil {
		r := a.w.Record(former)
		a.res.Former, a.res.Health = &r, election.HealthInterrupted
	}
	a.res.LostBytes = nil // that was a comparison of the winner with itself
	had := voters.PeerOf(a.w.Peers(), former).Position
	if fork, ok := a.tally.Rule.Line.Past.Fork(had.Timeline); ok {
		lost := max(0, had.LSN.Bytes(fork))
		a.res.LostBytes = &lost
	}
	return former, at
}

// followers are the data nodes that were made to follow the winner, including those that
// followed another standby before.
func (a *Election) followers() (ids []int32) {
	for _, p := range a.pledged {
		if p.ID != a.tally.Winner && p.Role != election.Witness && p.ID != election.Arbiter {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// ruleHeld reports whether every future election is certain to find the new rule: the pledged
// witnesses were told it, and enough standbys have its row or were told it.
func (a *Election) ruleHeld() bool {
	holders := []int32{a.tally.Winner}
	for _, p := range a.pledged {
		if p.ID == election.Arbiter || p.Role == election.Witness {
			holders = append(holders, p.ID)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	holders = append(holders, a.holders...)
	return election.Held(a.tally.Rule, a.rule, holders)
}
