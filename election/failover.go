package election

import (
	"cmp"
	"slices"
	"time"
)

const (
	stagger     = 300 * time.Millisecond // between the turns of two monitors
	retryAfter  = 250 * time.Millisecond // after an election that found the primary not lost, or got too few pledges
	refuseAfter = time.Second            // after an election that was refused for another reason
	followAfter = 3 * time.Second        // after a follow or a rejoin that failed
	ruleDelay   = 2 * time.Second        // that the winner of an election gets to write its rule
	Margin      = 750 * time.Millisecond // added to fence_timeout, for differences of the clocks and for the time that the fence takes
)

// remember updates the times in the state: since when the primary is lost, and so on.
func (p Policy) remember(s State, o Observation) State {
	if !p.Automatic {
		return s
	}
	was := s.Health
	s = p.noteHandover(s, o)
	if s.Health = p.ForHandover(s, o.Now).Diagnose(o.Now, o.Rule, o.Peers); !s.Health.Lost() {
		s.LostAt, s.TurnsAt = time.Time{}, time.Time{}
	} else if s.LostAt.IsZero() {
		s.LostAt, s.TurnsAt = o.Now, o.Now
	} else if s.Health != was {
		s.TurnsAt = o.Now // the new verdict holds for all monitors, so the turns begin again
	}
	if !o.Local.Up || !o.Local.InRecovery || o.attached() {
		s.DisconnectedAt, s.PrimaryWasAway = time.Time{}, false
	} else if s.DisconnectedAt.IsZero() {
		s.DisconnectedAt = o.Now
	}
	if answer := find(o.Peers, o.Rule.Primary).Answer; !s.DisconnectedAt.IsZero() && answer != "" && answer != Answers {
		s.PrimaryWasAway = true
	}
	if !o.runsPrimary() {
		s.PrimarySince = time.Time{}
	} else if s.PrimarySince.IsZero() {
		s.PrimarySince = o.Now
	}
	if b := highestBallot(o.Peers); b > s.BallotFor {
		s.BallotFor, s.BallotAt = b, o.Now
	}
	return s
}

func highestBallot(peers []Peer) (term int64) {
	for _, p := range peers {
		term = max(term, p.Term)
	}
	return term
}

// runsPrimary reports whether the local server is one of the cluster's, and accepts writes.
func (o Observation) runsPrimary() bool {
	return !o.Observer && o.Local.Up && !o.Local.InRecovery && o.Node.Registered && o.Node.Role != Witness
}

// deposed reports whether another node was promoted in place of the local primary: a data
// node has the rule of a later term. A winner that was just promoted is not deposed by rules
// that others have from the lost primary, although its own rule may be older than those.
func (p Policy) deposed(o Observation) bool {
	if !p.Automatic || !o.runsPrimary() || o.Busy {
		return false
	}
	me := find(o.Peers, o.Self)
	if me.Answer != Answers || me.Running != Primary {
		return false // the rule that it holds itself as a primary is not known yet
	}
	return me.Deposed(o.Peers).Known()
}

// Deposed returns the rule of a later term by which a data node follows another primary than p, which runs
// as one. The zero value: there is none. A rule that was only announced does not count, because the
// election that it was announced in may have failed.
func (p Peer) Deposed(peers []Peer) Rule {
	for _, o := range peers {
		if o.ID != p.ID && o.data() && o.Rule.Term > p.Rule.Term && o.Rule.Primary != p.ID && !p.Elected(o.Rule) {
			return o.Rule
		}
	}
	return Rule{}
}

// unelected reports whether the local server is a primary that no rule names and that won
// no election: somebody promoted it by hand, or with another tool.
func (o Observation) unelected() bool {
	me := find(o.Peers, o.Self)
	return o.runsPrimary() && o.Rule.Known() && o.Rule.Primary != o.Self && me.Answer == Answers && me.Running == Primary && !me.Elected(o.Rule)
}

// mustYield reports whether the local server is an unelected primary while the primary that
// the rule names runs.
func (p Policy) mustYield(o Observation) bool {
	return p.Automatic && !o.Busy && o.unelected() && o.winnerRuns() && !Paused(o.Peers)
}

// mayStand reports whether the local server is an unelected primary that should become a
// candidate, because the primary that the rule names is lost. Whoever promoted it first gets
// some time to write a rule.
func (p Policy) mayStand(s State, o Observation) bool {
	return p.Automatic && !o.Busy && o.unelected() && !s.LostAt.IsZero() && !Paused(o.Peers) &&
		o.Now.Sub(s.PrimarySince) >= ruleDelay && !p.waits(o, Reaffirm, retryAfter)
}

