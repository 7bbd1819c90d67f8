package streams_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/streams"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// A login is tried when it is due and at once where the row is another one; what is known
// of a server that has gone is forgotten.
func TestTrials_Try(t *testing.T) {
	t.Parallel()
	rows := map[int32]registry.Record{2: {ID: 2, Name: "node2", Conninfo: "host=a"}, 3: {ID: 3, Name: "node3", Conninfo: "host=b"}}
	up := func(id int32) election.Peer { return election.Peer{ID: id, Answer: election.Answers} }
	n := streams.Nodes{
		Me: election.Peer{ID: 1, Answer: election.Answers, Receiving: true, Receives: 3}, Record: func(id int32) registry.Record { return rows[id] },
		Peers: []election.Peer{up(1), up(2), up(3), {ID: 4, Answer: election.Answers, Role: election.Witness}, {ID: 5, Answer: election.Refused}},
	}
	var fails error
	tried, woken, told := 0, 0, []string{}
	var trials streams.Trials
	try := func() {
		trials.Try(t.Context(), n, func(_ context.Context, r registry.Record) error {
			require.Equal(t, rows[2], r)
			tried++
			return fails
		}, func() { woken++ })
		trials.Tell(n.Record, func(e registry.Event) { told = append(told, e.Details) })
	}
	fails = errors.New("no pg_hba.conf entry")
	try()
	try()
	require.Equal(t, []int{1, 1}, []int{tried, woken})
	require.Equal(t, map[registry.NodeID]string{2: "no pg_hba.conf entry"}, trials.Failed())
	require.Len(t, told, 1)

	fails, rows[2] = nil, registry.Record{ID: 2, Name: "node2", Conninfo: "host=c"}
	try()
	require.Equal(t, []int{2, 2}, []int{tried, woken})
	require.Empty(t, trials.Failed())
	require.Len(t, told, 2)

	fails, rows[2] = &postgres.ConnectError{Reach: postgres.ReachRefused}, registry.Record{ID: 2, Name: "node2", Conninfo: "host=d"}
	try()
	require.Equal(t, []int{3, 2}, []int{tried, woken})
	require.Empty(t, trials.Failed())
	require.Len(t, told, 2, "nothing is known of it any more, and nothing is said")
}
