package voters

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Settings are the parts of the configuration that watching the voters needs.
type Settings struct {
	Self           registry.NodeID // the node whose daemon watches; 0: it has none
	SilenceTimeout time.Duration

	// LookArbiter asks the arbiter for its vote and its rule; nil: there is none.
	LookArbiter func(context.Context) (ballot.Ballot, election.Rule, error)
	// Conninfo returns the connection string of a node: the registered one, with the password
	// that only this machine knows.
	Conninfo func(registry.Record) string
}

// Watch probes all voters until it is closed, each over connections of its own that stay open.
// The end of a server is noticed when its kernel closes such a connection, and an election
// finds the connections open. It is safe for concurrent use.
type Watch struct {
	conf           atomic.Pointer[Settings]
	glancesSuffice atomic.Bool // no election is near, so short probes are enough: see glance
	skipStandbys   atomic.Bool // the daemon of a standby, while all is well, probes the other standbys less often
	wake           func()      // called when a voter answers differently, or its state changes in a way that matters to an election
	ctx            context.Context
	stop           context.CancelFunc
	wg             sync.WaitGroup

	hosts hosts
	ticks ticks

	mu    sync.Mutex
	nodes map[registry.NodeID]*Voter
	order []*Voter // the same, by id
	recs  []registry.Record
	arb   election.Peer
	guard *Guarded // what the state file of an earlier process says about the primary's daemon
}

// New makes a Watch without nodes: [Watch.SetNodes] names them. guard is what the state file
// says about the primary's daemon. wake is called when a voter answers differently, or its
// state changes in a way that matters to an election.
func New(ctx context.Context, s Settings, guard *Guarded, wake func()) *Watch {
	w := &Watch{wake: wake, nodes: map[registry.NodeID]*Voter{}, guard: guard}
	w.Use(s)
	w.ctx, w.stop = context.WithCancel(ctx)
	if s.LookArbiter != nil {
		w.arb = election.Peer{ID: election.Arbiter}
		w.wg.Go(func() { w.watchArbiter(w.ctx) })
	}
	return w
}

// Use puts settings in force for new connections. What was seen so far is kept.
func (w *Watch) Use(s Settings) { w.conf.Store(&s) }

func (w *Watch) Settings() *Settings { return w.conf.Load() }

// HeartbeatInterval is the time between two looks at a voter, and between two heartbeats.
func HeartbeatInterval(silenceTimeout time.Duration) time.Duration { return silenceTimeout / 4 }

func (w *Watch) heartbeatInterval() time.Duration {
	return HeartbeatInterval(w.Settings().SilenceTimeout)
}

// SetDetail says how closely the voters are probed. glancesSuffice: no election is near, so short probes
// are enough. skipStandbys: this is the daemon of a standby that sees its primary, so the other
// standbys are probed less often.
func (w *Watch) SetDetail(glancesSuffice, skipStandbys bool) {
	w.glancesSuffice.Store(glancesSuffice)
	w.skipStandbys.Store(skipStandbys)
}

// Close stops all probes, and waits until they have ended.
func (w *Watch) Close() {
	w.stop()
	w.wg.Wait()
}

// SetNodes sets the registered nodes: new ones are probed from now on, and nodes that were
// removed, or whose conninfo has changed, are not probed any more under the old one.
func (w *Watch) SetNodes(recs []registry.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recs = recs
	if len(recs) > 0 && w.ticks.coming() == nil {
		w.ticks.start()
		w.wg.Go(func() { w.ticks.run(w.ctx, func() time.Duration { return w.heartbeatInterval() }) })
	}
	for id, n := range w.nodes {
		if r, ok := registry.ByID(recs, id); !ok || r.Conninfo != n.rec.Conninfo {
			n.cancel()
			delete(w.nodes, id)
		}
	}
	for _, r := range recs {
		if n := w.nodes[r.ID]; n != nil {
			n.setRecord(r)
			continue
		}
		n := &Voter{w: w, rec: r, jobs: make(chan job), results: make(chan attempt, maxOpenConns)}
		n.View = election.Peer{ID: int32(r.ID)}
		w.guard.recall(&n.View)
		n.setRecord(r)
		n.ctx, n.cancel = context.WithCancel(w.ctx)
		w.nodes[r.ID] = n
		w.wg.Go(n.run)
	}
	w.order = w.order[:0:0]
	for _, id := range slices.Sorted(maps.Keys(w.nodes)) {
		w.order = append(w.order, w.nodes[id])
	}
}

