package topology

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// pictures are five states of a cluster.
func pictures() map[string]Picture {
	primary := Node{ID: 1, Name: "node1", Role: "primary", Writes: true, Mood: Well, Lines: []string{"timeline 4 · 3/5034A70", "answers"}, Link: "/ui/why"}
	standby := func(id int32, m Mood, seen string) Node {
		name := "node" + registry.NodeID(id).String()
		return Node{ID: id, Name: name, Role: "standby", Mood: m, Lines: []string{"timeline 4 · 3/5034A70", seen}, Link: "/ui/why-not?node=" + name}
	}
	witness := Node{ID: 9, Name: "witness", Role: "witness", Votes: true, Mood: Well, Lines: []string{"", "answers"}}
	down := primary
	down.Writes, down.Mood, down.Lines = false, Unknown, []string{"timeline 4 · 3/5034A70", "last seen 12 min ago"}
	return map[string]Picture{
		"healthy": {
			Title: "healthy", Nodes: []Node{primary, standby(2, Well, "answers"), standby(3, Well, "answers")},
			Streams: []Stream{{From: 1, To: 2, Mood: Well, Label: "quorum"}, {From: 1, To: 3, Mood: Well, Label: "quorum", Behind: 8192}},
		},
		"lagging": {
			Title: "a standby is behind", Nodes: []Node{primary, standby(2, Well, "answers"), standby(3, Doubt, "has not replayed 312 MB")},
			Streams: []Stream{{From: 1, To: 2, Mood: Well, Label: "sync", Behind: 2 << 20}, {From: 1, To: 3, Mood: Doubt, Label: "async", Behind: 300 << 20}},
		},
		"cascade": {
			Title: "a cascade and a witness", Nodes: []Node{primary, standby(2, Well, "answers"), standby(3, Well, "answers"), standby(4, Well, "answers"), witness},
			Streams: []Stream{{From: 1, To: 2, Mood: Well, Label: "sync"}, {From: 2, To: 4, Mood: Well, Label: "async"}, {From: 1, To: 3, Mood: Doubt, Label: "archive", Behind: -1}},
		},
		"dead": {
			Title: "a standby is dead", Nodes: []Node{primary, standby(2, Well, "answers"), standby(3, Bad, "refuses connections, last seen 3 min ago")},
			Streams: []Stream{{From: 1, To: 2, Mood: Well, Label: "sync"}, {From: 1, To: 3, Mood: Unknown, Label: "not known", Behind: -1}},
		},
		"down": {
			Title: "no node answers", Nodes: []Node{down, standby(2, Unknown, "last seen 12 min ago"), standby(3, Unknown, "never seen")},
			Streams: []Stream{{From: 1, To: 2, Mood: Unknown, Label: "not known", Behind: 0}, {From: 1, To: 3, Mood: Unknown, Label: "not known", Behind: -1}},
		},
		"none": {Title: "no node is known"},
	}
}

func TestSVG(t *testing.T) {
	t.Parallel()
	for name, p := range pictures() {
		got := p.SVG()
		wellFormed(t, got)
		path := filepath.Join("testdata", name+".svg")
		if *update {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(path, got, 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), name)
		require.NotContains(t, string(got), "style") // a content security policy could forbid it
	}
}

func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err, "%s", svg)
	}
}

// What other machines say stays text.
func TestSVG_EscapesAllText(t *testing.T) {
	t.Parallel()
	const evil = "</text><script>alert(1)</script>\"'&\x00\x1b"
	p := Picture{
		Title: evil, Nodes: []Node{{ID: 1, Name: evil, Role: evil, Mood: evil, Lines: []string{evil, evil, evil}, Link: evil}, {ID: 2, Name: evil}},
		Streams: []Stream{{From: 1, To: 2, Mood: evil, Label: evil}},
	}
	got := p.SVG()
	wellFormed(t, got)
	require.NotContains(t, string(got), "<script")
}

