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
	slotTriedAt time.Time // when its slot was last tried for
}

// Step does what is missing: the slot that its row names, an archive that is out of force
// while it streams, and with a quorum a synchronous_standby_names that closes the time from
// its promotion to the new term. alone says that it has been without an upstream since then,
// while the primary lives; zero: it has not.
func (l *Standby) Step(ctx context.Context, look Look, alone time.Time) error {
	l.look = look
	l.ensureSlot(ctx)
	now := l.look.Status.Settings.SynchronousStandby
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

// slotRetryInterval is the time between two attempts to make the slot of a standby that
// streams without the one that its row names.
const slotRetryInterval = 10 * time.Second

// TroubleSlot is what is reported of the slot of a standby.
const TroubleSlot = "the replication slot"

// SlotHint is what to do where a slot can not be made.
const SlotHint = "Raise max_replication_slots there, or drop a slot that nobody needs. repmgrd of the standby makes its slot as soon as it can."

// ensureSlot gives the local standby the slot that its row names, where it was
// pointed to its upstream without one. Changing the setting makes its receiver
// begin anew, so the slot comes first.
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
		return nil // the primary's row of it is on its way
	}
	up, err := l.ConnectTo(ctx, upstream)
	if err != nil {
		return err
	}
	defer up.Close()
	if status, err := up.Status(ctx); err != nil || registry.Attachment(status, l.look.Self.Name) == "" {
		return err // it streams from another one than its row says
	}
	if _, err := up.CreateSlot(ctx, l.look.Self.SlotName, l.look.Self.Name); err != nil {
		return failure.WithHint(err, "%s", cmp.Or(failure.Hint(err), SlotHint))
	}
	term := voters.NewestRule(l.Watch.Peers()).Term
	return l.look.Server.WithBallot(ctx, func(b ballot.Ballot) error {
		if b.Term > term {
			return nil // an election is going on: who wins gives it its slot
		}
		return l.look.Server.AlterSystem(ctx, map[string]string{"primary_slot_name": l.look.Self.SlotName})
	})
}

// adjustArchive keeps the archive of a standby that streams out of force: when the
// primary is lost nothing of it is to come from there, and a command that takes
// long would hold the promotion up. One that can not stream gets it back.
func (l *Standby) adjustArchive(ctx context.Context, alone time.Time) error {
	switch {
	case l.look.Status.Receiver != nil && l.look.Status.Receiver.Status == "streaming":
		return ballot.CutArchive(ctx, l.look.Server.Conn)
	case voters.PeerOf(l.Watch.Peers(), int32(l.look.Self.ID)).Detached: // it has no upstream: whoever gives it one gives it the archive
	case !alone.IsZero() && time.Since(alone) > 2*l.SilenceTimeout:
		term := voters.NewestRule(l.Watch.Peers()).Term
		return ballot.Locked(ctx, l.look.Server.Conn, func(b ballot.Ballot) error {
			if b.Term > term {
				return nil // it has pledged itself since: nothing of the old term is to reach it
			}
			return ballot.GiveArchive(ctx, l.look.Server.Conn)
		})
	}
	return nil
}
