package voters

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/registry"
)

// Voter probes one node over connections that stay open. Normally there are two: it asks over
// one and listens on the other, where nothing is asked. A server that dies while it handles a
// question resets that connection, which proves nothing, but it closes the one that is only
// listened on.
//
// Where an answer is late, it asks over all connections, more often, and opens more. When
// packets are lost any connection may be the one that gets through; opening a new one takes
// several round trips; and a postmaster that hangs still answers on old connections. A late
// answer is still accepted. The goroutine of run owns the connections, and lends them to
// others.
type Voter struct {
	w       *Watch
	ctx     context.Context
	cancel  context.CancelFunc
	jobs    chan job     // unbuffered, so a job is handed over when the goroutine is free
	results chan attempt // capacity maxOpenConns; it is read as long as a connection is in use
	wg      sync.WaitGroup

	// The fields down to waiting belong to the goroutine of run.
	idle           []*session     // open connections that are not in use
	listener       *listener      // waits for the end of one idle connection; nil: none
	open           int            // attempts that run now
	lent           int            // connections that are lent
	queue          []job          // jobs that wait for a connection
	newestAttempt  time.Time      // when the newest attempt began
	firstAttempt   time.Time      // when the first attempt began; later than that after this process itself was stopped
	wakeBy         time.Time      // the latest time at which the goroutine should run again
	late           time.Time      // when an answer was late for the last time
	looked         time.Time      // when the last look that succeeded began
	free           int            // the number of connections that the server could still accept then
	schema         registry.Level // of the server
	newConnRefused bool           // a further connection was refused, so the next question uses one that is open
	skipped        bool           // the last heartbeat was skipped: see skipsHeartbeat
	waiting        []job          // jobs that wait for the answer to an attempt that began after they were given

	Mu   sync.Mutex
	rec  registry.Record
	View election.Peer
	Last registry.Announcement

	endedAt        time.Time // when the server last ended the last connection that was open to it
	conns          map[*registry.Server]*session
	fault          string    // what is wrong with its configuration; empty: nothing
	faultAt        time.Time // when that was checked
	shutdownSaidAt time.Time // when the server last said, by a message or by closing a connection in order, that it ends; zero: not since it was last seen
}

const (
	usualOpenConns = 2           // while answers come in time; one is free for an election
	maxOpenConns   = 8           // while answers are late
	onTimePeriod   = time.Minute // the time without a late answer after which usualOpenConns is enough again
	connShare      = 4           // all daemons together use one of this many free connections of the server
)

// job is a caller that waits for a connection or, where lend is nil, for the result of a look.
type job struct {
	ctx     context.Context
	lend    chan attempt // capacity 1
	done    chan error   // capacity 1, so that the sender never waits
	at      time.Time    // when the job was given
	canWait bool         // the caller prefers to wait a moment over taking the connection that is listened on
}

