package repmgr

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/coordinator"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// ExplainOptions are the choices of [Cluster.Explain].
type ExplainOptions struct {
	Lost NodeID // the node that dies in the question. Defaults to the primary.
}

// Explanation is what would happen if a node died now, and why.
type Explanation struct {
	At       time.Time         `json:"at"`
	Lost     Record            `json:"lost"`
	Health   election.Health   `json:"health"`        // the verdict on the primary, as it is
	Rule     election.Rule     `json:"rule,omitzero"` // in force; left out: none was ever written
	Voters   []Voter           `json:"voters"`
	Votes    Votes             `json:"votes"`
	Forecast election.Forecast `json:"forecast"`
	Loss     ExpectedLoss      `json:"expected_loss"`
	Outages  []ExpectedOutage  `json:"expected_outages"` // empty: there is no failover
	Blocked  []Blocker         `json:"blocked_by"`       // empty: nothing
	AtRisk   []Blocker         `json:"at_risk"`          // what would keep a node that may be promoted from serving the others, and the standbys that can not go on

	Durability Durability `json:"durability,omitempty"` // as our own configuration has it; empty: synchronous_mode is off

	// Manual: nobody takes over by itself, because neither the configuration nor any
	// daemon asks for it. Then Forecast is of an operator's choice, Command is to be
	// typed on the machine of the winner, and the rule, where none was ever written,
	// is what the rows of the nodes and what runs say.
	Manual   bool   `json:"manual"`
	Presumed bool   `json:"rule_presumed"` // none was ever written
	Command  string `json:"command,omitempty"`
}

// Votes are counted as the rule weighs them: an etcd may have several.
type Votes struct {
	All      int `json:"all"`
	Answer   int `json:"answer"`
	Without  int `json:"answer_without_lost"`
	Majority int `json:"majority"`
}

// Voter is a node, or the etcd, and how it answers.
type Voter struct {
	ID        NodeID          `json:"node_id"` // -1: the etcd
	Name      string          `json:"node_name"`
	Role      Role            `json:"type,omitempty"`
	Votes     int             `json:"votes"` // 0: the rule does not name it
	Answer    election.Answer `json:"answer"`
	Running   election.Role   `json:"running,omitempty"`
	Monitored bool            `json:"monitored"`      // a Monitor runs there
	Automatic bool            `json:"automatic"`      // and fails over by itself
	CanFence  bool            `json:"can_fence"`      // and has shown that it can stop its server
	Foreign   bool            `json:"repmgr5_daemon"` // a daemon of repmgr 5 runs there
	Paused    bool            `json:"paused"`
	Login     string          `json:"login,omitempty"`     // the user whose login it rejects; empty: it rejects none
	Rejection string          `json:"rejection,omitempty"` // and why, in its words
	NoPledge  string          `json:"no_pledge,omitempty"` // why it could not pledge itself; empty: it could, or is not known to be unable
	LostWAL   *LostWAL        `json:"lost_wal,omitempty"`  // of a standby that receives nothing, because what it needs next is gone
}

// ExpectedLoss is the acknowledged work that would be gone.
type ExpectedLoss struct {
	Bytes int64  `json:"bytes"` // of WAL, at most, if the server dies; -1: not known
	Why   string `json:"why"`
}

// ExpectedOutage is the time without a primary, as the sum of its parts.
type ExpectedOutage struct {
	Case  string        `json:"case"`
	Total time.Duration `json:"total_ns"`
	Least bool          `json:"at_least,omitempty"` // no failover here has told yet how long pledges and promotion take: busy machines need several times as long
	Parts []OutagePart  `json:"parts"`
}

// OutagePart is one of them, and where the number comes from.
type OutagePart struct {
	Part string        `json:"part"`
	Time time.Duration `json:"time_ns"`
	From string        `json:"from"` // a setting, "typical", or the term in which it was measured
}

// Blocker is something that keeps the cluster from failing over by itself.
type Blocker struct {
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

// Explain looks once at all voters and says what would happen if a node died
// now: the same functions that decide an election give the answer. It changes
// nothing. It takes about as long as the slowest voter: with one that is silent
// some silence_timeout, and no longer than twice that and three connect_timeouts. Settings such as failovers_per_hour are those of
// the configuration of c.
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
	e, err := c.explain(time.Now(), recs, peers, past, o)
	if err == nil {
		e.addLostWAL(c.lostWALs(ctx, recs, peers))
	}
	return e, err
}

// lostWALs asks for the WAL of the standbys that answer and receive nothing.
func (c *Cluster) lostWALs(ctx context.Context, recs []Record, peers []election.Peer) []probe {
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
	return probes
}

