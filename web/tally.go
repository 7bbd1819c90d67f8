package web

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
)

// tally counts the events of a daemon, and keeps how long outages took by its own events. All times are by the clock of the daemon.
// The zero value is ready for use.
type tally struct {
	counts  map[outcome]int
	told    map[outcome]time.Time // the last time
	outages map[string]*histogram // by phase

	node         repmgr.NodeID // of this daemon
	upstreamGone time.Time     // since when this standby has no primary; zero: it has one
	serverGone   time.Time     // since when the server of this node does not answer; zero: it does
}

// outcome is an event that was a success, or was not.
type outcome struct {
	event   repmgr.EventType
	success bool
}

const (
	// outcomesKept bounds the number of series. There are some fifty types of events.
	outcomesKept = 200
	otherEvent   = "other" // any event after that
)

// The phases of an outage: that of a failover as the election has measured it, the others from what a daemon tells first until what it
// tells at its end.
const (
	phasePromote = "promote" // the primary is gone, until another node that this daemon has promoted commits
	phaseFollow  = "follow"  // the primary is gone, until this standby follows a primary
	phaseReturn  = "return"  // the server of this node is gone, until it answers again
)

var phases = []string{phasePromote, phaseFollow, phaseReturn}

// note takes an event.
func (t *tally) note(e repmgr.Event) {
	if t.counts == nil {
		t.counts, t.told, t.outages = map[outcome]int{}, map[outcome]time.Time{}, map[string]*histogram{}
	}
	o := outcome{e.Type, e.Success}
	if _, known := t.counts[o]; !known && len(t.counts) >= outcomesKept {
		o.event = otherEvent
	}
	t.counts[o]++
	t.told[o] = e.Told
	switch {
	case e.Type == repmgr.EventUpstreamDisconnect:
		t.node, t.upstreamGone = e.NodeID, e.Told
	case e.Type == repmgr.EventLocalDisconnect, e.Type == repmgr.EventStandbyFailure:
		t.serverGone = e.Told
	case !e.Success:
	case e.Type == repmgr.EventFailoverPromote:
		if e.Failover != nil && e.Failover.Outage > 0 {
			t.took(phasePromote, e.Failover.Outage)
		}
		if e.NodeID == t.node {
			t.upstreamGone = time.Time{} // this node is the primary now
		}
	case e.Type == repmgr.EventFailoverFollow, e.Type == repmgr.EventUpstreamReconnect:
		t.ended(phaseFollow, &t.upstreamGone, e.Told)
	case e.Type == repmgr.EventLocalReconnect, e.Type == repmgr.EventStandbyRecovery, e.Type == repmgr.EventNodeRejoin:
		t.ended(phaseReturn, &t.serverGone, e.Told)
	}
}

// ended keeps how long a phase took. Where it did not begin here it is not known.
func (t *tally) ended(phase string, since *time.Time, until time.Time) {
	if !since.IsZero() {
		t.took(phase, until.Sub(*since))
	}
	*since = time.Time{}
}

func (t *tally) took(phase string, d time.Duration) {
	if t.outages[phase] == nil {
		t.outages[phase] = &histogram{}
	}
	t.outages[phase].observe(d.Seconds())
}

// settle forgets an outage of the primary that has ended without an event: it came back before anything was done about it, or
// another daemon has promoted this node. A daemon tells what it has done before it enters these phases.
func (t *tally) settle(v health.View) {
	if v.Phase == election.AsPrimary || v.Phase == election.AsStandby && v.Streams() {
		t.upstreamGone = time.Time{}
	}
}

// write writes the counters.
func (t *tally) write(e *exposition) {
	events := t.counts
	order := slices.SortedFunc(maps.Keys(events), func(a, b outcome) int {
		if c := strings.Compare(string(a.event), string(b.event)); c != 0 || a.success == b.success {
			return c
		}
		return map[bool]int{true: -1, false: 1}[a.success]
	})
	success := map[bool]string{true: "1", false: "0"}
	for _, o := range order {
		e.counter("repmgr_events_total", "The events that this daemon has told since it was started.", events[o], "event", string(o.event), "success", success[o.success])
	}
	for _, o := range order {
		e.gauge("repmgr_event_age_seconds", "How long ago this daemon last told such an event.", time.Since(t.told[o]).Seconds(), "event", string(o.event), "success", success[o.success])
	}
	const failovers, switchovers = "repmgr_failovers_total", "repmgr_switchovers_total"
	const held = "The failovers that this daemon has held since it was started: promoted; aborted, because the election got no further; refused, because it would be unsafe."
	e.counter(failovers, held, events[outcome{repmgr.EventFailoverPromote, true}], "outcome", "promoted")
	e.counter(failovers, held, events[outcome{repmgr.EventFailoverAbort, false}], "outcome", "aborted")
	e.counter(failovers, held, events[outcome{repmgr.EventFailoverRefused, false}], "outcome", "refused")
	const planned = "The switchovers that this daemon has carried out since it was started, as the daemon of the former primary."
	e.counter(switchovers, planned, events[outcome{repmgr.EventSwitchover, true}], "outcome", "done")
	e.counter(switchovers, planned, events[outcome{repmgr.EventSwitchover, false}], "outcome", "failed")
	if promoted, ok := t.told[outcome{repmgr.EventFailoverPromote, true}]; ok {
		e.gauge("repmgr_last_failover_timestamp_seconds", "When this daemon last promoted a node in a failover.", promoted)
	}
	for _, phase := range phases {
		h := t.outages[phase]
		if h == nil {
			h = &histogram{}
		}
		h.write(e, "repmgr_outage_seconds", "How long outages took by the events of this daemon: promote, from the last sign of life of the primary until the first commit of the one that this daemon promoted; follow, from the loss of the primary until this standby followed a primary; return, from the loss of the server of this node until it answered again.", phase)
	}
}

// bounds are the upper bounds of the buckets of a histogram, in seconds.
var bounds = [...]float64{0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 1800}

// histogram counts durations. The zero value is empty.
type histogram struct {
	counts [len(bounds)]int // up to each bound, those of the bounds before it not counted
	count  int
	sum    float64
}

func (h *histogram) observe(seconds float64) {
	h.count++
	h.sum += seconds
	if i, _ := slices.BinarySearch(bounds[:], seconds); i < len(bounds) {
		h.counts[i]++
	}
}

func (h *histogram) write(e *exposition, name, help, phase string) {
	e.family(name, "histogram", help)
	below := 0
	for i, bound := range bounds {
		below += h.counts[i]
		e.sample(name+"_bucket", below, "phase", phase, "le", number(bound))
	}
	e.sample(name+"_bucket", h.count, "phase", phase, "le", "+Inf")
	e.sample(name+"_sum", h.sum, "phase", phase)
	e.sample(name+"_count", h.count, "phase", phase)
}
