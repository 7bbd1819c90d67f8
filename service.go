package repmgr

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// PauseOptions are the choices of [Cluster.Pause] and [Cluster.Unpause].
type PauseOptions struct {
	DryRun bool   // only ask every node whether it could be paused or unpaused
	By     string // who pauses, for those who look at it later. Defaults to the user and the host of this process.
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
		by := election.Pause{Seq: seq, Since: time.Now().UTC(), By: cmp.Or(o.By, registry.Caller())}
		each(func(i int, n *registry.Server) error { return n.SetPaused(ctx, probes[i].Record.ID, paused, by) })
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

// ServiceStatus is every registered node with what its Monitor says, and the rule that is in force.
type ServiceStatus = report.ServiceStatus

// ServiceNode is a registered node with what was seen of its Monitor.
type ServiceNode = report.ServiceNode

// ScheduledSwitchover is a switchover that was asked for, and has not begun.
type ScheduledSwitchover = report.Scheduled

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
	st.Settle(time.Now())
	found := st.Find(c.cfg.Failover == FailoverAutomatic)
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
	if err := n.Conn.QueryRow(ctx, fmt.Sprintf(serviceSQL, from)).Scan(&says, &s.SecondDaemons, &rule); err != nil {
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
	s.Paused, s.PauseSeq, s.PausedBy = &paused, seq, registry.ParsePausedBy(set[registry.PausedBySetting])
	s.Handover = registry.ParseHandover(set[registry.HandoverSetting])
	if b.Term > 0 {
		s.Ballot = &b
	}
	return nil
}

// durability is the configured durability, where any commit is synchronous.
func (c *Cluster) durability() Durability {
	if c.cfg.SynchronousMode != SynchronousQuorum {
		return ""
	}
	return c.cfg.Durability
}

// ForeignDaemon is a repmgrd of repmgr 5, the version written in C, as its extension shows it
// in the shared memory of the server that it watches.
type ForeignDaemon = registry.ForeignDaemon
