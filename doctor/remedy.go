package doctor

import (
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// remedy is what mends a finding of cluster show or service status. It is empty where the text says so itself.
func (f Facts) remedy(one report.Finding) string {
	switch one.Code {
	case report.TwoPrimaries, report.CanNotFailOver, report.NoPrimary, report.WrongRole:
		return "repmgr cluster explain"
	}
	var n *Node
	for i := range f.Nodes {
		if f.Nodes[i].Record.ID == one.NodeID {
			n = &f.Nodes[i]
		}
	}
	if n == nil {
		return ""
	}
	command := func(words string) string { return "On its machine: repmgr" + follow.ConfOption(n.Record) + " " + words }
	switch one.Code {
	case report.Unreachable:
		switch p := f.primary(); {
		case p == nil:
			return "repmgr cluster explain"
		case n.Record.Role == registry.RolePrimary || !n.Record.Active: // it may hold data of a primary, and must not start as one
			return "On its machine: " + follow.RejoinCommand(n.Record, p.Record, "--force-rewind")
		}
		return command("node service --action=start") + ". Where it does not start, the server's log says why."
	case report.NotAttached, report.WrongUpstream:
		return command("standby follow")
	case report.UpstreamUnreachable:
		return "Start its upstream. Or, to stream from the primary: " + command("standby follow")
	case report.DaemonMissing:
		return "On its machine, as the OS user of PostgreSQL: repmgrd" + follow.ConfOption(n.Record)
	case report.DaemonSilent:
		return "Look at its log. Where it hangs, end it (its PID is in repmgr service status), and start it again."
	case report.RouterFailing:
		return "Is it up, may the user of repmgrd reach it, and do its names and files fit (docs/routers.md)? The log of repmgrd says more. It is told again every second."
	case report.ReplayPaused:
		switch {
		case n.Peer.ReplayBlocked == election.UnfitTarget:
			return "Its replay stops at a recovery target, and resuming it would promote the server: take the target out of its configuration, and restart it."
		case n.Peer.ReplayBlocked != "" || n.Peer.SeenAt.IsZero():
			return "Do not resume it where a setting is smaller than on the primary, because the server would stop: raise that (see its log), and restart it."
		}
		return "SELECT pg_wal_replay_resume();"
	}
	return ""
}
