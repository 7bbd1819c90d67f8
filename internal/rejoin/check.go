package rejoin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/datadir"
	"github.com/pgrepmgr/repmgr/internal/failure"
)

// Settle chooses the method after Compare, and checks whether it can work.
func (w *Work) Settle(ctx context.Context) error {
	if err := w.decide(); err != nil {
		return err
	}
	w.Logger.Info("rejoin: method", "detail", fmt.Sprintf("%s: %s", w.Method, w.Reason))
	return w.Step(ctx, "prerequisites", w.preflight)
}

// decide chooses the method, or returns why there is none.
func (w *Work) decide() error {
	switch {
	case w.interrupted && w.MayRewind: // its own WAL was saved by the rejoin that was interrupted
		w.Method, w.Reason = ByClone, "an earlier rejoin was interrupted"
	case w.interrupted:
		return failure.WithHint(failure.Of(failure.ErrRejoin, "an earlier rejoin of %s was interrupted while it changed the data in %s: it can not be used any more", w.Node, w.Server.Dir), "%s", w.Again("--reclone"))
	case !w.diverged && w.impossible == "":
		w.Method, w.Reason = ByFollow, "it has nothing that the primary lacks"
	case w.diverged && !w.MayRewind:
		return failure.WithHint(failure.Of(failure.ErrTimelineDiverged, "%s has WAL of its own behind %s, where the line of %s begins", w.Node, w.fork(), w.Primary),
			"It can be saved and taken back. %s", w.Again("--force-rewind"))
	case w.impossible == "":
		w.Method, w.Reason = ByRewind, fmt.Sprintf("it has WAL of its own behind %s", w.fork())
	case w.MayClone, w.cloneOnly && w.MayRewind: // its WAL is saved too, and only a clone can take it back
		w.Method, w.Reason = ByClone, w.impossible
	case !w.diverged:
		return failure.WithHint(failure.Of(failure.ErrRejoin, "%s can not follow %s: %s", w.Node, w.Primary, w.impossible), "%s", w.Again("--reclone"))
	default:
		return failure.WithHint(failure.Of(failure.ErrRejoin, "%s has diverged from %s, and pg_rewind can not help: %s", w.Node, w.Primary, w.impossible), "%s", w.Again("--reclone"))
	}
	return nil
}

func (w *Work) fork() string {
	if w.Fork == nil {
		return "a point that is not known"
	}
	return w.Fork.String()
}

// preflight checks everything that the chosen method will need, before anything is stopped or
// changed. Where pg_rewind would fail half-way and the policy allows a clone, the method
// becomes a clone.
func (w *Work) preflight(ctx context.Context) (string, error) {
	if w.Method == ByRewind {
		err := w.mayRewind(ctx)
		if err == nil {
			return "pg_rewind can do its work", nil
		}
		if !w.MayClone {
			return "", err
		}
		w.Logger.Warn("pg_rewind would fail: the node is to be cloned anew", "err", err)
		w.Method, w.Reason = ByClone, err.Error()
	}
	if w.Method != ByClone {
		return "none beside", nil
	}
	if _, err := w.Server.Program("pg_waldump"); err != nil && w.diverged && !w.Force {
		return "", err
	}
	if _, err := w.Clone(ctx, true); err != nil {
		return "", err
	}
	return "a clone can begin", nil
}

// mayRewind makes the checks for pg_rewind: its programs, its rights at the primary, and the
// files that it would write.
func (w *Work) mayRewind(ctx context.Context) error {
	programs := []string{"pg_waldump"}
	if w.PgRewind == "" {
		programs = append(programs, "pg_rewind")
	} else if _, err := os.Stat(w.PgRewind); err != nil {
		return failure.WithHint(failure.Of(failure.ErrRejoin, "look for pg_rewind: %w", err), "Name it with --force-rewind=PATH, or leave the path out.")
	}
	if !w.control.State.Clean() || w.lags {
		programs = append(programs, "postgres")
	}
	for _, name := range programs {
		if _, err := w.Server.Program(name); err != nil {
			return err
		}
	}
	if err := w.rightsToRewind(ctx); err != nil {
		return err
	}
	return w.writableFiles(ctx)
}

