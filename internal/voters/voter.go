package voters

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Voter looks at one node, over connections that stay open. In fair weather it
// asks over one and listens on the other: a server that dies over a question resets
// that connection, which proves nothing, and closes the one that is silent. Where an
// answer is late it asks over all of them, more often, and opens more: under loss of
// packets any may be the one that gets through, opening a new one takes several
// round trips, and a hung postmaster answers old ones only. What is late is still
// waited for. Its goroutine owns the connections; others borrow them.
type Voter struct {
	w       *Watch
	ctx     context.Context
	cancel  context.CancelFunc
	jobs    chan job     // unbuffered: handed over when the goroutine is free
	results chan attempt // capacity mostOpen; while a connection is out, it is read
	wg      sync.WaitGroup

	// Of the goroutine:
	idle           []*session     // open connections
	listener       *listener      // on one of them; nil: none is open
	open           int            // tries under way
	lent           int            // connections that somebody works on
	queue          []job          // for a connection
	newestAttempt  time.Time      // when the newest try began
	firstAttempt   time.Time      // when the first of all began, or since when we run again
	wakeBy         time.Time      // when the goroutine was to be here again at the latest
	late           time.Time      // when an answer was last late
	looked         time.Time      // when the last look began that was answered
	free           int            // connections that the server could still take then
	schema         registry.Level // of the server
	newConnRefused bool           // a spare connection: the next question goes over an open one
	skipped        bool           // nothing was asked in the last pulse, though it was time
	waiting        []job          // for an answer to a try that began since

	Mu   sync.Mutex
	rec  registry.Record
	View election.Peer
	Last registry.Presence

	endedAt        time.Time // when the server last ended our connection, the last that was open
	conns          map[*registry.Server]*session
	fault          string    // of its configuration; empty: none
	faultAt        time.Time // when that was asked
	shutdownSaidAt time.Time // when the server last ended one of them by its own word; zero: not since it was last seen
}

const (
	usualOpenConns = 2           // connections where no answer is late: an election finds one that the Monitor does not need itself
	maxOpenConns   = 8           // and where some are
	onTimePeriod   = time.Minute // without a late answer, until few are enough again
	connShare      = 4           // of the server's free connections, all daemons together take one in so many
)

// job is somebody who waits: for a connection, or, without lend, for a look.
type job struct {
	ctx     context.Context
	lend    chan attempt // capacity 1
	done    chan error   // capacity 1: nobody waits for a reader
	at      time.Time    // when it was given
	canWait bool         // it can wait for a moment rather than for a connection that is listened on
}

// attempt is a connection that comes back, and what came of one try over it.
type attempt struct {
	node   *session
	lent   bool      // it was lent
	reused bool      // the connection was open before
	began  time.Time // the try
	at     time.Time // the question
	glance *glance   // nil: it was a look, which gave what follows
	view   election.Peer
	pres   registry.Presence
	err    error
}

// listener waits for the end of a connection on which nothing is asked.
type listener struct {
	node  *session
	stop  context.CancelFunc
	ended chan error // capacity 1
}

func (n *Voter) setRecord(r registry.Record) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	n.rec = r
	n.View.Role, n.View.Priority, n.View.Location = election.Role(r.Role), r.Priority, r.Location
}

func (n *Voter) Peer() election.Peer {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.View
}