// meetsHigherTerm reports whether the local primary must win an election in a higher term:
// it sees ballots, or the rule of a witness, of a later term than that of its own rule. An
// election was begun and has no outcome, and the standbys that it detached follow only a rule
// of a higher term. A primary that was just promoted and has no rule yet gives its election
// time to finish, unless the coordinator of that has ended. Where another primary was elected
// this one does nothing here.
func (p Policy) meetsHigherTerm(s State, o Observation) bool {
	if !p.Automatic || !o.runsPrimary() || o.unelected() || o.Busy || p.waits(o, Reaffirm, retryAfter) {
		return false
	}
	me := find(o.Peers, o.Self)
	ours := me.Rule
	for _, peer := range o.Peers { // a standby may show the newest rule of this primary earlier than the primary itself
		if peer.data() && peer.Rule.Primary == o.Self && peer.Rule.Compare(ours) > 0 {
			ours = peer.Rule
		}
	}
	if ours.Primary != o.Self && !coordinatorGone(o.Peers) && (o.Now.Sub(s.BallotAt) < ruleDelay || o.Now.Sub(s.PrimarySince) < ruleDelay) {
		return false
	}
	later := false
	for _, peer := range o.Peers {
		if peer.Answer != Answers {
			continue
		}
		if peer.ID != o.Self && peer.data() && peer.Running == Primary && peer.Elected(Rule{Term: me.Term}) {
			return false
		}
		later = later || peer.Term > ours.Term || peer.Rule.Term > ours.Term && peer.Rule.Primary != o.Self
	}
	return later
}

// mayRejoin reports whether the local server, which is down, was a primary and is to be
// brought back as a standby of the present one.
func (p Policy) mayRejoin(o Observation) bool {
	return p.Automatic && o.WasPrimary && o.winnerRuns() && !Paused(o.Peers) && !o.Busy && !p.waits(o, Rejoin, followAfter)
}

// winnerRuns reports whether the newest rule names another node, and that was just seen to
// run as a primary.
func (o Observation) winnerRuns() bool {
	w := find(o.Peers, o.Rule.Primary)
	return o.Rule.Known() && o.Rule.Primary != o.Self && w.Answer == Answers && w.Running == Primary
}

// attached reports whether the local standby receives what it should: not from a node that is the
// primary no more, where the primary runs and is the one that it is registered to stream from. Both
// of them must say so, because the address in a connection can be that of another node here.
func (o Observation) attached() bool {
	me, primary := find(o.Peers, o.Self), find(o.Peers, o.Rule.Primary)
	from := find(o.Peers, me.Receives)
	followed := o.Last.Verb == Follow && o.Now.Sub(o.Last.At) < followAfter
	wrong := o.winnerRuns() && me.NoStream[primary.ID] == "" && !followed && o.Node.Upstream == primary.ID && from.ID != 0 && from.ID != primary.ID && from.Answer == Answers && from.Running == Standby &&
		slices.Contains(from.Feeds, o.Self) && !slices.Contains(primary.Feeds, o.Self)
	return me.attached(primary) && !wrong
}

// mustFollow reports whether the local standby receives from nobody, or from a node that is not the
// primary any more, although the primary runs: for silence_timeout, or while the primary was away and is back, because the
// server itself would try it again only after wal_retrieve_retry_interval. A standby that has pledged follows only a
// rule of that term or a later one.
func (p Policy) mustFollow(s State, o Observation) bool {
	me := find(o.Peers, o.Self)
	if up := find(o.Peers, o.Node.Upstream); up.ID != o.Rule.Primary && up.Restarting(o.Now, o.Rule) && !me.Detached {
		return false // its upstream is being restarted
	}
	return p.Automatic && !o.Observer && o.Local.Up && o.Local.InRecovery && o.winnerRuns() && me.Answer == Answers && !Paused(o.Peers) && !o.attached() &&
		o.Rule.Term >= me.Term && (me.Detached || s.PrimaryWasAway || o.Now.Sub(s.DisconnectedAt) >= p.Silence)
}

// follow attaches the local standby to the primary. The phase stays Orphaned until that has
// worked, also between two attempts, so that the disconnect is not reported again each time.
func (p Policy) follow(s State, o Observation) Decision {
	actions := p.returned(s, o)
	why, verb := FollowingWinner, Follow
	if o.Diverged {
		why, verb = Returning, Rejoin
	}
	switch {
	case !o.Busy && !o.justFollowed() && !p.waits(o, Follow, followAfter) && !p.waits(o, Rejoin, followAfter):
		actions = append(actions, Action{Verb: verb, Child: o.Rule.Primary})
	case o.Upstream.Up:
		actions = append(actions, Action{Verb: PrepareStandby}, Action{Verb: Sample})
	}
	return p.enter(s, o, Orphaned, why, actions...)
}

// justFollowed reports whether a follow has worked and the local server was not looked at
// since. What is known of it is then too old to justify another follow.
func (o Observation) justFollowed() bool {
	return o.Last.Verb == Follow && o.Last.OK && !find(o.Peers, o.Self).SeenAt.After(o.Last.At)
}

// waits reports whether such an action failed so recently that it is too early to repeat it.
func (p Policy) waits(o Observation, v Verb, after time.Duration) bool {
	return o.Last.Verb == v && !o.Last.OK && o.Now.Sub(o.Last.At) < after
}

