package restart

import (
	"context"
	"log/slog"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/service"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/registry"
)

// The steps of a restart, as they are named in the log.
const (
	StepCheckpoint = "restart_checkpoint"
	StepStopped    = "restart_stopped"
	StepStarted    = "restart_started"
)

// Work is the restart of the local server, as its daemon carries it out.
type Work struct {
	service.Commands
	Request election.Restart
	Log     *slog.Logger

	// Suspend leaves starting and stopping the server to this restart, until resume is called.
	Suspend func() (resume func())

	start time.Time
	steps []registry.FailoverStep
}

func (w *Work) done(step, evidence string) {
	task.LogStep(w.Log, "restart", &w.steps, w.start, step, evidence)
}

// Run restarts the server. One that was stopped already is only started. A shutdown that takes
// longer than the limit is ended by force: it can not be taken back. The request is removed,
// whatever comes of it.
func (w *Work) Run(ctx context.Context) error {
	w.start = time.Now()
	ctx = context.WithoutCancel(ctx) // each step has a limit, and a server that was stopped is to be started
	defer w.Suspend()()
	defer w.forget(ctx)
	if w.Server.Runs() {
		w.checkpoint(ctx)
		if w.Restart != "" {
			_, err := w.Commands.Run(ctx, service.Restart, service.Options{})
			return err
		}
		if err := w.stop(ctx); err != nil {
			return err
		}
	}
	w.done(StepStopped, "the server is down")
	if err := w.Screen(ctx, false); err != nil {
		return err
	}
	if err := w.Server.Start(ctx); err != nil {
		return failure.WithHint(err, "Mend its configuration, start it, and run repmgr cluster restart again: it goes on with the nodes that are left.")
	}
	w.done(StepStarted, "the server accepts connections")
	return nil
}

// checkpoint makes the checkpoint of the shutdown short. Not every login may write one.
func (w *Work) checkpoint(ctx context.Context) {
	n, err := w.Connect(ctx)
	if err == nil {
		defer n.Close()
		err = n.Checkpoint(ctx)
	}
	if err != nil {
		w.Log.Warn("restart: no checkpoint before the shutdown", "err", err)
		return
	}
	w.done(StepCheckpoint, "a checkpoint was written")
}

func (w *Work) stop(ctx context.Context) error {
	srv := *w.Server
	srv.StopTimeout = w.Request.Limit
	err := srv.Stop(ctx)
	if err == nil || !w.Server.Runs() {
		return err
	}
	w.Log.Warn("restart: the shutdown did not end, so the server is ended by force", "err", err)
	return w.Server.Fence(ctx)
}

// forget removes the request.
func (w *Work) forget(ctx context.Context) {
	var err error
	if !w.Server.Runs() {
		err = postmaster.SetAutoConf(w.Server.Dir, nil, []string{registry.RestartSetting})
	} else if n, failed := w.Connect(ctx); failed == nil {
		err = n.SetRestart(ctx, election.Restart{})
		n.Close()
	} else {
		err = failed
	}
	if err != nil { // it is void since the server was started
		w.Log.Warn("restart: the request could not be removed", "err", err)
	}
}

// LeftBehind is the restart that a daemon has begun on a server that is down, and did not live to end. ok is
// false where there is none, or it is too old.
func LeftBehind(srv *postmaster.Server, now time.Time) (r election.Restart, ok bool) {
	if srv.Runs() {
		return r, false
	}
	text, err := postmaster.ReadAutoConf(srv.Dir)
	if err != nil {
		return r, false
	}
	set, err := ballot.FileSettings(text)
	if err != nil {
		return r, false
	}
	r = registry.ParseRestart(set[registry.RestartSetting])
	return r, r.ID != "" && srv.EndedAt().After(r.Asked) && now.Before(r.Until.Add(r.Limit+lateStart))
}

// lateStart is how long after its shutdown a server is still started by the next daemon.
const lateStart = 5 * time.Minute
