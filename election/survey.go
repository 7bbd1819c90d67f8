package election

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// Answer is what came of the last attempt to reach a server. The zero value
// means that none was made yet.
type Answer string

const (
	Answers      Answer = "answers"
	NotAccepting Answer = "not accepting connections" // starting up, shutting down or recovering: it lives
	NoSlots      Answer = "out of connections"        // it lives
	Rejects      Answer = "rejects this login"        // it lives
	Refused      Answer = "refuses connections"       // the host answers, or a firewall in its name
	Silent       Answer = "is silent"
	Hangs        Answer = "accepts connections and says nothing"
)

// Peer is a voter as it was seen last. The zero value was never seen.
type Peer struct {
	ID       int32
	Role     Role // as what it is registered
	Priority int
	Location string

	Tried    time.Time // when the last attempt to reach it began
	Answer   Answer    // and what came of it
	Since    time.Time // since when it answers so; zero: not known
	Starting time.Time // since when it lets nobody in, because it starts up, shuts down or recovers; zero: it does not, or it is not known
	SeenAt   time.Time // when the look began that gave what follows; zero: never
	Ended    bool      // its server has ended our connection since it was seen: a word that only its own kernel can send
	Running  Role      // Primary or Standby

	Position        wal.Position  // the end of its WAL; where it receives nothing, of the last whole record that it has; with UnfitOwnWAL, where its own begins at the earliest
	Past            wal.History   // the forks that its timeline came through; nil on timeline 1, and where they can not be read
	Mark            uint32        // of its line: see [wal.Line]
	Unsure          bool          // where its WAL ends, or on which timeline, could not be told
	Replayed        wal.LSN       // of a standby
	Idle            bool          // its replay waits for more WAL
	Halt            Unfit         // why its replay can not come to the end of what it has; empty: it can
	Receives        int32         // node that it streams from, by the address that it names; 0: nobody, or unknown
	Feeds           []int32       // nodes that stream from it, as its WAL senders show
	Streams         bool          // a WAL receiver runs
	Receiving       bool          // and is streaming at this moment
	Heard           time.Duration // how long ago the receiver heard from its sender, at SeenAt
	Detached        bool          // it has no primary_conninfo: pledged, or fenced
	Archive         bool          // a standby whose restore_command is in force
	Delayed         bool          // it applies WAL with a delay
	Misnamed        bool          // synchronous_standby_names can not tell it from others
	ReplayPaused    bool          // an operator did that, or Halt says who
	ShutDown        bool          // the last WAL record that it has is of a shutdown in order
	Term            int64         // of its ballot
	Candidate       string        // of its ballot
	Chosen          bool          // its ballot says that it won that election
	CoordinatorGone bool          // the monitor that its ballot is made out to has ended since
	Hung            bool          // pledged: it has not loaded its vote, so its postmaster hangs, and nothing can be promoted there
	Rule            Rule          // the newest that it holds
	Announced       Rule          // a newer one that it was told of: of a primary the one that it was elected by, whose row is not written yet
	Paused          bool
	PauseSeq        int64            // how new its word on that is
	Started         time.Time        // when its server was started
	Monitored       bool             // a monitor of its own runs
	Automatic       bool             // and fails over by itself
	CanFence        bool             // and has shown that it can stop its server
	Replied         time.Time        // of a standby: it sent a reply to the local primary, as its WAL receiver does, at this moment or later; zero: not known
	Capacity        Capacity         // what it has left for standbys
	NeedsSlot       bool             // as a standby it streams through a replication slot
	NoStream        map[int32]string // nodes that it could not stream from, as its monitor tried lately, and why
	Rejection       string           // with Rejects: why, in its words
	NoPledge        string           // why it could not pledge itself now, although it answers; empty: it could
	Foreign         bool             // a daemon of repmgr 5 runs with it, which fails over by rules of its own

	serves int // see weigh
}

// attached reports whether a standby is on the line of the primary of the rule.
func (p Peer) attached(primary Peer) bool {
	return p.Receiving && (primary.Running != Primary || p.Position.Timeline >= primary.Position.Timeline)
}

