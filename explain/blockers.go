package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

// blockers are everything that prevents a failover; the result of the election policy comes
// first.
func (e Explanation) blockers() (all []Blocker) {
	if e.Manual {
		return e.blockersByHand()
	}
	if r := e.Forecast.Refusal; r != "" {
		all = e.strays()
		b := Blocker{Reason: string(r), Remedy: LetInFirst(r, e.survivors(), refusalHints[r])}
		switch r {
		case election.RefusedHealth:
			health := e.Forecast.Health
			if !e.Rule.Known() {
				health = election.HealthUnknown
			}
			b.Reason = string(health)
			if h := healthHints[health]; h != "" {
				b.Remedy = h
			}
			if health == election.HealthUnknown && !slices.ContainsFunc(e.Voters, func(v Voter) bool { return v.Answer == election.Answers }) {
				b = Blocker{"no server answers, so that it is not known which rule is in force", "Start the servers. The daemons know which of them may be the primary (repmgr node screen says it on each machine); where several are started, they keep it to one."}
			}
		case election.RefusedNoMajority, election.RefusedPledges:
			b.Reason = fmt.Sprintf("%s: %d of %d votes would be left, a majority is %d", r, e.votesLeft(), e.Votes.All, e.Votes.Majority)
		case election.RefusedPaused:
			if p := e.PausedBy; p != nil {
				b.Reason += wording.PausedBy(p.Since, p.By)
			}
		case election.RefusedNoPledge:
			b.Reason += e.noPledge()
		case election.RefusedSync:
			b.Reason += ": " + e.needed()
		case election.RefusedLag:
			b.Reason += e.lacks()
		case election.RefusedNoneFit:
			b.Reason += e.unfit()
			if e.lacksDaemons() && loginHint(e.survivors()) == "" {
				b.Remedy = daemonRemedy
			}
		default:
		}
		all = append(all, b)
	}
	if e.Forecast.Unfenced != "" && e.Rule.Known() && e.Forecast.Refusal == "" {
		all = append(all, Blocker{
			fmt.Sprintf("if %s were cut off and not known to be dead: %s (%s)", e.name(e.Rule.Primary), election.RefusedUnfenced, e.Forecast.Unfenced),
			refusalHints[election.RefusedUnfenced],
		})
	}
	if e.Rule.Known() && !e.lacksDaemons() && loginHint(e.survivors()) == "" && !slices.ContainsFunc(e.Voters, func(v Voter) bool { return !e.isDead(v) && v.Answer == election.Answers && v.Automatic }) {
		all = append(all, Blocker{
			"no node that would be left has a repmgrd with failover=automatic: nobody would begin",
			daemonRemedy,
		})
	}
	return all
}

// lacks says how much WAL the best candidate is missing.
func (e Explanation) lacks() string {
	best := e.Forecast.Candidates[0]
	if best.BehindLost < 0 {
		return fmt.Sprintf(": how much %s lacks is not known", e.name(best.ID))
	}
	return fmt.Sprintf(": %s lacks %s of what %s has", e.name(best.ID), wording.Bytes(best.BehindLost), e.name(e.Rule.Primary))
}

// risks are what the nodes lack that may be promoted, in words.
func (e Explanation) risks() []Blocker {
	all := []Blocker{}
	if e.Forecast.Refusal == "" && !e.Manual {
		all = append(all, e.strays()...)
	}
	for _, u := range e.Forecast.Unserved {
		winner := e.name(u.Winner)
		switch u.Lacks {
		case election.LackLogin:
			all = append(all, Blocker{
				fmt.Sprintf("if %s were promoted, %s could not stream from it: %s", winner, e.name(u.Node), u.Why),
				fmt.Sprintf("Let the replication user log in to %s from there: pg_hba.conf, its password (passfile), max_wal_senders. repmgrd tries it again within %s.", winner, streams.RetryInterval),
			})
		case election.LackSenders:
			all = append(all, Blocker{
				fmt.Sprintf("if %s were promoted, it would have WAL senders for %d of %s", winner, u.Have, wording.Count(u.Need, "standby")),
				fmt.Sprintf("Raise max_wal_senders on %s, and restart it.", winner),
			})
		case election.LackSlots:
			all = append(all, Blocker{
				fmt.Sprintf("if %s were promoted, it would have replication slots for %d of %s; the others would stream without", winner, u.Have, wording.Count(u.Need, "standby")),
				fmt.Sprintf("Raise max_replication_slots on %s, and restart it, or drop slots that nobody needs there.", winner),
			})
		}
	}
	return all
}

const daemonRemedy = "Set failover=automatic and start repmgrd on every node. By hand, once the primary is dead: repmgr cluster failover --force"

// lacksDaemons reports whether no node may be promoted and a running daemon would change that.
func (e Explanation) lacksDaemons() bool {
	return e.Forecast.Refusal == election.RefusedNoneFit && slices.ContainsFunc(e.Forecast.Candidates, func(c election.Candidate) bool {
		return c.Unfit == election.UnfitManual || c.Unfit == election.UnfitUnmonitored || c.Unfit == election.UnfitUnable
	})
}

