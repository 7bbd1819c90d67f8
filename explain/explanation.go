package explain

import (
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/registry"
)

// Explanation is what would happen if a node died now, and why.
type Explanation struct {
	At       time.Time         `json:"at"`
	Lost     registry.Record   `json:"lost"`
	Health   election.Health   `json:"health"`        // the verdict on the primary, as it is
	Rule     election.Rule     `json:"rule,omitzero"` // in force; left out: none was ever written
	Voters   []Voter           `json:"voters"`
	Votes    Votes             `json:"votes"`
	Forecast election.Forecast `json:"forecast"`
	Loss     ExpectedLoss      `json:"expected_loss"`
	Outages  []ExpectedOutage  `json:"expected_outages"` // empty: there is no failover
	Blocked  []Blocker         `json:"blocked_by"`       // empty: nothing
	AtRisk   []Blocker         `json:"at_risk"`          // what would keep a node that may be promoted from serving the others, and the standbys that can not go on

	PausedBy   *election.Pause     `json:"paused_by,omitempty"`  // who has paused failover, and when; nil: nobody has, or that is not known
	Durability election.Durability `json:"durability,omitempty"` // as our own configuration has it; empty: synchronous_mode is off

	// Manual: nobody takes over by itself, because neither the configuration nor any
	// daemon asks for it. Then Forecast is of an operator's choice, Command is to be
	// typed on the machine of the winner, and the rule, where none was ever written,
	// is what the rows of the nodes and what runs say.
	Manual   bool   `json:"manual"`
	Presumed bool   `json:"rule_presumed"` // none was ever written
	Command  string `json:"command,omitempty"`
}

// Votes are counted as the rule weighs them: an etcd may have several.
type Votes struct {
	All      int `json:"all"`
	Answer   int `json:"answer"`
	Without  int `json:"answer_without_lost"`
	Majority int `json:"majority"`
}

// Voter is a node, or the etcd, and how it answers.
type Voter struct {
	ID        registry.NodeID `json:"node_id"` // -1: the etcd
	Name      string          `json:"node_name"`
	Role      registry.Role   `json:"type,omitempty"`
	Votes     int             `json:"votes"` // 0: the rule does not name it
	Answer    election.Answer `json:"answer"`
	Running   election.Role   `json:"running,omitempty"`
	Monitored bool            `json:"monitored"`      // a Monitor runs there
	Automatic bool            `json:"automatic"`      // and fails over by itself
	CanFence  bool            `json:"can_fence"`      // and has shown that it can stop its server
	Foreign   bool            `json:"repmgr5_daemon"` // a daemon of repmgr 5 runs there
	Paused    bool            `json:"paused"`
	Login     string          `json:"login,omitempty"`     // the user whose login it rejects; empty: it rejects none
	Rejection string          `json:"rejection,omitempty"` // and why, in its words
	NoPledge  string          `json:"no_pledge,omitempty"` // why it could not pledge itself; empty: it could, or is not known to be unable
	LostWAL   *follow.LostWAL `json:"lost_wal,omitempty"`  // of a standby that receives nothing, because what it needs next is gone

	unelected bool    // it runs as a primary that nobody elected
	stuck     Blocker // of a standby that can not receive any more: why, and what mends it
}

// ExpectedLoss is the acknowledged work that would be gone.
type ExpectedLoss struct {
	Bytes int64  `json:"bytes"` // of WAL, at most, if the server dies; -1: not known
	Why   string `json:"why"`
}

// ExpectedOutage is the time without a primary, as the sum of its parts.
type ExpectedOutage struct {
	Case  string        `json:"case"`
	Total time.Duration `json:"total_ns"`
	Least bool          `json:"at_least,omitempty"` // no failover here has told yet how long pledges and promotion take: busy machines need several times as long
	Parts []OutagePart  `json:"parts"`
}

// OutagePart is one of them, and where the number comes from.
type OutagePart struct {
	Part string        `json:"part"`
	Time time.Duration `json:"time_ns"`
	From string        `json:"from"` // a setting, "typical", or the term in which it was measured
}

// Blocker is something that keeps the cluster from failing over by itself.
type Blocker struct {
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

// WhyNotAnswer says why a node is not the primary, or would not become it.
type WhyNotAnswer struct {
	Node      registry.Record `json:"node"`
	IsPrimary bool            `json:"is_primary"`
	WouldWin  bool            `json:"would_win"` // an election, if the primary died now
	Reasons   []string        `json:"reasons"`   // sentences, the weightiest first; never empty

	Explanation Explanation `json:"explanation"`
}
