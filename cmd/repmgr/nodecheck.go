package main

import (
	"context"
	"fmt"
	"io"

	"github.com/pgrepmgr/repmgr"
)

// checkTitles are repmgr's names of the checks: in the overview, and for Nagios.
var checkTitles = map[repmgr.CheckName][2]string{
	repmgr.CheckRole:           {"Server role", "REPMGR_SERVER_ROLE"},
	repmgr.CheckReplicationLag: {"Replication lag", "REPMGR_REPLICATION_LAG"},
	repmgr.CheckArchiveReady:   {"WAL archiving", "REPMGR_ARCHIVE_READY"},
	repmgr.CheckUpstream:       {"Upstream connection", "REPMGR_UPSTREAM_SERVER"},
	repmgr.CheckDownstream:     {"Downstream servers", "REPMGR_DOWNSTREAM_SERVERS"},
	repmgr.CheckSlots:          {"Replication slots", "REPMGR_INACTIVE_SLOTS"},
	repmgr.CheckMissingSlots:   {"Missing physical replication slots", "REPMGR_MISSING_SLOTS"},
	repmgr.CheckDataDirectory:  {"Configured data directory", "REPMGR_DATA_DIRECTORY"},
	repmgr.CheckDaemon:         {"repmgrd", "REPMGRD"},
}

// only is the one check that was asked for; empty: all.
func (cmd *nodeCheck) only() repmgr.CheckName {
	for name, asked := range map[repmgr.CheckName]bool{
		repmgr.CheckRole: cmd.Role, repmgr.CheckReplicationLag: cmd.ReplicationLag, repmgr.CheckArchiveReady: cmd.ArchiveReady,
		repmgr.CheckUpstream: cmd.Upstream, repmgr.CheckDownstream: cmd.Downstream, repmgr.CheckSlots: cmd.Slots,
		repmgr.CheckMissingSlots: cmd.MissingSlots, repmgr.CheckDataDirectory: cmd.DataDirectoryConfig, repmgr.CheckDaemon: cmd.Repmgrd,
	} {
		if asked {
			return name
		}
	}
	return ""
}

func (cmd *nodeCheck) needsConfig() bool { return !cmd.HasPassfile }

func (cmd *nodeCheck) check() []string {
	one := cmd.only() != "" || cmd.HasPassfile || cmd.DBConnection
	switch {
	case cmd.Nagios && cmd.only() == "":
		return []string{"option --nagios needs one check, such as --role"}
	case cmd.Nagios && cmd.CSV:
		return []string{"options --nagios and --csv exclude each other"}
	case cmd.CSV && one:
		return []string{"option --csv is for all checks together, not for one"}
	}
	return nil
}

func (cmd *nodeCheck) Run(ctx context.Context, a *app) error {
	if cmd.HasPassfile { // it is always supported
		return nil
	}
	c, err := a.cluster()
	if err != nil {
		return err
	}
	res, err := c.CheckNode(ctx, cmd.only())
	if err != nil {
		return err
	}
	if cmd.DBConnection {
		return a.answer(res, func(w io.Writer) { fmt.Fprintln(w, "OK ()") })
	}
	if err := a.answer(res, func(w io.Writer) { cmd.print(w, res) }); err != nil {
		return err
	}
	if cmd.only() != "" {
		return exitWith(res.Checks[0].Status.ExitCode())
	}
	for _, r := range res.Checks {
		if r.Status != repmgr.CheckOK {
			return errIssues
		}
	}
	return nil
}

// exitWith ends a command that has said everything.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

func (cmd *nodeCheck) print(w io.Writer, res repmgr.NodeChecks) {
	switch {
	case cmd.Nagios:
		r := res.Checks[0]
		fmt.Fprintf(w, "%s %s: %s", checkTitles[r.Check][1], r.Status, r.Details)
		if r.Perf != "" {
			fmt.Fprintf(w, " | %s", r.Perf)
		}
		fmt.Fprintln(w)
	case cmd.only() != "":
		fmt.Fprintf(w, "%s (%s)\n", res.Checks[0].Status, res.Checks[0].Details)
	case cmd.CSV:
		fmt.Fprintf(w, "%s,%s\n%s,%s\n", csvQuote("Node name"), csvQuote(res.Record.Name), csvQuote("Node ID"), csvQuote(res.Record.ID.String()))
		for _, r := range res.Checks {
			fmt.Fprintf(w, "%s,%s,%s\n", csvQuote(checkTitles[r.Check][0]), csvQuote(string(r.Status)), csvQuote(r.Details))
		}
	default:
		fmt.Fprintf(w, "Node %q:\n", res.Record.Name)
		for _, r := range res.Checks {
			fmt.Fprintf(w, "\t%s: %s (%s)\n", checkTitles[r.Check][0], r.Status, r.Details)
		}
	}
}
