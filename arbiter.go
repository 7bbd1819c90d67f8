package repmgr

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
)

// Arbiter is a voter that is no PostgreSQL server, such as an etcd that the
// user already runs: see package etcd. Its id among the voters is
// [election.Arbiter]. It is safe for concurrent use; whoever made it closes it.
//
// Each method has a deadline of its own besides that of ctx. An arbiter that
// can not be reached, or does not answer in time, is an error for which
// errors.Is(err, [ErrConnect]). Whoever asked can not know then whether a
// pledge was stored: it was not given. A refusal because of a higher term is
// one for which errors.Is(err, [ballot.ErrTerm]); [Arbiter.Look] tells why.
type Arbiter interface {
	// Name is what messages call it, "etcd".
	Name() string
	// Look reads what it holds now: never something older than what any call
	// before, by anybody, has stored.
	Look(ctx context.Context) (ArbiterState, error)
	// Pledge stores b if its term is higher than those of the ballot and of the
	// rule that it holds, whoever's these are. Of two with the same term one
	// succeeds. The state is that of the same instant, of a refusal too.
	Pledge(ctx context.Context, b ballot.Ballot) (ArbiterState, error)
	// Record stores the rule, and the registered nodes with it, so that a
	// coordinator finds them. A newer rule of the same term stays, which is no
	// error. A rule of a lower term than the rule or the ballot that it holds is
	// refused: an arbiter that pledged itself to a new term knows of nothing
	// that the old one does afterwards, as a standby does not.
	Record(ctx context.Context, r election.Rule, nodes []Record) error
	// Announce publishes the primary of a rule for ttl after this call, to whoever
	// looks for it there. Call it again and again. It refuses when the ballot or
	// the rule that the arbiter holds is of a higher term.
	Announce(ctx context.Context, r election.Rule, primary Record, ttl time.Duration) error
}

// ArbiterState is what an arbiter holds. Its zero value is that of one that
// never voted and knows nothing.
type ArbiterState struct {
	Ballot ballot.Ballot
	Rule   election.Rule
	Nodes  []Record // registered when the rule was stored
	// Primary is who is announced now; the zero Record means nobody. Whoever is
	// has reached the arbiter within the time to live of its announcement.
	Primary Record
}

// WithHint attaches to err what its reader could do about it. The message stays
// as it is; [Hint] finds it. For implementations of the interfaces of this package.
func WithHint(err error, format string, args ...any) error { return hint(err, format, args...) }
