package web

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/topology"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

const (
	eventsShown    = 20
	failoversShown = 8
)

// dashboard is the main page: what the daemon knows now, and the newest answers to questions for which other nodes were asked.
type dashboard struct {
	frame
	Mood    topology.Mood
	Office  string // who may write, in a sentence
	Banners []banner
	Picture template.HTML
	Facts   []fact
	Nodes   []node
	Daemons age // of what the daemons in Nodes say

	Forecast  forecast
	Failovers failovers
	Doctor    examination

	Event    int64 // the number of the newest: when it changes, the page asks again
	Events   []repmgr.Event
	Commands []fact
	Targets  []node // the standbys that a switchover could lead to
}

// banner is a sentence above all others.
type banner struct {
	Mood    topology.Mood
	Text    string
	Command string // what ends it; empty: nothing to type
}

// fact is a thing and what is known of it.
type fact struct{ Name, Text string }

func (h *handler) dashboard(v health.View) dashboard {
	why, explained, nodes := h.recall("v1/why", v.At), h.recall("v1/explain", v.At), nodesOf(v)
	said, e := daemons(why), explained.Document
	d := dashboard{
		frame: h.frame(v, scope(v)), Banners: banners(v, e), Facts: facts(v, why, nodes), Nodes: nodes, Daemons: newAge(why, v.At),
		Forecast:  newForecast(explained, v, h.foresee(v)),
		Failovers: newFailovers(h.recall("v1/failovers", v.At), v.At),
		Doctor:    newExamination(h.recall("v1/doctor", v.At), v.At),
		Commands: []fact{
			{"Move the primary on purpose, as a test first", command(v, "standby switchover --dry-run")},
			{"Keep all daemons from acting, and let them again", command(v, "service pause") + "\n" + command(v, "service unpause")},
			{"Would an election be held now?", command(v, "cluster failover --dry-run")},
			{"Would all work?", command(v, "doctor")},
		},
	}
	d.Mood, d.Office = office(v)
	d.Title += ": " + d.Office
	d.Picture = template.HTML(pictureOf(v, d.Base).SVG()) // all text in it is escaped there
	if d.Event, _ = h.o.Events.last(); d.Event != 0 {
		d.Events = h.o.Events.latest(eventsShown)
	}
	for i, n := range d.Nodes {
		d.Nodes[i].Daemon, d.Nodes[i].Past = daemonText(said, n.ID), h.trail.of(n, v.At)
		if !n.Votes && !n.Writes {
			d.Targets = append(d.Targets, n)
		}
	}
	return d
}

// command is a command line for this machine.
func command(v health.View, words string) string {
	if file := v.Record().ConfigFile; file != "" {
		return "repmgr -f " + shell.Quote(file) + " " + words
	}
	return "repmgr " + words
}

// office says who may write now, as this node sees it.
func office(v health.View) (topology.Mood, string) {
	lead, running := leader(v), v.Primaries()
	p := peerOfView(v, registry.Record{ID: registry.NodeID(lead)}, lead)
	mood, how := seen(v, p)
	var names []string
	for _, id := range running {
		names = append(names, v.Name(id))
	}
	switch {
	case len(running) > 1:
		return topology.Bad, fmt.Sprintf("%d nodes run as a primary: %s.", len(running), strings.Join(names, ", "))
	case lead != 0 && lead != int32(v.NodeID) && mood != topology.Well:
		return topology.Doubt, fmt.Sprintf("%s was the primary, %s.", v.Name(lead), how)
	case lead != 0 && v.Rule.Known():
		return topology.Well, fmt.Sprintf("%s is the primary of term %d.", v.Name(lead), v.Rule.Term)
	case lead != 0:
		return topology.Well, v.Name(lead) + " is the primary."
	case runsPrimary(v) && v.Running().OK:
		return topology.Bad, fmt.Sprintf("No primary is in office: %s.", v.Primary().Why)
	case v.Rule.Known():
		text := fmt.Sprintf("No primary is in office. The last one was %s, of term %d", v.Name(v.Rule.Primary), v.Rule.Term)
		if at := peerOfView(v, registry.Record{ID: registry.NodeID(v.Rule.Primary)}, lead).SeenAt; !at.IsZero() {
			text += ", last seen " + ago(v.At.Sub(at))
		}
		return topology.Bad, text + "."
	}
	return topology.Bad, "No primary is seen."
}

