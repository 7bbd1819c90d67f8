package restart

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Roll asks the daemons to restart their servers, from any machine. The methods are called in
// their order.
type Roll struct {
	Watch    *voters.Watch
	Policy   election.Policy
	Nodes    []registry.NodeID // only these; empty: all
	Pending  bool              // only those with a setting that waits for a restart
	Anew     bool              // do not go on with a command that did not end
	How      How
	Required bool          // durability=required
	Limit    time.Duration // of each shutdown
	Start    time.Duration // of each start
	Follow   time.Duration // until a standby streams again
	Log      *slog.Logger

	// Shutdown is the plan of a shutdown of the primary: what stands in the way of that.
	Shutdown func(ctx context.Context, target int32, how How) (plan.Plan, error)
	// RestartPrimary restarts the server of the primary in its place, or makes a switchover to the target, and returns
	// when the former primary streams from that.
	RestartPrimary func(ctx context.Context, target int32, how How) error

	// Look sets these.
	Plan    plan.Plan
	Skipped []registry.Record // those that a command before this one has restarted
	facts   Facts
	order   []int32
	after   []int32 // those of them that come after the primary, because a setting falls

	Done []Restarted // set by Run
}

// Restarted is a node whose server was restarted.
type Restarted struct {
	ID   registry.NodeID `json:"node_id"`
	Name string          `json:"node_name"`
	How  How             `json:"how"`               // of the primary: in-place or switchover; of the others always in-place
	Down time.Duration   `json:"down_ns,omitempty"` // for how long its server did not answer; after a switchover: not known
	Took time.Duration   `json:"elapsed_ns"`        // until it did again what it did before
}

// Look makes the plan.
func (r *Roll) Look(ctx context.Context) error {
	if err := switchover.CheckLimit("a shutdown", r.Limit); err != nil {
		return err
	}
	peers := r.Watch.Refresh(ctx, r.Watch.Settings().SilenceTimeout)
	f := Facts{Rule: voters.NewestRule(peers), Peers: peers, Names: map[int32]string{}, Required: r.Required, How: r.How}
	if !f.Rule.Known() {
		return failure.WithHint(failure.Of(failure.ErrRefused, "no restart: no daemon has written a rule, so none can carry it out"), "Run repmgrd with failover=automatic on all nodes.")
	}
	for _, n := range r.Watch.Records() {
		f.Names[int32(n.ID)] = n.Name
	}
	for _, id := range r.Nodes {
		if _, ok := registry.ByID(r.Watch.Records(), id); !ok {
			return registry.Unknown(r.Watch.Records(), id, "")
		}
	}
	f.look(ctx, r.Watch)
	wanted := func(n registry.Record) bool {
		s, asked := f.Servers[int32(n.ID)]
		return (len(r.Nodes) == 0 || slices.Contains(r.Nodes, n.ID)) && (!r.Pending || !asked || s.Err != nil || len(s.Pending) > 0)
	}
	var names []string
	for _, n := range r.Watch.Records() {
		if wanted(n) {
			names = append(names, n.Name)
		}
	}
	done, err := r.unfinished(ctx, f.Rule.Primary, names)
	if err != nil {
		return err
	}
	for _, n := range r.Watch.Records() {
		p := voters.PeerOf(peers, int32(n.ID))
		well := p.Answer == election.Answers && (p.Running == election.Primary || p.Receiving) && len(f.Servers[p.ID].Pending) == 0
		switch {
		case !wanted(n):
		case well && slices.Contains(done, n.ID):
			r.Skipped = append(r.Skipped, n)
		default:
			f.Chosen = append(f.Chosen, p.ID)
		}
	}
	f.Target = switchover.Choose(r.Policy, f.Rule, peers)
	if f.chosen(f.Rule.Primary) && f.Target != 0 {
		if f.Primary, err = r.Shutdown(ctx, f.Target, r.How); err != nil {
			return err
		}
	}
	r.facts = f
	r.Plan, r.order, r.after = f.Plan()
	return nil
}

// resumeWithin is how old a command that did not end may be for another one to go on with it.
const resumeWithin = 24 * time.Hour

// Begun and ended are how the events of a command begin.
const (
	begun = "begun: "
	ended = "done: "
)

