package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// Standby keeps a standby ready for its promotion. It is not safe for concurrent use.
type Standby struct {
	Options
	look        Look
	slotTriedAt time.Time // when the slot was last tried
	leftovers   leftovers
}

// Step makes the slot that the node's row names, drops those of nodes that stream from others now, reverts what an election has left behind, takes restore_command out of force while the
// standby streams, and with a quorum sets a synchronous_standby_names that lets no commit be
// acknowledged between a promotion and the new term. alone is since when the standby has had no
// upstream while the primary lives; zero: it has one, or the primary is not known to live.
func (l *Standby) Step(ctx context.Context, look Look, alone time.Time) error {
	l.look = look
	l.ensureSlot(ctx)
	l.leftovers.step(ctx, l.Options, look)
	now := l.look.Status.Settings.SynchronousStandby
	if registry.ReceiverTimeoutShortened(l.look.Status) {
		if err := ballot.RestoreReceiverTimeoutAttached(ctx, l.look.Server.Conn); err != nil {
			return err
		}
	}
	if err := l.adjustArchive(ctx, alone); err != nil {
		return err
	}
	switch quorum := voters.NewestRule(l.Watch.Peers()).Quorum; {
	case quorum && now == "":
		s, err := syncrep.Read(ctx, l.look.Server)
		if err == nil {
			err = syncrep.WriteMark(ctx, l.look.Server, s, syncrep.AnyStandby)
		}
		if err != nil {
			return err
		}
		return l.look.Server.AlterSystem(ctx, map[string]string{"synchronous_standby_names": syncrep.AnyStandby})
	case !quorum && now != "":
		return syncrep.Clear(ctx, l.look.Server)
	}
	return nil
}

// slotRetryInterval is the time between two attempts to make the slot of a standby that streams
// without the slot that its row names.
const slotRetryInterval = 10 * time.Second

// TroubleSlot is the name under which problems with the slot of a standby are reported.
const TroubleSlot = "the replication slot"

// SlotHint says what to do where a slot can not be made.
const SlotHint = "Raise max_replication_slots there, or drop a slot that nobody needs. repmgrd of the standby makes its slot as soon as it can."

// ensureSlot makes the slot that the row of the local standby names, where the standby streams
// without it. The slot is made before the setting is changed, because that change restarts the
// WAL receiver.
func (l *Standby) ensureSlot(ctx context.Context) {
	s, now := l.look.Status, time.Now()
	switch {
	case l.look.Self.SlotName == "" || s.Settings.PrimarySlotName == l.look.Self.SlotName:
		l.Report(TroubleSlot, nil)
		return
	case s.Receiver == nil || s.Receiver.Status != "streaming" || now.Sub(l.slotTriedAt) < slotRetryInterval:
		return
	}
	l.slotTriedAt = now
	l.Report(TroubleSlot, l.makeOwnSlot(ctx))
}

func (l *Standby) makeOwnSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.ConnectTimeout, fmt.Errorf("no answer within %s", l.ConnectTimeout))
	defer cancel()
	upstream, ok := registry.ByID(l.look.Records, l.look.Self.UpstreamID)
	if !ok {
		return nil // the row of the upstream has not been replicated yet
	}
	up, err := l.ConnectTo(ctx, upstream)
	if err != nil {
		return err
	}
	defer up.Close()
	if status, err := up.Status(ctx); err != nil || registry.Attachment(status, l.look.Self.Name) == "" {
		return err // it does not stream from the node that its row names
	}
	if _, err := up.CreateSlot(ctx, l.look.Self.SlotName, l.look.Self.Name); err != nil {
		return failure.WithHint(err, "%s", cmp.Or(failure.Hint(err), SlotHint))
	}
	term := voters.NewestRule(l.Watch.Peers()).Term
	return l.look.Server.WithBallot(ctx, func(b ballot.Ballot) error {
		if b.Term > term {
			return nil // an election is under way, and its winner makes the slot
		}
		return l.look.Server.AlterSystem(ctx, map[string]string{"primary_slot_name": l.look.Self.SlotName})
	})
}

// adjustArchive keeps restore_command out of force while the standby streams: after the loss of
// the primary nothing of its archive must be replayed, and a slow command would delay the
// promotion. A standby that can not stream for a while gets it back.
func (l *Standby) adjustArchive(ctx context.Context, alone time.Time) error {
	switch {
	case l.look.Status.Receiver != nil && l.look.Status.Receiver.Status == "streaming":
		return ballot.DisableArchive(ctx, l.look.Server.Conn)
	case voters.PeerOf(l.Watch.Peers(), int32(l.look.Self.ID)).Detached: // it is detached: whoever makes it follow a node gives the archive back
	case !alone.IsZero() && time.Since(alone) > 2*l.SilenceTimeout:
		term := voters.NewestRule(l.Watch.Peers()).Term
		return ballot.Locked(ctx, l.look.Server.Conn, func(b ballot.Ballot) error {
			if b.Term > term {
				return nil // it has pledged itself since, and must receive nothing of the old term
			}
			return ballot.EnableArchive(ctx, l.look.Server.Conn)
		})
	}
	return nil
}