// Every node is drawn once, whatever the streams are.
func TestSVG_DrawsEachNodeOnce(t *testing.T) {
	t.Parallel()
	nodes := []Node{{ID: 1}, {ID: 2}, {ID: 3}}
	for name, streams := range map[string][]Stream{
		"none": nil, "a circle": {{From: 1, To: 2}, {From: 2, To: 3}, {From: 3, To: 1}}, "from itself": {{From: 2, To: 2}},
		"two sources": {{From: 1, To: 3}, {From: 2, To: 3}}, "nodes that are not there": {{From: 7, To: 1}, {From: 2, To: 8}}, "a circle beside": {{From: 2, To: 3}, {From: 3, To: 2}},
	} {
		p := Picture{Nodes: nodes, Streams: streams}
		require.Equal(t, 3, bytes.Count(p.SVG(), []byte(`class="box"`)), name)
		require.Equal(t, p.SVG(), p.SVG(), name)
	}
}

// Two long names do not become the same.
func TestShortenName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "db-prod-eu-west-1-a", shortenName("db-prod-eu-west-1-a"))
	require.Equal(t, "db-produc…-west-1-a", shortenName("db-production-eu-west-1-a"))
	require.Equal(t, "db-produc…-west-1-b", shortenName("db-production-eu-west-1-b"))
}

// The primary comes first, its standbys below it, and who only votes comes last.
func TestRows(t *testing.T) {
	t.Parallel()
	p := Picture{
		Nodes:   []Node{{ID: 5, Votes: true}, {ID: 4}, {ID: 3}, {ID: 2}, {ID: 1, Writes: true}, {ID: 6}},
		Streams: []Stream{{From: 1, To: 2}, {From: 2, To: 4}, {From: 1, To: 3}},
	}
	var got [][2]int
	for _, r := range p.rows() {
		got = append(got, [2]int{int(r.node.ID), r.depth})
	}
	require.Equal(t, [][2]int{{1, 0}, {2, 1}, {4, 2}, {3, 1}, {6, 0}, {5, 0}}, got)
}

func TestOfStatus(t *testing.T) {
	t.Parallel()
	lag := int64(20 << 20)
	view := func(id registry.NodeID, role registry.Role, status, upstream, attached string) report.NodeView {
		v := report.NodeView{Record: registry.Record{ID: id, Name: "node" + id.String(), Role: role, UpstreamID: 1, Location: "ams"}, Reach: postgres.ReachOK, Running: role, Status: status, Upstream: upstream, Attached: attached, Timeline: 4}
		if role == registry.RolePrimary {
			v.UpstreamID = 0
		}
		return v
	}
	behind := view(2, registry.RoleStandby, "running", "node1", "streaming")
	behind.Sync, behind.Lag = "quorum", &lag
	gone := view(4, registry.RoleStandby, "? unreachable", "? node1", "")
	gone.Reach, gone.Running = postgres.ReachTimeout, ""
	p := OfStatus(report.ClusterStatus{
		Nodes: []report.NodeView{
			view(1, registry.RolePrimary, "* running", "", ""), behind, view(3, registry.RoleStandby, "running", "! node2", "streaming"),
			gone, view(5, registry.RoleStandby, "running", "! node1", ""), view(6, registry.RoleWitness, "* running", "node1", ""),
		},
		Findings: []report.Finding{{Code: report.WrongUpstream, NodeID: 3}},
	})
	require.Equal(t, []Stream{
		{From: 1, To: 2, Mood: Doubt, Label: "quorum", Behind: lag},
		{From: 2, To: 3, Mood: Well, Behind: -1},
		{From: 1, To: 4, Mood: Unknown, Label: "not known", Behind: -1},
		{From: 1, To: 5, Mood: Bad, Label: "nothing", Behind: -1},
	}, p.Streams)
	var moods []Mood
	for _, n := range p.Nodes {
		moods = append(moods, n.Mood)
	}
	require.Equal(t, []Mood{Well, Well, Doubt, Bad, Well, Well}, moods)
	require.True(t, p.Nodes[0].Writes)
	require.True(t, p.Nodes[5].Votes)
	require.Equal(t, []string{"timeline 4, ams", "unreachable"}, p.Nodes[3].Lines)
}
