package voters

import (
	"context"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// Screen asks the voters in which role a server that is down may be started, until enough of
// them have answered. own is what that server holds, rules are the rules in its state file, and
// ids are all voters. An error means that ctx has ended and nothing was decided.
func (w *Watch) Screen(ctx context.Context, policy election.Policy, own election.Peer, rules []election.Rule, ids []int32) (verdict election.Screening, err error) {
	silent := func(p election.Peer) bool { return p.SeenAt.IsZero() }
	answers := func(p election.Peer) bool { return !silent(p) }
	w.Await(ctx, func() bool {
		peers := w.Peers()
		all := !slices.ContainsFunc(peers, silent)
		switch verdict = policy.Screen(time.Now(), own, rules, ids, peers); verdict {
		case election.ScreenedRunning, election.ScreenedDeposed:
			return true
		case election.ScreenedClear: // an operator may have promoted another node without an election
			return all || slices.ContainsFunc(peers, answers) && w.Answered()
		case election.ScreenedManual:
			return all
		case election.ScreenedPledged, election.ScreenedAlone: // the other voters may still be starting
		}
		return false
	})
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	return verdict, nil
}