// daemons is the number of daemons that probe each node.
func (w *Watch) daemons() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(1, len(w.recs))
}

// Peers are the newest views of all voters, ordered by id.
func (w *Watch) Peers() []election.Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]election.Peer, 0, 1+len(w.order))
	if w.arb.ID != 0 { // its id is the lowest
		all = append(all, w.arb)
	}
	for _, n := range w.order {
		all = append(all, n.Peer())
	}
	primary := NewestRule(all).Primary
	for i, p := range all {
		all[i].CoordinatorGone = w.coordinatorEnded(p.Candidate)
		if p.ID == primary && p.SeenAt.IsZero() && !p.Monitored && w.reportedGuarded() {
			all[i].Monitored, all[i].Automatic, all[i].CanFence, all[i].PauseSeq = true, true, true, election.LastPause(all)
		}
	}
	return all
}

// reportedGuarded reports whether another daemon, which has seen the primary when this one had
// not, says that the primary's daemon would stop its server in time.
func (w *Watch) reportedGuarded() bool {
	for _, n := range w.nodes {
		n.Mu.Lock()
		says := n.View.Answer == election.Answers && n.Last.Guarded
		n.Mu.Unlock()
		if says {
			return true
		}
	}
	return false
}

// coordinatorEnded reports whether the daemon that collected pledges under the name candidate
// is known to have ended: the server of its node answers, and another daemon, or none, watches
// it.
func (w *Watch) coordinatorEnded(candidate string) bool {
	at := strings.LastIndex(candidate, ".")
	if at < 0 {
		return false
	}
	for _, n := range w.nodes {
		n.Mu.Lock()
		same := candidateName(n.rec.Name) == candidate[:at]
		gone := n.View.Answer == election.Answers && (!n.View.Monitored || n.Last.PID != 0 && fmt.Sprint(n.Last.PID) != candidate[at+1:])
		n.Mu.Unlock()
		if same {
			return gone
		}
	}
	return false
}

func candidateName(node string) string {
	return url.PathEscape(cmp.Or(node, "observer")) // ASCII, so that it is the same in every encoding
}

func (w *Watch) Voter(id int32) *Voter {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[registry.NodeID(id)]
}

// LastSign is the time of the last sign of life of a node.
func (w *Watch) LastSign(id int32) time.Time {
	n := w.Voter(id)
	if n == nil {
		return time.Time{}
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.View.Ended && n.endedAt.After(n.View.SeenAt) {
		return n.endedAt
	}
	return n.View.SeenAt
}

func (w *Watch) Record(id int32) registry.Record {
	if n := w.Voter(id); n != nil {
		n.Mu.Lock()
		defer n.Mu.Unlock()
		return n.rec
	}
	return registry.Record{ID: registry.NodeID(id), Name: fmt.Sprint(id)}
}

// Refresh probes now every voter that was not silent, and waits for the answers, but for no
// longer than limit.
func (w *Watch) Refresh(ctx context.Context, limit time.Duration) []election.Peer {
	return w.lookAt(ctx, limit, func(a election.Answer) bool { return a != election.Silent && a != election.Hangs }) // silent ones are being probed all the time
}

// RefreshAll also probes the voters that were silent. It is used after this process itself was
// stopped for a while, when its own silence may look like theirs.
func (w *Watch) RefreshAll(ctx context.Context, limit time.Duration) []election.Peer {
	return w.lookAt(ctx, limit, func(election.Answer) bool { return true })
}

func (w *Watch) lookAt(ctx context.Context, limit time.Duration, which func(election.Answer) bool) []election.Peer {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	w.mu.Lock()
	nodes := make([]*Voter, 0, len(w.nodes))
	for _, n := range w.nodes {
		if which(n.Peer().Answer) {
			nodes = append(nodes, n)
		}
	}
	w.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { _ = n.look(ctx) })
	}
	if w.Settings().LookArbiter != nil {
		wg.Go(func() { w.lookArbiter(ctx) })
	}
	wg.Wait()
	return w.Peers()
}

// NewestRule is the newest rule that any voter holds.
func NewestRule(peers []election.Peer) (r election.Rule) {
	for _, p := range peers {
		if k := p.NewestRule(); k.Compare(r) > 0 {
			r = k
		}
	}
	return r
}

func PeerOf(peers []election.Peer, id int32) election.Peer {
	for _, p := range peers {
		if p.ID == id {
			return p
		}
	}
	return election.Peer{ID: id}
}

