package namesakes_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// A second server of one name is known from when both go on, with one event, until it is gone.
func TestFinder_Look(t *testing.T) {
	t.Parallel()
	var events []registry.Event
	trouble := map[string]bool{}
	d := namesakes.Daemon{
		Report: func(what string, err error) { trouble[what] = err != nil },
		Tell:   func(e registry.Event) { events = append(events, e) },
	}
	n := namesakes.Nodes{
		Self: 1, Rows: []registry.Record{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2", Conninfo: "host=192.0.2.7"}},
		Peers: func() []election.Peer { return []election.Peer{{ID: 2, Answer: election.Answers, Streams: true}} },
	}
	var f namesakes.Finder
	look := func(now wal.LSN, flushed ...wal.LSN) {
		n.Status = registry.NodeStatus{CurrentLSN: now}
		for i, lsn := range flushed {
			n.Status.Senders = append(n.Status.Senders, registry.WALSender{PID: i + 1, ApplicationName: "NODE2", State: "streaming", ClientAddr: "192.0.2.7", FlushedLSN: lsn})
		}
		f.Look(t.Context(), d, n)
	}
	look(100, 100)
	look(200, 200, 200)
	look(300, 300, 200) // one of them may be a connection that has broken
	require.False(t, f.Found(2))
	look(400, 400, 400)
	look(500, 500, 500)
	require.Equal(t, []int32{2}, f.All())
	require.True(t, trouble["the identity of node 2"])
	require.Len(t, events, 1)
	require.Equal(t, registry.EventDuplicateNode, events[0].Type)
	look(600, 600)
	require.False(t, f.Found(2))
	require.False(t, trouble["the identity of node 2"])
}
