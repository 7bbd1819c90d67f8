package postmaster

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/shell"
)

// A standby of nobody gets nothing from an archive either: there may be WAL of a
// branch there that no rule knows. Its restore_command is kept in a setting of ours,
// as a pledge keeps it, and is given back when the node has an upstream again.

var detached = map[string]string{"primary_conninfo": "", "primary_slot_name": "", "recovery_target_timeline": "latest"}

// Detach makes the data directory of a server that is down that of a standby of nobody:
// it can neither accept a write nor acknowledge one until it is told whom to follow.
func (s *Server) Detach() error {
	if err := WriteStandby(s.Dir, detached, nil); err != nil || !s.hasArchive() {
		return err
	}
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return err
	}
	cut, err := ballot.ArchiveCut(text)
	if err != nil {
		return nil //nolint:nilerr // a server does not start with a line that can not be read
	}
	return WriteStandby(s.Dir, cut, nil)
}

// programLimit is for a program of the server that only reads its configuration.
const programLimit = 5 * time.Second

// hasArchive reports whether the server has a restore_command, wherever it is set.
// Where that can not be known it may have one.
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

// ArchiveKept reports whether the restore_command of the server is out of force.
func (s *Server) ArchiveKept() bool {
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return false
	}
	_, _, kept, err := ballot.ArchiveGiven(text)
	return err == nil && kept
}

// GiveArchive gives a server that is down its restore_command back.
func (s *Server) GiveArchive() error {
	text, err := ReadAutoConf(s.Dir)
	if err != nil {
		return err
	}
	set, unset, kept, err := ballot.ArchiveGiven(text)
	if err != nil || !kept {
		return err
	}
	return SetAutoConf(s.Dir, set, unset)
}

// Mark makes the data directory that of a standby which its Monitor has to start.
func (s *Server) Mark(why string) error {
	if err := s.Detach(); err != nil {
		return err
	}
	return durable.Write(filepath.Join(s.Dir, FencedMark), []byte(why+"\n"))
}
