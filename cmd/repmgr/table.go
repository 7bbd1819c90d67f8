package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// writeTable prints repmgr's table: cells left-justified, " | " between them,
// a line of dashes below the header.
func writeTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		}
		fmt.Fprintln(w, strings.TrimRight(" "+strings.Join(cells, " | "), " "))
		if n == 0 {
			for i, width := range widths {
				cells[i] = strings.Repeat("-", width)
			}
			fmt.Fprintln(w, "-"+strings.Join(cells, "-+-")+"-")
		}
	}
}
