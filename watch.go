package repmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/wal"
)

// watch looks at all voters without end, each over a connection of its own that
// stays open. A server's death is noticed when its kernel closes that
// connection, and an election finds the connections open. It is safe for
// concurrent use.
type watch struct {
	c    *Cluster
	wake func() // called when a voter's answer or what it says of the election has changed
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	nodes map[NodeID]*watcher
	recs  []Record
	arb   election.Peer
}

func newWatch(ctx context.Context, c *Cluster, wake func()) *watch {
	w := &watch{c: c, wake: wake, nodes: map[NodeID]*watcher{}}
	w.ctx, w.stop = context.WithCancel(ctx)
	if c.cfg.Arbiter != nil {
		w.arb = election.Peer{ID: election.Arbiter}
		w.wg.Go(func() { w.watchArbiter(w.ctx) })
	}
	return w
}

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
	for id, n := range w.nodes {
		if r, ok := recordByID(recs, id); !ok || r.Conninfo != n.rec.Conninfo {
			n.cancel()
			delete(w.nodes, id)
		}
	}
	for _, r := range recs {
		if n := w.nodes[r.ID]; n != nil {
			n.setRecord(r)
			continue
		}
		n := &watcher{w: w, rec: r, jobs: make(chan job), tries: make(chan tried, mostTries), primary: make(chan struct{}, 1)}
		n.view = election.Peer{ID: int32(r.ID)}
		n.setRecord(r)
		n.ctx, n.cancel = context.WithCancel(w.ctx)
		w.nodes[r.ID] = n
		w.wg.Go(n.run)
		w.wg.Go(n.listen)
	}
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
	for i := range all {
		all[i].Forsaken = w.forsaken(all[i].Candidate)
	}
	return all
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
	return strings.ReplaceAll(orDefault(node, "observer"), "/", "-")
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
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	w.mu.Lock()
	nodes := make([]*watcher, 0, len(w.nodes))
	for _, n := range w.nodes {
		if a := n.snapshot().Answer; a != election.Silent && a != election.Hangs { // these are being asked anyway
			nodes = append(nodes, n)
		}
	}
	w.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { _ = n.do(ctx, nil) })
	}
	if w.c.cfg.Arbiter != nil {
		wg.Go(func() { w.lookArbiter(ctx) })
	}
	wg.Wait()
	return w.peers()
}

