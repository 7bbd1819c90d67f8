package clone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/basebackup"
	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/registry"
)

// Copier fills an empty directory with a base backup of a running server: the files, a
// backup_label, and the WAL from its start to its end.
type Copier interface {
	Copy(ctx context.Context, job Job) error
}

// Checker is a [Copier] that can test, before anything is deleted or changed, whether a copy would work.
type Checker interface {
	Check(ctx context.Context, source, remoteUser string) error
}

// Job is one copy.
type Job struct {
	Source          string // conninfo of the server to copy; may hold a password
	ReplicationUser string // role for replication connections; empty: the one of Source
	RemoteUser      string // OS user on the source's host
	Status          registry.NodeStatus
	Dir             string // exists and is empty
	Slot            string // existing physical slot on the source that keeps the WAL; empty: there is none
	Label           string
	FastCheckpoint  bool
	Tablespace      func(location string) string // the directory here for a tablespace of the source
	Claim           func(dir string) error       // is called before a directory outside Dir is filled; an error forbids it
	Progress        func(phase string, done, total int64)
	Log             func(msg string, attrs ...slog.Attr)
}

// PhaseCheckpoint is the phase in which the source makes the checkpoint that a copy begins with.
const PhaseCheckpoint = "waiting for checkpoint"

// Basebackup copies by PostgreSQL's own backup protocol, with the WAL on a second
// connection. It needs no program and no ssh.
type Basebackup struct {
	Config func(conninfo, user string) (*pgx.ConnConfig, error) // of a connection for replication
}

// Copy makes the copy.
func (b Basebackup) Copy(ctx context.Context, job Job) error {
	cfg, err := b.Config(job.Source, job.ReplicationUser)
	if err != nil {
		return err
	}
	_, err = basebackup.Run(ctx, &cfg.Config, basebackup.Options{
		Dir: job.Dir, Label: job.Label, FastCheckpoint: job.FastCheckpoint, Slot: job.Slot,
		ApplicationName: "repmgr_clone",
		TablespaceMap:   func(_ uint32, location string) string { return job.Tablespace(location) },
		OnTablespace:    job.Claim,
		Progress:        func(p basebackup.Progress) { job.Progress(string(p.Phase), p.Bytes, p.TotalBytes) },
	})
	switch {
	case errors.Is(err, basebackup.ErrNoWALSenders):
		return failure.WithHint(err, "Raise max_wal_senders on the source, or wait until other backups and standbys leave two free.")
	case errors.Is(err, basebackup.ErrAuthentication), errors.Is(err, basebackup.ErrPrivilege):
		return failure.WithHint(err, "Allow the role a replication connection in the source's pg_hba.conf, and give it the REPLICATION attribute.")
	case errors.Is(err, basebackup.ErrNoSpace):
		return failure.WithHint(err, "Free some space, or clone into another file system. Nothing was left behind.")
	default:
		return err
	}
}

// Command is a shell command of the user that fills the directory, for example a restore by a backup
// tool. Its placeholders are %D for the directory to fill, %h and %p for the source's host and port, %U
// and %d for user and database, %s for the replication slot, and %% for a percent sign. The same values
// are in its environment as REPMGR_DIR, REPMGR_HOST and so on, without quotes. A password and a password
// file are there as PGPASSWORD and PGPASSFILE.
type Command string

// Copy runs the command.
func (c Command) Copy(ctx context.Context, job Job) error {
	params, err := conninfo.Parse(job.Source)
	if err != nil {
		return err
	}
	job.Progress("running clone_command", 0, 0)
	values := map[byte]shell.Value{
		'D': {Env: "REPMGR_DIR", Text: job.Dir},
		'h': {Env: "REPMGR_HOST", Text: params["host"]},
		'p': {Env: "REPMGR_PORT", Text: params["port"]},
		'U': {Env: "REPMGR_USER", Text: params["user"]},
		'd': {Env: "REPMGR_DBNAME", Text: params["dbname"]},
		's': {Env: "REPMGR_SLOT", Text: job.Slot},
	}
	var env []string
	for key, name := range map[string]string{"password": "PGPASSWORD", "passfile": "PGPASSFILE"} {
		if params[key] != "" {
			env = append(env, name+"="+params[key])
		}
	}
	out, err := shell.Run(ctx, string(c), values, env...)
	if err != nil {
		return fmt.Errorf("clone_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 5)))
	}
	if _, err := os.Stat(job.Dir + "/backup_label"); err != nil {
		job.Log("clone_command left no backup_label: the copy is taken as that of a stopped server")
	}
	return nil
}