// rightsToRewind asks the primary for the rights that pg_rewind, and the checkpoint before it,
// need there.
func (w *Work) rightsToRewind(ctx context.Context) error {
	functions := []string{"pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)", "pg_read_binary_file(text)", "pg_read_binary_file(text, bigint, bigint, boolean)"}
	var missing []string
	var mayCheckpoint bool
	if err := w.Source.Conn.QueryRow(ctx, `SELECT coalesce((SELECT array_agg(f) FROM unnest($1::text[]) f WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')), '{}'),
		(SELECT timeline_id = $2 FROM pg_control_checkpoint()) OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
		OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_checkpoint' AND pg_has_role(oid, 'USAGE'))`, functions, int32(w.Status.Timeline)).Scan(&missing, &mayCheckpoint); err != nil {
		return w.Source.QueryError("look at the privileges for pg_rewind", err)
	}
	user := w.Source.Conn.Config().User
	switch {
	case len(missing) > 0:
		return failure.WithHint(failure.Of(failure.ErrRejoin, "pg_rewind logs in to %s as %q, who may not execute %s", w.Primary, user, strings.Join(missing, ", ")),
			"On the primary, once: GRANT EXECUTE ON FUNCTION %s TO %s;", strings.Join(missing, ", "), user)
	case !mayCheckpoint:
		return failure.WithHint(failure.Of(failure.ErrRejoin, "pg_rewind needs a checkpoint of %s, and %q may make none", w.Primary, user),
			"From PostgreSQL 15 on, once, on the primary: GRANT pg_checkpoint TO %s; Before 15: run CHECKPOINT there as a superuser.", user)
	}
	return nil
}

// skippedDirs are the directories whose contents pg_rewind does not copy, but removes.
var skippedDirs = []string{"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}

// writableFiles finds what in the data directory would make pg_rewind fail half-way. pg_rewind
// writes every file anew that is not a table and that the primary has too, writes into tables,
// and makes and removes files in every directory.
func (w *Work) writableFiles(ctx context.Context) error {
	var bad []string
	visit := func(rel string, err error) { bad = append(bad, fmt.Sprintf("%s: %v", rel, err)) }
	if err := walkRewound(w.Server.Dir, visit); err != nil {
		return failure.WithHint(failure.Of(failure.ErrRejoin, "look at the files in %s: %w", w.Server.Dir, err), "Mend that, and run the same command again.")
	}
	bad = slices.DeleteFunc(bad, func(line string) bool { // a file that only this node has is removed, for which the rights on its directory are enough
		rel, _, _ := strings.Cut(line, ": ")
		info, err := os.Lstat(filepath.Join(w.Server.Dir, rel))
		var there *bool
		return err == nil && !info.IsDir() && readable(filepath.Join(w.Server.Dir, rel)) &&
			w.Source.Conn.QueryRow(ctx, `SELECT (pg_stat_file($1, true)).isdir`, rel).Scan(&there) == nil && there == nil
	})
	if len(bad) == 0 {
		return nil
	}
	return failure.WithHint(failure.Of(failure.ErrRejoin, "pg_rewind would fail half-way in %s: %s", w.Server.Dir, datadir.Some(bad)),
		"Make them readable and writable for the user that runs PostgreSQL (as root: chown, chmod u+rw), or move what does not belong there out of the data directory. Then: %s", w.Again("--force-rewind"))
}

func readable(path string) bool { return syscall.Access(path, 4) == nil }

// walkRewound lists what in the data directory pg_rewind could not write.
func walkRewound(dir string, bad func(rel string, err error)) error {
	const read, write, search = 4, 2, 1
	var walk func(root, rel string) error
	walk = func(root, rel string) error {
		return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			below, errRel := filepath.Rel(root, path)
			name := filepath.Join(rel, below)
			switch {
			case errors.Is(err, fs.ErrNotExist): // a running server removes files meanwhile
				return nil
			case err != nil:
				bad(name, errors.Unwrap(err))
				return nil
			case errRel != nil:
				return errRel
			case e.IsDir():
				if err := syscall.Access(path, read|write|search); err != nil {
					bad(name, err)
				}
				return nil
			case e.Type()&fs.ModeSymlink != 0 && (name == "pg_wal" || filepath.Dir(name) == "pg_tblspc"):
				to, err := filepath.EvalSymlinks(path)
				if err != nil {
					bad(name, err)
					return nil
				}
				return walk(to, name)
			case slices.Contains(skippedDirs, filepath.Dir(name)) || name == "postmaster.pid" || name == "postmaster.opts":
				return nil
			case !e.Type().IsRegular():
				return nil
			}
			if err := syscall.Access(path, read|write); err != nil && !errors.Is(err, syscall.ENOENT) {
				bad(name, err)
			}
			return nil
		})
	}
	return walk(dir, ".")
}
