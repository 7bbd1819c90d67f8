package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/pgrepmgr/repmgr"
)

func (cmd *nodeStatus) Run(ctx context.Context, a *app) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	if cmd.IsShutdownCleanly {
		return tellShutdown(a, c)
	}
	rep, err := c.NodeStatus(ctx)
	if err != nil {
		return err
	}
	if err := a.answer(rep, func(w io.Writer) { cmd.print(w, rep, a.Verbose) }); err != nil {
		return err
	}
	return a.issues("following issue(s) were detected:", rep.Issues, cmd.CSV)
}

// tellShutdown prints the line that repmgr 5 prints.
func tellShutdown(a *app, c *repmgr.Cluster) error {
	st, err := c.ShutdownState()
	if err != nil {
		return err
	}
	return a.answer(st, func(w io.Writer) {
		fmt.Fprintf(w, "--state=%s", st.State)
		if st.Checkpoint != nil {
			fmt.Fprintf(w, " --last-checkpoint-lsn=%s", st.Checkpoint)
		}
		fmt.Fprintln(w)
	})
}

func (cmd *nodeStatus) print(w io.Writer, rep repmgr.NodeReport, verbose bool) {
	if !cmd.CSV {
		fmt.Fprintf(w, "Node %q:\n", rep.Record.Name)
		for _, row := range rep.Rows(verbose) {
			if row.Text != "" {
				fmt.Fprintf(w, "\t%s: %s\n", row.Key, row.Text)
			}
		}
		fmt.Fprintln(w)
		return
	}
	pair := func(key, value string) { fmt.Fprintf(w, "%s,%s\n", csvQuote(key), csvQuote(value)) }
	pair("Node name", rep.Record.Name)
	pair("Node ID", rep.Record.ID.String())
	for _, row := range rep.Rows(verbose) {
		pair(row.Key, row.CSV)
	}
	active := 0
	for _, s := range rep.Status.Slots {
		if s.Active {
			active++
		}
	}
	number := func(key string, n int, names ...string) {
		fmt.Fprintf(w, "%s,%d", csvQuote(key), n)
		for _, name := range names {
			fmt.Fprintf(w, ",%s", csvQuote(name))
		}
		fmt.Fprintln(w)
	}
	number("max_wal_senders", rep.Status.Settings.MaxWALSenders)
	number("occupied_wal_senders", len(rep.Status.Senders))
	number("max_replication_slots", rep.Status.Settings.MaxSlots)
	number("active_replication_slots", active)
	number("inactive_replication_slots", len(rep.InactiveSlots), rep.InactiveSlots...)
	number("missing_replication_slots", len(rep.MissingSlots), rep.MissingSlots...)
}

func csvQuote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (dumpConfig) needsConfig() bool { return false }

// Run prints the settings in force as key|value, passwords masked.
func (dumpConfig) Run(a *app) error {
	dump := a.cfg.Dump()
	doc := struct {
		Settings []repmgr.KeyValue `json:"settings"`
	}{dump}
	return a.answer(doc, func(w io.Writer) {
		for _, kv := range dump {
			fmt.Fprintf(w, "%s|%s\n", kv.Key, kv.Value)
		}
	})
}
