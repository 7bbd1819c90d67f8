package adopt

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// Node is a registered node, and the daemon of repmgr 5 that runs with it.
type Node struct {
	report.Look
	Daemon *registry.ForeignDaemon // nil: none, or not known
}

// Facts are what the plan depends on.
type Facts struct {
	Self      registry.Record // the local node, from its configuration
	Server                    // the local one
	Nodes     []Node          // all registered ones
	Automatic bool            // failover=automatic, here
	Patience  time.Duration   // reconnect_attempts times reconnect_interval, here
}

// Server is what the local server says of the tables of repmgr 5.
type Server struct {
	Adopted   bool   // our tables are there, too
	Extension string // the version of the extension; empty: it is not there
	MayChange bool   // this login owns the schema and what is in it
}

// Read asks the local server. The error is [failure.ErrNotRegistered] where there are no tables.
func Read(ctx context.Context, n *registry.Server) (s Server, err error) {
	if err := n.NeedNodes(ctx); err != nil && n.Level != registry.OtherVersion {
		return s, err
	}
	s.Adopted = n.Level != registry.OnlyRepmgr5
	err = n.Conn.QueryRow(ctx, `SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'repmgr'), ''),
		pg_has_role(nspowner, 'MEMBER') AND (SELECT coalesce(bool_and(pg_has_role(relowner, 'MEMBER')), true) FROM pg_class WHERE relnamespace = n.oid AND relkind IN ('r', 'v'))
		FROM pg_namespace n WHERE nspname = 'repmgr'`).Scan(&s.Extension, &s.MayChange)
	if err != nil {
		err = n.QueryError("look at the tables of repmgr 5", err)
	}
	return s, err
}

// Hint says what to do where daemons of both programs run.
const Hint = "Daemons of both programs would make two primaries. Stop those of repmgr 5 on every node, or those of this one."

// Daemons names the nodes with a daemon of repmgr 5.
func Daemons(nodes []Node) (names []string) {
	for _, n := range nodes {
		if n.Err == nil && n.Daemon != nil {
			names = append(names, fmt.Sprintf("%s (PID %d)", n.Record.Name, n.Daemon.PID))
		}
	}
	return names
}

// DaemonError is the reason why a daemon of ours does not act where one of repmgr 5 runs on any of
// these nodes. nil: none runs.
func DaemonError(names []string) error {
	if len(names) == 0 {
		return nil
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "a repmgrd of repmgr 5 runs on %s: this one only watches", strings.Join(names, ", ")), Hint)
}

// Plan says what an adoption will do. It has no steps where there is nothing to adopt.
func Plan(f Facts) plan.Plan {
	p := plan.Plan{Command: "adopt", Steps: []plan.Step{}, Obstacles: []plan.Obstacle{}, Warnings: []plan.Obstacle{}}
	if f.Adopted {
		return p
	}
	p.Obstacles = append(p.Obstacles, f.obstacles()...)
	p.Warnings = append(p.Warnings, f.warnings()...)
	tables := "the tables of repmgr 5 and their rows stay as they are"
	if f.Extension != "" {
		tables = fmt.Sprintf("the tables of repmgr 5 (its extension has version %s) and their rows stay as they are", f.Extension)
	}
	p.Steps = append(p.Steps, plan.Step{
		Name: "tables", Node: f.Self.Name, Effect: "add this program's tables to the schema repmgr, in one transaction; " + tables,
		Check: "repmgr cluster show", Undo: "nothing: repmgr 5 does not see what was added, and its programs go on with the same tables",
	})
	for _, n := range f.Nodes {
		var todo []string
		if !registry.ValidName.MatchString(n.Record.Name) || len(n.Record.Name) > registry.MaxNameBytes {
			todo = append(todo, "write another node_name into its repmgr.conf, and register it anew, with --force: this one works in repmgr 5 only")
		}
		if n.Record.Role == registry.RoleWitness {
			todo = append(todo, fmt.Sprintf("register the witness anew, on its machine: repmgr%s witness register -d %s --force", follow.ConfOption(n.Record), shell.Quote(conninfo.Redact(f.Self.Conninfo))))
		}
		start := "start repmgrd, with the same configuration"
		if n.Record.ConfigFile != "" {
			start += ": repmgrd -f " + n.Record.ConfigFile
		}
		p.Steps = append(p.Steps, plan.Step{
			Name: "daemon", Node: n.Record.Name, Effect: "by you: " + strings.Join(append(todo, start), ". Then "), Check: "repmgr service status",
			Undo: "stop it, and start repmgrd of repmgr 5; where synchronous_mode was quorum, set it to off and reload first",
		})
	}
	return p
}

