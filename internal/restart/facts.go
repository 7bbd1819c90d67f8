package restart

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/registry"
)

// The steps of a plan.
const (
	StepRestart = "restart"              // a server is restarted in its place
	StepPrimary = "restart_or_hand_over" // the primary's, in its place or by a switchover
)

// How the server of the primary is restarted.
type How string

const (
	Shorter    How = ""           // in whichever way has the shorter outage, as measured
	InPlace    How = "in-place"   // it stays the primary
	Switchover How = "switchover" // it hands over, and comes back as a standby
)

// Facts are what is known before the servers are restarted.
type Facts struct {
	Rule     election.Rule
	Peers    []election.Peer
	Names    map[int32]string
	Servers  map[int32]Server
	Chosen   []int32 // the nodes to be restarted
	Required bool    // durability=required
	Target   int32   // whom an election would choose now; 0: nobody
	How      How
	Primary  plan.Plan // what stands in the way of a shutdown of the primary
}

func (f Facts) chosen(id int32) bool { return slices.Contains(f.Chosen, id) }

// look asks all servers for their settings.
func (f *Facts) look(ctx context.Context, w *voters.Watch) {
	f.Servers = map[int32]Server{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range voters.Answering(f.Peers) {
		v := w.Voter(p.ID)
		if v == nil {
			continue
		}
		wg.Go(func() {
			var s Server
			s.Err = v.Run(ctx, func(n *registry.Server) (err error) { s, err = lookServer(ctx, n); return err })
			mu.Lock()
			defer mu.Unlock()
			f.Servers[p.ID] = s
		})
	}
	wg.Wait()
}

func lookServer(ctx context.Context, n *registry.Server) (s Server, err error) {
	if s.Running, s.Next, err = n.Capacity(ctx); err != nil {
		return s, n.QueryError("look at the settings", err)
	}
	if err := n.MayAlterSystem(ctx, []string{registry.RestartSetting, registry.HandoverSetting}); err != nil {
		return s, err
	}
	if err := n.Conn.QueryRow(ctx, `SELECT ARRAY(SELECT name FROM pg_settings WHERE pending_restart
		UNION SELECT name FROM pg_file_settings WHERE error = 'setting could not be applied' ORDER BY 1)`).Scan(&s.Pending); err != nil {
		return s, n.QueryError("look at the settings", err)
	}
	return s, nil
}

// Plan is the plan of the command, the nodes in the order of its steps, and those of them that come after the primary.
func (f Facts) Plan() (_ plan.Plan, order, after []int32) {
	all := plan.Plan{Command: "cluster restart", Steps: []plan.Step{}, Obstacles: []plan.Obstacle{}, Warnings: []plan.Obstacle{}}
	must := func(code string, id int32, hint, format string, args ...any) {
		all.Obstacles = append(all.Obstacles, plan.Obstacle{Code: code, Node: f.Names[id], Hint: hint, Text: fmt.Sprintf(format, args...)})
	}
	primary := voters.PeerOf(f.Peers, f.Rule.Primary)
	switch {
	case primary.Answer != election.Answers || primary.Running != election.Primary:
		must("primary_lost", primary.ID, "See repmgr cluster explain.", "it does not run as the primary")
	case election.Paused(f.Peers):
		must("failover_paused", 0, "Run repmgr service unpause.", "failover is paused, so no daemon acts")
	case election.Foreign(f.Peers):
		must("repmgr5_daemon", 0, "Stop the repmgrd of repmgr 5 on all nodes.", "a repmgrd of repmgr 5 runs beside ours")
	}
	for _, id := range f.Chosen {
		p := voters.PeerOf(f.Peers, id)
		switch {
		case id == f.Rule.Primary && f.Target == 0:
			must("no_target", id, "Restart it with repmgr node service --action=restart, on its machine.", "no standby could take its place if it did not start again")
		case p.Answer != election.Answers:
			must("node_lost", id, "Start its server, or name the other nodes with --node.", "its server %s", p.Answer)
		case !p.Monitored || !p.Automatic || !p.CanFence:
			must("no_daemon", id, "Run repmgrd there with failover=automatic, as the user that runs PostgreSQL.", "no daemon there can restart its server")
		case p.NoPledge != "":
			must("configuration", id, "Mend that first: its server might not start.", "%s", p.NoPledge)
		case f.Servers[id].Err != nil:
			must("settings_unknown", id, "The login of repmgr must be a superuser, or be granted what it lacks there: SELECT on pg_file_settings, EXECUTE on pg_show_all_file_settings(), ALTER SYSTEM.", "its settings can not be read or set: %v", f.Servers[id].Err)
		}
		if rest := slices.DeleteFunc(election.IDs(voters.Answering(f.Peers)), func(o int32) bool { return o == id }); id != f.Rule.Primary && !f.Rule.HeldBy(rest) {
			must("no_majority", id, "Start the other nodes first.", "while it is down no majority would answer, and the primary would be stopped")
		}
		if why := switchover.Keeps(id, f.Peers, f.Required); why != "" && id != f.Rule.Primary && p.Answer == election.Answers {
			all.Warnings = append(all.Warnings, plan.Obstacle{Code: "commits_wait", Node: f.Names[id], Text: "commits wait while it is down: " + why, Force: true})
		}
	}
	for _, p := range f.Peers {
		switch now := time.Now(); {
		case p.Answer == election.Answers && p.Running == election.Standby && p.Role == election.Standby && !p.Receiving:
			must("not_attached", p.ID, "Mend that first: see repmgr node status on it.", "it does not stream now")
		case p.Restarting(now, f.Rule), p.Handover.Pending(now, f.Rule):
			must("another_command", p.ID, "Wait for its outcome: repmgr cluster event.", "another restart or switchover is under way there")
		}
	}
	order, after, wrong := f.order()
	all.Obstacles = append(all.Obstacles, wrong...)
	for _, id := range after {
		if p := voters.PeerOf(f.Peers, id); p.Delayed || p.ReplayPaused {
			must("replays_later", id, "Let it replay first: recovery_min_apply_delay, pg_wal_replay_resume().", "a setting falls, and it does not replay that at once, so it would not start")
		}
	}
	if f.chosen(f.Rule.Primary) {
		all.Obstacles = append(all.Obstacles, f.Primary.Obstacles...)
		all.Warnings = append(all.Warnings, f.Primary.Warnings...)
	}
	if f.chosen(f.Rule.Primary) {
		if f.How == Switchover && f.Target != 0 && !f.mayHandOver(f.Target, after) {
			must("no_switchover", f.Rule.Primary, "Restart it in its place.", "a switchover can not restart it: no standby could take over with the settings that all are to have")
		}
		order = append(order, f.Rule.Primary)
	}
	order = append(order, after...)
	for _, id := range order {
		all.Steps = append(all.Steps, f.step(id))
	}
	return all, order, after
}

func (f Facts) step(id int32) plan.Step {
	s := plan.Step{Name: StepRestart, Node: f.Names[id], Effect: "its daemon restarts its server", Check: "it streams again, and counts for commits again where it did", Undo: "the command ends; the other nodes are left as they are"}
	if pending := f.Servers[id].Pending; len(pending) > 0 {
		s.Effect += ", which puts in force " + strings.Join(pending, ", ")
	}
	switch {
	case id != f.Rule.Primary:
	case f.How == InPlace:
		s.Check = "it accepts writes again"
	case f.How == Switchover:
		s.Name, s.Check = StepPrimary, fmt.Sprintf("%s is the primary, and this node streams from it", f.Names[f.Target])
		s.Effect = "it hands over" + strings.TrimPrefix(s.Effect, "its daemon restarts its server")
	default:
		s.Name, s.Check = StepPrimary, "a primary accepts writes, and the others stream from it"
		s.Effect += "; or by a switchover, if that was measured to be shorter"
	}
	return s
}
