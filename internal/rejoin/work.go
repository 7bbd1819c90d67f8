package rejoin

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Method is the way in which a server comes back.
type Method string

// The methods.
const (
	ByFollow Method = "follow"  // it has no WAL that the primary does not have
	ByRewind Method = "rewind"  // the WAL that it has too much is taken back
	ByClone  Method = "reclone" // all data is copied again
)

// Options are how far a rejoin may go, and what only its caller can do.
type Options struct {
	MayRewind   bool     // what the server has too much may be saved and taken back. Data that nobody could rewind any more is cloned anew.
	MayClone    bool     // as MayRewind; it may also be cloned anew where pg_rewind does not work
	Force       bool     // stop a server that runs as a primary; go on although nothing could be saved
	DryRun      bool     // look and decide, change nothing
	Archive     bool     // its configuration has a restore_command, so an archive may have what no server has any more
	PgRewind    string   // path of pg_rewind. Empty: the one of the server's version.
	ConfigFiles []string // of the data directory, to be kept beside those that always are
	Logger      *slog.Logger

	ConnectLocal func(context.Context) (*registry.Server, error)
	ConnectTo    func(context.Context, registry.Record) (*registry.Server, error)
	History      func(context.Context, registry.Record, wal.Timeline) (wal.History, error)                         // of a timeline of that node
	Clone        func(ctx context.Context, beforehand bool) (bytes int64, err error)                               // of the primary, into the data directory; beforehand: only look whether it can begin
	Step         func(ctx context.Context, name string, do func(context.Context) (detail string, err error)) error // runs one named step and notes it
	// Elsewhere is another standby that has all WAL up to a position, with the settings to stream from it, where the primary is lost.
	// No record: it is not, or none is known. Nil: none is sought.
	Elsewhere func(upTo wal.Position) (registry.Record, map[string]string)
	Again     func(options string) string // the command line that tries it another time, with these options
}

// Work is one server that is to come back, and the primary that it comes back to. The
// caller fills in the first part, calls Lock and FindLocal, and then finds the primary:
// everything else needs the second part, too. The third part is what the work finds out.
// Close ends it.
type Work struct {
	Options
	Server *salvage.Server

	Node    registry.Record // of the server
	Primary registry.Record
	Source  *registry.Server    // the connection to Primary
	Status  registry.NodeStatus // of Primary

	Local     *registry.Server // the connection to the server, while it runs in recovery
	Method    Method
	Reason    string         // why that method
	Saved     *salvage.Saved // nil: nothing was lost
	Fork      *wal.Position  // where the server's line leaves that of the primary; nil: it does not
	Streaming bool

	shared      wal.Position // where the two lines part, or the end of the primary's
	lock        *os.File     // the data directory, locked
	writes      bool         // it runs as a primary, and is to be stopped
	control     pgcontrol.ControlFile
	timeline    wal.Timeline // of the server
	ours        wal.History
	diverged    bool
	lags        bool   // its control file names an earlier timeline, which pg_rewind would take for the one that it is on
	twin        bool   // what both call one timeline is two: they were promoted apart
	impossible  string // why neither following nor pg_rewind can help
	cloneOnly   bool   // and no person could make it possible
	interrupted bool   // an earlier rejoin ended in the middle of its work on the data
}

// Close gives back the connections and the data directory.
func (w *Work) Close() {
	w.Local.Close()
	w.Source.Close()
	w.unlock()
}

// Lock keeps a second rejoin, and a clone, out of the data directory until Close.
func (w *Work) Lock() error {
	f, err := os.Open(w.Server.Dir)
	if err != nil {
		return failure.Of(failure.ErrDirectory, "open the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return failure.WithHint(failure.Of(failure.ErrRefused, "another rejoin or clone is under way in %s", w.Server.Dir), "Wait for it to end: repmgrd rejoins by itself with failover=automatic.")
	}
	w.lock = f
	return nil
}

func (w *Work) unlock() {
	if w.lock != nil {
		_ = w.lock.Close()
		w.lock = nil
	}
}

// FindLocal connects to the local server where it runs. One that runs as a
// primary is never touched without Force.
func (w *Work) FindLocal(ctx context.Context) (string, error) {
	if !w.Server.Runs() {
		if w.DryRun {
			return "down", nil
		}
		killed, err := w.Server.KillChildren(ctx) // they may still write WAL
		if err != nil || killed == 0 {
			return "down", err
		}
		return fmt.Sprintf("down; %d processes of a dead postmaster killed", killed), nil
	}
	stop := func(why string) (string, error) {
		switch {
		case !w.Force:
			return "", failure.WithHint(failure.Of(failure.ErrRefused, "the server in %s %s", w.Server.Dir, why),
				"Make sure that it is not the one in use (repmgr cluster show), then stop it, or let this command do that: --force")
		default: // Stop does it, when all that can be known before is known
			return why + "; to be stopped", nil
		}
	}
	n, err := w.ConnectLocal(ctx)
	if err != nil {
		return stop(fmt.Sprintf("runs and can not be asked (%v)", err))
	}
	var inRecovery bool
	if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
		n.Close()
		return "", n.QueryError("read the recovery state", err)
	}
	here, err := w.Server.IsAt(ctx, &n.Server)
	switch {
	case err != nil:
		n.Close()
		return "", err
	case !here:
		n.Close()
		return "", failure.WithHint(failure.Of(failure.ErrRefused, "the server that conninfo names is not the one that runs in %s", w.Server.Dir), "Correct conninfo or data_directory in repmgr.conf.")
	case !inRecovery:
		n.Close()
		w.writes = true
		return stop("runs as a primary")
	}
	w.Local = n
	return "in recovery", nil
}

