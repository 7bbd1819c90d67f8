package main

import (
	"context"
	encoding "encoding/csv"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func (cmd *serviceStatus) needsConfig() bool { return !cmd.given() }

func (cmd *serviceStatus) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	st, err := c.ServiceStatus(ctx)
	if err != nil {
		return err
	}
	return cmd.tell(a, st)
}

// tell prints the answer, and says by its exit code whether there is exactly one primary.
func (cmd *serviceStatus) tell(a *app, st repmgr.ServiceStatus) error {
	if err := a.answerAbove(st, func(w io.Writer) { cmd.print(w, st) }, st.Issues, cmd.CSV); err != nil {
		return err
	}
	if err := a.issues("following issues were detected", st.Issues, cmd.CSV); !st.OnePrimary() {
		return err
	}
	return nil // as in repmgr 5 the others are no failure
}

func (cmd *serviceStatus) print(w io.Writer, st repmgr.ServiceStatus) {
	if cmd.CSV {
		out := encoding.NewWriter(w)
		for _, n := range st.Nodes {
			_ = out.Write(cmd.csvRow(n)) // what it writes to is memory
		}
		out.Flush()
		return
	}
	header := []string{"ID", "Name", "Role", "Status", "Upstream", "repmgrd", "PID", "Paused?", "Upstream last seen"}
	switch {
	case cmd.Compact:
		header[8] = "Upstr. last"
	case cmd.Detail:
		header = []string{
			"ID", "Name", "Role", "Status", "Upstream", "Location", "Priority", "repmgrd", "PID", "Paused?", "Upstream last seen",
			"Mode", "Phase", "Reason", "Lease", "Term",
		}
	}
	rows := [][]string{header}
	for _, n := range st.Nodes {
		row := []string{n.ID.String(), n.Name, string(n.Role), marked(n.Status), n.Upstream}
		if cmd.Detail {
			row = append(row, n.Location, fmt.Sprint(n.Priority))
		}
		row = append(row, cmd.daemonCells(n)...)
		if cmd.Detail {
			row = append(row, detailCells(n, " s")...)
		}
		rows = append(rows, row)
	}
	writeTable(w, rows)
	if text := st.RuleText(); text != "" {
		fmt.Fprintf(w, "\n%s\n", text)
	}
	if st.Scheduled != nil {
		fmt.Fprintf(w, "\n%s\nTo take it back: repmgr standby switchover --cancel\n", st.Scheduled)
	}
}

// daemonCells are the columns repmgrd, PID, Paused? and Upstream last seen.
func (cmd *serviceStatus) daemonCells(n repmgr.ServiceNode) []string {
	cells := []string{"n/a", "n/a", "n/a", "n/a"}
	if n.Monitored != nil {
		cells[0] = map[bool]string{true: "running", false: "not running"}[*n.Monitored]
	}
	if n.Paused != nil {
		cells[2] = map[bool]string{true: "yes", false: "no"}[*n.Paused]
	}
	ago := func(seconds int) string {
		unit := "second(s)"
		if cmd.Compact {
			unit = "sec(s)"
		}
		return fmt.Sprintf("%d %s ago", seconds, unit)
	}
	if d := n.Foreign; d != nil && n.Monitor == nil {
		cells[0], cells[1], cells[2] = "running", fmt.Sprint(d.PID), map[bool]string{true: "yes", false: "no"}[d.Paused]
		if d.UpstreamSeen >= 0 && n.Role != repmgr.RolePrimary {
			cells[3] = ago(d.UpstreamSeen)
		}
	}
	if n.Monitor == nil {
		return cells
	}
	if n.Monitor.PID > 0 {
		cells[1] = fmt.Sprint(n.Monitor.PID)
	}
	if d, ok := n.Monitor.SeenAgo(); ok {
		cells[3] = ago(int(d.Seconds()))
	}
	return cells
}

// detailCells are the columns Mode, Phase, Reason, Lease and Term.
func detailCells(n repmgr.ServiceNode, unit string) []string {
	cells := make([]string, 5)
	if m := n.Monitor; m != nil {
		cells[0], cells[1], cells[2] = string(m.Mode), m.Phase, m.Reason
		switch {
		case m.LeaseLeft != nil && unit != "" && m.Lease() == "":
			cells[3] = "holds"
		case m.LeaseLeft != nil:
			cells[3] = fmt.Sprintf("%.1f%s", max(0, *m.LeaseLeft), unit)
		}
	}
	if n.Rule != nil {
		cells[4] = fmt.Sprint(n.Rule.Term)
	}
	return cells
}

