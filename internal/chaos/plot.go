package chaos

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// plot draws a row for each kind of fault and mode, a dot for each outage, on a
// logarithmic axis from 1 ms to 100 s.
func plot(results []Result) string {
	const left, right, top, row, width = 360, 40, 50, 20, 1100
	groups := summarise(results)
	height := top + row*len(groups) + 30
	x := func(ms float64) float64 {
		return left + (width-left-right)*math.Log10(min(max(ms, 1), 1e5))/5
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`, width, height, width, height)
	p(`<rect width="100%%" height="100%%" fill="white"/>`)
	p(`<text x="%d" y="18" font-size="14">Write outage of each fault</text>`, left)
	for i, label := range []string{"1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"} {
		at := x(math.Pow(10, float64(i)))
		p(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, at, top-8, at, height-25)
		p(`<text x="%.1f" y="%d" text-anchor="middle" fill="#555">%s</text>`, at, top-14, label)
	}
	for i, g := range groups {
		y := float64(top + row*i + row/2)
		colour := map[string]string{"quorum": "#1f6fb4", "off": "#e08214"}[g.Mode]
		if g.Suite != "ours" {
			colour = "#777"
		}
		label := g.Nemesis + ", " + g.Mode
		if g.Suite != "ours" {
			label = g.Suite + ": " + g.Nemesis
		}
		p(`<text x="%d" y="%.1f" text-anchor="end">%s (%d)</text>`, left-10, y+4, html.EscapeString(label), g.N)
		for j, ms := range g.Outages {
			p(`<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s" fill-opacity="0.5"/>`, x(ms), y+float64(j*7%11)-5, colour)
		}
		median := x(quantile(g.Outages, 0.5))
		p(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="black" stroke-width="2"/>`, median, y-7, median, y+7)
	}
	p(`<text x="%d" y="%d" fill="#555">blue: synchronous_mode=quorum, orange: off, grey: repmgr 5; the bar is the median</text>`, left, height-8)
	p(`</svg>`)
	return b.String()
}
