package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// Result is what one fault did. Times are in milliseconds.
type Result struct {
	Suite    string    `json:"suite"`
	Seed     uint64    `json:"seed"`
	N        int       `json:"n"`
	At       time.Time `json:"at"`
	Topology string    `json:"topology"`
	Mode     string    `json:"mode"`
	Nemesis  string    `json:"nemesis"`
	Target   string    `json:"target"`
	Expect   Expect    `json:"expect"`
	Alone    bool      `json:"alone"` // nothing else ran beside: its times are worth something

	HeldMS        int64   `json:"held_ms"`       // how long the fault stayed
	OutageMS      float64 `json:"outage_ms"`     // longest time without an acknowledged commit, of the main client
	PromotedMS    float64 `json:"promoted_ms"`   // from the fault until the first promotion; -1: none
	FollowMS      float64 `json:"follow_ms"`     // from the last promotion until every standby that was not hit streamed from it; -1: no promotion, or one did not
	HealedMS      int64   `json:"healed_ms"`     // from the end of the fault until all was well again
	Acked         int     `json:"acked"`         // rows that were acknowledged, of all clients
	Lost          int     `json:"lost"`          // of those, missing afterwards
	Vanished      int     `json:"vanished"`      // acknowledged rows that a later read on a primary did not show
	StrayForMS    int64   `json:"stray_for_ms"`  // how long a server that was promoted by hand acknowledged
	Fenced        int     `json:"fenced"`        // of those, acknowledged by a server that had been superseded
	FencedForMS   int64   `json:"fenced_for_ms"` // from the fault until the last of those
	Promotions    int     `json:"promotions"`    // servers promoted
	TermBefore    int64   `json:"term_before"`
	TermAfter     int64   `json:"term_after"`
	Asked         answers `json:"asked,omitzero"` // what became of commits without an answer
	FalseFailover bool    `json:"false_failover"` // a promotion where none was due
	Helped        bool    `json:"helped"`         // a server had to be started by an operator
	Rebuilt       bool    `json:"rebuilt"`        // the cluster did not heal: a new one was made

	Problems []string `json:"problems,omitempty"` // what fell short of the promise; none: a pass
}

// Verdict is pass, or the first problem.
func (r Result) Verdict() string {
	if len(r.Problems) == 0 {
		return "pass"
	}
	return r.Problems[0]
}

const (
	healLimit     = 2 * time.Minute  // until all is well after a fault; what takes longer needs a human
	slowAfter     = 30 * time.Second // what takes longer than that to heal is counted
	peerLimit     = 120 * time.Second
	failoverLimit = 20 * time.Second // until a failover that is due
	helpAfter     = 15 * time.Second // until an operator starts a server that nobody starts
	idleFor       = 5 * time.Second  // that nobody works at bringing it back: a daemon at work has no process of its own now and then
	strayMS       = 5000             // how long a server that was promoted by hand may acknowledge beside the primary
	fenceMS       = 3000             // how long the wrong side may acknowledge with synchronous_mode=off: fence_timeout, and half a second
	mainEvery     = 5 * time.Millisecond
	sideEvery     = 25 * time.Millisecond
)

// runner runs a plan.
type runner struct {
	c       *cluster
	plan    Plan
	alone   bool
	evict   string // directory for what is kept of findings
	sides   bool   // a client on every data node's machine, too
	writers []*writer
	reader  *reader
	askers  []*asker
	log     func(string, ...any)
	emit    func(Result)
}