func (cmd *serviceStatus) csvRow(n repmgr.ServiceNode) []string {
	number := map[bool]string{true: "1", false: "0"}
	row := []string{n.ID.String(), n.Name, string(n.Role), number[n.Reach.Answers()], "-1", "-1", "-1", fmt.Sprint(n.Priority), "-1", n.Location}
	if n.Monitored != nil {
		row[4] = number[*n.Monitored]
	}
	if n.Paused != nil {
		row[6] = number[*n.Paused]
	}
	if d := n.Foreign; d != nil && n.Monitor == nil {
		row[4], row[5], row[6] = "1", fmt.Sprint(d.PID), number[d.Paused]
		if d.UpstreamSeen >= 0 && n.Role != repmgr.RolePrimary {
			row[8] = fmt.Sprint(d.UpstreamSeen)
		}
	}
	if n.Monitor != nil {
		if n.Monitor.PID > 0 {
			row[5] = fmt.Sprint(n.Monitor.PID)
		}
		if ago, ok := n.Monitor.SeenAgo(); ok {
			row[8] = fmt.Sprint(int(ago.Seconds()))
		}
	}
	if cmd.Detail {
		row = append(row, detailCells(n, "")...)
	}
	return row
}

func (cmd *pauseService) needsConfig() bool { return !cmd.given() }

func (cmd *servicePause) Run(ctx context.Context, a *app) error {
	return a.pause(cmd.pauseService, "paused", func(c *repmgr.Cluster, o repmgr.PauseOptions) (repmgr.PauseResult, error) { return c.Pause(ctx, o) })
}

func (cmd *serviceUnpause) Run(ctx context.Context, a *app) error {
	return a.pause(cmd.pauseService, "unpaused", func(c *repmgr.Cluster, o repmgr.PauseOptions) (repmgr.PauseResult, error) { return c.Unpause(ctx, o) })
}

func (a *app) pause(cmd pauseService, done string, do func(*repmgr.Cluster, repmgr.PauseOptions) (repmgr.PauseResult, error)) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	res, failed := do(c, repmgr.PauseOptions{DryRun: cmd.DryRun})
	if failed != nil && len(res.Nodes) == 0 {
		return failed // it did not begin
	}
	for _, n := range res.Nodes {
		switch {
		case n.Error != "":
			a.notice(fmt.Sprintf("node %d (%s) not %s", n.ID, n.Name, done))
		case cmd.DryRun:
			a.log.Info(fmt.Sprintf("node %d (%s) would be %s", n.ID, n.Name, done))
		default:
			a.notice(fmt.Sprintf("node %d (%s) %s", n.ID, n.Name, done))
		}
	}
	if res.Warning != "" && !a.json {
		a.log.Warn(res.Warning)
	}
	if err := a.answer(res, nil); err != nil {
		return err
	}
	switch {
	case failed == nil:
		return nil
	case a.json: // the answer has it
		return &exitError{code: cli.ExitPause}
	default:
		return &exitError{cli.ExitPause, failed}
	}
}

func (cmd daemonControl) options() repmgr.DaemonOptions {
	o := repmgr.DaemonOptions{DryRun: cmd.DryRun}
	if cmd.Wait.N != nil {
		o.Wait = time.Duration(*cmd.Wait.N) * time.Second
	}
	if cmd.NoWait || cmd.Wait.N != nil && *cmd.Wait.N <= 0 {
		o.Wait = -1 // to the library 0 is the default
	}
	return o
}

func (cmd *daemonStart) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.StartDaemon(ctx, cmd.options())
	return a.controlled(res, err, "started")
}

func (cmd *daemonStop) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.StopDaemon(ctx, cmd.options())
	return a.controlled(res, err, "stopped")
}

// controlled says what became of the daemon.
func (a *app) controlled(res repmgr.DaemonResult, err error, done string) error {
	switch {
	case errors.Is(err, repmgr.ErrConfig), errors.Is(err, repmgr.ErrConnect), errors.Is(err, repmgr.ErrQuery):
		return err
	case err != nil:
		return &exitError{cli.ExitDaemon, err}
	case res.DryRun:
		a.log.Info("it would run: " + res.Command)
	case res.PID > 0:
		a.notice(fmt.Sprintf("repmgrd %s, PID %d", done, res.PID))
	default:
		a.notice("command run: " + res.Command)
	}
	return a.answer(res, nil)
}
