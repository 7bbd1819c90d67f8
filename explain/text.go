package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wording"
)

// String is the explanation in plain sentences, several lines of them.
func (e Explanation) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("%s", e.present())
	if e.Durability != "" && e.Rule.Quorum {
		say("%s", e.waits())
	}
	if e.Manual {
		return b.String() + e.byHand()
	}
	for _, v := range e.Voters {
		if v.Answer != election.Answers {
			say("  %s does not count: it %s.", v.Name, v.verb())
		} else if v.NoPledge != "" {
			say("  %s could not pledge itself: %s.", v.Name, v.NoPledge)
		}
	}
	say("")
	say("%s", e.Verdict())
	list := e.Forecast.Candidates
	if !e.Rule.Known() {
		list = nil
	}
	for i, c := range list {
		place := fmt.Sprintf("%d.", i+1)
		if c.Unfit != "" {
			place = "- "
		}
		say("  %s %s  %s  %s", place, e.name(c.ID), c.Position, e.candidateReason(i))
	}
	say("")
	say("Expected loss: %s", e.LossText())
	for i, o := range e.Outages {
		say("%-16s %s%s if %s: %s", map[bool]string{true: "Expected outage:"}[i == 0], wording.Duration(o.Total), map[bool]string{true: " or more"}[o.Least], o.Case, partsText(o.Parts))
	}
	if len(e.Outages) > 0 {
		say("%s", outageLimits(e.Outages[0].Least))
	}
	if len(e.Blocked) == 0 {
		say("Blocked by: nothing")
	}
	for _, blocker := range e.Blocked {
		say("Blocked by: %s", blocker.Reason)
		say("  To do: %s", blocker.Remedy)
	}
	return b.String() + e.risksText()
}

// Verdict says what would happen, in a sentence, or in two lines where the node of the question is not the primary.
func (e Explanation) Verdict() string {
	switch {
	case e.Manual:
		return e.choice()
	case !e.Rule.Known():
		return fmt.Sprintf("Whichever node died now, no other would take its place: %s.", e.Blocked[0].Reason)
	case e.ofPrimary() && e.Health.Lost():
		return fmt.Sprintf("%s is lost. In an election now, %s", e.Lost.Name, e.outcome())
	case e.ofPrimary():
		return fmt.Sprintf("If %s died now, %s", e.Lost.Name, e.outcome())
	case e.Health.Lost():
		return fmt.Sprintf("%s is lost already. If %s died as well, %s", e.name(e.Rule.Primary), e.Lost.Name, e.outcome())
	}
	return fmt.Sprintf("If %s died now, %s would go on as primary, and %s.\nIf %s died too after that, %s",
		e.Lost.Name, e.name(e.Rule.Primary), e.Forecast.Commits, e.name(e.Rule.Primary), e.outcome())
}

// outageLimits says what the numbers do not include.
func outageLimits(least bool) string {
	if least {
		return "  Typical is what small idle servers take; no failover here has been measured yet. On busy machines pledges and promotion took 2 to 5 times as long. Not in it: until clients connect again."
	}
	return "  Not in it: more load than there was then, and until clients connect again."
}

func (e Explanation) risksText() string {
	var b strings.Builder
	for _, risk := range e.AtRisk {
		fmt.Fprintf(&b, "At risk: %s\n  To do: %s\n", risk.Reason, risk.Remedy)
	}
	return b.String()
}

// byHand is what an operator must know where there is no automatic failover.
func (e Explanation) byHand() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("failover=manual: nobody takes over by itself, an operator promotes.")
	for _, v := range e.Voters {
		if v.Answer != election.Answers {
			say("  %s can not be asked: it %s.", v.Name, v.verb())
		}
		if v.Foreign {
			say("  A repmgrd of repmgr 5 runs on %s: what that would do by itself is not foretold here.", v.Name)
		}
	}
	say("")
	say("%s", e.choice())
	for i, c := range e.Forecast.Candidates {
		place := fmt.Sprintf("%d.", i+1)
		if c.Unfit != "" {
			place = "- "
		}
		if !e.severalPrimaries() {
			say("  %s %s  %s  %s", place, e.name(c.ID), c.Position, e.candidateReason(i))
		}
	}
	if e.Command != "" && !e.gone() {
		say("The command, on the machine of %s: %s", e.name(e.Forecast.Winner), e.Command)
	}
	say("")
	say("Expected loss: %s", e.LossText())
	for _, blocker := range e.Blocked {
		say("Now: %s", blocker.Reason)
		say("  To do: %s", blocker.Remedy)
	}
	return b.String() + e.risksText()
}

