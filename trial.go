package repmgr

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
)

// A node that is promoted is of use only if the others can stream from it. So each
// standby's Monitor logs in for replication to every node that could be promoted, as
// its server would, and says in its [Presence] where that fails.

const (
	trialEvery = 30 * time.Second // between two logins that worked, more or less
	trialAgain = 10 * time.Second // after one that did not
	trialName  = "repmgrd trial"  // what pg_stat_activity shows of it: the node's own name is its receiver's
)

// trials are the newest ones. They are safe for concurrent use.
type trials struct {
	mu sync.Mutex
	of map[NodeID]trial
}

// trial is what came of a login. The zero value: none was tried.
type trial struct {
	with string    // what it was tried with: another one is tried at once
	next time.Time // when it is tried again
	err  error     // nil: it worked
}

func (t *trials) get(id NodeID) trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[id]
}

func (t *trials) set(id NodeID, to trial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[NodeID]trial{}
	}
	t.of[id] = to
}

// keep forgets the trials of all others.
func (t *trials) keep(ids []NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.of {
		if !slices.Contains(ids, id) {
			delete(t.of, id)
		}
	}
}

// all are the outcomes that are known: nil is a login that worked.
func (t *trials) all() map[NodeID]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[NodeID]error{}
	for id, tr := range t.of {
		known[id] = tr.err
	}
	return known
}

// tryStreams tries a login for replication to all nodes that could be promoted,
// now and then, and at once when a server or its row is another one.
func (m *Monitor) tryStreams(ctx context.Context) {
	for m.pulse(ctx) == nil {
		c, peers := m.settings(), m.watch.Peers()
		me := voters.PeerOf(peers, int32(c.cfg.NodeID))
		var kept []NodeID
		if c.cfg.Failover == FailoverAutomatic && me.Answer == election.Answers && me.Role != election.Witness {
			for _, p := range peers {
				if p.ID != me.ID && p.ID != election.Arbiter && p.Role != election.Witness && m.tryStream(ctx, c, me, p) {
					kept = append(kept, NodeID(p.ID))
				}
			}
		}
		m.trials.keep(kept)
	}
}

// tryStream tries one login if it is time. It reports whether it is known what
// would come of it: of a server that is down that is not.
func (m *Monitor) tryStream(ctx context.Context, c *Cluster, me, p election.Peer) bool {
	r := m.watch.Record(p.ID)
	was, now := m.trials.get(r.ID), time.Now()
	with := fmt.Sprint(r.Conninfo, " ", r.ReplicationUser, " ", p.Started)
	switch {
	case p.Answer != election.Answers:
		return false
	case me.Receiving && me.Receives == p.ID:
		m.trials.set(r.ID, trial{with: with, next: now.Add(trialEvery)})
		return true
	case was.with == with && now.Before(was.next):
		return true
	}
	err := c.loginAsStandby(ctx, r)
	var ce *postgres.ConnectError
	switch {
	case ctx.Err() != nil:
		return true
	case errors.As(err, &ce) && (ce.Reach == postgres.ReachRefused || ce.Reach == postgres.ReachStarting):
		return false // it has just gone
	}
	next := now.Add(trialEvery*3/4 + rand.N(trialEvery/2))
	if err != nil {
		next = now.Add(trialAgain)
	}
	m.trials.set(r.ID, trial{with, next, err})
	if (err == nil) != (was.err == nil) || was.with == "" {
		m.lookNow()
	}
	return true
}

// loginAsStandby logs in for replication as the local server would if it followed
// that node.
func (c *Cluster) loginAsStandby(ctx context.Context, r Record) error {
	conninfo, err := c.primaryConninfo(r, trialName)
	if err != nil {
		return err
	}
	cfg, err := c.replicationConfig(conninfo, "")
	if err != nil {
		return err
	}
	ctx, cancel := postgres.Limit(ctx, cfg)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return postgres.Explained(ctx, r.String()+" for replication", cfg, err)
	}
	return conn.Close(ctx)
}

// noStream is what a [Presence] says of logins that failed.
func (t *trials) noStream() map[NodeID]string {
	failed := map[NodeID]string{}
	for id, err := range t.all() {
		if err != nil {
			failed[id] = streamReason(err)
		}
	}
	return failed
}

// streamReason is the cause in a few words: what is announced must be short.
func streamReason(err error) string {
	var ce *postgres.ConnectError
	if errors.As(err, &ce) {
		return postgres.Cause(ce.Err)
	}
	return err.Error()
}

// tellStreams says when the local server could not stream from a node that may be
// promoted, and when it could again: the log, and an event.
func (m *Monitor) tellStreams() {
	known := m.trials.all()
	if m.streams == nil {
		m.streams = map[NodeID]string{}
	}
	for id := range m.streams {
		if _, ok := known[id]; !ok { // its server is down, or it is no standby's any more
			delete(m.streams, id)
		}
	}
	for _, id := range sortedIDs(known) {
		text := ""
		if known[id] != nil {
			text = streamReason(known[id])
		}
		if m.streams[id] == text {
			continue
		}
		m.streams[id] = text
		r := m.watch.Record(int32(id))
		e := Event{Type: EventStreamAbility, Success: text == "", PeerID: r.ID, Peer: r.Name, Details: fmt.Sprintf("this node could stream from %s again, if that were the primary", r)}
		if text != "" {
			e.Details = fmt.Sprintf("this node could not stream from %s, if that were the primary: %s", r, text)
		}
		m.tell(e) // which logs it, too
	}
}

func sortedIDs[V any](of map[NodeID]V) (ids []NodeID) {
	for id := range of {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
