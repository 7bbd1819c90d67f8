package rejoin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/wal"
)

// The work on data that has to be taken back: save, recover, rewind, clone.
//
//	salvage     copy the WAL that is about to be lost
//	detach      make it a standby of nobody: from here on it can not come up as a primary
//	checkpoint  the primary's own files tell its new timeline
//	recover     crash recovery, so that the data is consistent: it writes WAL of its own,
//	            and the settings say so until the end (see [ballot.LocalWAL])
//	guard       a note beside the data, and a mode with which PostgreSQL does not start
//	rewind      pg_rewind, and a look at what it did
//	configure   the node's own files back, and the guard off

// Rewind saves the WAL that the server has too much, and takes it back. Where that does not
// work and a clone may be made instead, it returns nil, and the method is then ByClone.
func (w *Work) Rewind(ctx context.Context) error {
	err := w.takeBack(ctx)
	if err == nil || !w.MayClone && !w.cloneOnly || ctx.Err() != nil {
		return err
	}
	if lost := w.sourceLost(ctx); lost != nil { // there is nothing to clone from, so the old data is kept until there is
		return errors.Join(err, lost)
	}
	w.Logger.Warn("rejoin by pg_rewind did not work: cloning anew", "err", err)
	w.Method, w.Reason = ByClone, err.Error()
	return nil
}

// takeBack saves the WAL that the node has too much, and rewinds it.
func (w *Work) takeBack(ctx context.Context) error {
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{{"salvage", w.save}, {"detach", w.detach}, {"checkpoint", w.checkpoint}, {"recover", w.recover}, {"rewind", w.rewind}, {"configure", w.configure}} {
		if err := w.Step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// save copies the WAL that will be lost. Without Force, nothing is taken back that could not be
// saved.
func (w *Work) save(ctx context.Context) (string, error) {
	if _, err := os.Stat(filepath.Join(w.Server.Dir, "pg_wal")); os.IsNotExist(err) {
		return "there is no WAL", nil
	}
	if !w.diverged {
		return "it has nothing of its own", nil
	}
	if w.Fork == nil {
		return "where the lines part is not known: nothing can be singled out", w.saveFailed(errors.New("the fork is not known"))
	}
	list := salvage.Branches(w.timeline, w.ours, w.Fork.Timeline, w.Fork.LSN)
	saved, err := w.Server.Save(ctx, w.Node.String(), int(w.Node.ID), list, w.control.WALSegmentSize)
	if err != nil {
		return "", w.saveFailed(err)
	}
	w.Saved = &saved
	return fmt.Sprintf("%d transactions, %d bytes of WAL, in %s", len(saved.Commits), saved.Bytes, saved.Dir), nil
}

func (w *Work) saveFailed(err error) error {
	err = failure.WithHint(failure.Of(failure.ErrRejoin, "save the WAL that %s has beyond %s: %w", w.Node, w.Primary, err),
		"Set salvage_directory in repmgr.conf to a directory with room that this user can write. To lose that WAL: %s", w.Again("--force-rewind --force"))
	if !w.Force {
		return err
	}
	w.Logger.Warn("the WAL is lost, as --force asks for", "err", err)
	return nil
}

// detach makes the data directory that of a standby without an upstream. If this process dies
// and somebody starts the server, it accepts no writes.
func (w *Work) detach(context.Context) (string, error) {
	if err := w.Server.Detach(); err != nil {
		return "", failure.Of(failure.ErrDirectory, "make %s a standby: %w", w.Server.Dir, err)
	}
	return "", nil
}

// recover makes the data of a crashed server consistent, as pg_rewind needs it, and also the
// data of a standby whose restartpoints are older than promotions. The server's own recovery
// would recycle the WAL from the fork on.
func (w *Work) recover(ctx context.Context) (string, error) {
	if w.control.State.Clean() && !w.lags {
		return "not needed: " + string(w.control.State), nil
	}
	program, err := w.Server.Program("postgres")
	if err != nil {
		return "", err
	}
	// A single-user server does not start while the signal files exist.
	for _, name := range []string{"standby.signal", "recovery.signal"} {
		path := filepath.Join(w.Server.Dir, name)
		if err := os.Rename(path, path+".repmgr"); err == nil {
			defer func() { _ = os.Rename(path+".repmgr", path) }()
		}
	}
	if w.Server.Runs() {
		return "", failure.Of(failure.ErrRefused, "somebody has started the server in %s meanwhile", w.Server.Dir)
	}
	if err := w.Server.MarkOwnWAL(wal.Position{Timeline: w.timeline, LSN: w.Fork.LSN}); err != nil {
		return "", failure.Of(failure.ErrDirectory, "note that %s is about to write WAL of its own: %w", w.Node, err)
	}
	args := append([]string{"--single", "-F", "-c", "wal_keep_size=100GB", "-c", "archive_mode=off"}, w.Server.Args()...)
	if out, err := w.tool(ctx, program, nil, append(args, "template1")...); err != nil {
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "crash recovery of %s: %w%s", w.Node, err, shell.AfterColon(shell.LastLines(out, 5))), "%s", w.Again("--reclone"))
	}
	control, err := pgcontrol.Read(w.Server.Dir)
	switch {
	case err != nil:
		return "", failure.Of(failure.ErrRejoin, "look at the recovered data: %w", err)
	case !control.State.Clean():
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "crash recovery of %s left it %q", w.Node, control.State), "%s", w.Again("--reclone"))
	case w.lags && control.Timeline != w.timeline:
		w.cloneOnly = true
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "the control file of %s names timeline %d, not %d, and pg_rewind of PostgreSQL 15 and older takes that for the one that it is on", w.Node, control.Timeline, w.timeline), "%s", w.Again("--reclone"))
	}
	return string(w.control.State) + " before", nil
}

