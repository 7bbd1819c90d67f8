package restart

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
)

// Server is what the server of a node says of its settings.
type Server struct {
	Err     error          // why it could not be asked; nil: it was
	Running map[string]int // the settings in force of which a standby must have as much as its primary
	Next    map[string]int // the same after a restart
	Pending []string       // the names of all settings that wait for a restart
	Writes  bool           // it is no standby; only set by [Ask]
}

// belowPrimary is the obstacle of a standby that would have less of a setting than its primary.
const belowPrimary = "below_primary"

// order sorts the nodes that are to be restarted into those before the primary and those after
// it. A standby stops its replay, or does not start, where it has less of a setting than the
// primary writes into its WAL. So a setting is raised on the standbys first, and lowered on the
// primary first; what can not be done in either order is an obstacle.
func (f Facts) order() (before, after []int32, obstacles []plan.Obstacle) {
	primary := f.Servers[f.Rule.Primary]
	willRun := primary.Running
	if f.chosen(f.Rule.Primary) {
		willRun = primary.Next
	}
	for _, p := range f.Peers {
		s, asked := f.Servers[p.ID]
		chosen := f.chosen(p.ID)
		if p.ID == f.Rule.Primary || p.ID == election.Arbiter {
			continue
		}
		var first, last, never []string
		for _, name := range postgres.ReplaySettings {
			standby := asked && p.Role != election.Witness && s.Err == nil && primary.Err == nil
			ends := s.Running[name]
			if chosen {
				ends = s.Next[name]
			}
			switch {
			case !standby:
			case ends < willRun[name]:
				never = append(never, fmt.Sprintf("%s would be %d here, and %d on the primary", name, ends, willRun[name]))
			case s.Running[name] < willRun[name]:
				first = append(first, name)
			case chosen && ends < max(primary.Running[name], s.Running[name]): // also where the primary has less already, which it may not have replayed
				last = append(last, name)
			}
		}
		add := func(code, hint, format string, args ...any) {
			obstacles = append(obstacles, plan.Obstacle{Code: code, Node: f.Names[p.ID], Text: fmt.Sprintf(format, args...), Hint: hint})
		}
		switch {
		case len(never) > 0:
			add(belowPrimary, "Set it at least as high as on the primary, or restart this node too.", "it would not replay: %s", strings.Join(never, "; "))
		case len(first) > 0 && len(last) > 0:
			add("both_orders", "Change one of them, restart, then the other.", "%s rises, which a standby needs first, and %s falls, which the primary needs first", strings.Join(first, ", "), strings.Join(last, ", "))
		case !chosen:
		case len(last) > 0:
			after = append(after, p.ID)
		default:
			before = append(before, p.ID)
		}
	}
	return before, after, obstacles
}

// mayHandOver reports whether the primary may be restarted by a switchover to the target: what
// it is started with as a standby must be enough for what the target runs with.
func (f Facts) mayHandOver(target int32, after []int32) bool {
	runs, next := f.Servers[target].Running, f.Servers[f.Rule.Primary].Next
	if f.chosen(target) {
		runs = f.Servers[target].Next
	}
	return target != 0 && len(after) == 0 && !slices.ContainsFunc(postgres.ReplaySettings, func(name string) bool { return next[name] < runs[name] })
}