// look waits for an answer to a question that was asked after this call.
func (n *Voter) look(ctx context.Context) error {
	j := job{ctx: ctx, done: make(chan error, 1), at: time.Now()}
	if err := n.enqueue(ctx, j); err != nil {
		return err
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

func (n *Voter) enqueue(ctx context.Context, j job) error {
	if n == nil {
		return failure.Of(failure.ErrNotRegistered, "the node is not registered any more")
	}
	select {
	case n.jobs <- j:
		return nil
	case <-n.ctx.Done():
		return context.Cause(n.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *Voter) run() {
	for n.wakeBy = time.Now(); n.ctx.Err() == nil; {
		n.lendConnections()
		n.ask()
		n.markLate()
		n.wait()
	}
	for _, j := range n.queue {
		j.lend <- attempt{err: context.Cause(n.ctx)}
	}
	n.stopListening()
	for n.open+n.lent > 0 { // each says one word: its context has ended, or somebody gives it back
		r := <-n.results
		n.countReturned(r)
		if r.node != nil {
			r.node.Close()
		}
	}
	n.wg.Wait()
	for _, node := range n.idle {
		node.Close()
	}
}

// maxOpen is how many may be open at once: a few, and this daemon's share of what the
// server has free, so that all of them together leave most of that to others.
func (n *Voter) maxOpen() int {
	if n.looked.IsZero() {
		return 2 * usualOpenConns
	}
	return min(maxOpenConns, usualOpenConns+n.free/(connShare*n.w.daemons()))
}

// connWait is how long a connection is waited for in fair weather before another
// one is opened.
func (n *Voter) connWait() time.Duration {
	if n.answersOnTime() && n.open+n.lent > 0 {
		return n.w.heartbeatInterval() / 8
	}
	return 0
}

// lendConnections hands out connections.
func (n *Voter) lendConnections() {
	for len(n.queue) > 0 {
		j := n.queue[0]
		if j.canWait && n.open > 0 && len(n.idle) == 1 && n.listener != nil && time.Since(j.at) < n.connWait() {
			return
		}
		var node *session
		if j.ctx.Err() == nil {
			node = n.takeIdle()
		}
		switch {
		case j.ctx.Err() != nil && node == nil:
			j.lend <- attempt{err: context.Cause(j.ctx)}
		case node != nil:
			n.lent++
			j.lend <- attempt{node: node}
		case time.Since(j.at) < n.connWait():
			return
		default:
			n.lent++
			n.wg.Go(func() {
				rec := n.record()
				server, err := registry.Connect(j.ctx, rec.String(), n.w.Settings().Conninfo(rec))
				if err != nil {
					n.results <- attempt{lent: true}
					j.lend <- attempt{err: err}
					return
				}
				node := &session{Server: server}
				n.opened(node)
				j.lend <- attempt{node: node}
			})
		}
		n.queue = n.queue[1:]
	}
}

// attemptInterval is the time between two tries: a pulse, whether the one before was
// answered or not; half of that where answers are late; and twice, so that some
// are left for later, where a new connection would come too late for a lease.
func (n *Voter) attemptInterval() time.Duration {
	every := n.w.heartbeatInterval()
	switch {
	case n.open >= maxOpenConns/2 && n.unansweredFor() > 3*every:
		return every * 2
	case !n.answersOnTime():
		return every / 2
	}
	return every
}

// ask begins a try where one is due, and a connection is free, or none will be soon.
func (n *Voter) ask() {
	over := time.Since(n.newestAttempt) - n.attemptInterval()
	if over >= 0 && (n.lent == 0 || len(n.idle) > 0 || over >= n.connWait()) {
		if n.skipped = !n.skipped && n.skipsHeartbeat(); n.skipped {
			n.newestAttempt = time.Now()
			n.firstAttempt = n.newestAttempt // what was not asked was not late
		} else {
			n.startAttempt()
		}
		n.newestAttempt = n.newestAttempt.Add(-SinceTick(n.attemptInterval()))
	}
}

// skipsHeartbeat reports whether the voter need not be asked in this heartbeat: on a standby, another
// standby that answers is asked less often while the primary is seen. The end of its server is
// noticed at once all the same, and an election asks all voters again.
func (n *Voter) skipsHeartbeat() bool {
	v := n.Peer()
	return n.w.skipStandbys.Load() && n.open == 0 && len(n.waiting) == 0 && n.listener != nil && n.answersOnTime() &&
		v.Answer == election.Answers && v.Running == election.Standby && v.Role == election.Standby && v.ID != int32(n.w.Settings().Self)
}

// unansweredFor is how long ago the question was asked that was answered last.
func (n *Voter) unansweredFor() time.Duration {
	since := n.Peer().SeenAt
	if since.Before(n.firstAttempt) {
		since = n.firstAttempt
	}
	return time.Since(since)
}

// answersOnTime says that no answer was late for a while.
func (n *Voter) answersOnTime() bool { return time.Since(n.late) >= onTimePeriod }

// takeIdle takes an open connection, if there is one: the one that is listened on last.
func (n *Voter) takeIdle() *session {
	i := slices.IndexFunc(n.idle, func(node *session) bool { return n.listener == nil || n.listener.node != node })
	if i < 0 {
		n.stopListening()
		i = 0
	}
	if len(n.idle) == 0 {
		return nil
	}
	node := n.idle[i]
	n.idle = slices.Delete(n.idle, i, i+1)
	return node
}

// startAttempt asks once more, unless too much is under way.
func (n *Voter) startAttempt() {
	r := attempt{began: time.Now()}
	total := n.open + len(n.idle)
	if n.newConnRefused || total >= usualOpenConns || len(n.waiting) > 0 {
		r.node = n.takeIdle()
	}
	switch {
	case r.node != nil:
		r.reused, n.newConnRefused = true, false
	case n.open+len(n.idle) >= n.maxOpen():
		return
	}
	n.open++
	n.newestAttempt = r.began
	if n.firstAttempt.IsZero() {
		n.firstAttempt = r.began
	}
	schema := n.schema
	asked := len(n.waiting) > 0 || !n.w.glancesSuffice.Load()
	due := time.Since(n.looked) >= heartbeatsPerLook*n.w.heartbeatInterval()
	n.wg.Go(func() {
		limit := 4 * n.w.Settings().SilenceTimeout
		ctx, cancel := context.WithTimeoutCause(n.ctx, limit, fmt.Errorf("no answer within four times silence_timeout (%s)", limit))
		defer cancel()
		if r.node == nil {
			settled := schema != registry.Ours
			rec := n.record()
			var server *registry.Server
			if server, r.err = registry.ConnectPatiently(ctx, rec.String(), n.w.Settings().Conninfo(rec), limit, settled); r.err == nil {
				r.node = &session{Server: server, unsettled: !settled}
				n.opened(r.node)
			}
		}
		if r.at = time.Now(); r.err == nil {
			r.look(ctx, n, due, asked)
		}
		n.results <- r
	})
}

// look looks, or glances where nobody asked for more and nothing has changed.
func (r *attempt) look(ctx context.Context, n *Voter, due, asked bool) {
	var g glance
	if r.reused && !asked {
		if g, r.err = r.node.glance(ctx); r.err != nil {
			return
		}
		if !due && g.same(r.node.known) {
			r.glance = &g
			return
		}
	}
	if r.view, r.pres, r.err = r.node.peerView(ctx, n.w, n.record()); r.err == nil && g.state != nil {
		r.node.known = g
	}
}

// markLate notes that an answer is late, and, where nothing was answered for so
// long, that the node counts as silent.
func (n *Voter) markLate() {
	seen := n.Peer()
	if time.Since(n.wakeBy) > n.w.heartbeatInterval() { // this process was stopped: its own silence is none of theirs
		n.firstAttempt = time.Now()
	}
	if n.open == 0 {
		return
	}
	quiet := n.unansweredFor()
	waited := slices.Contains([]election.Answer{election.Answers, election.Silent, election.Hangs, ""}, seen.Answer)
	if waited && quiet > n.lateAfter() {
		n.late = time.Now()
	}
	if quiet > n.w.Settings().SilenceTimeout/2 && (seen.Answer == election.Answers || seen.Answer == "") {
		n.noteAnswer(election.Silent, time.Now().Add(-quiet), nil)
	}
}

// lateAfter is how long after a question that was answered another one is late.
func (n *Voter) lateAfter() time.Duration { return n.w.heartbeatInterval() * 3 / 2 }

// untilDue is how long nothing is due.
func (n *Voter) untilDue() time.Duration {
	pulse := n.w.heartbeatInterval()
	due := n.attemptInterval() - time.Since(n.newestAttempt)
	if n.open > 0 {
		quiet := n.unansweredFor()
		for _, limit := range []time.Duration{n.lateAfter(), n.w.Settings().SilenceTimeout / 2} {
			if quiet <= limit {
				due = min(due, limit-quiet+time.Millisecond)
			}
		}
	}
	if len(n.queue) > 0 {
		due = min(due, n.connWait()-time.Since(n.queue[0].at))
	}
	return max(due, pulse/32) // where too much is under way, what is due waits
}

// wait lets things rest until something is due, and notices at once what comes.
func (n *Voter) wait() {
	rest, pulse := n.untilDue(), n.w.heartbeatInterval()
	n.wakeBy = time.Now().Add(min(rest, pulse))
	tick := n.w.ticks.coming()
	var due <-chan time.Time
	if rest < pulse-SinceTick(pulse)-pulse/16 { // else it is due at the next tick
		t := time.NewTimer(rest)
		defer t.Stop()
		due = t.C
	}
	var ended chan error
	if n.listen(); n.listener != nil {
		ended = n.listener.ended
	}
	select {
	case j := <-n.jobs:
		n.handleJob(j)
	case r := <-n.results:
		n.handleResult(r)
	case err := <-ended:
		node := n.listener.node
		n.listener.stop()
		n.listener = nil
		n.connectionEnded(node, err)
	case <-tick:
	case <-due:
	case <-n.ctx.Done():
	}
}

// listen waits for the end of an open connection, where it does for none.
func (n *Voter) listen() {
	if n.listener != nil || len(n.idle) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(n.ctx)
	e := &listener{n.idle[0], cancel, make(chan error, 1)}
	n.listener = e
	n.wg.Go(func() {
		_, err := e.node.Conn.WaitForNotification(ctx)
		e.ended <- err
	})
}

// stopListening ends the listening.
func (n *Voter) stopListening() {
	if e := n.listener; e != nil {
		e.stop()
		n.listener = nil
		n.connectionEnded(e.node, <-e.ended)
	}
}

// connectionEnded notes the end of a connection that was listened on, if it has ended.
func (n *Voter) connectionEnded(node *session, err error) {
	if !node.Conn.IsClosed() || n.ctx.Err() != nil {
		return
	}
	n.idle = slices.DeleteFunc(n.idle, func(other *session) bool { return other == node })
	n.noteEnded(node, err)
	n.startAttempt()
}

// countReturned notes that a connection is back.
func (n *Voter) countReturned(r attempt) {
	if r.lent {
		n.lent--
	} else {
		n.open--
	}
}

// keepOpen leaves a connection open for later, where it is wanted.
func (n *Voter) keepOpen(node *session) {
	if total := n.open + len(n.idle); !node.Conn.IsClosed() && (total < usualOpenConns || !n.answersOnTime() && total < n.maxOpen()) {
		n.idle = append(n.idle, node)
		return
	}
	n.wg.Go(func() { n.closed(node) })
}

// handleResult puts a try's outcome to use.
func (n *Voter) handleResult(r attempt) {
	n.countReturned(r)
	switch {
	case r.lent:
		switch {
		case r.node == nil:
		case r.node.Conn.IsClosed() && r.err != nil && !errors.Is(r.err, context.DeadlineExceeded) && !errors.Is(r.err, context.Canceled):
			n.noteEnded(r.node, r.err)
		default:
			n.keepOpen(r.node)
		}
		return
	case r.err == nil:
		n.schema = r.node.Level
		if r.glance == nil {
			n.looked, n.free = r.began, r.node.free
		}
		n.keepOpen(r.node)
		n.publishView(r)
		if r.glance != nil {
			return
		}
	case r.reused && n.ctx.Err() == nil && r.node.Conn.IsClosed() && time.Since(r.began) < n.w.Settings().SilenceTimeout:
		n.noteEnded(r.node, r.err) // it may be back already
		n.startAttempt()
		return
	case r.node == nil && len(n.idle) > 0 && n.ctx.Err() == nil: // what answers says more
		n.newConnRefused = true
		n.startAttempt()
		return
	default:
		if r.node != nil && r.node.Conn.IsClosed() && !errors.Is(r.err, context.DeadlineExceeded) {
			n.noteEnded(r.node, r.err)
		}
		n.wg.Go(func() { n.closed(r.node) })
		n.schema = registry.None
		if v := n.Peer(); r.began.After(v.SeenAt) && !r.began.Before(v.Tried) {
			n.noteAnswer(answerOf(r.err), r.began, r.err)
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

// handleJob takes a job.
func (n *Voter) handleJob(j job) {
	if j.lend != nil {
		n.queue = append(n.queue, j)
		return
	}
	n.waiting = append(n.waiting, j)
	n.startAttempt()
}

func (n *Voter) record() registry.Record {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.rec
}

// WithoutTLS reports whether an open connection to the server is one without TLS.
func (n *Voter) WithoutTLS() bool {
	if n == nil {
		return false
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for node := range n.conns {
		if _, ok := node.Conn.PgConn().Conn().(*tls.Conn); !ok {
			return true
		}
	}
	return false
}

// opened and closed keep what is open to the server.
func (n *Voter) opened(node *session) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.conns == nil {
		n.conns = map[*registry.Server]*session{}
	}
	n.conns[node.Server] = node
}

// session is what the watcher knows of a connection; one that is not its own it knows nothing of.
func (n *Voter) session(server *registry.Server) *session {
	if n != nil {
		n.Mu.Lock()
		defer n.Mu.Unlock()
		if s := n.conns[server]; s != nil {
			return s
		}
	}
	return &session{Server: server}
}

// faultSeen is what was wrong with its configuration when somebody last asked,
// whatever connection that was on: what one knows is not to be unknown to the other.
func (n *Voter) faultSeen() (at time.Time, fault string) {
	if n == nil {
		return at, ""
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.faultAt, n.fault
}

func (n *Voter) setFault(at time.Time, fault string) {
	if n != nil {
		n.Mu.Lock()
		defer n.Mu.Unlock()
		if at.After(n.faultAt) {
			n.faultAt, n.fault = at, fault
		}
	}
}

func (n *Voter) closed(node *session) {
	if node == nil {
		return
	}
	node.Close()
	n.Mu.Lock()
	defer n.Mu.Unlock()
	delete(n.conns, node.Server)
}

// noteEnded notes that a connection has ended, not by us. Where none is left, and the
// server's own kernel or its last message has closed one, the server has ended:
// one session alone may have been terminated, or have been idle for too long.
func (n *Voter) noteEnded(node *session, err error) {
	node.Close()
	n.Mu.Lock()
	delete(n.conns, node.Server)
	if endsServer(err) {
		n.shutdownSaidAt = time.Now()
	}
	over := !n.shutdownSaidAt.IsZero() && len(n.conns) == 0
	if over {
		n.endedAt, n.View.Ended = time.Now(), true
	}
	n.Mu.Unlock()
	if over {
		n.w.wake()
	}
}

// endsServer reports whether an error is what the end of a server says. A reset can
// come from elsewhere; idle_session_timeout (57P05) and a dropped database (57P04) end
// a session alone.
func endsServer(err error) bool {
	state := postgres.SQLState(err)
	return state == "57P01" || state == "57P02" || state == "" && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF))
}

// answerOf is what a failed attempt says of the server.
func answerOf(err error) election.Answer {
	var ce *postgres.ConnectError
	if !errors.As(err, &ce) {
		return election.Answers // it answered, if not with its state
	}
	switch ce.Reach {
	case postgres.ReachRefused:
		return election.Refused
	case postgres.ReachStarting:
		return election.NotAccepting
	case postgres.ReachFull:
		return election.NoSlots
	case postgres.ReachRejected:
		return election.Rejects
	case postgres.ReachTimeout:
		if ce.Doing == "" && postgres.Accepted(ce) {
			return election.Hangs
		}
		return election.Silent
	case postgres.ReachOK, postgres.ReachNoRoute, postgres.ReachNoHost, postgres.ReachNotPostgres, postgres.ReachBroken:
		return election.Silent
	}
	return election.Silent
}

// rejection says why a server rejects a login, in its words.
func rejection(err error) string {
	var ce *postgres.ConnectError
	if !errors.As(err, &ce) {
		return ""
	}
	return postgres.Cause(ce.Err)
}

// noteAnswer notes an attempt that brought no view.
func (n *Voter) noteAnswer(a election.Answer, at time.Time, err error) {
	n.Mu.Lock()
	changed := n.View.Answer != a
	switch {
	case a == election.Refused:
		n.View.Starting = time.Time{}
	case a == election.NotAccepting && n.View.Starting.IsZero():
		n.View.Starting = time.Now()
	}
	if a != election.Refused && a != election.NotAccepting { // the end of a server is followed by a port that refuses
		n.View.Ended, n.shutdownSaidAt = false, time.Time{}
	}
	n.View.Answer, n.View.Tried, n.View.Rejection = a, at, ""
	if a == election.Rejects {
		n.View.Rejection = rejection(err)
	}
	if changed {
		n.View.Since = time.Now()
	}
	n.Mu.Unlock()
	if changed {
		n.w.wake()
	}
}

func (n *Voter) publishView(r attempt) {
	n.Mu.Lock()
	v, p, at, old := r.view, r.pres, r.at, n.View
	if r.glance != nil {
		v, p = r.glance.update(old), n.Last
	}
	if at.Before(old.SeenAt) { // overtaken by a later question
		n.Mu.Unlock()
		return
	}
	v.ID, v.Role, v.Priority, v.Location = old.ID, old.Role, old.Priority, old.Location
	v.Answer, v.Tried, v.SeenAt, v.Since = election.Answers, at, at, old.Since
	if old.Answer != v.Answer {
		v.Since = time.Now()
	}
	v.Starting = time.Time{}
	if at.After(n.shutdownSaidAt) {
		n.shutdownSaidAt = time.Time{}
	}
	v.Ended = old.Ended && v.Started.Equal(old.Started) && n.endedAt.After(at) // this look is older than that
	if v.NoPledge != "" && v.Term == 0 {                                       // a vote that can not be read now was not taken back
		v.Term, v.Candidate, v.Chosen, v.Paused, v.PauseSeq = old.Term, old.Candidate, old.Chosen, old.Paused, old.PauseSeq
	}
	n.View, n.Last = v, p
	n.Mu.Unlock()
	if old.Answer != v.Answer || old.Running != v.Running || old.Term != v.Term || old.Rule.Compare(v.Rule) != 0 || old.Streams != v.Streams || old.Detached != v.Detached || old.Archive != v.Archive || old.Chosen != v.Chosen || old.Paused != v.Paused || old.PauseSeq != v.PauseSeq || old.NoPledge != v.NoPledge {
		n.w.wake()
	}
}
