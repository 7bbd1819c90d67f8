package main

import (
	"context"
	encoding "encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
)

func (cmd *clusterFailover) needsConfig() bool { return !cmd.given() }

func (cmd *clusterFailover) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	res, err := c.Failover(ctx, repmgr.FailoverOptions{Force: cmd.Force, DryRun: cmd.DryRun})
	if err != nil {
		var r *repmgr.RefusalError
		if cmd.DryRun && errors.As(err, &r) && r.Refusal == election.RefusedHealth {
			a.log.Info("to ask who would win if the primary died: repmgr cluster explain")
		}
		return err
	}
	a.tellFailover(res)
	return a.answer(res, nil)
}

// tellFailover says who won, at what price.
func (a *app) tellFailover(res repmgr.FailoverResult) {
	if res.DryRun {
		winner := "nobody"
		if res.Winner != nil {
			winner = res.Winner.String()
		}
		a.log.Info(fmt.Sprintf("%s would win: %s", winner, res.Health))
		return
	}
	text := fmt.Sprintf("%s is the primary of term %d: %s", res.Winner, res.Term, res.Health)
	if res.Outage > 0 {
		text += fmt.Sprintf("; without a primary for %s", res.Outage.Round(time.Millisecond))
	}
	a.notice(text)
	var names []string
	for _, r := range res.Following {
		names = append(names, r.Name)
	}
	if len(names) > 0 {
		a.notice("following it: " + strings.Join(names, ", "))
	} else {
		a.log.Warn("no standby follows it yet", "hint", "Their daemons try it again. See: repmgr cluster show")
	}
}

// clusterAt opens the library on the server that the options name, or on the configuration: any node can answer.
func (a *app) clusterAt(c connection) (*repmgr.Cluster, error) {
	a.askable = true
	if err := a.use(c); err != nil {
		return nil, err
	}
	return a.cluster()
}

func (cmd *clusterExplain) needsConfig() bool { return !cmd.given() }

func (cmd *clusterExplain) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	e, err := c.Explain(ctx, repmgr.ExplainOptions{Lost: repmgr.NodeID(cmd.NodeID)})
	if err != nil {
		return err
	}
	if err := a.answer(e, func(w io.Writer) { fmt.Fprint(w, e) }); err != nil {
		return err
	}
	if len(e.Blocked) > 0 {
		return errIssues
	}
	return nil
}

func (cmd *clusterWhy) needsConfig() bool { return !cmd.given() }

func (cmd *clusterWhy) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	r, err := c.Why(ctx)
	if err != nil {
		return err
	}
	return a.answer(r, func(w io.Writer) { fmt.Fprint(w, r) })
}

func (cmd *clusterWhyNot) needsConfig() bool { return !cmd.given() }

func (cmd *clusterWhyNot) check() []string {
	if cmd.NodeID == 0 {
		return []string{"option --node-id is missing: the node that is not the primary"}
	}
	return nil
}

func (cmd *clusterWhyNot) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	n, err := c.WhyNot(ctx, repmgr.NodeID(cmd.NodeID))
	if err != nil {
		return err
	}
	return a.answer(n, func(w io.Writer) {
		for _, reason := range n.Reasons {
			fmt.Fprintln(w, reason)
		}
	})
}

func (cmd *clusterFailovers) needsConfig() bool { return !cmd.given() }

func (cmd *clusterFailovers) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	limit := cmd.Limit
	if cmd.Term > 0 {
		limit = 0
	}
	all, err := c.Failovers(ctx, limit)
	if err != nil {
		return err
	}
	if cmd.Term > 0 {
		all = ofTerm(all, cmd.Term)
	}
	doc := struct {
		Failovers []repmgr.FailoverRecord `json:"failovers"`
	}{all}
	return a.answer(doc, func(w io.Writer) { cmd.print(w, all, a.Verbose || cmd.Term > 0) })
}

func ofTerm(all []repmgr.FailoverRecord, term int64) []repmgr.FailoverRecord {
	for _, f := range all {
		if f.Term == term {
			return []repmgr.FailoverRecord{f}
		}
	}
	return []repmgr.FailoverRecord{}
}

func (cmd *clusterFailovers) print(w io.Writer, all []repmgr.FailoverRecord, steps bool) {
	rows := [][]string{{"Term", "When", "From", "To", "Coordinator", "Reason", "Outage"}}
	for _, f := range all {
		rows = append(rows, failoverRow(f))
	}
	switch {
	case cmd.CSV:
		out := encoding.NewWriter(w)
		for _, f := range all {
			row := failoverRow(f)
			row[6] = ""
			if f.Outage > 0 {
				row[6] = fmt.Sprintf("%.3f", f.Outage.Seconds())
			}
			_ = out.Write(row) // what it writes to is memory
		}
		out.Flush()
	case len(all) == 0:
		fmt.Fprintln(w, "no matching failovers found")
	case steps:
		for i, f := range all {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprint(w, f)
		}
	default:
		writeTable(w, rows)
	}
}

func failoverRow(f repmgr.FailoverRecord) []string {
	name := func(id repmgr.NodeID, name string) string {
		if name == "" && id != 0 {
			return id.String()
		}
		return name
	}
	outage := "?"
	if f.Outage > 0 {
		outage = f.Outage.Round(time.Millisecond).String()
	}
	return []string{
		fmt.Sprint(f.Term), f.StartedAt.Local().Format(time.DateTime), name(f.FormerID, f.Former), name(f.PrimaryID, f.Primary),
		f.Coordinator, string(f.Reason), outage,
	}
}