// gone reports whether the primary is lost, or was shut down.
func (e Explanation) gone() bool { return e.Health.Lost() || e.Health == election.HealthShutDown }

// choice says which node an operator should promote, where nobody takes over by itself.
func (e Explanation) choice() string {
	choice := "nobody that answers should take its place."
	if e.Forecast.Winner != 0 {
		choice = fmt.Sprintf("%s should be promoted: %s.", e.name(e.Forecast.Winner), e.whyBest())
	}
	primary := e.name(e.Rule.Primary)
	switch {
	case e.severalPrimaries():
		return "More than one node runs as primary: nobody is to be promoted."
	case e.ofPrimary() && e.gone():
		return fmt.Sprintf("%s is lost. If it does not come back, %s", primary, choice)
	case e.ofPrimary():
		return fmt.Sprintf("If %s died now, %s", primary, choice)
	case e.gone():
		return fmt.Sprintf("%s is lost already. If %s died as well, %s", primary, e.Lost.Name, choice)
	}
	return fmt.Sprintf("If %s died now, %s would go on as primary.\nIf %s died too after that, %s", e.Lost.Name, primary, primary, choice)
}

// incumbent says who is the primary.
func (e Explanation) incumbent() string {
	term := fmt.Sprintf(" of term %d", e.Rule.Term)
	if e.Presumed {
		term = ""
	}
	return fmt.Sprintf("%s is the primary%s (%s).", e.name(e.Rule.Primary), term, e.Health)
}

// present is the cluster as it is.
func (e Explanation) present() string {
	if e.Manual && e.Rule.Primary == 0 {
		return "No node runs as primary, and none is registered as one."
	}
	if e.Manual {
		return e.incumbent()
	}
	if !slices.ContainsFunc(e.Voters, func(v Voter) bool { return v.Answer == election.Answers }) {
		return "No registered node answers: nobody can be asked who the primary is."
	}
	if !e.Rule.Known() {
		return "There is no rule yet: nobody has said who the primary is, and whose votes count."
	}
	answer := fmt.Sprintf("%d answer", e.Votes.Answer)
	if e.Votes.Answer == 1 {
		answer = "1 answers"
	}
	return fmt.Sprintf("%s is the primary of term %d (%s). %s, %s; a majority is %d.",
		e.name(e.Rule.Primary), e.Rule.Term, e.Health, wording.Count(e.Votes.All, "vote"), answer, e.Votes.Majority)
}

// waits says for which standbys commits wait, and what happens to commits when none is left.
func (e Explanation) waits() string {
	now := "Commits wait for no standby at present"
	if e.Rule.Acks > 0 {
		now = fmt.Sprintf("A commit waits for %d of %s", e.Rule.Acks, e.names(e.Rule.Sync))
	}
	switch {
	case e.Durability == election.DurabilityRequired && e.Rule.Acks == 0:
		return now + "; from the first one on they always will (durability=required)."
	case e.Durability == election.DurabilityRequired:
		return now + "; with none of them left, writes wait until one is back (durability=required)."
	case e.Rule.Acks == 0 && e.Manual:
		return now + ", because no repmgrd with failover=automatic keeps synchronous_standby_names."
	case e.Rule.Acks == 0:
		return now + ", because none is healthy (durability=preferred)."
	default:
		return now + "; with none of them left, for nobody (durability=preferred)."
	}
}

// verb makes a verb of the voter's answer.
func (v Voter) verb() string {
	switch v.Answer {
	case election.NotAccepting, election.NoSlots:
		return "is " + string(v.Answer)
	case election.Rejects:
		text := string(v.Answer)
		if v.Login != "" {
			text = fmt.Sprintf("rejects the login of user %q", v.Login)
		}
		if v.Rejection != "" {
			text += " (" + v.Rejection + ")"
		}
		return text
	default:
		return string(v.Answer)
	}
}

