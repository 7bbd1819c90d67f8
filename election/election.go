// Package election decides what the monitor of a node does next. It contains all
// decisions about failover and no effects: it reads no clock, does no I/O, starts no
// goroutines, keeps no state and imports no other package of repmgr but wal.
//
// A monitor observes, asks [Policy.Step], acts, and starts again:
//
//	o := observe()
//	d := policy.Step(state, o)
//	state = d.Next
//	act(d.Actions)
//	wait(d.Again)
//
// Step depends on its arguments only, so the same code also explains a decision and
// predicts one. An election is an action that takes longer, and its decisions are here
// as well: [Policy.Diagnose] says whether the primary is lost, [Policy.Survey] whether
// an election may begin, and [Policy.Count] who wins. [Policy.Reconcile] says what the
// primary changes in its rule, and [LeaseStart] how long it may run without contact.
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

// Node is the row of the monitor's own node. The zero value means that there is none.
type Node struct {
	Registered bool
	Role       Role
	Active     bool
	Upstream   int32 // the node that it is registered to stream from; 0: none is named
}

// Observation is everything that is known at one instant.
type Observation struct {
	Now      time.Time
	Local    View
	Node     Node           // from the most trustworthy copy of the metadata that could be read
	RowKnown bool           // some copy of the metadata could be read, whether or not it has the row
	Upstream View           // on a standby: its primary, over this node's own connection
	Children map[int32]bool // on a primary: the registered standbys below it, and whether they are attached

	// For failover=automatic.
	Self          int32  // the node of this monitor
	Observer      bool   // this monitor has no node of its own
	Candidate     string // the name under which this monitor asks for pledges
	Rule          Rule   // the newest that is known
	Peers         []Peer // all voters of the rule, this node included
	WasPrimary    bool   // the server is down, and its data directory is that of a primary
	Busy          bool   // a long action is running
	Planned       bool   // it stops the local server on purpose: a restart, or a handover
	Interruptible bool   // the running action only waits, and may be ended for an election
	Diverged      bool   // following failed because the node has WAL that the primary never had
	Last          Outcome
}

// Outcome is the result of the last long action.
type Outcome struct {
	Verb   Verb
	At     time.Time // when it ended; zero: there was none
	OK     bool
	Reason Reason // why it failed
}

// Phase is what the node is doing, in one word. The zero value means that
// nothing was decided yet.
type Phase string

const (
	Waiting      Phase = "waiting"      // for the local server
	Unregistered Phase = "unregistered" // the server runs, but the node has no row
	AsPrimary    Phase = "primary"
	AsStandby    Phase = "standby"
	AsWitness    Phase = "witness"
	Orphaned     Phase = "orphaned"  // a standby whose primary is not reachable
	Observing    Phase = "observing" // without a node of its own
	Failover     Phase = "failover"  // the primary is lost
	Fenced       Phase = "fenced"    // stopped, because it must not be a primary
)

// Reason names why a decision was made. The texts are shown to people and do not change
// between releases.
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
	HeldByPause     Reason = "primary is lost: failover is paused"
	HeldByLimit     Reason = "primary is lost: too many failovers in the last hour"
	Electing        Reason = "primary is lost: electing"
	GivingWay       Reason = "primary is lost: ending what is under way"
	HeldBack        Reason = "primary hands over: its own monitor holds the election"
	FollowingWinner Reason = "following the primary that the rule names"
	Rejoining       Reason = "bringing the former primary back as a standby"
	DownOnPurpose   Reason = "its server is down for a restart or a switchover"
	Returning       Reason = "bringing this standby back: it can not follow the primary with the data that it has"
)

// Verb is what an action does.
type Verb string

