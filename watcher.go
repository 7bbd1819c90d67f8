package repmgr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// watcher looks at one node, over connections that stay open, in turn. Where an
// answer is late it asks again over the next one, more often, and opens more of
// them: under loss of packets any of them may be the one that gets through,
// opening a new one takes several round trips, and a hung postmaster answers old
// ones only. What is late is still waited for. Its goroutine owns the
// connections; others give it jobs.
type watcher struct {
	w      *watch
	ctx    context.Context
	cancel context.CancelFunc
	jobs   chan job   // unbuffered: handed over when the goroutine is free
	tries  chan tried // capacity mostOpen: nobody waits for a reader
	wg     sync.WaitGroup

	// Of the goroutine:
	idle    []*Node     // open connections; the end of the first is noticed at once
	open    int         // tries under way
	begun   time.Time   // when the newest of them began
	first   time.Time   // when the first of all began, or since when we run again
	turned  time.Time   // when the goroutine was last here
	late    time.Time   // when an answer was last late
	looked  time.Time   // when the last look began that was answered
	schema  schemaLevel // of the server
	refused bool        // a spare connection: the next question goes over an open one
	waiting []job       // for an answer to a try that began since

	primary chan struct{} // capacity 1: it was just seen as a primary

	mu   sync.Mutex
	rec  Record
	view election.Peer
	last Presence

	endedAt time.Time // when the server last ended our connection, the last that was open
	conns   map[*Node]bool
	wordAt  time.Time // when the server last ended one of them by its own word; zero: not since it was last seen
}

const (
	fewOpen  = 2           // connections where no answer is late
	mostOpen = 8           // and where some are
	fairFor  = time.Minute // without a late answer, until few are enough again
)

// job is work on a connection of the watcher. Without f it is a look.
type job struct {
	ctx  context.Context
	f    func(*Node) error
	done chan error // capacity 1: nobody waits for a reader
	at   time.Time  // when it was given
}

// tried is what came of one try over one connection.
type tried struct {
	node  *Node
	old   bool      // the connection was open before
	began time.Time // the try
	at    time.Time // the question
	brief *glance   // nil: it was a look, which gave what follows
	view  election.Peer
	pres  Presence
	err   error
}

func (n *watcher) setRecord(r Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rec = r
	n.view.Role, n.view.Priority, n.view.Location = election.Role(r.Role), r.Priority, r.Location
}

