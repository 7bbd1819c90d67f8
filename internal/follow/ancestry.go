package follow

import (
	"context"
	"fmt"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// CheckAncestry proves that all WAL of the standby, whose status is given, is also WAL of the
// upstream. It returns the timeline of the upstream.
func (m Move) CheckAncestry(ctx context.Context, status registry.NodeStatus) (wal.Timeline, error) {
	theirs, err := m.Source.Status(ctx)
	if err != nil {
		return 0, err
	}
	if theirs.SystemIdentifier != status.SystemIdentifier {
		return 0, failure.WithHint(failure.Of(failure.ErrSystemIdentifier, "%s has system identifier %s, %s has %s", m.Node, status.SystemIdentifier, m.Upstream, theirs.SystemIdentifier),
			"They are different clusters, and one can not follow the other.")
	}
	if err := m.refuseOwnWAL(ctx, status.Timeline); err != nil {
		return 0, err
	}
	local, upstream := status.Position(), theirs.Position()
	var history wal.History
	if upstream.Timeline >= local.Timeline && upstream.Timeline > 1 {
		if history, err = m.Login.History(ctx, m.Upstream, m.Conninfo, upstream.Timeline); err != nil {
			return 0, err
		}
	}
	if ours, ok := m.Standby.OwnHistory(ctx, local.Timeline); ok && upstream.Timeline >= local.Timeline && !history.Extends(ours) {
		return 0, m.promotedApart("timeline %d of the one is not timeline %d of the other: they were promoted apart", local.Timeline, upstream.Timeline)
	}
	verdict := wal.CanFollow(local, upstream, history)
	if verdict.OK() || local.Timeline == upstream.Timeline && theirs.InRecovery { // both receive the same stream, so the one that is behind catches up
		begin, _ := history.Fork(salvage.Parent(history, local.Timeline))
		return upstream.Timeline, m.refuseOtherLog(ctx, local.Timeline, begin, min(local.LSN, upstream.LSN))
	}
	return 0, failure.WithHint(m.diverged("%s", verdict.Explain(local, upstream, history)),
		"What it has beyond that point is on no other node. On %s, this saves that, and takes it back: %s", m.Node.Name, RejoinCommand(m.Node, m.Upstream, "--force-rewind"))
}

func (m Move) diverged(why string, args ...any) error {
	return failure.Of(failure.ErrTimelineDiverged, "%s can not follow %s: %s", m.Node, m.Upstream, fmt.Sprintf(why, args...))
}

// promotedApart is the error about two branches of which only a person can say which one
// counts.
func (m Move) promotedApart(why string, args ...any) error {
	return failure.WithHint(m.diverged(why, args...),
		"Decide which of the two branches holds the data that counts. If it is that of %s, on %s: %s", m.Upstream.Name, m.Node.Name, RecloneCommand(m.Node, m.Upstream))
}

// refuseOwnWAL keeps a running server with WAL of its own on timeline t from following another
// server. A login that may not read the file of ALTER SYSTEM finds no such WAL.
func (m Move) refuseOwnWAL(ctx context.Context, t wal.Timeline) error {
	set, err := ballot.ReadSettings(ctx, m.Standby.Conn)
	if err != nil {
		return nil //nolint:nilerr // it may not read them
	}
	behind, own := salvage.OwnWAL(set, t)
	if !own {
		return nil
	}
	return failure.WithHint(m.diverged("a rejoin that did not end gave it WAL of its own behind %s", wal.Position{Timeline: t, LSN: behind}),
		"On %s, this goes on with that: %s", m.Node.Name, RejoinCommand(m.Node, m.Upstream, "--force-rewind"))
}

// refuseOtherLog compares the logs of a running standby and its new upstream, on the
// timeline of the standby. beginning is where that began; 0: it is timeline 1.
func (m Move) refuseOtherLog(ctx context.Context, t wal.Timeline, beginning, to wal.LSN) error {
	if t <= 1 || beginning == 0 || to <= beginning {
		return nil
	}
	segSize, err := m.Standby.WALSegmentSize(ctx)
	if err != nil {
		return err
	}
	differ, err := salvage.LogsDiffer(ctx, m.Standby.WALSum, m.Source.WALSum, t, beginning, to, segSize)
	switch {
	case postgres.SQLState(err) == postgres.CodeInsufficientPrivilege:
		m.Log.Warn("could not compare the WAL of the two servers: this login may not read it", "hint", "GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean)")
		return nil
	case err != nil:
		return err
	case differ:
		return m.promotedApart("they were promoted apart, and what both call timeline %d is not one log", t)
	}
	return nil
}

// CheckWAL refuses, before anything is changed, where the standby of the given status would
// wait for ever because the upstream has removed the WAL that it needs next. Where an archive
// may have that WAL, it only warns. primary knows the node from which to copy the standby anew.
func (m Move) CheckWAL(ctx context.Context, status registry.NodeStatus, primary *registry.Server) error {
	lost := FindLostWAL(ctx, m.Source, m.Upstream, status)
	switch {
	case lost == nil:
		return nil
	case lost.Archive:
		m.Log.Warn(fmt.Sprintf("%s can stream only when the archive has brought what comes next: %s", m.Node, lost))
		return nil
	}
	from := m.Upstream
	if recs, err := primary.Records(ctx); err == nil {
		if r, ok := registry.Primary(recs); ok {
			from = r
		}
	}
	return failure.WithHint(failure.Of(failure.ErrWALGone, "%s can not follow %s: %s", m.Node, m.Upstream, lost), "It has to be copied anew. Run on %s: %s", m.Node.Name, RecloneCommand(m.Node, from))
}