// silentSince is when it last answered; of one that never did, when it was
// found to be silent.
func (p Peer) silentSince() time.Time {
	if p.SeenAt.IsZero() {
		return p.Since
	}
	return p.SeenAt
}

// data reports whether the peer can hold the cluster's data.
func (p Peer) data() bool { return p.Role != Witness && p.ID != Arbiter }

// Health is a verdict on the primary, in words for people.
type Health string

const (
	HealthUnknown      Health = "there is no rule that names a primary"
	HealthAlive        Health = "primary answers"
	HealthNotAccepting Health = "primary is starting up, shutting down or recovering"
	HealthStuck        Health = "primary has been starting up, shutting down or recovering for longer than primary_start_timeout"
	HealthNoSlots      Health = "primary is out of connections"
	HealthRejects      Health = "primary rejects this login"
	HealthMoved        Health = "another node runs as primary"
	HealthReceived     Health = "primary is not reachable from here, but others receive from it"
	HealthDoubtful     Health = "primary is silent, but not yet for silence_timeout"
	HealthShutDown     Health = "primary was shut down in order"
	HealthDemoted      Health = "the former primary runs as a standby"
	HealthDead         Health = "primary is dead: its server ended our connection and refuses new ones, and nobody receives from it"
	HealthRefused      Health = "primary refuses connections, and nobody receives from it"
	HealthSilent       Health = "primary is silent, and nobody receives from it"
	HealthHangs        Health = "primary hangs, and nobody receives from it"
)

// Lost reports whether the verdict is grounds for a failover.
func (h Health) Lost() bool {
	switch h {
	case HealthStuck, HealthDemoted, HealthDead, HealthRefused, HealthSilent, HealthHangs:
		return true
	}
	return false
}

// Proven reports whether the primary is known to accept no writes any more. One
// that refuses connections may be behind a firewall that refuses in its name. One
// that runs as a standby may be about to be promoted, until it has pledged itself.
func (h Health) Proven() bool { return h == HealthDead }

// Diagnose judges the primary of the rule from what is known of all voters.
// Two signals are needed for a loss: the own look, and the WAL receivers'.
func (p Policy) Diagnose(now time.Time, r Rule, peers []Peer) Health {
	primary := find(peers, r.Primary)
	for _, o := range peers {
		if o.ID != r.Primary && o.data() && o.Answer == Answers && o.Running == Primary && now.Sub(o.SeenAt) < p.Silence && (!r.Known() || o.Elected(r)) {
			return HealthMoved
		}
	}
	switch {
	case !r.Known():
		return HealthUnknown
	case primary.Answer == Answers && primary.Running == Standby:
		return HealthDemoted
	case primary.Answer == Answers:
		return HealthAlive
	case primary.Answer == NotAccepting && p.stuck(now, r, peers):
		return HealthStuck
	case primary.Answer == NotAccepting:
		return HealthNotAccepting
	case primary.Answer == NoSlots:
		return HealthNoSlots
	case primary.Answer == Rejects:
		return HealthRejects
	case p.received(now, r, peers):
		return HealthReceived
	case primary.Answer == Refused && shutDown(r, peers) && !p.OnShutdown:
		return HealthShutDown
	case primary.Answer == Refused && primary.Ended:
		return HealthDead
	case primary.Answer == Refused:
		return HealthRefused
	case now.Sub(primary.silentSince()) < p.Silence, now.Sub(r.majoritySince(peers)) < p.Silence:
		return HealthDoubtful
	case primary.Answer == Hangs:
		return HealthHangs
	default:
		return HealthSilent
	}
}

// How long a primary may start up, shut down or recover where the operator did
// not say. With quorum a failover loses nothing, so it comes sooner, unless a
// standby still receives: then it shuts down in order, which takes its time.
const (
	startLimit       = 300 * time.Second
	quorumStartLimit = 30 * time.Second
)

// stuck reports whether the primary has let nobody in for too long. It lives, and
// says so itself: it takes no second signal, and is no proof that it will accept
// no more writes. An operator who insists does not wait.
func (p Policy) stuck(now time.Time, r Rule, peers []Peer) bool {
	limit := p.Start
	switch {
	case p.Forced:
		return true
	case limit < 0:
		return false
	case limit == 0 && r.Quorum && !p.received(now, r, peers):
		limit = quorumStartLimit
	case limit == 0:
		limit = startLimit
	}
	since := find(peers, r.Primary).Starting
	return !since.IsZero() && now.Sub(since) >= limit
}

