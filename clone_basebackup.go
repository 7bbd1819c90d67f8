package repmgr

import (
	"context"
	"errors"

	"github.com/pgrepmgr/repmgr/basebackup"
)

// basebackupCloner is the default: PostgreSQL's own backup protocol, with the
// WAL on a second connection. It needs no program and no ssh.
type basebackupCloner struct{ c *Cluster }

var _ Cloner = basebackupCloner{}

func (b basebackupCloner) Copy(ctx context.Context, job CopyJob) error {
	cfg, err := b.c.login().Config(job.Source, job.ReplicationUser)
	if err != nil {
		return err
	}
	_, err = basebackup.Run(ctx, &cfg.Config, basebackup.Options{
		Dir: job.Dir, Label: job.Label, FastCheckpoint: job.FastCheckpoint, Slot: job.Slot,
		ApplicationName: "repmgr_clone",
		TablespaceMap:   func(_ uint32, location string) string { return job.Tablespace(location) },
		OnTablespace:    job.Claim,
		Progress: func(p basebackup.Progress) {
			job.Progress(CopyProgress{Phase: string(p.Phase), Done: p.Bytes, Total: p.TotalBytes})
		},
	})
	switch {
	case errors.Is(err, basebackup.ErrNoWALSenders):
		return hint(err, "Raise max_wal_senders on the source, or wait until other backups and standbys leave two free.")
	case errors.Is(err, basebackup.ErrAuthentication), errors.Is(err, basebackup.ErrPrivilege):
		return hint(err, "Allow the role a replication connection in the source's pg_hba.conf, and give it the REPLICATION attribute.")
	case errors.Is(err, basebackup.ErrNoSpace):
		return hint(err, "Free some space, or clone into another file system. Nothing was left behind.")
	default:
		return err
	}
}
