package repmgr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
	"github.com/pgrepmgr/repmgr/wal"
)

// PromoteOptions are the choices of [Cluster.Promote].
type PromoteOptions struct {
	DryRun         bool
	Force          bool // promote although a standby still receives from a primary that we can not reach
	SiblingsFollow bool // re-point the other standbys of the former primary at once
}

// PromoteResult is the result of a promotion.
type PromoteResult struct {
	Node          Record        `json:"node"`
	FormerPrimary *Record       `json:"former_primary"` // nil: none was registered
	Timeline      wal.Timeline  `json:"timeline"`
	LSN           wal.LSN       `json:"lsn"`
	Elapsed       time.Duration `json:"elapsed_ns"`
	Siblings      []Record      `json:"siblings"`  // standbys of the former primary
	Following     []Record      `json:"following"` // those of them that stream from the new one (with SiblingsFollow)
	DryRun        bool          `json:"dry_run,omitempty"`
}

// Promote makes the local standby the primary and records it. It refuses with
// [ErrPrimaryExists] while any registered node runs as a primary, and without Force with
// [ErrRefused] while any standby still receives WAL from one.
//
// It is meant for an operator: it asks every node that it can reach, but it holds no election,
// and it can not stop a primary that none of these nodes can see. An [ErrMetadata] means that
// the server is promoted and its row could not be written.
func (c *Cluster) Promote(ctx context.Context, o PromoteOptions) (PromoteResult, error) {
	res := PromoteResult{DryRun: o.DryRun, Siblings: []Record{}, Following: []Record{}}
	start := time.Now()
	local, err := c.connectLocal(ctx)
	if err != nil {
		return res, err
	}
	defer local.Close()
	recs, err := c.checkPromote(ctx, local, o, &res)
	if err != nil || o.DryRun {
		return res, err
	}
	rule, err := c.ruleOfPromotion(ctx, local, recs)
	if o.Force && (errors.Is(err, ballot.ErrUnheeded) || errors.Is(err, ballot.ErrUnreadable)) {
		c.log.Warn("the server is promoted although it keeps no vote", "err", err, "hint", Hint(err))
		err = nil
	}
	if err != nil {
		return res, err
	}
	status, err := c.promoteServer(ctx, local)
	if err != nil {
		c.emit(ctx, nil, Event{NodeID: res.Node.ID, Node: res.Node.Name, Type: EventStandbyPromote, Details: err.Error()})
		return res, err
	}
	res.Timeline, res.LSN = status.Timeline, status.CurrentLSN
	res.Elapsed = time.Since(start)
	if err := c.recordPromotion(ctx, local, &res); err != nil {
		return res, err
	}
	if rule.Known() {
		if rule.Line, err = local.RuleLine(ctx); err != nil {
			return res, err
		}
		if err := local.WriteRule(ctx, rule, registry.Operator); err != nil {
			return res, err
		}
	}
	c.siblings(ctx, recs, o, &res)
	return res, nil
}

// ruleOfPromotion is the rule with which the operator's choice becomes the cluster's. Its term
// is above all terms that can be seen, so that a former primary that returns is deposed. Until
// the standbys stream again, no commit counts as stored on another node. Where no daemon has
// ever written a rule, there is none.
func (c *Cluster) ruleOfPromotion(ctx context.Context, local *registry.Server, recs []Record) (election.Rule, error) {
	rules, err := local.Rules(ctx)
	if err != nil || len(rules) == 0 {
		return election.Rule{}, err
	}
	b, err := ballot.Read(ctx, local.Conn)
	if err == nil && b.Term > rules[0].Term && strings.HasSuffix(b.Candidate, ballot.ChosenMark) {
		return election.Rule{}, nil // an election runs this command as its promote_command, and opens the term itself
	}
	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(recs)
	w.AwaitAnswers(ctx)
	r := rules[0]
	r.Term, r.Seq, r.Primary, r.Sync, r.Acks = 1+max(r.Term, voters.HighestTerm(w.Peers())), 1, int32(c.cfg.NodeID), nil, 0
	err = local.WithBallot(ctx, func(b ballot.Ballot) error { // this tells the daemon of this node that the promotion was intended
		return ballot.Write(ctx, local.Conn, ballot.Ballot{Node: r.Primary, Term: max(r.Term, b.Term), Candidate: registry.Operator + ballot.ChosenMark})
	})
	if err == nil {
		err = syncrep.Clear(ctx, local)
	}
	return r, err
}

