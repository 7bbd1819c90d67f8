package rejoin

import (
	"context"
	"errors"
	"sync"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// startWatched starts the server as a standby of the primary. After pg_rewind it lets nobody in before it has WAL that the primary
// had at that moment. Where the primary is lost meanwhile, and another standby has that WAL, it is started as a standby of that one:
// without it this node has no vote in the election of the next primary. That is an error, because it is still to be brought back.
func (w *Work) startWatched(ctx context.Context) error {
	if w.Elsewhere == nil {
		return w.Server.Start(ctx)
	}
	watched, end := context.WithCancelCause(ctx)
	var other registry.Record
	var set map[string]string
	var wg sync.WaitGroup
	wg.Go(func() {
		for other.ID == 0 && wait.Pause(watched, ForkedAfter) == nil {
			lost := w.sourceLost(watched)
			control, err := pgcontrol.Read(w.Server.Dir)
			if lost == nil || err != nil {
				continue
			}
			if other, set, err = w.Elsewhere(wal.Position{Timeline: control.MinRecoveryTimeline, LSN: control.MinRecoveryPoint}); err != nil || other.ID != 0 {
				end(errors.Join(lost, err))
			}
		}
	})
	err := w.Server.Start(watched)
	end(nil)
	wg.Wait()
	if err == nil || other.ID == 0 {
		return err
	}
	lost := context.Cause(watched)
	if err := w.startElsewhere(ctx, set); err != nil {
		return errors.Join(lost, err)
	}
	return failure.Of(failure.ErrRejoin, "%w; %s streams from %s, which has the WAL that it needs before it lets clients in, until there is a primary", lost, w.Node, other)
}

func (w *Work) startElsewhere(ctx context.Context, set map[string]string) error {
	if err := w.Server.Stop(ctx); err != nil {
		return err
	}
	text, err := postmaster.ReadAutoConf(w.Server.Dir)
	if err != nil {
		return err
	}
	now, err := ballot.FileSettings(text)
	if err == nil && now["primary_conninfo"] != "" { // else it has pledged itself at the last moment
		err = postmaster.SetAutoConf(w.Server.Dir, set, nil)
	}
	return errors.Join(err, w.Server.Start(ctx))
}