const (
	Register        Verb = "register"             // register the node in the role that it runs in
	Adopt           Verb = "adopt"                // change the node's row to that of a standby
	Sample          Verb = "sample"               // record how far the standby is behind
	Prune           Verb = "prune"                // delete monitoring history that is too old to be kept
	MarkActive      Verb = "mark active"          // in the node's row
	MarkInactive    Verb = "mark inactive"        // in the node's row
	Notify          Verb = "tell"                 // record an event and send its notification
	Reconcile       Verb = "keep the rule"        // one step of [Policy.Reconcile]: the rule and synchronous_standby_names
	RecordPromotion Verb = "record the promotion" // write the rows of the nodes that a promotion changes
	PrepareStandby  Verb = "prepare the standby"  // make the local standby ready for a promotion
	CopyToWitness   Verb = "copy to the witness"  // copy the metadata to the local witness, at intervals
	Fence           Verb = "fence"                // stop the local server at once, and start it as a standby without an upstream
	Elect           Verb = "elect"                // elect a new primary
	Interrupt       Verb = "interrupt"            // end the long action that is running
	Reaffirm        Verb = "reaffirm"             // let the local primary win an election in a higher term
	Follow          Verb = "follow"               // follow the node that the action names
	Rejoin          Verb = "rejoin"               // bring the local server back as a standby of the node that the action names
	HandOver        Verb = "hand over"            // stop the local primary in order, and let another node be elected
	RestartServer   Verb = "restart the server"   // as an operator has asked for

	RunChildrenCommand Verb = "run child_nodes_disconnect_command"
)

// Event names an event, as repmgr 5 does.
type Event string

const (
	LocalDisconnect    Event = "repmgrd_local_disconnect"
	LocalReconnect     Event = "repmgrd_local_reconnect"
	StandbyFailure     Event = "standby_failure"
	StandbyRecovery    Event = "standby_recovery"
	UpstreamDisconnect Event = "repmgrd_upstream_disconnect"
	UpstreamReconnect  Event = "repmgrd_upstream_reconnect"
	StandbyReconnect   Event = "repmgrd_standby_reconnect"
	ChildConnect       Event = "child_node_new_connect"
	ChildDisconnect    Event = "child_node_disconnect"
	ChildReconnect     Event = "child_node_reconnect"
)

// Action is one thing to do. Actions are idempotent, and are carried out in their order.
type Action struct {
	Verb  Verb
	Event Event // for Notify
	Child int32 // for Notify: the child node that the event is about, if any; for Follow and Rejoin: the upstream
}

// State is what one step hands to the next. The first step gets the zero value.
type State struct {
	Phase    Phase
	Reason   Reason
	Since    time.Time // of Phase and Reason
	Role     Role      // the role in which the local server was last seen
	Children map[int32]bool
	Tried    time.Time // when a registration was last asked for
	Pruned   time.Time

	Health         Health    // the verdict on the primary
	LostAt         time.Time // since when the primary is lost; zero: it is not
	TurnsAt        time.Time // since when it is lost by the present verdict: the monitors count their turns from here
	DisconnectedAt time.Time // since when the local standby receives from nobody
	PrimaryWasAway bool      // the primary did not answer meanwhile
	PrimarySince   time.Time // since when the local server runs as a primary
	Handover       Handover  // the handover that the primary has begun, as this monitor was told
	HandoverAt     time.Time // since when it knows of that
	HandoverOver   bool      // the primary runs, and goes on
	HandoverGone   bool      // no node that answers has its notice now
	HandoverBegun  string    // the newest handover that this monitor was to carry out
	RestartBegun   string    // the newest request for a restart that this monitor has begun
	ChildLostAt    time.Time // when the newest of the children that are not attached was lost
	ChildrenFew    bool      // too few are attached, and the command was run for that
	BallotAt       time.Time // since when a ballot of BallotFor is known
	BallotFor      int64     // the highest term of any ballot
}

// Decision is what to do now.
type Decision struct {
	Next    State
	Actions []Action
	Reason  Reason
	Again   time.Duration // look again after this time at the latest
}

// Policy holds the operator's settings, and what one election adds to them. Where a field does
// not say otherwise, a duration of 0 means never.
type Policy struct {
	Interval      time.Duration // between two looks
	RegisterEvery time.Duration // between two attempts to register
	PruneEvery    time.Duration

	Children   Children
	Automatic  bool
	Silence    time.Duration // silence_timeout
	Fence      time.Duration // fence_timeout
	Patience   time.Duration // wait so much longer than the evidence needs: reconnect_attempts times reconnect_interval
	OnShutdown bool          // failover_on_shutdown
	Start      time.Duration // primary_start_timeout; 0: a default that depends on synchronous_mode; negative: never
	Quorum     bool          // synchronous_mode=quorum
	Acks       int           // synchronous_node_count
	Required   bool          // durability=required: after the first commit that a standby acknowledged, no commit goes without one
	MaxLag     int64         // maximum_lag_on_failover, in bytes; 0: any
	TooMany    bool          // failovers_per_hour is reached
	Location   string        // of the former primary
	Promotion  time.Duration // promote_check_timeout: how long a promotion may take, and how long the replay before it may make no progress
	Prefer     int32         // the node that wins where several have the same WAL: the target of a handover
	Adopts     int32         // a node that runs as a primary on a branch that no rule knows, and asks to be elected with it
	Incumbent  int32         // a node that runs as the primary and is a candidate for a higher term: it stays unless another node has more
	Forced     bool          // an operator insists: a pause, daemons that are manual or of repmgr 5, failovers_per_hour, maximum_lag_on_failover, primary_start_timeout, and a primary that nobody is sure to stop do not count, unless it says itself that it is alive
}

