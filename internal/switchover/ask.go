package switchover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Ask asks the daemon of the primary for a handover, from any machine, and waits for the outcome.
// The methods are called in their order.
type Ask struct {
	Watch  *voters.Watch
	Policy election.Policy
	Limits Limits
	To     int32     // the target; 0: the one that an election would choose
	At     time.Time // the earliest time to begin; zero: now
	Limit  time.Duration
	Force  bool

	Restart bool // the primary is only to be restarted in its place; the target is elected where it does not start

	// Look sets these.
	Plan         plan.Plan
	From, Target registry.Record

	// Request sets these.
	Later bool // the handover begins later than a moment from now
	sent  election.Handover
}

// BeginWithin is how long the daemon of the primary has to begin.
const BeginWithin = 10 * time.Second

const longestShutdown = 24 * time.Hour

// CheckLimit checks the time limit of a shutdown. what names the limit in the error.
func CheckLimit(what string, limit time.Duration) error {
	if limit <= 0 || limit > longestShutdown {
		return failure.Of(failure.ErrConfig, "timeout of %s %s: must be more than 0 and at most %s", what, limit, longestShutdown)
	}
	return nil
}

// Look makes the plan.
func (a *Ask) Look(ctx context.Context) error {
	if err := CheckLimit("the switchover", a.Limit); err != nil {
		return err
	}
	peers, rule, err := a.findPrimary(ctx)
	if err != nil {
		return err
	}
	if !rule.Known() {
		return failure.WithHint(failure.Of(failure.ErrRefused, "no switchover: no daemon has written a rule, so none can carry it out"),
			"Run repmgrd with failover=automatic on all nodes. By hand: stop the primary, and run repmgr standby promote on the standby.")
	}
	if now := voters.PeerOf(peers, rule.Primary); now.Answer == election.Answers && now.Running == election.Standby {
		return failure.WithHint(failure.Of(failure.ErrNoPrimary, "no switchover: %s, the primary of term %d, runs as a standby", a.Watch.Record(rule.Primary), rule.Term), "See repmgr cluster explain, which says how a primary is made.")
	}
	if a.To == 0 {
		a.To = Choose(a.Policy, rule, peers)
	}
	if a.Target = a.Watch.Record(a.To); a.Target.Conninfo == "" {
		if a.To == 0 {
			return failure.WithHint(failure.Of(failure.ErrRefused, "no switchover: no standby may be promoted"), "See repmgr cluster explain.")
		}
		return registry.Unknown(a.Watch.Records(), registry.NodeID(a.To), "")
	}
	return a.onPrimary(ctx, func(n *registry.Server) error {
		f, err := Look(ctx, n, a.Watch, a.To)
		f.InPlace = a.Restart
		a.Plan = f.Plan(a.Policy, a.Limits)
		return err
	})
}

// findPrimary finds the primary of the newest rule, and sets From.
func (a *Ask) findPrimary(ctx context.Context) ([]election.Peer, election.Rule, error) {
	peers, unheard := a.hear(ctx)
	rule := voters.NewestRule(peers)
	if a.From = a.Watch.Record(rule.Primary); !rule.Known() && unheard.ID != 0 {
		return peers, rule, failure.WithHint(failure.Of(failure.ErrTimeout, "no switchover: who the primary is is not known: %s %s", a.Watch.Record(unheard.ID), unheard.Answer), "Try again. repmgr cluster show says which nodes answer.")
	}
	return peers, rule, nil
}

// hear waits until a rule is known, or every node has answered. unheard is one that has not.
func (a *Ask) hear(ctx context.Context) (peers []election.Peer, unheard election.Peer) {
	silence := a.Watch.Settings().SilenceTimeout
	ctx, cancel := context.WithTimeout(ctx, 2*silence+time.Second)
	defer cancel()
	_ = Until(ctx, a.Watch, silence, func(now []election.Peer) bool {
		peers, unheard = now, election.Peer{}
		for _, p := range now {
			if p.ID != election.Arbiter && p.Role != election.Witness && p.Answer != election.Answers {
				unheard = p
			}
		}
		return unheard.ID == 0 || voters.NewestRule(now).Known()
	})
	return peers, unheard
}

