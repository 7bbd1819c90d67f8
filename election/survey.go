package election

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// Answer is the result of the last attempt to reach a server. The zero value means that
// no attempt was made yet.
type Answer string

const (
	Answers      Answer = "answers"
	NotAccepting Answer = "not accepting connections" // starting up, shutting down or recovering: the server is alive
	NoSlots      Answer = "out of connections"        // the server is alive
	Rejects      Answer = "rejects this login"        // the server is alive
	Refused      Answer = "refuses connections"       // the host answers, or a firewall that answers in its place
	Silent       Answer = "is silent"
	Hangs        Answer = "accepts connections and says nothing"
)

// Peer is a voter as it was last seen. The zero value was never seen.
type Peer struct {
	ID       int32
	Role     Role // the role that it is registered in
	Priority int
	Location string

	Tried    time.Time // when the last attempt to reach it began
	Answer   Answer    // the result of that attempt
	Since    time.Time // since when it gives this answer; zero: not known
	Starting time.Time // since when it lets nobody in because it starts up, shuts down or recovers; zero: it does not, or that is not known
	SeenAt   time.Time // when the last successful look at it began, which gave all that follows; zero: there was none
	Ended    bool      // its server has closed our connection since then, which only its own kernel can do
	Running  Role      // Primary or Standby

	Position        wal.Position  // the end of its WAL; while it receives nothing, the end of the last whole record that it has; with UnfitOwnWAL, the earliest place where its own WAL may begin
	Past            wal.History   // the forks in the history of its timeline; nil on timeline 1, and where they can not be read
	Mark            uint32        // the mark of its line: see [wal.Line]
	PositionUnknown bool          // where its WAL ends, or on which timeline, could not be determined
	Replayed        wal.LSN       // on a standby
	Idle            bool          // its replay has reached the end of its WAL and waits for more
	ReplayBlocked   Unfit         // why its replay can not reach the end of its WAL; empty: it can
	Receives        int32         // the node that it streams from, by the address that it uses; 0: nobody, or not known
	Feeds           []int32       // the nodes that stream from it, by its WAL senders
	Streams         bool          // it has a WAL receiver process
	Receiving       bool          // its WAL receiver is streaming at this moment
	Heard           time.Duration // how long before SeenAt its WAL receiver last heard from the sender
	Detached        bool          // it has no primary_conninfo, because it has pledged or was fenced
	Archive         bool          // it is a standby with a restore_command in force
	Delayed         bool          // it applies WAL with a delay
	Misnamed        bool          // synchronous_standby_names can not tell it from another standby
	ReplayPaused    bool          // by an operator, or for the reason in Halt
	ShutDown        bool          // its last WAL record is the checkpoint of a clean shutdown
	Term            int64         // of its ballot
	Candidate       string        // of its ballot
	WonElection     bool          // its ballot says that it won that election
	CoordinatorGone bool          // the monitor that holds the election of its ballot has ended since
	Hung            bool          // it has pledged, but its server has not loaded the new setting: its postmaster hangs and can promote nothing
	Rule            Rule          // the newest rule in its tables
	Announced       Rule          // a newer rule that was announced to it; on a primary the rule that it was elected by, before that is in its table
	Paused          bool
	PauseSeq        int64            // the number of the last pause or unpause that it knows of
	Started         time.Time        // when its server was started
	Monitored       bool             // a monitor of its own runs
	Automatic       bool             // its monitor runs with failover=automatic
	CanFence        bool             // its monitor has shown that it can stop its server
	Replied         time.Time        // a standby of the local primary: the latest moment after which its WAL receiver is known to have replied; zero: not known
	Capacity        Capacity         // how many more standbys it can serve
	NeedsSlot       bool             // as a standby it streams through a replication slot
	NoStream        map[int32]string // the nodes that it could not stream from when its monitor last tried, and why
	Rejection       string           // with Rejects: the reason that the server gave
	NoPledge        string           // why it answers but could not pledge now; empty: it could
	Foreign         bool             // a daemon of repmgr 5 runs with it, which fails over by rules of its own

	serves int // how well it could serve the others: see rateService
}

// attached reports whether a standby streams on the timeline of the primary, or a later one.
func (p Peer) attached(primary Peer) bool {
	return p.Receiving && (primary.Running != Primary || p.Position.Timeline >= primary.Position.Timeline)
}

// silentSince is when the peer last answered, or, if it never did, when it was found to be silent.
func (p Peer) silentSince() time.Time {
	if p.SeenAt.IsZero() {
		return p.Since
	}
	return p.SeenAt
}

