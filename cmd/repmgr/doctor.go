package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

func (cmd *doctorCmd) needsConfig() bool { return !cmd.given() }

func (cmd *doctorCmd) check() (faults []string) {
	for _, text := range cmd.Waive {
		if _, err := doctor.ParseWaiver(text); err != nil {
			faults = append(faults, fmt.Sprintf("option --waive: %v", err))
		}
	}
	return faults
}

func (cmd *doctorCmd) Run(ctx context.Context, a *app) error {
	c, err := a.clusterAt(cmd.connection)
	if err != nil {
		return err
	}
	var waivers []doctor.Waiver
	for _, text := range cmd.Waive {
		w, err := doctor.ParseWaiver(text)
		if err != nil {
			return err
		}
		waivers = append(waivers, w)
	}
	r, err := c.Doctor(ctx, waivers...)
	if err != nil {
		return err
	}
	if err := a.answer(r, func(w io.Writer) { cmd.print(w, r, a.Terse) }); err != nil {
		return err
	}
	if worst := r.Worst(); worst == doctor.Critical || worst != "" && cmd.Strict {
		return &exitError{code: cli.ExitIssues}
	}
	return nil
}

func (cmd *doctorCmd) print(w io.Writer, r doctor.Report, terse bool) {
	count := map[doctor.Severity]int{}
	waived := 0
	for _, f := range r.Findings {
		about, state := f.Node, string(f.Severity)
		if about == "" {
			about = "cluster"
		}
		if f.Waived != "" {
			waived++
			state = "waived until " + f.Waived
		} else {
			count[f.Severity]++
		}
		fmt.Fprintf(w, "%s  %s  (%s)\n    %s\n", strings.ToUpper(state[:1])+state[1:], about, f.ID, f.Text)
		if f.Remedy != "" && !terse {
			fmt.Fprintf(w, "    -> %s\n", f.Remedy)
		}
		fmt.Fprintln(w)
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(w, "%d checks: all is well\n", r.Checks)
		return
	}
	fmt.Fprintf(w, "%d checks: %d critical, %d warnings, %d waived. Each is explained in docs/doctor.md under its name.\n", r.Checks, count[doctor.Critical], count[doctor.Warning], waived)
}
