package election

import (
	"cmp"
	"slices"
	"time"
)

const (
	stagger      = 300 * time.Millisecond // between the turns of two monitors
	retryAfter   = 250 * time.Millisecond // an election that found no grounds, or not enough pledges
	refuseAfter  = time.Second            // one that something stands against
	followAfter  = 3 * time.Second        // a follow or a rejoin that did not work
	inauguration = 2 * time.Second        // from the pledges of an election to the rule of its winner
	Margin       = 750 * time.Millisecond // beyond fence_timeout: for clocks and for the fence itself
)

// remember keeps since when things are as they are.
func (p Policy) remember(s State, o Observation) State {
	if !p.Automatic {
		return s
	}
	was := s.Health
	if s.Health = p.Diagnose(o.Now, o.Rule, o.Peers); !s.Health.Lost() {
		s.LostAt, s.TurnsAt = time.Time{}, time.Time{}
	} else if s.LostAt.IsZero() {
		s.LostAt, s.TurnsAt = o.Now, o.Now
	} else if s.Health != was {
		s.TurnsAt = o.Now // what lets one begin lets all: they take turns anew
	}
	if me := find(o.Peers, o.Self); !o.Local.Up || !o.Local.InRecovery || me.attached(find(o.Peers, o.Rule.Primary)) {
		s.AloneAt = time.Time{}
	} else if s.AloneAt.IsZero() {
		s.AloneAt = o.Now
	}
	if !o.runsPrimary() {
		s.OfficeAt = time.Time{}
	} else if s.OfficeAt.IsZero() {
		s.OfficeAt = o.Now
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

// deposed: a data node has the rule of a later term, so another node was promoted.
// What a winner has of its own may be older than what others have seen of the lost
// primary: it was elected after that.
func (p Policy) deposed(o Observation) bool {
	if !p.Automatic || !o.runsPrimary() || o.Busy {
		return false
	}
	me := find(o.Peers, o.Self)
	if me.Answer != Answers || me.Running != Primary {
		return false // what it holds itself, since it is one, is not known yet
	}
	for _, peer := range o.Peers {
		if peer.ID != o.Self && peer.data() && peer.Rule.Term > me.Rule.Term && peer.Rule.Primary != o.Self && !me.Elected(peer.Rule) {
			return true
		}
	}
	return false
}

// unelected: somebody made the local server a primary by hand, or with another
// tool: no rule names it, and it won no election.
func (o Observation) unelected() bool {
	me := find(o.Peers, o.Self)
	return o.runsPrimary() && o.Rule.Known() && o.Rule.Primary != o.Self && me.Answer == Answers && me.Running == Primary && !me.Elected(o.Rule)
}

// usurps: it is unelected while the primary that the rule names runs.
func (p Policy) usurps(o Observation) bool {
	return p.Automatic && !o.Busy && o.unelected() && o.winnerRuns() && !Paused(o.Peers)
}

// claims: it is unelected, and the primary that the rule names is lost. It gives
// who promoted it time to write a rule.
func (p Policy) claims(s State, o Observation) bool {
	return p.Automatic && !o.Busy && o.unelected() && !s.LostAt.IsZero() && !Paused(o.Peers) &&
		o.Now.Sub(s.OfficeAt) >= inauguration && !p.waits(o, Reaffirm, retryAfter)
}

// challenged: the local primary meets ballots, or a witness's rule, of a later
// term than its own rule. An election was begun and has no outcome; what it
// detached must be won back. One that was promoted and has no rule of its own
// gives its election time to finish, unless its coordinator has ended. One that another primary was elected
// against leaves it to that.
func (p Policy) challenged(s State, o Observation) bool {
	if !p.Automatic || !o.runsPrimary() || o.unelected() || o.Busy || p.waits(o, Reaffirm, retryAfter) {
		return false
	}
	me := find(o.Peers, o.Self)
	ours := me.Rule
	for _, peer := range o.Peers { // a standby may have shown it first; a witness is told before there is a row
		if peer.data() && peer.Rule.Primary == o.Self && peer.Rule.Compare(ours) > 0 {
			ours = peer.Rule
		}
	}
	if ours.Primary != o.Self && !forsaken(o.Peers) && (o.Now.Sub(s.BallotAt) < inauguration || o.Now.Sub(s.OfficeAt) < inauguration) {
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

// mayRejoin: the local server is down, was a primary, and another one is it now.
func (p Policy) mayRejoin(o Observation) bool {
	return p.Automatic && o.WasPrimary && o.winnerRuns() && !Paused(o.Peers) && !o.Busy && !p.waits(o, Rejoin, followAfter)
}

// winnerRuns: the node that the newest rule names is another one, and was just seen as a primary.
func (o Observation) winnerRuns() bool {
	w := find(o.Peers, o.Rule.Primary)
	return o.Rule.Known() && o.Rule.Primary != o.Self && w.Answer == Answers && w.Running == Primary
}

// strays: the local standby receives from nobody while the primary is there. A
// standby that has pledged itself trusts only a rule of that term or a later one.
func (p Policy) strays(s State, o Observation) bool {
	me := find(o.Peers, o.Self)
	return p.Automatic && !o.Observer && o.Local.Up && o.Local.InRecovery && o.winnerRuns() && me.Answer == Answers && !Paused(o.Peers) && !me.attached(find(o.Peers, o.Rule.Primary)) &&
		o.Rule.Term >= me.Term && (me.Detached || o.Now.Sub(s.AloneAt) >= p.Silence)
}

// follow brings a stray back. Until that has worked it is one, also while an
// attempt is under way or has just failed: it is not told each time that the
// primary is there.
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
		actions = append(actions, Action{Verb: TendStandby}, Action{Verb: Sample})
	}
	return p.enter(s, o, Orphaned, why, actions...)
}

// justFollowed: a follow has worked, and the local server was not looked at since.
// What is known of it is from before, and no ground for another one.
func (o Observation) justFollowed() bool {
	return o.Last.Verb == Follow && o.Last.OK && !find(o.Peers, o.Self).SeenAt.After(o.Last.At)
}

// waits reports whether such an action failed so lately that it is too early for another.
func (p Policy) waits(o Observation, v Verb, after time.Duration) bool {
	return o.Last.Verb == v && !o.Last.OK && o.Now.Sub(o.Last.At) < after
}

// mayElect: the primary is lost, and this monitor does not run on one.
func (p Policy) mayElect(s State, o Observation) bool {
	return p.Automatic && !s.LostAt.IsZero() && !o.runsPrimary()
}

// elect begins an election when it is this monitor's turn. The monitors that
// could all do it go one after another, so that they do not split the pledges.
func (p Policy) elect(s State, o Observation) Decision {
	after := refuseAfter
	if o.Last.Reason == Reason(RefusedHealth) || o.Last.Reason == Reason(RefusedPledges) {
		after = retryAfter
	}
	since := o.Now.Sub(s.LostAt)
	d := func(why Reason, again time.Duration, actions ...Action) Decision {
		if s.Phase == AsStandby {
			actions = append(actions, Action{Verb: Tell, What: UpstreamDisconnect})
		}
		next := p.enter(s, o, Failover, why, actions...)
		next.Again = min(p.Interval, max(again, 10*time.Millisecond))
		return next
	}
	switch {
	case o.Busy && o.Yields:
		return d(GivingWay, retryAfter, Action{Verb: GiveWay})
	case o.Busy:
		return d(s.Reason, p.Interval)
	case since < p.Patience:
		return d(BeingPatient, p.Patience-since)
	case (s.BallotFor > o.Rule.Term || o.awaited()) && o.Now.Sub(s.BallotAt) < p.grace(o.Rule, o.Peers) && !p.ownBallot(o) && !forsaken(o.Peers):
		return d(OthersElect, retryAfter)
	case o.Now.Sub(s.TurnsAt) < p.turn(o):
		return d(NotMyTurn, p.turn(o)-o.Now.Sub(s.TurnsAt))
	case p.waits(o, Elect, after):
		return d(WaitingToRetry, after)
	default:
		return d(Electing, p.Interval, Action{Verb: Elect})
	}
}

// awaited: the newest rule names a node that runs as a standby with a ballot of that
// very term. A witness is told before the promotion, which is what it waits for.
func (o Observation) awaited() bool {
	winner := find(o.Peers, o.Rule.Primary)
	return winner.Answer == Answers && winner.Running == Standby && winner.Term == o.Rule.Term
}

// grace is how long a begun election is left alone. Its winner may have much to
// replay, which another election would not shorten; of split votes there is none.
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

// pledgedWith are those who hold the same ballot as o.
func pledgedWith(o Peer, peers []Peer) (ids []int32) {
	for _, other := range peers {
		if other.Term == o.Term && other.Candidate == o.Candidate {
			ids = append(ids, other.ID)
		}
	}
	return ids
}

// forsaken: the election of the highest ballots has lost its coordinator.
func forsaken(peers []Peer) bool {
	term := highestBallot(peers)
	return slices.ContainsFunc(peers, func(peer Peer) bool { return peer.Term == term && peer.Forsaken })
}

// ownBallot: the highest ballots are of our own last election, which is over.
func (p Policy) ownBallot(o Observation) bool {
	term := highestBallot(o.Peers)
	return !slices.ContainsFunc(o.Peers, func(peer Peer) bool { return peer.Term == term && peer.Candidate != o.Candidate })
}

// turn is when this monitor may begin, after those of likelier winners.
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
	return time.Duration(len(order)) * stagger // an observer comes last
}
