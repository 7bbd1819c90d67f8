package wal

import "fmt"

// Position is a place in the log: how far a server has written or received, and
// on which timeline. A zero Timeline or LSN means unknown.
type Position struct {
	Timeline Timeline `json:"timeline"`
	LSN      LSN      `json:"lsn"`
}

// String returns "16/B374D848 on timeline 3".
func (p Position) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

// Verdict answers whether one server can follow another, and why. The zero
// value means never asked, and is not OK.
type Verdict string

// The verdicts of CanFollow.
const (
	// SameTimeline: both are on one timeline and the local server is not ahead. OK.
	SameTimeline Verdict = "same timeline"
	// BeforeFork: the local server has nothing beyond the point where the
	// target's line left its timeline. OK.
	BeforeFork Verdict = "before the fork"
	// Ahead: both are on one timeline, and the local server has log that the
	// target lacks. pg_rewind cannot help, since there is no fork.
	Ahead Verdict = "ahead of the target"
	// TargetOnLowerTimeline: the local server took part in a promotion that the
	// target knows nothing of.
	TargetOnLowerTimeline Verdict = "target on a lower timeline"
	// BeyondFork: diverged. The local server has log beyond the fork. pg_rewind
	// or a new clone.
	BeyondFork Verdict = "beyond the fork"
	// NotInHistory: diverged. The local timeline is not an ancestor of the target's.
	NotInHistory Verdict = "timeline not in the target's history"
	// PositionUnknown: the local position or what it must be compared with is
	// unknown, so nothing is promised.
	PositionUnknown Verdict = "position unknown"
)

// CanFollow decides whether a server whose log ends at local can stream from a
// server at target, whose timeline has the history h. h is only looked at when
// the target is on a higher timeline, and then all of its hops are: the local
// timeline may be any ancestor, not only the last.
//
// It goes by numbers. Two servers that were promoted apart, out of each other's
// sight, can both call their timeline 2: whether that happened, only a
// comparison of their own histories or of the system's records can tell.
func CanFollow(local, target Position, h History) Verdict {
	fork, ancestor := h.Fork(local.Timeline)
	switch {
	case local.Timeline == 0 || local.LSN == 0 || target.Timeline == 0:
		return PositionUnknown
	case target.Timeline < local.Timeline:
		return TargetOnLowerTimeline
	case target.Timeline == local.Timeline && target.LSN == 0:
		return PositionUnknown
	case target.Timeline == local.Timeline && local.LSN > target.LSN:
		return Ahead
	case target.Timeline == local.Timeline:
		return SameTimeline
	case !ancestor:
		return NotInHistory
	case local.LSN > fork:
		return BeyondFork
	default:
		return BeforeFork
	}
}

// OK reports whether the local server can follow the target as it is.
func (v Verdict) OK() bool { return v == SameTimeline || v == BeforeFork }

// Explain says the verdict of CanFollow(local, target, h) in one sentence, with
// the positions and the fork that decided it.
func (v Verdict) Explain(local, target Position, h History) string {
	fork, _ := h.Fork(local.Timeline)
	switch v {
	case SameTimeline:
		return fmt.Sprintf("local server at %s can follow the target at %s: both are on timeline %d", local.LSN, target.LSN, local.Timeline)
	case BeforeFork:
		return fmt.Sprintf("local server at %s can follow the target on timeline %d, whose line left timeline %d at %s", local, target.Timeline, local.Timeline, fork)
	case Ahead:
		return fmt.Sprintf("local server at %s is %d bytes ahead of the target at %s on the same timeline", local, local.LSN.Bytes(target.LSN), target.LSN)
	case TargetOnLowerTimeline:
		return fmt.Sprintf("target is on timeline %d, lower than timeline %d of the local server", target.Timeline, local.Timeline)
	case BeyondFork:
		return fmt.Sprintf("local server at %s has diverged: it is %d bytes beyond %s, where the line of the target's timeline %d left timeline %d", local, local.LSN.Bytes(fork), fork, target.Timeline, local.Timeline)
	case NotInHistory:
		return fmt.Sprintf("local server has diverged: its timeline %d is not in the history of the target's timeline %d", local.Timeline, target.Timeline)
	default:
		return fmt.Sprintf("position unknown: local server at %s, target at %s", local, target)
	}
}