// runsPrimary reports whether the server of this node runs as a primary of the cluster. That of a witness runs as one always.
func runsPrimary(v health.View) bool {
	return v.Runs() == election.Primary && v.Record().Role != registry.RoleWitness
}

func banners(v health.View, explained any) (all []banner) {
	add := func(m topology.Mood, command, format string, args ...any) {
		all = append(all, banner{m, fmt.Sprintf(format, args...), command})
	}
	if a := v.Alive(); !a.OK {
		add(topology.Bad, "", "What is below is old: %s.", a.Why)
	}
	if v.Automatic && len(v.Peers) > 0 && len(v.Reachable()) == 0 {
		add(topology.Bad, command(v, "cluster explain"), "No node answers this daemon. What is below is what was seen last.")
	}
	if v.Paused() {
		by := election.PausedBy(v.Peers)
		add(topology.Doubt, command(v, "service unpause"), "Failover is paused%s: no daemon acts by itself until it is unpaused.", wording.PausedBy(by.Since, by.By))
	}
	if h, ok := v.Scheduled(); ok {
		add(topology.Unknown, command(v, "standby switchover --cancel"), "%s", scheduledText(v, h))
	}
	if v.Phase == election.Fenced {
		add(topology.Bad, "", "The server of this node was stopped by its daemon: %s.", v.Reason)
	}
	if v.Yields {
		add(topology.Doubt, "", "Another repmgrd acts for this node. This one only watches.")
	}
	if !v.Automatic && !v.Yields && !v.LookedAt.IsZero() {
		nobody := ""
		if e, _ := explained.(repmgr.Explanation); e.Manual {
			nobody = " Nobody takes over by itself."
		}
		add(topology.Unknown, "", "failover=manual on this node: its daemon takes no part in elections.%s It sees its own server, who streams from that, and the primary, and not whether another node runs as a primary too.", nobody)
	}
	if election.Foreign(v.Peers) {
		add(topology.Doubt, "", "Daemons of repmgr 5 run in this cluster, which fail over by rules of their own.")
	}
	return all
}

// facts are who may write, until when, and by whose votes.
func facts(v health.View, why remembered, nodes []node) []fact {
	all := []fact{{"This node", fmt.Sprintf("%s, %s: %s", cmp.Or(v.Node, "without a node of its own"), cmp.Or(v.Phase, "starting"), cmp.Or(v.Reason, "it has not looked yet"))}}
	if v.Rule.Known() {
		names := map[int32]string{election.Arbiter: "etcd"}
		for _, r := range v.Records {
			names[int32(r.ID)] = r.Name
		}
		all = append(all, fact{"Rule", report.RuleText(v.Rule, "", names)})
	}
	if v.Rule.Known() && v.Automatic { // a daemon that takes no part in elections does not ask the voters
		answer := slices.DeleteFunc(v.Reachable(), func(p election.Peer) bool { mood, _ := seen(v, p); return mood != topology.Well })
		have, votes := v.Rule.Votes(election.IDs(answer))
		text := fmt.Sprintf("%d of %d answer, and %d are a majority", have, votes, votes/2+1)
		if lead := leader(v); lead != 0 {
			without, _ := v.Rule.Votes(election.IDs(slices.DeleteFunc(answer, func(p election.Peer) bool { return p.ID == lead })))
			text += fmt.Sprintf("; without %s it would be %d", v.Name(lead), without)
		}
		all = append(all, fact{"Votes", text})
	}
	return append(all, fact{"Lease", leaseText(v, why)}, fact{"At risk", riskText(v, nodes)})
}

