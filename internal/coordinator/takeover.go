package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
)

// tellWitnesses gives the new rule to the voters without data, before anybody
// can commit under it.
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

// warmUp has a new session of a server in recovery plan what it will write as the
// first one after the promotion: it needs some milliseconds for what it never did before.
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

// promote makes the winner the primary, if its pledge still is ours. What its
// commits must wait for is in force before it accepts any.
func (a *Election) promote(ctx context.Context) error {
	winner := *a.res.Winner
	var conn, probe sync.WaitGroup // they are needed soon; who commits tries again
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
		return n.WithPledge(ctx, func(b ballot.Ballot) error {
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
				if err := n.StoreRule(ctx, a.tally.Rule); err != nil { // should it die before its row: its branch is this one
					return err
				}
				b.Candidate += ballot.ChosenMark
				if err := ballot.Write(ctx, n.Conn, b); err != nil {
					return err
				}
			}
			a.makeSlots(ctx, &conn)
			if a.tally.Rule.Quorum { // without quorum no commit waits for them
				a.pointStandbys(ctx)
				mark.Go(func() {
					if conn.Wait(); a.conn != nil {
						_ = a.markOpen(limited, a.conn) // who commits tries again
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

// markOpen says of the value under which the term is open that it is ours, beside
// the closed one that is in force.
func (a *Election) markOpen(ctx context.Context, n *registry.Server) error {
	name := func(id int32) string { return a.w.Record(id).Name }
	closed, value := syncrep.Value(a.tally.Rule.PromotionSetting(), name), syncrep.Value(a.tally.Rule.SyncSetting(), name)
	err := syncrep.WriteMark(ctx, n, syncrep.State{Value: closed, Mark: closed}, value)
	if err == nil {
		a.openValue = value
	}
	return err
}

// pointStandbys lets the pledged standbys connect to the winner, with quorum while that is
// promoted: it takes them about as long, and until the promotion the winner has
// nothing for them but what it won with. Whether it worked is in their channels.
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

// makeSlots gives the followers their slots on the winner, over the connection
// that dialled opens. A slot that can not be made holds nothing up: its standby
// follows without one, and its own Monitor makes it later.
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

// open points the others to the winner, where that was not done yet, and commits the rule,
// which opens the term. With synchronous_mode=quorum that commit waits for standbys like any
// other. The wait has a limit: a winner without its rule becomes a candidate for the next term.
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

// firstCommitTimeouts is how many silence_timeouts the first commit of a term may take.
const firstCommitTimeouts = 3

var errNoStandby = errors.New("no standby")

// awaitFollower waits until a standby that was pointed to the winner streams from it, for
// as long as is usual, and until it knows of the rule. Apart is why it does not.
// One that was below another standby is below the winner, too, until the term is
// open: only then it counts whom it is sent by.
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
	if err = errors.Join(apart, err); err == nil && (!p.Monitored || !p.Automatic) { // else its daemon does it when it has to
		err = ballot.GiveArchive(ctx, n.Conn)
	}
	return err
}

// pointStandby gives a standby the settings to stream from the winner, if it can.
func (a *Election) pointStandby(ctx context.Context, n *registry.Server, r registry.Record) error {
	winner, theirs := voters.PeerOf(a.pledged, a.tally.Winner), voters.PeerOf(a.pledged, int32(r.ID))
	if theirs.Position.LSN > winner.Position.LSN || !theirs.On(election.Rule{Line: winner.Line()}) {
		return failure.Of(failure.ErrTimelineDiverged, "%s has WAL up to %s, the winner only up to %s", r, theirs.Position, winner.Position)
	}
	if theirs.Halt == election.UnfitOwnWAL {
		return failure.Of(failure.ErrTimelineDiverged, "%s can not follow the winner: %s", r, theirs.Halt)
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

// commit opens the term, over a connection of its own: it may have to wait. With
// quorum the row of the rule is not acknowledged but held: until so many have it
// that no election can miss it, commits of clients wait. The rows of the nodes
// come after it, as the first commit that is acknowledged like any other.
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
	line, err := n.RuleLine(ctx) // by then that commit waits
	if err == nil && a.tally.Rule.Quorum {
		err = syncrep.Prove(ctx, n, a.probe, 2*a.SilenceTimeout)
	}
	if err != nil {
		return err
	}
	if line.Known() {
		a.mu.Lock()
		a.tally.Rule.Line = line
		a.mu.Unlock()
	}
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
		n.Heeded = true // it has pledged itself a moment ago
		if err := syncrep.Put(ctx, n, a.openValue); err != nil {
			return err
		}
		wait = "on"
	}
	winner := int32(a.res.Winner.ID)
	if err := n.InstallPrimary(ctx, winner, a.rule.Primary, a.followers(), wait); err != nil {
		return err
	}
	if err := ballot.GiveArchive(ctx, n.Conn); err != nil {
		a.Log.Warn("restore_command is not given back", "node", n.Name, "err", err)
	}
	if seen := a.w.LastSign(a.rule.Primary); !a.Reaffirm && !seen.IsZero() && a.rule.Primary != winner {
		a.res.Outage = time.Since(seen)
	}
	return nil
}

// followers are the data nodes that were pointed to the winner, those too that were
// below another standby before.
func (a *Election) followers() (ids []int32) {
	for _, p := range a.pledged {
		if p.ID != a.tally.Winner && p.Role != election.Witness && p.ID != election.Arbiter {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// ruleHeld reports whether every election is certain to find the new rule: it was announced to the
// pledged witnesses, and the standbys show its row or it was announced to them.
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
