// Package topology draws a cluster as SVG: a box for each node, and an arrow for each stream of WAL. It is pure: what is
// drawn comes in, and the same picture gives the same bytes.
package topology

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/internal/wording"
)

// Mood is how well something is. It decides on the colour. The value is also the class of what is drawn.
type Mood string

const (
	Well    Mood = "well"
	Doubt   Mood = "doubt"   // it works, and somebody should look
	Bad     Mood = "bad"     // it does not work
	Unknown Mood = "unknown" // it was not seen for long, or never
)

// Picture is what is drawn. The text in it may come from anywhere: it is escaped.
type Picture struct {
	Title   string // for those who can not see it
	Nodes   []Node
	Streams []Stream
}

// Node is a box.
type Node struct {
	ID     int32
	Name   string
	Role   string // a word or two: primary, standby, witness, was primary
	Writes bool   // the one that may be written to: it is emphasized
	Votes  bool   // it has no data, only a vote: it stands below the others
	Mood   Mood
	Lines  []string // two at most
	Link   string   // the address that a click leads to; empty: none
}

// Stream is an arrow: To receives the WAL of From, or should.
type Stream struct {
	From, To int32
	Mood     Mood   // Bad and Unknown are drawn with a broken line
	Label    string // above the line, such as "sync"; ten characters have room
	Behind   int64  // bytes that To has not got, below the line; the more, the thicker the line; -1: not known
}

// Much and Huge are the bytes behind from which on a stream is thicker, and very thick.
const (
	Much = 1 << 20
	Huge = 16 << 20
)

// The measures of the picture. A standby stands below its upstream, and further to the right, so that three levels of
// cascading fit the width of a telephone.
const (
	margin    = 6
	boxWidth  = 232
	boxHeight = 62
	gap       = 16
	indent    = 96 // of each level, with room for the labels of an arrow
	trunk     = 20 // where the line begins that leads from a node to its standbys
)

// colours are those of a light page. The page of the dashboard has rules for the classes, with those of a dark one.
var colours = map[Mood]string{Well: "#1a7f37", Doubt: "#9a6700", Bad: "#cf222e", Unknown: "#6e7781"}

func colour(m Mood) string { return cmp.Or(colours[m], colours[Unknown]) }

// row is a node in its place.
type row struct {
	node  Node
	depth int
	in    *Stream // what leads to it; nil: nothing
	from  int     // the row of its upstream, with in
}

// rows puts each node below its upstream. A node that nothing leads to begins a tree; so does one of a circle.
func (p Picture) rows() (rows []row) {
	placed := map[int32]bool{}
	node := func(id int32) *Node {
		if i := slices.IndexFunc(p.Nodes, func(n Node) bool { return n.ID == id }); i >= 0 {
			return &p.Nodes[i]
		}
		return nil
	}
	fed := func(id int32) bool {
		return slices.ContainsFunc(p.Streams, func(s Stream) bool { return s.To == id && s.From != id && node(s.From) != nil })
	}
	var place func(r row)
	place = func(r row) {
		if placed[r.node.ID] {
			return
		}
		placed[r.node.ID] = true
		at := len(rows)
		rows = append(rows, r)
		for i, s := range p.Streams {
			if to := node(s.To); s.From == r.node.ID && to != nil {
				place(row{*to, r.depth + 1, &p.Streams[i], at})
			}
		}
	}
	for _, first := range []func(Node) bool{
		func(n Node) bool { return n.Writes },
		func(n Node) bool { return !n.Votes && !fed(n.ID) },
		func(n Node) bool { return !n.Votes },
		func(Node) bool { return true },
	} {
		for _, n := range p.Nodes {
			if first(n) {
				place(row{node: n})
			}
		}
	}
	return rows
}

func (r row) x() int { return margin + r.depth*indent }

func y(at int) int { return margin + at*(boxHeight+gap) }

// SVG is the picture as a document of its own, which may also stand in an HTML page. It has no style element and no
// script, so that it is shown under every content security policy.
func (p Picture) SVG() []byte {
	rows := p.rows()
	width, height := 2*margin+boxWidth, 2*margin+boxHeight
	for at, r := range rows {
		width, height = max(width, r.x()+boxWidth+margin), y(at)+boxHeight+margin
	}
	var b bytes.Buffer
	out := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	out(`<svg xmlns="http://www.w3.org/2000/svg" class="topology" role="img" aria-label="%s" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, sans-serif">`,
		escape(p.Title), width, height, width, height)
	out(`<title>%s</title>`, escape(p.Title))
	out(`<rect class="paper" width="%d" height="%d" fill="#ffffff"/>`, width, height)
	if len(rows) == 0 {
		out(`<text class="small" x="%d" y="%d" font-size="12" fill="#59636e">No node is known.</text>`, margin+trunk, margin+boxHeight/2)
	}
	for at := range rows {
		drawTrunk(out, rows, at)
	}
	for at, r := range rows {
		if r.in != nil {
			drawStream(out, rows[r.from].x()+trunk, r.x(), y(at)+boxHeight/2, *r.in)
		}
		drawNode(out, r.x(), y(at), r.node)
	}
	out(`</svg>`)
	return b.Bytes()
}

