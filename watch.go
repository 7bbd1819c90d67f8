package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
)

// watch looks at all voters without end, each over a connection of its own that
// stays open. A server's death is noticed when its kernel closes that
// connection, and an election finds the connections open. It is safe for
// concurrent use.
type watch struct {
	conf atomic.Pointer[Cluster]
	calm atomic.Bool // glances are enough: no election is near
	easy atomic.Bool // and the other standbys need few: a standby's Monitor watches the primary
	wake func()      // called when a voter's answer or what it says of the election has changed
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	hosts hosts
	ticks ticks

	mu    sync.Mutex
	nodes map[NodeID]*watcher
	recs  []Record
	arb   election.Peer
	guard *guarded // what was kept of the primary's daemon before this process
}

func newWatch(ctx context.Context, c *Cluster, wake func()) *watch {
	w := &watch{wake: wake, nodes: map[NodeID]*watcher{}}
	if k, err := c.kept(""); err == nil { // without it, nothing is known until it is seen
		w.guard = k.Guard
	}
	w.use(c)
	w.ctx, w.stop = context.WithCancel(ctx)
	if c.cfg.Arbiter != nil {
		w.arb = election.Peer{ID: election.Arbiter}
		w.wg.Go(func() { w.watchArbiter(w.ctx) })
	}
	return w
}

// use puts a configuration in force: new connections are made with it. What was
// seen stays.
func (w *watch) use(c *Cluster) { w.conf.Store(c) }

func (w *watch) cluster() *Cluster { return w.conf.Load() }

// close ends all looking and waits for it.
func (w *watch) close() {
	w.stop()
	w.wg.Wait()
}

// follow takes over the registered nodes: it begins with those that are new and
// leaves those that are gone, or that moved.
func (w *watch) follow(recs []Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recs = recs
	if len(recs) > 0 && w.ticks.coming() == nil {
		w.ticks.start()
		w.wg.Go(func() { w.ticks.run(w.ctx, func() time.Duration { return w.cluster().pulse() }) })
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
		n := &watcher{w: w, rec: r, jobs: make(chan job), tries: make(chan tried, mostOpen)}
		n.view = election.Peer{ID: int32(r.ID)}
		w.guard.recall(&n.view)
		n.setRecord(r)
		n.ctx, n.cancel = context.WithCancel(w.ctx)
		w.nodes[r.ID] = n
		w.wg.Go(n.run)
	}
}

// daemons is how many look at each node.
func (w *watch) daemons() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(1, len(w.recs))
}

// peers are the newest views, in the order of the ids.
func (w *watch) peers() []election.Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []election.Peer
	if w.arb.ID != 0 {
		all = append(all, w.arb)
	}
	for _, n := range w.nodes {
		all = append(all, n.snapshot())
	}
	slices.SortFunc(all, func(a, b election.Peer) int { return int(a.ID) - int(b.ID) })
	primary := newest(all).Primary
	for i, p := range all {
		all[i].Forsaken = w.forsaken(p.Candidate)
		if p.ID == primary && p.SeenAt.IsZero() && !p.Monitored && w.saysGuarded() {
			all[i].Monitored, all[i].Automatic, all[i].CanFence, all[i].PauseSeq = true, true, true, election.LastPause(all)
		}
	}
	return all
}

// saysGuarded reports whether a Monitor that has seen the primary when we had not
// says that the primary's own would stop it.
func (w *watch) saysGuarded() bool {
	for _, n := range w.nodes {
		n.mu.Lock()
		says := n.view.Answer == election.Answers && n.last.Guarded
		n.mu.Unlock()
		if says {
			return true
		}
	}
	return false
}

// forsaken reports whether the Monitor that pledges were made out to is known to
// have ended: its server answers, and another one, or none, watches it.
func (w *watch) forsaken(candidate string) bool {
	at := strings.LastIndex(candidate, ".")
	if at < 0 {
		return false
	}
	for _, n := range w.nodes {
		n.mu.Lock()
		same := candidateName(n.rec.Name) == candidate[:at]
		gone := n.view.Answer == election.Answers && (!n.view.Monitored || n.last.PID != 0 && fmt.Sprint(n.last.PID) != candidate[at+1:])
		n.mu.Unlock()
		if same {
			return gone
		}
	}
	return false
}

func candidateName(node string) string {
	return url.PathEscape(cmp.Or(node, "observer")) // ASCII, whatever the encoding of a database is
}

func (w *watch) node(id int32) *watcher {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[NodeID(id)]
}

// lastSign is when a node last showed that it lived.
func (w *watch) lastSign(id int32) time.Time {
	n := w.node(id)
	if n == nil {
		return time.Time{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.view.Ended && n.endedAt.After(n.view.SeenAt) {
		return n.endedAt
	}
	return n.view.SeenAt
}

func (w *watch) record(id int32) Record {
	if n := w.node(id); n != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.rec
	}
	return Record{ID: NodeID(id), Name: fmt.Sprint(id)}
}

// refresh looks at every voter that was not silent now, and waits for the
// answers, or for limit.
func (w *watch) refresh(ctx context.Context, limit time.Duration) []election.Peer {
	return w.lookAt(ctx, limit, func(a election.Answer) bool { return a != election.Silent && a != election.Hangs }) // these are being asked anyway
}

// refreshAll looks at the silent ones, too: this process was stopped, and its
// silence may have been taken for theirs.
func (w *watch) refreshAll(ctx context.Context, limit time.Duration) []election.Peer {
	return w.lookAt(ctx, limit, func(election.Answer) bool { return true })
}

func (w *watch) lookAt(ctx context.Context, limit time.Duration, which func(election.Answer) bool) []election.Peer {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	w.mu.Lock()
	nodes := make([]*watcher, 0, len(w.nodes))
	for _, n := range w.nodes {
		if which(n.snapshot().Answer) {
			nodes = append(nodes, n)
		}
	}
	w.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { _ = n.do(ctx, nil) })
	}
	if w.cluster().cfg.Arbiter != nil {
		wg.Go(func() { w.lookArbiter(ctx) })
	}
	wg.Wait()
	return w.peers()
}

// newest is the newest rule that any voter holds.
func newest(peers []election.Peer) (r election.Rule) {
	for _, p := range peers {
		if k := p.Knows(); k.Compare(r) > 0 {
			r = k
		}
	}
	return r
}

func peerOf(peers []election.Peer, id int32) election.Peer {
	for _, p := range peers {
		if p.ID == id {
			return p
		}
	}
	return election.Peer{ID: id}
}

func (w *watch) watchArbiter(ctx context.Context) {
	for ctx.Err() == nil {
		w.lookArbiter(ctx)
		_ = wait.Pause(ctx, w.cluster().pulse())
	}
}

func (w *watch) lookArbiter(ctx context.Context) {
	at := time.Now()
	ctx, cancel := context.WithTimeout(ctx, w.cluster().cfg.SilenceTimeout)
	defer cancel()
	st, err := w.cluster().cfg.Arbiter.Look(ctx)
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
	w.arb.Term, w.arb.Candidate, w.arb.Rule = st.Ballot.Term, st.Ballot.Candidate, st.Rule
}

// pulse is the time between two looks at a voter, and between two heartbeats.
func (c *Cluster) pulse() time.Duration { return c.cfg.SilenceTimeout / 4 }
