package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/explain"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// ExplainOptions are the choices of [Cluster.Explain].
type ExplainOptions struct {
	Lost NodeID // the node that dies in the question. Defaults to the primary.
}

// Explanation is what would happen if a node died now, and why.
type Explanation = explain.Explanation

// Votes are counted as the rule weighs them: an etcd may have several.
type Votes = explain.Votes

// Voter is a node, or the etcd, and how it answers.
type Voter = explain.Voter

// ExpectedLoss is the acknowledged work that would be gone.
type ExpectedLoss = explain.ExpectedLoss

// ExpectedOutage is the time without a primary, as the sum of its parts.
type ExpectedOutage = explain.ExpectedOutage

// OutagePart is one of them, and where the number comes from.
type OutagePart = explain.OutagePart

// Blocker is something that keeps the cluster from failing over by itself.
type Blocker = explain.Blocker

// Explain looks once at all voters and says what would happen if a node died
// now: the same functions that decide an election give the answer. It changes
// nothing. It takes about as long as the slowest voter: with one that is silent
// some silence_timeout, and no longer than twice that and three connect_timeouts.
// Settings such as failovers_per_hour are those of the configuration of c.
func (c *Cluster) Explain(ctx context.Context, o ExplainOptions) (Explanation, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return Explanation{}, err
	}
	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(recs)
	w.AwaitVerdict(ctx, c.policy())
	peers := w.Refresh(ctx, c.cfg.SilenceTimeout/4) // once more, so that all positions are from one moment
	if err := ctx.Err(); err != nil {
		return Explanation{}, context.Cause(ctx)
	}
	past, _ := c.failovers(ctx, recs, 0) // without them, typical times are used
	at := time.Now()
	return explain.Answer(explain.Question{
		At: at, Nodes: recs, Peers: peers, Past: past, Lost: o.Lost, Policy: c.policy(), MostPerHour: c.cfg.FailoversPerHour, Durability: c.durability(),
		Stuck: c.stuck(ctx, recs, peers), User: c.userOf,
	})
}

// stuck are the standbys that answer but receive nothing, because the WAL that they need is
// gone.
func (c *Cluster) stuck(ctx context.Context, recs []Record, peers []election.Peer) (all []explain.Stuck) {
	var up []Record
	alone := false
	for _, r := range recs {
		if p := voters.PeerOf(peers, int32(r.ID)); p.Answer == election.Answers {
			up = append(up, r)
			alone = alone || p.Running == election.Standby && !p.Receiving
		}
	}
	if !alone {
		return nil
	}
	probes := c.survey(ctx, up)
	c.seekStuck(ctx, probes)
	for _, p := range probes {
		if code, why, remedy := report.Stuck(p.Look, looks(probes)); code != "" {
			all = append(all, explain.Stuck{ID: p.Record.ID, Why: why, Lost: p.Lost, Remedy: remedy})
		}
	}
	return all
}

// userOf is the user that this process logs in as to a node.
func (c *Cluster) userOf(r Record) string {
	cfg, err := postgres.ConnConfig(c.dialInfo(r))
	if err != nil {
		return ""
	}
	return cfg.User
}

// FailoverRecord is a failover that took place, as repmgr.failovers keeps it.
type FailoverRecord = registry.FailoverRecord

// Failovers are the failovers that took place, the newest first, at most limit of them. limit
// 0: all. Every node that answers is asked, and the node that knows most is believed.
func (c *Cluster) Failovers(ctx context.Context, limit int) ([]FailoverRecord, error) {
	if limit < 0 {
		return nil, kind(ErrConfig, "limit %d: must be 0 or more", limit)
	}
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return nil, err
	}
	return c.failovers(ctx, recs, limit)
}

func (c *Cluster) failovers(ctx context.Context, recs []Record, limit int) ([]FailoverRecord, error) {
	best := []FailoverRecord{}
	var errs []error
	for _, r := range askAll(ctx, c, recs, func(ctx context.Context, n *registry.Server) ([]FailoverRecord, error) {
		return n.Failovers(ctx, limit)
	}) {
		switch {
		case r.err != nil:
			errs = append(errs, r.err)
		case len(r.said) > 0 && (len(best) == 0 || r.said[0].Term > best[0].Term || r.said[0].Term == best[0].Term && len(r.said) > len(best)):
			best = r.said
		}
	}
	if len(errs) == len(recs) {
		return nil, errors.Join(errs...)
	}
	return best, nil
}

// reply is the answer of one node.
type reply[T any] struct {
	record Record
	said   T
	err    error
}