// mayElect reports whether the primary is lost and the local server is no primary itself.
func (p Policy) mayElect(s State, o Observation) bool {
	return p.Automatic && !s.LostAt.IsZero() && !o.runsPrimary()
}

// elect begins an election when it is this monitor's turn. The monitors take turns, so that
// the pledges are not split between several elections.
func (p Policy) elect(s State, o Observation) Decision {
	after := refuseAfter
	if o.Last.Reason == Reason(RefusedHealth) || o.Last.Reason == Reason(RefusedPledges) {
		after = retryAfter
	}
	since := o.Now.Sub(s.LostAt)
	d := func(why Reason, again time.Duration, actions ...Action) Decision {
		if s.Phase == AsStandby {
			actions = append(actions, Action{Verb: Notify, Event: UpstreamDisconnect})
		}
		next := p.enter(s, o, Failover, why, actions...)
		next.Again = min(p.Interval, max(again, 10*time.Millisecond))
		return next
	}
	switch {
	case o.Busy && o.Interruptible:
		return d(GivingWay, retryAfter, Action{Verb: Interrupt})
	case o.Busy:
		return d(s.Reason, p.Interval)
	case p.heldBack(s, o) > 0:
		return d(HeldBack, p.heldBack(s, o))
	case since < p.Patience:
		return d(BeingPatient, p.Patience-since)
	case (s.BallotFor > o.Rule.Term || o.winnerPending()) && o.Now.Sub(s.BallotAt) < p.grace(o.Rule, o.Peers) && !p.ownBallot(o) && !coordinatorGone(o.Peers):
		return d(OthersElect, retryAfter)
	case o.Now.Sub(s.TurnsAt) < p.turn(o):
		return d(NotMyTurn, p.turn(o)-o.Now.Sub(s.TurnsAt))
	case p.waits(o, Elect, after):
		return d(retrying(o), after)
	default:
		return d(Electing, p.Interval, Action{Verb: Elect})
	}
}

// retrying is why no election follows at once on one that came to nothing.
func retrying(o Observation) Reason {
	switch {
	case Paused(o.Peers):
		return HeldByPause
	case o.Last.Reason == Reason(RefusedTooMany):
		return HeldByLimit
	}
	return WaitingToRetry
}

// winnerPending reports whether the node that the newest rule names is a standby that is about
// to be promoted: it has a ballot of that term. Witnesses get the rule before the promotion,
// so the rule can be seen earlier than the new primary.
func (o Observation) winnerPending() bool {
	winner := find(o.Peers, o.Rule.Primary)
	return winner.Answer == Answers && winner.Running == Standby && winner.Term == o.Rule.Term
}

// grace is how long other monitors leave a running election alone. It is longer where a
// likely winner still has WAL to replay, because another election would not make that
// faster. Where the votes are split nobody can win, and there is no reason to wait longer.
func (p Policy) grace(r Rule, peers []Peer) time.Duration {
	grace := 2 * time.Second
	if !r.Quorum {
		grace += p.Fence + Margin
	}
	term := highestBallot(peers)
	if slices.ContainsFunc(peers, func(o Peer) bool {
		return o.Term == term && o.Answer == Answers && o.data() && o.Running == Standby && toReplay(o) > 0 && p.Fit(r, o) == "" && r.Majority(pledgedWith(o, peers))
	}) {
		grace = max(grace, p.Promotion)
	}
	return grace
}

// pledgedWith are the voters that hold the same ballot as o.
func pledgedWith(o Peer, peers []Peer) (ids []int32) {
	for _, other := range peers {
		if other.Term == o.Term && other.Candidate == o.Candidate {
			ids = append(ids, other.ID)
		}
	}
	return ids
}

// coordinatorGone reports whether the coordinator of the election with the highest term has ended.
func coordinatorGone(peers []Peer) bool {
	term := highestBallot(peers)
	return slices.ContainsFunc(peers, func(peer Peer) bool { return peer.Term == term && peer.CoordinatorGone })
}

// ownBallot reports whether the highest ballots are all from this monitor's own last
// election, which is over.
func (p Policy) ownBallot(o Observation) bool {
	term := highestBallot(o.Peers)
	return !slices.ContainsFunc(o.Peers, func(peer Peer) bool { return peer.Term == term && peer.Candidate != o.Candidate })
}

// turn is how long this monitor waits before it begins an election: the monitors of likelier
// winners come first.
func (p Policy) turn(o Observation) time.Duration {
	var order []Peer
	for _, peer := range o.Peers {
		if peer.ID == o.Self || peer.Answer == Answers && peer.Monitored && peer.Automatic {
			order = append(order, peer)
		}
	}
	slices.SortFunc(order, func(a, b Peer) int {
		return cmp.Or(compareTrue(p.Fit(o.Rule, a) == "", p.Fit(o.Rule, b) == ""), cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.ID, b.ID))
	})
	if i := slices.IndexFunc(order, func(peer Peer) bool { return peer.ID == o.Self }); i >= 0 {
		return time.Duration(i) * stagger
	}
	return time.Duration(len(order)) * stagger // an observer is the last one
}