// newest is the newest rule that any voter holds.
func newest(peers []election.Peer) (r election.Rule) {
	for _, p := range peers {
		if p.Rule.Compare(r) > 0 {
			r = p.Rule
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
		_ = pause(ctx, w.c.pulse())
	}
}

func (w *watch) lookArbiter(ctx context.Context) {
	at := time.Now()
	ctx, cancel := context.WithTimeout(ctx, w.c.cfg.SilenceTimeout)
	defer cancel()
	st, err := w.c.cfg.Arbiter.Look(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
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

// watcher looks at one node, over a connection that stays open. Where an answer
// is late it asks again over another one, and keeps that: under loss of packets
// any of them may be the one that gets through, opening a new one takes many
// round trips, and a hung postmaster answers old ones only. What is late is
// still waited for. Its goroutine owns the connections; others give it jobs.
type watcher struct {
	w      *watch
	ctx    context.Context
	cancel context.CancelFunc
	jobs   chan job   // unbuffered: handed over when the goroutine is free
	tries  chan tried // capacity mostTries: nobody waits for a reader
	wg     sync.WaitGroup

	// Of the goroutine:
	idle    []*Node   // open connections; the end of the first is noticed at once
	open    int       // tries under way
	begun   time.Time // when the newest of them began
	first   time.Time // when the first of all began
	late    time.Time // when an answer was last late
	waiting []job     // for an answer to a try that began since

	primary chan struct{} // capacity 1: it was just seen as a primary

	mu   sync.Mutex
	rec  Record
	view election.Peer
	last Presence

	endedAt time.Time // when the server last ended our connection
}

const (
	mostTries = 6 // at a time
	mostIdle  = 3
	fairFor   = time.Minute // without a late answer, until one connection is enough again
)

// job is work on a connection of the watcher. Without f it is a look.
type job struct {
	ctx  context.Context
	f    func(*Node) error
	done chan error // capacity 1: nobody waits for a reader
	at   time.Time  // when it was given
}

// tried is what came of one look over one connection.
type tried struct {
	node  *Node
	old   bool      // the connection was open before
	began time.Time // the try
	at    time.Time // the question
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
		n.wg.Wait()
		for n.open > 0 {
			n.open--
			(<-n.tries).node.Close()
		}
		for _, node := range n.idle {
			node.Close()
		}
	}()
	for n.ctx.Err() == nil {
		n.ask()
		n.markLate()
		n.wait()
	}
}

// ask begins a try where one is due: a pulse after the one before, whether that
// was answered or not.
func (n *watcher) ask() {
	if n.open < mostTries && time.Since(n.begun) >= n.w.c.pulse() {
		n.try()
	}
}

func (n *watcher) try() {
	r := tried{began: time.Now()}
	if len(n.idle) > 0 {
		r.node, r.old = n.idle[0], true
		n.idle = n.idle[1:]
	}
	n.open++
	n.begun = r.began
	if n.first.IsZero() {
		n.first = r.began
	}
	n.wg.Go(func() {
		limit := 2 * n.w.c.cfg.SilenceTimeout
		ctx, cancel := context.WithTimeoutCause(n.ctx, limit, fmt.Errorf("no answer within twice silence_timeout (%s)", limit))
		defer cancel()
		if r.node == nil {
			r.node, r.err = n.w.c.connectPatiently(ctx, n.record(), limit)
		}
		if r.at = time.Now(); r.err == nil {
			r.view, r.pres, r.err = r.node.peerView(ctx, n.w, n.record())
		}
		n.tries <- r
	})
}

// markLate notes that nothing was answered for so long that the node counts as silent.
func (n *watcher) markLate() {
	seen := n.snapshot()
	since := seen.SeenAt
	if since.Before(n.first) {
		since = n.first
	}
	limit := n.w.c.cfg.SilenceTimeout
	if n.open > 0 && time.Since(since) > limit/2 {
		n.late = time.Now()
		if seen.Answer == election.Answers || seen.Answer == "" {
			n.answer(election.Silent, since)
		}
	}
}

// wait lets things rest for a part of a pulse, and notices at once what comes.
func (n *watcher) wait() {
	ctx, cancel := context.WithTimeout(n.ctx, n.w.c.pulse()/4)
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
		if len(n.idle) < mostIdle && (len(n.idle) == 0 || time.Since(n.late) < fairFor) {
			n.idle = append(n.idle, r.node)
		} else {
			r.node.Close()
		}
		n.publish(r.view, r.pres, r.at)
	case r.old && n.ctx.Err() == nil && r.node.conn.IsClosed() && time.Since(r.began) < n.w.c.cfg.SilenceTimeout:
		n.ended(r.node, r.err) // it may be back already
		n.try()
		return
	default:
		r.node.Close()
		if r.began.After(n.snapshot().SeenAt) {
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
		if n.open < mostTries {
			n.try()
		}
		return
	}
	var node *Node
	for node == nil && len(n.idle) > 0 {
		if node, n.idle = n.idle[0], n.idle[1:]; node.conn.IsClosed() {
			node = nil
		}
	}
	var err error
	if node == nil {
		node, err = n.w.c.connectTo(j.ctx, n.record())
	}
	if err == nil {
		if err = j.f(node); !node.conn.IsClosed() {
			n.idle = append([]*Node{node}, n.idle...)
		}
	}
	j.done <- err
	if n.open < mostTries {
		n.try()
	}
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
		node.Close()
	}
}

// listenerName is what pg_stat_activity shows of a connection that only listens.
const listenerName = "repmgrd listener"

func (n *watcher) connectListener() (*Node, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.w.c.cfg.SilenceTimeout)
	defer cancel()
	node, err := n.w.c.connectTo(ctx, n.record())
	if err != nil {
		return nil, err
	}
	if _, err = node.conn.Exec(ctx, `SELECT set_config('application_name', $1, false)`, listenerName); err != nil {
		node.Close()
	}
	return node, err
}