// askAll asks all nodes at the same time, each within twice the connect timeout. The replies
// are in the order of recs.
func askAll[T any](ctx context.Context, c *Cluster, recs []Record, ask func(context.Context, *registry.Server) (T, error)) []reply[T] {
	limit := 2 * postgres.DefaultConnectTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	replies := make([]reply[T], len(recs))
	var wg sync.WaitGroup
	for i, r := range recs {
		replies[i].record = r
		wg.Go(func() {
			n, err := c.connectTo(ctx, r)
			if err == nil {
				defer n.Close()
				if err = n.NeedNodes(ctx); err == nil {
					replies[i].said, err = ask(ctx, n)
				}
			}
			replies[i].err = err
		})
	}
	wg.Wait()
	return replies
}

// Reasoning is the newest decision of the cluster, and what every Monitor says now.
type Reasoning struct {
	At       time.Time       `json:"at"`
	Rule     election.Rule   `json:"rule,omitzero"` // the newest; left out: none was ever written
	Failover *FailoverRecord `json:"failover"`      // the newest; nil: there never was one
	Event    *Event          `json:"event"`         // a refusal, an abort, a fence or a promotion by hand since then; nil: none is recorded
	Monitors []MonitorWord   `json:"monitors"`
}

// MonitorWord is what the Monitor of a node says of itself.
type MonitorWord struct {
	ID      NodeID                  `json:"node_id"`
	Name    string                  `json:"node_name"`
	Monitor *registry.Announcement  `json:"monitor"`         // nil: none runs, or not known
	Foreign *registry.ForeignDaemon `json:"repmgr5_daemon"`  // a daemon of repmgr 5 that runs there; nil: none does
	Error   string                  `json:"error,omitempty"` // why it is not known
}

// Why explains the newest decision: the newest failover, or the refusal, the abort or the fence
// that came after it, and what each Monitor does now. A refusal is in the table of events only
// where there was a primary to write it; the Monitor that refuses also announces it the whole
// time.
func (c *Cluster) Why(ctx context.Context) (Reasoning, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return Reasoning{}, err
	}
	r := Reasoning{At: time.Now(), Monitors: []MonitorWord{}}
	var errs []error
	for _, reply := range askAll(ctx, c, recs, func(ctx context.Context, n *registry.Server) (nodeAccount, error) { return readAccount(ctx, n) }) {
		word := MonitorWord{ID: reply.record.ID, Name: reply.record.Name}
		if reply.err != nil {
			word.Error = reply.err.Error()
			errs = append(errs, reply.err)
		} else {
			word.Monitor, word.Foreign = reply.said.monitor(reply.record.ID), reply.said.foreign
			r.takeNewer(reply.said)
		}
		r.Monitors = append(r.Monitors, word)
	}
	if len(errs) == len(recs) {
		return Reasoning{}, errors.Join(errs...)
	}
	if r.Event != nil && r.Failover != nil && !r.Event.At.After(registry.EndOf(*r.Failover)) {
		r.Event = nil
	}
	return r, nil
}

// nodeAccount is what one node knows of the decisions.
type nodeAccount struct {
	rules     []election.Rule
	failovers []FailoverRecord
	events    []Event
	monitors  map[NodeID]Announcement
	foreign   *registry.ForeignDaemon
}

func (a nodeAccount) monitor(id NodeID) *registry.Announcement {
	if p, ok := a.monitors[id]; ok {
		return &p
	}
	return nil
}

// decisions are the types of events that report a decision.
var decisions = []string{string(EventFailoverRefused), string(EventFailoverAbort), string(EventFence), string(EventStandbyPromote)}

func readAccount(ctx context.Context, n *registry.Server) (a nodeAccount, err error) {
	if a.rules, err = n.Rules(ctx); err != nil {
		return a, err
	}
	if a.failovers, err = n.Failovers(ctx, 1); err != nil {
		return a, err
	}
	if a.events, err = n.Events(ctx, registry.EventFilter{Types: decisions, Limit: 1}); err != nil {
		return a, err
	}
	if a.foreign, err = n.ForeignDaemon(ctx); err != nil {
		return a, err
	}
	a.monitors, err = registry.ReadAnnouncements(ctx, n)
	return a, err
}

// takeNewer adds what is newer than what other nodes have said.
func (r *Reasoning) takeNewer(a nodeAccount) {
	if len(a.rules) > 0 && a.rules[0].Compare(r.Rule) > 0 {
		r.Rule = a.rules[0]
	}
	if len(a.failovers) > 0 && (r.Failover == nil || a.failovers[0].Term > r.Failover.Term) {
		r.Failover = &a.failovers[0]
	}
	if len(a.events) > 0 && (r.Event == nil || a.events[0].At.After(r.Event.At)) {
		r.Event = &a.events[0]
	}
}