// checkPromote asks all nodes before anything is changed.
func (c *Cluster) checkPromote(ctx context.Context, local *registry.Server, o PromoteOptions, res *PromoteResult) ([]Record, error) {
	status, err := local.Status(ctx)
	if err != nil {
		return nil, err
	}
	recs, err := local.Records(ctx)
	self, ok := registry.ByID(recs, c.cfg.NodeID)
	switch {
	case self.Role == RoleWitness:
		return nil, hint(kind(ErrNotStandby, "%s is a witness, which has none of the data", self), "Promote a standby: run this command on it. See: repmgr cluster show")
	case !status.InRecovery:
		return nil, hint(kind(ErrNotStandby, "%s is a primary already", local.Name), "Nothing to do. See: repmgr cluster show")
	case err != nil:
		return nil, err
	case !ok && !o.Force:
		return nil, hint(kind(ErrNotRegistered, "%s is not registered", c.self()),
			"Run repmgr standby register first. If its row is only not replayed yet, use --force.")
	case !ok:
		if self, err = c.record(RoleStandby); err != nil {
			return nil, err
		}
	}
	res.Node = self
	if c.cfg.ServicePromoteCommand == "" {
		if err := local.MayPromote(ctx); err != nil {
			return nil, err
		}
	}
	probes := c.survey(ctx, registry.OthersThan(recs, self.ID))
	for _, p := range primaries(probes) {
		return nil, hint(kind(ErrPrimaryExists, "this replication cluster already has an active primary server: %s", p.Record),
			"To move the primary here: repmgr standby switchover. Or stop that server first, and make sure that it stays down.")
	}
	if !o.Force {
		if err := errors.Join(refuseAnsweringPrimary(probes), refuseLivingPrimary(append(probes, probe{Look: report.Look{Record: self, Status: status}})), refuseBehind(self, status, probes)); err != nil {
			return nil, err
		}
	}
	for _, p := range probes {
		r := p.Record
		if r.Role == RolePrimary && r.Active {
			res.FormerPrimary = &r
			if reach := p.Reach(); p.Err != nil && reach != postgres.ReachRefused {
				c.log.Warn("could not ask the former primary", "node", r.Name, "reach", reach,
					"detail", "Nobody here can tell whether it still runs. If it may come back, make sure that it can not accept writes.")
			}
		} else if r.Role == RoleStandby && r.Active && r.UpstreamID == self.UpstreamID {
			res.Siblings = append(res.Siblings, r)
			if p.Err != nil {
				c.log.Warn("could not ask a sibling node how much it has", "node", r.Name, "reach", p.Reach(),
					"detail", "If it has more than this node, what it has beyond will be lost.")
			}
		}
	}
	return recs, nil
}

// refuseAnsweringPrimary refuses where a primary lives but rejects the login: then the login
// must be repaired, and the primary must not be replaced.
func refuseAnsweringPrimary(probes []probe) error {
	for _, p := range probes {
		if p.Record.Role == RolePrimary && p.Record.Active && p.Err != nil && p.Reach().Answers() {
			return hint(kind(ErrRefused, "the primary lives: %w", p.Err), "%s If it is surely to be replaced, stop it first, or use --force.", noPrimaryHint(probes))
		}
	}
	return nil
}

// refuseLivingPrimary refuses where a standby still receives WAL from a primary that can not be
// reached from here: then the connection from here is broken, and not the primary.
func refuseLivingPrimary(probes []probe) error {
	for _, p := range probes {
		w := p.Status.Receiver
		if p.Err != nil || w == nil || w.Status != "streaming" {
			continue
		}
		last := "never"
		if w.LastMessageAt != nil {
			last = p.Status.At.Sub(*w.LastMessageAt).Round(time.Millisecond).String() + " ago"
		}
		for _, q := range probes {
			if q.Err == nil && registry.Attachment(q.Status, p.Record.Name) != "" {
				w = nil // it streams from another standby, which proves nothing about the primary
				break
			}
		}
		if w != nil {
			return hint(kind(ErrRefused, "%s still receives WAL from %s port %d (last message %s)", p.Record, w.SenderHost, w.SenderPort, last),
				"That primary is probably alive, and the network between it and here is not. If it is surely dead, use --force.")
		}
	}
	return nil
}

