package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// Question is everything that an explanation is made from. The caller has looked at all nodes
// before.
type Question struct {
	At          time.Time // of the looks
	Nodes       []registry.Record
	Peers       []election.Peer           // the voters, as they were seen
	Past        []registry.FailoverRecord // the newest first; without them the typical times serve
	Lost        registry.NodeID           // the node that dies in the question; 0: the primary
	Policy      election.Policy           // without TooMany
	MostPerHour int                       // the number of failovers in one hour that are allowed; below 0: no limit
	Durability  election.Durability       // empty: synchronous_mode is off
	Stuck       []Stuck
	User        func(registry.Record) string // the user that this process logs in as to a node
}

// Stuck is a standby that can not receive any more WAL, and what to do about it. It may still
// be promoted, with the WAL that it has.
type Stuck struct {
	ID     registry.NodeID
	Why    string          // a sentence; of one that has diverged
	Lost   *follow.LostWAL // nil: it has diverged
	Remedy string
}

// Answer says what would happen if the node of the question died now. It returns
// [failure.ErrNotRegistered] where there is no such node.
func Answer(q Question) (Explanation, error) {
	now, recs, peers, policy := q.At, q.Nodes, q.Peers, q.Policy
	policy.TooMany = TooMany(now, q.Past, q.MostPerHour)
	rule := voters.NewestRule(peers)
	manual := !policy.Automatic && !slices.ContainsFunc(peers, func(p election.Peer) bool { return p.Answer == election.Answers && p.Automatic })
	policy.OnShutdown = policy.OnShutdown || manual
	presume := manual && !rule.Known()
	if presume {
		of, _ := registry.Primary(recs)
		rule = election.PresumedRule(int32(of.ID), peers)
	}
	e := Explanation{At: now, Manual: manual, Presumed: presume, Rule: rule, Health: policy.Diagnose(now, rule, peers), Durability: q.Durability, Outages: []ExpectedOutage{}, Blocked: []Blocker{}}
	policy.Forced = manual
	lost := q.lost(rule)
	var ok bool
	if e.Lost, ok = registry.ByID(recs, lost); !ok {
		return Explanation{}, registry.Unknown(recs, lost, "")
	}
	e.Lost.Conninfo = conninfo.Redact(e.Lost.Conninfo) // rows of repmgr 5 may have a password
	e.Forecast = policy.Forecast(now, rule, peers, int32(lost))
	e.Voters = q.voters(rule)
	if manual {
		e.Forecast = e.Forecast.PromotedByHand()
		if livingHints[e.Health] == "" && !e.severalPrimaries() {
			e.Command = e.command(recs)
		}
	}
	if by := election.PausedBy(peers); by.Seq != 0 {
		e.PausedBy = &by
	}
	e.Votes = e.count()
	e.Blocked = append(e.Blocked, e.blockers()...)
	e.AtRisk = append(e.risks(), e.stuck(q.Stuck)...)
	e.Loss = e.loss(policy.Fence)
	if e.Forecast.Winner != 0 && !manual {
		e.Outages = e.outages(policy, q.Past)
	}
	return e, nil
}

// TooMany reports whether there were so many failovers within the last hour that the next one needs an operator. most below 0: there is no limit.
func TooMany(now time.Time, past []registry.FailoverRecord, most int) bool {
	recent := 0
	for _, f := range past {
		if now.Sub(f.StartedAt) <= time.Hour && f.Reason != election.HealthHandedOver { // a switchover is no failover
			recent++
		}
	}
	return most >= 0 && recent >= most
}

// lost is the node that dies: the one in the question, else the primary.
func (q Question) lost(rule election.Rule) registry.NodeID {
	if q.Lost != 0 {
		return q.Lost
	}
	if rule.Primary != 0 {
		return registry.NodeID(rule.Primary)
	}
	of, _ := registry.Primary(q.Nodes)
	return of.ID
}

// voters are the nodes, and the etcd where there is one, as they answer.
func (q Question) voters(rule election.Rule) []Voter {
	all := []Voter{}
	add := func(id int32, name string, role registry.Role) *Voter {
		p := voters.PeerOf(q.Peers, id)
		weight, _ := rule.Votes([]int32{id})
		v := Voter{
			ID: registry.NodeID(id), Name: name, Role: role, Votes: weight, Answer: cmp.Or(p.Answer, election.Silent), Running: p.Running,
			Monitored: p.Monitored, Automatic: p.Automatic, CanFence: p.CanFence, Foreign: p.Foreign && p.Answer == election.Answers,
			Paused: p.Paused && p.PauseSeq == election.LastPause(q.Peers), NoPledge: p.NoPledge,
			unelected: rule.Known() && p.Unelected(rule),
		}
		all = append(all, v)
		return &all[len(all)-1]
	}
	for _, r := range q.Nodes {
		if v := add(int32(r.ID), r.Name, r.Role); v.Answer == election.Rejects {
			v.Login, v.Rejection = q.User(r), voters.PeerOf(q.Peers, int32(r.ID)).Rejection
		}
	}
	if voters.PeerOf(q.Peers, election.Arbiter).Answer != "" || slices.Contains(rule.Voters, election.Arbiter) {
		add(election.Arbiter, "etcd", "")
	}
	return all
}

// count weighs the votes of those that answer, as the rule does.
func (e Explanation) count() (votes Votes) {
	var up, left []int32
	for _, v := range e.Voters {
		if v.Answer == election.Answers {
			up = append(up, int32(v.ID))
		}
		if v.Answer == election.Answers && v.ID != e.Lost.ID {
			left = append(left, int32(v.ID))
		}
	}
	votes.Answer, votes.All = e.Rule.Votes(up)
	votes.Without, _ = e.Rule.Votes(left)
	votes.Majority = votes.All/2 + 1
	return votes
}

// stuck notes the standbys that can not receive any more, and returns them as risks.
func (e Explanation) stuck(all []Stuck) (risks []Blocker) {
	for _, s := range all {
		if i := slices.IndexFunc(e.Voters, func(v Voter) bool { return v.ID == s.ID }); i >= 0 {
			e.Voters[i].LostWAL = s.Lost
			why := s.Why
			if s.Lost != nil {
				why = fmt.Sprintf("%s can not go on: %s", e.Voters[i].Name, s.Lost)
			}
			e.Voters[i].stuck = Blocker{why, s.Remedy}
			risks = append(risks, e.Voters[i].stuck)
		}
	}
	return risks
}

// survivors are the voters that are not dead in the answer.
func (e Explanation) survivors() []Voter { return slices.DeleteFunc(slices.Clone(e.Voters), e.isDead) }

// name is the name of a node in a sentence.
func (e Explanation) name(id int32) string {
	for _, v := range e.Voters {
		if v.ID == registry.NodeID(id) {
			return v.Name
		}
	}
	return fmt.Sprintf("node %d", id)
}

func (e Explanation) names(ids []int32) string {
	var all []string
	for _, id := range ids {
		all = append(all, e.name(id))
	}
	return strings.Join(all, ", ")
}

// ofPrimary reports whether the question is about the primary.
func (e Explanation) ofPrimary() bool { return int32(e.Lost.ID) == e.Rule.Primary }

// isDead reports whether a node is dead in the answer: the lost node, and also the primary.
func (e Explanation) isDead(v Voter) bool { return v.ID == e.Lost.ID || int32(v.ID) == e.Rule.Primary }
