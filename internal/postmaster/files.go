package postmaster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/durable"
)

// Our files in a data directory. They belong to one node, and a clone removes them.

// FencedMark is the file, in the data directory, that says that the Monitor has stopped this
// server and must start it again as a standby without an upstream. A Monitor that was restarted
// in between continues with that.
const FencedMark = "repmgr_fenced"

// RejoinMark is the file, in the data directory, that says that a rejoin was begun
// and has not succeeded.
const RejoinMark = "repmgr_rejoining"

// NodesFile is the file, in the data directory, that keeps what must be known of the cluster while the server is down.
const NodesFile = "repmgr_nodes.json"

// EventsFile is the file, in the data directory, that keeps the events that no primary has taken yet.
const EventsFile = "repmgr_events.json"

// DamagedEventsFile is what EventsFile is renamed to where it can not be read, for a person to look at.
const DamagedEventsFile = EventsFile + ".damaged"

// Store writes or removes a file of ours in the data directory, as long as nobody
// else is at work there: who replaces the data expects no file of that moment.
func (s *Server) Store(name string, text []byte, remove bool) error {
	if _, err := os.Stat(filepath.Join(s.Dir, "global", "pg_control")); err != nil {
		return err
	}
	dir, err := os.Open(s.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return err
	}
	_ = syscall.Flock(int(dir.Fd()), syscall.LOCK_UN) // it must not keep anybody out
	path := filepath.Join(s.Dir, name)
	if !remove {
		return durable.Write(path, text)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// StaysStandby reports whether the server would start as a standby that ends its recovery only when it is told to.
func (s *Server) StaysStandby() bool {
	_, errStandby := os.Stat(filepath.Join(s.Dir, "standby.signal"))
	_, errRecovery := os.Stat(filepath.Join(s.Dir, "recovery.signal"))
	return errStandby == nil && os.IsNotExist(errRecovery)
}

// IsStandby reports whether the server would start as a standby, or recover to a target.
func (s *Server) IsStandby() bool {
	return slices.ContainsFunc([]string{"standby.signal", "recovery.signal"}, func(name string) bool {
		_, err := os.Stat(filepath.Join(s.Dir, name))
		return err == nil
	})
}
