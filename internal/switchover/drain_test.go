package switchover

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// Where no daemon hands over, it is said what does.
func TestCheckDrain(t *testing.T) {
	t.Parallel()
	r := registry.Record{ID: 1, Name: "node1", ConfigFile: "/etc/repmgr.conf"}
	require.NoError(t, CheckDrain(election.Peer{Monitored: true, Automatic: true}, r))
	require.NoError(t, CheckDrain(election.Peer{Foreign: true}, r), "the plan of the switchover says more")
	for want, p := range map[string]election.Peer{"failover=manual": {Monitored: true}, "no repmgrd runs there": {}} {
		err := CheckDrain(p, r)
		require.ErrorIs(t, err, failure.ErrRefused)
		require.ErrorContains(t, err, want)
		require.Contains(t, failure.Hint(err), "repmgr -f /etc/repmgr.conf standby switchover")
		require.Contains(t, failure.Hint(err), "automatic on all nodes")
	}
}

func TestKeeps(t *testing.T) {
	t.Parallel()
	rule := election.Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}
	peers := func(change func([]election.Peer)) []election.Peer {
		all := []election.Peer{
			{ID: 1, Role: election.Primary, Answer: election.Answers, Running: election.Primary, Rule: rule},
			{ID: 2, Role: election.Standby, Answer: election.Answers, Running: election.Standby, Receiving: true, Rule: rule},
			{ID: 3, Role: election.Standby, Answer: election.Answers, Running: election.Standby, Receiving: true, Rule: rule},
		}
		change(all)
		return all
	}
	require.Empty(t, Keeps(2, peers(func([]election.Peer) {}), true))
	require.Contains(t, Keeps(1, peers(func([]election.Peer) {}), true), "is the primary")
	alone := func(all []election.Peer) { all[2].Answer = election.Silent }
	require.Contains(t, Keeps(2, peers(alone), true), "commits wait for 1 standbys, and without it 0 would be left")
	require.Empty(t, Keeps(2, peers(alone), false), "the primary goes on without waiting")
	require.Contains(t, Keeps(2, peers(func(all []election.Peer) { all[0].Answer = election.Silent }), true), "no primary")
	require.Empty(t, Keeps(2, peers(func(all []election.Peer) { all[1].Answer = election.Refused }), true), "it is stopped already")
	require.Contains(t, Keeps(2, peers(func(all []election.Peer) { all[1].Answer = election.NoSlots }), true), "it is not known what it runs as")
}