// data reports whether the peer can hold the cluster's data.
func (p Peer) data() bool { return p.Role != Witness && p.ID != Arbiter }

// Health is the verdict on the primary, as a text for people.
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

// Lost reports whether the verdict justifies a failover.
func (h Health) Lost() bool {
	switch h {
	case HealthStuck, HealthDemoted, HealthDead, HealthRefused, HealthSilent, HealthHangs:
		return true
	}
	return false
}

// Proven reports whether it is certain that the primary accepts no more writes. A refused
// connection alone is no proof, because a firewall may refuse in the place of the server.
// Nor is a former primary that runs as a standby, which may be about to be promoted until
// it has pledged.
func (h Health) Proven() bool { return h == HealthDead }

// Diagnose judges the primary of the rule from what is known of all voters. A loss needs
// two signals: our own attempt to reach it, and the WAL receivers of the standbys.
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

// How long a primary may start up, shut down or recover, without primary_start_timeout.
// With quorum a failover loses nothing, so the time is shorter, unless a standby still
// receives: then the primary is in a clean shutdown, which may take long.
const (
	startLimit       = 300 * time.Second
	quorumStartLimit = 30 * time.Second
)

// stuck reports whether the primary has let nobody in for too long. The server says so
// itself, so no second signal is needed; but it is alive, and may accept writes later. With
// Forced there is no waiting.
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

// Elected reports whether a node that the rule does not name won a later election. Its
// ballot says so, or, after it has pledged in a still later term, the rule that was announced to it.
func (p Peer) Elected(r Rule) bool {
	return p.WonElection && p.Term > r.Term || p.Announced.Primary == p.ID && p.Announced.Term > r.Term
}

// majoritySince is since when a majority of the voters answers; the zero time where none
// does. For a monitor that is cut off from most voters the silence of the primary is no evidence.
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

// received reports whether any standby has recently heard from the primary. A running
// receiver alone is no evidence for that, because its sender may be silent. But where the
// primary refuses our connections, a stream that is still open means that it is alive;
// then only what was seen after the refusal counts.
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

// upstream is the node that a standby streams from: the one whose address it uses, or else
// the only node that answers and lists it among its WAL senders. 0 means not known.
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

// shutDown reports whether the WAL of the most advanced standby on the line of the rule ends
// with the checkpoint of a clean shutdown: then nothing was committed after it. Nodes on
// another branch do not count. Where several are equally advanced one of them is enough,
// because the others may have been seen shortly before they received that record.
func shutDown(r Rule, peers []Peer) bool {
	var best Peer
	for _, o := range peers {
		if o.Answer != Answers || o.Running != Standby || !o.data() || o.PositionUnknown || o.ReplayBlocked == UnfitOwnWAL || !o.On(r) {
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

// Refusal names why there is no failover although the primary is lost. Empty: nothing prevents it.
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

// Survey says whether an election may begin, before any voter is asked for a pledge. An
// election without a winner would detach standbys for nothing.
func (p Policy) Survey(now time.Time, r Rule, peers []Peer) Refusal {
	primary, asked := find(peers, r.Primary), p.Electors(r, peers)
	fit := p.ranking(r, AbleToPledge(asked)).fit
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
	case !r.Quorum && unelectedUnguarded(r, peers, p.Adopts) && !p.Forced:
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

// Electors are the voters that an election under the rule asks for their pledges: all that
// answer. A primary that nobody elected is left out, because it gives no pledge.
func (p Policy) Electors(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.Answer != Answers || o.unelected(r) && o.ID != p.Adopts })
}

// AbleToPledge are the peers that are not known to be unable to pledge.
func AbleToPledge(peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.NoPledge != "" })
}

// LacksTooMuch reports whether the winner lacks, or may lack, more of the former primary's
// WAL than maximum_lag_on_failover allows; where the primary was never seen it may. With
// quorum there is no limit, because the winner has everything that was acknowledged.
func (p Policy) LacksTooMuch(r Rule, former, winner Peer) bool {
	if p.MaxLag <= 0 || r.Quorum || p.Forced || winner.ID == former.ID {
		return false
	}
	lacks := behind(winner, former)
	return lacks < 0 || lacks > p.MaxLag
}

// Unguarded names why it is not certain that a primary which is cut off stops itself.
type Unguarded string

const (
	UnguardedUnknown Unguarded = "what runs there is not known: it was not seen since this process began to look"
	UnguardedAlone   Unguarded = "no daemon ran there when it was last seen"
	UnguardedManual  Unguarded = "its daemon runs with failover=manual"
	UnguardedUnable  Unguarded = "its daemon can not stop it"
	UnguardedPaused  Unguarded = "failover is paused there, or may be"
)