// unfinished are the nodes that the newest command has restarted, if it was for the same nodes and did not end.
func (r *Roll) unfinished(ctx context.Context, primary int32, names []string) (done []registry.NodeID, err error) {
	if r.Anew {
		return nil, nil
	}
	var events []registry.Event
	if err := r.on(ctx, primary, func(n *registry.Server) (err error) {
		events, err = n.Events(ctx, registry.EventFilter{Types: []string{string(registry.EventClusterRestart), string(registry.EventNodeRestart)}, Limit: 1000})
		return err
	}); err != nil {
		return nil, err
	}
	for _, e := range events {
		switch {
		case e.Type == registry.EventNodeRestart && e.Success:
			done = append(done, e.NodeID)
		case e.Type == registry.EventClusterRestart && strings.HasPrefix(e.Details, begun) && time.Since(e.At) < resumeWithin:
			before := strings.Split(strings.TrimPrefix(e.Details, begun), ", ")
			if slices.Sort(before); !slices.Equal(before, slices.Sorted(slices.Values(names))) {
				return nil, nil
			}
			return done, nil
		case e.Type == registry.EventClusterRestart:
			return nil, nil
		}
	}
	return nil, nil
}

func (r *Roll) on(ctx context.Context, id int32, f func(*registry.Server) error) error {
	v := r.Watch.Voter(id)
	if v == nil {
		return failure.Of(failure.ErrNoPrimary, "node %d is the primary, and is not registered", id)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, switchover.BeginWithin, failure.Of(failure.ErrTimeout, "%s did not answer within %s", r.Watch.Record(id), switchover.BeginWithin))
	defer cancel()
	return v.Run(ctx, f)
}

// Run restarts the servers in the order of the plan. It ends with the first one that does not
// come back as it was; the others are left as they are.
func (r *Roll) Run(ctx context.Context) error {
	if len(r.order) == 0 && len(r.Skipped) == 0 {
		return nil
	}
	var names []string
	for _, id := range r.order {
		names = append(names, r.facts.Names[id])
	}
	if len(r.Skipped) == 0 {
		if err := r.tell(ctx, begun+strings.Join(names, ", ")); err != nil {
			return err
		}
	}
	for _, id := range r.order {
		began := time.Now()
		if rule := voters.NewestRule(r.Watch.Refresh(ctx, r.Watch.Settings().SilenceTimeout)); rule.Term != r.facts.Rule.Term {
			return failure.WithHint(failure.Of(failure.ErrRefused, "%s is the primary meanwhile, in term %d: the rest is left as it is", r.Watch.Record(rule.Primary), rule.Term), "See repmgr cluster failovers, and run the command again.")
		}
		if slices.Contains(r.after, id) {
			if err := r.awaitReplay(ctx, id); err != nil {
				return fmt.Errorf("%s: %w", r.Watch.Record(id), err)
			}
		}
		done := Restarted{ID: registry.NodeID(id), Name: r.facts.Names[id], How: InPlace}
		if id == r.facts.Rule.Primary {
			done.How = r.shorter(ctx)
		}
		var err error
		if id == r.facts.Rule.Primary {
			done.Down, err = r.restartPrimary(ctx, done.How)
		} else {
			done.Down, err = r.restart(ctx, id)
		}
		if err == nil { // on the clock of the primary, as what begins and ends the command
			err = r.write(ctx, registry.Event{NodeID: done.ID, Node: done.Name, Type: registry.EventNodeRestart, Success: true, Details: "the server was restarted: " + string(done.How)})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.Watch.Record(id), err)
		}
		done.Took = time.Since(began)
		about := []any{"how", string(done.How), "elapsed", done.Took.Round(time.Millisecond)}
		if done.Down > 0 { // it is not known of a switchover
			about = append(about, "down", done.Down.Round(time.Millisecond))
		}
		r.Log.Info(fmt.Sprintf("%s was restarted", r.Watch.Record(id)), about...)
		r.Done = append(r.Done, done)
	}
	return r.tell(ctx, ended+strings.Join(names, ", "))
}

// tell writes an event of this command on the primary of this moment.
func (r *Roll) tell(ctx context.Context, details string) error {
	rule := voters.NewestRule(r.Watch.Peers())
	return r.write(ctx, registry.Event{NodeID: registry.NodeID(rule.Primary), Node: r.facts.Names[rule.Primary], Type: registry.EventClusterRestart, Success: true, Details: details})
}

func (r *Roll) write(ctx context.Context, e registry.Event) error {
	rule := voters.NewestRule(r.Watch.Refresh(ctx, r.Watch.Settings().SilenceTimeout))
	return r.on(ctx, rule.Primary, func(n *registry.Server) error {
		_, err := n.WriteEvent(ctx, e)
		if err != nil {
			return n.QueryError("write the journal", err)
		}
		return nil
	})
}

