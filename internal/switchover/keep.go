package switchover

import (
	"context"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/registry"
)

// keepWAL makes a slot that keeps the WAL of the primary until the target has it. The checkpoint of
// the shutdown removes all WAL that nobody is known to need, and the standbys receive the newest only
// after that. A target that streams through a slot of its own needs none. It is called again when time
// has passed: a slot that max_slot_wal_keep_size has ended is made anew.
func (h *Handover) keepWAL(ctx context.Context, n *registry.Server) {
	there := false
	var err error
	if h.target.SlotName != "" {
		err = n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost')`, h.target.SlotName).Scan(&there)
	}
	if err == nil && !there {
		_, err = n.CreateSlot(ctx, registry.HandoverSlot, h.target.Name)
	}
	if err != nil {
		h.Log.Warn("switchover: nothing keeps the WAL that "+h.target.Name+" lacks when the server ends", "err", err,
			"hint", "If it is removed, the primary goes on. Then leave one of max_replication_slots free, and give the login REPLICATION, or set wal_keep_size.")
	}
}

// dropSlot removes that slot, which would keep WAL for ever, from a server that runs. Where it can
// not, the repmgrd of this node does it later.
func (h *Handover) dropSlot(ctx context.Context, n *registry.Server) {
	if _, err := n.DropSlot(ctx, registry.HandoverSlot); err != nil {
		h.Log.Warn("switchover: the slot that kept WAL could not be dropped yet", "slot", registry.HandoverSlot, "err", err)
	}
}

// startServer starts the server without that slot: it may have room for one slot less than before, and
// would not start then.
func (h *Handover) startServer(ctx context.Context) error {
	removeSlot(h.Server)
	return h.Server.Start(ctx)
}

// removeSlot removes it from a server that is down, as PostgreSQL does: what has the new name is
// removed at the next start, too.
func removeSlot(srv *postmaster.Server) {
	dir := filepath.Join(srv.Dir, "pg_replslot")
	gone := filepath.Join(dir, registry.HandoverSlot+".tmp")
	if os.Rename(filepath.Join(dir, registry.HandoverSlot), gone) == nil {
		_, _ = os.RemoveAll(gone), durable.SyncDir(dir)
	}
}
