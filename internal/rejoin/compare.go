package rejoin

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Compare determines whether the node has WAL that the primary does not have. It forgets the
// result of an earlier comparison, because the server may have run since.
func (w *Work) Compare(ctx context.Context) (string, error) {
	w.diverged, w.twin, w.impossible, w.cloneOnly, w.Fork = false, false, "", false, nil
	if w.interrupted = w.isGuarded(); w.interrupted {
		return "an earlier rejoin was interrupted", nil
	}
	var err error
	if w.control, err = w.Server.Control(ctx); err != nil {
		if w.MayClone && w.Local == nil {
			w.diverged, w.impossible = true, err.Error()
			return w.impossible, nil
		}
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "look at the data in %s: %w", w.Server.Dir, err), "%s", w.Again("--reclone"))
	}
	if id := strconv.FormatUint(w.control.SystemIdentifier, 10); id != w.Status.SystemIdentifier {
		return "", failure.WithHint(failure.Of(failure.ErrSystemIdentifier, "the data in %s has system identifier %s, %s has %s", w.Server.Dir, id, w.Primary, w.Status.SystemIdentifier),
			"They are different clusters. Is data_directory right? A node of this one is made with: repmgr standby clone")
	}
	if w.timeline, w.ours, err = w.Server.Line(w.control); err != nil {
		return "", failure.Of(failure.ErrRejoin, "look at the timelines in %s: %w", w.Server.Dir, err)
	}
	var theirs wal.History
	if w.Status.Timeline > 1 {
		if theirs, err = w.History(ctx, w.Primary, w.Status.Timeline); err != nil {
			return "", err
		}
	}
	return w.compareTimelines(ctx, theirs)
}

// compareTimelines compares the timelines of the node and the primary, and the WAL after the
// point where they fork.
func (w *Work) compareTimelines(ctx context.Context, theirs wal.History) (string, error) {
	var received, next wal.LSN // for a server that receives WAL, its end is what it received or has replayed
	archive := w.Archive
	if w.Local != nil {
		status, err := w.Local.Status(ctx)
		if err != nil {
			return "", err
		}
		if status.Receiver != nil {
			received = max(status.ReceivedLSN, status.ReplayedLSN)
		}
		next, archive = registry.NextLSN(status), archive || registry.HasArchive(status)
		if now, err := w.Source.Status(ctx); err == nil { // read after the local state
			w.Status = now
		}
	}
	common, fork, ok := salvage.LastCommon(w.timeline, w.ours, w.Status.Position(), theirs)
	if !ok {
		w.diverged, w.impossible = true, fmt.Sprintf("timeline %d of the node and timeline %d of the primary have no common past", w.timeline, w.Status.Timeline)
		return w.impossible, nil
	}
	w.shared = wal.Position{Timeline: common, LSN: fork}
	p := forkPoint{Position: w.shared, damaged: !w.Server.HasSegment(w.control.Redo, w.control.WALSegmentSize)}
	var err error
	p.behind, p.own, err = w.Server.OwnWAL(w.timeline)
	if err != nil {
		return "", failure.WithHint(failure.Of(failure.ErrRejoin, "look at the settings of %s: %w", w.Node, err), "%s", w.Again("--reclone"))
	}
	switch {
	case w.writes, common != w.timeline, p.damaged, p.own:
		w.diverged = true
	case received != 0:
		w.diverged = received > fork
	case w.control.State == pgcontrol.ShutDown: // after a clean shutdown the end of its WAL is known exactly
		w.diverged = w.control.Position().LSN > fork
	default:
		beyond, err := w.Server.WALBeyond(ctx, salvage.Branch{Timeline: common, From: fork}, w.control.WALSegmentSize)
		if err != nil {
			return "", failure.WithHint(failure.Of(failure.ErrRejoin, "%w", err), "%s", cmp.Or(failure.Hint(err), w.Again("--reclone")))
		}
		w.diverged = beyond || w.control.Position().LSN > fork
	}
	if err := w.compareSameTimeline(ctx, common, theirs, fork); err != nil {
		return "", err
	}
	needed := fork
	switch {
	case w.diverged, w.timeline != common:
	case next != 0:
		needed = min(fork, next)
	case w.control.State == pgcontrol.ShutDown:
		needed = min(fork, w.control.Position().LSN)
	case w.Local == nil:
		needed = min(fork, w.Server.WALEnd(w.control))
	}
	if !archive {
		p.gone = w.walGone(ctx, needed)
	}
	if !w.diverged && p.gone != "" {
		w.impossible = p.gone
		return p.gone, nil
	}
	if !w.diverged {
		return fmt.Sprintf("nothing beyond what %s has (%s)", w.Primary, w.control.State), nil
	}
	w.Fork = &wal.Position{Timeline: common, LSN: fork}
	if w.twin {
		w.Fork.LSN, _ = w.ours.Fork(salvage.Parent(w.ours, common))
	}
	detail := fmt.Sprintf("%s has WAL of its own behind %s", w.Node, w.Fork)
	w.lags = w.Status.VersionNum < 160000 && !salvage.RewindSees(w.control.Timeline, w.control.MinRecoveryTimeline, w.timeline, w.ours, w.Status.Position(), theirs)
	if why, forGood := w.whyNotRewind(p); why != "" {
		w.impossible, w.cloneOnly = why, w.cloneOnly || forGood
	}
	if p.damaged {
		detail += ", and " + w.impossible
	}
	return detail, nil
}