// daemons are what the daemon of each node has said, by the id of the node.
func daemons(a remembered) map[int32]repmgr.MonitorWord {
	all := map[int32]repmgr.MonitorWord{}
	r, _ := a.Document.(repmgr.Reasoning)
	for _, m := range r.Monitors {
		all[int32(m.ID)] = m
	}
	return all
}

// daemonText is what the daemon of a node does, in its own words; empty: it was not asked.
func daemonText(said map[int32]repmgr.MonitorWord, id int32) string {
	m, asked := said[id]
	switch {
	case !asked:
		return ""
	case m.Error != "":
		return "not known: its server does not say"
	case m.Monitor == nil && m.Foreign != nil:
		return "repmgrd of repmgr 5"
	case m.Monitor == nil:
		return "none runs"
	}
	text := cmp.Or(m.Monitor.Phase, "it runs") + ": " + m.Monitor.Reason
	if age := time.Duration(m.Monitor.Age * float64(time.Second)); age > registry.PresenceSilent {
		text = "has said nothing for " + wording.Duration(age).String() + "; before that: " + text
	}
	if m.Monitor.Mode == repmgr.FailoverManual {
		text += "; failover=manual"
	}
	if trouble := cmp.Or(m.Monitor.Error, m.Monitor.Rejected); trouble != "" {
		text += "; trouble: " + trouble
	}
	return text
}

// leaseText says until when the primary may write. Other daemons know that from what its own has said.
func leaseText(v health.View, why remembered) string {
	lead, l := leader(v), v.Lease
	said := daemons(why)[lead].Monitor
	name, when := v.Name(lead), ago(v.At.Sub(why.At))
	switch own := runsPrimary(v); {
	case !own && lead == 0:
		return "nobody is known to have one"
	case !own && said != nil && said.Mode == repmgr.FailoverManual:
		return "none: failover=manual on " + name
	case !own && said != nil && why.Old:
		return fmt.Sprintf("not known now: the daemon of %s was asked %s", name, when)
	case !own && said != nil && said.Lease() != "":
		return fmt.Sprintf("%s its daemon said: %s %s", when, name, said.Lease())
	case !own && said != nil && said.LeaseLeft != nil:
		return fmt.Sprintf("%s its daemon said that %s may write for %.1f s. Each contact to a majority gives it more time", when, name, *said.LeaseLeft)
	case v.Paused() && (!own || !l.Known):
		return "none while failover is paused"
	case !own:
		return "not known: the daemon of " + name + " has said nothing of one"
	case v.Yields:
		return "the other repmgrd of this node keeps it"
	case !v.Automatic:
		return "none: this daemon takes no part in elections"
	case !l.Known:
		return "not known now"
	case !l.Needed:
		return "this primary needs none now: no other node can be elected"
	case l.Left <= 0:
		return "it has run out: this primary may not write"
	}
	return fmt.Sprintf("this primary may write until %s, for %.1f s. Each contact to a majority gives it more time", v.At.Add(l.Left).Local().Format("15:04:05.0"), l.Left.Seconds())
}

// riskText says how much WAL of the primary no standby has got.
func riskText(v health.View, nodes []node) string {
	least, best, standbys := int64(-1), "", false
	for _, n := range nodes {
		standbys = standbys || n.Stream != nil
		if n.Stream != nil && n.Behind >= 0 && (least < 0 || n.Behind < least) {
			least, best = n.Behind, n.Name
		}
	}
	switch {
	case !standbys:
		return "all of it: there is no standby"
	case least < 0:
		return "not known now: the position of the primary, or of each standby, is not seen"
	}
	text := fmt.Sprintf("%s of WAL that no standby had at the last look (%s has most)", wording.Bytes(least), best)
	if v.Rule.Quorum && v.Rule.Acks > 0 {
		text += ". Commits in it are not acknowledged yet"
	}
	return text
}