// Step decides what to do. The first case that applies decides, and the most dangerous
// situations come first.
//
// While a daemon of repmgr 5 runs in the cluster a monitor only watches, because that
// daemon knows nothing of pledges and may promote a node by itself.
func (p Policy) Step(s State, o Observation) Decision {
	p.Automatic = p.Automatic && !Foreign(o.Peers)
	return p.restarts(p.step(p.remember(s, o), o), o)
}

func (p Policy) step(s State, o Observation) Decision {
	switch {
	case p.deposed(o):
		return p.enter(s, o, Fenced, Deposed, Action{Verb: Fence})
	case p.mustYield(o):
		return p.enter(s, o, Fenced, Unelected, Action{Verb: Fence})
	case !o.Local.Up && p.mayRejoin(o):
		return p.enter(s, o, Waiting, Rejoining, Action{Verb: Rejoin, Child: o.Rule.Primary})
	case !o.Local.Up && o.Planned && s.Phase != "":
		return p.enter(s, o, s.Phase, DownOnPurpose)
	case !o.Local.Up && !o.Observer:
		return p.localLost(s, o)
	case !o.Observer && !o.RowKnown:
		return p.enter(s, o, Waiting, RowNotReadable)
	case !o.Observer && !o.Node.Registered:
		return p.register(s, o)
	case p.mayStand(s, o):
		return p.enter(s, o, AsPrimary, Claiming, Action{Verb: Reaffirm})
	case p.meetsHigherTerm(s, o):
		return p.enter(s, o, AsPrimary, MetHigherTerm, Action{Verb: Reaffirm})
	case p.mustFollow(s, o):
		return p.follow(s, o)
	case p.mayElect(s, o):
		return p.elect(s, o)
	case o.Observer:
		return p.enter(s, o, Observing, WatchingCluster)
	case o.Node.Role == Witness:
		return p.enter(s, o, AsWitness, WatchingWitness, append(p.returned(s, o), Action{Verb: CopyToWitness})...)
	case o.Local.InRecovery && o.Node.Role == Primary && o.Upstream.Up:
		return p.adopt(s, o)
	case o.Local.InRecovery && !o.Upstream.Up:
		return p.orphaned(s, o)
	case o.Local.InRecovery:
		return p.standby(s, o)
	case o.Node.Role == Standby && p.Automatic && find(o.Peers, o.Self).Rule.Primary == o.Self:
		return p.enter(s, o, AsPrimary, TakingOffice, Action{Verb: Reconcile}, Action{Verb: RecordPromotion})
	case o.Node.Role == Standby:
		return p.enter(s, o, AsPrimary, NowPrimary)
	default:
		return p.primary(s, o)
	}
}

// enter makes the decision to be in a phase. Since changes only with the phase or the reason.
func (p Policy) enter(s State, o Observation, phase Phase, why Reason, actions ...Action) Decision {
	next := s
	if s.Phase != phase || s.Reason != why {
		next.Phase, next.Reason, next.Since = phase, why, o.Now
	}
	if o.Local.Up {
		next.Role = role(o.Local)
	}
	if phase != AsPrimary {
		next.Children, next.ChildrenFew = nil, false // a node that becomes a primary again starts with no known children
	}
	again := p.Interval
	if s.Health == HealthDoubtful || s.Health == HealthReceived {
		again = min(again, p.Silence/20) // the verdict can change by the mere passing of time
	}
	return Decision{Next: next, Actions: actions, Reason: why, Again: again}
}

func role(v View) Role {
	if v.InRecovery {
		return Standby
	}
	return Primary
}

// localLost reports once that the local server is gone. A standby is marked inactive in
// its row, so that the other nodes learn of it.
func (p Policy) localLost(s State, o Observation) Decision {
	switch {
	case s.Phase == "" || s.Phase == Waiting || s.Phase == Unregistered:
		return p.enter(s, o, Waiting, LocalNotReachable)
	case s.Role == Standby:
		return p.enter(s, o, Waiting, LocalNotReachable, Action{Verb: MarkInactive}, Action{Verb: Notify, Event: StandbyFailure})
	default:
		return p.enter(s, o, Waiting, LocalNotReachable, Action{Verb: Notify, Event: LocalDisconnect})
	}
}

