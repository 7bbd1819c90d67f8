package explain

import (
	"fmt"
	"slices"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// WhyNot says why a node is not the primary now, and would not be the next one. past are
// the failovers that are known, the newest first: without them there is less to tell.
func WhyNot(e Explanation, node registry.Record, past []registry.FailoverRecord) WhyNotAnswer {
	node.Conninfo = conninfo.Redact(node.Conninfo) // rows of repmgr 5 may have a password
	id, f := int32(node.ID), e.Forecast
	a := WhyNotAnswer{Node: node, IsPrimary: e.Rule.Known() && id == e.Rule.Primary, WouldWin: f.Winner == id, Reasons: []string{}, Explanation: e}
	say := func(format string, args ...any) { a.Reasons = append(a.Reasons, fmt.Sprintf(format, args...)) }
	if a.IsPrimary {
		say("%s", e.incumbent())
		return a
	}
	if e.Rule.Known() {
		say("%s", e.incumbent())
	}
	voter := slices.IndexFunc(e.Voters, func(v Voter) bool { return v.ID == node.ID })
	place := slices.IndexFunc(f.Candidates, func(c election.Candidate) bool { return c.ID == id })
	switch {
	case voter >= 0 && e.Voters[voter].Answer != election.Answers:
		say("%s does not count: it %s.", node.Name, e.Voters[voter].verb())
	case node.Role == registry.RoleWitness:
		say("%s is a witness: %s.", node.Name, election.UnfitWitness)
	case place >= 0 && f.Candidates[place].Unfit != "":
		say("%s %s.", node.Name, e.candidateReason(place))
	case place > 0:
		say("%s would go before it: %s %s.", e.name(f.Candidates[place-1].ID), node.Name, e.candidateReason(place))
	}
	if voter >= 0 && e.Voters[voter].stuck.Reason != "" {
		say("%s. %s", e.Voters[voter].stuck.Reason, e.Voters[voter].stuck.Remedy)
	}
	blocked := e.Blocked
	if place < 0 || f.Candidates[place].Unfit != "" {
		blocked = nil // what stands against it is said
	}
	for _, b := range blocked {
		if e.Manual {
			say("Now: %s. %s", b.Reason, b.Remedy)
		} else {
			say("No failover would happen by itself: %s. %s", b.Reason, b.Remedy)
		}
	}
	switch {
	case e.Manual && f.Winner != 0 && len(e.Blocked) == 0:
		say("failover=manual: nobody takes over by itself. If %s died now, %s should be promoted: %s. On its machine: %s", e.name(e.Rule.Primary), e.name(f.Winner), e.whyBest(), e.Command)
	case e.Manual:
	case a.WouldWin && len(e.Blocked) == 0 && !e.Health.Lost():
		say("If %s died now, %s would win: %s.", e.name(e.Rule.Primary), node.Name, e.whyBest())
	case f.Winner != 0:
		say("In an election now, %s would win: %s.", e.name(f.Winner), e.whyBest())
	}
	if len(past) > 0 && past[0].FormerID == node.ID {
		say("It was the primary before. %s", past[0].Line())
	}
	return a
}