// Elected reports whether a node that the rule does not name won a later election:
// its ballot says so, or, after a pledge in a later term, the rule that it was told.
func (p Peer) Elected(r Rule) bool {
	return p.Chosen && p.Term > r.Term || p.Announced.Primary == p.ID && p.Announced.Term > r.Term
}

// majoritySince is since when a majority answers: who was cut off himself learns
// nothing of the primary from its silence. Zero time: none does.
func (r Rule) majoritySince(peers []Peer) time.Time {
	peers = slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.Answer != Answers })
	slices.SortFunc(peers, func(a, b Peer) int { return a.Since.Compare(b.Since) })
	var ids []int32
	for _, o := range peers {
		if ids = append(ids, o.ID); r.Majority(ids) {
			return o.Since
		}
	}
	return time.Time{}
}

// received reports whether any standby has heard from the primary lately. A
// receiver that only runs says nothing of a sender that is silent, unless the
// sender refuses us: then a stream that is still open means that it lives.
// What was seen before it refused us says nothing of that: whoever acts upon it
// looks anew.
func (p Policy) received(now time.Time, r Rule, peers []Peer) bool {
	primary := find(peers, r.Primary)
	refused := primary.Answer == Refused
	for _, o := range peers {
		if refused && o.SeenAt.Before(primary.Since) {
			continue
		}
		up := upstream(o, peers)
		if o.Answer == Answers && o.Streams && o.Running == Standby && (up == r.Primary || up == 0) &&
			(refused || now.Sub(o.SeenAt)+o.Heard < p.Silence) {
			return true
		}
	}
	return false
}

// upstream is the node that a standby streams from: the one whose address it
// names, or else the only one that answers and shows it among its WAL senders.
// 0: it can not be told.
func upstream(o Peer, peers []Peer) int32 {
	if o.Receives != 0 {
		return o.Receives
	}
	var found []int32
	for _, u := range peers {
		if u.ID != o.ID && u.Answer == Answers && slices.Contains(u.Feeds, o.ID) {
			found = append(found, u.ID)
		}
	}
	if len(found) != 1 {
		return 0
	}
	return found[0]
}

// shutDown reports whether the most advanced standby on the line of the rule ends
// with the record that a server writes when it is shut down in order: nothing was
// committed after it. What a node on another branch ends with says nothing. Of those
// that are equally advanced one word is enough: the others may have been seen a moment
// before their WAL receivers ended.
func shutDown(r Rule, peers []Peer) bool {
	var best Peer
	for _, o := range peers {
		if o.Answer != Answers || o.Running != Standby || !o.data() || o.Unsure || o.Halt == UnfitOwnWAL || !o.On(r) {
			continue
		}
		switch c := comparePosition(o.Position, best.Position); {
		case best.ID == 0 || c > 0:
			best = o
		case c == 0:
			best.ShutDown = best.ShutDown || o.ShutDown
		}
	}
	return best.ShutDown
}

// Refusal names why there is no failover although the primary is lost. Empty: nothing stands against it.
type Refusal string

const (
	RefusedHealth     Refusal = "the primary is not lost"
	RefusedPaused     Refusal = "failover is paused"
	RefusedNoMajority Refusal = "no majority of the voters answers"
	RefusedNoPledge   Refusal = "no majority of the voters could pledge itself"
	RefusedSync       Refusal = "the nodes that answer may lack acknowledged commits"
	RefusedNoneFit    Refusal = "no node that answers may be promoted"
	RefusedUnfenced   Refusal = "nobody is sure to stop the primary, which may still accept writes"
	RefusedLocation   Refusal = "no node of the primary's location answers"
	RefusedTooMany    Refusal = "too many failovers in the last hour"
	RefusedVisible    Refusal = "a node still sees the primary" // primary_visibility_consensus
	RefusedValidation Refusal = "failover_validation_command said no"
	RefusedElection   Refusal = "another election is going on"
	RefusedPledges    Refusal = "not enough voters pledged themselves"
	RefusedUsurper    Refusal = "another node was promoted by nobody's vote, and no daemon there can stop it"
	RefusedLag        Refusal = "the best node that may be promoted may lack more of the primary's WAL than maximum_lag_on_failover"
	RefusedForeign    Refusal = "a repmgrd of repmgr 5 runs beside ours, and may promote another node"
	RefusedBehind     Refusal = "no node that may be promoted has all acknowledged commits"
)

