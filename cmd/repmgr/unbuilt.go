package main

import (
	"strings"

	"github.com/pgrepmgr/repmgr/internal/cli"
)

// unbuilt are the commands of repmgr 5 that this version does not have yet,
// each with the options that are only its own.
var unbuilt = []cli.Unbuilt{
	{Command: "standby switchover", Options: "always-promote siblings-follow repmgrd-no-pause repmgrd-force-unpause force-rewind?"},
	{Command: "node check", Options: nodeCheckOptions},
	{Command: "primary check", Options: nodeCheckOptions},
	{Command: "standby check", Options: nodeCheckOptions},
	{Command: "node service", Options: "action= list-actions checkpoint"},
	{Command: "node control", Options: "disable-wal-receiver enable-wal-receiver"},
	{Command: "cluster crosscheck"},
	{Command: "cluster matrix"},
}

const nodeCheckOptions = "archive-ready downstream upstream replication-lag role slots missing-slots repmgrd has-passfile replication-connection " +
	"data-directory-config replication-config-owner db-connection nagios optformat remote-node-id="

// unbuiltList has a line for each group, "  node check|rejoin|service|control".
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
