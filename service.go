package repmgr

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// PauseOptions are the choices of [Cluster.Pause] and [Cluster.Unpause].
type PauseOptions struct {
	DryRun bool // only ask every node whether it could be paused or unpaused
}

// PauseResult says what became of each registered node, in the order of their ids.
type PauseResult struct {
	Nodes  []PausedNode `json:"nodes"`
	Paused bool         `json:"paused"` // what was asked for
	DryRun bool         `json:"dry_run,omitempty"`

	Warning string `json:"warning,omitempty"` // what is not guaranteed because not enough nodes were reached
}

// warn says what the nodes that were not reached mean under the newest rule.
func (res *PauseResult) warn(r election.Rule, seq int64) {
	reached := map[NodeID]string{}
	for _, n := range res.Nodes {
		if n.Error == "" {
			reached[n.ID] = n.Name
		}
	}
	if !res.DryRun && len(reached) < len(res.Nodes) {
		res.Warning = report.PauseWarning(r, seq, res.Paused, reached, len(res.Nodes))
	}
}

// Announcement is what a Monitor says of itself to everybody who can read its server.
type Announcement = registry.Announcement

// PausedNode is a node, and the reason where it could not be paused or unpaused.
type PausedNode struct {
	ID    NodeID `json:"node_id"`
	Name  string `json:"node_name"`
	Error string `json:"error,omitempty"` // empty: done
}

// Pause keeps all Monitors from acting by themselves until [Cluster.Unpause]: there is no
// failover and no following, but they go on watching. It sets a flag on every registered node
// at once, which survives restarts and needs no running Monitor. Where some nodes fail, the
// others stay changed: the error joins all failures, and the result lists them. The newest
// pause or unpause counts for all nodes, so a node that was down learns of it when it is back.
func (c *Cluster) Pause(ctx context.Context, o PauseOptions) (PauseResult, error) {
	return c.setPaused(ctx, true, o)
}

// Unpause ends what [Cluster.Pause] began, in the same way.
func (c *Cluster) Unpause(ctx context.Context, o PauseOptions) (PauseResult, error) {
	return c.setPaused(ctx, false, o)
}

func (c *Cluster) setPaused(ctx context.Context, paused bool, o PauseOptions) (PauseResult, error) {
	res := PauseResult{Paused: paused, DryRun: o.DryRun}
	probes, err := c.probeNodes(ctx)
	if err != nil {
		return res, err
	}
	errs, seqs, rules := make([]error, len(probes)), make([]int64, len(probes)), make([]election.Rule, len(probes))
	each := func(f func(i int, n *registry.Server) error) {
		var wg sync.WaitGroup
		for i, p := range probes {
			if errs[i] == nil {
				wg.Go(func() { errs[i] = c.withNode(ctx, p, func(n *registry.Server) error { return f(i, n) }) })
			}
		}
		wg.Wait()
	}
	each(func(i int, n *registry.Server) (err error) {
		if err := n.MayAlterSystem(ctx, []string{registry.PausedSetting}); err != nil {
			return err
		}
		if all, err := n.Rules(ctx); err == nil && len(all) > 0 { // without a rule there is no failover
			rules[i] = all[0]
		}
		seqs[i], err = n.PauseSeq(ctx, probes[i].Record.ID)
		return err
	})
	seq := slices.Max(seqs) + 1
	if !o.DryRun {
		each(func(i int, n *registry.Server) error { return n.SetPaused(ctx, probes[i].Record.ID, paused, seq) })
	}
	for i, p := range probes {
		n := PausedNode{ID: p.Record.ID, Name: p.Record.Name}
		if errs[i] != nil {
			n.Error = errs[i].Error()
		}
		res.Nodes = append(res.Nodes, n)
	}
	res.warn(slices.MaxFunc(rules, election.Rule.Compare), seq)
	return res, errors.Join(errs...)
}

// withNode runs f over a new connection to a node that was reached before.
func (c *Cluster) withNode(ctx context.Context, p probe, f func(*registry.Server) error) error {
	if p.Err != nil {
		return p.Err
	}
	n, err := c.connectTo(ctx, p.Record)
	if err != nil {
		return err
	}
	defer n.Close()
	return f(n)
}

