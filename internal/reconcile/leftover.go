package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// LeftoverGrace is for how long a slot must have been a leftover before it is dropped. A slot may
// be made long before its node streams through it: for a clone, or for a standby that somebody
// is about to re-point. It is a variable for tests.
var LeftoverGrace = 10 * time.Minute

// leftovers drops the slots on the local server that registered nodes had while they streamed
// from it, and those of logical consumers that go on with another primary. Such a slot keeps WAL
// until the disk is full. It is not safe for concurrent use.
type leftovers struct {
	since  map[string]time.Time // since when each slot has been a leftover, at every step
	looked time.Time            // the last step
}

// step drops the slots that have been leftovers for long enough.
func (d *leftovers) step(ctx context.Context, o Options, look Look) {
	now, since := time.Now(), map[string]time.Time{}
	if now.Sub(d.looked) > 5*o.SilenceTimeout { // nobody knows what was in between
		d.since = nil
	}
	var errs []error
	for slot, why := range LeftoverSlots(look, o.Watch.Peers()) {
		name := slot.Name
		since[name] = now
		if begun, ok := d.since[name]; ok {
			since[name] = begun
		}
		if now.Sub(since[name]) < LeftoverGrace {
			continue
		}
		delete(since, name)
		dropped, err := drop(ctx, o, look, slot)
		errs = append(errs, err)
		if dropped {
			o.Log.Info("replication slot "+name+" dropped: it kept WAL for nobody", "node", look.Self.Name, "reason", why)
		}
	}
	if d.since, d.looked = since, now; len(errs) > 0 || len(since) == 0 {
		o.Report("dropping a replication slot that is not needed any more", errors.Join(errs...))
	}
}

// drop drops a leftover. A logical one stays where the primary has no copy of it, even if it has
// another slot of that name: only here is the position of its consumer.
func drop(ctx context.Context, o Options, look Look, slot registry.Slot) (dropped bool, err error) {
	if !slot.Former {
		return look.Server.DropSlot(ctx, slot.Name)
	}
	primary, ok := registry.ByID(look.Records, registry.NodeID(voters.NewestRule(o.Watch.Peers()).Primary))
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.ConnectTimeout, fmt.Errorf("no answer within %s", o.ConnectTimeout))
	defer cancel()
	n, err := o.ConnectTo(ctx, primary)
	if err != nil {
		return false, err
	}
	defer n.Close()
	there, err := n.HasPromotedSlot(ctx, slot.Name)
	if err != nil || !there {
		return false, err
	}
	return look.Server.DropFormerSlot(ctx, slot.Name)
}

// LeftoverSlots are the slots of the local server that nobody uses and that no owner, a
// registered node or a switchover, has a use for. The value is the reason. Of look it needs Self, Records and Status.
func LeftoverSlots(look Look, peers []election.Peer) map[registry.Slot]string {
	found, handover := map[registry.Slot]string{}, voters.PeerOf(peers, int32(look.Self.ID)).Handover
	for _, slot := range look.Status.Slots {
		var why, needed string
		if slot.Name == registry.HandoverSlot && !handover.LeftBehind(voters.NewestRule(peers)) {
			why = "the switchover that it was made for has ended"
		}
		for _, r := range look.Records {
			switch reason := needless(look.Self, r, voters.PeerOf(peers, int32(r.ID))); {
			case r.SlotName != slot.Name:
			case reason == "":
				needed = r.Name
			default:
				why = reason
			}
		}
		if slot.Physical && !slot.Active && !slot.Temporary && why != "" && needed == "" {
			found[slot] = why
		}
		if slot.Former && !slot.Active && look.Status.Receiver != nil && look.Status.Receiver.Status == "streaming" {
			found[slot] = "it is of the time when this node was the primary, and keeps it from having a copy of the slot that the primary has now"
		}
	}
	return found
}

// needless says why the owner of a slot on the node self has no use for it; empty: it may have.
// What the owner does must be seen: one that is down, or streams from nobody, may come back.
func needless(self, owner registry.Record, seen election.Peer) string {
	switch {
	case owner.ID == self.ID:
		return "it is that of this node itself"
	case seen.Answer != election.Answers:
		return ""
	case seen.Running == election.Primary && seen.Rule.Primary == seen.ID:
		return owner.String() + " is the primary"
	case seen.Running == election.Standby && seen.Receiving && seen.Receives != 0 && seen.Receives != int32(self.ID):
		return owner.String() + " streams from another node"
	}
	return ""
}
