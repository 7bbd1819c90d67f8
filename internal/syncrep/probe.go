package syncrep

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Prove returns when a commit was seen to wait on a server whose setting lets
// none through, with an [ErrUnproven] where none was in so long a time. Whether
// sessions wait at all is a flag in shared memory that the checkpointer alone
// sets, when it reads its settings; in some phases of a checkpoint it does not for
// long. Until then commits are acknowledged whatever current_setting and
// pg_stat_replication say.
// The commit is made over a connection to the same server, see commitProbe,
// which does not last.
func Prove(ctx context.Context, n *registry.Server, probe *CommitProbe, limit time.Duration) error {
	until := time.Now().Add(limit)
	for {
		switch waits, err := commitWaits(ctx, n, probe, until); {
		case err != nil || waits:
			return err
		case time.Now().After(until):
			return failure.WithHint(fmt.Errorf("%s: %w", n.Name, ErrUnproven),
				"Its checkpointer has not read the settings: it is in a long checkpoint, or it hangs. Until it has, no standby counts as having what is acknowledged. It is tried again.")
		}
		if err := wait.Pause(ctx, 10*postgres.PollInterval); err != nil {
			return err
		}
	}
}

// CommitProbe is a connection for a commit that is to wait.
type CommitProbe struct {
	node *registry.Server
	done chan error // capacity 1: what came of the commit; nil: none is under way
}

// Close waits for the end of a commit that was seen to wait.
func (p *CommitProbe) Close() {
	if p == nil {
		return
	}
	if p.done != nil {
		<-p.done //nolint:errcheck // it was ended by us
	}
	p.node.Close()
}

// Begin makes a tiny commit, unless one is under way. It locks nothing that others need.
func (p *CommitProbe) Begin(ctx context.Context) {
	if p.done != nil {
		return
	}
	done := make(chan error, 1)
	p.done = done
	go func() {
		_, err := p.node.Conn.Exec(ctx, `SELECT pg_catalog.pg_logical_emit_message(true, 'repmgr', '')`)
		done <- err
	}()
}

// NewCommitProbe opens one.
func NewCommitProbe(ctx context.Context, n *registry.Server) (*CommitProbe, error) {
	probe, err := registry.Connect(ctx, n.Name, n.Conninfo)
	if err != nil {
		return nil, err
	}
	if _, err := probe.Conn.Exec(ctx, `SELECT set_config('application_name', 'repmgr commit probe', false), set_config('synchronous_commit', 'on', false)`); err != nil {
		probe.Close()
		return nil, probe.QueryError("prepare a commit", err)
	}
	return &CommitProbe{node: probe}, nil
}

// commitWaits reports whether the probe's commit was seen to wait for a standby.
// Then it ends the session that waits; [commitProbe.Close] waits for its end.
func commitWaits(ctx context.Context, n *registry.Server, probe *CommitProbe, until time.Time) (waits bool, err error) {
	pid := int32(probe.node.Conn.PgConn().PID())
	begun := time.Now()
	probe.Begin(ctx)
	for {
		select {
		case err := <-probe.done:
			probe.done = nil
			if err != nil {
				return false, probe.node.QueryError("commit", err)
			}
			return false, nil
		default:
		}
		err = n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')`, pid).Scan(&waits)
		if err != nil {
			err = n.QueryError("look whether a commit waits", err)
		}
		if waits || err != nil || time.Now().After(until) {
			break
		}
		if err = postgres.PauseSince(ctx, begun); err != nil {
			break
		}
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = n.Conn.Exec(limit, `SELECT pg_catalog.pg_terminate_backend($1)`, pid)
	_ = probe.node.Conn.PgConn().Conn().SetDeadline(time.Now().Add(time.Second)) // should that not have reached it
	if err == nil && !waits {
		err = failure.WithHint(fmt.Errorf("%s: %w: it took longer than expected to tell", n.Name, ErrUnproven), "Its disk or its processor may be overloaded. It is tried again.")
	}
	return waits, err
}
