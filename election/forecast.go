package election

import (
	"cmp"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// Forecast is what an election would decide if a node died at this instant. Of a
// node that is not the primary it says what remains: the decision is then the
// one after the primary's death on top of it.
type Forecast struct {
	Lost       int32       `json:"lost_node_id"`
	Health     Health      `json:"health"`                   // the verdict on the primary then
	Refusal    Refusal     `json:"refusal,omitempty"`        // why there would be no winner; empty: there would be one
	Winner     int32       `json:"winner_node_id,omitempty"` // 0: nobody
	Wait       bool        `json:"waits_for_fence"`          // although the death is seen
	Unfenced   Unguarded   `json:"unfenced,omitempty"`       // why nobody takes over from a primary that is cut off or silent, until it is known to be dead; empty: somebody does
	Rule       Rule        `json:"rule,omitzero"`            // of the new term; left out: nobody wins
	Candidates []Candidate `json:"candidates"`               // in the order of their rank, those that may not be promoted last
	Unserved   []Unserved  `json:"unserved"`                 // what those lack that may be promoted
	Commits    Commits     `json:"commits,omitempty"`        // while the primary lives on; empty: it is the one that is lost
}

// Candidate is a data node that would answer.
type Candidate struct {
	ID         int32        `json:"node_id"`
	Position   wal.Position `json:"position"`
	BehindLost int64        `json:"bytes_behind_primary"` // of the WAL that the primary was seen to have; -1: not known
	BehindBest int64        `json:"bytes_behind_best"`    // of the candidate that has most; -1: on another timeline
	ToReplay   int64        `json:"bytes_to_replay"`      // of what it has: before its promotion it replays all that
	Unfit      Unfit        `json:"unfit,omitempty"`      // why it may not be promoted; empty: it may
	Key        Key          `json:"decided_by,omitempty"` // what put it behind the one before it; empty: it is the first, or unfit
}

// Key names what decides between two candidates.
type Key string

const (
	KeyRule     Key = "rule term"
	KeyTimeline Key = "timeline"
	KeyLSN      Key = "LSN"
	KeyServes   Key = "can serve the others"
	KeyPriority Key = "priority"
	KeyLocation Key = "location"
	KeyID       Key = "id"
)

// Commits is what becomes of them once a standby or a witness is gone.
type Commits string

const (
	CommitsGoOn  Commits = "commits go on"
	CommitsPause Commits = "commits wait until the primary's daemon has lowered the number of acknowledgements"
	CommitsWait  Commits = "commits wait until another standby is back"
)

// Forecast answers what if the node lost died now: its server's kernel ends all
// connections and refuses new ones. A primary that is lost already is taken as it
// is. The positions are those of the last look; a real election counts those that
// the pledges freeze.
func (p Policy) Forecast(now time.Time, r Rule, peers []Peer, lost int32) Forecast {
	p.Location = find(peers, r.Primary).Location
	f := Forecast{Lost: lost, Candidates: []Candidate{}}
	if !r.Quorum {
		f.Unfenced = Unfenced(find(peers, r.Primary), peers)
	}
	after := peers
	if lost != r.Primary {
		after = lose(r, after, lost)
		f.Commits = p.commits(r, after)
	}
	if !p.Diagnose(now, r, peers).Lost() {
		after = lose(r, after, r.Primary)
	}
	pledged := AbleToPledge(p.Electors(r, after))
	l := p.lineup(r, pledged)
	up := slices.DeleteFunc(slices.Clone(after), func(o Peer) bool { return o.Answer != Answers })
	f.Health = p.Diagnose(now, r, after)
	f.Unserved = p.unserved(l.line, up)
	f.Candidates = p.candidates(l, find(peers, r.Primary), up)
	if f.Refusal = p.Survey(now, r, after); f.Refusal != "" {
		return f
	}
	term := r.Term
	for _, o := range after {
		term = max(term, o.Term, o.Rule.Term, o.Announced.Term)
	}
	t := p.Count(r, term+1, f.Health, pledged)
	f.Refusal, f.Winner, f.Wait, f.Rule = t.Refusal, t.Winner, t.Wait, t.Rule
	return f
}

// Presume is the rule that an operator goes by where no daemon has ever written
// one: the primary is the one node that runs as it, else the one that is
// registered as it, and every registered node has a vote. No node holds it, and
// no monitor acts on it.
func PresumedRule(registered int32, peers []Peer) Rule {
	r := Rule{Term: 1, Primary: registered}
	var run []int32
	for _, o := range peers {
		if o.ID != Arbiter {
			r.Voters = append(r.Voters, o.ID)
		}
		if o.data() && o.Answer == Answers && o.Running == Primary {
			run = append(run, o.ID)
		}
	}
	if len(run) == 1 {
		r.Primary = run[0]
	}
	return r
}

// ByHand is the forecast for an operator who promotes the best of those that
// answer: that needs no votes, and no daemon.
func (f Forecast) PromotedByHand() Forecast {
	if f.Refusal != "" && f.Refusal != RefusedHealth && len(f.Candidates) > 0 && f.Candidates[0].Unfit == "" {
		f.Refusal, f.Winner = "", f.Candidates[0].ID
	}
	return f
}

// lose is what the voters look like once one of them is dead.
func lose(r Rule, peers []Peer, lost int32) []Peer {
	after := slices.Clone(peers)
	for i, o := range after {
		up := upstream(o, peers)
		switch {
		case o.ID == lost && o.Answer != Refused:
			after[i].Answer, after[i].Ended = Refused, true
		case up == lost, up == 0 && lost == r.Primary:
			after[i].Streams, after[i].Receives = false, 0
		}
	}
	return after
}

// candidates are those that answer: whom the count may choose, in its order, and
// then the others.
func (p Policy) candidates(l lineup, primary Peer, up []Peer) []Candidate {
	others := slices.DeleteFunc(weigh(up), func(o Peer) bool { return !o.data() || slices.Contains(ids(l.fit), o.ID) })
	slices.SortFunc(others, func(a, b Peer) int { return p.rank(l.line, p.Location, a, b) })
	all := append(slices.Clone(l.fit), others...)
	var best Peer
	for _, o := range all {
		if best.ID == 0 || compareProgress(l.line, o, best) > 0 {
			best = o
		}
	}
	list := []Candidate{}
	for i, o := range all {
		c := Candidate{ID: o.ID, Position: o.Position, BehindLost: behind(o, primary), BehindBest: behind(o, best), ToReplay: toReplay(o)}
		switch {
		case i >= len(l.fit):
			c.Unfit = cmp.Or(p.Fit(l.line, o), UnfitBranch) // that of one that nobody elected
		case i == 1 && l.moved:
			c.Key = KeyServes
		case i > 0:
			c.Key = p.decider(l.line, all[i-1], o)
		}
		list = append(list, c)
	}
	return list
}

// behind is how many bytes of WAL a node lacks. -1: it can not be told.
func behind(o, ahead Peer) int64 {
	if ahead.Position.LSN == 0 || o.Position.Timeline != ahead.Position.Timeline {
		return -1
	}
	return max(0, ahead.Position.LSN.Bytes(o.Position.LSN))
}

// toReplay is how much of its WAL a standby has not replayed.
func toReplay(o Peer) int64 { return max(0, o.Position.LSN.Bytes(o.Replayed)) }

// single are the nodes as rank sees them through one key alone, in the order in
// which rank asks. A test holds that against rank itself.
var single = []struct {
	key  Key
	only func(Peer) Peer
}{
	{KeyRule, func(o Peer) Peer { return Peer{Rule: Rule{Term: o.Rule.Term}} }},
	{KeyTimeline, func(o Peer) Peer { return Peer{Position: wal.Position{Timeline: o.Position.Timeline}} }},
	{KeyLSN, func(o Peer) Peer { return Peer{Position: o.Position, Past: o.Past, Mark: o.Mark} }},
	{KeyServes, func(o Peer) Peer { return Peer{serves: o.serves} }},
	{KeyPriority, func(o Peer) Peer { return Peer{Priority: o.Priority} }},
	{KeyLocation, func(o Peer) Peer { return Peer{Location: o.Location} }},
	{KeyID, func(o Peer) Peer { return Peer{ID: o.ID} }},
}

// decider is the key that puts two candidates in their order.
func (p Policy) decider(line Rule, a, b Peer) Key {
	for _, s := range single {
		if p.rank(line, p.Location, s.only(a), s.only(b)) != 0 {
			return s.key
		}
	}
	return ""
}

// commits follows what the primary would do to its rule when a standby is gone.
func (p Policy) commits(r Rule, peers []Peer) Commits {
	var up, live []int32
	for _, o := range peers {
		if o.Answer == Answers {
			up = append(up, o.ID)
		}
		if o.Answer == Answers && o.Streams && o.ID != r.Primary && electable(o) {
			live = append(live, o.ID)
		}
	}
	set := r.SyncSetting()
	if count(set.Standbys, live) >= set.Acks {
		return CommitsGoOn
	}
	p.Quorum = r.Quorum
	for range 4 * (len(r.Voters) + 1) { // more steps than there can be
		c := p.Reconcile(Membership{Rule: r, Held: r.HeldBy(up), Set: set, Registered: r.Voters, Healthy: live})
		switch {
		case c.Set != nil:
			set = *c.Set
		case c.Rule != nil:
			r = *c.Rule
		}
	}
	if count(set.Standbys, live) >= set.Acks {
		return CommitsPause
	}
	return CommitsWait
}
