// Package election decides what a node's monitor does next. It is the whole
// policy and nothing else: it reads no clock, opens nothing, starts nothing,
// keeps nothing and imports nothing of repmgr.
//
// A monitor observes, asks [Policy.Step], and acts:
//
//	o := observe()
//	d := policy.Step(state, o)
//	state = d.Next
//	act(d.Actions)
//	wait(d.Again)
//
// Step is a function of its arguments, so the same one answers why, why not and
// what if. An election is an action that takes longer; what it decides on its
// way is here as well: [Policy.Diagnose] whether the primary is lost,
// [Policy.Survey] whether an election may begin, [Policy.Count] who wins,
// [Policy.Tend] what the primary changes in its rule, [LeaseStart] how long it
// may go on by itself.
package election

import (
	"maps"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// Role is what a server runs as, or is registered as. The zero value means unknown.
type Role string

const (
	Primary Role = "primary"
	Standby Role = "standby"
	Witness Role = "witness"
)

// View is one look at a server. The zero value means that it was never seen.
type View struct {
	Up         bool
	InRecovery bool
	Position   wal.Position
}

// Node is the row of the node itself. The zero value means that it has none.
type Node struct {
	Registered bool
	Role       Role
	Active     bool
}

// Observation is everything that is known at one instant.
type Observation struct {
	Now      time.Time
	Local    View
	Node     Node           // as the most trusted copy that could be read has it
	RowKnown bool           // whether any copy of the row could be looked for
	Upstream View           // of a standby: its primary, over this node's own connection
	Children map[int32]bool // of a primary: registered standbys below it, and whether they are attached

	// For failover=automatic.
	Self       int32  // the node of this monitor
	Observer   bool   // it has none
	Candidate  string // what its pledges are made out to
	Rule       Rule   // the newest that is known
	Peers      []Peer // all its voters, this node among them
	WasPrimary bool   // of a server that is down: its data directory is that of a primary
	Busy       bool   // a long action is under way
	Yields     bool   // and it only waits: it may be ended for an election
	Diverged   bool   // following failed: the node has WAL that the primary never had
	Last       Outcome
}

// Outcome is what came of the last long action.
type Outcome struct {
	Verb   Verb
	At     time.Time // when it ended; zero: none was tried
	OK     bool
	Reason Reason // why not
}

// Phase is what the node is doing, in one word. The zero value means that
// nothing was decided yet.
type Phase string

const (
	Waiting      Phase = "waiting"      // for the local server
	Unregistered Phase = "unregistered" // the server is there, its row is not
	AsPrimary    Phase = "primary"
	AsStandby    Phase = "standby"
	AsWitness    Phase = "witness"
	Orphaned     Phase = "orphaned"  // a standby whose primary is not reachable
	Observing    Phase = "observing" // without a node of its own
	Failover     Phase = "failover"  // the primary is lost
	Fenced       Phase = "fenced"    // stopped from being a primary
)

// Reason names why a decision was made. It is shown to people, and stable.
type Reason string

const (
	LocalNotReachable   Reason = "local server is not reachable"
	RowNotReadable      Reason = "metadata can not be read"
	NotRegistered       Reason = "node is not registered"
	NowStandby          Reason = "registered as primary, running as standby"
	NowPrimary          Reason = "registered as standby, running as primary"
	PrimaryNotReachable Reason = "primary is not reachable"
	WatchingStandby     Reason = "standby is monitored"
	WatchingPrimary     Reason = "primary is monitored"
	WatchingWitness     Reason = "witness is monitored"
	WatchingCluster     Reason = "cluster is monitored"

	TakingOffice    Reason = "elected, and taking office"
	Deposed         Reason = "another node was elected"
	Unelected       Reason = "it was promoted by nobody's vote while another node is the primary"
	Claiming        Reason = "it was promoted by nobody's vote, and the primary is lost: standing for election"
	MetHigherTerm   Reason = "an election without an outcome: standing for a higher term"
	BeingPatient    Reason = "primary is lost: waiting as reconnect_attempts asks for"
	NotMyTurn       Reason = "primary is lost: another monitor goes first"
	OthersElect     Reason = "primary is lost: another election is going on"
	WaitingToRetry  Reason = "primary is lost: the next election comes soon"
	Electing        Reason = "primary is lost: electing"
	GivingWay       Reason = "primary is lost: ending what is under way"
	FollowingWinner Reason = "following the primary that the rule names"
	Rejoining       Reason = "bringing the former primary back as a standby"
	Returning       Reason = "bringing this standby back: it can not follow the primary with the data that it has"
)

// Verb is what an action does.
type Verb string

const (
	Register     Verb = "register"      // the node, as what it runs as
	Adopt        Verb = "adopt"         // rewrite the node's row: it is a standby now
	Sample       Verb = "sample"        // record how far behind the standby is
	Prune        Verb = "prune"         // delete history that is older than it is to be kept
	MarkActive   Verb = "mark active"   // in the node's row
	MarkInactive Verb = "mark inactive" // in the node's row
	Tell         Verb = "tell"          // record and notify an event
	Tend         Verb = "tend"          // to the rule and synchronous_standby_names
	TakeOffice   Verb = "take office"   // write the rows of the nodes that a promotion changes
	TendStandby  Verb = "prepare"       // the local standby for its promotion
	TendWitness  Verb = "copy"          // the metadata to the local witness, now and then
	Fence        Verb = "fence"         // stop the local server at once, and start it as a standby of nobody
	Elect        Verb = "elect"         // a new primary
	GiveWay      Verb = "give way"      // end the long action that is under way
	Reaffirm     Verb = "reaffirm"      // the local primary, in a higher term
	Follow       Verb = "follow"        // the node of the action
	Rejoin       Verb = "rejoin"        // the local server, as a standby of the node of the action
)

// Happening names an event. The values are those of repmgr.
type Happening string

const (
	LocalDisconnect    Happening = "repmgrd_local_disconnect"
	LocalReconnect     Happening = "repmgrd_local_reconnect"
	StandbyFailure     Happening = "standby_failure"
	StandbyRecovery    Happening = "standby_recovery"
	UpstreamDisconnect Happening = "repmgrd_upstream_disconnect"
	UpstreamReconnect  Happening = "repmgrd_upstream_reconnect"
	StandbyReconnect   Happening = "repmgrd_standby_reconnect"
	ChildConnect       Happening = "child_node_new_connect"
	ChildDisconnect    Happening = "child_node_disconnect"
	ChildReconnect     Happening = "child_node_reconnect"
)

// Action is one thing to do. Actions are idempotent, and are done in their order.
type Action struct {
	Verb  Verb
	What  Happening // of Tell
	Child int32     // of Tell: the child node, where it is about one; of Follow and Rejoin: whom
}

// State is what one step leaves for the next. Its zero value is the beginning.
type State struct {
	Phase    Phase
	Reason   Reason
	Since    time.Time // of Phase and Reason
	Role     Role      // as what the local server was last seen
	Children map[int32]bool
	Tried    time.Time // when registering was last asked for
	Pruned   time.Time

	Health    Health    // the verdict on the primary
	LostAt    time.Time // since when it is lost; zero: it is not
	TurnsAt   time.Time // since when it is lost in this way
	AloneAt   time.Time // since when the local standby receives from nobody
	OfficeAt  time.Time // since when the local server runs as a primary
	BallotAt  time.Time // since when a pledge of BallotFor is known
	BallotFor int64     // the highest term of any ballot
}

// Decision is what to do now.
type Decision struct {
	Next    State
	Actions []Action
	Reason  Reason
	Again   time.Duration // when to look again at the latest
}

// Policy is the operator's choices. Durations of 0 mean never.
type Policy struct {
	Interval      time.Duration // between two looks
	RegisterEvery time.Duration // between two attempts to register
	PruneEvery    time.Duration

	Automatic  bool
	Silence    time.Duration // silence_timeout
	Fence      time.Duration // fence_timeout
	Patience   time.Duration // beyond what the evidence needs: reconnect_attempts times reconnect_interval
	OnShutdown bool          // failover_on_shutdown
	Start      time.Duration // primary_start_timeout; 0: as synchronous_mode asks for, less: never
	Quorum     bool          // synchronous_mode=quorum
	Acks       int           // synchronous_node_count
	Required   bool          // durability=required: once a standby has what is acknowledged, commits never wait for nobody again
	MaxLag     int64         // maximum_lag_on_failover, in bytes; 0: any
	TooMany    bool          // failovers_per_hour is reached
	Location   string        // of the former primary
	Promotion  time.Duration // promote_check_timeout: how long a promotion may take, and a replay before it stand still
	Adopts     int32         // a node that runs as primary on a branch of its own, and asks to be elected there
	Incumbent  int32         // a node that runs as primary and stands for a higher term: it stays unless another one has more
	Forced     bool          // an operator asks: pause, manual daemons, failovers_per_hour, maximum_lag_on_failover and primary_start_timeout do not count
}

// Step is the whole policy: the first case that applies decides, the most
// dangerous first.
//
// Beside a daemon of repmgr 5, which knows nothing of pledges, a monitor only watches.
func (p Policy) Step(s State, o Observation) Decision {
	p.Automatic = p.Automatic && !Foreign(o.Peers)
	s = p.remember(s, o)
	switch {
	case p.deposed(o):
		return p.enter(s, o, Fenced, Deposed, Action{Verb: Fence})
	case p.usurps(o):
		return p.enter(s, o, Fenced, Unelected, Action{Verb: Fence})
	case !o.Local.Up && p.mayRejoin(o):
		return p.enter(s, o, Waiting, Rejoining, Action{Verb: Rejoin, Child: o.Rule.Primary})
	case !o.Local.Up && !o.Observer:
		return p.localLost(s, o)
	case !o.Observer && !o.RowKnown:
		return p.enter(s, o, Waiting, RowNotReadable)
	case !o.Observer && !o.Node.Registered:
		return p.register(s, o)
	case p.claims(s, o):
		return p.enter(s, o, AsPrimary, Claiming, Action{Verb: Reaffirm})
	case p.challenged(s, o):
		return p.enter(s, o, AsPrimary, MetHigherTerm, Action{Verb: Reaffirm})
	case p.strays(s, o):
		return p.follow(s, o)
	case p.mayElect(s, o):
		return p.elect(s, o)
	case o.Observer:
		return p.enter(s, o, Observing, WatchingCluster)
	case o.Node.Role == Witness:
		return p.enter(s, o, AsWitness, WatchingWitness, append(p.returned(s, o), Action{Verb: TendWitness})...)
	case o.Local.InRecovery && o.Node.Role == Primary && o.Upstream.Up:
		return p.enter(s, o, AsStandby, NowStandby, Action{Verb: Adopt}, Action{Verb: Tell, What: StandbyReconnect})
	case o.Local.InRecovery && !o.Upstream.Up:
		return p.orphaned(s, o)
	case o.Local.InRecovery:
		return p.standby(s, o)
	case o.Node.Role == Standby && p.Automatic && find(o.Peers, o.Self).Rule.Primary == o.Self:
		return p.enter(s, o, AsPrimary, TakingOffice, Action{Verb: Tend}, Action{Verb: TakeOffice})
	case o.Node.Role == Standby:
		return p.enter(s, o, AsPrimary, NowPrimary)
	default:
		return p.primary(s, o)
	}
}

// enter moves to a phase. Since moves only when the phase or the reason does.
func (p Policy) enter(s State, o Observation, phase Phase, why Reason, actions ...Action) Decision {
	next := s
	if s.Phase != phase || s.Reason != why {
		next.Phase, next.Reason, next.Since = phase, why, o.Now
	}
	if o.Local.Up {
		next.Role = role(o.Local)
	}
	if phase != AsPrimary {
		next.Children = nil // whoever becomes a primary again knows nobody yet
	}
	again := p.Interval
	if s.Health == HealthDoubtful || s.Health == HealthReceived {
		again = min(again, p.Silence/20) // time alone makes it a loss
	}
	return Decision{Next: next, Actions: actions, Reason: why, Again: again}
}

func role(v View) Role {
	if v.InRecovery {
		return Standby
	}
	return Primary
}

// localLost says once that the server is gone. A standby's row tells the others.
func (p Policy) localLost(s State, o Observation) Decision {
	switch {
	case s.Phase == "" || s.Phase == Waiting || s.Phase == Unregistered:
		return p.enter(s, o, Waiting, LocalNotReachable)
	case s.Role == Standby:
		return p.enter(s, o, Waiting, LocalNotReachable, Action{Verb: MarkInactive}, Action{Verb: Tell, What: StandbyFailure})
	default:
		return p.enter(s, o, Waiting, LocalNotReachable, Action{Verb: Tell, What: LocalDisconnect})
	}
}

// register asks for a row, now and then: what stands in its way takes time to mend.
func (p Policy) register(s State, o Observation) Decision {
	if !s.Tried.IsZero() && o.Now.Sub(s.Tried) < p.RegisterEvery {
		return p.enter(s, o, Unregistered, NotRegistered)
	}
	d := p.enter(s, o, Unregistered, NotRegistered, Action{Verb: Register})
	d.Next.Tried = o.Now
	return d
}

// returned says what came back since the last step.
func (p Policy) returned(s State, o Observation) []Action {
	var actions []Action
	lost := s.Phase == Waiting && s.Reason == LocalNotReachable && s.Role != ""
	standby := o.Local.InRecovery
	switch {
	case lost && standby:
		actions = append(actions, Action{Verb: MarkActive}, Action{Verb: Tell, What: StandbyRecovery})
	case lost:
		actions = append(actions, Action{Verb: Tell, What: LocalReconnect})
	case standby && !o.Node.Active:
		actions = append(actions, Action{Verb: MarkActive})
	}
	return actions
}

// orphaned says once that the primary is gone, and waits for one.
func (p Policy) orphaned(s State, o Observation) Decision {
	actions := p.returned(s, o)
	if s.Phase == AsStandby {
		actions = append(actions, Action{Verb: Tell, What: UpstreamDisconnect})
	}
	return p.enter(s, o, Orphaned, PrimaryNotReachable, actions...)
}

func (p Policy) standby(s State, o Observation) Decision {
	actions := p.returned(s, o)
	if s.Phase == Orphaned {
		actions = append(actions, Action{Verb: Tell, What: UpstreamReconnect})
	}
	if p.Automatic {
		actions = append(actions, Action{Verb: TendStandby})
	}
	return p.enter(s, o, AsStandby, WatchingStandby, append(actions, Action{Verb: Sample})...)
}

// primary watches who is attached. A child that was not attached when we first
// looked was never ours to lose.
func (p Policy) primary(s State, o Observation) Decision {
	actions := p.returned(s, o)
	first := s.Phase != AsPrimary
	children := map[int32]bool{}
	for _, id := range slices.Sorted(maps.Keys(o.Children)) {
		attached := o.Children[id]
		was, known := s.Children[id]
		switch {
		case first:
		case attached && !known:
			actions = append(actions, Action{Tell, ChildConnect, id})
		case attached && !was:
			actions = append(actions, Action{Tell, ChildReconnect, id})
		case !attached && was:
			actions = append(actions, Action{Tell, ChildDisconnect, id})
		}
		if attached || known {
			children[id] = attached
		}
	}
	prune := p.PruneEvery > 0 && o.Now.Sub(s.Pruned) >= p.PruneEvery
	if prune {
		actions = append(actions, Action{Verb: Prune})
	}
	if p.Automatic && !o.Busy {
		actions = append(actions, Action{Verb: Tend})
	}
	d := p.enter(s, o, AsPrimary, WatchingPrimary, actions...)
	d.Next.Children = children
	if prune {
		d.Next.Pruned = o.Now
	}
	return d
}