// Survey says whether an election may begin, before anybody is asked for a
// pledge: elections that come to nothing detach standbys in vain.
func (p Policy) Survey(now time.Time, r Rule, peers []Peer) Refusal {
	primary, asked := find(peers, r.Primary), p.Electors(r, peers)
	fit := p.lineup(r, AbleToPledge(asked)).fit
	up, able := ids(asked), ids(AbleToPledge(asked))
	here := slices.ContainsFunc(asked, func(o Peer) bool { return o.Location == primary.Location || o.ID == Arbiter })
	h := p.Diagnose(now, r, peers)
	switch {
	case !h.Lost():
		return RefusedHealth
	case Foreign(peers) && !p.Forced:
		return RefusedForeign
	case Paused(peers) && !p.Forced:
		return RefusedPaused
	case !r.Majority(up):
		return RefusedNoMajority
	case !r.Majority(able):
		return RefusedNoPledge
	case !r.Covers(able):
		return RefusedSync
	case !r.Quorum && !h.Proven() && h != HealthDemoted && Unfenced(primary, peers) != "" && (!p.Forced && p.Adopts == 0 || h == HealthStuck):
		return RefusedUnfenced
	case !r.Quorum && usurped(r, peers, p.Adopts) && !p.Forced:
		return RefusedUsurper
	case !here:
		return RefusedLocation
	case len(fit) == 0:
		return RefusedNoneFit
	case p.LacksTooMuch(r, primary, fit[0]):
		return RefusedLag
	case p.TooMany && !p.Forced:
		return RefusedTooMany
	}
	return ""
}

// Recruits are those that an election under the rule asks for their pledges: all
// that answer. One that was promoted by nobody's vote pledges itself to nobody.
func (p Policy) Electors(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.Answer != Answers || o.usurps(r) && o.ID != p.Adopts })
}

// Able are those that are not known to be unable to pledge themselves.
func AbleToPledge(peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.NoPledge != "" })
}

// LacksTooMuch reports whether a winner lacks more of the WAL that the former
// primary was seen to have than maximum_lag_on_failover allows, or may: where the
// primary was never seen, nobody knows. With quorum the winner has all that was
// acknowledged, and the rest does not count.
func (p Policy) LacksTooMuch(r Rule, former, winner Peer) bool {
	if p.MaxLag <= 0 || r.Quorum || p.Forced || winner.ID == former.ID {
		return false
	}
	lacks := behind(winner, former)
	return lacks < 0 || lacks > p.MaxLag
}

// Unguarded names why a primary that is cut off may not stop itself.
type Unguarded string

const (
	UnguardedUnknown Unguarded = "what runs there is not known: it was not seen since this process began to look"
	UnguardedAlone   Unguarded = "no daemon ran there when it was last seen"
	UnguardedManual  Unguarded = "its daemon runs with failover=manual"
	UnguardedUnable  Unguarded = "its daemon can not stop it"
	UnguardedPaused  Unguarded = "failover is paused there, or may be"
)

// Unfenced says why a primary that is cut off may not stop itself, as far as it
// is known. Empty: its daemon does. One that is not known to have heard the newest
// word on a pause may still hold the one before, which suspends its lease.
func Unfenced(primary Peer, peers []Peer) Unguarded {
	switch {
	case !primary.Monitored && primary.SeenAt.IsZero():
		return UnguardedUnknown
	case !primary.Monitored:
		return UnguardedAlone
	case !primary.Automatic:
		return UnguardedManual
	case !primary.CanFence:
		return UnguardedUnable
	case primary.Paused, primary.PauseSeq < LastPause(peers):
		return UnguardedPaused
	}
	return ""
}

