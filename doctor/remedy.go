package doctor

import (
	"strconv"

	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/report"
)

// remedy is what mends a finding of cluster show or service status. It is empty where the text says so itself.
func (f Facts) remedy(one report.Finding) string {
	var n *Node
	for i := range f.Nodes {
		if f.Nodes[i].Record.ID == one.NodeID {
			n = &f.Nodes[i]
		}
	}
	if n == nil {
		switch one.Code {
		case report.TwoPrimaries, report.CanNotFailOver, report.NoPrimary:
			return "repmgr cluster explain"
		}
		return ""
	}
	command := func(words string) string { return "On its machine: repmgr" + follow.ConfOption(n.Record) + " " + words }
	switch one.Code {
	case report.Unreachable:
		return command("node service --action=start") + ". Where it does not start, the server's log says why."
	case report.NotAttached, report.WrongUpstream:
		return command("standby follow")
	case report.UpstreamUnreachable:
		return "Start its upstream. Or, to stream from the primary: " + command("standby follow")
	case report.WrongRole, report.DaemonMissing, report.DaemonSilent:
		return "On its machine, as the OS user of PostgreSQL: repmgrd" + follow.ConfOption(n.Record)
	case report.ReplayPaused:
		if name := f.tooSmall(n); name != "" {
			return "Replay waits until " + name + " is as large as on the primary: raise it there, and restart that server. Do not resume replay: the server would stop."
		}
		return "SELECT pg_wal_replay_resume();"
	case report.TwoPrimaries, report.CanNotFailOver:
		return "repmgr cluster explain"
	}
	return ""
}

// tooSmall is a setting that the standby has smaller than the primary; empty: none is known.
func (f Facts) tooSmall(n *Node) string {
	p := f.primary()
	if p == nil {
		return ""
	}
	for _, name := range postgres.ReplaySettings {
		ours, err := strconv.Atoi(n.Server.Settings[name])
		theirs, errTheirs := strconv.Atoi(p.Server.Settings[name])
		if err == nil && errTheirs == nil && ours < theirs {
			return name
		}
	}
	return ""
}