// ended notes that the server closed our connection: only its own kernel sends
// that, or the server itself in its last message. A reset can come from elsewhere.
func (n *watcher) ended(node *Node, err error) {
	node.Close()
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.HasPrefix(sqlState(err), "57P") {
		return
	}
	n.mu.Lock()
	n.endedAt = time.Now()
	n.view.Ended = true
	n.mu.Unlock()
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
	n.view.Answer, n.view.Tried = a, at
	if changed {
		n.view.Since = time.Now()
	}
	n.mu.Unlock()
	if changed {
		n.w.wake()
	}
}

func (n *watcher) publish(v election.Peer, p Presence, at time.Time) {
	n.mu.Lock()
	old := n.view
	if at.Before(old.SeenAt) { // overtaken by a later question
		n.mu.Unlock()
		return
	}
	v.ID, v.Role, v.Priority, v.Location = old.ID, old.Role, old.Priority, old.Location
	v.Answer, v.Tried, v.SeenAt, v.Since = election.Answers, at, at, old.Since
	if old.Answer != v.Answer {
		v.Since = time.Now()
	}
	v.Ended = old.Ended && v.Started.Equal(old.Started) && n.endedAt.After(at) // this look is older than that
	n.view, n.last = v, p
	n.mu.Unlock()
	if v.Running == election.Primary {
		select {
		case n.primary <- struct{}{}:
		default:
		}
	}
	if old.Answer != v.Answer || old.Running != v.Running || old.Term != v.Term || old.Rule.Compare(v.Rule) != 0 || old.Streams != v.Streams || old.Detached != v.Detached || old.Chosen != v.Chosen || old.Paused != v.Paused || old.PauseSeq != v.PauseSeq {
		n.w.wake()
	}
}

// peerSQL is all that an election wants to know of a server, in one round trip.
// %s is the rule, where there are such tables.
const peerSQL = `
SELECT json_build_object(
  'in_recovery', r.rec,
  'timeline', CASE WHEN r.rec
      THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()),
                    CASE WHEN w.status IS NULL THEN (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') END)
      ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  'lsn', CASE WHEN NOT r.rec THEN pg_current_wal_flush_lsn() ELSE greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) END,
  'drained', NOT r.rec OR d.idle,
  'replay', CASE WHEN r.rec THEN pg_last_wal_replay_lsn() END,
  'streams', w.status IS NOT NULL, 'receiving', coalesce(w.status = 'streaming', false), 'sender_host', w.sender_host, 'sender_port', w.sender_port,
  'heard', extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time),
  'detached', r.rec AND current_setting('primary_conninfo') = '',
  'delayed', current_setting('recovery_min_apply_delay') <> '0',
  'started', pg_postmaster_start_time(),
  'ballot', ` + ballot.ReadSQL + `,
  'paused', ` + pausedSQL + `,
  'presences', ` + presencesSQL + `,
  'rule', %s)
FROM (SELECT pg_is_in_recovery() AS rec) r LEFT JOIN pg_stat_wal_receiver w ON true CROSS JOIN ` + idleSQL + ` d`

// idleSQL says whether a standby waits for more WAL. It may still have some that
// it has not looked at: see [Node.lastRecordEnd].
const idleSQL = `(SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
	AND wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) AS idle)`

// rulesSQL are the rules of a server as JSON, the newest first.
const rulesSQL = `SELECT json_build_object('term', term, 'seq', seq, 'primary_node_id', primary_node_id, 'voters', voters, 'quorum', quorum,
      'sync_standbys', sync_standbys, 'acks', acks) FROM repmgr.rules ORDER BY term DESC, seq DESC`

