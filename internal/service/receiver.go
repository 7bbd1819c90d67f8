package service

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Receiver is what [SetReceiver] did.
type Receiver struct {
	Enabled  bool          `json:"enabled"`
	Interval time.Duration `json:"wal_retrieve_retry_interval_ns"` // the new value
	Changed  bool          `json:"changed"`                        // false: it was so already
	DryRun   bool          `json:"dry_run,omitempty"`
}

// pausedFor is what is added to wal_retrieve_retry_interval: for so long a standby that has lost its
// upstream does not try again.
const pausedFor = time.Hour

// goneFor is how long there must be no WAL receiver.
const goneFor = time.Second

// SetReceiver ends the WAL receiver of a standby, and lets it not come back for an hour, or lets it come back. It
// returns when that has happened, or with ctx.
func SetReceiver(ctx context.Context, n *registry.Server, on, dryRun bool) (Receiver, error) {
	r := Receiver{Enabled: on, DryRun: dryRun}
	var standby bool
	var ms int64
	if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_retrieve_retry_interval')`).Scan(&standby, &ms); err != nil {
		return r, n.QueryError("look at the WAL receiver", err)
	}
	if !standby {
		return r, failure.Of(failure.ErrNotStandby, "%s is not a standby: it has no WAL receiver", n.Name)
	}
	r.Interval = time.Duration(ms) * time.Millisecond
	paused := r.Interval >= pausedFor
	if r.Changed = paused == on; !r.Changed {
		return r, nil
	}
	if r.Interval += pausedFor; on {
		r.Interval -= 2 * pausedFor
	}
	if dryRun {
		return r, nil
	}
	if err := n.MayAlterSystem(ctx, []string{"wal_retrieve_retry_interval"}); err != nil {
		return r, err
	}
	if _, err := n.Conn.Exec(ctx, fmt.Sprintf(`ALTER SYSTEM SET wal_retrieve_retry_interval = %d`, r.Interval.Milliseconds())); err != nil {
		return r, n.QueryError("set wal_retrieve_retry_interval", err)
	}
	if err := n.Reload(ctx); err != nil {
		return r, err
	}
	if on {
		return r, nil
	}
	for seen := time.Now(); time.Since(seen) < goneFor; { // the server starts one more at once where the last one had not failed for long
		gone, err := endReceiver(ctx, n)
		if err != nil {
			return r, err
		}
		if !gone {
			seen = time.Now()
		}
		if err := wait.Pause(ctx, postgres.PollInterval); err != nil {
			return r, err
		}
	}
	return r, nil
}

// endReceiver tells the WAL receiver to end, and reports whether there is none any more. SQL can not do that
// (pg_terminate_backend ends only sessions), so the server must run on this machine.
func endReceiver(ctx context.Context, n *registry.Server) (ended bool, err error) {
	var pid int
	var dir string
	err = n.Conn.QueryRow(ctx, `SELECT coalesce((SELECT pid FROM pg_stat_wal_receiver), 0), current_setting('data_directory')`).Scan(&pid, &dir)
	switch srv := (&postmaster.Server{Dir: dir}); {
	case err != nil:
		return false, n.QueryError("look at the WAL receiver", err)
	case pid == 0:
		return true, nil
	case !srv.Serves(pid):
		return false, failure.WithHint(failure.Of(failure.ErrRefused, "the WAL receiver of %s, PID %d, is no process of this machine that this user may see", n.Name, pid), "Run it on that machine, as the user that runs PostgreSQL.")
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return false, failure.Of(failure.ErrRefused, "end the WAL receiver, PID %d: %w", pid, err)
	}
	return false, nil
}