// CheckPledge keeps a node that has pledged itself in an election from going back
// to a primary of an earlier term: it would acknowledge commits that the winner
// of that election does not know.
func (w *Work) CheckPledge(ctx context.Context) error {
	if w.Local != nil {
		return nil // a server that runs is asked itself, when it is re-pointed
	}
	vote, err := w.ownBallot()
	if err != nil || vote.Term == 0 {
		return err
	}
	rules, err := w.Source.Rules(ctx)
	if err != nil || len(rules) == 0 || rules[0].Term >= vote.Term {
		return err
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "%s has pledged itself to term %d, and %s is of term %d: it may have been deposed", w.Node, vote.Term, w.Primary, rules[0].Term),
		"An election is going on, or came to nothing. See repmgr service status; the daemons sort it out.")
}

// ownBallot reads the vote of the server that is down; while its data is being
// replaced, from the copy of its settings.
func (w *Work) ownBallot() (vote ballot.Ballot, err error) {
	file := filepath.Join(w.stateDir(), "config", postmaster.AutoConf)
	if _, err := os.Stat(file); err != nil {
		file = filepath.Join(w.Server.Dir, postmaster.AutoConf)
	}
	if vote, err = salvage.ReadBallot(file); err != nil {
		err = failure.Of(failure.ErrRejoin, "read the vote of %s: %w", w.Node, err)
	}
	return vote, err
}

// sourceLost says why the primary that the node was to come back to is none any more.
func (w *Work) sourceLost(ctx context.Context) error {
	n, err := w.ConnectTo(ctx, w.Primary)
	if err != nil {
		return err
	}
	defer n.Close()
	now, err := n.Status(ctx)
	if err == nil && (now.InRecovery || now.Timeline != w.Status.Timeline) {
		err = failure.Of(failure.ErrNoPrimary, "%s is not the primary of timeline %d any more", w.Primary, w.Status.Timeline)
	}
	return err
}

// WasStarted reports whether somebody has started the server since its data was
// compared: as a primary it has written WAL of its own.
func (w *Work) WasStarted(ctx context.Context) bool {
	if w.control.SystemIdentifier == 0 {
		return false
	}
	now, err := w.Server.Control(ctx)
	return err == nil && (now.State != w.control.State || now.Position() != w.control.Position())
}

// StartAgain starts a standby that was stopped, or found down, for what can not be done now: the
// primary that it was to follow may be lost, and the election needs its vote.
func (w *Work) StartAgain(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if w.isGuarded() || w.Server.Runs() {
		return
	}
	if err := w.Server.Start(ctx); err != nil {
		w.Logger.Warn("the server was stopped, and is not started again", "node", w.Node.Name, "err", err, "hint", failure.Hint(err))
		return
	}
	w.Logger.Info("rejoin: start again", "detail", "it has a vote, until it can be brought back")
}

// Stop leaves no process of the server.
func (w *Work) Stop(ctx context.Context) (string, error) {
	w.Local.Close()
	w.Local = nil
	if err := w.Server.Stop(ctx); err != nil {
		return "", err
	}
	w.writes = false
	w.Server.ForgetDead()
	return "", nil
}

// Start makes the server a standby with these settings, and starts it.
func (w *Work) Start(ctx context.Context, set map[string]string) error {
	if err := w.CheckPledge(ctx); err != nil { // it may have voted until it was stopped
		return err
	}
	if err := os.Remove(filepath.Join(w.Server.Dir, "recovery.signal")); err != nil && !os.IsNotExist(err) {
		return failure.Of(failure.ErrDirectory, "remove recovery.signal: %w", err)
	}
	err := w.Server.GiveArchive()
	if err == nil {
		err = postmaster.WriteStandby(w.Server.Dir, set, []string{ballot.LocalWAL})
	}
	if err != nil {
		return failure.Of(failure.ErrDirectory, "write the standby settings: %w", err)
	}
	if err := w.release(); err != nil {
		return err
	}
	return w.startWatched(ctx, set)
}
