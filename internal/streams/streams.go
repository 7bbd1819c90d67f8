package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

const loginInterval = 30 * time.Second // about the time between two logins that worked

// RetryInterval is the time until a login that failed is tried again.
const RetryInterval = 10 * time.Second

// Name is the application name of a trial in pg_stat_activity. The node's own name belongs to
// its WAL receiver.
const Name = "repmgrd trial"

// Trials are the newest results of the logins. They are safe for concurrent use, except that
// only one goroutine may call Tell. The zero value is ready to use.
type Trials struct {
	mu sync.Mutex
	of map[registry.NodeID]trial

	told map[registry.NodeID]string // the problem that was last reported of a node; empty: it works
}

// trial is the result of a login. The zero value: none was tried.
type trial struct {
	triedWith string    // the server and row it was tried with; when they change, it is tried at once
	next      time.Time // the time of the next attempt
	err       error     // nil: it worked
}

func (t *Trials) get(id registry.NodeID) trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[id]
}

func (t *Trials) set(id registry.NodeID, to trial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[registry.NodeID]trial{}
	}
	t.of[id] = to
}

// retainOnly removes the results of all other nodes.
func (t *Trials) retainOnly(ids []registry.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.of {
		if !slices.Contains(ids, id) {
			delete(t.of, id)
		}
	}
}

// all are the known results; nil is a login that worked.
func (t *Trials) all() map[registry.NodeID]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[registry.NodeID]error{}
	for id, tr := range t.of {
		known[id] = tr.err
	}
	return known
}

// Nodes are the nodes as the daemon sees them.
type Nodes struct {
	Me     election.Peer
	Peers  []election.Peer
	Record func(id int32) registry.Record
}

// Try makes the due replication logins to all nodes that could be promoted. login logs in to a
// node as the local server would if it followed that node; wake is called when a result is new.
func (t *Trials) Try(ctx context.Context, n Nodes, login func(context.Context, registry.Record) error, wake func()) {
	var kept []registry.NodeID
	if n.Me.Answer == election.Answers && n.Me.Role != election.Witness {
		for _, p := range n.Peers {
			if p.ID != n.Me.ID && p.ID != election.Arbiter && p.Role != election.Witness && t.tryNode(ctx, n.Me, p, n.Record(p.ID), login, wake) {
				kept = append(kept, registry.NodeID(p.ID))
			}
		}
	}
	t.retainOnly(kept)
}

// tryNode makes one login if it is due. It reports whether its result is known: of a server
// that is down it is not.
func (t *Trials) tryNode(ctx context.Context, me, p election.Peer, r registry.Record, login func(context.Context, registry.Record) error, wake func()) bool {
	was, now := t.get(r.ID), time.Now()
	with := fmt.Sprint(r.Conninfo, " ", r.ReplicationUser, " ", p.Started)
	switch {
	case p.Answer != election.Answers:
		return false
	case me.Receiving && me.Receives == p.ID:
		t.set(r.ID, trial{triedWith: with, next: now.Add(loginInterval)})
		return true
	case was.triedWith == with && now.Before(was.next):
		return true
	}
	err := login(ctx, r)
	var ce *postgres.ConnectError
	switch {
	case ctx.Err() != nil:
		return true
	case errors.As(err, &ce) && (ce.Reach == postgres.ReachRefused || ce.Reach == postgres.ReachStarting):
		return false // the server has just gone down
	}
	next := now.Add(loginInterval*3/4 + rand.N(loginInterval/2))
	if err != nil {
		next = now.Add(RetryInterval)
	}
	t.set(r.ID, trial{with, next, err})
	if (err == nil) != (was.err == nil) || was.triedWith == "" {
		wake()
	}
	return true
}

// Login logs in to a node for replication, and closes the connection again.
func Login(ctx context.Context, r registry.Record, cfg *pgx.ConnConfig) error {
	ctx, cancel := postgres.Limit(ctx, cfg)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return postgres.Explained(ctx, r.String()+" for replication", cfg, err)
	}
	return conn.Close(ctx)
}

// Failed returns the failed logins by node, with the reason in a few words.
func (t *Trials) Failed() map[registry.NodeID]string {
	failed := map[registry.NodeID]string{}
	for id, err := range t.all() {
		if err != nil {
			failed[id] = reason(err)
		}
	}
	return failed
}

// reason is the cause in a few words, because the announcement of a daemon must be short.
func reason(err error) string {
	var ce *postgres.ConnectError
	if errors.As(err, &ce) {
		return postgres.Cause(ce.Err)
	}
	return err.Error()
}

// Tell reports, with one event each time, when the local server can not stream from a node that
// may be promoted, and when it can again.
func (t *Trials) Tell(record func(id int32) registry.Record, tell func(registry.Event)) {
	known := t.all()
	if t.told == nil {
		t.told = map[registry.NodeID]string{}
	}
	for id := range t.told {
		if _, ok := known[id]; !ok { // its server is down, or it is not a standby any more
			delete(t.told, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		text := ""
		if known[id] != nil {
			text = reason(known[id])
		}
		if t.told[id] == text {
			continue
		}
		t.told[id] = text
		r := record(int32(id))
		e := registry.Event{Type: registry.EventStreamAbility, Success: text == "", PeerID: r.ID, Peer: r.Name, Details: fmt.Sprintf("this node could stream from %s again, if that were the primary", r)}
		if text != "" {
			e.Details = fmt.Sprintf("this node could not stream from %s, if that were the primary: %s", r, text)
		}
		tell(e) // this also logs it
	}
}
