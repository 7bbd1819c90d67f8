// Package etcd lets an etcd that the user already runs vote in elections, as
// one more voter: the arbiter. Two data nodes and an etcd fail over by
// themselves, with no third PostgreSQL server anywhere.
//
// # A voter, not a store of truth
//
// The truth stays where the data is: the rule row in PostgreSQL says who the
// primary is, and the pledges that count most are those of the standbys, because
// a pledged standby acknowledges no commit of the old primary any more. etcd
// holds one vote of the same kind: a ballot that only ever rises to a higher
// term, and a copy of the newest rule it was told. Both change by transactions
// that compare what was read. So losing etcd stops no running primary and makes
// no second one: it is one voter that is away. An etcd that comes back without
// what it held, or with an old copy of it, is a voter that has forgotten its
// promise: as with any voter, that is safe only while all nodes see each other.
//
// The arbiter has one vote less than there are registered nodes (its weight in
// [election.Rule]):
//
//	nodes   etcd   all   majority   enough
//	  2       1     3       2       both nodes, or either one with etcd
//	  3       2     5       3       all nodes, or any one with etcd
//	  n      n-1   2n-1     n       all nodes, or any one with etcd
//
// etcd is away: the primary sees all nodes, they are a majority without it, and
// it goes on. A failover has to wait, because the dead primary's vote is missing
// as well. A primary that sees neither etcd nor one of the other nodes fences
// itself.
//
// etcd returns: it has its ballot and an old rule. The primary's Monitor records
// the newest rule again; nothing needs to be repaired. If meanwhile a term was
// opened without it, its ballot is a lower one and no vote against that.
//
// A cut-off primary that still reaches etcd finds there the ballot of a higher
// term: it and the new primary never both have etcd's vote in one term.
//
// # Keys
//
// They begin with etcd_prefix and the cluster's name, such as /repmgr/test/,
// and hold JSON. Other programs may read and watch them, and must not write them.
//
//	ballot   {"node_id":-1,"term":8,"candidate":"node2.4711"}
//	rule     {"term":8,"seq":1,"primary_node_id":2,"voters":[1,2,-1],"quorum":false,
//	          "sync_standbys":[],"acks":0,"nodes":[{"node_id":1,"node_name":"node1",...},...]}
//	primary  {"term":8,"ttl_seconds":5,"node_id":2,"node_name":"node2","type":"primary",
//	          "location":"default","conninfo":"host=node2 user=repmgr dbname=repmgr",...}
//
// primary is there only while the primary's Monitor announces it: it goes with
// its lease, or at once when a rule of a higher term is recorded. It is an
// address for clients and load balancers, not a lock: what makes a primary safe
// is the rule. It changes only when what it says does.
//
// The connection is made when it is first needed. All members of etcd_endpoints
// are asked at the same time and the first answer counts, so that one which is
// dead, hung or cut off costs no time.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// Timeout bounds each call, and each attempt to connect.
const Timeout = 2 * time.Second

// Arbiter is the etcd of one cluster. It is safe for concurrent use; whoever
// made it closes it.
type Arbiter struct {
	members []*member
	keys    [3]string // of the ballot, the rule and the primary
}

var _ repmgr.Arbiter = (*Arbiter)(nil)

// New makes an arbiter of the keys etcd_* and cluster. It connects to nothing
// yet. What is wrong with the settings, all of it, is a [repmgr.ConfigError].
// The cluster must have a name: two without one would share their votes.
func New(cfg repmgr.Config) (*Arbiter, error) {
	addresses, security, err := settings(cfg)
	if err != nil {
		return nil, err
	}
	a := &Arbiter{}
	for i, name := range []string{"ballot", "rule", "primary"} {
		a.keys[i] = prefix(cfg) + name
	}
	for _, address := range addresses {
		m, err := newMember(address, security)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("use etcd at %s: %w", address, err), a.Close())
		}
		a.members = append(a.members, m)
	}
	return a, nil
}

// Close ends the connections. Calls in flight end with an error. It may be called twice.
func (a *Arbiter) Close() error {
	for _, m := range a.members {
		_ = m.conn.Close() // it has nothing to say but that it was closed already
	}
	return nil
}

func (a *Arbiter) Name() string { return "etcd" }

// Look implements [repmgr.Arbiter] by a linearizable read.
func (a *Arbiter) Look(ctx context.Context) (repmgr.ArbiterState, error) {
	h, err := a.update(ctx, "look", func(context.Context, holding, *member) ([]*etcdserverpb.RequestOp, error) { return nil, nil })
	return h.ArbiterState, err
}