// peerView reads the view of a node from its server.
func (n *Node) peerView(ctx context.Context, w *watch, rec Record) (election.Peer, Presence, error) {
	rule := `(` + rulesSQL + ` LIMIT 1)`
	if err := n.needSchema(ctx); errors.Is(err, ErrNotRegistered) {
		rule = "NULL"
	} else if err != nil {
		return election.Peer{}, Presence{}, err
	}
	var text []byte
	if err := n.conn.QueryRow(ctx, fmt.Sprintf(peerSQL, rule)).Scan(&text); err != nil {
		return election.Peer{}, Presence{}, n.queryError("look at the node", err)
	}
	var s struct {
		InRecovery bool          `json:"in_recovery"`
		Timeline   wal.Timeline  `json:"timeline"`
		LSN        wal.LSN       `json:"lsn"`
		Replay     wal.LSN       `json:"replay"`
		Drained    bool          `json:"drained"`
		Streams    bool          `json:"streams"`
		Receiving  bool          `json:"receiving"`
		Host       string        `json:"sender_host"`
		Port       int           `json:"sender_port"`
		Heard      float64       `json:"heard"`
		Detached   bool          `json:"detached"`
		Delayed    bool          `json:"delayed"`
		Started    time.Time     `json:"started"`
		Ballot     string        `json:"ballot"`
		Paused     string        `json:"paused"`
		Presences  string        `json:"presences"`
		Rule       election.Rule `json:"rule"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return election.Peer{}, Presence{}, fmt.Errorf("look at %s: %w", rec, err)
	}
	b, err := ballot.Parse(s.Ballot)
	if err != nil {
		return election.Peer{}, Presence{}, err
	}
	v := election.Peer{
		Running: election.Primary, Position: wal.Position{Timeline: s.Timeline, LSN: s.LSN}, Drained: s.Drained,
		Streams: s.Streams, Receiving: s.Receiving, Heard: time.Duration(s.Heard * float64(time.Second)), Detached: s.Detached, Delayed: s.Delayed, Started: s.Started,
		Term: b.Term, Candidate: strings.TrimSuffix(b.Candidate, chosenMark), Chosen: strings.HasSuffix(b.Candidate, chosenMark), Rule: s.Rule,
	}
	v.Paused, v.PauseSeq = parsePaused(s.Paused, rec.ID)
	if s.InRecovery {
		v.Running = election.Standby
		if !s.Streams && s.Drained {
			v.Position.LSN = n.lastRecordEnd(ctx, v.Position.Timeline, s.Replay, s.LSN)
		}
		v.Receives = int32(w.sender(s.Host, s.Port))
		v.ShutDown = !s.Streams && n.endsWithShutdown(ctx, v.Position.Timeline, v.Position.LSN)
	}
	all, err := parsePresences(s.Presences)
	if err != nil {
		return v, Presence{}, err
	}
	p, ok := all[rec.ID] // one whose words can not be read here is taken for automatic
	v.Monitored, v.Automatic = ok, ok && p.Mode != FailoverManual
	return v, p, nil
}

// sender is the registered node at that address. 0 where it can not be told.
func (w *watch) sender(host string, port int) NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.recs {
		if h, p := senderAddress(r.Conninfo); h == host && (p == port || p == 0 && port == 5432) {
			return r.ID
		}
	}
	return 0
}

// endsWithShutdown reports whether the last record that a standby has replayed
// is the checkpoint of a shutdown in order. false where it can not be told.
func (n *Node) endsWithShutdown(ctx context.Context, t wal.Timeline, end wal.LSN) bool {
	const most = 160 // bytes that such a record may take, with a page header inside
	if end < most {
		return false
	}
	var tail []byte
	segment, err := n.walSegmentSize(ctx)
	if err != nil {
		return false
	}
	at := int64(end) % int64(segment)
	if at < most {
		return false
	}
	err = n.conn.QueryRow(ctx, `SELECT pg_read_binary_file('pg_wal/' || $1, $2, $3, true)`, wal.SegmentName(t, end, segment), at-most, int64(most)).Scan(&tail)
	return err == nil && wal.EndsWithShutdown(tail, end, segment)
}