func (a *Ask) onPrimary(ctx context.Context, f func(*registry.Server) error) error {
	v := a.Watch.Voter(int32(a.From.ID))
	if v == nil {
		return failure.Of(failure.ErrNoPrimary, "%s is the primary, and is not registered", a.From)
	}
	return v.Run(ctx, f)
}

// Request writes the request on the primary. Another request that is not void yet is an error.
func (a *Ask) Request(ctx context.Context) error {
	term := voters.NewestRule(a.Watch.Peers()).Term
	return a.onPrimary(ctx, func(n *registry.Server) error {
		now, err := clock(ctx, n)
		if err != nil {
			return err
		}
		return n.ChangeHandover(ctx, func(old election.Handover) (election.Handover, error) {
			if old.Term == term && (old.Hold > 0 || old.Begun || now.Before(old.Until)) && !a.Force {
				return old, failure.WithHint(failure.Of(failure.ErrRefused, "no switchover: another one was asked for (request %s, not before %s)", old.ID, old.Start.Local().Format(time.DateTime)),
					"Wait for its outcome: repmgr cluster event. Take it back: repmgr standby switchover --cancel. Or use --force: yours takes its place.")
			}
			begin := now
			if a.At.After(now) {
				begin, a.Later = a.At, a.At.Sub(now) > BeginWithin
			}
			a.sent = election.Handover{ID: strings.ToLower(rand.Text()[:8]), Term: term, Target: a.To, Start: begin, Until: begin.Add(BeginWithin), Limit: a.Limit, Force: a.Force, Restart: a.Restart}
			return a.sent, nil
		})
	})
}

func clock(ctx context.Context, n *registry.Server) (now time.Time, err error) {
	if err = n.Conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		err = n.QueryError("read the clock", err)
	}
	return now, err
}

// Cancel takes back the switchover that the primary was asked for, if it has not begun, and returns it with the
// primary in From and the new one in Target. With dryRun it is only looked for. done is called with the server that it was
// taken from. The error is [failure.ErrNotScheduled] where there is none, and [failure.ErrRefused] where it has begun.
func (a *Ask) Cancel(ctx context.Context, dryRun bool, done func(*registry.Server, election.Handover)) (taken election.Handover, err error) {
	peers, rule, err := a.findPrimary(ctx)
	if err != nil {
		return taken, err
	}
	if !rule.Known() {
		return taken, failure.Of(failure.ErrNotScheduled, "no switchover is scheduled: no daemon has written a rule, so none can carry it out")
	}
	if h, told := election.Noticed(rule, peers); told && voters.PeerOf(peers, rule.Primary).Answer != election.Answers { // its server has been stopped for it
		return taken, takeBack(h, time.Time{}, rule)
	}
	err = a.onPrimary(ctx, func(n *registry.Server) error {
		now, err := clock(ctx, n)
		if err != nil {
			return err
		}
		err = n.ChangeHandover(ctx, func(h election.Handover) (election.Handover, error) {
			err := takeBack(h, now, rule)
			if taken, a.Target = h, a.Watch.Record(h.Target); err != nil || dryRun {
				return h, err
			}
			return election.Handover{}, nil
		})
		if err == nil && !dryRun {
			done(n, taken)
		}
		return err
	})
	return taken, err
}

// takeBack says why a request can not be taken back; nil: it can.
func takeBack(h election.Handover, now time.Time, r election.Rule) error {
	switch {
	case h.Requested(now, r):
		return nil
	case h.LeftBehind(r) && !h.Restart:
		return failure.WithHint(failure.Of(failure.ErrRefused, "the switchover has begun, and is not taken back any more (request %s)", h.ID), "Wait for its outcome: repmgr cluster event.")
	}
	return failure.Of(failure.ErrNotScheduled, "no switchover is scheduled in term %d", r.Term)
}

