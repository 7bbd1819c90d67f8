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

// Prove waits until a commit was seen to wait on a server whose setting lets no commit through.
// It returns [ErrUnproven] where none was seen within the limit. Whether sessions wait at all
// depends on a flag in shared memory, which only the checkpointer sets when it reads its
// settings. In some phases of a checkpoint it does not do so for a long time; until then
// commits are acknowledged whatever current_setting and pg_stat_replication show. The test
// commit is made over a further connection to the same server, see [CommitProbe], whose session
// ends with the test.
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

// CommitProbe is a connection for a test commit that should wait.
type CommitProbe struct {
	node *registry.Server
	done chan error // capacity 1: the result of the commit; nil: none runs
}

// Close waits for the end of a test commit that was seen to wait.
func (p *CommitProbe) Close() {
	if p == nil {
		return
	}
	if p.done != nil {
		<-p.done //nolint:errcheck // it was ended by us
	}
	p.node.Close()
}

// Begin starts a tiny commit, unless one runs already. It locks nothing that others need.
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

// NewCommitProbe opens the connection for a test commit.
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

// commitWaits reports whether the test commit was seen to wait for a standby. If so, it ends
// the session that waits; [CommitProbe.Close] waits for that end.
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
	_ = probe.node.Conn.PgConn().Conn().SetDeadline(time.Now().Add(time.Second)) // in case the termination did not reach it
	if err == nil && !waits {
		err = failure.WithHint(fmt.Errorf("%s: %w: it took longer than expected to tell", n.Name, ErrUnproven), "Its disk or its processor may be overloaded. It is tried again.")
	}
	return waits, err
}