func (f Facts) obstacles() (all []plan.Obstacle) {
	names := map[string]bool{}
	for _, n := range f.Nodes {
		switch {
		case n.Err != nil:
			all = append(all, plan.Obstacle{
				Code: "unreachable", Node: n.Record.Name, Text: fmt.Sprintf("it does not answer (%s), so nobody knows whether a repmgrd of repmgr 5 runs there", n.Reach()),
				Hint: "Start its server, or make sure that no repmgrd of repmgr 5 runs there.", Force: true,
			})
		case n.Daemon != nil:
			all = append(all, plan.Obstacle{
				Code: "repmgr5_daemon", Node: n.Record.Name, Text: fmt.Sprintf("a repmgrd of repmgr 5 runs there (PID %d)", n.Daemon.PID),
				Hint: fmt.Sprintf("On %s: systemctl stop repmgrd, or: kill %d. Meanwhile nobody fails over.", n.Record.Name, n.Daemon.PID),
			})
		}
		if n.Record.Active && names[n.Record.Name] {
			all = append(all, plan.Obstacle{
				Code: "duplicate_name", Node: n.Record.Name, Text: "two active nodes have this name",
				Hint: "Rename one: UPDATE repmgr.nodes SET node_name = '...' WHERE node_id = ...; and node_name in its repmgr.conf.",
			})
		}
		names[n.Record.Name] = names[n.Record.Name] || n.Record.Active
	}
	if p := report.Primaries(looks(f.Nodes)); len(p) != 1 || p[0].Record.ID != f.Self.ID {
		where := "there is not one primary"
		if len(p) == 1 {
			where = p[0].Record.String() + " is the primary"
		}
		all = append(all, plan.Obstacle{Code: "not_here", Node: f.Self.Name, Text: where, Hint: "Adopt on the node whose server is the primary: it alone can write the tables."})
	}
	if !f.MayChange {
		all = append(all, plan.Obstacle{
			Code: "not_owner", Node: f.Self.Name, Text: "this login does not own the schema repmgr and all that is in it",
			Hint: "Connect as a superuser (-U), or give the login the role that owns them.",
		})
	}
	return all
}

func (f Facts) warnings() (all []plan.Obstacle) {
	if f.Automatic && f.Patience > 0 {
		all = append(all, plan.Obstacle{
			Code: "patience", Node: f.Self.Name, Text: fmt.Sprintf("reconnect_attempts and reconnect_interval would make each failover wait for %s", f.Patience),
			Hint: "Remove both from repmgr.conf, on every node: here a lost primary is known by evidence.",
		})
	}
	voters := 0
	for _, n := range f.Nodes {
		if n.Err == nil || n.Record.Active {
			voters++
		}
	}
	if f.Automatic && voters == 2 {
		all = append(all, plan.Obstacle{
			Code: "two_voters", Text: "two nodes are no majority when one is lost: nothing fails over by itself, as it does with repmgr 5",
			Hint: "Add a witness (repmgr witness register), a third node, or an etcd.",
		})
	}
	return all
}

func looks(nodes []Node) []report.Look {
	all := make([]report.Look, len(nodes))
	for i, n := range nodes {
		all[i] = n.Look
	}
	return all
}
