package repmgr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/durable"
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
//	            and the settings say so until the end (see ownWALSetting)
//	guard       a note beside the data, and a mode with which PostgreSQL does not start
//	rewind      pg_rewind, and a look at what it did
//	configure   the node's own files back, and the guard off

// guardMode is a permission on the data directory with which PostgreSQL refuses
// to start: search for others, who still see nothing of what is in it. It outlives
// pg_rewind, which removes every file that the primary does not have.
const guardMode = 0o001

// stateDir exists while the data is neither the old one nor the new one. It
// holds the node's own files.
func (r *rejoining) stateDir() string { return stateDir(r.server, r.cfg.NodeID) }

func stateDir(s *salvage.Server, node NodeID) string {
	return filepath.Join(s.Directory(), fmt.Sprintf("incomplete-node%d", node))
}

// incomplete reports whether a rejoin has taken the old data away and has not put
// new data in its place: its clone failed, or was ended.
func incomplete(s *salvage.Server, node NodeID) bool {
	_, errState := os.Stat(stateDir(s, node))
	_, errData := os.Stat(filepath.Join(s.Dir, "global", "pg_control"))
	return errState == nil && errors.Is(errData, fs.ErrNotExist)
}

// guard makes the data unusable for anybody but us until release.
func (r *rejoining) guard(ctx context.Context) error {
	dir := r.stateDir()
	tmp := dir + ".tmp"
	err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(dir), os.MkdirAll(filepath.Join(tmp, "config"), 0o700))
	if err == nil {
		err = r.server.SaveConfig(ctx, filepath.Join(tmp, "config"), r.o.ConfigFiles)
	}
	if err == nil && r.res.Method == RejoinByRewind {
		err = r.server.KeepWAL(ctx, filepath.Join(tmp, "pg_wal"), r.res.Fork.LSN, r.control.WALSegmentSize)
	}
	if err == nil {
		err = durable.Write(filepath.Join(tmp, "README"), fmt.Appendf(nil, "The data in %s is being replaced since %s. If this directory is still here when nothing works on it,\nthe data can not be used: clone it anew.\n",
			r.server.Dir, time.Now().UTC().Format(time.RFC3339)))
	}
	if err == nil {
		err = errors.Join(os.Rename(tmp, dir), durable.SyncDir(filepath.Dir(dir)), r.mode(guardMode))
	}
	if err != nil {
		return hint(kind(ErrRejoin, "prepare the work on %s: %w", r.server.Dir, err), "Set salvage_directory in repmgr.conf to a directory that this user can write.")
	}
	return nil
}

// isGuarded says whether an earlier rejoin ended under guard. A clone that
// somebody made since has lifted it.
func (r *rejoining) isGuarded() bool {
	if _, err := os.Stat(r.stateDir()); err != nil {
		return false
	}
	info, err := os.Stat(r.server.Dir)
	_, noData := os.Stat(filepath.Join(r.server.Dir, "global", "pg_control"))
	return err != nil || noData != nil || info.Mode()&guardMode != 0
}

// release lets PostgreSQL start on the data again.
func (r *rejoining) release() error {
	if err := errors.Join(r.mode(0), durable.SyncDir(r.server.Dir), os.RemoveAll(r.stateDir())); err != nil {
		return kind(ErrRejoin, "finish the work on %s: %w", r.server.Dir, err)
	}
	return nil
}

func (r *rejoining) mode(guard os.FileMode) error {
	info, err := os.Stat(r.server.Dir)
	if err != nil {
		return err
	}
	return os.Chmod(r.server.Dir, info.Mode().Perm()&^guardMode|guard)
}