// run lets the cluster meet every fault of the plan. An error is one of the
// harness; what is wrong with the cluster is in the results.
func (r *runner) run(ctx context.Context) error {
	if err := r.rebuild(ctx); err != nil {
		return err
	}
	defer r.stopWriters()
	for i, f := range r.plan.Faults {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		res, err := r.fault(ctx, f)
		if err != nil {
			return fmt.Errorf("fault %d (%s): %w", f.N, f, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // half a fault tells nothing
		}
		r.emit(res)
		if again := res.Rebuilt || r.c.o.Suite.Peer && res.Promotions > 0; again && i+1 < len(r.plan.Faults) {
			if err := r.rebuild(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runner) rebuild(ctx context.Context) error {
	r.stopWriters()
	began := time.Now()
	if err := r.c.build(ctx); err != nil {
		r.keep("build")
		return fmt.Errorf("build cluster %s: %w", r.c.o.Topology, err)
	}
	r.log("%s: %s, %s: up after %.1f s", r.c.o.Suite.Name, r.c.o.Topology, r.plan.Mode, time.Since(began).Seconds())
	main, err := r.c.startWriter(1, r.c.client, r.c.dataNodes(), mainEvery)
	if err != nil {
		return err
	}
	r.writers = []*writer{main}
	if r.sides {
		for _, n := range r.c.dataNodes() {
			w, err := r.c.startWriter(1+n.id, n.m, r.c.dataNodes(), sideEvery)
			if err != nil {
				return err
			}
			r.writers = append(r.writers, w)
		}
		if r.reader, err = r.c.startReader(r.c.client, r.c.dataNodes(), r.writers); err != nil {
			return err
		}
		if !r.c.o.Suite.Peer {
			for i, m := range []*machine{r.c.client, r.c.dataNodes()[0].m} {
				a, err := r.c.startAsker(askerID+i, m, r.c.dataNodes())
				if err != nil {
					return err
				}
				r.askers = append(r.askers, a)
			}
		}
	}
	return r.writes(ctx, 50)
}

func (r *runner) stopWriters() {
	if r.reader != nil {
		r.reader.stop()
		r.reader = nil
	}
	for _, a := range r.askers {
		a.stop()
	}
	r.askers = nil
	for _, w := range r.writers {
		w.stop()
	}
	r.writers = nil
}

// writes waits for that many more acknowledgements of the main client.
func (r *runner) writes(ctx context.Context, n int) error {
	from := r.writers[0].mark()
	return waitFor(ctx, 10*time.Second, "acknowledged commits", func(context.Context) error {
		if got := len(r.writers[0].since(from)); got < n {
			return fmt.Errorf("%d of %d: %w", got, n, r.writers[0].lastError())
		}
		return nil
	})
}

// observation is what is measured around one fault.
type observation struct {
	marks   []int64 // of the writers, before it
	logs    []int64 // of the nodes' logs
	began   time.Time
	newest  time.Time // when the last of its nemeses began
	ended   time.Time // the fault is over
	healthy time.Time
	events  []logEvent
}

// fault waits until all is well, injects one fault, takes it back, waits until
// all is well again, and judges.
func (r *runner) fault(ctx context.Context, f Fault) (Result, error) {
	var list []Nemesis
	for _, name := range f.Nemeses {
		n, ok := FindNemesis(name)
		if !ok {
			return Result{}, fmt.Errorf("no such nemesis: %q", name)
		}
		list = append(list, n)
	}
	return r.faultOf(ctx, f, list...)
}

func (r *runner) faultOf(ctx context.Context, f Fault, list ...Nemesis) (Result, error) {
	limit := healLimit
	if r.c.o.Suite.Peer {
		limit = peerLimit
	}
	before, err := r.settle(ctx, f.Settle)
	if err != nil && ctx.Err() == nil {
		r.keep(fmt.Sprintf("%d-%d", r.plan.Seed, f.N), err.Error())
		return Result{
			Suite: r.c.o.Suite.Name, Seed: r.plan.Seed, N: f.N, At: time.Now(), Topology: string(r.c.o.Topology), Mode: r.plan.Mode,
			Nemesis: "nothing", Expect: None, Alone: r.alone, FollowMS: -1, PromotedMS: -1, Rebuilt: true,
			Problems: []string{fmt.Sprintf("well after one fault, and no more before %q: %v", f, err)},
		}, nil
	}
	s := &scene{c: r.c, before: before, rng: rand.New(rand.NewPCG(f.Seed, 2))}
	res := Result{
		Suite: r.c.o.Suite.Name, Seed: r.plan.Seed, N: f.N, At: time.Now(), Topology: string(r.c.o.Topology), Mode: r.plan.Mode,
		Nemesis: names(list), Alone: r.alone, TermBefore: before.Term, FollowMS: -1, PromotedMS: -1,
	}
	var o observation
	for _, w := range r.writers {
		o.marks = append(o.marks, w.mark())
	}
	for _, n := range r.c.nodes {
		_, end := n.readLog(0)
		o.logs = append(o.logs, end)
	}
	_ = r.reader.take()
	held := r.inject(ctx, f.Later, list, s, &o, &res)
	res.Target, res.HeldMS = s.target, held.Milliseconds()
	res.HealedMS = -1
	if err := r.heal(ctx, limit, &res); err != nil {
		res.Rebuilt = true
		res.Problems = append(res.Problems, fmt.Sprintf("not well again within %s: %v", limit, err))
	}
	o.healthy = time.Now()
	res.HealedMS = o.healthy.Sub(o.ended).Milliseconds()
	r.judge(ctx, s, &o, &res, list)
	for _, undo := range s.after {
		if err := undo(ctx); err != nil && !res.Rebuilt && ctx.Err() == nil {
			res.Problems = append(res.Problems, fmt.Sprintf("harness: take back: %v", err))
		}
	}
	if len(res.Problems) > 0 {
		r.keep(fmt.Sprintf("%d-%d", r.plan.Seed, f.N), append([]string{fmt.Sprintf("%+v", res)}, res.Problems...)...)
	}
	for _, n := range r.c.nodes {
		for _, old := range globs(n.data() + ".salvage*") {
			_ = os.RemoveAll(old)
		}
	}
	return res, nil
}

func (r *runner) settle(ctx context.Context, quiet time.Duration) (before state, err error) {
	polling, end := keepConns(ctx)
	err = waitFor(polling, 15*time.Second, "a healthy cluster", func(ctx context.Context) error {
		if before, err = r.c.healthy(ctx); err == nil && !r.c.o.Suite.Peer {
			err = r.c.guarded(ctx, before.Primary)
		}
		return err
	})
	end()
	if err == nil {
		err = r.writes(ctx, 20)
	}
	if err == nil {
		err = wait.Pause(ctx, quiet)
	}
	for _, n := range r.c.nodes {
		n.takeDeaths()
	}
	return before, err
}

// inject does the nemeses of the fault, holds them, and undoes them. It returns
// how long the fault stayed.
func (r *runner) inject(ctx context.Context, later time.Duration, list []Nemesis, s *scene, o *observation, res *Result) time.Duration {
	res.Expect = None
	fail := func(doing, name string, err error) {
		if err != nil && ctx.Err() == nil {
			res.Problems = append(res.Problems, fmt.Sprintf("harness: %s %q: %v", doing, name, err))
		}
	}
	var hold time.Duration
	for _, n := range list {
		hold = max(hold, n.Hold[0]+time.Duration(s.rng.Int64N(int64(n.Hold[1]-n.Hold[0])+1)))
		if n.Patient {
			for _, w := range r.writers {
				w.waits(5 * time.Second)
			}
			for _, a := range r.askers {
				a.waits(5 * time.Second)
			}
		}
	}
	if len(list) == 1 {
		res.Expect = list[0].Expect
	} else {
		res.Expect = Either
	}
	o.began = time.Now()
	postmaster := s.primary().postmaster()
	for i, n := range list {
		if i > 0 {
			_ = wait.Pause(ctx, later)
		}
		o.newest, s.second, s.picked = time.Now(), i > 0, nil
		fail("do", n.Name, n.Do(ctx, s))
		if !s.at.IsZero() {
			o.began, o.newest = s.at, s.at // what came before was preparation
		}
	}
	if s.expect != "" && len(list) == 1 {
		res.Expect = s.expect
	}
	held := time.Now()
	_ = wait.Pause(ctx, hold)
	if (list[0].Steady || s.steady) && s.primary().postmaster() != postmaster {
		res.Problems = append(res.Problems, "the primary's server was ended")
	}
	if res.Expect == Failover {
		r.awaitPromotion(ctx, o)
	}
	for _, n := range list {
		if n.Undo != nil {
			fail("undo", n.Name, n.Undo(ctx, s))
		}
	}
	for _, undo := range slices.Backward(s.cleanup) {
		undo()
	}
	if r.c.net != nil {
		fail("mend", "the network", r.c.net.mend())
	}
	for _, n := range r.c.nodes {
		n.thaw()
		fail("start", "daemon", n.startDaemon())
	}
	for _, w := range r.writers {
		w.waits(tryLimit)
	}
	for _, a := range r.askers {
		a.waits(tryLimit)
	}
	o.ended = time.Now()
	return o.ended.Sub(held)
}

// awaitPromotion waits for a failover that is due; whether there was one is judged later.
func (r *runner) awaitPromotion(ctx context.Context, o *observation) {
	limit := failoverLimit
	if r.c.o.Suite.Peer {
		limit = peerLimit
	}
	_ = waitFor(ctx, limit, "a promotion", func(context.Context) error {
		for i, n := range r.c.nodes {
			events, _ := n.readLog(o.logs[i])
			for _, e := range events {
				if e.What == promoted {
					return nil
				}
			}
		}
		return errors.New("none yet")
	})
	_ = wait.Pause(ctx, moment)
}

// heal waits until the cluster is well. After a while an operator starts the
// servers that nobody started. A peer that does not rejoin is well when it writes.
func (r *runner) heal(ctx context.Context, limit time.Duration, res *Result) error {
	if r.c.o.Suite.Peer {
		return r.writes(ctx, 20)
	}
	began := time.Now()
	polling, end := keepConns(ctx)
	defer end()
	helped, idle := map[*node]bool{}, map[*node]time.Time{}
	well := func() error {
		return waitFor(polling, limit-time.Since(began), "a healthy cluster", func(ctx context.Context) error {
			after, err := r.c.healthy(ctx)
			res.TermAfter = after.Term
			if err == nil || time.Since(began) < helpAfter {
				return err
			}
			for _, n := range r.c.nodes {
				if !n.idle() {
					delete(idle, n)
				} else if idle[n].IsZero() {
					idle[n] = time.Now()
				}
				if !helped[n] && !idle[n].IsZero() && time.Since(idle[n]) > idleFor {
					helped[n], res.Helped = true, true
					err = errors.Join(err, n.launchServer(ctx))
				}
			}
			return err
		})
	}
	for {
		if err := well(); err != nil {
			return err
		}
		if err := r.writes(ctx, 20); err == nil || time.Since(began) > limit {
			return err
		}
	}
}

// judge fills in what clients and logs say.
func (r *runner) judge(ctx context.Context, s *scene, o *observation, res *Result, list []Nemesis) {
	for i, n := range r.c.nodes {
		events, _ := n.readLog(o.logs[i])
		o.events = append(o.events, events...)
		res.Problems = append(res.Problems, n.takeDeaths()...)
	}
	ps := promotions(promotion{Node: s.before.Primary.id, Timeline: s.before.Timeline}, o.events)
	if s.stray != nil {
		ps = without(ps, s.stray.id)
	}
	res.Promotions = len(ps) - 1
	res.FalseFailover = res.Expect == None && res.Promotions > 0
	if res.Promotions > 0 {
		res.PromotedMS = float64(ps[1].At.Sub(o.began).Microseconds()) / 1000
		last := ps[len(ps)-1]
		if d, ok := followed(last, o.events, r.notHit(s, last.Node)); ok {
			res.FollowMS = float64(d.Microseconds()) / 1000
		}
	}
	main := r.writers[0].since(o.marks[0])
	res.OutageMS = float64(outage(main, o.began, o.healthy).Microseconds()) / 1000
	if err := r.rows(ctx, s, ps, o, res); err != nil {
		res.Problems = append(res.Problems, fmt.Sprintf("read the rows: %v", err))
	}
	problem := func(wrong bool, format string, args ...any) {
		if wrong {
			res.Problems = append(res.Problems, fmt.Sprintf(format, args...))
		}
	}
	quorum := res.Mode == "quorum"
	res.Vanished = vanished(r.reader.take(), ps, s.stray.number(), quorum)
	problem(res.Vanished > 0, "%d acknowledged rows were missing in reads on a later primary", res.Vanished)
	problem(res.StrayForMS > strayMS, "a server that was promoted by hand acknowledged for %d ms", res.StrayForMS)
	problem(!r.c.o.Suite.Peer && res.Expect == Failover && res.PromotedMS > float64(failoverLimit.Milliseconds()), "a failover only after %.0f ms", res.PromotedMS)
	problem(quorum && res.Lost > 0, "%d acknowledged rows lost", res.Lost)
	problem(res.Expect == None && res.Lost > 0 && !quorum, "%d acknowledged rows lost without a failover", res.Lost)
	problem(quorum && res.Fenced > 0, "%d rows acknowledged by the wrong side", res.Fenced)
	problem(!quorum && !r.c.o.Suite.Peer && res.Expect == Failover && res.FencedForMS > fenceMS, "the wrong side acknowledged for %d ms", res.FencedForMS)
	problem(res.FalseFailover, "false failover")
	problem(res.Expect == Failover && res.Promotions == 0, "no failover")
	// The second of two may kill a server that is a standby by then: that one is started by whoever starts servers.
	problem(res.Helped && len(list) == 1 && !list[0].Helped, "a server did not come back by itself")
}

// notHit are the standbys of the new primary that the fault did not concern.
func (r *runner) notHit(s *scene, primary int) (ids []int) {
	for _, n := range r.c.dataNodes() {
		if n.id != primary && n != s.before.Primary && !strings.Contains(s.target, n.name()) {
			ids = append(ids, n.id)
		}
	}
	return ids
}

// rows looks for every acknowledged row on the primary, and compares the standbys with it.
func (r *runner) rows(ctx context.Context, sc *scene, ps []promotion, o *observation, res *Result) error {
	ctx, end := keepConns(ctx)
	defer end()
	var s state
	if r.c.o.Suite.Peer || res.Rebuilt { // whose former primary may still be one, or where not all is well
		s.Primary = r.c.nodes[ps[len(ps)-1].Node-1]
	} else if err := waitFor(ctx, 10*time.Second, "a healthy cluster again", func(ctx context.Context) (err error) {
		s, err = r.c.healthy(ctx)
		return err
	}); err != nil {
		return err
	}
	if !r.c.o.Suite.Peer {
		var all []Ack
		for i, w := range r.writers {
			all = append(all, w.since(o.marks[i])...)
		}
		ps = lasting(ps, s.Primary.id, all)
	}
	for i, w := range r.writers {
		acks := w.since(o.marks[i])
		if sc.stray != nil && sc.stray != s.Primary {
			var strays []Ack
			if acks, strays = apart(acks, sc.stray.id, o.newest); len(strays) > 0 {
				res.StrayForMS = max(res.StrayForMS, strays[len(strays)-1].At.Sub(o.newest).Milliseconds())
			}
		}
		there := map[int64]bool{}
		err := s.Primary.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			rows, _ := c.Query(ctx, "SELECT id FROM chaos WHERE client = $1 AND id >= $2", w.id, o.marks[i])
			ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			for _, id := range ids {
				there[id] = true
			}
			return err
		})
		if err != nil {
			return err
		}
		l := losses(acks, there, ps, o.newest)
		res.Acked += len(acks)
		res.Lost += l.Lost
		res.Fenced += l.Fenced
		if l.Fenced > 0 {
			res.FencedForMS = max(res.FencedForMS, l.Last.Sub(o.newest).Milliseconds())
		}
	}
	if r.c.o.Suite.Peer || res.Rebuilt {
		return nil
	}
	for _, a := range r.askers {
		found, err := a.take(ctx, s.Primary)
		if res.Asked.add(found); err != nil {
			return err
		}
	}
	res.Problems = append(res.Problems, res.Asked.Wrong...)
	return r.compare(ctx, s, o)
}

// compare looks for rows that a standby has and the primary has not, or the
// other way round: a standby may stream and still be of another history.
func (r *runner) compare(ctx context.Context, s state, o *observation) error {
	var where []string
	for i, w := range r.writers {
		where = append(where, fmt.Sprintf("client = %d AND id >= %d AND id < %d", w.id, o.marks[i], w.mark()))
	}
	sql := "SELECT coalesce(string_agg(format('client %s: %s rows, sum %s', client, n, s), '; ' ORDER BY client), 'no rows') FROM (SELECT client, count(*) n, sum(id) s FROM chaos WHERE " +
		strings.Join(where, " OR ") + " GROUP BY 1) x"
	return waitFor(ctx, 10*time.Second, "the standbys to have the primary's rows", func(ctx context.Context) error {
		texts := make([]string, len(r.c.nodes))
		err := r.c.each(r.c.dataNodes(), func(n *node) error {
			return n.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
				return c.QueryRow(ctx, sql).Scan(&texts[n.id-1])
			})
		})
		for _, n := range r.c.dataNodes() {
			if err == nil && texts[n.id-1] != texts[s.Primary.id-1] {
				err = fmt.Errorf("%s has %s; %s has %s", s.Primary.name(), texts[s.Primary.id-1], n.name(), texts[n.id-1])
			}
		}
		return err
	})
}

// keep saves the logs of all nodes, and what is said about them.
func (r *runner) keep(name string, notes ...string) {
	dir := filepath.Join(r.evict, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return
	}
	_ = os.WriteFile(filepath.Join(dir, "notes"), []byte(strings.Join(notes, "\n")+"\n"), 0o644)
	for _, n := range r.c.nodes {
		for _, log := range []string{"server.log", "daemon.log", "start.log"} {
			// The end of it: a run writes much.
			_ = exec.Command("sh", "-c", fmt.Sprintf("tail -c 400000 %q > %q", filepath.Join(n.dir, "log", log), filepath.Join(dir, n.name()+"-"+log))).Run()
		}
		_ = exec.Command("cp", filepath.Join(n.data(), "postgresql.auto.conf"), filepath.Join(dir, n.name()+"-postgresql.auto.conf")).Run()
	}
	r.log("kept: %s", dir)
}

func globs(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

func names(list []Nemesis) string {
	var all []string
	for _, n := range list {
		all = append(all, n.Name)
	}
	return strings.Join(all, " + ")
}
