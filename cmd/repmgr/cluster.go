package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/topology"
)

func (c *csv) asCSV() *bool { return &c.CSV }

func (cmd *clusterShow) needsConfig() bool { return !cmd.given() }

func (cmd *clusterShow) check() (faults []string) {
	if cmd.SVG && cmd.CSV {
		faults = append(faults, "options --svg and --csv exclude each other")
	}
	return faults
}

func (cmd *clusterShow) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if cmd.SVG && !a.json {
		if err := a.write(func(w io.Writer) { _, _ = w.Write(topology.OfStatus(st).SVG()) }); err != nil {
			return err
		}
		return a.issues("following issues were detected", st.Issues, false)
	}
	if err := a.answerAbove(st, func(w io.Writer) { cmd.print(w, st) }, st.Issues, cmd.CSV); err != nil {
		return err
	}
	return a.issues("following issues were detected", st.Issues, cmd.CSV)
}

// answerAbove is answer with a blank line behind it, where issues follow.
func (a *app) answerAbove(v any, print func(io.Writer), issues []string, csv bool) error {
	return a.answer(v, func(w io.Writer) {
		print(w)
		if len(issues) > 0 && !a.Terse && !csv {
			fmt.Fprintln(w)
		}
	})
}

func (cmd *clusterShow) print(w io.Writer, st repmgr.ClusterStatus) {
	if cmd.CSV {
		for _, n := range st.Nodes {
			available, recovery := -1, -1
			if n.Reach == repmgr.ReachOK {
				available = 0
			}
			switch n.Running {
			case repmgr.RolePrimary:
				recovery = 0
			case repmgr.RoleStandby:
				recovery = 1
			}
			fmt.Fprintf(w, "%d,%d,%d\n", n.ID, available, recovery)
		}
		return
	}
	header := []string{"ID", "Name", "Role", "Status", "Upstream", "Location", "Priority", "Timeline"}
	if cmd.Compact {
		header[6], header[7] = "Prio.", "TLI"
	}
	if cmd.Detail {
		header = append(header, "Answer")
	}
	if !cmd.Compact {
		header = append(header, "Connection string")
	}
	rows := [][]string{header}
	for _, n := range st.Nodes {
		timeline := "?"
		switch {
		case n.Role == repmgr.RoleWitness:
			timeline = "n/a"
		case n.Timeline != 0:
			timeline = fmt.Sprint(n.Timeline)
		}
		row := []string{n.ID.String(), n.Name, string(n.Role), marked(n.Status), n.Upstream, n.Location, fmt.Sprint(n.Priority), timeline}
		if cmd.Detail {
			row = append(row, string(n.Reach))
		}
		if !cmd.Compact {
			row = append(row, repmgr.Redact(n.Conninfo))
		}
		rows = append(rows, row)
	}
	writeTable(w, rows)
}

// marked is the Status cell as repmgr prints it: what has no marker stands under the others.
func marked(status string) string {
	if status != "" && !strings.ContainsAny(status[:1], "*!?-") {
		return "  " + status
	}
	return status
}

// issues reports what is wrong below an answer: on standard error, so that the
// answer stays as it is, and in the exit code.
func (a *app) issues(heading string, issues []string, csv bool) error {
	if len(issues) == 0 {
		return nil
	}
	if !a.Terse && !csv && !a.json {
		text := heading
		for _, issue := range issues {
			text += "\n  - " + issue
		}
		a.log.Warn(text)
	}
	return errIssues
}

func (cmd *clusterEvent) needsConfig() bool { return !cmd.given() }

func (cmd *clusterEvent) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	f := repmgr.EventFilter{NodeID: repmgr.NodeID(cmd.NodeID), Type: repmgr.EventType(cmd.Event), Limit: cmd.Limit}
	if cmd.NodeID == 0 {
		f.Node = cmd.NodeName
	}
	if cmd.All && !a.line.Has("limit") {
		f.Limit = 0
	}
	events, err := c.Events(ctx, f)
	if err != nil {
		return err
	}
	doc := struct {
		Events []repmgr.Event `json:"events"`
	}{append([]repmgr.Event{}, events...)}
	return a.answer(doc, func(w io.Writer) { cmd.print(w, events) })
}

func (cmd *clusterEvent) print(w io.Writer, events []repmgr.Event) {
	header := []string{"Node ID", "Name", "Event", "OK", "Timestamp", "Details"}
	if cmd.Compact || cmd.CSV {
		header = header[:5]
	}
	rows := [][]string{header}
	for _, e := range events {
		ok := "f"
		if e.Success {
			ok = "t"
		}
		row := []string{e.NodeID.String(), e.Node, string(e.Type), ok, e.At.Local().Format(time.DateTime), e.Details}
		rows = append(rows, row[:len(header)])
	}
	switch {
	case cmd.CSV:
		for _, r := range rows[1:] {
			fmt.Fprintf(w, "%s,%s,%s,%s,%s\n", r[0], r[1], r[2], r[3], r[4])
		}
	case len(events) == 0:
		fmt.Fprintln(w, "no matching events found")
	default:
		writeTable(w, rows)
	}
}

func (cmd *clusterCleanup) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Cleanup(ctx, repmgr.CleanupOptions{KeepDays: cmd.KeepHistory, NodeID: repmgr.NodeID(cmd.NodeID), DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	if cmd.DryRun {
		a.log.Info(fmt.Sprintf("%d rows of monitoring history would be deleted", res.Deleted))
	} else {
		a.notice(fmt.Sprintf("%d rows of monitoring history deleted", res.Deleted))
	}
	return a.answer(res, nil)
}
