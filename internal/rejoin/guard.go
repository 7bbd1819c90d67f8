package rejoin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/registry"
)

// guardMode is a mode of the data directory with which PostgreSQL refuses to start: others may
// search it, but still can not read anything in it. It survives pg_rewind, which removes every
// file that the primary does not have.
const guardMode = 0o001

// incompleteDir exists while the data is neither the old nor the new data. It holds the node's
// own files.
func (w *Work) stateDir() string { return incompleteDir(w.Server, w.Node.ID) }

func incompleteDir(s *salvage.Server, node registry.NodeID) string {
	return filepath.Join(s.Directory(), fmt.Sprintf("incomplete-node%d", node))
}

// Incomplete reports whether a rejoin has removed the old data and has not put new data in its
// place, because its clone failed or was interrupted.
func Incomplete(s *salvage.Server, node registry.NodeID) bool {
	_, errState := os.Stat(incompleteDir(s, node))
	_, errData := os.Stat(filepath.Join(s.Dir, "global", "pg_control"))
	return errState == nil && errors.Is(errData, fs.ErrNotExist)
}

// guard keeps PostgreSQL from starting on the data until release.
func (w *Work) guard(ctx context.Context) error {
	dir := w.stateDir()
	tmp := dir + ".tmp"
	err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(dir), os.MkdirAll(filepath.Join(tmp, "config"), 0o700))
	if err == nil {
		err = w.Server.SaveConfig(ctx, filepath.Join(tmp, "config"), w.ConfigFiles)
	}
	if err == nil && w.Method == ByRewind {
		err = w.Server.KeepWAL(ctx, filepath.Join(tmp, "pg_wal"), *w.Fork, w.control.WALSegmentSize)
	}
	if err == nil {
		err = durable.Write(filepath.Join(tmp, "README"), fmt.Appendf(nil, "The data in %s is being replaced since %s. If this directory is still here when nothing works on it,\nthe data can not be used: clone it anew.\n",
			w.Server.Dir, time.Now().UTC().Format(time.RFC3339)))
	}
	if err == nil {
		err = errors.Join(os.Rename(tmp, dir), durable.SyncDir(filepath.Dir(dir)), w.mode(guardMode))
	}
	if err != nil {
		return failure.WithHint(failure.Of(failure.ErrRejoin, "prepare the work on %s: %w", w.Server.Dir, err), "Set salvage_directory in repmgr.conf to a directory that this user can write.")
	}
	return nil
}

// isGuarded reports whether an earlier rejoin ended after guard and before release. A clone
// that somebody made since then has removed the guard.
func (w *Work) isGuarded() bool {
	if _, err := os.Stat(w.stateDir()); err != nil {
		return false
	}
	info, err := os.Stat(w.Server.Dir)
	_, noData := os.Stat(filepath.Join(w.Server.Dir, "global", "pg_control"))
	return err != nil || noData != nil || info.Mode()&guardMode != 0
}

// release lets PostgreSQL start on the data again.
func (w *Work) release() error {
	if err := errors.Join(w.mode(0), durable.SyncDir(w.Server.Dir), os.RemoveAll(w.stateDir())); err != nil {
		return failure.Of(failure.ErrRejoin, "finish the work on %s: %w", w.Server.Dir, err)
	}
	return nil
}

func (w *Work) mode(guard os.FileMode) error {
	info, err := os.Stat(w.Server.Dir)
	if err != nil {
		return err
	}
	return os.Chmod(w.Server.Dir, info.Mode().Perm()&^guardMode|guard)
}
