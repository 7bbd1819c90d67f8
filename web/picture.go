package web

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/topology"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// pictureOf draws what a view knows. Each node leads to a page of base; empty: to none.
func pictureOf(v health.View, base string) topology.Picture {
	p := topology.Picture{Title: "The nodes of " + scope(v) + ", and which of them receives WAL from which"}
	for _, n := range nodesOf(v) {
		box := topology.Node{ID: n.ID, Name: n.Name, Role: n.Runs, Writes: n.Writes, Votes: n.Votes, Mood: n.Mood, Lines: []string{n.place(), n.Seen}}
		if base != "" && !n.Votes {
			box.Link = base + "/why-not?node=" + url.QueryEscape(n.Name)
		}
		if base != "" && n.Writes {
			box.Link = base + "/why"
		}
		p.Nodes = append(p.Nodes, box)
		if n.Stream != nil {
			p.Streams = append(p.Streams, *n.Stream)
		}
	}
	return p
}

// node is what a view knows of a node, or of the etcd that votes.
type node struct {
	ID       int32
	Name     string
	Runs     string // primary, standby, witness; where it was never seen, what it is registered as
	Writes   bool   // it is the primary in office
	Votes    bool   // it has no data
	Mood     topology.Mood
	Seen     string // how it answers, or how long ago it last did
	Location string
	Priority int
	Timeline wal.Timeline
	LSN      wal.LSN // the end of its WAL
	Behind   int64   // bytes of WAL of the primary that it has not received; -1: not known
	Unplayed int64   // and that it has not replayed; -1: not known
	Sync     string  // of a standby: each commit waits for it (sync), some wait for it (quorum), none does (async)
	Weight   int     // its votes
	Daemon   string  // what its daemon says; empty: it was not asked
	Ballot   string  // whom it has voted for; empty: for nobody, or not known
	Past     *spark  // of the primary how much WAL it wrote, of a standby its lag; nil: not known
	Stream   *topology.Stream
}

// place is where a node is in its timeline, and at which location.
func (n node) place() string {
	var parts []string
	if n.Timeline != 0 {
		parts = append(parts, fmt.Sprintf("timeline %d", n.Timeline))
	}
	if n.LSN != 0 {
		parts = append(parts, n.LSN.String())
	}
	if n.Location != "" && n.Location != "default" {
		parts = append(parts, n.Location)
	}
	return strings.Join(parts, " · ")
}

// nodesOf are the registered nodes in the order of their ids, and then the etcd, where there is one.
func nodesOf(v health.View) (all []node) {
	lead := leader(v)
	for _, r := range v.Records {
		all = append(all, nodeOfView(v, r, lead))
	}
	if p := v.Peer(election.Arbiter); p.Answer != "" {
		weight, _ := v.Rule.Votes([]int32{p.ID})
		n := node{ID: p.ID, Name: "etcd", Runs: "votes", Votes: true, Weight: weight, Behind: -1, Unplayed: -1}
		n.Mood, n.Seen = seen(v, p)
		all = append(all, n)
	}
	return all
}

func nodeOfView(v health.View, r registry.Record, lead int32) node {
	p := peerOfView(v, r, lead)
	n := node{
		ID: p.ID, Name: r.Name, Runs: string(cmp.Or(p.Running, election.Role(r.Role))), Writes: p.ID == lead && lead != 0, Votes: r.Role == registry.RoleWitness,
		Location: r.Location, Priority: r.Priority, Timeline: p.Position.Timeline, LSN: p.Position.LSN, Behind: -1, Unplayed: -1,
	}
	n.Weight, _ = v.Rule.Votes([]int32{p.ID})
	if p.Candidate != "" {
		n.Ballot = fmt.Sprintf("term %d: %s", p.Term, p.Candidate)
	}
	n.Mood, n.Seen = seen(v, p)
	switch {
	case n.Votes:
		n.Runs = "witness"
		return n
	case p.Running == election.Primary && !n.Writes && n.Mood == topology.Well:
		n.Mood, n.Seen = topology.Bad, "runs as a primary that is not in office"
		return n
	case p.Running == election.Primary && v.Rule.Known() && v.Rule.Primary != p.ID && !n.Writes:
		n.Runs = "was primary"
		return n
	case p.Running == election.Primary || n.Writes:
		return n
	case p.ReplayPaused && n.Mood == topology.Well:
		n.Mood, n.Seen = topology.Doubt, "its replay is paused"
	case p.ReplayBlocked != "" && n.Mood == topology.Well:
		n.Mood, n.Seen = topology.Doubt, string(p.ReplayBlocked)
	case p.NoPledge != "" && n.Mood == topology.Well:
		n.Mood, n.Seen = topology.Doubt, "it can not vote: "+p.NoPledge
	}
	end, received, replayed := progress(v, r, lead)
	n.LSN = received
	if !measurable(v, p, lead) {
		end = 0
	}
	if end != 0 && received != 0 {
		n.Behind = max(0, end.Bytes(received))
	}
	if end != 0 && replayed != 0 {
		n.Unplayed = max(0, end.Bytes(replayed))
	}
	if n.Unplayed >= topology.Much && n.Mood == topology.Well {
		n.Seen = "has not replayed " + wording.Bytes(n.Unplayed)
	}
	if n.Unplayed >= topology.Huge && n.Mood == topology.Well {
		n.Mood = topology.Doubt
	}
	each, some := v.WaitsFor(p.ID)
	n.Sync = map[bool]string{true: "sync"}[each] + map[bool]string{true: "quorum"}[some]
	n.Sync = cmp.Or(n.Sync, "async")
	n.Stream = streamTo(r, p, n)
	return n
}

