package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
	"github.com/pgrepmgr/repmgr/plan"
)

func (cmd *nodeDrain) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.Drain(ctx, repmgr.DrainOptions{Timeout: time.Duration(cmd.Timeout) * time.Second, Force: cmd.Force, DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	sw := res.Switchover
	switch {
	case res.DryRun && sw != nil:
		a.log.Info(fmt.Sprintf("%s would be promoted to primary; this node would become its standby", sw.To))
		a.log.Info("prerequisites for executing NODE DRAIN are met")
	case res.DryRun:
		a.log.Info("this node is not the primary: nothing would be done but wait until the others can do without it")
	case sw != nil:
		a.notice("NODE DRAIN has completed successfully", "detail", fmt.Sprintf("%s is the primary now, in term %d; this node may be stopped", sw.To, sw.Term))
	default:
		a.notice("NODE DRAIN has completed successfully", "detail", "this node is not the primary, and may be stopped")
	}
	return a.answer(res, nil)
}

func (cmd *clusterRestart) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	o := repmgr.RestartOptions{Force: cmd.Force, Pending: cmd.Pending, Anew: cmd.Anew, Timeout: time.Duration(cmd.Timeout) * time.Second, DryRun: cmd.DryRun}
	if cmd.Primary != "shorter" {
		o.Primary = repmgr.RestartHow(cmd.Primary)
	}
	for _, text := range cmd.Node {
		id, err := nodeCalled(ctx, c, "--node", text)
		if err != nil {
			return err
		}
		o.Nodes = append(o.Nodes, id)
	}
	res, err := c.RollingRestart(ctx, o)
	for _, r := range res.Skipped {
		a.log.Info(fmt.Sprintf("%s was restarted by a command that did not end: it is left out", r), "hint", "Use --anew to begin with the first node.")
	}
	for _, w := range res.Plan.Warnings {
		a.log.Warn(w.String())
	}
	if err != nil {
		return err
	}
	switch {
	case len(res.Plan.Steps) == 0:
		a.notice("there is nothing to restart")
	case res.DryRun:
		a.tellSteps(res.Plan)
		a.log.Info("prerequisites for executing CLUSTER RESTART are met")
	default:
		a.notice("CLUSTER RESTART has completed successfully", "detail", fmt.Sprintf("%d servers were restarted", len(res.Restarted)))
	}
	return a.answer(res, func(w io.Writer) { cmd.print(w, res) })
}

func (cmd *clusterRestart) print(w io.Writer, res repmgr.RestartResult) {
	if len(res.Restarted) == 0 {
		return
	}
	rows := [][]string{{"ID", "Name", "How", "Down", "Back after"}}
	for _, n := range res.Restarted {
		down := "?"
		if n.How == repmgr.RestartInPlace {
			down = n.Down.Round(time.Millisecond).String()
		}
		rows = append(rows, []string{n.ID.String(), n.Name, string(n.How), down, n.Took.Round(time.Millisecond).String()})
	}
	writeTable(w, rows)
}

// tellSteps says what a plan would do.
func (a *app) tellSteps(p plan.Plan) {
	for i, s := range p.Steps {
		a.log.Info(fmt.Sprintf("step %d, %s, on %s: %s", i+1, s.Name, s.Node, s.Effect))
	}
}

func (cmd *nodeService) check() (faults []string) {
	if cmd.Action == "" && !cmd.ListActions {
		faults = append(faults, "option --action=ACTION or --list-actions is needed")
	}
	return faults
}

func (cmd *nodeService) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	if cmd.ListActions {
		return cmd.list(a, c)
	}
	if err := a.refuseRoot(); err != nil {
		return err
	}
	action := repmgr.ServiceAction(cmd.Action)
	if cmd.DryRun && cmd.Checkpoint {
		a.log.Info("a CHECKPOINT would be issued here")
	}
	res, err := c.ControlServer(ctx, action, repmgr.ServiceOptions{Checkpoint: cmd.Checkpoint, Force: cmd.Force, DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	if cmd.DryRun {
		a.log.Info(fmt.Sprintf("would execute server command %q", res.Command))
	}
	return a.answer(res, nil)
}

// list prints the commands, as repmgr 5 does.
func (cmd *nodeService) list(a *app, c *repmgr.Cluster) error {
	commands := map[string]string{}
	for _, action := range repmgr.ServiceActions {
		command, err := c.ServiceCommand(action)
		if err != nil {
			return err
		}
		commands[string(action)] = command
	}
	if cmd.Action != "" {
		return a.answer(map[string]string{cmd.Action: commands[cmd.Action]}, func(w io.Writer) { fmt.Fprintln(w, commands[cmd.Action]) })
	}
	return a.answer(commands, func(w io.Writer) {
		fmt.Fprint(w, "Following commands would be executed for each action:\n\n")
		for _, action := range repmgr.ServiceActions {
			fmt.Fprintf(w, "%11s: %q\n", action, commands[string(action)])
		}
		fmt.Fprintln(w)
	})
}

func (cmd *nodeControl) check() (faults []string) {
	if !cmd.DisableWalReceiver && !cmd.EnableWalReceiver {
		faults = append(faults, "option --disable-wal-receiver or --enable-wal-receiver is needed")
	}
	return faults
}

func (cmd *nodeControl) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.SetWALReceiver(ctx, cmd.EnableWalReceiver, cmd.DryRun)
	if err != nil {
		return err
	}
	word := map[bool]string{true: "enabled", false: "disabled"}[res.Enabled]
	switch {
	case !res.Changed:
		a.notice("the WAL receiver is " + word + " already")
	case cmd.DryRun:
		a.log.Info(fmt.Sprintf("the WAL receiver would be %s, by wal_retrieve_retry_interval = %s", word, res.Interval))
	default:
		a.notice("WAL receiver "+word, "detail", fmt.Sprintf("wal_retrieve_retry_interval is %s", res.Interval))
	}
	return a.answer(res, nil)
}