// usurped reports whether a node runs as a primary that no rule names, and has
// nobody who would stop it once there is a new one.
func usurped(r Rule, peers []Peer, adopts int32) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool {
		return o.ID != adopts && o.usurps(r) && (!o.Monitored || !o.Automatic)
	})
}

// usurps reports whether a node runs as a primary that nobody elected: it pledges
// itself to nobody else.
func (p Peer) usurps(r Rule) bool {
	return p.ID != r.Primary && p.data() && p.Answer == Answers && p.Running == Primary && !p.Elected(r)
}

// Foreign reports whether a daemon of repmgr 5 runs with any node that answers.
func Foreign(peers []Peer) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Foreign && o.Answer == Answers })
}

// Paused reports whether monitors may not act by themselves. The newest word
// counts: a node that was down when the others were unpaused has an older one.
func Paused(peers []Peer) bool {
	newest := LastPause(peers)
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Paused && o.PauseSeq == newest })
}

// LastPause is the number of the newest word on that.
func LastPause(peers []Peer) (newest int64) {
	for _, o := range peers {
		newest = max(newest, o.PauseSeq)
	}
	return newest
}

// PauseHolds reports whether a pause keeps everybody from an election under the
// rule: the voters that are not known to hold it could elect nobody without the
// primary, self. It stays so when the views are old: who is unpaused later has a
// word that the primary has not heard, and then it counts as [UnguardedPaused].
func (r Rule) PausePreventsElection(self int32, peers []Peer) bool {
	hold, newest := []int32{self}, LastPause(peers)
	for _, o := range peers {
		if o.Paused && o.PauseSeq == newest {
			hold = append(hold, o.ID)
		}
	}
	return Paused(peers) && !r.CanElect(without(r.Voters, hold))
}

// Unfit names why a node may not be promoted. Empty: it may.
type Unfit string

const (
	UnfitWitness     Unfit = "it holds no data"
	UnfitPriority    Unfit = "its priority is 0"
	UnfitDelayed     Unfit = "it applies WAL with a delay"
	UnfitNoPledge    Unfit = "it could not pledge itself"
	UnfitHung        Unfit = "its server loads no settings: its postmaster hangs"
	UnfitBranch      Unfit = "it is on a branch that no rule knows"
	UnfitUnsure      Unfit = "where its WAL ends, or on which timeline, can not be told"
	UnfitTarget      Unfit = "its replay stops at a recovery target"
	UnfitParameters  Unfit = "its replay waits for settings as large as the primary's (max_connections and others)"
	UnfitPaused      Unfit = "its replay is paused, and why can not be told"
	UnfitOwnWAL      Unfit = "the crash recovery of a rejoin that did not end gave it WAL of its own"
	UnfitManual      Unfit = "its daemon runs with failover=manual"
	UnfitUnmonitored Unfit = "no daemon runs on it, which could fence it"
	UnfitUnable      Unfit = "its daemon can not fence it"
)

// Fit says whether a node may be promoted under the rule. Without quorum only
// the daemon of a primary can end its writes, so it must have one that can.
func (p Policy) Fit(r Rule, o Peer) Unfit {
	switch {
	case !o.data():
		return UnfitWitness
	case o.ID == p.Incumbent && o.NoPledge == "" && !o.Unsure && o.On(r): // what an operator prefers is for the next one
		return ""
	case o.Priority <= 0:
		return UnfitPriority
	case o.Delayed:
		return UnfitDelayed
	case o.NoPledge != "":
		return UnfitNoPledge
	case o.Hung:
		return UnfitHung
	case o.Halt != "":
		return o.Halt
	case o.ID == p.Adopts:
	case o.Unsure:
		return UnfitUnsure
	case !o.On(r):
		return UnfitBranch
	}
	switch {
	case o.Monitored && !o.Automatic && !p.Forced:
		return UnfitManual
	case !o.Monitored && !r.Quorum && !p.Forced:
		return UnfitUnmonitored
	case !o.CanFence && !r.Quorum && !p.Forced:
		return UnfitUnable
	}
	return ""
}

// Tally is the outcome of the recruiting.
type Tally struct {
	Refusal Refusal // why there is no winner
	Winner  int32
	Wait    bool // the former primary may still accept writes: wait until it has fenced itself
	Rule    Rule // of the new term
}