// addLostWAL names the standbys that fall behind for ever. They may be promoted all
// the same, with what they have.
func (e *Explanation) addLostWAL(probes []probe) {
	for _, p := range probes {
		i := slices.IndexFunc(e.Voters, func(v Voter) bool { return v.ID == p.record.ID })
		if i < 0 || p.lost == nil {
			continue
		}
		e.Voters[i].LostWAL = p.lost
		e.AtRisk = append(e.AtRisk, Blocker{fmt.Sprintf("%s can not go on: %s", p.record.Name, p.lost), remedy(*p.lost, p.record, probes)})
	}
}

// explain is Explain, once everybody was asked.
func (c *Cluster) explain(now time.Time, recs []Record, peers []election.Peer, past []FailoverRecord, o ExplainOptions) (Explanation, error) {
	rule := voters.NewestRule(peers)
	policy := c.policy()
	policy.TooMany = c.tooManyOf(past, now)
	manual := c.cfg.Failover != FailoverAutomatic && !slices.ContainsFunc(peers, func(p election.Peer) bool { return p.Answer == election.Answers && p.Automatic })
	policy.OnShutdown = policy.OnShutdown || manual
	presume := manual && !rule.Known()
	if presume {
		rule = coordinator.Presumed(recs, peers)
	}
	e := Explanation{At: now, Manual: manual, Presumed: presume, Rule: rule, Health: policy.Diagnose(now, rule, peers), Durability: c.durability(), Outages: []ExpectedOutage{}, Blocked: []Blocker{}}
	policy.Forced = manual
	if o.Lost == 0 {
		o.Lost = NodeID(rule.Primary)
		for _, r := range recs {
			if o.Lost == 0 && r.Role == RolePrimary && r.Active {
				o.Lost = r.ID
			}
		}
	}
	var ok bool
	if e.Lost, ok = registry.ByID(recs, o.Lost); !ok {
		return Explanation{}, registry.Unknown(recs, o.Lost, "")
	}
	e.Forecast = policy.Forecast(now, rule, peers, int32(o.Lost))
	e.Voters = votersOf(recs, rule, peers)
	for i, v := range e.Voters {
		if r, ok := registry.ByID(recs, v.ID); ok && v.Answer == election.Rejects {
			e.Voters[i].Login, e.Voters[i].Rejection = c.userOf(r), voters.PeerOf(peers, int32(v.ID)).Rejection
		}
	}
	if manual {
		e.Forecast = e.Forecast.PromotedByHand()
		if livingHints[e.Health] == "" && !e.several() {
			e.Command = e.command(recs)
		}
	}
	var up, left []int32
	for _, v := range e.Voters {
		if v.Answer == election.Answers {
			up = append(up, int32(v.ID))
		}
		if v.Answer == election.Answers && v.ID != o.Lost {
			left = append(left, int32(v.ID))
		}
	}
	e.Votes.Answer, e.Votes.All = rule.Votes(up)
	e.Votes.Without, _ = rule.Votes(left)
	e.Votes.Majority = e.Votes.All/2 + 1
	e.Blocked = append(e.Blocked, e.blockers()...)
	e.AtRisk = e.risks()
	e.Loss = e.loss(c.cfg.FenceTimeout)
	if e.Forecast.Winner != 0 && !manual {
		e.Outages = e.outages(policy, past)
	}
	return e, nil
}

func (c *Cluster) tooManyOf(past []FailoverRecord, now time.Time) bool {
	recent := slices.DeleteFunc(slices.Clone(past), func(f FailoverRecord) bool { return now.Sub(f.StartedAt) > time.Hour })
	return c.cfg.FailoversPerHour >= 0 && len(recent) >= c.cfg.FailoversPerHour
}

