package follow

import (
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/registry"
)

// RecloneCommand is what an operator runs on node to have it copied anew from the primary.
func RecloneCommand(node, primary registry.Record) string {
	return RejoinCommand(node, primary, "--reclone")
}

// RejoinCommand is what an operator runs on node to bring it back as a standby of primary.
func RejoinCommand(node, primary registry.Record, option string) string {
	return fmt.Sprintf("repmgr%s node rejoin -d '%s' %s", ConfOption(node), strings.ReplaceAll(conninfo.Redact(primary.Conninfo), "'", `'\''`), option)
}

// ConfOption names the node's own configuration file, where it is known.
func ConfOption(node registry.Record) string {
	if node.ConfigFile == "" {
		return ""
	}
	return " -f " + node.ConfigFile
}
