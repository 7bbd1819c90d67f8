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

// source is a node that the server streams from, with the settings for that.
type source struct {
	node registry.Record
	set  map[string]string
}

// startWatched starts the server as a standby of the primary. After pg_rewind it lets nobody in before it has WAL that the primary
// had at that moment. Where the primary is lost while the server starts, and another standby has that WAL, it is made a standby of
// that one: without it this node has no vote in the election of the next primary. That is an error, because it is still to be
// brought back.
func (w *Work) startWatched(ctx context.Context, set map[string]string) error {
	if w.Elsewhere == nil || w.Method != ByRewind {
		return w.Server.Start(ctx)
	}
	for from := (source{w.Primary, set}); ; {
		next, lost, err := w.startFrom(ctx, from.node)
		if next.node.ID != 0 && ctx.Err() == nil {
			if err = w.leave(ctx, from, next); err == nil {
				from = next
				continue
			}
		}
		switch {
		case lost != nil:
			return errors.Join(lost, err)
		case from.node.ID != w.Primary.ID && err == nil:
			return failure.Of(failure.ErrRejoin, "%s was lost; %s streams from %s, which has the WAL that it needed before it let clients in, until there is a primary", w.Primary, w.Node, from.node)
		}
		return err
	}
}

// startFrom starts the server, and returns when that is done; or with the next source, when the node that it streams from is lost.
func (w *Work) startFrom(ctx context.Context, from registry.Record) (next source, lost, err error) {
	watched, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for next.node.ID == 0 && wait.Pause(watched, ForkedAfter) == nil {
			if lost = w.silent(watched, from); lost == nil {
				continue
			}
			if control, err := pgcontrol.Read(w.Server.Dir); err == nil {
				next.node, next.set = w.Elsewhere(wal.Position{Timeline: control.MinRecoveryTimeline, LSN: control.MinRecoveryPoint})
			}
		}
		end()
	})
	err = w.Server.Start(watched)
	end()
	wg.Wait()
	if err == nil || next.node.ID == 0 {
		return source{}, nil, err
	}
	return next, lost, err
}

// silent says why the server can receive nothing from a node; nil: it can.
func (w *Work) silent(ctx context.Context, from registry.Record) error {
	ctx, cancel := context.WithTimeout(ctx, ForkedAfter)
	defer cancel()
	if from.ID == w.Primary.ID {
		return w.sourceLost(ctx)
	}
	n, err := w.ConnectTo(ctx, from)
	if err == nil {
		n.Close()
	}
	return err
}

// leave stops the server, and lets it stream from the next source when it is started. A vote that it has given at the last moment
// changed its settings: then it is started as it is.
func (w *Work) leave(ctx context.Context, from, next source) error {
	const conninfo = "primary_conninfo"
	if err := w.Server.Stop(ctx); err != nil {
		return err
	}
	text, err := postmaster.ReadAutoConf(w.Server.Dir)
	if err != nil {
		return err
	}
	now, err := ballot.FileSettings(text)
	switch {
	case err != nil:
		return err
	case now[conninfo] != from.set[conninfo]:
		return errors.Join(failure.Of(failure.ErrRejoin, "%s has pledged itself in an election", w.Node), w.Server.Start(ctx))
	}
	return postmaster.SetAutoConf(w.Server.Dir, next.set, nil)
}