// lineup is what the count goes by.
type lineup struct {
	peers []Peer // the pledged
	rules []Rule // that may hold what was acknowledged
	line  Rule   // whose line decides who has more
	fit   []Peer // who may be promoted, the winner first
	moved bool   // the first one has not most, or is not the operator's choice: it can serve the others
}

func (p Policy) lineup(r Rule, pledged []Peer) lineup {
	l := lineup{peers: weigh(pledged)}
	for i, o := range l.peers {
		if o.Running == Primary && o.Announced.Compare(o.Rule) > 0 {
			l.peers[i].Rule = o.Announced
		}
	}
	l.rules = standing(r, l.peers)
	l.line = l.rules[len(l.rules)-1]
	for _, o := range l.peers {
		if p.Fit(l.line, o) == "" {
			l.fit = append(l.fit, o)
		}
	}
	slices.SortFunc(l.fit, func(a, b Peer) int { return p.rank(l.line, p.Location, a, b) })
	l.fit, l.moved = p.serveFirst(l.fit, l.rules, l.peers)
	return l
}

// Count chooses the winner among the pledged voters, whose positions are frozen,
// and makes the rule of the new term. peers are the pledged ones, as they are
// since their pledges; h is the verdict on the former primary.
func (p Policy) Count(r Rule, term int64, h Health, peers []Peer) Tally {
	l := p.lineup(r, peers)
	fit, rules, newest, line, peers := l.fit, l.rules, l.rules[0], l.line, l.peers
	for _, rule := range rules {
		pledged := ids(countable(rule, peers))
		switch {
		case !rule.Majority(pledged):
			return Tally{Refusal: RefusedPledges}
		case !rule.Covers(ids(sure(rule, countable(rule, peers)))):
			return Tally{Refusal: RefusedSync}
		case len(fit) == 0:
			return Tally{Refusal: RefusedNoneFit}
		case rule.Quorum && !holdsAll(rule, line, fit[0], peers):
			return Tally{Refusal: RefusedBehind}
		}
	}
	winner := fit[0]
	sync := standbys(winner, line, peers)
	next := Rule{Term: term, Seq: 1, Primary: winner.ID, Voters: newest.Voters, Quorum: newest.Quorum, Line: branch(winner)}
	if next.Quorum {
		next.Sync, next.Acks = sync, p.firstAcks(newest, sync, peers)
		if next.Acks == 0 && p.Required {
			next.Sync = absent(newest, winner.ID, peers)
			next.Acks = min(1, newest.Acks, len(next.Sync))
		}
	}
	pledged := ids(peers)
	gone := slices.Contains(pledged, newest.Primary) || h.Proven() && r.Primary == newest.Primary
	return Tally{Winner: winner.ID, Rule: next, Wait: !newest.Quorum && (!gone || mayBeBetween(newest, term, pledged))}
}

// branch is the line of a standby that is promoted where its WAL ends. That of a
// primary stays as it is.
func branch(winner Peer) wal.Line {
	if winner.Running == Primary {
		return winner.Line()
	}
	if winner.Position.Timeline > 1 && len(winner.Past) == 0 {
		return wal.Line{} // its history can not be read
	}
	return wal.Line{Past: append(slices.Clone(winner.Past), wal.HistoryEntry{Timeline: winner.Position.Timeline, SwitchLSN: winner.Position.LSN})}
}

// sure are the pledged of which it is known how much of the rule's line they have.
func sure(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.data() && o.unsure(r) })
}

// unsure: of one with WAL of its own behind its position that is known only where the
// rule's line has left its own by then.
func (p Peer) unsure(r Rule) bool {
	return p.Unsure || p.Halt == UnfitOwnWAL && (!r.Line.Known() || r.Line.Shared(p.Line(), math.MaxUint64) > p.Position.LSN)
}

// countable are the pledged without an arbiter that knows other voters than the
// rule has: how much its vote weighs depends on them.
func countable(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool {
		return o.ID == Arbiter && o.Rule.Known() && !slices.Equal(o.Rule.Voters, r.Voters)
	})
}