// takeBack saves what the node has too much and rewinds it.
func (r *rejoining) takeBack(ctx context.Context) error {
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{{"salvage", r.save}, {"detach", r.detach}, {"checkpoint", r.checkpoint}, {"recover", r.recover}, {"rewind", r.rewind}, {"configure", r.configure}} {
		if err := r.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// save salvages. Without Force nothing is taken back that could not be saved.
func (r *rejoining) save(ctx context.Context) (string, error) {
	if _, err := os.Stat(filepath.Join(r.server.Dir, "pg_wal")); os.IsNotExist(err) {
		return "there is no WAL", nil
	}
	if !r.diverged {
		return "it has nothing of its own", nil
	}
	if r.res.Fork == nil {
		return "where the lines part is not known: nothing can be singled out", r.saveFailed(errors.New("the fork is not known"))
	}
	list := salvage.Branches(r.timeline, r.ours, r.res.Fork.Timeline, r.res.Fork.LSN)
	saved, err := r.server.Save(ctx, r.res.Node.String(), int(r.res.Node.ID), list, r.control.WALSegmentSize)
	if err != nil {
		return "", r.saveFailed(err)
	}
	sv := Salvage(saved)
	r.res.Salvage = &sv
	return fmt.Sprintf("%d transactions, %d bytes of WAL, in %s", len(sv.Commits), sv.Bytes, sv.Dir), nil
}

func (r *rejoining) saveFailed(err error) error {
	err = hint(kind(ErrRejoin, "save the WAL that %s has beyond %s: %w", r.res.Node, r.res.Primary, err),
		"Set salvage_directory in repmgr.conf to a directory with room that this user can write. To lose that WAL: %s", r.again("--force-rewind --force"))
	if !r.o.Force {
		return err
	}
	r.log.Warn("the WAL is lost, as --force asks for", "err", err)
	return nil
}

// detach makes the data that of a standby without upstream: if we die here and
// somebody starts it, it accepts no write.
func (r *rejoining) detach(context.Context) (string, error) {
	if err := r.server.Detach(); err != nil {
		return "", kind(ErrDirectory, "make %s a standby: %w", r.server.Dir, err)
	}
	return "", nil
}

// recover brings a crashed server's data into order, as pg_rewind needs it, and that
// of a standby whose restartpoints did not keep up with promotions. The server's own recovery would recycle the WAL from the fork on.
func (r *rejoining) recover(ctx context.Context) (string, error) {
	if r.control.State.Clean() && !r.lags {
		return "not needed: " + string(r.control.State), nil
	}
	program, err := r.server.Program("postgres")
	if err != nil {
		return "", err
	}
	// A single-user server does not start with the signal files in its way.
	for _, name := range []string{"standby.signal", "recovery.signal"} {
		path := filepath.Join(r.server.Dir, name)
		if err := os.Rename(path, path+".repmgr"); err == nil {
			defer func() { _ = os.Rename(path+".repmgr", path) }()
		}
	}
	if r.server.Runs() {
		return "", kind(ErrRefused, "somebody has started the server in %s meanwhile", r.server.Dir)
	}
	if err := r.server.MarkOwnWAL(wal.Position{Timeline: r.timeline, LSN: r.res.Fork.LSN}); err != nil {
		return "", kind(ErrDirectory, "note that %s is about to write WAL of its own: %w", r.res.Node, err)
	}
	args := append([]string{"--single", "-F", "-c", "wal_keep_size=100GB", "-c", "archive_mode=off"}, r.server.Args()...)
	if out, err := r.tool(ctx, program, nil, append(args, "template1")...); err != nil {
		return "", hint(kind(ErrRejoin, "crash recovery of %s: %w%s", r.res.Node, err, shell.AfterColon(shell.LastLines(out, 5))), "%s", r.again("--reclone"))
	}
	control, err := pgcontrol.Read(r.server.Dir)
	switch {
	case err != nil:
		return "", kind(ErrRejoin, "look at the recovered data: %w", err)
	case !control.State.Clean():
		return "", hint(kind(ErrRejoin, "crash recovery of %s left it %q", r.res.Node, control.State), "%s", r.again("--reclone"))
	case r.lags && control.Timeline != r.timeline:
		r.cloneOnly = true
		return "", hint(kind(ErrRejoin, "the control file of %s names timeline %d, not %d, and pg_rewind of PostgreSQL 15 and older takes that for the one that it is on", r.res.Node, control.Timeline, r.timeline), "%s", r.again("--reclone"))
	}
	return string(r.control.State) + " before", nil
}

// checkpoint makes the primary's control file name its timeline. Before that,
// pg_rewind of 15 and older finds nothing to do.
func (r *rejoining) checkpoint(ctx context.Context) (string, error) {
	var known bool
	if err := r.primary.Conn.QueryRow(ctx, `SELECT timeline_id = $1 FROM pg_control_checkpoint()`, int32(r.status.Timeline)).Scan(&known); err != nil {
		return "", r.primary.QueryError("look at the checkpoint", err)
	}
	if known {
		return "not needed", nil
	}
	if _, err := r.primary.Conn.Exec(postgres.Unlimited(ctx), `CHECKPOINT`); err != nil {
		return "", hint(r.primary.QueryError("checkpoint", err), "From PostgreSQL 15 on, once, on the primary: GRANT pg_checkpoint TO %s;", r.primary.Conn.Config().User)
	}
	return "", nil
}

// rewind runs pg_rewind under guard, and looks whether it did its work.
func (r *rejoining) rewind(ctx context.Context) (string, error) {
	program := r.o.PgRewind
	if program == "" {
		var err error
		if program, err = r.server.Program("pg_rewind"); err != nil {
			return "", err
		}
	}
	source, env, err := r.source()
	if err != nil {
		return "", err
	}
	if err := r.guard(ctx); err != nil {
		return "", err
	}
	if err := r.server.GiveArchive(); err != nil { // pg_rewind asks for it; the server does not start under guard
		return "", kind(ErrRejoin, "give %s its restore_command for pg_rewind: %w", r.res.Node, err)
	}
	args := []string{"--target-pgdata=" + r.server.Dir, "--source-server=" + source, "--no-ensure-shutdown"}
	if restore, err := r.restoreArgs(ctx); err == nil {
		args = append(args, restore...)
	}
	before, err := r.server.LastChange()
	if err != nil {
		return "", kind(ErrRejoin, "look at the data in %s: %w", r.server.Dir, err)
	}
	if err := wait.Pause(ctx, fileClock); err != nil { // so that its first change shows
		return "", err
	}
	out, err := r.tool(ctx, program, env, args...)
	if err != nil {
		if after, errLook := r.server.LastChange(); errLook == nil && after.Equal(before) {
			_, errDetach := r.detach(ctx)
			return "", errors.Join(r.rewindError(ctx, "is not possible", out, err), errDetach, r.release()) // it looked and left
		}
		return "", r.rewindError(ctx, "was interrupted, and the data can not be used any more", out, err)
	}
	control, err := pgcontrol.Read(r.server.Dir)
	switch {
	case err != nil:
		return "", kind(ErrRejoin, "look at the rewound data: %w", err)
	case max(control.Timeline, control.MinRecoveryTimeline) != r.status.Timeline:
		return "", hint(kind(ErrRejoin, "pg_rewind left %s on timeline %d, and %s is on %d: %s", r.res.Node, max(control.Timeline, control.MinRecoveryTimeline), r.res.Primary, r.status.Timeline, shell.LastLines(out, 2)),
			"%s", r.again("--reclone"))
	}
	if err := r.server.ReturnWAL(ctx, filepath.Join(r.stateDir(), "pg_wal"), r.control.WALSegmentSize); err != nil {
		return "", hint(kind(ErrRejoin, "put the WAL back that the rewound data needs: %w", err), "%s", r.again("--reclone"))
	}
	return shell.LastLines(out, 1), nil
}

func (r *rejoining) rewindError(ctx context.Context, what string, out []byte, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	help := r.again("--reclone")
	if bytes.Contains(out, []byte("permission denied")) {
		help = fmt.Sprintf("pg_rewind logs in to %s as %q, who must be a superuser or have EXECUTE on pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text) and pg_read_binary_file(text, bigint, bigint, boolean).",
			r.res.Primary.Name, r.primary.Conn.Config().User)
	}
	return hint(kind(ErrRejoin, "pg_rewind of %s %s: %w%s", r.res.Node, what, err, shell.AfterColon(shell.LastLines(out, 5))), "%s", help)
}

// source is how pg_rewind reaches the primary. A password goes by the
// environment: everybody can read the arguments of a process.
func (r *rejoining) source() (conninfo string, env []string, err error) {
	params, err := ParseConninfo(r.dialInfo(r.res.Primary))
	if err != nil {
		return "", nil, kind(ErrConfig, "conninfo of %s: %w", r.res.Primary, err)
	}
	for key, name := range map[string]string{"password": "PGPASSWORD", "passfile": "PGPASSFILE", "sslpassword": "PGSSLPASSWORD"} {
		if params[key] != "" {
			env = append(env, name+"="+params[key])
			delete(params, key)
		}
	}
	params["application_name"] = "repmgr_rewind"
	params["options"] = postgres.PinOptions(params["options"], postgres.Major(r.primary.Conn.PgConn()))
	for key, value := range map[string]string{ // a primary that was cut off must not keep it for hours
		"connect_timeout": "10", "keepalives": "1", "keepalives_idle": "5", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000",
	} {
		if params[key] == "" {
			params[key] = value
		}
	}
	return FormatConninfo(params), env, nil
}

// restoreArgs let pg_rewind fetch WAL from the archive, where this server's own
// settings know how.
func (r *rejoining) restoreArgs(ctx context.Context) ([]string, error) {
	if r.cfg.RestoreCommand == "" {
		return nil, nil
	}
	program, err := r.server.Program("postgres")
	if err != nil {
		return nil, err
	}
	out, err := r.tool(ctx, program, nil, append(r.server.Args(), "-C", "restore_command")...)
	if err != nil || strings.TrimSpace(string(out)) == "" {
		return nil, err
	}
	return []string{"--restore-target-wal"}, nil
}

// tool runs one of PostgreSQL's programs on the data directory.
func (r *rejoining) tool(ctx context.Context, program string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = r.server.Dir, 2*time.Second
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	shell.EndWithGroup(cmd)
	return cmd.CombinedOutput()
}

// reclone copies the primary into the data directory, after saving what is lost by that.
func (r *rejoining) reclone(ctx context.Context) error {
	if r.res.Salvage == nil && !r.interrupted {
		if err := r.step(ctx, "salvage", r.save); err != nil {
			return err
		}
	}
	if !r.isGuarded() {
		if err := r.guard(ctx); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "clone", r.clone); err != nil {
		return err
	}
	return r.step(ctx, "configure", r.configure)
}

func (r *rejoining) clone(ctx context.Context) (string, error) {
	r.unlock() // Clone locks the directory itself
	res, err := r.Clone(ctx, r.cloneOptions(false))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes", res.Bytes), r.acquire()
}

// cloneOptions are those of a new clone; beforehand nothing is changed, and the server may still run.
func (r *rejoining) cloneOptions(beforehand bool) CloneOptions {
	return CloneOptions{
		Source: r.dialInfo(r.res.Primary), Dir: r.server.Dir, UpstreamID: r.res.Primary.ID,
		FastCheckpoint: true, Force: true, DryRun: beforehand, runs: beforehand, Progress: r.o.Progress,
	}
}

// configure puts the node's own files back: with its settings, its ballot and its pause.
func (r *rejoining) configure(ctx context.Context) (string, error) {
	err := r.server.RestoreConfig(ctx, filepath.Join(r.stateDir(), "config"))
	if err != nil {
		return "", hint(kind(ErrRejoin, "put the configuration of %s back: %w", r.res.Node, err), "They are in %s.", r.stateDir())
	}
	_, err = r.detach(ctx)
	return "", err
}

// fileClock is longer than the step of the clock that file systems go by.
const fileClock = 20 * time.Millisecond