// drawTrunk draws the line that leads down from a node, as far as the last of its standbys.
func drawTrunk(out func(string, ...any), rows []row, at int) {
	last := at
	for i, r := range rows {
		if r.in != nil && r.from == at {
			last = i
		}
	}
	if last > at {
		x := rows[at].x() + trunk
		out(`<path class="trunk" d="M%d %dV%d" fill="none" stroke="#8c959f" stroke-width="2"/>`, x, y(at)+boxHeight, y(last)+boxHeight/2)
	}
}

// drawStream draws the arrow from the trunk at x0 to the box at x1.
func drawStream(out func(string, ...any), x0, x1, y int, s Stream) {
	thick, dash, c := "2", "", colour(s.Mood)
	switch {
	case s.Behind >= Huge:
		thick = "6"
	case s.Behind >= Much:
		thick = "4"
	}
	if s.Mood == Bad || s.Mood == Unknown {
		thick, dash = "2", ` stroke-dasharray="5 4"`
	}
	out(`<g class="stream %s">`, escape(string(s.Mood)))
	out(`<path class="line" d="M%d %dH%d" fill="none" stroke="%s" stroke-width="%s"%s/>`, x0, y, x1-8, c, thick, dash)
	out(`<path class="head" d="M%d %dl-10 -6v12z" fill="%s"/>`, x1-1, y, c)
	label := func(text string, y int) {
		if text != "" {
			out(`<text class="small" x="%d" y="%d" font-size="10.5" text-anchor="middle" fill="#59636e">%s</text>`, (x0+x1-8)/2, y, escape(shorten(text, 12)))
		}
	}
	label(s.Label, y-7)
	if s.Behind >= 0 {
		label(wording.Bytes(s.Behind), y+16)
	}
	out(`</g>`)
}

// drawNode draws a box. It is an svg element of its own, which cuts off what is too wide.
func drawNode(out func(string, ...any), x, y int, n Node) {
	end := "</g>"
	if n.Link != "" {
		out(`<a href="%s">`, escape(n.Link))
		end += "</a>"
	}
	class, border, stripe := "node "+string(n.Mood), "1", colour(n.Mood)
	if n.Writes {
		class, border = class+" writes", "2"
	}
	out(`<g class="%s"><title>%s</title>`, escape(class), escape(strings.Join(append([]string{n.Name, n.Role}, n.Lines...), "\n")))
	out(`<rect class="box" x="%d" y="%d" width="%d" height="%d" rx="6" fill="#ffffff" stroke="%s" stroke-width="%s"/>`, x, y, boxWidth, boxHeight, stripe, border)
	out(`<rect class="stripe" x="%d" y="%d" width="5" height="%d" rx="2" fill="%s"/>`, x, y, boxHeight, stripe)
	out(`<svg x="%d" y="%d" width="%d" height="%d">`, x+8, y, boxWidth-16, boxHeight)
	out(`<text class="name" x="6" y="21" font-size="14" font-weight="600" fill="#1f2328">%s</text>`, escape(shortenName(n.Name)))
	weight := "400"
	if n.Writes {
		weight = "700"
	}
	out(`<text class="role" x="%d" y="21" font-size="11.5" font-weight="%s" text-anchor="end" fill="%s">%s</text>`, boxWidth-20, weight, stripe, escape(shorten(n.Role, 11)))
	lines := slices.DeleteFunc(slices.Clone(n.Lines), func(line string) bool { return line == "" })
	for i, line := range lines[:min(2, len(lines))] {
		out(`<text class="small" x="6" y="%d" font-size="11" fill="#59636e">%s</text>`, 38+15*i, escape(shorten(line, 35)))
	}
	out(`</svg>%s`, end)
}

// shorten keeps so many characters of a text, and shows where something is missing.
func shorten(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return text
}

// shortenName makes a name fit its box. Names of nodes differ at the end more often than in the middle.
func shortenName(name string) string {
	if r := []rune(name); len(r) > 19 {
		return string(r[:9]) + "…" + string(r[len(r)-9:])
	}
	return name
}

// escape makes a text one of XML. What XML can not hold becomes a replacement character.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder takes everything
	return b.String()
}
