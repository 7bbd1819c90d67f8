package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

// loss is the acknowledged WAL that the winner would not have.
func (e Explanation) loss(fence time.Duration) ExpectedLoss {
	f := e.Forecast
	switch {
	case f.Winner == 0 || e.Manual && e.severalPrimaries():
		return ExpectedLoss{-1, "nobody would be promoted, so that what the primary has stays there"}
	case e.Manual:
		return e.lossByHand()
	case e.Rule.Quorum:
		return ExpectedLoss{0, fmt.Sprintf("%s, so that one that has it always takes part. Only a session that turned synchronous_commit off, or to local, can lose its own commits", e.needed())}
	}
	l := ExpectedLoss{Bytes: f.Candidates[0].BehindLost}
	winner, primary := e.name(f.Winner), e.name(e.Rule.Primary)
	switch l.Bytes {
	case -1: // the primary does not answer
		l.Why = fmt.Sprintf("how much more WAL %s has than %s is not known: it can not be asked", primary, winner)
	case 0:
		l.Why = fmt.Sprintf("%s had all WAL of %s at this look. Under load it is what was acknowledged in the moment before, and had not arrived yet", winner, primary)
	default:
		l.Why = fmt.Sprintf("with synchronous_mode=off a commit is acknowledged before a standby has it, and %s had not received so much at this look", winner)
	}
	fenced := fmt.Sprintf("also all that it acknowledges in the last %s (fence_timeout) before it stops itself", fence)
	if e.Forecast.Unfenced != "" {
		fenced = fmt.Sprintf("nobody takes over until it is known to be dead or an operator forces it, and then also all that it acknowledges until somebody stops it (%s)", e.Forecast.Unfenced)
	}
	l.Why += fmt.Sprintf(". If %s is not dead but cut off, %s. With synchronous_mode=quorum both would be nothing", primary, fenced)
	return l
}

// lossByHand is the acknowledged WAL that a node promoted by an operator would not have.
func (e Explanation) lossByHand() ExpectedLoss {
	winner, primary := e.name(e.Forecast.Winner), e.name(e.Rule.Primary)
	l := ExpectedLoss{Bytes: e.Forecast.Candidates[0].BehindLost}
	switch {
	case e.Rule.Quorum && e.Rule.Covers(e.answering()):
		return ExpectedLoss{0, "one of those that answer has each commit that was acknowledged. Only a session that turned synchronous_commit off, or to local, can lose its own commits"}
	case e.Rule.Quorum:
		l.Bytes, l.Why = -1, "too few of those answer that commits wait for: "+e.needed()
	case l.Bytes < 0:
		l.Why = fmt.Sprintf("how much more WAL %s has than %s is not known: it can not be asked", primary, winner)
	case l.Bytes == 0:
		l.Why = fmt.Sprintf("%s had all WAL of %s. Under load it is what was acknowledged in the moment before, and had not arrived yet", winner, primary)
	default:
		l.Why = fmt.Sprintf("%s had not received so much at this look, and unless synchronous_standby_names says otherwise a commit is acknowledged before a standby has it", winner)
	}
	l.Why += e.risksByHand(primary)
	return l
}

// risksByHand are what a promotion by hand may lose in addition to what is seen.
func (e Explanation) risksByHand(primary string) string {
	text := fmt.Sprintf(". If %s is not dead but cut off, also all that it acknowledges until somebody stops it", primary)
	var silent []string
	for _, v := range e.Voters {
		if v.Answer != election.Answers && v.Role == registry.RoleStandby && !e.isDead(v) {
			silent = append(silent, v.Name)
		}
	}
	if len(silent) > 0 {
		text += fmt.Sprintf(". How much %s has is not known: what it has beyond %s would be lost", strings.Join(silent, ", "), e.name(e.Forecast.Winner))
	}
	return text
}

// The typical times of those parts of a failover that no setting determines, measured on small
// idle servers.
const (
	typicalNotice  = 10 * time.Millisecond
	typicalPledges = 40 * time.Millisecond
	typicalPromote = 60 * time.Millisecond
	typicalReplay  = 100 << 20 // bytes of WAL in a second
	typical        = "typical"
)

// outages are the expected times without a primary: of a server that dies, which its machine
// reports at once, and of a machine that falls silent, which needs a timeout. For a primary
// that is lost already, the time to notice it is not counted.
func (e Explanation) outages(p election.Policy, past []registry.FailoverRecord) []ExpectedOutage {
	pledges, promote := OutagePart{"pledges", typicalPledges, typical}, OutagePart{"promotion", typicalPromote, typical}
	if len(past) > 0 {
		from := fmt.Sprintf("measured in term %d", past[0].Term)
		surveyed, recruited := registry.StepTime(past[0], "surveyed"), registry.StepTime(past[0], "recruited")
		waited, ruled := max(registry.StepTime(past[0], "chosen"), registry.StepTime(past[0], "waited")), registry.StepTime(past[0], "ruled")
		if surveyed > 0 && recruited > surveyed && ruled > waited && waited > 0 {
			pledges.Time, pledges.From = recruited-surveyed, from
			promote.Time, promote.From = ruled-waited, from
		}
	}
	primary := e.name(e.Rule.Primary)
	patience := OutagePart{"patience", p.Patience, "reconnect_attempts * reconnect_interval"}
	fence := OutagePart{"waiting until the old primary has stopped itself", p.Fence + election.Margin, fmt.Sprintf("fence_timeout + %s", election.Margin)}
	dies := ExpectedOutage{Case: "the server of " + primary + " died", Parts: []OutagePart{{"noticing", typicalNotice, typical}, patience, pledges, {}, promote}}
	silent := ExpectedOutage{Case: "the machine or the network of " + primary + " were gone", Parts: []OutagePart{{"noticing", p.Silence, "silence_timeout"}, patience, pledges, {}, promote}}
	if e.Forecast.Wait {
		dies.Parts[3] = fence
	}
	if !e.Rule.Quorum {
		silent.Parts[3] = fence
	}
	if owed := e.Forecast.Candidates[0].ToReplay; owed > typicalReplay/10 { // the replay of the winner
		replay := OutagePart{"replay of " + wording.Bytes(owed), time.Duration(float64(owed) / typicalReplay * float64(time.Second)), typical}
		dies.Parts, silent.Parts = slices.Insert(dies.Parts, 3, replay), slices.Insert(silent.Parts, 3, replay)
	}
	all := []ExpectedOutage{dies, silent}
	if e.Forecast.Unfenced != "" {
		all = all[:1]
	}
	if e.Health.Lost() {
		dies.Case, dies.Parts = "an election began now", dies.Parts[2:]
		all = []ExpectedOutage{dies}
	}
	for i, o := range all {
		all[i].Parts = slices.DeleteFunc(o.Parts, func(p OutagePart) bool { return p.Time == 0 })
		for _, p := range all[i].Parts {
			all[i].Total += p.Time
		}
		all[i].Least = promote.From == typical
	}
	return all
}