// Unfenced says why it is not certain that a primary which is cut off stops itself. Empty:
// its daemon will stop it. Where the primary may not know of the newest pause or unpause it
// may still be paused, and a pause suspends its lease.
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

// unelectedUnguarded reports whether a node runs as a primary that nobody elected, and has
// no daemon that would stop it after an election.
func unelectedUnguarded(r Rule, peers []Peer, adopts int32) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool {
		return o.ID != adopts && o.unelected(r) && (!o.Monitored || !o.Automatic)
	})
}

// unelected reports whether the node runs as a primary that nobody elected. Such a node
// pledges to nobody.
func (p Peer) unelected(r Rule) bool {
	return p.ID != r.Primary && p.data() && p.Answer == Answers && p.Running == Primary && !p.Elected(r)
}

// Foreign reports whether a daemon of repmgr 5 runs with any node that answers.
func Foreign(peers []Peer) bool {
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Foreign && o.Answer == Answers })
}

// Paused reports whether failover is paused. Only the newest pause or unpause counts: a node
// that was down when the others were unpaused may still be marked as paused.
func Paused(peers []Peer) bool {
	newest := LastPause(peers)
	return slices.ContainsFunc(peers, func(o Peer) bool { return o.Paused && o.PauseSeq == newest })
}

// LastPause is the number of the newest pause or unpause that any peer knows of.
func LastPause(peers []Peer) (newest int64) {
	for _, o := range peers {
		newest = max(newest, o.PauseSeq)
	}
	return newest
}

// PausePreventsElection reports whether a pause excludes every election under the rule: the
// voters that are not known to be paused are too few to elect anybody without the primary,
// self. This stays true when the views are old. After an unpause that has not reached the
// primary, the others count it as [UnguardedPaused] and do not replace it.
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

// Fit says whether a node may be promoted under the rule. Without quorum only its own daemon
// can stop a primary that is cut off, so the node must have a daemon that is able to.
func (p Policy) Fit(r Rule, o Peer) Unfit {
	switch {
	case !o.data():
		return UnfitWitness
	case o.ID == p.Incumbent && o.NoPledge == "" && !o.PositionUnknown && o.On(r): // priority and the like matter only for another winner
		return ""
	case o.Priority <= 0:
		return UnfitPriority
	case o.Delayed:
		return UnfitDelayed
	case o.NoPledge != "":
		return UnfitNoPledge
	case o.Hung:
		return UnfitHung
	case o.ReplayBlocked != "":
		return o.ReplayBlocked
	case o.ID == p.Adopts:
	case o.PositionUnknown:
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

// Tally is the result of counting the pledges.
type Tally struct {
	Refusal Refusal // why there is no winner
	Winner  int32
	Wait    bool // the former primary may still accept writes: wait until its daemon has stopped it
	Rule    Rule // of the new term
}

// ranking is what the count of an election is based on.
type ranking struct {
	peers []Peer // the pledged voters
	rules []Rule // the rules under which commits may have been acknowledged
	line  Rule   // the rule whose line decides which node has more
	fit   []Peer // the nodes that may be promoted, the winner first
	moved bool   // the first node was put in front because it can serve the others
}

func (p Policy) ranking(r Rule, pledged []Peer) ranking {
	l := ranking{peers: rateService(pledged)}
	for i, o := range l.peers {
		if o.Running == Primary && o.Announced.Compare(o.Rule) > 0 {
			l.peers[i].Rule = o.Announced
		}
	}
	l.rules = relevantRules(r, l.peers)
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

// Count chooses the winner and makes the rule of the new term. peers are the pledged voters,
// as seen after their pledges, when their positions no longer change; h is the verdict on
// the former primary.
func (p Policy) Count(r Rule, term int64, h Health, peers []Peer) Tally {
	l := p.ranking(r, peers)
	fit, rules, newest, line, peers := l.fit, l.rules, l.rules[0], l.line, l.peers
	for _, rule := range rules {
		pledged := ids(countable(rule, peers))
		switch {
		case !rule.Majority(pledged):
			return Tally{Refusal: RefusedPledges}
		case !rule.Covers(ids(withKnownWAL(rule, countable(rule, peers)))):
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
			next.Sync = missingStandbys(newest, winner.ID, peers)
			next.Acks = min(1, newest.Acks, len(next.Sync))
		}
	}
	pledged := ids(peers)
	gone := slices.Contains(pledged, newest.Primary) || h.Proven() && r.Primary == newest.Primary
	return Tally{Winner: winner.ID, Rule: next, Wait: !newest.Quorum && (!gone || mayHaveUnknownPrimary(newest, term, pledged))}
}

// branch is the line of WAL of the winner after its promotion: a standby begins a new
// timeline where its WAL ends, and a primary stays on its line.
func branch(winner Peer) wal.Lineage {
	if winner.Running == Primary {
		return winner.Line()
	}
	if winner.Position.Timeline > 1 && len(winner.Past) == 0 {
		return wal.Lineage{} // its history can not be read
	}
	return wal.Lineage{Past: append(slices.Clone(winner.Past), wal.HistoryEntry{Timeline: winner.Position.Timeline, SwitchLSN: winner.Position.LSN})}
}

// withKnownWAL are the peers of which it is known how much of the rule's line they have.
func withKnownWAL(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.data() && o.unsure(r) })
}

// unsure reports whether it is not known how much of the rule's line the peer has. A peer
// with own WAL is certain only if the rule's line has left its line before that WAL begins.
func (p Peer) unsure(r Rule) bool {
	return p.PositionUnknown || p.ReplayBlocked == UnfitOwnWAL && (!r.Line.Known() || r.Line.Shared(p.Line(), math.MaxUint64) > p.Position.LSN)
}

// countable are the peers whose votes count under the rule. An arbiter that knows a different
// list of voters is left out, because the weight of its vote depends on that list.
func countable(r Rule, peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool {
		return o.ID == Arbiter && o.Rule.Known() && !slices.Equal(o.Rule.Voters, r.Voters)
	})
}