// ServiceStatus is every registered node with what its Monitor says, and the
// rule that is in force.
type ServiceStatus struct {
	Nodes    []ServiceNode  `json:"nodes"`
	Rule     *election.Rule `json:"rule"`     // the newest that any node has; nil: none was ever written
	Issues   []string       `json:"issues"`   // empty: all is well
	Findings []Finding      `json:"findings"` // the issues, each with a code that stays the same

	Durability Durability `json:"durability,omitempty"` // as our own configuration has it; empty: synchronous_mode is off
}

// OnePrimary reports whether exactly one node is the primary. One that lives and rejects the login is; one that was deposed is not.
func (s ServiceStatus) OnePrimary() bool {
	return !report.Findings(s.Findings).Has(FindingNoPrimary, FindingTwoPrimaries, FindingDeposed)
}

// ServiceNode is a registered node with what was seen of its Monitor.
type ServiceNode struct {
	NodeView
	Foreign   *ForeignDaemon `json:"repmgr5_daemon"`      // a daemon of repmgr 5 that runs there; nil: none does
	Monitored *bool          `json:"monitored"`           // whether a Monitor runs there; nil: not known
	Monitor   *Announcement  `json:"monitor"`             // what it says; nil: none runs, or not known
	Paused    *bool          `json:"paused"`              // nil: not known
	Ballot    *ballot.Ballot `json:"ballot"`              // the vote in its server, which may be another node's that a clone brought; nil: none, or not known
	Rule      *election.Rule `json:"rule"`                // the newest that it has; nil: none, or not known
	NoPledge  string         `json:"no_pledge,omitempty"` // why it could not pledge itself in an election; empty: it could, or not known

	ServiceError string `json:"service_error,omitempty"` // why not all of it could be read

	pauseSeq      int64
	secondDaemons []int32 // the process IDs of further Monitors of this node
}

// ServiceStatus asks all registered nodes at once for what runs there. It takes no longer than
// [Cluster.Status]. Each node's answers are read at once and not after a slower node's, because
// a lease may be over by then.
func (c *Cluster) ServiceStatus(ctx context.Context) (ServiceStatus, error) {
	st, _, err := c.serviceStatus(ctx)
	return st, err
}

func (c *Cluster) serviceStatus(ctx context.Context, ask ...followUp) (ServiceStatus, []probe, error) {
	probes, err := c.probeNodes(ctx, append(ask, askService)...)
	if err != nil {
		return ServiceStatus{}, nil, err
	}
	seen := report.Compare(looks(probes))
	st := ServiceStatus{Nodes: make([]ServiceNode, len(probes)), Issues: seen.Issues, Findings: seen.Findings, Durability: c.durability()}
	for i, p := range probes {
		st.Nodes[i] = p.service
		st.Nodes[i].NodeView, st.Nodes[i].Foreign = seen.Nodes[i], p.foreign
	}
	var word ServiceNode // the node with the newest pause or unpause
	for _, n := range st.Nodes {
		if n.pauseSeq > word.pauseSeq {
			word = n
		}
	}
	for i, n := range st.Nodes {
		if n.Paused != nil && n.pauseSeq < word.pauseSeq {
			st.Nodes[i].Paused = word.Paused
		}
		if n.Rule != nil && (st.Rule == nil || n.Rule.Compare(*st.Rule) > 0) {
			st.Rule = n.Rule
		}
	}
	found := st.serviceFindings(c.cfg.Failover == FailoverAutomatic)
	st.Issues, st.Findings = append(st.Issues, found.Texts()...), append(st.Findings, found...)
	return st, probes, nil
}

// Matrix says which nodes reach which, as their Monitors see it.
type Matrix = report.Matrix

// Contact says whether one node reaches another.
type Contact = report.Contact

const (
	ContactYes     = report.ContactYes
	ContactNo      = report.ContactNo
	ContactUnknown = report.ContactUnknown // its server does not answer here, or no Monitor says so
)