// measured is the outage of the newest switchover; 0: none is known.
func (r *Roll) measured(ctx context.Context) (outage time.Duration) {
	_ = r.on(ctx, r.facts.Rule.Primary, func(n *registry.Server) error {
		past, err := n.Failovers(ctx, 0)
		if i := slices.IndexFunc(past, func(f registry.FailoverRecord) bool { return f.Reason == election.HealthHandedOver }); i >= 0 {
			outage = past[i].Outage
		}
		return err
	})
	return outage
}

// assumedSwitchover is the outage that a switchover is taken to have where none was measured.
const assumedSwitchover = time.Second

// shorter is how the primary is restarted.
func (r *Roll) shorter(ctx context.Context) How {
	switch {
	case r.How != Shorter:
		return r.How
	case !r.facts.mayHandOver(r.facts.Target, r.after):
		return InPlace
	}
	var inPlace time.Duration
	for _, d := range r.Done {
		inPlace = max(inPlace, d.Down)
	}
	if inPlace > 0 && r.facts.Rule.Acks > 0 { // commits wait for a standby, whose daemon points it there again at its next heartbeat
		inPlace += voters.HeartbeatInterval(r.Watch.Settings().SilenceTimeout)
	}
	bySwitchover := r.measured(ctx)
	known := bySwitchover > 0
	if !known {
		bySwitchover = assumedSwitchover
	}
	how := InPlace // also where nothing was measured
	if inPlace > bySwitchover {
		how = Switchover
	}
	r.Log.Info("how the primary is restarted", "how", string(how), "longest_restart", inPlace.Round(time.Millisecond), "switchover", bySwitchover.Round(time.Millisecond), "switchover_measured", known)
	return how
}

// restartPrimary restarts the server of the primary, and waits until all stream from a primary again that did.
func (r *Roll) restartPrimary(ctx context.Context, how How) (down time.Duration, err error) {
	seen := make(chan time.Duration, 1)
	watched, stop := context.WithCancel(ctx)
	go func() { seen <- r.measureDown(watched, r.facts.Rule.Primary) }()
	err = r.RestartPrimary(ctx, r.facts.Target, how)
	stop()
	if down = <-seen; err != nil {
		return 0, err
	}
	if how == Switchover {
		down = 0
		r.facts.Rule = voters.NewestRule(r.Watch.Refresh(ctx, r.Watch.Settings().SilenceTimeout)) // it was meant to change
	}
	return down, r.await(ctx, r.Follow, "a standby does not stream again", func(peers []election.Peer) bool {
		return !slices.ContainsFunc(r.facts.Peers, func(p election.Peer) bool {
			return p.Receiving && p.ID != r.facts.Rule.Primary && !voters.PeerOf(peers, p.ID).Receiving
		})
	})
}

// measureDown is for how long the server of a node did not answer, as seen until ctx ends.
func (r *Roll) measureDown(ctx context.Context, id int32) (down time.Duration) {
	var gone time.Time
	for ctx.Err() == nil {
		answers, now := voters.PeerOf(r.Watch.Peers(), id).Answer == election.Answers, time.Now()
		switch {
		case !answers && gone.IsZero():
			gone = now
		case answers && !gone.IsZero():
			down, gone = max(down, now.Sub(gone)), time.Time{}
		}
		_ = wait.Pause(ctx, 2*postgres.PollInterval)
	}
	return down
}

