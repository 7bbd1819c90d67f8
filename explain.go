package repmgr

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/explain"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
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
	peers := w.Refresh(ctx, c.cfg.SilenceTimeout/4) // again, so that the positions are of one moment
	if err := ctx.Err(); err != nil {
		return Explanation{}, context.Cause(ctx)
	}
	past, _ := c.failovers(ctx, recs, 0) // without them the typical times serve
	at := time.Now()
	return explain.Answer(explain.Question{
		At: at, Nodes: recs, Peers: peers, Past: past, Lost: o.Lost, Policy: c.policy(), MostPerHour: c.cfg.FailoversPerHour, Durability: c.durability(),
		Stuck: c.stuck(ctx, recs, peers), User: c.userOf,
	})
}

// stuck are the standbys that answer and receive nothing, because their WAL is gone.
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
	c.seekLostWAL(ctx, probes)
	for _, p := range probes {
		if p.lost != nil {
			all = append(all, explain.Stuck{ID: p.record.ID, Lost: p.lost, Remedy: remedy(*p.lost, p.record, probes)})
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