// measurable reports whether a standby can be behind the primary in office, or not: both are seen now, and the WAL of the
// standby is a part of that of the primary.
func measurable(v health.View, standby election.Peer, lead int32) bool {
	primary := peerOfView(v, registry.Record{ID: registry.NodeID(lead)}, lead)
	for _, p := range []election.Peer{standby, primary} {
		if mood, _ := seen(v, p); mood != topology.Well {
			return false
		}
	}
	return lead != 0 && !standby.PositionUnknown && (!v.Automatic || standby.On(v.Rule))
}

// peerOfView is what is known of a node. A daemon that takes no part in elections sees its own server, the primary, and who
// streams from its own.
func peerOfView(v health.View, r registry.Record, lead int32) election.Peer {
	p := v.Peer(int32(r.ID))
	if v.Automatic {
		return p
	}
	switch {
	case r.ID == v.NodeID:
		p.Answer, p.SeenAt, p.Running, p.Position = v.LocalAnswer, v.LocalSeenAt, v.Runs(), v.Local.Position()
		p.Receiving, p.Replayed, p.ReplayPaused = v.Streams(), v.Local.ReplayedLSN, v.Local.ReplayPaused
	case int32(r.ID) == lead:
		p.Answer, p.SeenAt, p.Running, p.Position.LSN = election.Answers, v.Upstream.SeenAt, election.Primary, v.Upstream.LSN
	case !runsPrimary(v) && (r.ID == v.Upstream.ID || v.Upstream.ID == 0 && r.Role == registry.RolePrimary): // it was asked
		p.Answer, p.SeenAt, p.Running = "does not answer as primary", v.Upstream.SeenAt, election.Primary
	case len(registry.SendersOf(v.Local, r.Name)) > 0 && v.LocalAnswer == election.Answers:
		s := registry.SendersOf(v.Local, r.Name)[0]
		p.Answer, p.SeenAt, p.Running, p.Receives, p.Receiving = election.Answers, v.LocalSeenAt, election.Standby, int32(v.NodeID), true
		p.Position, p.Replayed = wal.Position{Timeline: v.Local.Timeline, LSN: s.FlushedLSN}, s.ReplayedLSN
	}
	return p
}

// progress is where the primary is, and what a node has received and replayed of that. 0: not known.
func progress(v health.View, r registry.Record, lead int32) (end, received, replayed wal.LSN) {
	p := peerOfView(v, r, lead)
	end, received, replayed = v.Peer(lead).Position.LSN, p.Position.LSN, p.Replayed
	switch {
	case v.Automatic:
	case v.Runs() == election.Primary: // where the former one was is of no matter
		end = v.Local.CurrentLSN
	default:
		end = v.Upstream.LSN
	}
	if r.ID == v.NodeID {
		end, received, replayed = max(end, v.Upstream.LSN), max(received, v.Local.ReceivedLSN), v.Local.ReplayedLSN
	}
	if p.Idle { // as of an older look, in which it had replayed all
		replayed = max(replayed, received)
	}
	return end, received, replayed
}

// seen says how a node answers. Where none does, what is known of them is old: it is grey.
func seen(v health.View, p election.Peer) (topology.Mood, string) {
	fresh := v.At.Sub(p.SeenAt) <= v.Silence || !v.Automatic && v.At.Sub(p.SeenAt) <= 2*v.Interval+v.Silence
	last := "never seen"
	if !p.SeenAt.IsZero() {
		last = "last seen " + ago(v.At.Sub(p.SeenAt))
	}
	switch {
	case p.Answer == election.Answers && fresh:
		return topology.Well, "answers"
	case p.Answer == "" && !v.Automatic:
		return topology.Unknown, "not asked: failover=manual"
	case p.Answer == "", len(v.Reachable()) == 0 && v.Automatic:
		return topology.Unknown, last
	case p.Answer == election.NoSlots, p.Answer == election.Rejects, p.Answer == election.NotAccepting:
		return topology.Doubt, fmt.Sprintf("%s, %s", p.Answer, last)
	case p.Answer == election.Answers: // it did, and not for long now
		return topology.Bad, last
	}
	return topology.Bad, fmt.Sprintf("%s, %s", p.Answer, last)
}

// streamTo is what leads to a standby: from the node that it receives from, or else from the one that it should.
func streamTo(r registry.Record, p election.Peer, n node) *topology.Stream {
	s := topology.Stream{From: cmp.Or(p.Receives, int32(r.UpstreamID)), To: p.ID, Mood: topology.Well, Label: n.Sync, Behind: n.Behind}
	switch {
	case s.From == 0 || s.From == s.To:
		return nil
	case p.Answer != election.Answers:
		s.Mood, s.Label, s.Behind = topology.Unknown, "not known", -1
	case p.Receiving && s.Behind >= topology.Huge:
		s.Mood = topology.Doubt
	case p.Receiving:
	case p.Archive:
		s.Mood, s.Label = topology.Doubt, "archive"
	default:
		s.Mood, s.Label = topology.Bad, "nothing"
	}
	return &s
}

// ago writes an age as people say it.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "just now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}
