package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// compare finds out whether the node has WAL that the primary lacks.
func (r *rejoining) compare(ctx context.Context) (string, error) {
	if r.interrupted = r.isGuarded(); r.interrupted {
		return "an earlier rejoin was interrupted", nil
	}
	var err error
	if r.control, err = r.server.Control(ctx); err != nil {
		if r.o.Policy == RejoinReclone && r.local == nil {
			r.diverged, r.impossible = true, err.Error()
			return r.impossible, nil
		}
		return "", hint(kind(ErrRejoin, "look at the data in %s: %w", r.server.Dir, err), "%s", r.again("--reclone"))
	}
	if id := strconv.FormatUint(r.control.SystemIdentifier, 10); id != r.status.SystemIdentifier {
		return "", hint(kind(ErrSystemIdentifier, "the data in %s has system identifier %s, %s has %s", r.server.Dir, id, r.res.Primary, r.status.SystemIdentifier),
			"They are different clusters. Is data_directory right? A node of this one is made with: repmgr standby clone")
	}
	if r.timeline, r.ours, err = r.server.Line(r.control); err != nil {
		return "", kind(ErrRejoin, "look at the timelines in %s: %w", r.server.Dir, err)
	}
	var theirs wal.History
	if r.status.Timeline > 1 {
		if theirs, err = r.timelineHistory(ctx, r.res.Primary, r.status.Timeline); err != nil {
			return "", err
		}
	}
	return r.measure(ctx, theirs)
}

// measure compares the two lines, and the WAL behind the point where they part.
func (r *rejoining) measure(ctx context.Context, theirs wal.History) (string, error) {
	var received, next wal.LSN // a server that receives has no other end than this one, but what it has replayed
	archive := r.cfg.RestoreCommand != ""
	if r.local != nil {
		status, err := r.local.Status(ctx)
		if err != nil {
			return "", err
		}
		if status.Receiver != nil {
			received = max(status.ReceivedLSN, status.ReplayedLSN)
		}
		next, archive = registry.NextLSN(status), archive || registry.HasArchive(status)
		if now, err := r.primary.Status(ctx); err == nil { // later than our own
			r.status = now
		}
	}
	common, fork, ok := salvage.LastCommon(r.timeline, r.ours, r.status.Position(), theirs)
	if !ok {
		r.diverged, r.impossible = true, fmt.Sprintf("timeline %d of the node and timeline %d of the primary have no common past", r.timeline, r.status.Timeline)
		return r.impossible, nil
	}
	r.shared = wal.Position{Timeline: common, LSN: fork}
	behind, own, err := r.server.OwnWAL(r.timeline)
	if err != nil {
		return "", hint(kind(ErrRejoin, "look at the settings of %s: %w", r.res.Node, err), "%s", r.again("--reclone"))
	}
	damaged := !r.server.HasSegment(r.control.Redo, r.control.WALSegmentSize)
	switch {
	case r.writes, common != r.timeline, damaged, own:
		r.diverged = true
	case received != 0:
		r.diverged = received > fork
	case r.control.State == pgcontrol.ShutDown: // the end is known to the byte
		r.diverged = r.control.Position().LSN > fork
	default:
		beyond, err := r.server.WALBeyond(ctx, salvage.Branch{Timeline: common, From: fork}, r.control.WALSegmentSize)
		if err != nil {
			return "", hint(kind(ErrRejoin, "%w", err), "%s", cmp.Or(Hint(err), r.again("--reclone")))
		}
		r.diverged = beyond || r.control.Position().LSN > fork
	}
	if err := r.findTwin(ctx, common, theirs, fork); err != nil {
		return "", err
	}
	needed := fork
	switch {
	case r.diverged, r.timeline != common:
	case next != 0:
		needed = min(fork, next)
	case r.control.State == pgcontrol.ShutDown:
		needed = min(fork, r.control.Position().LSN)
	case r.local == nil:
		needed = min(fork, r.server.WALEnd(r.control))
	}
	gone := ""
	if !archive {
		gone = r.walGone(ctx, needed)
	}
	if !r.diverged && gone != "" {
		r.impossible = gone
		return gone, nil
	}
	if !r.diverged {
		return fmt.Sprintf("nothing beyond what %s has (%s)", r.res.Primary, r.control.State), nil
	}
	r.res.Fork = &wal.Position{Timeline: common, LSN: fork}
	if r.twin {
		r.res.Fork.LSN, _ = r.ours.Fork(salvage.Parent(r.ours, common))
	}
	detail := fmt.Sprintf("%s has WAL of its own behind %s", r.res.Node, r.res.Fork)
	r.lags = r.status.VersionNum < 160000 && !salvage.RewindSees(r.control.Timeline, r.timeline, r.ours, r.status.Position(), theirs)
	switch s := r.status.Settings; {
	case damaged:
		r.impossible = "the WAL of its last checkpoint is gone"
		return detail + ", and " + r.impossible, nil
	case own && fork > behind:
		r.impossible, r.cloneOnly = fmt.Sprintf("an earlier rejoin gave it WAL of its own behind %s, and pg_rewind would take that for the primary's", wal.Position{Timeline: r.timeline, LSN: behind}), true
	case r.twin, common < r.timeline && r.timeline == r.status.Timeline:
		r.impossible, r.cloneOnly = fmt.Sprintf("the two were promoted apart, and pg_rewind takes their timelines %d for one", r.timeline), true
	case gone != "":
		r.impossible = gone
	case common == r.status.Timeline && common == r.timeline:
		r.impossible = fmt.Sprintf("both are on timeline %d, and pg_rewind needs the primary to be on another one", common)
	case r.cfg.RestoreCommand == "" && !r.server.HasSegment(r.res.Fork.LSN-1, r.control.WALSegmentSize): // pg_rewind looks for the last checkpoint before it
		r.impossible = fmt.Sprintf("the WAL of %s at %s, from where pg_rewind would read it, is gone", r.res.Node, r.res.Fork)
	case r.control.DataChecksums == 0 && !r.control.WALLogHints:
		r.impossible = fmt.Sprintf("neither data checksums nor wal_log_hints were on in %s", r.res.Node)
	case s.FullPageWrites == "off":
		r.impossible = fmt.Sprintf("full_page_writes is off on %s", r.res.Primary)
	}
	return detail, nil
}

