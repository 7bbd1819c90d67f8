package chaos

import (
	"cmp"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/pgfollow"
)

// What is judged here is judged from outside: by what clients were told and by
// what servers say of themselves, never by what the daemons think.

// promotion is the begin of a server's right to acknowledge.
type promotion struct {
	At       time.Time
	Node     int
	Timeline int
}

// promotions of a log, the oldest first. start is who had the right before.
func promotions(start promotion, events []logEvent) []promotion {
	ps := []promotion{start}
	for _, e := range events {
		if e.What == promoted {
			ps = append(ps, promotion{e.At, e.Node, e.Timeline})
		}
	}
	slices.SortStableFunc(ps, func(a, b promotion) int { return a.At.Compare(b.At) })
	return ps
}

// lasting are the promotions that gave a right to acknowledge: those of whoever is
// the primary in the end, and those after which the server did acknowledge. One that
// was promoted and never came to office took nobody's right away.
func lasting(ps []promotion, primary int, acks []Ack) []promotion {
	var kept []promotion
	for i, p := range ps {
		until := func(a Ack) bool { // the server's own next promotion
			return !slices.ContainsFunc(ps[i+1:], func(n promotion) bool { return n.Node == p.Node && !a.At.Before(n.At) })
		}
		used := slices.ContainsFunc(acks, func(a Ack) bool { return a.Node == p.Node && !a.At.Before(p.At) && until(a) })
		if i == 0 || used || p.Node == primary {
			kept = append(kept, p)
		}
	}
	return kept
}

// outage is the longest time without an acknowledged commit between from and to.
func outage(acks []Ack, from, to time.Time) time.Duration {
	longest, last := time.Duration(0), from
	for _, a := range acks {
		if a.At.Before(from) {
			last = a.At
			continue
		}
		if a.At.After(to) {
			break
		}
		longest, last = max(longest, a.At.Sub(last)), a.At
	}
	return max(longest, to.Sub(last))
}

// loss is what became of acknowledged rows.
type loss struct {
	Lost   int       // acknowledged, and not on the final primary
	Fenced int       // acknowledged by the wrong side
	Last   time.Time // of those
}

// losses judges the acknowledgements of one client. The wrong side is a server
// that had been superseded when the row was sent to it, or one that acknowledged
// after the fault had begun and whose row did not last. What was acknowledged
// before the fault and is lost was only not replicated.
func losses(acks []Ack, there map[int64]bool, ps []promotion, began time.Time) (l loss) {
	for _, a := range acks {
		wrong := supersededAt(ps, a.Node, a.Sent)
		if !there[a.ID] {
			l.Lost++
			wrong = wrong || a.At.After(began)
		}
		if wrong {
			l.Fenced++
			l.Last = a.At
		}
	}
	return l
}

// without leaves out the first promotion of a node: the one that was made by hand.
func without(ps []promotion, node int) []promotion {
	i := slices.IndexFunc(ps[1:], func(p promotion) bool { return p.Node == node })
	if i < 0 {
		return ps
	}
	return slices.Delete(slices.Clone(ps), i+1, i+2)
}

// contradicts says what is wrong with what the asker was told of a row, if the row is there or not. An
// outcome that is unknown, or was not asked for, is never wrong.
func contradicts(t try, outcome pgfollow.Outcome, there bool) string {
	switch {
	case !t.Acked && !t.Open && there:
		return "it is there, and was said not to be committed"
	case outcome == pgfollow.Committed && !there:
		return "it was said to be committed, and is not there"
	case (outcome == pgfollow.Aborted || outcome == pgfollow.Lost) && there:
		return "it was said to be " + string(outcome) + ", and is there"
	}
	return ""
}

// apart takes out what a node acknowledged from then on.
func apart(acks []Ack, node int, from time.Time) (rest, its []Ack) {
	for _, a := range acks {
		if a.Node == node && a.At.After(from) {
			its = append(its, a)
		} else {
			rest = append(rest, a)
		}
	}
	return rest, its
}

// vanished counts the rows that were acknowledged, and that a read that was sent
// afterwards to a primary of the same or a later term did not show. With
// synchronous_mode=off a later term may have lost them: only the same one counts.
// Of a node that was promoted by hand nothing counts; 0: there is none.
func vanished(missing []absence, ps []promotion, stray int, quorum bool) int {
	rows := map[absence]bool{}
	for _, m := range missing {
		own := timelineAt(ps, m.Ack.Node, m.Ack.At)
		if m.Node == stray || m.Ack.Node == stray || m.Timeline < own || !quorum && m.Timeline != own || supersededAt(ps, m.Ack.Node, m.Ack.Sent) {
			continue
		}
		rows[absence{Client: m.Client, Ack: m.Ack}] = true
	}
	return len(rows)
}

// timelineAt is the newest timeline that the node had been promoted to at t; 0: none.
func timelineAt(ps []promotion, node int, t time.Time) (timeline int) {
	for i, p := range ps {
		if p.Node == node && (i == 0 || !p.At.After(t)) {
			timeline = max(timeline, p.Timeline)
		}
	}
	return timeline
}

// supersededAt tells whether at t a server of a higher timeline than the node's
// newest had been promoted.
func supersededAt(ps []promotion, node int, t time.Time) bool {
	own, highest := 0, 0
	for i, p := range ps {
		if i > 0 && p.At.After(t) {
			continue
		}
		highest = max(highest, p.Timeline)
		if p.Node == node {
			own = max(own, p.Timeline)
		}
	}
	return highest > own
}

// followed is when the last of the standbys streamed the timeline, after its
// promotion; false when one did not.
func followed(p promotion, events []logEvent, standbys []int) (time.Duration, bool) {
	last := time.Duration(0)
	for _, id := range standbys {
		i := slices.IndexFunc(events, func(e logEvent) bool {
			return e.Node == id && e.What == streaming && e.Timeline >= p.Timeline && !e.At.Before(p.At)
		})
		if i < 0 {
			return 0, false
		}
		last = max(last, events[i].At.Sub(p.At))
	}
	return last, true
}

// quantile of values, by the nearest rank; 0 without any.
func quantile[T cmp.Ordered](values []T, q float64) (v T) {
	if len(values) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
