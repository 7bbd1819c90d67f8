package web

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/explain"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// scene is a state of a cluster, with the answers to the questions that were asked of it.
type scene struct {
	view   health.View
	doctor doctor.Report
	asked  time.Duration // how long ago
	failed string        // why nothing has answered since
}

const end = 0x3_0503_4A70 // of the WAL of the primary

// scenes are what the pages are tested with, and what they are looked at in.
func scenes() map[string]scene {
	well := doctor.Report{Checks: 59, Slots: []doctor.Pinned{{NodeID: 1, Node: "node1", Slot: "repmgr_slot_2", Active: true, Kept: 16 << 20}}}
	of := func(change func(v *health.View), r doctor.Report) scene {
		v := view(1)
		v.Phase, v.Reason = election.AsPrimary, "the primary is monitored"
		for i := range v.Peers {
			p := &v.Peers[i]
			p.Position.LSN, p.Replayed, p.Monitored, p.Automatic, p.CanFence, p.Priority, p.Location = end, end, true, true, true, 100, "ams"
			p.Term = 5
			if p.ID != 1 {
				p.Receives, p.Streams = 1, true
				v.Records[i].UpstreamID = 1
			}
			v.Records[i].ConfigFile = "/etc/repmgr.conf"
		}
		v.Rule.Sync, v.Rule.Acks = []int32{2, 3}, 1
		change(&v)
		for i := range v.Peers {
			v.Peers[i].Rule = v.Rule
		}
		return scene{view: v, doctor: r, asked: 3 * time.Second}
	}
	full := 31.0
	rate := int64(3 << 30)
	bad := doctor.Report{
		Checks: 59,
		Findings: []doctor.Finding{
			{ID: "disk_fills", Severity: doctor.Critical, NodeID: 1, Node: "node1", Text: `its disk is full in 31 hours at the present rate (3072 MB of WAL per hour): the slot "reporting", which nobody uses, keeps all of it`, Remedy: "Start the consumer of the slot, drop it, or set max_slot_wal_keep_size."},
			{ID: "versions_differ", Severity: doctor.Warning, NodeID: 3, Node: "node3", Text: "it runs PostgreSQL 18.1, and the primary 18.2", Remedy: "Install the same minor version everywhere."},
			{ID: "settings_differ", Severity: doctor.Warning, NodeID: 2, Node: "node2", Text: "max_connections is 100 there, and 200 on the primary", Waived: "2026-12-31"},
		},
		Slots: []doctor.Pinned{{NodeID: 1, Node: "node1", Slot: "reporting", Kept: 40 << 30, PerHour: &rate, HoursLeft: &full}, {NodeID: 1, Node: "node1", Slot: "repmgr_slot_2", Active: true, Kept: 16 << 20}},
	}
	down := of(func(v *health.View) {
		for i := range v.Peers {
			p := &v.Peers[i]
			p.Answer, p.SeenAt = election.Silent, v.At.Add(-12*time.Minute)
			v.Lease = health.Lease{}
		}
		v.LocalAnswer, v.LocalSeenAt, v.Reason = election.Refused, v.At.Add(-12*time.Minute), "the server does not answer"
	}, well)
	down.asked, down.failed = 12*time.Minute, "connect to node \"node1\" (ID: 1): connection refused"
	return map[string]scene{
		"healthy": of(func(*health.View) {}, well),
		"lagging": of(func(v *health.View) {
			v.Rule.Sync = []int32{2}
			v.Peers[1].Replayed -= 4 << 20
			v.Peers[2].Position.LSN -= 300 << 20
			v.Peers[2].Replayed -= 312 << 20
		}, bad),
		"cascade": of(func(v *health.View) {
			r, p := v.Records[2], v.Peers[2]
			r.ID, r.Name, r.UpstreamID, r.Location, p.ID, p.Receives, p.Location = 4, "node4", 2, "fra", 4, 2, "fra"
			v.Records, v.Peers = append(v.Records, r), append(v.Peers, p)
			r.ID, r.Name, r.Role, p.ID, p.Role, p.Running, p.Receives, p.Receiving, p.Streams = 9, "witness", registry.RoleWitness, 9, election.Witness, election.Primary, 0, false, false
			v.Records, v.Peers = append(v.Records, r), append(v.Peers, p)
			v.Rule.Voters = []int32{1, 2, 3, 4, 9}
		}, well),
		"paused": of(func(v *health.View) {
			p := &v.Peers[2]
			p.Answer, p.SeenAt, p.Tried, p.Receiving = election.Refused, v.At.Add(-3*time.Minute), v.At, false
			v.Rule.Sync = []int32{2}
			for i := range v.Peers {
				v.Peers[i].Paused, v.Peers[i].PauseSeq = true, 4
			}
		}, bad),
		"down": down,
	}
}