// votesLeft is the number of votes that remain when all dead nodes of the answer are gone.
func (e Explanation) votesLeft() int {
	pledge := e
	pledge.Voters = slices.DeleteFunc(slices.Clone(e.Voters), func(v Voter) bool { return v.unelected })
	n, _ := e.Rule.Votes(pledge.answering())
	return n
}

// strays are the nodes that run as primaries without an election.
func (e Explanation) strays() (all []Blocker) {
	for _, v := range e.Voters {
		if !v.unelected {
			continue
		}
		remedy := fmt.Sprintf("Start repmgrd on its machine. Where %s is lost, a majority elects it as it is; else it becomes a standby again, and what only it has is saved.", e.name(e.Rule.Primary))
		if v.Monitored && v.Automatic {
			remedy = "Its repmgrd puts that right, or its log says what keeps it from that."
		}
		all = append(all, Blocker{fmt.Sprintf("%s runs as a primary, and no majority elected it: it gives no vote to others", v.Name), remedy})
	}
	return all
}

// answering are the voters that would remain and that answer now.
func (e Explanation) answering() (ids []int32) {
	for _, v := range e.Voters {
		if v.Answer == election.Answers && !e.isDead(v) {
			ids = append(ids, int32(v.ID))
		}
	}
	return ids
}

// needed says how many standbys must pledge themselves, and why.
func (e Explanation) needed() string {
	r := e.Rule
	if r.Acks == 0 {
		return "commits wait for no standby at present, so only the primary is sure to have them"
	}
	return fmt.Sprintf("a commit is acknowledged when %d of %s can not lose it any more, and an election needs %d of them", r.Acks, e.names(r.Sync), len(r.Sync)-r.Acks+1)
}

// noPledge says why voters that answer could not give a pledge.
func (e Explanation) noPledge() string {
	var all []string
	for _, v := range e.Voters {
		if v.Answer == election.Answers && v.NoPledge != "" {
			all = append(all, v.Name+": "+v.NoPledge)
		}
	}
	return " (" + strings.Join(all, "; ") + ")"
}

func (e Explanation) unfit() string {
	var all []string
	for _, c := range e.Forecast.Candidates {
		all = append(all, fmt.Sprintf("%s: %s", e.name(c.ID), c.Unfit))
	}
	if len(all) == 0 {
		return ": no other data node answers"
	}
	return " (" + strings.Join(all, "; ") + ")"
}

// blockersByHand are what keeps an operator from promoting any node and, once the primary is
// lost, the fact that an operator is needed.
func (e Explanation) blockersByHand() []Blocker {
	primary := e.name(e.Rule.Primary)
	switch f := e.Forecast; {
	case e.severalPrimaries():
		return []Blocker{{"more than one node runs as primary", "See repmgr cluster show. Stop the one whose data is not wanted. To bring it back then, on its machine: repmgr node rejoin --force-rewind"}}
	case livingHints[e.Health] != "":
		remedy := livingHints[e.Health]
		if login := loginHint(slices.DeleteFunc(slices.Clone(e.Voters), func(v Voter) bool { return int32(v.ID) != e.Rule.Primary })); login != "" && e.Health == election.HealthRejects {
			remedy = "Do not promote. " + login
		}
		return []Blocker{{fmt.Sprintf("%s lives: %s", primary, e.Health), remedy}}
	case f.Winner == 0 && len(f.Candidates) == 0:
		return []Blocker{{string(election.RefusedNoneFit) + e.unfit(), fmt.Sprintf("Start another node, or keep %s running.", primary)}}
	case f.Winner == 0:
		return []Blocker{{string(election.RefusedNoneFit) + e.unfit(), fmt.Sprintf("Start %s, or another node. Any of these can be promoted all the same: repmgr standby promote, on its machine.", primary)}}
	case e.Health.Lost() || e.Health == election.HealthShutDown:
		return []Blocker{{"failover=manual: nobody takes the place of " + primary + " by itself", fmt.Sprintf("Start %s again. Or make sure that it stays down, and promote, on the machine of %s: %s", primary, e.name(f.Winner), e.Command)}}
	}
	return nil
}

// severalPrimaries reports whether more than one node runs as primary.
func (e Explanation) severalPrimaries() bool {
	running := 0
	for _, v := range e.Voters {
		if v.Role != registry.RoleWitness && v.Answer == election.Answers && v.Running == election.Primary {
			running++
		}
	}
	return running > 1
}

// command is what an operator types on the machine of the winner.
func (e Explanation) command(recs []registry.Record) string {
	winner, ok := registry.ByID(recs, registry.NodeID(e.Forecast.Winner))
	if !ok {
		return ""
	}
	text := "repmgr"
	if winner.ConfigFile != "" {
		text += " -f " + shell.Quote(winner.ConfigFile)
	}
	text += " standby promote"
	if slices.ContainsFunc(recs, func(r registry.Record) bool {
		return r.Role == registry.RoleStandby && r.Active && r.ID != winner.ID && r.ID != e.Lost.ID
	}) {
		text += " --siblings-follow"
	}
	return text
}