func (n *watcher) snapshot() election.Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// do runs f on an open connection as soon as the goroutine is free, and makes one
// where there is none. Without f it waits for an answer that was asked for since.
func (n *watcher) do(ctx context.Context, f func(*Node) error) error {
	if n == nil {
		return kind(ErrNotRegistered, "the node is not registered any more")
	}
	j := job{ctx, f, make(chan error, 1), time.Now()}
	select {
	case n.jobs <- j:
	case <-n.ctx.Done():
		return context.Cause(n.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if f != nil {
		return <-j.done // it ends with ctx
	}
	select {
	case err := <-j.done:
		return err
	case <-n.ctx.Done():
		return context.Cause(n.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *watcher) run() {
	defer func() {
		for ; n.open > 0; n.open-- { // each says one word, and its context has ended
			(<-n.tries).node.Close()
		}
		n.wg.Wait()
		for _, node := range n.idle {
			node.Close()
		}
	}()
	for n.turned = time.Now(); n.ctx.Err() == nil; {
		n.ask()
		n.markLate()
		n.wait()
	}
}

// ask begins a try where one is due: a pulse after the one before, whether that
// was answered or not; half of that where answers are late; and twice, so that
// some are left for later, where a new connection would come too late for a lease.
func (n *watcher) ask() {
	every := n.w.cluster().pulse()
	switch {
	case n.open >= mostOpen/2 && n.quiet() > 3*every:
		every *= 2
	case !n.fair():
		every /= 2
	}
	if time.Since(n.begun) >= every {
		n.try()
	}
}

// quiet is how long ago the question was asked that was answered last.
func (n *watcher) quiet() time.Duration {
	since := n.snapshot().SeenAt
	if since.Before(n.first) {
		since = n.first
	}
	return time.Since(since)
}

// fair says that no answer was late for a while.
func (n *watcher) fair() bool { return time.Since(n.late) >= fairFor }

// try asks once more, unless too much is under way.
func (n *watcher) try() {
	if n.open >= mostOpen {
		return
	}
	r := tried{began: time.Now()}
	if len(n.idle) > 0 && (n.refused || n.open+len(n.idle) >= fewOpen) {
		r.node, r.old, n.refused = n.idle[0], true, false
		n.idle = n.idle[1:]
	}
	n.open++
	n.begun = r.began
	if n.first.IsZero() {
		n.first = r.began
	}
	schema := n.schema
	asked := len(n.waiting) > 0 || !n.w.calm.Load()
	due := time.Since(n.looked) >= lookEvery*n.w.cluster().pulse()
	n.wg.Go(func() {
		limit := 4 * n.w.cluster().cfg.SilenceTimeout
		ctx, cancel := context.WithTimeoutCause(n.ctx, limit, fmt.Errorf("no answer within four times silence_timeout (%s)", limit))
		defer cancel()
		if r.node == nil {
			r.node, r.err = n.w.cluster().connectPatiently(ctx, n.record(), limit, schema != schemaOurs)
			n.opened(r.node, r.err)
		}
		if r.at = time.Now(); r.err == nil {
			r.look(ctx, n, due, asked)
		}
		n.tries <- r
	})
}

// look looks, or glances where nobody asked for more and nothing has changed.
func (r *tried) look(ctx context.Context, n *watcher, due, asked bool) {
	var g glance
	if r.old && !asked {
		if g, r.err = r.node.glance(ctx); r.err != nil {
			return
		}
		if !due && g.same(r.node.known) {
			r.brief = &g
			return
		}
	}
	if r.view, r.pres, r.err = r.node.peerView(ctx, n.w, n.record()); r.err == nil && g.state != nil {
		r.node.known = g
	}
}

// markLate notes that an answer is late, and, where nothing was answered for so
// long, that the node counts as silent.
func (n *watcher) markLate() {
	seen := n.snapshot()
	if time.Since(n.turned) > n.w.cluster().pulse() { // this process was stopped: its own silence is none of theirs
		n.first = time.Now()
	}
	n.turned = time.Now()
	if n.open == 0 {
		return
	}
	quiet := n.quiet()
	waited := slices.Contains([]election.Answer{election.Answers, election.Silent, election.Hangs, ""}, seen.Answer)
	if waited && quiet > n.w.cluster().pulse()+n.w.cluster().pulse()/2 {
		n.late = time.Now()
	}
	if quiet > n.w.cluster().cfg.SilenceTimeout/2 && (seen.Answer == election.Answers || seen.Answer == "") {
		n.answer(election.Silent, time.Now().Add(-quiet))
	}
}

// wait lets things rest for a part of a pulse, and notices at once what comes.
func (n *watcher) wait() {
	ctx, cancel := context.WithTimeout(n.ctx, n.w.cluster().pulse()/4)
	defer cancel()
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	var listened *Node
	if len(n.idle) > 0 {
		listened = n.idle[0]
		wg.Go(func() {
			_, err := listened.conn.WaitForNotification(ctx)
			ended <- err
		})
	}
	var then func()
	select {
	case j := <-n.jobs:
		then = func() { n.work(j) }
	case r := <-n.tries:
		then = func() { n.take(r) }
	case err := <-ended:
		if ctx.Err() == nil && listened.conn.IsClosed() {
			then = func() {
				n.idle = n.idle[1:]
				n.ended(listened, err)
				n.try()
			}
		}
	case <-ctx.Done():
	}
	cancel()
	wg.Wait()
	if then != nil {
		then()
	}
}

// take puts a try's outcome to use.
func (n *watcher) take(r tried) {
	n.open--
	switch {
	case r.err == nil:
		n.schema = r.node.schema
		if most := n.open + len(n.idle); most < fewOpen || !n.fair() && most < mostOpen {
			n.idle = append(n.idle, r.node)
		} else {
			n.closed(r.node)
		}
		n.publish(r)
		if r.brief != nil {
			return
		}
		n.looked = r.began
	case r.old && n.ctx.Err() == nil && r.node.conn.IsClosed() && time.Since(r.began) < n.w.cluster().cfg.SilenceTimeout:
		n.ended(r.node, r.err) // it may be back already
		n.try()
		return
	case r.node == nil && len(n.idle) > 0 && n.ctx.Err() == nil: // what answers says more
		n.refused = true
		n.try()
		return
	default:
		if r.node != nil && r.node.conn.IsClosed() && !errors.Is(r.err, context.DeadlineExceeded) {
			n.ended(r.node, r.err)
		}
		n.closed(r.node)
		n.schema = schemaNone
		if v := n.snapshot(); r.began.After(v.SeenAt) && !r.began.Before(v.Tried) {
			n.answer(answerOf(r.err), r.began)
		}
	}
	n.waiting = slices.DeleteFunc(n.waiting, func(j job) bool {
		if r.began.Before(j.at) && j.ctx.Err() == nil {
			return false
		}
		j.done <- nil
		return true
	})
}

// work does a job. Its connection may have died with a server that is back already.
func (n *watcher) work(j job) {
	if j.f == nil {
		n.waiting = append(n.waiting, j)
		n.try()
		return
	}
	var node *Node
	for node == nil && len(n.idle) > 0 {
		if node, n.idle = n.idle[0], n.idle[1:]; node.conn.IsClosed() {
			n.closed(node)
			node = nil
		}
	}
	var err error
	if node == nil {
		node, err = n.w.cluster().connectTo(j.ctx, n.record())
		n.opened(node, err)
	}
	if err == nil {
		if err = j.f(node); !node.conn.IsClosed() {
			n.idle = append([]*Node{node}, n.idle...)
		} else if j.ctx.Err() == nil {
			n.ended(node, err)
		} else {
			n.closed(node)
		}
	}
	j.done <- err
	n.try()
}

func (n *watcher) record() Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rec
}

// listen keeps a second connection to a primary, on which nothing is ever asked,
// where an election without proof of its death would have to wait for the fence:
// a server that dies over a question resets that connection, which proves nothing,
// and closes this one.
func (n *watcher) listen() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.primary:
		}
		v := n.snapshot()
		if v.Role == election.Witness || v.Rule.Quorum {
			continue
		}
		node, err := n.connectListener()
		if err != nil {
			continue
		}
		for err == nil {
			_, err = node.conn.WaitForNotification(n.ctx)
		}
		if n.ctx.Err() == nil && n.snapshot().Started.Equal(v.Started) { // it says nothing of a later start
			n.ended(node, err)
			n.w.wake()
			_ = n.do(n.ctx, nil)
		}
		n.closed(node)
	}
}