func votersOf(recs []Record, rule election.Rule, peers []election.Peer) []Voter {
	all := []Voter{}
	add := func(id int32, name string, role Role) {
		p := voters.PeerOf(peers, id)
		weight, _ := rule.Votes([]int32{id})
		v := Voter{ID: NodeID(id), Name: name, Role: role, Votes: weight, Answer: p.Answer, Running: p.Running, Monitored: p.Monitored, Automatic: p.Automatic, CanFence: p.CanFence, Foreign: p.Foreign && p.Answer == election.Answers, Paused: p.Paused && p.PauseSeq == election.LastPause(peers), NoPledge: p.NoPledge}
		if v.Answer == "" {
			v.Answer = election.Silent
		}
		all = append(all, v)
	}
	for _, r := range recs {
		add(int32(r.ID), r.Name, r.Role)
	}
	if voters.PeerOf(peers, election.Arbiter).Answer != "" || slices.Contains(rule.Voters, election.Arbiter) {
		add(election.Arbiter, "etcd", "")
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

// letIn says what makes nodes count that reject a login. Empty: none does.
func letIn(voters []Voter) string {
	to := map[string][]string{} // by user
	for _, v := range voters {
		if v.Answer == election.Rejects && v.ID != NodeID(election.Arbiter) {
			to[v.Login] = append(to[v.Login], v.Name)
		}
	}
	if len(to) == 0 {
		return ""
	}
	var who []string
	for _, user := range slices.Sorted(maps.Keys(to)) {
		who = append(who, fmt.Sprintf("user %q log in to %s", user, strings.Join(to[user], ", ")))
	}
	return "Let " + strings.Join(who, ", and ") + ": pg_hba.conf there (then a reload), or the password that is used here (passfile, PGPASSWORD)."
}

// letInFirst is what to do about a refusal: first of all, to be let in by who lives and
// rejects the login. Who is silent is to be started, as otherwise says.
func letInFirst(r election.Refusal, left []Voter, otherwise string) string {
	login := letIn(left)
	silent := slices.ContainsFunc(left, func(v Voter) bool { return v.Answer != election.Answers && v.Answer != election.Rejects })
	switch r {
	case election.RefusedNoMajority, election.RefusedPledges, election.RefusedSync, election.RefusedLocation, election.RefusedNoneFit:
	default:
		return otherwise
	}
	switch {
	case login == "":
		return otherwise
	case silent:
		return login + " " + otherwise
	}
	return login
}

// leftOver are the voters that are not dead in the answer.
func (e Explanation) leftOver() []Voter { return slices.DeleteFunc(slices.Clone(e.Voters), e.gone) }

// name is the node's, for a sentence.
func (e Explanation) name(id int32) string {
	for _, v := range e.Voters {
		if v.ID == NodeID(id) {
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

// gone are the nodes that are dead in the answer.
func (e Explanation) gone(v Voter) bool { return v.ID == e.Lost.ID || int32(v.ID) == e.Rule.Primary }

// healthHints say what to do where the primary's state alone stands against a failover.
var healthHints = map[election.Health]string{
	election.HealthUnknown:      "Start repmgrd with failover=automatic on the primary: it writes the first rule.",
	election.HealthNotAccepting: "It has primary_start_timeout until another one takes its place. At once: repmgr cluster failover --force",
	election.HealthShutDown:     "Start the primary. Or elect another one: repmgr cluster failover (it takes a shutdown for a loss). failover_on_shutdown=on would do so by itself.",
	election.HealthMoved:        "Look at repmgr cluster show: the node that the rule names and another one can not both be the primary.",
}

// blockers are all that stands in the way of a failover, the kernel's word first.
func (e Explanation) blockers() (all []Blocker) {
	if e.Manual {
		return e.blockersByHand()
	}
	if r := e.Forecast.Refusal; r != "" {
		b := Blocker{Reason: string(r), Remedy: letInFirst(r, e.leftOver(), refusalHints[r])}
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
		case election.RefusedNoMajority, election.RefusedPledges:
			b.Reason = fmt.Sprintf("%s: %d of %d votes would be left, a majority is %d", r, e.left(), e.Votes.All, e.Votes.Majority)
		case election.RefusedNoPledge:
			b.Reason += e.noPledge()
		case election.RefusedSync:
			b.Reason += ": " + e.needed()
		case election.RefusedLag:
			b.Reason += e.lacks()
		case election.RefusedNoneFit:
			b.Reason += e.unfit()
			if e.lacksDaemons() && letIn(e.leftOver()) == "" {
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
	if e.Rule.Known() && !e.lacksDaemons() && letIn(e.leftOver()) == "" && !slices.ContainsFunc(e.Voters, func(v Voter) bool { return !e.gone(v) && v.Answer == election.Answers && v.Automatic }) {
		all = append(all, Blocker{
			"no node that would be left has a repmgrd with failover=automatic: nobody would begin",
			daemonRemedy,
		})
	}
	return all
}

// lacks says how much the best candidate lacks.
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
	for _, u := range e.Forecast.Unserved {
		winner := e.name(u.Winner)
		switch u.Lacks {
		case election.LackLogin:
			all = append(all, Blocker{
				fmt.Sprintf("if %s were promoted, %s could not stream from it: %s", winner, e.name(u.Node), u.Why),
				fmt.Sprintf("Let the replication user log in to %s from there: pg_hba.conf, its password (passfile), max_wal_senders. repmgrd tries it again within %s.", winner, streams.Again),
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

// lacksDaemons reports whether nobody may be promoted, and a daemon would change that.
func (e Explanation) lacksDaemons() bool {
	return e.Forecast.Refusal == election.RefusedNoneFit && slices.ContainsFunc(e.Forecast.Candidates, func(c election.Candidate) bool {
		return c.Unfit == election.UnfitManual || c.Unfit == election.UnfitUnmonitored || c.Unfit == election.UnfitUnable
	})
}

// left are the votes once everybody is dead who is in the answer.
func (e Explanation) left() int {
	n, _ := e.Rule.Votes(e.answering())
	return n
}

// answering are those who would be left, and answer.
func (e Explanation) answering() (ids []int32) {
	for _, v := range e.Voters {
		if v.Answer == election.Answers && !e.gone(v) {
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

// noPledge says why voters that answer could not pledge themselves.
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

// blockersByHand are what keeps an operator from promoting anybody; and, once the
// primary is lost, that it takes one.
func (e Explanation) blockersByHand() []Blocker {
	primary := e.name(e.Rule.Primary)
	switch f := e.Forecast; {
	case e.several():
		return []Blocker{{"more than one node runs as primary", "See repmgr cluster show. Stop the one whose data is not wanted. To bring it back then, on its machine: repmgr node rejoin --force-rewind"}}
	case livingHints[e.Health] != "":
		remedy := livingHints[e.Health]
		if login := letIn(slices.DeleteFunc(slices.Clone(e.Voters), func(v Voter) bool { return int32(v.ID) != e.Rule.Primary })); login != "" && e.Health == election.HealthRejects {
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

// several reports whether more than one node runs as primary.
func (e Explanation) several() bool {
	running := 0
	for _, v := range e.Voters {
		if v.Role != RoleWitness && v.Answer == election.Answers && v.Running == election.Primary {
			running++
		}
	}
	return running > 1
}

// livingHints are what to do about a primary that lives, and is not to be replaced.
var livingHints = map[election.Health]string{
	election.HealthRejects:      "Do not promote: look at pg_hba.conf on the primary, and at the password (.pgpass).",
	election.HealthNoSlots:      "Do not promote: end connections of the primary, or raise max_connections.",
	election.HealthNotAccepting: "Wait for it, and look at its log.",
	election.HealthReceived:     "Do not promote: others receive from it. Look at the network between here and the primary.",
	election.HealthDoubtful:     "Ask again in some seconds.",
}

// command is what an operator types on the machine of the winner.
func (e Explanation) command(recs []Record) string {
	winner, ok := registry.ByID(recs, NodeID(e.Forecast.Winner))
	if !ok {
		return ""
	}
	text := "repmgr"
	if winner.ConfigFile != "" {
		text += " -f " + shell.Quote(winner.ConfigFile)
	}
	text += " standby promote"
	if slices.ContainsFunc(recs, func(r Record) bool {
		return r.Role == RoleStandby && r.Active && r.ID != winner.ID && r.ID != e.Lost.ID
	}) {
		text += " --siblings-follow"
	}
	return text
}

// loss is what the winner would not have.
func (e Explanation) loss(fence time.Duration) ExpectedLoss {
	f := e.Forecast
	switch {
	case f.Winner == 0 || e.Manual && e.several():
		return ExpectedLoss{-1, "nobody would be promoted, so that what the primary has stays there"}
	case e.Manual:
		return e.lossByHand()
	case e.Rule.Quorum:
		return ExpectedLoss{0, fmt.Sprintf("%s, so that one that has it always takes part. Only a session that turned synchronous_commit off, or to local, can lose its own commits", e.needed())}
	}
	l := ExpectedLoss{Bytes: f.Candidates[0].BehindLost}
	winner, primary := e.name(f.Winner), e.name(e.Rule.Primary)
	switch l.Bytes {
	case -1: // it does not answer
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

// lossByHand is what the one that an operator promotes would not have.
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

// risksByHand are what a promotion by hand may lose beside what is seen.
func (e Explanation) risksByHand(primary string) string {
	text := fmt.Sprintf(". If %s is not dead but cut off, also all that it acknowledges until somebody stops it", primary)
	var silent []string
	for _, v := range e.Voters {
		if v.Answer != election.Answers && v.Role == RoleStandby && !e.gone(v) {
			silent = append(silent, v.Name)
		}
	}
	if len(silent) > 0 {
		text += fmt.Sprintf(". How much %s has is not known: what it has beyond %s would be lost", strings.Join(silent, ", "), e.name(e.Forecast.Winner))
	}
	return text
}

// What the parts of a failover that no setting names take on small idle servers.
const (
	typicalNotice  = 10 * time.Millisecond
	typicalPledges = 40 * time.Millisecond
	typicalPromote = 60 * time.Millisecond
	typicalReplay  = 100 << 20 // bytes of WAL in a second
	typical        = "typical"
)

// outages are those of a server that dies, which its machine says at once, and
// of a machine that falls silent, which takes waiting. What is lost already needs
// no noticing.
func (e Explanation) outages(p election.Policy, past []FailoverRecord) []ExpectedOutage {
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
	if owed := e.Forecast.Candidates[0].ToReplay; owed > typicalReplay/10 { // the winner's
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