// checkpoint makes the primary's control file name its new timeline. Before that, pg_rewind of
// PostgreSQL 15 and older finds nothing to do.
func (w *Work) checkpoint(ctx context.Context) (string, error) {
	var known bool
	if err := w.Source.Conn.QueryRow(ctx, `SELECT timeline_id = $1 FROM pg_control_checkpoint()`, int32(w.Status.Timeline)).Scan(&known); err != nil {
		return "", w.Source.QueryError("look at the checkpoint", err)
	}
	if known {
		return "not needed", nil
	}
	if err := w.Source.Checkpoint(ctx); err != nil {
		return "", failure.WithHint(err, "From PostgreSQL 15 on, once, on the primary: GRANT pg_checkpoint TO %s;", w.Source.Conn.Config().User)
	}
	return "", nil
}

// rewind runs pg_rewind under guard, and checks what it did.
func (w *Work) rewind(ctx context.Context) (string, error) {
	program := w.PgRewind
	if program == "" {
		var err error
		if program, err = w.Server.Program("pg_rewind"); err != nil {
			return "", err
		}
	}
	source, env, err := w.source()
	if err != nil {
		return "", err
	}
	if err := w.guard(ctx); err != nil {
		return "", err
	}
	if err := w.Server.GiveArchive(); err != nil { // pg_rewind uses the archive; the server can not start under guard
		return "", failure.Of(failure.ErrRejoin, "give %s its restore_command for pg_rewind: %w", w.Node, err)
	}
	args := []string{"--target-pgdata=" + w.Server.Dir, "--source-server=" + source, "--no-ensure-shutdown"}
	if restore, err := w.restoreArgs(ctx); err == nil {
		args = append(args, restore...)
	}
	behind, errBehind := w.Server.SegmentsBehind(*w.Fork, w.control.WALSegmentSize)
	before, err := w.Server.LastChange()
	if err = errors.Join(err, errBehind); err != nil {
		return "", failure.Of(failure.ErrRejoin, "look at the data in %s: %w", w.Server.Dir, err)
	}
	if err := wait.Pause(ctx, fileClockStep); err != nil { // so that its first change gets another time
		return "", err
	}
	out, err := w.tool(ctx, program, env, args...)
	if err != nil {
		if after, errLook := w.Server.LastChange(); errLook == nil && after.Equal(before) {
			w.cloneOnly = w.cloneOnly || bytes.Contains(out, []byte("could not find previous WAL record")) && !w.Archive || bytes.Contains(out, []byte("could not find common ancestor"))
			_, errDetach := w.detach(ctx)
			return "", errors.Join(w.rewindError(ctx, "is not possible", out, err), errDetach, w.release()) // it stopped before it changed anything
		}
		return "", w.rewindError(ctx, "was interrupted, and the data can not be used any more", out, err)
	}
	control, err := pgcontrol.Read(w.Server.Dir)
	switch {
	case err != nil:
		return "", failure.Of(failure.ErrRejoin, "look at the rewound data: %w", err)
	case max(control.Timeline, control.MinRecoveryTimeline) != w.Status.Timeline:
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "pg_rewind left %s on timeline %d, and %s is on %d: %s", w.Node, max(control.Timeline, control.MinRecoveryTimeline), w.Primary, w.Status.Timeline, shell.LastLines(out, 2)),
			"%s", w.Again("--reclone"))
	}
	if err := w.Server.RemoveUnchanged(behind); err != nil {
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "remove the WAL of the timeline that %s has left: %w", w.Node, err), "%s", w.Again("--reclone"))
	}
	if err := w.Server.ReturnWAL(ctx, filepath.Join(w.stateDir(), "pg_wal"), w.control.WALSegmentSize); err != nil {
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "put the WAL back that the rewound data needs: %w", err), "%s", w.Again("--reclone"))
	}
	return shell.LastLines(out, 1), nil
}