// attempt is a connection that comes back to the goroutine of run, with the result of one probe
// over it.
type attempt struct {
	node   *session
	lent   bool      // the connection was lent
	reused bool      // the connection was open before this attempt
	began  time.Time // when the attempt began
	at     time.Time // when the question was sent
	glance *glance   // nil: it was a look, whose results are view and pres
	view   election.Peer
	pres   registry.Announcement
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

// look probes the node in full, and waits for an answer to a question that was asked after this
// call.
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
	for n.open+n.lent > 0 { // each sends one result: its context has ended, or its borrower gives it back
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

// maxOpen is the number of connections that may be open at once: a few, and this daemon's share
// of those that the server has free. All daemons together leave most of them to others.
func (n *Voter) maxOpen() int {
	if n.looked.IsZero() {
		return 2 * usualOpenConns
	}
	return min(maxOpenConns, usualOpenConns+n.free/(connShare*n.w.daemons()))
}

// connWait is how long a job waits for a connection in use before another one is opened.
func (n *Voter) connWait() time.Duration {
	if n.answersOnTime() && n.open+n.lent > 0 {
		return n.w.heartbeatInterval() / 8
	}
	return 0
}

// lendConnections gives connections to the jobs in the queue.
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

// attemptInterval is the time between two attempts. It is one heartbeat interval, whether the
// attempt before was answered or not; half of that while answers are late; and two of them when
// many attempts are open already and the silence is long: then some connections must be left
// for later, because a new one would come too late for a lease.
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

// ask starts an attempt when one is due and a connection is free, or will not be free soon.
func (n *Voter) ask() {
	over := time.Since(n.newestAttempt) - n.attemptInterval()
	if over >= 0 && (n.lent == 0 || len(n.idle) > 0 || over >= n.connWait()) {
		if n.skipped = !n.skipped && n.skipsHeartbeat(); n.skipped {
			n.newestAttempt = time.Now()
			n.firstAttempt = n.newestAttempt // a question that was not asked can not be answered late
		} else {
			n.startAttempt()
		}
		n.newestAttempt = n.newestAttempt.Add(-SinceTick(n.attemptInterval()))
	}
}

// skipsHeartbeat reports whether the voter need not be probed in this heartbeat: the daemon of
// a standby probes another standby that answers less often while it sees the primary. The end
// of that server is noticed at once all the same, and an election probes all voters again.
func (n *Voter) skipsHeartbeat() bool {
	v := n.Peer()
	return n.w.skipStandbys.Load() && n.open == 0 && len(n.waiting) == 0 && n.listener != nil && n.answersOnTime() &&
		v.Answer == election.Answers && v.Running == election.Standby && v.Role == election.Standby && v.ID != int32(n.w.Settings().Self)
}

// unansweredFor is the time since the newest question that was answered was asked.
func (n *Voter) unansweredFor() time.Duration {
	since := n.Peer().SeenAt
	if since.Before(n.firstAttempt) {
		since = n.firstAttempt
	}
	return time.Since(since)
}

// answersOnTime reports whether no answer was late for a while.
func (n *Voter) answersOnTime() bool { return time.Since(n.late) >= onTimePeriod }

// takeIdle returns an open connection that is not in use, or nil. It takes the one that is
// listened on only when there is no other.
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

// startAttempt starts one more probe, unless too many connections are open.
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

// look reads the full view of a node, or only a glance where nobody asked for more and the
// glance shows no change.
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

// markLate notes that an answer is late. After half of silence_timeout without an answer, the
// node counts as silent.
func (n *Voter) markLate() {
	seen := n.Peer()
	if time.Since(n.wakeBy) > n.w.heartbeatInterval() { // this process was stopped for a while, so the silence may be its own
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

// lateAfter is the time after an answered question at which the next answer counts as late.
func (n *Voter) lateAfter() time.Duration { return n.w.heartbeatInterval() * 3 / 2 }

// untilDue is the time until there is something to do.
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
	return max(due, pulse/32) // the lower limit keeps this from spinning while too many connections are open
}

// wait rests until something is due or something happens: a job, a result, or the end of the
// connection that is listened on.
func (n *Voter) wait() {
	rest, pulse := n.untilDue(), n.w.heartbeatInterval()
	n.wakeBy = time.Now().Add(min(rest, pulse))
	tick := n.w.ticks.coming()
	var due <-chan time.Time
	if rest < pulse-SinceTick(pulse)-pulse/16 { // otherwise it is done at the next tick
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

// listen starts to wait for the end of an idle connection, if it waits for none yet.
func (n *Voter) listen() {
	if n.listener != nil || len(n.idle) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(n.ctx)
	e := &listener{n.idle[0], cancel, make(chan error, 1)}
	n.listener = e
	n.wg.Go(func() {
		_, err := e.node.Conn.WaitForNotification(ctx)
		if !e.node.Conn.IsClosed() { // it was only told to stop listening
			nowait.GoesOn(e.node.Conn.PgConn().Conn())
		}
		e.ended <- err
	})
}

// stopListening makes the connection that is listened on free for use.
func (n *Voter) stopListening() {
	if e := n.listener; e != nil {
		e.stop()
		n.listener = nil
		n.connectionEnded(e.node, <-e.ended)
	}
}

// connectionEnded handles the end of a connection that was listened on, and probes at once.
func (n *Voter) connectionEnded(node *session, err error) {
	if !node.Conn.IsClosed() || n.ctx.Err() != nil {
		return
	}
	n.idle = slices.DeleteFunc(n.idle, func(other *session) bool { return other == node })
	n.noteEnded(node, err)
	n.startAttempt()
}

// countReturned counts a connection that has come back.
func (n *Voter) countReturned(r attempt) {
	if r.lent {
		n.lent--
	} else {
		n.open--
	}
}

// keepOpen keeps a connection for later use, or closes it where there are enough.
func (n *Voter) keepOpen(node *session) {
	if total := n.open + len(n.idle); !node.Conn.IsClosed() && (total < usualOpenConns || !n.answersOnTime() && total < n.maxOpen()) {
		n.idle = append(n.idle, node)
		return
	}
	n.wg.Go(func() { n.closed(node) })
}

// handleResult takes the result of an attempt, or a connection that was lent.
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
		n.noteEnded(r.node, r.err) // the server may have been restarted already
		n.startAttempt()
		return
	case r.node == nil && len(n.idle) > 0 && n.ctx.Err() == nil: // an open connection tells more than a refused one
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
			n.noteAnswer(AnswerOf(r.err), r.began, r.err)
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

// handleJob accepts a job.
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

// opened and closed maintain the list of all connections to the server.
func (n *Voter) opened(node *session) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.conns == nil {
		n.conns = map[*registry.Server]*session{}
	}
	n.conns[node.Server] = node
}

// session returns what is known of a connection. Of a connection that is not its own it knows
// nothing.
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

func (n *Voter) closed(node *session) {
	if node == nil {
		return
	}
	node.Close()
	n.Mu.Lock()
	defer n.Mu.Unlock()
	delete(n.conns, node.Server)
}