// forecast is what would happen if the primary died.
type forecast struct {
	age
	Known    bool
	Mood     topology.Mood
	Now      string // what this daemon foresees itself, where the answer is old; empty: it does not
	Verdict  []string
	Loss     string
	Outages  []fact
	Blocked  []repmgr.Blocker
	AtRisk   []repmgr.Blocker
	Question string
}

// age says how old an answer is, and why there is no newer one.
type age struct {
	Ago    string // empty: there is none
	Old    bool   // it may not be true any more
	Failed string // empty: the last attempt had an answer
}

func newAge(a remembered, now time.Time) age {
	n := age{Failed: a.Failed}
	if !a.At.IsZero() {
		n.Ago, n.Old = ago(now.Sub(a.At)), a.Old
	}
	return n
}

// foresee is what would happen if the primary died, as this daemon sees it now; nil: it does not know.
func (h *handler) foresee(v health.View) *election.Forecast {
	if !v.Automatic || !v.Rule.Known() {
		return nil
	}
	f := h.policy(v).Forecast(v.At, v.Rule, v.Peers, v.Rule.Primary)
	return &f
}

// newForecast shows an answer, and what this daemon foresees itself where that answer is old, or not true any more.
func newForecast(a remembered, v health.View, now *election.Forecast) forecast {
	f := forecast{age: newAge(a, v.At), Question: "If the primary died now", Mood: topology.Unknown}
	e, ok := a.Document.(repmgr.Explanation)
	if ok {
		f.Known, f.Mood, f.Question = true, topology.Well, "If "+e.Lost.Name+" died now"
		f.Verdict, f.Loss, f.AtRisk = strings.Split(presumed(v, e.Lost.Name, e.Verdict()), "\n"), e.LossText(), e.AtRisk
		for _, b := range e.Blocked {
			b.Reason = presumed(v, e.Lost.Name, b.Reason)
			f.Blocked = append(f.Blocked, b)
		}
		for _, o := range e.Outages {
			text := wording.Duration(o.Total).String()
			if o.Least {
				text += " or more"
			}
			f.Outages = append(f.Outages, fact{text, "if " + o.Case})
		}
		switch {
		case len(e.Blocked) > 0 || e.Forecast.Winner == 0:
			f.Mood = topology.Bad
		case e.Manual || len(e.AtRisk) > 0:
			f.Mood = topology.Doubt
		}
	}
	f.Old = f.Old || ok && now != nil && refuted(e, v, *now)
	if ok && !f.Old {
		return f
	}
	f.Mood = topology.Unknown
	if now == nil {
		return f
	}
	f.Question = "If " + v.Name(v.Rule.Primary) + " died now"
	f.Now = fmt.Sprintf("As this daemon sees it, %s would win.", v.Name(now.Winner))
	if now.Winner == 0 {
		f.Mood, f.Now = topology.Bad, fmt.Sprintf("As this daemon sees it, nobody would take its place: %s.", presumed(v, v.Name(v.Rule.Primary), refusalText(*now)))
	}
	return f
}

// refuted reports whether an answer is not true any more, as this daemon sees it. Which of two nodes is a little ahead of the
// other, and so would win, changes all the time.
func refuted(e repmgr.Explanation, v health.View, now election.Forecast) bool {
	if e.Forecast.Refusal == election.RefusedTooMany { // which needs the table of failovers
		return false
	}
	winner := v.Peer(e.Forecast.Winner)
	return e.Rule.Term != v.Rule.Term || (e.Forecast.Winner == 0) != (now.Winner == 0) || winner.ID != 0 && winner.Answer != election.Answers
}

// presumed makes it plain that a majority is there now, and would not be without the primary that is presumed to be lost.
func presumed(v health.View, lost, text string) string {
	if lead := leader(v); lead == 0 || v.Name(lead) != lost {
		return text
	}
	return strings.ReplaceAll(text, string(election.RefusedNoMajority), "without "+lost+" no majority of the voters would answer")
}

