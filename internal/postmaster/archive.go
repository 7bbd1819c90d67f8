package postmaster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/shell"
)

// A standby without an upstream must not fetch WAL from an archive either, because the archive
// may have WAL of a branch that no rule knows. Its restore_command is kept in one of our
// settings, as in a pledge, and is put back when the node has an upstream again.

var detached = map[string]string{"primary_conninfo": "", "primary_slot_name": "", "recovery_target_timeline": "latest"}

// Detach makes the data directory of a server that is down that of a standby without an
// upstream: it can neither accept nor acknowledge writes until it gets an upstream.
func (s *Server) Detach() error {
	if err := WriteStandby(s.Dir, detached, nil); err != nil || !s.hasArchive() {
		return err
	}
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return err
	}
	cut, err := ballot.ArchiveDisabled(text)
	if err != nil {
		return nil //nolint:nilerr // a server does not start with a line that can not be parsed
	}
	return WriteStandby(s.Dir, cut, nil)
}

// programLimit limits a program of PostgreSQL that only reads the configuration.
const programLimit = 5 * time.Second

// hasArchive reports whether the server has a restore_command, in whichever file it is set. It
// is true where that can not be found out.
func (s *Server) hasArchive() bool {
	ctx, cancel := context.WithTimeout(context.Background(), programLimit)
	defer cancel()
	postgres, err := s.Program("postgres")
	if err != nil {
		return true
	}
	cmd := exec.CommandContext(ctx, postgres, append(s.Args(), "-C", "restore_command")...)
	cmd.Dir, cmd.WaitDelay = s.Dir, time.Second
	shell.EndWithGroup(cmd)
	out, err := cmd.Output()
	return err != nil || strings.TrimSpace(string(out)) != ""
}

// ArchiveKept reports whether the restore_command of the server is out of force, and kept.
func (s *Server) ArchiveKept() bool {
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return false
	}
	_, _, kept, err := ballot.ArchiveEnabled(text)
	return err == nil && kept
}

// GiveArchive puts back the restore_command of a server that is down.
func (s *Server) GiveArchive() error {
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return err
	}
	set, unset, kept, err := ballot.ArchiveEnabled(text)
	if err != nil || !kept {
		return err
	}
	return SetAutoConf(s.Dir, set, unset)
}

// ReadMark reads the mark of a fence and its reason. The mark is nil where there is none.
func (s *Server) ReadMark() (mark os.FileInfo, why string) {
	path := filepath.Join(s.Dir, FencedMark)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, ""
	}
	if mark, err = os.Stat(path); err != nil {
		return nil, ""
	}
	return mark, strings.TrimSpace(string(text))
}

// Unmark removes a mark that was read before, because the server was started since. The mark
// of a later fence stays: that fence has ended the server again.
func (s *Server) Unmark(read os.FileInfo) error {
	now, _ := s.ReadMark()
	if read == nil || now == nil || !durable.Unchanged(read, now) {
		return nil
	}
	if err := os.Remove(filepath.Join(s.Dir, FencedMark)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Mark makes the data directory that of a standby without an upstream, which the Monitor must
// start.
func (s *Server) Mark(why string) error {
	if err := s.Detach(); err != nil {
		return err
	}
	return durable.Write(filepath.Join(s.Dir, FencedMark), []byte(why+"\n"))
}
