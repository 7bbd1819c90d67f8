package switchover

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// Keeps is the reason why the node must not be stopped now. Empty: commits go on without it.
// required says that commits never fall to none (durability=required).
func Keeps(self int32, peers []election.Peer, required bool) string {
	rule := voters.NewestRule(peers)
	me, primary := voters.PeerOf(peers, self), voters.PeerOf(peers, rule.Primary)
	switch {
	case me.Answer == election.Refused || me.Role == election.Witness:
		return "" // it is down
	case me.Answer != election.Answers:
		return unknownRole(me)
	case me.Running == election.Primary:
		return "it is the primary"
	case !rule.Known():
		return "" // nobody fails over, and no commit waits
	case primary.Answer != election.Answers || primary.Running != election.Primary:
		return "no primary is in office"
	}
	left := 0
	for _, id := range rule.Sync {
		if p := voters.PeerOf(peers, id); id != self && p.Answer == election.Answers && p.Receiving {
			left++
		}
	}
	if required && left < rule.Acks {
		return fmt.Sprintf("commits wait for %d standbys, and without it %d would be left", rule.Acks, left)
	}
	return ""
}

// CheckDrain refuses to drain a primary that no daemon hands over, because none runs there or it has failover=manual, and
// says what to do instead.
func CheckDrain(primary election.Peer, r registry.Record) error {
	byHand := fmt.Sprintf("repmgr%s standby switchover", follow.ConfOption(r))
	switch {
	case primary.Foreign || primary.Automatic:
		return nil
	case primary.Monitored:
		return failure.WithHint(failure.Of(failure.ErrRefused, "%s is the primary, and its repmgrd does not hand it over: failover=manual", r),
			"Set failover = automatic on all nodes, reload each repmgrd (HUP), and run this again. Or stop repmgrd on all nodes, and hand over by this, which starts it over ssh for that time: %s", byHand)
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "%s is the primary, and no repmgrd runs there to hand it over", r),
		"Run repmgrd with failover = automatic on all nodes. Or hand over by this, which starts it over ssh for that time, and run this again: %s", byHand)
}

func unknownRole(me election.Peer) string {
	return fmt.Sprintf("it %s, so it is not known what it runs as", me.Answer)
}

// AwaitRole waits until it is known what the node runs as, or that it is down, for no longer than limit.
func AwaitRole(ctx context.Context, w *voters.Watch, self int32, limit time.Duration) (me election.Peer, err error) {
	err = await(ctx, w, self, limit, func(peers []election.Peer) (why string) {
		if me = voters.PeerOf(peers, self); me.Role != election.Witness && me.Answer != election.Answers && me.Answer != election.Refused {
			why = unknownRole(me)
		}
		return why
	})
	return me, err
}

// AwaitDrained waits until the node may be stopped, for no longer than limit.
func AwaitDrained(ctx context.Context, w *voters.Watch, self int32, required bool, limit time.Duration) error {
	return await(ctx, w, self, limit, func(peers []election.Peer) string { return Keeps(self, peers, required) })
}

// await waits until nothing keeps the node from being stopped.
func await(ctx context.Context, w *voters.Watch, self int32, limit time.Duration, keeps func([]election.Peer) string) error {
	var why string
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := Until(ctx, w, w.Settings().SilenceTimeout/2, func(peers []election.Peer) bool {
		why = keeps(peers)
		return why == ""
	})
	if err == nil {
		return nil
	}
	return failure.WithHint(failure.Of(failure.ErrTimeout, "%s may not be stopped after %s: %s", w.Record(self), limit, why), "See repmgr cluster show and repmgr service status.")
}