// Pledge implements [repmgr.Arbiter]. The stored ballot names the arbiter as
// its node, whoever b names.
func (a *Arbiter) Pledge(ctx context.Context, b ballot.Ballot) (repmgr.ArbiterState, error) {
	b.Node = election.Arbiter
	if b.Term < 1 {
		return repmgr.ArbiterState{}, fmt.Errorf("pledge term %d: a term is 1 or more", b.Term)
	}
	h, err := a.update(ctx, fmt.Sprintf("pledge term %d", b.Term), func(_ context.Context, h holding, _ *member) ([]*etcdserverpb.RequestOp, error) {
		if err := h.refuse(b.Term - 1); err != nil {
			return nil, err
		}
		return []*etcdserverpb.RequestOp{put(a.keys[ballotKey], text(b), 0)}, nil
	})
	if err == nil {
		h.Ballot = b
	}
	return h.ArbiterState, err
}

// Record implements [repmgr.Arbiter]. A rule of a new term takes the primary of
// an older one away with it.
func (a *Arbiter) Record(ctx context.Context, r election.Rule, nodes []repmgr.Record) error {
	value := text(storedRule{r, nodes})
	_, err := a.update(ctx, fmt.Sprintf("record rule %d/%d", r.Term, r.Seq), func(_ context.Context, h holding, _ *member) ([]*etcdserverpb.RequestOp, error) {
		age := r.Compare(h.Rule)
		switch err := h.refuse(r.Term); {
		case !r.Known():
			return nil, errors.New("a rule has a term of 1 or more")
		case err != nil:
			return nil, err
		case age < 0 || value == h.values[ruleKey]:
			return nil, nil
		case age == 0 && !same(r, h.Rule):
			return nil, fmt.Errorf("etcd holds another rule of that number, for primary %d and not %d", h.Rule.Primary, r.Primary)
		}
		ops := []*etcdserverpb.RequestOp{put(a.keys[ruleKey], value, 0)}
		if h.announced.Term > 0 && h.announced.Term < r.Term {
			ops = append(ops, remove(a.keys[primaryKey]))
		}
		return ops, nil
	})
	return err
}

// Announce implements [repmgr.Arbiter] by a key with a lease. etcd counts in
// whole seconds (ttl is rounded up), grants no lease shorter than its own
// election takes (2 s by default), and looks for expired ones every half second.
func (a *Arbiter) Announce(ctx context.Context, r election.Rule, primary repmgr.Record, ttl time.Duration) error {
	doing := fmt.Sprintf("announce primary of term %d", r.Term)
	if !r.Known() || ttl <= 0 {
		return fmt.Errorf("%s: needs a rule, and a time to live above 0: not %s", doing, ttl)
	}
	seconds := int64(math.Ceil(ttl.Seconds()))
	value := text(announcement{r.Term, seconds, primary})
	_, err := a.update(ctx, doing, func(ctx context.Context, h holding, m *member) ([]*etcdserverpb.RequestOp, error) {
		if err := h.refuse(r.Term); err != nil {
			return nil, err
		}
		if value == h.values[primaryKey] {
			if alive, err := m.keepAlive(ctx, h.lease); alive || err != nil {
				return nil, err
			}
		}
		lease, err := m.lease.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: seconds})
		if err != nil {
			return nil, answerErrors{{m, err}}
		}
		return []*etcdserverpb.RequestOp{put(a.keys[primaryKey], value, lease.ID)}, nil
	})
	return err
}

// The places of the keys.
const (
	ballotKey = iota
	ruleKey
	primaryKey
)

// storedRule is the value of the key rule.
type storedRule struct {
	election.Rule
	Nodes []repmgr.Record `json:"nodes"`
}

// announcement is the value of the key primary.
type announcement struct {
	Term int64 `json:"term"`
	TTL  int64 `json:"ttl_seconds"`
	repmgr.Record
}

// holding is what etcd holds at one instant.
type holding struct {
	repmgr.ArbiterState
	announced announcement
	lease     int64     // of the key primary
	values    [3]string // as they are stored
	revisions [3]int64  // 0: there is no such key
}

// refuse says no to whoever comes with this term when etcd knows a higher one.
func (h holding) refuse(term int64) error {
	switch {
	case h.Ballot.Term > term:
		return &termError{fmt.Sprintf("etcd holds the ballot %q", h.Ballot)}
	case h.Rule.Term > term:
		return &termError{fmt.Sprintf("etcd holds rule %d/%d, for primary %d", h.Rule.Term, h.Rule.Seq, h.Rule.Primary)}
	}
	return nil
}

// termError is a refusal because of a term. errors.Is finds it as [ballot.ErrTerm].
type termError struct{ held string }

func (e *termError) Error() string        { return "refused: " + e.held }
func (e *termError) Is(target error) bool { return target == ballot.ErrTerm }

func same(r, other election.Rule) bool {
	return r.Compare(other) == 0 && r.Primary == other.Primary && r.Quorum == other.Quorum && r.Acks == other.Acks &&
		slices.Equal(r.Voters, other.Voters) && slices.Equal(r.Sync, other.Sync)
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // numbers, strings and lists of them can be written
	}
	return string(b)
}
