package repmgr

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

// detach makes the data directory of a server that is down that of a standby of nobody:
// it can neither accept a write nor acknowledge one until it is told whom to follow.
func (s *pmServer) detach() error {
	if err := writeStandby(s.dir, detached, nil); err != nil || !s.hasArchive() {
		return err
	}
	text, err := readAutoConf(s.dir)
	if err != nil {
		return err
	}
	cut, err := ballot.ArchiveCut(text)
	if err != nil {
		return nil //nolint:nilerr // a server does not start with a line that can not be read
	}
	return writeStandby(s.dir, cut, nil)
}

// programLimit is for a program of the server that only reads its configuration.
const programLimit = 5 * time.Second

// hasArchive reports whether the server has a restore_command, wherever it is set.
// Where that can not be known it may have one.
func (s *pmServer) hasArchive() bool {
	ctx, cancel := context.WithTimeout(context.Background(), programLimit)
	defer cancel()
	postgres, err := s.program("postgres")
	if err != nil {
		return true
	}
	cmd := exec.CommandContext(ctx, postgres, append(s.args(), "-C", "restore_command")...)
	cmd.Dir, cmd.WaitDelay = s.dir, time.Second
	shell.EndWithGroup(cmd)
	out, err := cmd.Output()
	return err != nil || strings.TrimSpace(string(out)) != ""
}

// archiveKept reports whether the restore_command of the server is out of force.
func (s *pmServer) archiveKept() bool {
	text, err := readAutoConf(s.dir)
	if err != nil {
		return false
	}
	_, _, kept, err := ballot.ArchiveGiven(text)
	return err == nil && kept
}

// giveArchive gives a server that is down its restore_command back.
func (s *pmServer) giveArchive() error {
	text, err := readAutoConf(s.dir)
	if err != nil {
		return err
	}
	set, unset, kept, err := ballot.ArchiveGiven(text)
	if err != nil || !kept {
		return err
	}
	return durable.Write(filepath.Join(s.dir, autoConf), mergeAutoConf([]byte(text), set, unset))
}

// fencedName is the file, in the data directory, that says that the Monitor
// stopped this server and has to start it again, as a standby of nobody: a Monitor
// that dies in between goes on with it.
const fencedName = "repmgr_fenced"

// mark makes the data directory that of a standby which its Monitor has to start.
func (s *pmServer) mark(why string) error {
	if err := s.detach(); err != nil {
		return err
	}
	return durable.Write(filepath.Join(s.dir, fencedName), []byte(why+"\n"))
}