// outcome ends the sentence that begins with the death of the primary.
func (e Explanation) outcome() string {
	f := e.Forecast
	if f.Refusal != "" {
		return "nobody would take its place: " + e.Blocked[0].Reason + "."
	}
	text := fmt.Sprintf("%s would win: %s.", e.name(f.Winner), e.whyBest())
	if len(e.Blocked) > 0 {
		text = fmt.Sprintf("nobody would begin by itself. In an election by hand, %s would win: %s.", e.name(f.Winner), e.whyBest())
	}
	return text
}

// whyBest says what puts the winner before the second candidate.
func (e Explanation) whyBest() string {
	list := e.Forecast.Candidates
	if len(list) < 2 || list[1].Key == "" {
		return "it is the only one that may be promoted"
	}
	second := e.name(list[1].ID)
	switch list[1].Key {
	case election.KeyRule:
		return "it has the newest rule, which " + second + " does not know"
	case election.KeyTimeline:
		return "it is on the newest timeline, " + second + " is not"
	case election.KeyLSN:
		return "it has most"
	case election.KeyServes:
		return fmt.Sprintf("it can serve the others, and %s can not, or not all", second)
	case election.KeyPriority:
		return fmt.Sprintf("it has as much as %s, and the higher priority", second)
	case election.KeyLocation:
		return fmt.Sprintf("it has as much as %s, and is at the location of the primary", second)
	default:
		return fmt.Sprintf("it has as much as %s, the same priority, and the lower id", second)
	}
}

// candidateReason says why a candidate has its place in the order.
func (e Explanation) candidateReason(i int) string {
	c := e.Forecast.Candidates[i]
	switch {
	case c.Unfit != "" && e.Manual:
		return "should not be promoted: " + string(c.Unfit)
	case c.Unfit != "":
		return "may not be promoted: " + string(c.Unfit)
	case c.Key == "" && c.BehindLost == 0:
		return "has all that " + e.name(e.Rule.Primary) + " had"
	case c.Key == "" && c.BehindLost > 0:
		return fmt.Sprintf("has most: %s less than %s", wording.Bytes(c.BehindLost), e.name(e.Rule.Primary))
	case c.Key == "":
		return "has most"
	}
	before := e.name(e.Forecast.Candidates[i-1].ID)
	switch c.Key {
	case election.KeyRule:
		return "does not know the rule that " + before + " has"
	case election.KeyTimeline:
		return "is on an older timeline than " + before
	case election.KeyLSN:
		if c.BehindBest > 0 {
			return fmt.Sprintf("has %s less than the best", wording.Bytes(c.BehindBest))
		}
		return "has less than " + before
	case election.KeyServes:
		return "can not serve the others as " + before + " can"
	case election.KeyPriority:
		return "has as much as " + before + ", with a lower priority"
	case election.KeyLocation:
		return "has as much as " + before + ", but not at the location of the primary"
	default:
		return "has as much as " + before + ", the same priority, and a higher id"
	}
}

// LossText says what of the acknowledged work would be gone.
func (e Explanation) LossText() string {
	switch {
	case e.Forecast.Winner == 0 || e.Manual && e.severalPrimaries():
		return e.Loss.Why + "."
	case e.Loss.Bytes < 0:
		return "not known: " + e.Loss.Why + "."
	case e.Loss.Bytes == 0 && e.Rule.Quorum:
		return "none: " + e.Loss.Why + "."
	case e.Loss.Bytes == 0:
		return "none at this look: " + e.Loss.Why + "."
	default:
		return fmt.Sprintf("up to %s of WAL: %s.", wording.Bytes(e.Loss.Bytes), e.Loss.Why)
	}
}

// partsText is the formula, such as "noticing 10ms (typical) + promotion 60ms (measured in term 2)".
func partsText(parts []OutagePart) string {
	var all []string
	for _, p := range parts {
		all = append(all, fmt.Sprintf("%s %s (%s)", p.Part, wording.Duration(p.Time), p.From))
	}
	return strings.Join(all, " + ")
}
