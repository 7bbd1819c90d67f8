package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// ServiceStatus is every registered node with what its Monitor says, and the
// rule that is in force.
type ServiceStatus struct {
	Nodes    []ServiceNode  `json:"nodes"`
	Rule     *election.Rule `json:"rule"`     // the newest that any node has; nil: none was ever written
	Issues   []string       `json:"issues"`   // empty: all is well
	Findings []Finding      `json:"findings"` // the issues, each with a code that stays the same

	PausedBy   *election.Pause     `json:"paused_by,omitempty"`            // who has paused failover, and when; nil: nobody has, or that is not known
	Scheduled  *Scheduled          `json:"scheduled_switchover,omitempty"` // one that has not begun; nil: there is none, or that is not known
	Durability election.Durability `json:"durability,omitempty"`           // as our own configuration has it; empty: synchronous_mode is off
}

// Scheduled is a switchover that was asked for, and has not begun.
type Scheduled struct {
	From string    `json:"from"` // the names of the nodes
	To   string    `json:"to"`
	At   time.Time `json:"at"` // when it begins, by the clock of the primary's server
}

func (s Scheduled) String() string { return wording.Scheduled(s.From, s.To, s.At) }

// OnePrimary reports whether exactly one node is the primary. One that lives and rejects the login is; one that was deposed is not.
func (s ServiceStatus) OnePrimary() bool {
	return !Findings(s.Findings).Has(NoPrimary, TwoPrimaries, Deposed)
}

// ServiceNode is a registered node with what was seen of its Monitor.
type ServiceNode struct {
	NodeView
	Foreign   *registry.ForeignDaemon `json:"repmgr5_daemon"`      // a daemon of repmgr 5 that runs there; nil: none does
	Monitored *bool                   `json:"monitored"`           // whether a Monitor runs there; nil: not known
	Monitor   *registry.Announcement  `json:"monitor"`             // what it says; nil: none runs, or not known
	Paused    *bool                   `json:"paused"`              // nil: not known
	Ballot    *ballot.Ballot          `json:"ballot"`              // the vote in its server, which may be another node's that a clone brought; nil: none, or not known
	Rule      *election.Rule          `json:"rule"`                // the newest that it has; nil: none, or not known
	NoPledge  string                  `json:"no_pledge,omitempty"` // why it could not pledge itself in an election; empty: it could, or not known

	ServiceError string `json:"service_error,omitempty"` // why not all of it could be read

	PauseSeq      int64             `json:"-"` // the number of the pause or unpause that it knows
	PausedBy      election.Pause    `json:"-"` // who paused, as it was told
	Handover      election.Handover `json:"-"` // the switchover that it was asked for, or was told of
	SecondDaemons []int32           `json:"-"` // the process IDs of further Monitors of this node
}

// Settle makes of what each node says what counts for all: the newest pause or unpause, the newest rule, and the
// switchover that its primary is asked for.
func (s *ServiceStatus) Settle(now time.Time) {
	var word ServiceNode // the node with the newest pause or unpause
	for _, n := range s.Nodes {
		if n.PauseSeq > word.PauseSeq || n.PauseSeq == word.PauseSeq && n.PausedBy.Seq == n.PauseSeq {
			word = n
		}
	}
	if word.PauseSeq > 0 && *word.Paused && word.PausedBy.Seq == word.PauseSeq {
		s.PausedBy = &word.PausedBy
	}
	for i, n := range s.Nodes {
		if n.Paused != nil && n.PauseSeq < word.PauseSeq {
			s.Nodes[i].Paused = word.Paused
		}
		if n.Rule != nil && (s.Rule == nil || n.Rule.Compare(*s.Rule) > 0) {
			s.Rule = n.Rule
		}
	}
	names := map[int32]string{}
	for _, n := range s.Nodes {
		names[int32(n.ID)] = n.Name
	}
	for _, n := range s.Nodes {
		if h := n.Handover; s.Rule != nil && int32(n.ID) == s.Rule.Primary && h.Requested(now, *s.Rule) {
			s.Scheduled = &Scheduled{From: n.Name, To: names[h.Target], At: h.Start}
		}
	}
}

// Find says what keeps the cluster from failing over by itself. automatic reports whether our own
// configuration asks for failover. Where it does not, a node without a daemon lacks nothing but its lag
// samples, which the table shows.
func (s ServiceStatus) Find(automatic bool) (found Findings) {
	names := map[registry.FailoverMode][]string{}
	var paused, foreign []string
	var recs []registry.Record
	for _, n := range s.Nodes {
		recs = append(recs, n.Record)
	}
	for _, r := range recs {
		if problem := registry.NameProblem(r, recs); problem != "" {
			found.Add(Name, r.ID, "%s", problem)
		}
	}
	for _, n := range s.Nodes {
		if n.Paused != nil && *n.Paused {
			paused = append(paused, n.Name)
		}
		if n.Foreign != nil {
			foreign = append(foreign, n.Name)
		}
		if n.Monitor != nil {
			names[n.Monitor.Mode] = append(names[n.Monitor.Mode], n.Name)
		}
	}
	manual, auto := names[registry.FailoverManual], names[registry.FailoverAutomatic]
	automatic = automatic || len(auto) > 0
	for _, n := range s.Nodes {
		n.findings(automatic, s.Rule != nil && s.Rule.Quorum, &found)
		if automatic && n.Monitored != nil && n.Monitor == nil && n.Foreign == nil {
			found.Add(DaemonMissing, n.ID, "repmgrd is not running on %s", n.Record)
		}
	}
	if len(paused) > 0 && automatic {
		by := ""
		if s.PausedBy != nil {
			by = wording.PausedBy(s.PausedBy.Since, s.PausedBy.By)
		}
		found.Add(Paused, 0, "failover is paused on %s%s; to end that: repmgr service unpause", strings.Join(paused, ", "), by)
	}
	if len(manual) > 0 && len(auto) > 0 {
		found.Add(MixedFailover, 0, "failover is automatic on %s, manual on %s", strings.Join(auto, ", "), strings.Join(manual, ", "))
	}
	if len(foreign) > 0 && len(manual)+len(auto) > 0 {
		found.Add(ForeignDaemon, 0, "a repmgrd of repmgr 5 runs on %s, ours on %s: ours only watch, until those are stopped", strings.Join(foreign, ", "), strings.Join(append(manual, auto...), ", "))
	}
	if issue := s.voteIssue(); issue != "" && automatic {
		found.Add(CanNotFailOver, 0, "%s", issue)
	}
	return found
}