// mayBeBetween reports whether a primary may run that the newest rule knows
// nothing of: somebody pledged themselves since, and one of those that are not
// pledged now may have won.
func mayBeBetween(newest Rule, term int64, pledged []int32) bool {
	return term > newest.Term+1 && len(without(newest.Voters, append([]int32{Arbiter}, pledged...))) > 0
}

// standing are the rules that may hold what was acknowledged: the newest, and
// the newest that a data node has, which is another one where a witness was told
// of a term or a change that no standby has seen.
func standing(r Rule, peers []Peer) []Rule {
	newest, onData := r, Rule{}
	for _, o := range peers {
		if o.NewestRule().Compare(newest) > 0 {
			newest = o.NewestRule()
		}
		if o.data() && o.Rule.Compare(onData) > 0 {
			onData = o.Rule
		}
	}
	if !onData.Known() || onData.Compare(newest) == 0 {
		return []Rule{newest}
	}
	return []Rule{newest, onData}
}

// electable reports whether a standby may count among those that hold what is
// acknowledged: only one that could be promoted with it, and whose word is its own.
func electable(o Peer) bool {
	return o.data() && o.Priority > 0 && !o.Delayed && !o.ReplayPaused && o.Halt == "" && !o.Misnamed && !o.Hung
}

// holdsAll reports whether nobody pledged, who may count, has more of the line than
// best. The former primary may have more: what is beyond was never acknowledged,
// unless commits waited for nobody.
func holdsAll(r, line Rule, best Peer, peers []Peer) bool {
	for _, o := range peers {
		must := slices.Contains(r.Sync, o.ID) || o.ID == r.Primary && count(r.Sync, ids(peers)) < len(r.Sync)-r.Acks+1 || o.ID == r.Primary && r.Acks == 0
		if must && compareProgress(line, o, best) > 0 {
			return false
		}
	}
	return true
}

// absent are those that commits of a new term wait for where nobody is there who
// could have them, and commits must not wait for nobody: whoever of the last
// term's comes back first.
func absent(r Rule, winner int32, peers []Peer) []int32 {
	all := slices.DeleteFunc(append(slices.Clone(r.Sync), r.Primary), func(id int32) bool {
		return id == winner || !slices.Contains(r.Voters, id) || find(peers, id).Misnamed
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// firstAcks is how many acks the first commits of a term need: so many that a
// commit's holders can not be outvoted by voters who know nothing of the term.
func (p Policy) firstAcks(r Rule, sync []int32, peers []Peer) int {
	held := []int32{}
	for _, o := range peers {
		if !o.data() {
			held = append(held, o.ID) // witnesses are told before the promotion
		}
	}
	have, all := r.Votes(held)
	need := all/2 + 1 - have - 1 // the winner itself
	return min(len(sync), max(need, min(p.acks(len(sync)), len(sync))))
}

// rank orders the candidates: the first one wins. What a node has comes first, then
// that it is the primary already, then whether it can serve the others, then what an operator prefers.
func (p Policy) rank(line Rule, location string, a, b Peer) int {
	return cmp.Or(
		compareProgress(line, b, a),
		compareTrue(a.ID == p.Incumbent, b.ID == p.Incumbent),
		cmp.Compare(b.serves, a.serves),
		cmp.Compare(b.Priority, a.Priority),
		compareTrue(a.Location == location, b.Location == location),
		cmp.Compare(a.ID, b.ID),
	)
}

// compareProgress is positive if a has more than b of the line of the rule: what
// is beyond a fork does not count. Where the line is not known, that is by the
// term of the rule, the number of the timeline, and then by WAL.
func compareProgress(line Rule, a, b Peer) int {
	if line.Line.Known() {
		return cmp.Compare(line.shared(a), line.shared(b))
	}
	return cmp.Or(cmp.Compare(a.Rule.Term, b.Rule.Term), comparePosition(a.Position, b.Position))
}

func comparePosition(a, b wal.Position) int {
	return cmp.Or(cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.LSN, b.LSN))
}

// compareTrue puts true first.
func compareTrue(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

func find(peers []Peer, id int32) Peer {
	for _, p := range peers {
		if p.ID == id {
			return p
		}
	}
	return Peer{}
}

func ids(peers []Peer) (all []int32) {
	for _, p := range peers {
		all = append(all, p.ID)
	}
	return all
}