// register asks for the registration of the node, and repeats that at intervals, because
// what prevents it usually takes time to be repaired.
func (p Policy) register(s State, o Observation) Decision {
	if !s.Tried.IsZero() && o.Now.Sub(s.Tried) < p.RegisterEvery {
		return p.enter(s, o, Unregistered, NotRegistered)
	}
	d := p.enter(s, o, Unregistered, NotRegistered, Action{Verb: Register})
	d.Next.Tried = o.Now
	return d
}

// returned are the actions for a local server that is reachable again. The row of a former primary
// that runs as a standby is not marked active: there would be two primaries in the metadata.
// [Adopt] makes it the row of a standby, which is active.
func (p Policy) returned(s State, o Observation) []Action {
	var actions []Action
	lost := s.Phase == Waiting && s.Reason == LocalNotReachable && s.Role != ""
	standby := o.Local.InRecovery
	if standby && o.Node.Role != Primary && (lost || !o.Node.Active) {
		actions = append(actions, Action{Verb: MarkActive})
	}
	switch {
	case lost && standby:
		actions = append(actions, Action{Verb: Notify, Event: StandbyRecovery})
	case lost:
		actions = append(actions, Action{Verb: Notify, Event: LocalReconnect})
	}
	return actions
}

// adopt makes the row of a former primary that of a standby. It reports that once, however often
// it has to be tried.
func (p Policy) adopt(s State, o Observation) Decision {
	actions := []Action{{Verb: Adopt}}
	if s.Reason != NowStandby {
		actions = append(actions, Action{Verb: Notify, Event: StandbyReconnect})
	}
	return p.enter(s, o, AsStandby, NowStandby, actions...)
}

// orphaned reports once that the primary of this standby is gone, and waits for one.
func (p Policy) orphaned(s State, o Observation) Decision {
	actions := p.returned(s, o)
	if s.Phase == AsStandby {
		actions = append(actions, Action{Verb: Notify, Event: UpstreamDisconnect})
	}
	return p.enter(s, o, Orphaned, PrimaryNotReachable, actions...)
}

func (p Policy) standby(s State, o Observation) Decision {
	actions := p.returned(s, o)
	if s.Phase == Orphaned || s.Phase == Failover {
		actions = append(actions, Action{Verb: Notify, Event: UpstreamReconnect})
	}
	if p.Automatic {
		actions = append(actions, Action{Verb: PrepareStandby})
	}
	return p.enter(s, o, AsStandby, WatchingStandby, append(actions, Action{Verb: Sample})...)
}

// primary reports standbys that attach and detach. A standby that was not attached at the
// first look is not reported as lost.
func (p Policy) primary(s State, o Observation) Decision {
	actions := p.returned(s, o)
	first := s.Phase != AsPrimary
	children, lostNow := map[int32]bool{}, false
	for _, id := range slices.Sorted(maps.Keys(o.Children)) {
		attached := o.Children[id]
		was, known := s.Children[id]
		switch {
		case first:
		case attached && !known:
			actions = append(actions, Action{Notify, ChildConnect, id})
		case attached && !was:
			actions = append(actions, Action{Notify, ChildReconnect, id})
		case !attached && was:
			lostNow = true
			actions = append(actions, Action{Notify, ChildDisconnect, id})
		}
		if attached || known {
			children[id] = attached
		}
	}
	prune := p.PruneEvery > 0 && o.Now.Sub(s.Pruned) >= p.PruneEvery
	if prune {
		actions = append(actions, Action{Verb: Prune})
	}
	handsOver := p.mustHandOver(s, o)
	switch {
	case handsOver:
		actions = append(actions, Action{Verb: HandOver})
	case p.Automatic && !o.Busy:
		actions = append(actions, Action{Verb: Reconcile})
	}
	d := p.enter(s, o, AsPrimary, WatchingPrimary, actions...)
	d.Next.Children = children
	if handsOver {
		d.Next.HandoverBegun = find(o.Peers, o.Self).Handover.ID
	}
	if prune {
		d.Next.Pruned = o.Now
	}
	return p.missChildren(d, o, lostNow)
}