// refuseBehind refuses where another standby has more WAL: what it has beyond this node would
// be lost.
func refuseBehind(self Record, status registry.NodeStatus, probes []probe) error {
	for _, p := range probes {
		theirs, ours := p.Status.Position(), status.Position()
		if p.Err != nil || !p.Status.InRecovery || p.Status.SystemIdentifier != status.SystemIdentifier {
			continue
		}
		if theirs.Timeline > ours.Timeline || theirs.Timeline == ours.Timeline && theirs.LSN > ours.LSN {
			return hint(kind(ErrRefused, "%s has WAL up to %s, %s only up to %s (%d bytes less): promoting it would lose what the other one has",
				p.Record, theirs, self, ours, theirs.LSN.Bytes(ours.LSN)), "Promote %s. To promote this one all the same, use --force.", p.Record)
		}
	}
	return nil
}

// promoteServer promotes and waits until the server is out of recovery.
func (c *Cluster) promoteServer(ctx context.Context, n *registry.Server) (registry.NodeStatus, error) {
	if err := c.promoteOnly(ctx, n); err != nil {
		return registry.NodeStatus{}, err
	}
	return n.Status(ctx)
}

func (c *Cluster) promoteOnly(ctx context.Context, n *registry.Server) error {
	limit := c.cfg.PromoteCheckTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, hint(kind(ErrPromotion, "%s is still in recovery after promote_check_timeout (%s)", n.Name, limit),
		"The server's log says what it waits for. It may still become the primary: look again with repmgr cluster show."))
	defer cancel()
	if c.cfg.ServicePromoteCommand != "" {
		if out, err := shell.Run(ctx, c.cfg.ServicePromoteCommand, nil); err != nil {
			return kind(ErrPromotion, "service_promote_command on %s: %w%s", n.Name, promoteCommandError{err}, shell.AfterColon(shell.LastLines(out, 5)))
		}
	} else if _, err := n.Conn.Exec(ctx, `SELECT pg_promote(false)`); err != nil {
		return kind(ErrPromotion, "promote %s: %w", n.Name, err)
	}
	return n.AwaitPromotion(ctx)
}

// recordPromotion writes the new roles, on the new primary.
func (c *Cluster) recordPromotion(ctx context.Context, primary *registry.Server, res *PromoteResult) error {
	self := &res.Node
	self.Role, self.UpstreamID, self.UpstreamName, self.Active = RolePrimary, 0, "", true
	if err := primary.RecordPromotion(ctx, self.ID); err != nil {
		return hint(kind(ErrMetadata, "%s is promoted, but repmgr.nodes is not updated: %w", self, err),
			"Run on it: repmgr primary register --force")
	}
	e := Event{
		NodeID: self.ID, Node: self.Name, Type: EventStandbyPromote, Success: true,
		Details: fmt.Sprintf("%s was successfully promoted to primary", self),
	}
	if old := res.FormerPrimary; old != nil {
		e.PeerID, e.Peer = old.ID, old.Name
	}
	c.emit(ctx, primary, e)
	return nil
}

// siblings makes the other standbys of the former primary follow the new one, all at the same
// time, or only warns that they must be made to.
func (c *Cluster) siblings(ctx context.Context, recs []Record, o PromoteOptions, res *PromoteResult) {
	if len(res.Siblings) == 0 {
		return
	}
	if !o.SiblingsFollow {
		var names []string
		for _, s := range res.Siblings {
			names = append(names, s.Name)
		}
		c.log.Warn("sibling nodes still follow the former primary", "nodes", strings.Join(names, ", "),
			"hint", "Run repmgr standby follow on each, or promote with --siblings-follow.")
		return
	}
	errs := make([]error, len(res.Siblings))
	var wg sync.WaitGroup
	for i, s := range res.Siblings {
		wg.Go(func() {
			var n *registry.Server
			if n, errs[i] = c.connectTo(ctx, s); errs[i] != nil {
				return
			}
			defer n.Close()
			_, errs[i] = c.follow(ctx, n, s, res.Node, recs, FollowOptions{})
		})
	}
	wg.Wait()
	for i, s := range res.Siblings {
		if errs[i] != nil {
			c.log.Warn("sibling node does not follow yet", "node", s.Name, "err", errs[i], "hint", Hint(errs[i]))
		} else {
			res.Following = append(res.Following, s)
		}
	}
}

// promoteCommandError is the error of an operator's command that did not promote the winner.
type promoteCommandError struct{ error }

func (e promoteCommandError) Unwrap() error { return e.error }