// Await waits for the outcome, and returns the new primary and its term.
func (a *Ask) Await(parent context.Context) (term int64, primary registry.Record, err error) {
	limit := BeginWithin + a.Limit + a.Policy.Promotion
	ctx, cancel := context.WithTimeoutCause(parent, limit, failure.WithHint(failure.Of(failure.ErrTimeout, "the switchover has no outcome within %s", limit), "See repmgr service status and repmgr cluster event."))
	defer cancel()
	void := time.Now().Add(BeginWithin + a.Watch.Settings().SilenceTimeout)
	for {
		peers := a.Watch.Refresh(ctx, a.Watch.Settings().SilenceTimeout/2)
		rule := voters.NewestRule(peers)
		old, now := voters.PeerOf(peers, int32(a.From.ID)), voters.PeerOf(peers, rule.Primary)
		switch {
		case rule.Term > a.sent.Term && now.Answer == election.Answers && now.Running == election.Primary && now.Rule.Compare(rule) >= 0:
			return rule.Term, a.Watch.Record(rule.Primary), nil
		case a.Restart && rule.Term == a.sent.Term && old.Answer == election.Answers && old.Running == election.Primary && old.Started.After(a.sent.Start):
			return rule.Term, a.From, nil
		case rule.Term == a.sent.Term && old.Answer == election.Answers && old.Running == election.Primary && old.Handover.ID != a.sent.ID:
			return 0, a.From, a.failed(ctx)
		case old.Answer == election.Answers && old.Running == election.Primary && old.Handover.ID == a.sent.ID && !old.Monitored && time.Now().After(void):
			return 0, a.From, failure.WithHint(failure.Of(failure.ErrRefused, "no switchover: no daemon runs on %s any more, which is still the primary", a.From),
				"Start repmgrd there: it takes back what was begun. Then try again.")
		case old.Answer == election.Answers && old.Running == election.Primary && old.Handover.ID == a.sent.ID && old.Handover.Hold == 0 && !old.Handover.Begun && time.Now().After(void):
			return 0, a.From, failure.WithHint(failure.Of(failure.ErrRefused, "no switchover: the daemon of %s did not begin it within %s, and does not begin it any more", a.From, BeginWithin),
				"Look at its log. repmgr service status says whether it runs.")
		}
		if err := wait.Pause(ctx, 2*postgres.PollInterval); err != nil && parent.Err() != nil {
			return 0, a.From, failure.WithHint(fmt.Errorf("%w: the switchover was asked for, and goes on without this command", err), "See repmgr cluster show, and repmgr cluster event.")
		} else if err != nil {
			return 0, a.From, err
		}
	}
}

// AwaitReturn waits, no longer than limit, until the former primary streams from the new one.
func (a *Ask) AwaitReturn(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return nil == Until(ctx, a.Watch, a.Watch.Settings().SilenceTimeout/2, func(peers []election.Peer) bool {
		old := voters.PeerOf(peers, int32(a.From.ID))
		return old.Answer == election.Answers && old.Running == election.Standby && old.Receiving && old.Receives == voters.NewestRule(peers).Primary
	})
}

// failed is the error of a handover that was given up: the daemon has written why.
func (a *Ask) failed(ctx context.Context) error {
	var why string
	err := a.onPrimary(ctx, func(n *registry.Server) error {
		limited, cancel := context.WithTimeout(ctx, 2*a.Watch.Settings().SilenceTimeout)
		defer cancel()
		return n.Poll(limited, func() (bool, error) {
			var found *string
			err := n.Conn.QueryRow(limited, `SELECT (SELECT details FROM repmgr.events WHERE event = $1 AND NOT successful AND details LIKE $2 ORDER BY event_timestamp DESC LIMIT 1)`,
				registry.EventSwitchover, "request "+a.sent.ID+": %").Scan(&found)
			if found != nil {
				why = strings.TrimPrefix(*found, "request "+a.sent.ID+": ")
			}
			return found != nil, err
		})
	})
	if why == "" {
		return failure.WithHint(failure.Of(failure.ErrRefused, "the switchover was given up: %w", errors.Join(errors.New("the log of repmgrd on "+a.From.Name+" says why"), err)), "%s is still the primary.", a.From.Name)
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "%s", strings.TrimPrefix(why, "no switchover: ")), "%s", fmt.Sprintf("%s is still the primary. See the log of its repmgrd.", a.From.Name))
}
