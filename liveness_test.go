package repmgr_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// startWithSlots is a primary with two standbys that stream through slots, all
// with Monitors. Both standbys have those settings.
func startWithSlots(t *testing.T, mode repmgr.SynchronousMode, settings ...string) (nodes []*node) {
	t.Helper()
	nodes = append(nodes, startPrimary(t, automatic(mode), withSlots))
	for id := repmgr.NodeID(2); id <= 3; id++ {
		nodes = append(nodes, addStandby(t, nodes[0], id, automatic(mode), withSlots))
	}
	for i, n := range nodes {
		for _, set := range settings {
			if i > 0 {
				n.Exec(t, `ALTER SYSTEM SET `+set)
			}
		}
		if i > 0 && len(settings) > 0 {
			n.Stop("fast")
			n.StartAgain()
		}
		n.cfg.DataDirectory = n.Dir
		n.monitor(t)
	}
	waitReady(t, nodes[0], 3, mode)
	return nodes
}

// waitValue waits until a query says what it should.
func waitValue(t *testing.T, n *node, want, sql string) {
	t.Helper()
	pgtest.WaitFor(t, want+" from "+sql, func(context.Context) error {
		if got := n.QueryString(t, sql); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// A winner that can make no slots is promoted all the same, and the other standby
// streams from it without one.
func TestFailover_WithoutFreeSlots(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes := startWithSlots(t, mode, `max_replication_slots = 0`)
			w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{nodes[0].Conninfo(), nodes[1].Conninfo(), nodes[2].Conninfo()}})
			w.WaitForMore(t, 20)
			nodes[0].Kill()
			winner := waitPrimary(t, nodes[1:]...)
			w.WaitForMore(t, 20)
			waitValue(t, winner, "1", `SELECT count(*) FROM pg_stat_replication WHERE application_name IN ('node2', 'node3') AND state = 'streaming'`)
			w.Stop()
			if mode == repmgr.SynchronousQuorum {
				w.Verify(t, winner.Conninfo())
			}
		})
	}
}

// A standby that follows without its slot is given it as soon as there is room.
func TestMonitor_MakesItsSlotLater(t *testing.T) {
	t.Parallel()
	nodes := startWithSlots(t, repmgr.SynchronousOff, `max_replication_slots = 1`)
	for _, n := range nodes[1:] {
		n.Exec(t, `SELECT pg_create_physical_replication_slot('in_the_way')`)
	}
	nodes[0].Kill()
	winner := waitPrimary(t, nodes[1:]...)
	other := nodes[1]
	if winner == other {
		other = nodes[2]
	}
	waitValue(t, winner, "1", `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`)
	require.Empty(t, other.QueryString(t, `SHOW primary_slot_name`))
	winner.Exec(t, `SELECT pg_drop_replication_slot('in_the_way')`)
	slot := "repmgr_slot_" + other.cfg.NodeID.String()
	waitValue(t, other, slot, `SHOW primary_slot_name`)
	waitValue(t, winner, "t", `SELECT active FROM pg_replication_slots WHERE slot_name = '`+slot+`'`)
}