func refusalText(f election.Forecast) string {
	if f.Refusal == election.RefusedHealth {
		return string(f.Health)
	}
	return string(f.Refusal)
}

// failovers are those that took place.
type failovers struct {
	age
	Known bool
	Rows  []failoverRow
	More  int // that are not shown
}

// failoverRow is a failover with its phases as parts of a bar.
type failoverRow struct {
	repmgr.FailoverRecord
	From, To string
	Took     string // the time without a primary
	Lost     string // empty: not known
	Phases   []phase
}

// phase is a part of the bar of a failover, which is 1000 units long.
type phase struct {
	Name, Step, Evidence string
	Took, End            time.Duration
	X, Width, Shade      int
}

// phaseNames say what a failover does until the step of that name is done.
var phaseNames = map[string]string{
	"surveyed": "looking at all nodes", "recruited": "pledges", "chosen": "choice of the winner", "waited": "waiting for the old primary", "drained": "replay",
	"promoted": "promotion", "repointed": "telling the others", "ruled": "first commit",
	"checked": "checks", "checkpointed": "checkpoint", "noticed": "telling the daemons", "stopped": "stop of the old primary", "received": "the rest of its WAL",
	"elected": "looking who won", "restarted": "start of the old primary",
}

// shades are the steps in the order of their colours. The first colour is of what comes before all steps.
var shades = []string{"", "surveyed", "recruited", "chosen", "waited", "drained", "promoted", "repointed", "ruled", "checked", "checkpointed", "noticed", "stopped", "received", "elected", "restarted"}

// shadeOf is the colour of a step, the same in all bars. Steps of other names share the last one.
func shadeOf(step string) int {
	if i := slices.Index(shades, step); i >= 0 {
		return i
	}
	return len(shades)
}

func newFailovers(a remembered, now time.Time) failovers {
	f := failovers{age: newAge(a, now)}
	all, ok := a.Document.([]repmgr.FailoverRecord)
	f.Known = ok
	for i, one := range all {
		if i < failoversShown {
			f.Rows = append(f.Rows, newFailoverRow(one))
		}
	}
	f.More = max(0, len(all)-failoversShown)
	return f
}

func newFailoverRow(f repmgr.FailoverRecord) failoverRow {
	r := failoverRow{FailoverRecord: f, From: registry.NameOf(f.FormerID, f.Former), To: registry.NameOf(f.PrimaryID, f.Primary), Took: "not known"}
	if f.Outage > 0 {
		r.Took = wording.Duration(f.Outage).String()
	}
	switch lost := f.LostBytes; {
	case lost == nil:
	case *lost == 0:
		r.Lost = "no WAL was left behind, as far as it was seen"
	default:
		r.Lost = wording.Bytes(*lost) + " of WAL or more were left behind"
	}
	if notice := f.Outage - registry.StepTime(f, "ruled"); f.Outage > 0 && notice > 0 && registry.StepTime(f, "ruled") > 0 {
		r.Phases = append(r.Phases, phase{Name: "noticing", Evidence: string(f.Reason), Took: notice})
	}
	last := time.Duration(0)
	byTime := func(a, b repmgr.FailoverStep) int { return cmp.Compare(a.After, b.After) }
	for _, s := range slices.SortedStableFunc(slices.Values(f.Steps), byTime) {
		r.Phases = append(r.Phases, phase{Name: cmp.Or(phaseNames[s.Step], s.Step), Step: s.Step, Evidence: s.Evidence, Took: max(0, s.After-last)})
		last = max(last, s.After)
	}
	total := time.Duration(0)
	for _, p := range r.Phases {
		total += p.Took
	}
	end := time.Duration(0)
	for i := range r.Phases {
		p := &r.Phases[i]
		p.X, p.Shade = int(1000*end/max(1, total)), shadeOf(p.Step)
		end += p.Took
		p.End, p.Width = wording.Duration(end), int(1000*end/max(1, total))-p.X
	}
	return r
}

