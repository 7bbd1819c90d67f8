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
	// Hold says that the restart must not be ended half-way from now on. It is an error where it was told to end before.
	Hold func() error
	// Suspend leaves starting and stopping the server to this restart, until resume is called.
	Suspend func() (resume func())
	// Screen says as what the server, which is down, may be started, and why.
	Screen func(context.Context) (as registry.Role, why string, err error)

	start  time.Time
	steps  []registry.FailoverStep
	resume func() // of Suspend; nil: the server was not told to end
}

func (w *Work) done(step, evidence string) {
	task.LogStep(w.Log, "restart", &w.steps, w.start, step, evidence)
}

// Run restarts the server. One that was stopped already is only started. A shutdown that takes
// longer than the limit is ended by force: it can not be taken back, and a standby loses nothing
// by it. Until the server is told to end, an error means that nothing was changed. The request is removed,
// except by a restart that gives way to something urgent: whoever has begun it does that later.
func (w *Work) Run(ctx context.Context) error {
	w.start = time.Now()
	defer func() {
		if w.resume != nil || ctx.Err() == nil {
			w.forget(context.WithoutCancel(ctx))
		}
	}()
	if !w.Witness && !w.Server.StaysStandby() {
		return failure.Of(failure.ErrRefused, "the server in %s would not start as a standby: it has no standby.signal, or a recovery.signal", w.Server.Dir)
	}
	err := w.begin(ctx)
	if w.resume == nil {
		return fmt.Errorf("not restarted, and nothing was changed: %w", err)
	}
	defer w.resume()
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // what was stopped is to be started
	w.done(StepStopped, "the server is down")
	if !w.Witness && !w.Server.StaysStandby() {
		if as, why, err := w.Screen(ctx); err != nil || as != registry.RolePrimary {
			const promoted = "it was promoted while it was to be restarted"
			return errors.Join(failure.Of(failure.ErrRefused, promoted+", and comes back as a standby: %s", why), err, w.Server.Mark(promoted))
		}
	}
	if err := w.Server.Start(ctx); err != nil {
		return failure.WithHint(err, "Mend its configuration, start it, and run repmgr cluster restart again: it goes on with the nodes that are left.")
	}
	w.done(StepStarted, "the server accepts connections")
	return nil
}

// begin ends the server, if it runs. It does that under the lock of its vote, which ends with the session: nobody is
// elected or promoted by an election meanwhile, and where that was done before, the server is left as it is.
func (w *Work) begin(ctx context.Context) error {
	if !w.Server.Runs() {
		err := w.Hold()
		if err == nil {
			w.resume = w.Suspend()
		}
		return err
	}
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	n, err := w.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	var stopped error
	err = n.WithVictory(ctx, func(b ballot.Ballot, firstXid uint64) error {
		switch {
		case !w.Witness && firstXid == 0:
			return failure.Of(failure.ErrRefused, "it was promoted meanwhile")
		case b.Term > w.Request.Term:
			return failure.Of(failure.ErrRefused, "it has voted in an election meanwhile, in term %d", b.Term)
		}
		if err := w.Hold(); err != nil {
			return err
		}
		begun := w.Request
		begun.Begun = true
		if err := n.SetRestart(ctx, begun); err != nil {
			return err
		}
		w.resume = w.Suspend()
		stopped = w.stop(context.WithoutCancel(ctx))
		return nil
	})
	if w.resume != nil {
		return stopped
	}
	return err
}

// checkpoint makes the checkpoint of the shutdown short. There is a limit for it.
func (w *Work) checkpoint(ctx context.Context) error {
	n, err := w.Connect(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	limited, cancel := context.WithTimeoutCause(ctx, w.Request.Limit, fmt.Errorf("not done within %s", w.Request.Limit))
	defer cancel()
	err = n.Checkpoint(limited)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil: // not every login may write one
		w.Log.Warn("restart: no checkpoint before the shutdown", "err", err)
	default:
		w.done(StepCheckpoint, "a checkpoint was written")
	}
	return nil
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