// forkPoint is the position where the two timelines fork, with what is known of the WAL around
// it.
type forkPoint struct {
	wal.Position
	damaged bool    // the WAL of the server's last checkpoint is missing
	own     bool    // an earlier rejoin made the server write WAL of its own
	behind  wal.LSN // the position after which that WAL begins
	gone    string  // says that the primary has removed the WAL that comes next; empty: it has not, or that is unknown
}

// whyNotRewind is the reason why pg_rewind can not take back the server's own WAL; empty: it
// can. forGood means that no person could make it possible.
func (w *Work) whyNotRewind(p forkPoint) (why string, forGood bool) {
	switch {
	case p.damaged:
		return "the WAL of its last checkpoint is gone", false
	case p.own && p.LSN > p.behind:
		return fmt.Sprintf("an earlier rejoin gave it WAL of its own behind %s, and pg_rewind would take that for the primary's", wal.Position{Timeline: w.timeline, LSN: p.behind}), true
	case w.twin, p.Timeline < w.timeline && w.timeline == w.Status.Timeline:
		return fmt.Sprintf("the two were promoted apart, and pg_rewind takes their timelines %d for one", w.timeline), true
	case p.gone != "":
		return p.gone, false
	case p.Timeline == w.Status.Timeline && p.Timeline == w.timeline:
		return fmt.Sprintf("both are on timeline %d, and pg_rewind needs the primary to be on another one", p.Timeline), false
	case !w.Archive && !w.Server.HasSegment(w.Fork.LSN-1, w.control.WALSegmentSize): // pg_rewind needs the last checkpoint before the fork
		return fmt.Sprintf("the WAL of %s at %s, from where pg_rewind would read it, is gone", w.Node, w.Fork), false
	case w.control.DataChecksums == 0 && !w.control.WALLogHints:
		return fmt.Sprintf("neither data checksums nor wal_log_hints were on in %s", w.Node), false
	case w.Status.Settings.FullPageWrites == "off":
		return fmt.Sprintf("full_page_writes is off on %s", w.Primary), false
	}
	return "", false
}

// firstRecord is smaller than the first record of any timeline.
const firstRecord = 40

// compareSameTimeline checks whether the timeline that both servers are on was written by one
// server.
func (w *Work) compareSameTimeline(ctx context.Context, common wal.Timeline, theirs wal.History, fork wal.LSN) error {
	begin, ok := theirs.Fork(salvage.Parent(theirs, common))
	if common != w.timeline || common <= 1 || !ok {
		return nil
	}
	end := w.control.Position().LSN
	switch {
	case w.Local != nil:
		if status, err := w.Local.Status(ctx); err == nil {
			end = status.Position().LSN
		}
	case w.control.State == pgcontrol.InProduction: // it has written at least the record of its own promotion
		end = max(end, begin+firstRecord)
	}
	twin, err := salvage.LogsDiffer(ctx, w.Server.WALSum, w.Source.WALSum, common, begin, min(fork, end), w.control.WALSegmentSize)
	if err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
		return err
	}
	w.twin = twin
	w.diverged = w.diverged || twin
	return nil
}

// walGone is a text where the primary has removed the WAL that the node will ask for; otherwise
// it is empty. It is only checked where no archive may have that WAL.
func (w *Work) walGone(ctx context.Context, lsn wal.LSN) string {
	needed, oldest := w.Source.MissingWAL(ctx, wal.Position{Timeline: w.shared.Timeline, LSN: lsn})
	if oldest == "" { // without the right to look there, this is noticed later
		return ""
	}
	return fmt.Sprintf("%s does not have the WAL from %s on any more (segment %s; its first one is %s)", w.Primary, lsn, needed, oldest)
}