func (cmd *clusterMatrix) needsConfig() bool { return !cmd.given() }

func (cmd *clusterMatrix) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	m, err := c.Matrix(ctx)
	if err != nil {
		return err
	}
	issues := m.Issues()
	if err := a.answerAbove(m, func(w io.Writer) { cmd.print(w, m) }, issues, cmd.CSV); err != nil {
		return err
	}
	return a.issues("following problems detected:", issues, cmd.CSV)
}

func (cmd *clusterMatrix) print(w io.Writer, m repmgr.Matrix) {
	if cmd.CSV {
		for _, cell := range m.Cells {
			fmt.Fprintf(w, "%d,%d,%d\n", cell.From, cell.To, map[repmgr.Contact]int{repmgr.ContactYes: 0, repmgr.ContactNo: -1, repmgr.ContactUnknown: -2}[cell.Contact])
		}
		return
	}
	header := []string{"Name", "ID"}
	for _, n := range m.Nodes {
		header = append(header, n.ID.String())
	}
	rows := [][]string{header}
	for i, n := range m.Nodes {
		row := []string{n.Name, n.ID.String()}
		for _, cell := range m.Cells[i*len(m.Nodes) : (i+1)*len(m.Nodes)] {
			text := map[repmgr.Contact]string{repmgr.ContactYes: "*", repmgr.ContactNo: "x", repmgr.ContactUnknown: "?"}[cell.Contact]
			if cmd.Detail && cell.Age != nil {
				text += fmt.Sprintf(" %.1f s", *cell.Age)
			}
			row = append(row, text)
		}
		rows = append(rows, row)
	}
	writeTable(w, rows)
}

func (cmd *clusterPrimary) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	if cmd.Follow {
		return c.FollowPrimary(ctx, func(r repmgr.Record) error { return cmd.print(a, r) })
	}
	r, err := c.Primary(ctx)
	if err != nil {
		return err
	}
	return cmd.print(a, r)
}

func (cmd *clusterPrimary) print(a *app, r repmgr.Record) error {
	r.Conninfo = repmgr.Redact(r.Conninfo)
	params, err := repmgr.ParseConninfo(r.Conninfo)
	if err != nil {
		return &exitError{cli.ExitConfig, err}
	}
	text := r.Name
	switch {
	case cmd.Conninfo:
		text = r.Conninfo
	case cmd.Host:
		text = params["host"]
	case cmd.URI:
		text = uri(params)
	}
	return a.answer(r, func(w io.Writer) { fmt.Fprintln(w, text) })
}

// uri is a connection string as a URI, without a password.
func uri(params map[string]string) string {
	u := url.URL{Scheme: "postgresql", Path: "/" + params["dbname"]}
	if params["user"] != "" {
		u.User = url.User(params["user"])
	}
	query := url.Values{}
	hosts, ports := strings.Split(params["host"], ","), strings.Split(params["port"], ",")
	for i, host := range hosts {
		port := ports[min(i, len(ports)-1)]
		if strings.HasPrefix(host, "/") { // a socket directory
			query.Set("host", params["host"])
			query.Set("port", params["port"])
			hosts = nil
			break
		}
		if port != "" {
			hosts[i] = net.JoinHostPort(host, port)
		}
	}
	u.Host = strings.Join(hosts, ",")
	for key, value := range params {
		switch key {
		case "host", "port", "user", "dbname", "password", "passfile":
		default:
			query.Set(key, value)
		}
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20") // libpq takes a plus for a plus
	return u.String()
}