func (w *Work) rewindError(ctx context.Context, what string, out []byte, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	help := w.Again("--reclone")
	if bytes.Contains(out, []byte("permission denied")) {
		help = fmt.Sprintf("pg_rewind logs in to %s as %q, who must be a superuser or have EXECUTE on pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text) and pg_read_binary_file(text, bigint, bigint, boolean).",
			w.Primary.Name, w.Source.Conn.Config().User)
	}
	return failure.WithHint(failure.Of(failure.ErrRejoin, "pg_rewind of %s %s: %w%s", w.Node, what, err, shell.AfterColon(shell.LastLines(out, 5))), "%s", help)
}

// source is the connection string with which pg_rewind reaches the primary. A password is
// passed in the environment, because everybody can read the arguments of a process.
func (w *Work) source() (info string, env []string, err error) {
	params, err := conninfo.Parse(w.Source.Conninfo)
	if err != nil {
		return "", nil, failure.Of(failure.ErrConfig, "conninfo of %s: %w", w.Primary, err)
	}
	for key, name := range map[string]string{"password": "PGPASSWORD", "passfile": "PGPASSFILE", "sslpassword": "PGSSLPASSWORD"} {
		if params[key] != "" {
			env = append(env, name+"="+params[key])
			delete(params, key)
		}
	}
	params["application_name"] = "repmgr_rewind"
	params["options"] = postgres.PinOptions(params["options"], postgres.Major(w.Source.Conn.PgConn()))
	for key, value := range map[string]string{ // a primary that was cut off must not block it for hours
		"connect_timeout": "10", "keepalives": "1", "keepalives_idle": "5", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000",
	} {
		if params[key] == "" {
			params[key] = value
		}
	}
	return conninfo.Format(params), env, nil
}

// restoreArgs make pg_rewind fetch WAL from the archive, where this server's settings say how.
func (w *Work) restoreArgs(ctx context.Context) ([]string, error) {
	if !w.Archive {
		return nil, nil
	}
	program, err := w.Server.Program("postgres")
	if err != nil {
		return nil, err
	}
	out, err := w.tool(ctx, program, nil, append(w.Server.Args(), "-C", "restore_command")...)
	if err != nil || strings.TrimSpace(string(out)) == "" {
		return nil, err
	}
	return []string{"--restore-target-wal"}, nil
}

// tool runs one of PostgreSQL's programs on the data directory.
func (w *Work) tool(ctx context.Context, program string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = w.Server.Dir, 2*time.Second
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	shell.EndWithGroup(cmd)
	return cmd.CombinedOutput()
}

// Reclone copies the primary into the data directory, after it has saved what is lost by that.
func (w *Work) Reclone(ctx context.Context) error {
	if w.Saved == nil && !w.interrupted {
		if err := w.Step(ctx, "salvage", w.save); err != nil {
			return err
		}
	}
	if !w.isGuarded() {
		if err := w.guard(ctx); err != nil {
			return err
		}
	}
	if err := w.Step(ctx, "clone", w.copyAnew); err != nil {
		return err
	}
	return w.Step(ctx, "configure", w.configure)
}

func (w *Work) copyAnew(ctx context.Context) (string, error) {
	w.unlock() // the clone locks the directory itself
	copied, err := w.Clone(ctx, false)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes", copied), w.Lock()
}

// configure puts the node's own files back, with its settings, its ballot and its pause.
func (w *Work) configure(ctx context.Context) (string, error) {
	err := w.Server.RestoreConfig(ctx, filepath.Join(w.stateDir(), "config"))
	if err != nil {
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "put the configuration of %s back: %w", w.Node, err), "They are in %s.", w.stateDir())
	}
	_, err = w.detach(ctx)
	return "", err
}

// fileClockStep is longer than one step of the clock that file systems use.
const fileClockStep = 20 * time.Millisecond
