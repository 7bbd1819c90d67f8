package rejoin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// ForkedAfter is the time without an attachment after which it is checked whether the server
// can attach at all.
const ForkedAfter = 3 * time.Second

// Attach waits, for at most limit, until the primary sends to the server on the primary's
// timeline. arrived waits for that over a connection to the server, for [ForkedAfter] at most.
func (w *Work) Attach(ctx context.Context, limit time.Duration, arrived func(ctx context.Context, local *registry.Server) error) (string, error) {
	late := failure.WithHint(failure.Of(failure.ErrRejoin, "%s was started as a standby of %s, but did not stream from it within node_rejoin_timeout (%s)", w.Node, w.Primary, limit),
		"Its log says why: often pg_hba.conf or the password of the replication user on %s. Look again with repmgr cluster show.", w.Primary.Name)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	for {
		local, err := w.ConnectLocal(ctx)
		if err == nil {
			err = arrived(ctx, local)
			local.Close()
		}
		switch {
		case err == nil:
			w.Streaming = true
			return fmt.Sprintf("streaming on timeline %d", w.Status.Timeline), nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case !w.Server.Runs():
			return "", w.Server.StartError(0, errors.New("it ended while it began to follow"))
		case w.forked(ctx):
			return "", failure.WithHint(failure.Of(failure.ErrTimelineDiverged, "%s has recovered to beyond %s, where the line of %s parts from it", w.Node, w.shared, w.Primary), "%s", w.Again("--force-rewind"))
		}
		if err := wait.Pause(ctx, postgres.PollInterval); err != nil {
			return "", err
		}
	}
}

// forked reports whether the server has replayed more of the old timeline than the primary's
// timeline took over. Such a server will never stream.
func (w *Work) forked(ctx context.Context) bool {
	if w.shared.Timeline >= w.Status.Timeline {
		return false
	}
	local, err := w.ConnectLocal(ctx)
	if err != nil {
		return false
	}
	defer local.Close()
	s, err := local.Status(ctx)
	return err == nil && s.InRecovery && s.Timeline <= w.shared.Timeline && s.ReplayedLSN > w.shared.LSN
}

// DropStaleSlots calls drop for the slots that the server kept, while it was a primary, for
// standbys that do not follow it any more. Such slots would keep its WAL for ever.
func (w *Work) DropStaleSlots(ctx context.Context, recs []registry.Record, drop func(ctx context.Context, on *registry.Server, owner registry.Record)) {
	ctx, cancel := context.WithTimeout(ctx, 2*postgres.DefaultConnectTimeout)
	defer cancel()
	local, err := w.ConnectLocal(ctx)
	if err != nil {
		return // the caller does not wait; the next rejoin or follow checks again
	}
	defer local.Close()
	status, err := local.Status(ctx)
	if err != nil {
		return
	}
	for _, s := range status.Slots {
		owner := registry.Record{}
		for _, rec := range recs {
			if rec.SlotName == s.Name {
				owner = rec
			}
		}
		switch {
		case s.Active || s.Temporary || !s.Physical:
		case s.Name == registry.HandoverSlot: // of a handover that did not come to its end
			_, _ = local.DropSlot(ctx, s.Name)
		case owner.ID != 0 && owner.UpstreamID != w.Node.ID:
			drop(ctx, local, owner)
		case owner.ID == 0:
			w.Logger.Warn("an inactive replication slot keeps WAL on this standby", "slot", s.Name, "hint", fmt.Sprintf("If nobody needs it: SELECT pg_drop_replication_slot('%s');", s.Name))
		}
	}
}
