package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// Severity says how bad a finding is.
type Severity string

const (
	// Critical: a failover or a restart would not work now, or would lose data.
	Critical Severity = "critical"
	// Warning: it works, but not with every node as the next primary, or not for long.
	Warning Severity = "warning"
)

// Finding is one thing that is wrong.
type Finding struct {
	ID       string          `json:"id"` // of the check; does not change in later versions
	Severity Severity        `json:"severity"`
	NodeID   registry.NodeID `json:"node_id,omitempty"` // 0: it is about the cluster
	Node     string          `json:"node,omitempty"`
	Text     string          `json:"text"`             // what was seen, for people
	Remedy   string          `json:"remedy,omitempty"` // what mends it
	Waived   string          `json:"waived,omitempty"` // until this day (2006-01-02) an operator accepts it; empty: it counts
}

// Page is where a finding is explained.
func (f Finding) Page() string { return "docs/doctor.md#" + f.ID }

// Pinned is how much WAL a replication slot keeps, and how long the disk lasts.
type Pinned struct {
	NodeID    registry.NodeID `json:"node_id"`
	Node      string          `json:"node"`
	Slot      string          `json:"slot_name"`
	Active    bool            `json:"active"`
	Kept      int64           `json:"kept_bytes"`
	PerHour   *int64          `json:"wal_bytes_per_hour,omitempty"` // of the server on average since its statistics were reset; nil: not known
	HoursLeft *float64        `json:"hours_until_full,omitempty"`   // at that rate; nil: not known, the slot is in use, or a limit is set
}

// Report is the result of an examination.
type Report struct {
	Findings []Finding `json:"findings"` // the critical ones first, those that are waived last; empty: all is well
	Slots    []Pinned  `json:"slots"`    // the one that keeps most first
	Checks   int       `json:"checks"`   // how many checks were made
}

// Worst is the highest severity of a finding that is not waived. Empty: there is none.
func (r Report) Worst() (worst Severity) {
	for _, f := range r.Findings {
		switch {
		case f.Waived != "":
		case f.Severity == Critical:
			return Critical
		default:
			worst = Warning
		}
	}
	return worst
}

// Waiver is a finding that an operator accepts until a day.
type Waiver struct {
	ID    string
	Node  string    // empty: on every node
	Until time.Time // the first moment at which it does not hold any more
}

const day = "2006-01-02"

// ParseWaiver parses ID[@NODE]:YYYY-MM-DD. The day is the last one on which it holds, in local time.
func ParseWaiver(text string) (Waiver, error) {
	what, until, ok := strings.Cut(text, ":")
	id, node, _ := strings.Cut(what, "@")
	last, err := time.ParseInLocation(day, until, time.Local)
	switch {
	case !ok || err != nil:
		return Waiver{}, fmt.Errorf("%q is no waiver, such as slot_keeps_wal@node1:2026-12-31", text)
	case !slices.Contains(IDs(), id):
		return Waiver{}, fmt.Errorf("%q: there is no check %q; there are %s", text, id, strings.Join(IDs(), ", "))
	}
	return Waiver{id, node, last.AddDate(0, 0, 1)}, nil
}

// String is the waiver as [ParseWaiver] reads it.
func (w Waiver) String() string {
	on := ""
	if w.Node != "" {
		on = "@" + w.Node
	}
	return w.ID + on + ":" + w.lastDay()
}

// lastDay is the last day on which it holds.
func (w Waiver) lastDay() string { return w.Until.AddDate(0, 0, -1).Format(day) }

// waive notes which findings an operator accepts at this time.
func waive(all []Finding, waivers []Waiver, now time.Time) {
	for i, f := range all {
		for _, w := range waivers {
			if w.ID == f.ID && (w.Node == "" || w.Node == f.Node) && now.Before(w.Until) {
				all[i].Waived = w.lastDay()
			}
		}
	}
}

func order(all []Finding) {
	rank := func(f Finding) int {
		switch {
		case f.Waived != "":
			return 2
		case f.Severity == Warning:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.NodeID, b.NodeID))
	})
}
