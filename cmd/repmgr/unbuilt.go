package main

import (
	"strings"

	"github.com/pgrepmgr/repmgr/internal/cli"
)

// unbuilt are the commands of repmgr 5 that this version does not have yet,
// each with the options that are only its own.
var unbuilt = []cli.Unbuilt{
	{Command: "node control", Options: "disable-wal-receiver enable-wal-receiver " + nodeCheckOptions},
}

// nodeCheckOptions are checks between nodes, which switchover of repmgr 5 makes.
const nodeCheckOptions = "replication-connection replication-config-owner optformat remote-node-id="

// unbuiltList has a line for each group, "  node service|control".
func unbuiltList() string {
	var groups []string
	actions := map[string][]string{}
	for _, u := range unbuilt {
		group, action, _ := strings.Cut(u.Command, " ")
		if actions[group] == nil {
			groups = append(groups, group)
		}
		actions[group] = append(actions[group], action)
	}
	var b strings.Builder
	for _, g := range groups {
		b.WriteString("  " + g + " " + strings.Join(actions[g], "|") + "\n")
	}
	return b.String()
}
