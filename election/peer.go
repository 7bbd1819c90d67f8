package election

import (
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
	Restart         Restart       // the restart of its server that its monitor was asked for
	Handover        Handover      // the planned change of the primary that it was asked for, or told of
	Paused          bool
	PauseSeq        int64            // the number of the last pause or unpause that it knows of
	PausedBy        Pause            // who paused, as it was told; of another number: that is not known
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

// Elected reports whether a node that the rule does not name won a later election. Its
// ballot says so, or, after it has pledged in a still later term, the rule that was announced to it.
func (p Peer) Elected(r Rule) bool {
	return p.WonElection && p.Term > r.Term || p.Announced.Primary == p.ID && p.Announced.Term > r.Term
}

func find(peers []Peer, id int32) Peer {
	for _, p := range peers {
		if p.ID == id {
			return p
		}
	}
	return Peer{}
}

// IDs are the ids of the peers, in their order.
func IDs(peers []Peer) (all []int32) {
	for _, p := range peers {
		all = append(all, p.ID)
	}
	return all
}