// Matrix asks all registered nodes at once which nodes their Monitors reach. It takes no longer than
// [Cluster.Status]. Nothing is known of a node that does not answer here, or has no Monitor with
// FailoverAutomatic.
func (c *Cluster) Matrix(ctx context.Context) (Matrix, error) {
	probes, err := c.probeNodes(ctx, askService)
	if err != nil {
		return Matrix{}, err
	}
	nodes := make([]report.Watcher, len(probes))
	for i, p := range probes {
		nodes[i] = report.Watcher{Record: p.Record, Answers: p.Err == nil, Monitor: p.service.Monitor}
	}
	return report.MatrixOf(nodes), nil
}

const serviceSQL = `SELECT ` + registry.AnnouncementsSQL + `, ` + registry.WaitingMonitorsSQL + `, %s::text`

const newestRuleSQL = `(SELECT pg_catalog.row_to_json(r) FROM (SELECT * FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1) r)`

// askService reads what runs at a node. Where a part can not be read, the rest is filled in.
func askService(ctx context.Context, n *registry.Server, p *probe) {
	if err := readService(ctx, n, p.Record, &p.service); err != nil {
		p.service.ServiceError = err.Error()
	}
}

func readService(ctx context.Context, n *registry.Server, r Record, s *ServiceNode) error {
	ours, err := n.HasSchema(ctx)
	if err != nil {
		return err
	}
	from := "NULL"
	if ours {
		from = newestRuleSQL
	}
	var says string
	var rule *string
	if err := n.Conn.QueryRow(ctx, fmt.Sprintf(serviceSQL, from)).Scan(&says, &s.secondDaemons, &rule); err != nil {
		return n.QueryError("read the monitor", err)
	}
	all, err := registry.ParseAnnouncements(says)
	if err != nil {
		return err
	}
	p, runs := all[r.ID]
	if s.Monitored = &runs; runs {
		s.Monitor = &p
	}
	if rule != nil {
		s.Rule = new(election.Rule)
		if err := json.Unmarshal([]byte(*rule), s.Rule); err != nil {
			return fmt.Errorf("read the rule of %s: %w", n.Name, err)
		}
	}
	return askVote(ctx, n, r.ID, s)
}

// askVote reads our settings from the file of ALTER SYSTEM, and why that server could not give
// a pledge.
func askVote(ctx context.Context, n *registry.Server, id NodeID, s *ServiceNode) error {
	var text, fault string
	err := n.Conn.QueryRow(ctx, `SELECT `+ballot.SettingsSQL+`, coalesce(`+ballot.FaultSQL+`, '')`).Scan(&text, &fault)
	if postgres.SQLState(err) == postgres.CodeInsufficientPrivilege {
		if lacks := n.FailoverPrivileges(ctx); lacks != nil {
			return lacks
		}
	}
	if err != nil && !ballot.Unreadable(err) {
		return n.QueryError("read "+registry.PausedSetting, err)
	}
	set, b, unable := voters.ReadVote(text, err)
	if s.NoPledge = cmp.Or(unable, fault); unable != "" {
		return nil
	}
	paused, seq := registry.ParsePaused(set[registry.PausedSetting], id)
	s.Paused, s.pauseSeq = &paused, seq
	if b.Term > 0 {
		s.Ballot = &b
	}
	return nil
}

