package restart

import (
	"context"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
)

// Ask asks a server for what [CheckAlone] needs.
func Ask(ctx context.Context, n *registry.Server) (s Server, err error) {
	if s.Running, s.Next, err = n.Capacity(ctx); err == nil {
		err = n.Conn.QueryRow(ctx, `SELECT NOT pg_is_in_recovery()`).Scan(&s.Writes)
	}
	if err != nil {
		return s, n.QueryError("look at the settings", err)
	}
	return s, nil
}

// CheckAlone refuses to restart the server of one node by itself, where a standby replays now and would not
// replay after that, because a setting of it is smaller than that of the primary. said is what the servers
// say that could be asked; of the others nothing is known, and without one primary among the nodes nothing at all.
func CheckAlone(self registry.NodeID, nodes []registry.Record, said map[registry.NodeID]Server) error {
	f, primaries := Facts{Names: map[int32]string{}, Servers: map[int32]Server{}}, 0
	for _, r := range nodes {
		id := int32(r.ID)
		s, asked := said[r.ID]
		if !asked {
			continue
		}
		if s.Writes && r.Role != registry.RoleWitness {
			f.Rule.Primary = id
			primaries++
		}
		f.Names[id], f.Servers[id] = r.Name, s
		f.Peers = append(f.Peers, election.Peer{ID: id, Role: election.Role(r.Role)})
	}
	if primaries != 1 {
		return nil
	}
	_, _, already := f.order()
	f.Chosen = []int32{int32(self)}
	_, _, wrong := f.order()
	wrong = slices.DeleteFunc(wrong, func(o plan.Obstacle) bool { return o.Code != belowPrimary || slices.Contains(already, o) })
	if len(wrong) == 0 {
		return nil
	}
	var texts []string
	for _, o := range wrong {
		texts = append(texts, o.String())
	}
	return failure.WithHint(failure.Of(failure.ErrRefused, "no restart of this server alone: %s", strings.Join(texts, "; ")),
		"Run repmgr cluster restart --pending, which restarts all nodes in the order that these settings need. Or: --force.")
}