// mayHaveUnknownPrimary reports whether a primary of a term between the newest rule and this
// election may run: there were pledges since that rule, and one of the voters that have not
// pledged now may have won them.
func mayHaveUnknownPrimary(newest Rule, term int64, pledged []int32) bool {
	return term > newest.Term+1 && len(without(newest.Voters, append([]int32{Arbiter}, pledged...))) > 0
}

// relevantRules are the rules under which commits may have been acknowledged: the newest of
// all, and the newest that a data node has. The two differ where a rule was announced to a
// witness and has reached no standby.
func relevantRules(r Rule, peers []Peer) []Rule {
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

// electable reports whether the acknowledgements of a standby may count: it could be promoted
// with what it has acknowledged, and nobody else can acknowledge under its name.
func electable(o Peer) bool {
	return o.data() && o.Priority > 0 && !o.Delayed && !o.ReplayPaused && o.ReplayBlocked == "" && !o.Misnamed && !o.Hung
}

// holdsAll reports whether no peer that may hold acknowledged commits has more of the line
// than best. The former primary may have more where enough synchronous standbys have pledged:
// the rest was then never acknowledged, unless commits waited for nobody.
func holdsAll(r, line Rule, best Peer, peers []Peer) bool {
	for _, o := range peers {
		must := slices.Contains(r.Sync, o.ID) || o.ID == r.Primary && count(r.Sync, ids(peers)) < len(r.Sync)-r.Acks+1 || o.ID == r.Primary && r.Acks == 0
		if must && compareProgress(line, o, best) > 0 {
			return false
		}
	}
	return true
}

// missingStandbys are the synchronous standbys of a new term where no standby is available
// and durability=required forbids commits without one: those of the last term, so that
// commits wait until the first of them is back.
func missingStandbys(r Rule, winner int32, peers []Peer) []int32 {
	all := slices.DeleteFunc(append(slices.Clone(r.Sync), r.Primary), func(id int32) bool {
		return id == winner || !slices.Contains(r.Voters, id) || find(peers, id).Misnamed
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// firstAcks is how many acknowledgements the first commits of a term need: so many that the
// voters that do not know of the term can elect nobody without a node that has the commit.
func (p Policy) firstAcks(r Rule, sync []int32, peers []Peer) int {
	held := []int32{}
	for _, o := range peers {
		if !o.data() {
			held = append(held, o.ID) // the rule is announced to witnesses before the promotion
		}
	}
	have, all := r.Votes(held)
	need := all/2 + 1 - have - 1 // the winner itself
	return min(len(sync), max(need, min(p.acks(len(sync)), len(sync))))
}

// rank orders the candidates, and the first one wins. What a node has counts first, then
// whether it is the primary already, then how well it can serve the others, then the
// operator's preferences.
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

// compareProgress is positive if a has more of the rule's line than b; WAL on another branch
// does not count. Where the line is not known the term of the rule decides, then the number
// of the timeline, then the LSN.
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