func (w *Watch) watchArbiter(ctx context.Context) {
	for ctx.Err() == nil {
		w.lookArbiter(ctx)
		_ = wait.Pause(ctx, w.heartbeatInterval())
	}
}

func (w *Watch) lookArbiter(ctx context.Context) {
	at := time.Now()
	ctx, cancel := context.WithTimeout(ctx, w.Settings().SilenceTimeout)
	defer cancel()
	vote, rule, err := w.Settings().LookArbiter(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.arb.Answer
	defer func() {
		if w.arb.Answer != was {
			w.arb.Since = time.Now()
		}
	}()
	w.arb.Tried = at
	if err != nil {
		w.arb.Answer = election.Silent
		return
	}
	w.arb.Answer, w.arb.SeenAt = election.Answers, at
	w.arb.Term, w.arb.Candidate, w.arb.Rule = vote.Term, vote.Candidate, rule
}

// AwaitAnswers waits until every voter was probed once, whatever came of it.
func (w *Watch) AwaitAnswers(ctx context.Context) { w.Await(ctx, w.Answered) }

// AwaitVerdict waits until every voter was probed once and it is clear whether the primary
// lives.
func (w *Watch) AwaitVerdict(ctx context.Context, p election.Policy) {
	w.Await(ctx, func() bool {
		peers := w.Peers()
		return w.Answered() && p.Diagnose(time.Now(), NewestRule(peers), peers) != election.HealthDoubtful
	})
}

// Await waits until ready returns true, for at most twice silence_timeout and one second.
func (w *Watch) Await(ctx context.Context, ready func() bool) {
	limit := time.Now().Add(2*w.Settings().SilenceTimeout + time.Second)
	for time.Now().Before(limit) {
		if ready() || wait.Pause(ctx, postgres.PollInterval) != nil {
			return
		}
	}
}

func (w *Watch) Answered() bool {
	return !slices.ContainsFunc(w.Peers(), func(p election.Peer) bool { return p.Tried.IsZero() })
}

// WhoSees names a node, other than the primary, whose daemon has seen the primary within
// silence_timeout. Empty: none has.
func (w *Watch) WhoSees(primary int32) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range w.nodes {
		n.Mu.Lock()
		ago, ok := n.Last.SeenAgo()
		name := n.rec.String()
		n.Mu.Unlock()
		if ok && ago < w.Settings().SilenceTimeout && id != registry.NodeID(primary) {
			return name
		}
	}
	return ""
}

// Records are the registered nodes as SetNodes was last given them.
func (w *Watch) Records() []registry.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.recs
}

// Foreign names the voters on which a daemon of repmgr 5 runs.
func (w *Watch) Foreign(peers []election.Peer) (names []string) {
	for _, p := range peers {
		if p.Foreign && p.Answer == election.Answers {
			names = append(names, w.Record(p.ID).Name)
		}
	}
	return names
}

// HighestTerm is the highest term that any voter knows of.
func HighestTerm(peers []election.Peer) (term int64) {
	for _, p := range peers {
		term = max(term, p.Term, p.Rule.Term, p.Announced.Term)
	}
	return term
}

// Answering are the voters that answer.
func Answering(peers []election.Peer) []election.Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p election.Peer) bool { return p.Answer != election.Answers })
}

// NotSeen are the nodes that were asked and do not answer, and how they fail to.
func NotSeen(peers []election.Peer) map[registry.NodeID]string {
	all := map[registry.NodeID]string{}
	for _, p := range peers {
		if p.ID != election.Arbiter && p.Answer != "" && p.Answer != election.Answers {
			all[registry.NodeID(p.ID)] = string(p.Answer)
		}
	}
	return all
}

// InOffice is the primary: the node that the newest rule names, or, where no daemon has written a
// rule, the only one that accepts writes. 0: there is none that answers.
func (w *Watch) InOffice() (id registry.NodeID) {
	peers := w.Peers()
	rule := NewestRule(peers)
	for _, p := range Answering(peers) {
		switch {
		case p.Running != election.Primary || p.Role == election.Witness || p.ID == election.Arbiter:
		case p.ID == rule.Primary:
			return registry.NodeID(p.ID)
		case !rule.Known() && id != 0:
			return 0
		case !rule.Known():
			id = registry.NodeID(p.ID)
		}
	}
	return id
}

// Candidate is the name under which this process, the daemon of a node, collects pledges.
func Candidate(node string) string { return fmt.Sprintf("%s.%d", candidateName(node), os.Getpid()) }
