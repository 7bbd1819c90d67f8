package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/task"
	"github.com/pgrepmgr/repmgr/registry"
)

// The steps of a restart, as they are named in the log.
const (
	StepCheckpoint = "restart_checkpoint"
	StepStopped    = "restart_stopped"
	StepStarted    = "restart_started"
)

// Work is the restart of the server of a standby or a witness, as its daemon carries it out.
type Work struct {
	Request election.Restart
	Server  *postmaster.Server
	Witness bool // else it must be a standby
	Log     *slog.Logger

	// Connect opens a connection to the server.
	Connect func(context.Context) (*registry.Server, error)
	// Suspend leaves starting and stopping the server to this restart, until resume is called.
	Suspend func() (resume func())

	start time.Time
	steps []registry.FailoverStep
}

func (w *Work) done(step, evidence string) {
	task.LogStep(w.Log, "restart", &w.steps, w.start, step, evidence)
}

// Run restarts the server. One that was stopped already is only started. A shutdown that takes
// longer than the limit is ended by force: it can not be taken back, and a standby loses nothing
// by it. The request is removed, whatever comes of it.
func (w *Work) Run(ctx context.Context) error {
	w.start = time.Now()
	defer w.forget(context.WithoutCancel(ctx))
	if !w.Witness && !w.Server.StaysStandby() {
		return failure.Of(failure.ErrRefused, "the server in %s would not start as a standby: it has no standby.signal, or a recovery.signal", w.Server.Dir)
	}
	if w.Server.Runs() {
		if err := w.begin(ctx); err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx) // what was stopped is to be started
	defer w.Suspend()()
	if w.Server.Runs() {
		if err := w.stop(ctx); err != nil {
			return err
		}
	}
	w.done(StepStopped, "the server is down")
	if err := w.Server.Start(ctx); err != nil {
		return failure.WithHint(err, "Mend its configuration, start it, and run repmgr cluster restart again: it goes on with the nodes that are left.")
	}
	w.done(StepStarted, "the server accepts connections")
	return nil
}

// begin makes the checkpoint of the shutdown short, for which there is a limit, and notes that
// the server is about to be told to end.
func (w *Work) begin(ctx context.Context) error {
	n, err := w.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	limited, cancel := context.WithTimeoutCause(ctx, w.Request.Limit, fmt.Errorf("not done within %s", w.Request.Limit))
	defer cancel()
	if err := n.Checkpoint(limited); err != nil { // not every login may write one
		w.Log.Warn("restart: no checkpoint before the shutdown", "err", err)
	} else {
		w.done(StepCheckpoint, "a checkpoint was written")
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	begun := w.Request
	begun.Begun = true
	return n.SetRestart(ctx, begun)
}

// stop ends the server: by force only where the time is over.
func (w *Work) stop(ctx context.Context) error {
	srv := *w.Server
	srv.StopTimeout = w.Request.Limit
	err := srv.Stop(ctx)
	switch {
	case err == nil:
		return nil
	case w.Server.Runs() && !errors.Is(err, failure.ErrTimeout):
		return err // it was not told to end
	case w.Server.Runs():
		w.Log.Warn("restart: the shutdown did not end in time, so the server is ended by force", "err", err)
	}
	return w.Server.Fence(ctx) // also what the server has left running
}

// forget removes the request, but no other one.
func (w *Work) forget(ctx context.Context) {
	var err error
	if !w.Server.Runs() {
		if _, ours := w.inFile(); ours {
			err = postmaster.SetAutoConf(w.Server.Dir, nil, []string{registry.RestartSetting})
		}
	} else if n, failed := w.Connect(ctx); failed == nil {
		err = n.DropRestart(ctx, w.Request.ID)
		n.Close()
	} else {
		err = failed
	}
	if err != nil { // it is void since the server was started
		w.Log.Warn("restart: the request could not be removed", "err", err)
	}
}

func (w *Work) inFile() (r election.Restart, ours bool) {
	r = inFile(w.Server)
	return r, r.ID == w.Request.ID
}

// inFile is the request in the configuration of a server. The zero value: there is none.
func inFile(srv *postmaster.Server) election.Restart {
	text, err := postmaster.ReadAutoConf(srv.Dir)
	if err != nil {
		return election.Restart{}
	}
	set, err := ballot.FileSettings(text)
	if err != nil {
		return election.Restart{}
	}
	return registry.ParseRestart(set[registry.RestartSetting])
}

// LeftBehind is the restart that a daemon has begun on a server that is down, and did not live to end. ok is
// false where there is none, where the server ended at another time, and where that is too long ago.
func LeftBehind(srv *postmaster.Server, now time.Time) (r election.Restart, ok bool) {
	if srv.Runs() {
		return r, false
	}
	r, ended := inFile(srv), srv.EndedAt()
	late := r.Until.Add(2 * r.Limit)
	return r, r.ID != "" && r.Begun && ended.After(r.Asked) && ended.Before(late) && now.Before(late.Add(lateStart))
}

// lateStart is how long after its shutdown a server is still started by the next daemon.
const lateStart = 5 * time.Minute