// Short is the time that a phase took, as people read it.
func (p phase) Short() string { return wording.Duration(p.Took).String() }

// examination is what the doctor has found.
type examination struct {
	age
	Known    bool
	Mood     topology.Mood
	Checks   int
	Findings []finding
	Slots    []slot
}

type finding struct {
	doctor.Finding
	Mood  topology.Mood
	About string
}

type slot struct {
	doctor.Pinned
	Left string // how long the disk lasts; empty: not known, or no matter
	Mood topology.Mood
}

func newExamination(a remembered, now time.Time) examination {
	x := examination{age: newAge(a, now), Mood: topology.Well}
	r, ok := a.Document.(doctor.Report)
	if !ok {
		return x
	}
	x.Known, x.Checks = true, r.Checks
	moods := map[doctor.Severity]topology.Mood{doctor.Critical: topology.Bad, doctor.Warning: topology.Doubt}
	x.Mood = cmp.Or(moods[r.Worst()], topology.Well)
	for _, f := range r.Findings {
		one := finding{f, moods[f.Severity], cmp.Or(f.Node, "cluster")}
		if f.Waived != "" {
			one.Mood = topology.Unknown
		}
		x.Findings = append(x.Findings, one)
	}
	for _, p := range r.Slots {
		s := slot{Pinned: p, Mood: topology.Well}
		if p.HoursLeft != nil {
			s.Left = fmt.Sprintf("the disk is full in %.0f hours", *p.HoursLeft)
		}
		if !p.Active {
			s.Mood = topology.Doubt
		}
		x.Slots = append(x.Slots, s)
	}
	return x
}

type doctorPage struct {
	frame
	Doctor examination
}

type planPage struct {
	frame
	Plan    plan.Plan
	Command string

	Scheduled string // one that was asked for already; empty: there is none
	Cancel    string // what takes it back
}

// scheduledText says which switchover is to begin, and when.
func scheduledText(v health.View, h election.Handover) string {
	return wording.Scheduled(v.Name(v.Rule.Primary), v.Name(h.Target), h.Start)
}

// matrixPage is a table: which node reaches which.
type matrixPage struct {
	frame
	Nodes  []report.MatrixNode
	Rows   []matrixRow
	Issues []string
}

type matrixRow struct {
	Name  string
	Cells []matrixCell
}

type matrixCell struct {
	report.Cell
	Mood topology.Mood
}

func newMatrixPage(f frame, m repmgr.Matrix) matrixPage {
	p := matrixPage{frame: f, Nodes: m.Nodes, Issues: m.Issues()}
	moods := map[report.Contact]topology.Mood{report.ContactYes: topology.Well, report.ContactNo: topology.Bad, report.ContactUnknown: topology.Unknown}
	for i, n := range m.Nodes {
		row := matrixRow{Name: n.Name}
		for _, c := range m.Cells[i*len(m.Nodes) : (i+1)*len(m.Nodes)] {
			row.Cells = append(row.Cells, matrixCell{c, moods[c.Contact]})
		}
		p.Rows = append(p.Rows, row)
	}
	return p
}

// The columns of the table of nodes.

// Line is where the WAL of a node ends.
func (n node) Line() string { return shown(n.LSN) }

// BehindText is how much of the WAL of the primary a standby has not received.
func (n node) BehindText() string { return bytesOr(n.Behind, n.Stream != nil) }

// UnplayedText is how much of the WAL of the primary a standby has not replayed.
func (n node) UnplayedText() string { return bytesOr(n.Unplayed, n.Stream != nil) }

func bytesOr(n int64, standby bool) string {
	switch {
	case n >= 0:
		return wording.Bytes(n)
	case standby:
		return "not known"
	}
	return ""
}