// findings are what is wrong with one node's part in a failover. Where there is no automatic
// failover, it does not matter that this login may not read votes.
func (n ServiceNode) findings(automatic, quorum bool, found *Findings) {
	if n.ServiceError != "" && (automatic || n.Monitored == nil) {
		found.Add(DaemonUnknown, n.ID, "what runs on %s is not all known: %s", n.Record, n.ServiceError)
	}
	if n.NoPledge != "" && automatic {
		found.Add(NoPledge, n.ID, "%s could not pledge itself in an election: %s", n.Record, n.NoPledge)
	}
	if len(n.SecondDaemons) > 0 {
		found.Add(SecondDaemon, n.ID, "%s has more than one repmgrd: stop those with PID %s, which change nothing while another one runs", n.Record, strings.Trim(fmt.Sprint(n.SecondDaemons), "[]"))
	}
	m := n.Monitor
	if m == nil {
		return
	}
	if m.Mode == registry.FailoverAutomatic && n.Role != registry.RoleWitness {
		switch {
		case m.CanFence == nil:
			found.Add(CanNotFence, n.ID, "repmgrd on %s has not shown that it can stop its server: it has just started, or is of an older version", n.Record)
		case !*m.CanFence && quorum:
			found.Add(CanNotFence, n.ID, "repmgrd on %s can not stop its server: as a primary that is cut off it would go on answering, though its commits wait: %s", n.Record, m.Unable)
		case !*m.CanFence:
			found.Add(CanNotFence, n.ID, "repmgrd on %s can not stop its server, so with synchronous_mode=off nobody is promoted in its place unless it is known to be dead: %s", n.Record, m.Unable)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.NoStream)) {
		found.Add(NoStream, n.ID, "%s could not stream from the node with ID %s, if that were the primary: %s", n.Record, id, m.NoStream[id])
	}
	if text := m.Lease(); text != "" {
		found.Add(LeaseRunsOut, n.ID, "%s %s", n.Record, text)
	}
	if m.Error != "" {
		found.Add(DaemonTrouble, n.ID, "repmgrd on %s: %s", n.Record, m.Error)
	}
	if m.Rejected != "" {
		found.Add(DaemonTrouble, n.ID, "repmgrd on %s has rejected the configuration in its file, goes on with the former one, and would not start anew; mend the file, and send it HUP: %s", n.Record, m.Rejected)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Routers)) {
		found.Add(RouterFailing, n.ID, "repmgrd on %s: %s does not take what it is told, so its clients may be led to a node that is not the primary: %s", n.Record, name, m.Routers[name])
	}
	if m.Age > registry.PresenceSilent.Seconds() {
		found.Add(DaemonSilent, n.ID, "repmgrd on %s has said nothing for %.0f s", n.Record, m.Age)
	}
}

// voteIssue is the reason why the loss of the primary could not lead to a failover.
func (s ServiceStatus) voteIssue() string {
	var rule election.Rule
	if s.Rule != nil {
		rule = *s.Rule
	}
	var others, answering []int32
	candidates := 0
	if slices.Contains(rule.Voters, election.Arbiter) {
		others, answering = append(others, election.Arbiter), append(answering, election.Arbiter)
	}
	for _, n := range s.Nodes {
		if s.Rule == nil {
			rule.Voters = append(rule.Voters, int32(n.ID))
			if n.Role == registry.RolePrimary && n.Active {
				rule.Primary = int32(n.ID)
			}
		}
	}
	for _, n := range s.Nodes {
		if int32(n.ID) == rule.Primary {
			continue
		}
		others = append(others, int32(n.ID))
		if n.Reach == postgres.ReachOK {
			answering = append(answering, int32(n.ID))
		}
		if n.Role != registry.RoleWitness {
			candidates++
		}
	}
	return voteIssue(rule, others, answering, candidates)
}

// RuleText is the rule in one line, such as "term 3: primary node2; votes 3;
// commits wait for 1 of node1, node3". Empty: there is no rule.
func (s ServiceStatus) RuleText() string {
	if s.Rule == nil {
		return ""
	}
	names := map[int32]string{}
	for _, n := range s.Nodes {
		names[int32(n.ID)] = n.Name
	}
	return RuleText(*s.Rule, string(s.Durability), names)
}