// serviceFindings are what keeps the cluster from failing over by itself. automatic reports
// whether our own configuration asks for failover. Where it does not, a node without a daemon
// lacks nothing but its lag samples, which the table shows.
func (s ServiceStatus) serviceFindings(automatic bool) (found report.Findings) {
	names := map[FailoverMode][]string{}
	var paused, foreign []string
	var recs []Record
	for _, n := range s.Nodes {
		recs = append(recs, n.Record)
	}
	for _, r := range recs {
		if problem := registry.NameProblem(r, recs); problem != "" {
			found.Add(FindingName, r.ID, "%s", problem)
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
	manual, auto := names[FailoverManual], names[FailoverAutomatic]
	automatic = automatic || len(auto) > 0
	for _, n := range s.Nodes {
		n.findings(automatic, s.Rule != nil && s.Rule.Quorum, &found)
		if automatic && n.Monitored != nil && n.Monitor == nil && n.Foreign == nil {
			found.Add(FindingDaemonMissing, n.ID, "repmgrd is not running on %s", n.Record)
		}
	}
	if len(paused) > 0 && automatic {
		found.Add(FindingPaused, 0, "failover is paused on %s; to end that: repmgr service unpause", strings.Join(paused, ", "))
	}
	if len(manual) > 0 && len(auto) > 0 {
		found.Add(FindingMixedFailover, 0, "failover is automatic on %s, manual on %s", strings.Join(auto, ", "), strings.Join(manual, ", "))
	}
	if len(foreign) > 0 && len(manual)+len(auto) > 0 {
		found.Add(FindingForeignDaemon, 0, "a repmgrd of repmgr 5 runs on %s, ours on %s: ours only watch, until those are stopped", strings.Join(foreign, ", "), strings.Join(append(manual, auto...), ", "))
	}
	if issue := s.voteIssue(); issue != "" && automatic {
		found.Add(FindingCanNotFailOver, 0, "%s", issue)
	}
	return found
}

// findings are what is wrong with one node's part in a failover. Where there is no automatic
// failover, it does not matter that this login may not read votes.
func (n ServiceNode) findings(automatic, quorum bool, found *report.Findings) {
	if n.ServiceError != "" && (automatic || n.Monitored == nil) {
		found.Add(FindingDaemonUnknown, n.ID, "what runs on %s is not all known: %s", n.Record, n.ServiceError)
	}
	if n.NoPledge != "" && automatic {
		found.Add(FindingNoPledge, n.ID, "%s could not pledge itself in an election: %s", n.Record, n.NoPledge)
	}
	if len(n.secondDaemons) > 0 {
		found.Add(FindingSecondDaemon, n.ID, "%s has more than one repmgrd: stop those with PID %s, which change nothing while another one runs", n.Record, strings.Trim(fmt.Sprint(n.secondDaemons), "[]"))
	}
	m := n.Monitor
	if m == nil {
		return
	}
	if m.Mode == FailoverAutomatic && n.Role != RoleWitness {
		switch {
		case m.CanFence == nil:
			found.Add(FindingCanNotFence, n.ID, "repmgrd on %s has not shown that it can stop its server: it has just started, or is of an older version", n.Record)
		case !*m.CanFence && quorum:
			found.Add(FindingCanNotFence, n.ID, "repmgrd on %s can not stop its server: as a primary that is cut off it would go on answering, though its commits wait: %s", n.Record, m.Unable)
		case !*m.CanFence:
			found.Add(FindingCanNotFence, n.ID, "repmgrd on %s can not stop its server, so with synchronous_mode=off nobody is promoted in its place unless it is known to be dead: %s", n.Record, m.Unable)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.NoStream)) {
		found.Add(FindingNoStream, n.ID, "%s could not stream from the node with ID %s, if that were the primary: %s", n.Record, id, m.NoStream[id])
	}
	if text := m.Lease(); text != "" {
		found.Add(FindingLeaseRunsOut, n.ID, "%s %s", n.Record, text)
	}
	if m.Error != "" {
		found.Add(FindingDaemonTrouble, n.ID, "repmgrd on %s: %s", n.Record, m.Error)
	}
	if m.Rejected != "" {
		found.Add(FindingDaemonTrouble, n.ID, "repmgrd on %s has rejected the configuration in its file, goes on with the former one, and would not start anew; mend the file, and send it HUP: %s", n.Record, m.Rejected)
	}
	if m.Age > registry.PresenceSilent.Seconds() {
		found.Add(FindingDaemonSilent, n.ID, "repmgrd on %s has said nothing for %.0f s", n.Record, m.Age)
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
			if n.Role == RolePrimary && n.Active {
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
		if n.Role != RoleWitness {
			candidates++
		}
	}
	return report.VoteIssue(rule, others, answering, candidates)
}

// durability is the configured durability, where any commit is synchronous.
func (c *Cluster) durability() Durability {
	if c.cfg.SynchronousMode != SynchronousQuorum {
		return ""
	}
	return c.cfg.Durability
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
	return report.RuleText(*s.Rule, string(s.Durability), names)
}

// ForeignDaemon is a repmgrd of repmgr 5, the version written in C, as its extension shows it
// in the shared memory of the server that it watches.
type ForeignDaemon = registry.ForeignDaemon