// firstRecord is less than the first record of a timeline takes.
const firstRecord = 40

// findTwin looks whether the timeline that both are on is one log.
func (r *rejoining) findTwin(ctx context.Context, common wal.Timeline, theirs wal.History, fork wal.LSN) error {
	begin, ok := theirs.Fork(salvage.Parent(theirs, common))
	if common != r.timeline || common <= 1 || !ok {
		return nil
	}
	end := r.control.Position().LSN
	switch {
	case r.local != nil:
		if status, err := r.local.Status(ctx); err == nil {
			end = status.Position().LSN
		}
	case r.control.State == pgcontrol.InProduction: // it has written at least the record of its promotion
		end = max(end, begin+firstRecord)
	}
	twin, err := salvage.Twins(ctx, r.server.WALSum, r.primary.WALSum, common, begin, min(fork, end), r.control.WALSegmentSize)
	if err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
		return err
	}
	r.twin = twin
	r.diverged = r.diverged || twin
	return nil
}

// walGone says that the primary does not have the WAL any more that the node
// will ask for. It is asked only where no archive may have it.
func (r *rejoining) walGone(ctx context.Context, lsn wal.LSN) string {
	lost := askForWAL(ctx, r.primary, r.res.Primary, wal.Position{Timeline: r.shared.Timeline, LSN: lsn}, false)
	if lost == nil { // a login that may not look finds out later
		return ""
	}
	return fmt.Sprintf("%s does not have the WAL from %s on any more (segment %s; its first one is %s)", r.res.Primary, lsn, lost.Needed, lost.Oldest)
}

// decide settles the method, or why there is none.
func (r *rejoining) decide() error {
	reclone := r.o.Policy == RejoinReclone
	switch {
	case r.interrupted && (reclone || r.o.Policy == RejoinRewind): // what it had of its own was saved before
		r.res.Method, r.res.Reason = RejoinByClone, "an earlier rejoin was interrupted"
	case r.interrupted:
		return hint(kind(ErrRejoin, "an earlier rejoin of %s was interrupted while it changed the data in %s: it can not be used any more", r.res.Node, r.server.Dir), "%s", r.again("--reclone"))
	case !r.diverged && r.impossible == "":
		r.res.Method, r.res.Reason = RejoinByFollow, "it has nothing that the primary lacks"
	case r.diverged && r.o.Policy == RejoinIfClean:
		return hint(kind(ErrTimelineDiverged, "%s has WAL of its own behind %s, where the line of %s begins", r.res.Node, r.fork(), r.res.Primary),
			"It can be saved and taken back. %s", r.again("--force-rewind"))
	case r.impossible == "":
		r.res.Method, r.res.Reason = RejoinByRewind, fmt.Sprintf("it has WAL of its own behind %s", r.fork())
	case reclone, r.cloneOnly && r.o.Policy == RejoinRewind: // its WAL is saved, too, and nothing else takes it back
		r.res.Method, r.res.Reason = RejoinByClone, r.impossible
	case !r.diverged:
		return hint(kind(ErrRejoin, "%s can not follow %s: %s", r.res.Node, r.res.Primary, r.impossible), "%s", r.again("--reclone"))
	default:
		return hint(kind(ErrRejoin, "%s has diverged from %s, and pg_rewind can not help: %s", r.res.Node, r.res.Primary, r.impossible), "%s", r.again("--reclone"))
	}
	return nil
}

func (r *rejoining) fork() string {
	if r.res.Fork == nil {
		return "a point that is not known"
	}
	return r.res.Fork.String()
}
