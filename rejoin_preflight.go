package repmgr

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
)

// preflight looks at all that the chosen method will need, while nothing has been
// stopped or changed yet. Where pg_rewind would fail half-way and the policy
// allows a clone, the node is cloned.
func (r *rejoining) preflight(ctx context.Context) (string, error) {
	if r.res.Method == RejoinByRewind {
		err := r.mayRewind(ctx)
		if err == nil {
			return "pg_rewind can do its work", nil
		}
		if r.o.Policy != RejoinReclone {
			return "", err
		}
		r.log.Warn("pg_rewind would fail: the node is to be cloned anew", "err", err)
		r.res.Method, r.res.Reason = RejoinByClone, err.Error()
	}
	if r.res.Method != RejoinByClone {
		return "none beside", nil
	}
	if _, err := r.server.Program("pg_waldump"); err != nil && r.diverged && !r.o.Force {
		return "", err
	}
	_, err := r.Clone(ctx, r.cloneOptions(true))
	if err != nil {
		return "", err
	}
	return "a clone can begin", nil
}

// mayRewind makes the checks of a rewind: programs, rights at the primary, and
// the files that it would write.
func (r *rejoining) mayRewind(ctx context.Context) error {
	programs := []string{"pg_waldump"}
	if r.o.PgRewind == "" {
		programs = append(programs, "pg_rewind")
	} else if _, err := os.Stat(r.o.PgRewind); err != nil {
		return hint(kind(ErrRejoin, "look for pg_rewind: %w", err), "Name it with --force-rewind=PATH, or leave the path out.")
	}
	if !r.control.State.Clean() || r.lags {
		programs = append(programs, "postgres")
	}
	for _, name := range programs {
		if _, err := r.server.Program(name); err != nil {
			return err
		}
	}
	if err := r.rightsToRewind(ctx); err != nil {
		return err
	}
	return r.writableFiles(ctx)
}

// rightsToRewind asks the primary for what pg_rewind, and the checkpoint before
// it, will do there.
func (r *rejoining) rightsToRewind(ctx context.Context) error {
	functions := []string{"pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)", "pg_read_binary_file(text)", "pg_read_binary_file(text, bigint, bigint, boolean)"}
	var missing []string
	var mayCheckpoint bool
	if err := r.primary.Conn.QueryRow(ctx, `SELECT coalesce((SELECT array_agg(f) FROM unnest($1::text[]) f WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')), '{}'),
		(SELECT timeline_id = $2 FROM pg_control_checkpoint()) OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
		OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_checkpoint' AND pg_has_role(oid, 'USAGE'))`, functions, int32(r.status.Timeline)).Scan(&missing, &mayCheckpoint); err != nil {
		return r.primary.QueryError("look at the privileges for pg_rewind", err)
	}
	user := r.primary.Conn.Config().User
	switch {
	case len(missing) > 0:
		return hint(kind(ErrRejoin, "pg_rewind logs in to %s as %q, who may not execute %s", r.res.Primary, user, strings.Join(missing, ", ")),
			"On the primary, once: GRANT EXECUTE ON FUNCTION %s TO %s;", strings.Join(missing, ", "), user)
	case !mayCheckpoint:
		return hint(kind(ErrRejoin, "pg_rewind needs a checkpoint of %s, and %q may make none", r.res.Primary, user),
			"From PostgreSQL 15 on, once, on the primary: GRANT pg_checkpoint TO %s; Before 15: run CHECKPOINT there as a superuser.", user)
	}
	return nil
}

// emptied are the directories whose contents pg_rewind does not copy. It removes what is in them.
var emptied = []string{"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}

// writableFiles finds what in the data directory would end pg_rewind half-way: it
// writes every file anew that is no table and that the primary has too, writes
// into tables, and makes and removes files in every directory.
func (r *rejoining) writableFiles(ctx context.Context) error {
	var bad []string
	visit := func(rel string, err error) { bad = append(bad, fmt.Sprintf("%s: %v", rel, err)) }
	if err := walkRewound(r.server.Dir, visit); err != nil {
		return hint(kind(ErrRejoin, "look at the files in %s: %w", r.server.Dir, err), "Mend that, and run the same command again.")
	}
	bad = slices.DeleteFunc(bad, func(line string) bool { // what only this node has is removed, which the directory allows
		rel, _, _ := strings.Cut(line, ": ")
		info, err := os.Lstat(filepath.Join(r.server.Dir, rel))
		var there *bool
		return err == nil && !info.IsDir() && readable(filepath.Join(r.server.Dir, rel)) &&
			r.primary.Conn.QueryRow(ctx, `SELECT (pg_stat_file($1, true)).isdir`, rel).Scan(&there) == nil && there == nil
	})
	if len(bad) == 0 {
		return nil
	}
	return hint(kind(ErrRejoin, "pg_rewind would fail half-way in %s: %s", r.server.Dir, datadir.Some(bad)),
		"Make them readable and writable for the user that runs PostgreSQL (as root: chown, chmod u+rw), or move what does not belong there out of the data directory. Then: %s", r.again("--force-rewind"))
}

func readable(path string) bool { return syscall.Access(path, 4) == nil }

// walkRewound shows what in the data directory pg_rewind could not write.
func walkRewound(dir string, bad func(rel string, err error)) error {
	const read, write, search = 4, 2, 1
	var walk func(root, rel string) error
	walk = func(root, rel string) error {
		return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			below, errRel := filepath.Rel(root, path)
			name := filepath.Join(rel, below)
			switch {
			case errors.Is(err, fs.ErrNotExist): // a server that runs removes files
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
			case slices.Contains(emptied, filepath.Dir(name)) || name == "postmaster.pid" || name == "postmaster.opts":
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