// listenerName is what pg_stat_activity shows of a connection that only listens.
const listenerName = "repmgrd listener"

func (n *watcher) connectListener() (*Node, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.w.cluster().cfg.SilenceTimeout)
	defer cancel()
	node, err := n.w.cluster().connectTo(ctx, n.record())
	if err != nil {
		return nil, err
	}
	if _, err = node.conn.Exec(ctx, `SELECT set_config('application_name', $1, false)`, listenerName); err != nil {
		node.Close()
	}
	n.opened(node, err)
	return node, err
}

// opened and closed keep what is open to the server.
func (n *watcher) opened(node *Node, err error) {
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns == nil {
		n.conns = map[*Node]bool{}
	}
	n.conns[node] = true
}

func (n *watcher) closed(node *Node) {
	node.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, node)
}

// ended notes that a connection has ended, not by us. Where none is left, and the
// server's own kernel or its last message has closed one, the server has ended:
// one session alone may have been terminated, or have been idle for too long.
func (n *watcher) ended(node *Node, err error) {
	node.Close()
	n.mu.Lock()
	delete(n.conns, node)
	if endsServer(err) {
		n.wordAt = time.Now()
	}
	over := !n.wordAt.IsZero() && len(n.conns) == 0
	if over {
		n.endedAt, n.view.Ended = time.Now(), true
	}
	n.mu.Unlock()
	if over {
		n.w.wake()
	}
}