// awaitReplay waits until a standby has replayed what the primary has written so far: it would not start with less of
// a setting than the WAL that it has replayed says.
func (r *Roll) awaitReplay(ctx context.Context, id int32) error {
	var lsn wal.LSN
	if err := r.on(ctx, r.facts.Rule.Primary, func(n *registry.Server) error {
		return n.Conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()`).Scan(&lsn)
	}); err != nil {
		return err
	}
	return r.await(ctx, r.Follow, "it has not replayed the new settings of the primary", func(peers []election.Peer) bool {
		return voters.PeerOf(peers, id).Replayed >= lsn
	})
}

// await asks all voters until done accepts their answers, for no longer than limit.
func (r *Roll) await(ctx context.Context, limit time.Duration, late string, done func([]election.Peer) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "%s within %s", late, limit), "See repmgr cluster show. Run the command again when that is well: it goes on with the nodes that are left."))
	defer cancel()
	return switchover.Until(ctx, r.Watch, r.Watch.Settings().SilenceTimeout/2, done)
}

// restart asks the daemon of a standby or a witness, and waits until its node does again what it did before.
func (r *Roll) restart(ctx context.Context, id int32) (down time.Duration, err error) {
	was := voters.PeerOf(r.Watch.Peers(), id)
	ask := election.Restart{ID: strings.ToLower(rand.Text()[:8]), Term: r.facts.Rule.Term, Limit: r.Limit}
	if err := r.on(ctx, id, func(n *registry.Server) error {
		if err := n.Conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&ask.Asked); err != nil {
			return n.QueryError("read the clock", err)
		}
		old, err := n.Restart(ctx)
		switch {
		case err != nil:
			return err
		case old.Pending(ask.Asked, was.Started):
			return failure.WithHint(failure.Of(failure.ErrRefused, "it was asked to restart by another command (request %s)", old.ID), "Wait for its outcome: repmgr cluster event.")
		}
		ask.Until = ask.Asked.Add(switchover.BeginWithin)
		return n.SetRestart(ctx, ask)
	}); err != nil {
		return 0, err
	}
	limit := switchover.BeginWithin + r.Limit + r.Start + r.Follow
	fed := voters.PeerOf(r.Watch.Peers(), id).Feeds
	limited, cancel := context.WithTimeoutCause(ctx, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "it is not back as it was within %s", limit),
		"Look at the log of its repmgrd and of its server. When it is back, run the command again: it goes on with the nodes that are left."))
	defer cancel()
	var gone, back, read time.Time
	sent := time.Now()
	for {
		peers := r.Watch.Refresh(limited, r.Watch.Settings().SilenceTimeout/2)
		me, now := voters.PeerOf(peers, id), time.Now()
		restarted := me.Answer == election.Answers && me.Started.After(ask.Asked)
		switch {
		case me.Answer != election.Answers && gone.IsZero():
			gone = now
		case restarted && back.IsZero():
			back = now
		}
		switch {
		case restarted && r.asBefore(was, me, peers) && !slices.ContainsFunc(fed, func(child int32) bool { return !voters.PeerOf(peers, child).Receiving }):
			if gone.IsZero() {
				gone = back
			}
			return back.Sub(gone), nil
		case restarted && me.Running != was.Running:
			return 0, failure.WithHint(failure.Of(failure.ErrRefused, "it was the %s, and runs as the %s now", was.Running, me.Running), "See repmgr service status and repmgr cluster event.")
		case me.Answer == election.Answers && me.Restart.ID != ask.ID && !restarted, me.Answer == election.Refused && now.Sub(read) > time.Second:
			read = now
			if why := r.failure(limited, ask.ID); why != "" {
				return 0, failure.Of(failure.ErrServerControl, "%s", why)
			}
		case voters.NewestRule(peers).Term != ask.Term && !me.Restart.Begun && !restarted:
			return 0, failure.WithHint(failure.Of(failure.ErrRefused, "another primary was elected meanwhile, so it was not restarted"), "See repmgr cluster failovers, and run the command again.")
		case me.Answer == election.Answers && !me.Restart.Begun && !restarted && now.Sub(sent) > switchover.BeginWithin+r.Watch.Settings().SilenceTimeout:
			_ = r.on(ctx, id, func(n *registry.Server) error { return n.DropRestart(ctx, ask.ID) }) // it is void
			return 0, failure.WithHint(failure.Of(failure.ErrRefused, "its daemon did not begin within %s: it does not run, is paused, busy, or of an older version", switchover.BeginWithin), "Look at its log. repmgr service status says whether it runs.")
		}
		if err := wait.Pause(limited, 2*postgres.PollInterval); err != nil {
			return 0, err
		}
	}
}

// asBefore reports whether a node does again what it did before its restart: a standby streams,
// and commits wait for it again where they did.
func (r *Roll) asBefore(was, me election.Peer, peers []election.Peer) bool {
	rule := voters.NewestRule(peers)
	switch {
	case me.Running != was.Running:
		return false
	case me.Role == election.Witness:
		return true
	case !me.Receiving:
		return false
	}
	return !slices.Contains(r.facts.Rule.Sync, me.ID) || slices.Contains(rule.Sync, me.ID)
}

// failure is what the daemon has written about a request that it could not carry out. Empty:
// nothing yet.
func (r *Roll) failure(ctx context.Context, request string) (why string) {
	rule := voters.NewestRule(r.Watch.Peers())
	err := r.on(ctx, rule.Primary, func(n *registry.Server) error {
		events, err := n.Events(ctx, registry.EventFilter{Types: []string{string(registry.EventNodeRestart)}, Limit: 10})
		for _, e := range events {
			if text, ours := strings.CutPrefix(e.Details, Request(request)); ours && !e.Success {
				why = text
			}
		}
		return err
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.Log.Debug("the journal can not be read", "err", err)
	}
	return why
}

// Request is how the event of a restart that failed begins.
func Request(id string) string { return "request " + id + ": " }
