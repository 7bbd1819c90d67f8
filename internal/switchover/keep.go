package switchover

import (
	"context"

	"github.com/pgrepmgr/repmgr/registry"
)

// keepWAL makes a slot that keeps the WAL of the primary until the target has it. The checkpoint of
// the shutdown removes all WAL that nobody is known to need, and the standbys receive the newest only
// after that. A target that streams through a slot of its own needs none.
func (h *Handover) keepWAL(ctx context.Context, n *registry.Server) {
	there := false
	var err error
	if h.target.SlotName != "" {
		there, err = n.HasSlot(ctx, h.target.SlotName)
	}
	if err == nil && !there {
		_, err = n.CreateSlot(ctx, registry.HandoverSlot, h.target.Name)
	}
	if err != nil {
		h.Log.Warn("switchover: nothing keeps the WAL that "+h.target.Name+" lacks when the server ends", "err", err,
			"hint", "If it is removed, the primary goes on. Then leave one of max_replication_slots free, or set wal_keep_size.")
	}
}

// dropSlot removes that slot, which would keep WAL for ever. Where it can not, the repmgrd of this
// node does it later.
func (h *Handover) dropSlot(ctx context.Context, n *registry.Server) {
	if _, err := n.DropSlot(ctx, registry.HandoverSlot); err != nil {
		h.Log.Warn("switchover: the slot that kept WAL could not be dropped yet", "slot", registry.HandoverSlot, "err", err)
	}
}
