package election

import (
	"cmp"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// Forecast is what an election would decide if a node died now. If that node is not the
// primary, the forecast is for the death of the primary in addition.
type Forecast struct {
	Lost       int32       `json:"lost_node_id"`
	Health     Health      `json:"health"`                   // the verdict on the primary in that case
	Refusal    Refusal     `json:"refusal,omitempty"`        // why there would be no winner; empty: there would be one
	Winner     int32       `json:"winner_node_id,omitempty"` // 0: nobody
	Wait       bool        `json:"waits_for_fence"`          // the election would wait for the fence, although the death is visible
	Unfenced   Unguarded   `json:"unfenced,omitempty"`       // why nobody takes over from a primary that is only silent or cut off; empty: somebody does
	Rule       Rule        `json:"rule,omitzero"`            // of the new term; left out: nobody wins
	Candidates []Candidate `json:"candidates"`               // in the order of their rank, those that may not be promoted last
	Unserved   []Unserved  `json:"unserved"`                 // what the nodes that may be promoted lack for their standbys
	Commits    Commits     `json:"commits,omitempty"`        // whether commits go on while the primary is alive; empty: the primary is the lost node
}

// Candidate is a data node that would answer in the election.
type Candidate struct {
	ID         int32        `json:"node_id"`
	Position   wal.Position `json:"position"`
	BehindLost int64        `json:"bytes_behind_primary"` // WAL that the primary was seen to have and this node lacks; -1: not known
	BehindBest int64        `json:"bytes_behind_best"`    // WAL that the best candidate has and this node lacks; -1: on another timeline
	ToReplay   int64        `json:"bytes_to_replay"`      // WAL that it has and must still replay before a promotion
	Unfit      Unfit        `json:"unfit,omitempty"`      // why it may not be promoted; empty: it may
	Key        Key          `json:"decided_by,omitempty"` // what put it behind the candidate before it; empty: it is the first, or unfit
}

// Key names the criterion that decides between two candidates.
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

// Commits says whether commits go on after the loss of a standby or a witness.
type Commits string

const (
	CommitsGoOn  Commits = "commits go on"
	CommitsPause Commits = "commits wait until the primary's daemon has lowered the number of acknowledgements"
	CommitsWait  Commits = "commits wait until another standby is back"
)

// Forecast predicts what happens if the node lost dies now, so that the kernel of its machine
// ends all connections and refuses new ones. A primary that is lost already is taken as it
// is. The positions are those of the last look; a real election counts the positions after
// the pledges.
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
	l := p.ranking(r, pledged)
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

// PresumedRule is a rule for the commands of an operator where no daemon has ever written
// one. The primary is the only node that runs as a primary, or else the one that is
// registered as the primary, and every registered node has a vote. No node holds this rule,
// and no monitor acts on it.
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

// PromotedByHand is the forecast for an operator who promotes the best node that answers,
// which needs neither votes nor daemons.
func (f Forecast) PromotedByHand() Forecast {
	if f.Refusal != "" && f.Refusal != RefusedHealth && len(f.Candidates) > 0 && f.Candidates[0].Unfit == "" {
		f.Refusal, f.Winner = "", f.Candidates[0].ID
	}
	return f
}

// lose is how the voters would be seen after the death of one of them.
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

// candidates are the data nodes that answer: first those that may be promoted, in the order
// of the count, then the others.
func (p Policy) candidates(l ranking, primary Peer, up []Peer) []Candidate {
	others := slices.DeleteFunc(rateService(up), func(o Peer) bool { return !o.data() || slices.Contains(IDs(l.fit), o.ID) })
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
			c.Unfit = cmp.Or(p.Fit(l.line, o), UnfitBranch) // a primary that nobody elected is fit, but on a branch of its own
		case i == 1 && l.moved:
			c.Key = KeyServes
		case i > 0:
			c.Key = p.decidingKey(l.line, all[i-1], o)
		}
		list = append(list, c)
	}
	return list
}

// behind is how many bytes of WAL the node o lacks that ahead has; -1 means not known.
func behind(o, ahead Peer) int64 {
	if ahead.Position.LSN == 0 || o.Position.Timeline != ahead.Position.Timeline {
		return -1
	}
	return max(0, ahead.Position.LSN.Bytes(o.Position.LSN))
}

// toReplay is how many bytes of its WAL a standby has not replayed.
func toReplay(o Peer) int64 { return max(0, o.Position.LSN.Bytes(o.Replayed)) }

// rankKeys reduce a peer to what rank looks at for one key, in the order in which rank
// compares. A test checks that this agrees with rank.
var rankKeys = []struct {
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

// decidingKey is the key that decides the order of two candidates.
func (p Policy) decidingKey(line Rule, a, b Peer) Key {
	for _, s := range rankKeys {
		if p.rank(line, p.Location, s.only(a), s.only(b)) != 0 {
			return s.key
		}
	}
	return ""
}

// commits plays through what the primary would do to its rule after the loss of a node, and
// says whether commits can go on.
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
	for range 4 * (len(r.Voters) + 1) { // an upper bound of the number of steps
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