// failoversOf are two failovers and a switchover.
func failoversOf(now time.Time) []repmgr.FailoverRecord {
	lost := int64(40960)
	ms := time.Millisecond
	steps := func(at ...time.Duration) (all []repmgr.FailoverStep) {
		for i, name := range []string{"surveyed", "recruited", "chosen", "promoted", "repointed", "ruled"} {
			all = append(all, repmgr.FailoverStep{Step: name, After: at[i], Evidence: "evidence of the step " + name})
		}
		return all
	}
	return []repmgr.FailoverRecord{
		{Term: 5, FormerID: 2, Former: "node2", PrimaryID: 1, Primary: "node1", Coordinator: "node1.812", Reason: election.HealthHandedOver, StartedAt: now.Add(-2 * time.Hour), Outage: 412 * ms, Steps: steps(2*ms, 31*ms, 32*ms, 96*ms, 99*ms, 120*ms)},
		{Term: 4, FormerID: 1, Former: "node1", PrimaryID: 2, Primary: "node2", Coordinator: "node3.77", Reason: election.HealthDead, StartedAt: now.Add(-26 * time.Hour), Outage: 148 * ms, LostBytes: &lost, Steps: steps(3*ms, 40*ms, 41*ms, 110*ms, 118*ms, 131*ms)},
		{Term: 2, FormerID: 9, PrimaryID: 1, Primary: "node1", Coordinator: "observer.7", Reason: election.HealthSilent, StartedAt: now.AddDate(0, -1, 0)},
	}
}

// play serves a scene as a handler that has asked its questions.
func play(t *testing.T, s scene, prefix string) *handler {
	t.Helper()
	var events Events
	for i, e := range []repmgr.Event{
		{NodeID: 1, Node: "node1", Type: repmgr.EventDaemonStart, Success: true, Details: "the daemon was started"},
		{NodeID: 3, Node: "node3", Type: repmgr.EventStandbyFailure, Details: "the server of node3 does not answer"},
		{NodeID: 3, Node: "node3", Type: repmgr.EventStandbyRecovery, Success: true, Details: "the server of node3 answers again", PeerConninfo: "host=node1 password=secret"},
	} {
		e.At = s.view.At.Add(time.Duration(i-3) * time.Minute)
		require.NoError(t, events.Notify(t.Context(), e))
		events.at = e.At
	}
	h := newHandler(func() health.View { return later(s.view) }, Options{Prefix: prefix, Events: &events})
	for i := range 120 { // of the ten minutes before
		v := s.view
		v.At, v.Peers = v.At.Add(time.Duration(i-120)*trailEvery), slices.Clone(v.Peers)
		for j, p := range v.Peers {
			v.Peers[j].Position.LSN -= wal.LSN((120-i)*(120-i)) << 10
			if p.Running == election.Standby {
				v.Peers[j].Replayed = v.Peers[j].Position.LSN - wal.LSN(i%40)<<17
			}
		}
		h.trail.note(v)
	}
	e, err := explain.Answer(explain.Question{
		At: s.view.At, Nodes: s.view.Records, Peers: s.view.Peers, Past: failoversOf(s.view.At), MostPerHour: 10, Durability: election.DurabilityPreferred,
		Policy: election.Policy{Interval: 2 * time.Second, Automatic: true, Silence: 2 * time.Second, Fence: 2500 * time.Millisecond, Promotion: time.Minute, Quorum: true, Acks: 1},
		User:   func(registry.Record) string { return "repmgr" },
	})
	require.NoError(t, err)
	asked := time.Now().Add(-s.asked)
	h.memory.put("v1/explain", e, nil, asked)
	h.memory.put("v1/failovers", failoversOf(s.view.At), nil, asked)
	why, left := repmgr.Reasoning{At: s.view.At}, 2.1
	for _, r := range s.view.Records {
		m := repmgr.MonitorWord{ID: r.ID, Name: r.Name, Monitor: &repmgr.Announcement{Phase: string(r.Role), Reason: "all is well", Mode: repmgr.FailoverAutomatic}}
		if r.Role == registry.RolePrimary {
			m.Monitor.LeaseLeft = &left
		}
		why.Monitors = append(why.Monitors, m)
	}
	h.memory.put("v1/why", why, nil, asked)
	h.memory.put("v1/doctor", s.doctor, nil, asked)
	if s.failed != "" {
		for _, a := range asks {
			h.memory.put(a.path, nil, errors.New(s.failed), time.Now())
		}
	}
	return h
}

// later is a view as it would be now, if nothing had changed: everything in it is as old as it was.
func later(v health.View) health.View {
	age := time.Since(v.At)
	v.At = v.At.Add(age)
	v.LookedAt, v.LocalSeenAt, v.Upstream.SeenAt = v.LookedAt.Add(age), v.LocalSeenAt.Add(age), v.Upstream.SeenAt.Add(age)
	v.Peers = append([]election.Peer(nil), v.Peers...)
	for i := range v.Peers {
		v.Peers[i].SeenAt, v.Peers[i].Tried = v.Peers[i].SeenAt.Add(age), v.Peers[i].Tried.Add(age)
	}
	return v
}