// String is the reasoning in plain sentences, on several lines.
func (r Reasoning) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if e := r.Event; e != nil {
		say("%s, %s on %s: %s", e.At.Local().Format(time.DateTime), decisionText(*e), registry.NameOf(e.NodeID, e.Node), e.Details)
		if r.Failover != nil {
			say("Before that:")
		}
	}
	switch {
	case r.Failover != nil:
		b.WriteString(r.Failover.String())
	case r.Event == nil:
		say("%sNo failover is recorded, no promotion, and no refusal.", r.term())
	}
	say("")
	say("What each repmgrd says now:")
	for _, m := range r.Monitors {
		say("  %s: %s", m.Name, m.text(r.At))
	}
	return b.String()
}

// term is the beginning of a sentence with the term, where there is one.
func (r Reasoning) term() string {
	if !r.Rule.Known() {
		return ""
	}
	return fmt.Sprintf("The cluster is in term %d. ", r.Rule.Term)
}

func decisionText(e Event) string {
	switch {
	case e.Type == EventStandbyPromote && e.Success:
		return "an operator promoted it: standby promote"
	case e.Type == EventStandbyPromote:
		return "standby promote did not work"
	case e.Type == EventFailoverRefused:
		return "failover was refused"
	case e.Type == EventFailoverAbort:
		return "an election was given up"
	case e.Success:
		return "the server was stopped, so that there is no second primary,"
	default:
		return "the server should have been stopped, and was not,"
	}
}

func (m MonitorWord) text(now time.Time) string {
	switch {
	case m.Error != "":
		return "not known: " + m.Error
	case m.Monitor == nil && m.Foreign != nil:
		return fmt.Sprintf("a repmgrd of repmgr 5 runs there, with PID %d", m.Foreign.PID)
	case m.Monitor == nil:
		return "no repmgrd runs there"
	}
	p := m.Monitor
	text := fmt.Sprintf("%s: %s", cmp.Or(p.Phase, "it runs"), p.Reason)
	if !p.Since.IsZero() {
		text += fmt.Sprintf(" (for %s)", wording.Duration(max(0, now.Sub(p.Since))))
	}
	if p.Mode == FailoverManual {
		text += "; failover=manual"
	}
	if p.Error != "" {
		text += "; trouble: " + p.Error
	}
	return text
}

// WhyNotAnswer says why a node is not the primary, or would not become it.
type WhyNotAnswer = explain.WhyNotAnswer

// WhyNot says why a node is not the primary now, and would not be the next one.
// It takes as long as [Cluster.Explain].
func (c *Cluster) WhyNot(ctx context.Context, id NodeID) (WhyNotAnswer, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return WhyNotAnswer{}, err
	}
	node, ok := registry.ByID(recs, id)
	if !ok {
		return WhyNotAnswer{}, registry.Unknown(recs, id, "")
	}
	e, err := c.Explain(ctx, ExplainOptions{})
	if err != nil {
		return WhyNotAnswer{}, err
	}
	past, _ := c.failovers(ctx, recs, 1) // without it, the answer has less to say
	return explain.WhyNot(e, node, past), nil
}

// Doctor asks whether a failover, a switchover, a rejoin or a restart would work now, with each node as the next
// primary. It asks all nodes at once, and changes nothing. A finding that a waiver names is in the report, and
// does not count.
func (c *Cluster) Doctor(ctx context.Context, waivers ...doctor.Waiver) (doctor.Report, error) {
	st, probes, err := c.serviceStatus(ctx, askServer)
	if err != nil {
		return doctor.Report{}, err
	}
	recs := make([]Record, len(probes))
	for i, p := range probes {
		recs[i] = p.Record
	}
	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(recs)
	w.AwaitAnswers(ctx)
	peers := w.Peers()
	f := doctor.Facts{
		Now: time.Now(), Rule: voters.NewestRule(peers), Findings: st.Findings, Waivers: waivers,
		Automatic: c.cfg.Failover == FailoverAutomatic, Required: c.cfg.Durability == DurabilityRequired,
	}
	past, _ := c.failovers(ctx, recs, 0) // without them, none is known
	f.TooMany = explain.TooMany(f.Now, past, c.cfg.FailoversPerHour)
	for _, p := range probes {
		n := doctor.Node{Record: p.Record, Answer: p.Err == nil && p.unread == nil, Failed: p.unread, Status: p.Status, Server: p.server, Peer: voters.PeerOf(peers, int32(p.Record.ID))}
		if p.Record.ID == c.cfg.NodeID && n.Answer && p.Status.Settings.DataDirectory != "" {
			n.Server.Free = doctor.FreeOn(filepath.Join(p.Status.Settings.DataDirectory, "pg_wal"))
		}
		f.Automatic = f.Automatic || p.service.Monitor != nil && p.service.Monitor.Mode == FailoverAutomatic
		f.Nodes = append(f.Nodes, n)
	}
	return doctor.Examine(f), nil
}

// askServer asks for what the checks of [Cluster.Doctor] need.
func askServer(ctx context.Context, n *registry.Server, p *probe) {
	p.server, p.unread = doctor.Read(ctx, n, p.Status.VersionNum)
}