// endsServer reports whether an error is what the end of a server says. A reset can
// come from elsewhere; idle_session_timeout (57P05) and a dropped database (57P04) end
// a session alone.
func endsServer(err error) bool {
	state := sqlState(err)
	return state == "57P01" || state == "57P02" || state == "" && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF))
}

// answerOf is what a failed attempt says of the server.
func answerOf(err error) election.Answer {
	var ce *ConnectError
	if !errors.As(err, &ce) {
		return election.Answers // it answered, if not with its state
	}
	switch ce.Reach {
	case ReachRefused:
		return election.Refused
	case ReachStarting:
		return election.NotAccepting
	case ReachFull:
		return election.NoSlots
	case ReachRejected:
		return election.Rejects
	case ReachTimeout:
		if ce.Doing == "" && ce.accepted() {
			return election.Hangs
		}
		return election.Silent
	case ReachOK, ReachNoRoute, ReachNoHost, ReachNotPostgres, ReachBroken:
		return election.Silent
	}
	return election.Silent
}

// answer notes an attempt that brought no view.
func (n *watcher) answer(a election.Answer, at time.Time) {
	n.mu.Lock()
	changed := n.view.Answer != a
	switch {
	case a == election.Refused:
		n.view.Starting = time.Time{}
	case a == election.NotAccepting && n.view.Starting.IsZero():
		n.view.Starting = time.Now()
	}
	if a != election.Refused && a != election.NotAccepting { // the end of a server is followed by a port that refuses
		n.view.Ended, n.wordAt = false, time.Time{}
	}
	n.view.Answer, n.view.Tried = a, at
	if changed {
		n.view.Since = time.Now()
	}
	n.mu.Unlock()
	if changed {
		n.w.wake()
	}
}

func (n *watcher) publish(r tried) {
	n.mu.Lock()
	v, p, at, old := r.view, r.pres, r.at, n.view
	if r.brief != nil {
		v, p = r.brief.update(old), n.last
	}
	if at.Before(old.SeenAt) { // overtaken by a later question
		n.mu.Unlock()
		return
	}
	v.ID, v.Role, v.Priority, v.Location = old.ID, old.Role, old.Priority, old.Location
	v.Answer, v.Tried, v.SeenAt, v.Since = election.Answers, at, at, old.Since
	if old.Answer != v.Answer {
		v.Since = time.Now()
	}
	v.Starting = time.Time{}
	if at.After(n.wordAt) {
		n.wordAt = time.Time{}
	}
	v.Ended = old.Ended && v.Started.Equal(old.Started) && n.endedAt.After(at) // this look is older than that
	if v.NoPledge != "" && v.Term == 0 {                                       // a vote that can not be read now was not taken back
		v.Term, v.Candidate, v.Chosen, v.Paused, v.PauseSeq = old.Term, old.Candidate, old.Chosen, old.Paused, old.PauseSeq
	}
	n.view, n.last = v, p
	n.mu.Unlock()
	if v.Running == election.Primary {
		select {
		case n.primary <- struct{}{}:
		default:
		}
	}
	if old.Answer != v.Answer || old.Running != v.Running || old.Term != v.Term || old.Rule.Compare(v.Rule) != 0 || old.Streams != v.Streams || old.Detached != v.Detached || old.Chosen != v.Chosen || old.Paused != v.Paused || old.PauseSeq != v.PauseSeq || old.NoPledge != v.NoPledge {
		n.w.wake()
	}
}
