package clone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// ownSettings are settings that may have been made on the source for the source alone. Its
// cluster_name would become the application_name of the new standby.
var ownSettings = []string{"cluster_name", "recovery_min_apply_delay"}

// MakeSlot creates the slot of the node called owner on its upstream, which conninfo leads
// to, and returns how to take that back. A slot that was there already is kept.
func MakeSlot(ctx context.Context, upstream registry.Record, conninfo, slot, owner string, log *slog.Logger) (drop func(), err error) {
	drop = func() {}
	up, err := registry.Connect(ctx, upstream.String(), conninfo)
	if err != nil {
		return drop, err
	}
	defer up.Close()
	created, err := up.CreateSlot(ctx, slot, owner)
	if err != nil || !created {
		return drop, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*postgres.DefaultConnectTimeout)
		defer cancel()
		up, err := registry.Connect(ctx, upstream.String(), conninfo)
		if err == nil {
			defer up.Close()
			_, err = up.DropSlot(ctx, slot)
		}
		if err != nil {
			log.Warn("the replication slot made for this clone could not be dropped: it keeps WAL", "slot", slot, "on", upstream.Name, "err", err,
				"hint", fmt.Sprintf("SELECT pg_drop_replication_slot('%s');", slot))
		}
	}, nil
}

// Verify returns ErrSystemIdentifier where the copy in dir is not one of the source.
func Verify(dir, systemIdentifier string) error {
	control, err := pgcontrol.Read(dir)
	if err != nil {
		return failure.Of(failure.ErrCopy, "look at the copy: %w", err)
	}
	if id := strconv.FormatUint(control.SystemIdentifier, 10); id != systemIdentifier {
		return failure.Of(failure.ErrSystemIdentifier, "the copy has system identifier %s, the source %s", id, systemIdentifier)
	}
	return nil
}

// WriteSettings writes the settings of the new standby in place of what was the
// source's own: its settings of ALTER SYSTEM, the mark of a fence, and events.
func WriteSettings(dir string, set map[string]string) error {
	text, err := postmaster.ReadAutoConf(dir)
	if err != nil {
		return err
	}
	give, drop, err := ballot.Inherited(text)
	if err != nil {
		return fmt.Errorf("in %s: %w", postmaster.AutoConf, err)
	}
	maps.Copy(give, set)
	for _, name := range []string{postmaster.FencedMark, postmaster.RejoinMark, postmaster.EventsFile, postmaster.DamagedEventsFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return postmaster.WriteStandby(dir, give, append(drop, ownSettings...))
}
